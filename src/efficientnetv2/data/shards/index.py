"""Names of shards, and the index of a set of shards: a Parquet file with one row per image.

Its columns are those of the packed dataset (``path``, ``label``, ``split``, ``group``, ...) and

    shard           number of the tar in the list of shards
    shard_offset    first byte of the image
    shard_bytes     length of the image
    shard_content   hash of the packed file, equal for identical files
    shard_crc32     zlib's checksum of the bytes in the tar

An index from the headers of tars lacks the last two, and older indexes lack the last. An index from headers may have

    shard_labels    JSON list of several labels, where there is no label

Rows are in the order of the packed dataset, so that a run on shards draws the same images as a run on the files. The
metadata of the file have the list of shards and the version of the format.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import write_atomically

VERSION = 1
PLACE = ("shard", "shard_offset", "shard_bytes")
CONTENT = "shard_content"
CHECKSUM = "shard_crc32"
LABEL_LIST = "shard_labels"
_METADATA = b"efficientnetv2_shards"


@dataclass(frozen=True)
class Shard:
    """A tar.

    Args:
        name: File name in the folder of the set.
        bytes: Expected size.
        pictures: Number of images.
        damage: Damage found while reading its headers, or ''.
        lacks: Why some images have no label, or ''.
    """

    name: str
    bytes: int
    pictures: int
    damage: str = ""
    lacks: str = ""


@dataclass(frozen=True)
class ShardSet:
    """Tars by number, and their absolute folder or URL."""

    base: str
    shards: tuple[Shard, ...]


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Content of an index: one row per image, tars by number, and the name of the packed published dataset, if any."""

    table: pd.DataFrame
    shards: tuple[Shard, ...]
    published: str | None = None


def save_index(index: ShardIndex, file: Path) -> None:
    """Write an index atomically. Raises OSError."""
    table = index.table.copy(deep=False)
    for column in ("label", "split"):
        table[column] = table[column].astype("category")  # writes each name once
    mixed = [str(name) for name, dtype in table.dtypes.items() if str(dtype) == "object"]
    for column in mixed:
        table[column] = table[column].map(str, na_action="ignore").astype("string")
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    plain = {
        "version": VERSION,
        "standard": index.published,
        "shards": [asdict(shard) for shard in index.shards],
    }
    metadata = {**(arrow.schema.metadata or {}), _METADATA: json.dumps(plain).encode()}
    arrow = arrow.replace_schema_metadata(metadata)
    write_atomically(file, lambda partial: pq.write_table(arrow, partial, compression="zstd"))


def is_index(file: Path) -> bool:
    """Whether a Parquet file is an index of shards, of any version."""
    try:
        return _METADATA in (pq.read_schema(file).metadata or {})
    except (OSError, ValueError):  # pyarrow's errors are ValueErrors
        return False


def load_index(stream: IO[bytes] | Path, name: str) -> ShardIndex:
    """Read an index. ``name`` is for messages. Raises InputError if it is no index, damaged, or of another version."""
    try:
        arrow = pq.read_table(stream)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read as Parquet: {error}. {_ANEW}") from None
    plain = _metadata(arrow, name)
    table = _plain_text(arrow).to_pandas()
    missing = [column for column in ("path", "label", "split", *PLACE) if column not in table]
    if missing:
        raise InputError(f"{name} lacks the column '{missing[0]}' of an index of shards. {_ANEW}")
    for column in ("path", "label", "split"):
        kind = arrow.schema.field(column).type
        text = getattr(kind, "value_type", kind) in (pa.string(), pa.large_string())
        if not text and table[column].notna().any():
            raise InputError(f"{name} is damaged: its column '{column}' must hold text, not {kind}. {_ANEW}")
    for column in PLACE:
        if not pd.api.types.is_integer_dtype(table[column]) or table[column].isna().any():
            raise InputError(f"{name} is damaged: its column '{column}' must hold whole numbers. {_ANEW}")
    try:
        shards = _SHARDS.validate_python(plain["shards"])
    except (KeyError, ValueError):
        raise InputError(f"{name} is damaged: its list of shards is not one. {_ANEW}") from None
    strange = [shard.name for shard in shards if not shard.name or os.path.basename(shard.name) != shard.name]
    if strange:
        raise InputError(f"{name} is damaged: '{strange[0]}' is no name of a shard in its folder. {_ANEW}")
    _refuse_misplaced(table, shards, name)
    return ShardIndex(table, shards, plain.get("standard"))


_SHARDS = TypeAdapter(tuple[Shard, ...])


def _refuse_misplaced(table: pd.DataFrame, shards: Sequence[Shard], name: str) -> None:
    """Refuse places outside the shards, and repeated places."""
    number, start, size = (table[column].to_numpy(dtype=np.int64) for column in PLACE)
    if len(table) and not table["shard"].between(0, len(shards) - 1).all():
        raise InputError(f"{name} names shards that are not in its list of {len(shards)}. {_ANEW}")
    whole = np.array([shard.bytes for shard in shards], dtype=np.int64)[number] if len(table) else start
    wrong = np.flatnonzero((start < 0) | (size < 0) | (start > whole) | (size > whole - start))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{name} is damaged: it places '{table['path'].iloc[row]}' at {size[row]:,} bytes from byte "
            f"{start[row]:,} of {shards[number[row]].name}, which holds {whole[row]:,} bytes. {_ANEW}"
        )
    # Shards are smaller than 2^40 bytes, and there are fewer than 2^23 of them.
    places = number << 40 | start
    if len(np.unique(places)) < len(places):
        raise InputError(f"{name} lists an image twice: two rows point to one place in a shard. {_ANEW}")


_ANEW = "Write it anew with effnetv2 data pack, or delete it to have the headers of the tars read instead."


def _metadata(arrow: pa.Table, name: str) -> dict[str, Any]:
    text = (arrow.schema.metadata or {}).get(_METADATA)
    if text is None:
        raise InputError(f"{name} is a table, but no index of shards. {_ANEW}")
    try:
        plain: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        plain = {}
    if not isinstance(plain, dict) or "version" not in plain:
        raise InputError(f"{name} is damaged: its list of shards cannot be read. {_ANEW}")
    if plain.get("version") != VERSION:
        raise InputError(
            f"{name} is an index of version {plain.get('version')}, but this program reads version {VERSION}. "
            f"Use the program that wrote it. {_ANEW}"
        )
    return plain


def _plain_text(arrow: pa.Table) -> pa.Table:
    """Dictionary columns as text, since other code compares labels as text."""
    for place, field in enumerate(arrow.schema):
        if pa.types.is_dictionary(field.type):
            arrow = arrow.set_column(place, field.name, arrow.column(place).cast(field.type.value_type))
    pandas = {key: value for key, value in (arrow.schema.metadata or {}).items() if key != b"pandas"}
    return arrow.replace_schema_metadata(pandas)


INDEX_NAME = "index.parquet"
SUFFIX = ".tar"

_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
#: Why a compressed shard can't be read, to follow its name.
COMPRESSED = (
    "is compressed, so no image can be read out of its middle; images are compressed themselves and gain nothing "
    "by it. Unpack it to a plain .tar."
)
# The innermost pair of braces: a range of numbers or a list of words.
_BRACES = re.compile(r"\{([^{}]*)\}")
# A path into a shard. The first tar in it is the shard.
_WITHIN = re.compile(r"(.+?\.tar)#(.+)", re.DOTALL | re.IGNORECASE)
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
# A mistyped range should not fill the memory. ImageNet-21k in shards of 100 MB has 14,000. Ours.
_MAX_SHARDS = 1_000_000


def is_url(data: str) -> bool:
    """Whether data are in a remote store (``s3://…``, ``https://…``)."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", data) is not None


def shard_of(path: str) -> tuple[str, str] | None:
    """Tar and name within it of a path into a shard (``../a/train-0.tar#its/own.jpg``), or None."""
    match = _WITHIN.fullmatch(path)
    return (match[1], match[2]) if match else None


def is_pattern(data: str) -> bool:
    """Whether data name tars: one, or several with braces or stars. Raises InputError for compressed tars."""
    if is_compressed(data):
        raise InputError(f"'{data}' {COMPRESSED}")
    return data.lower().endswith(SUFFIX)


def is_compressed(name: str) -> bool:
    """Whether a file has the suffix of a compressed tar."""
    return name.lower().endswith(_COMPRESSED)


def expand_braces(pattern: str) -> list[str]:
    """Names of a pattern with braces, as in bash and WebDataset: ``train-{000..002}.tar``, ``{train,val}-0.tar``.

    Numbers keep the leading zeros of the first. Raises InputError for ranges that are backward or too long.
    """
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    words = _words(braces[1], pattern)
    return [name for word in words for name in expand_braces(before + word + after)]


def _words(inside: str, pattern: str) -> list[str]:
    numbers = _NUMBERS.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not first <= last < first + _MAX_SHARDS:
        raise InputError(
            f"'{pattern}': {{{inside}}} counts from {first} to {last}, but a range goes upwards and names at most "
            f"{_MAX_SHARDS} shards. Write the smaller number first."
        )
    return [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]


def split_location(data: str) -> tuple[str, str]:
    """Absolute folder or URL of shards, without a final slash, and the last part of ``data``.

    Raises InputError if a folder has braces or stars, unless it exists under this name.
    """
    base, _, name = data.replace("\\", "/").rpartition("/") if not is_url(data) else data.rpartition("/")
    exists = not is_url(data) and Path(os.path.expanduser(base)).is_dir()
    if not exists and any(sign in base for sign in "{}*[]"):
        raise InputError(
            f"'{data}': braces and stars stand in the name of a shard, not in its folder '{base}'. "
            "Give the shards of one folder."
        )
    return (base if is_url(data) else Path(os.path.expanduser(base or ".")).absolute().as_posix()), name
