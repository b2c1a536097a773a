"""The index of a set of shards: a Parquet file with a row per picture.

Its columns are those of the dataset that was packed (``path``, ``label``, ``split``, ``group``, ...) and

    shard           number of the tar in the list of shards
    shard_offset    byte that the picture begins at
    shard_bytes     its length
    shard_content   a hash of the file that was packed, equal for identical files
    shard_crc32     zlib's checksum of the bytes as they stand in the tar

The last two are missing in an index that was made from the tars' headers, the last one in an older index too. Such an
index from headers has besides, where samples have several labels,

    shard_labels    a JSON list of them, where there is no label

Rows stand in the order of that dataset, whatever the order in the tars: so a run on the shards draws the same
pictures as one on the files. The list of shards and the format's version stand in the file's metadata.
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
LIST = "shard_labels"
_METADATA = b"efficientnetv2_shards"


@dataclass(frozen=True)
class Shard:
    """A tar of the set.

    Args:
        name: of the file, in the folder of the set.
        bytes: that it should have.
        pictures: in it.
        damage: what was wrong with it when its headers were read, '' if nothing.
        lacks: why pictures of it have no label, '' if all have one.
    """

    name: str
    bytes: int
    pictures: int
    damage: str = ""
    lacks: str = ""


@dataclass(frozen=True)
class ShardSet:
    """Tars that belong together.

    Args:
        base: absolute folder or URL that they lie in.
        shards: the tars, by number.
    """

    base: str
    shards: tuple[Shard, ...]


@dataclass(frozen=True, eq=False)
class Index:
    """Everything an index says.

    Args:
        table: a row per picture.
        shards: the tars, by number.
        standard: name of the published data set that was packed, or None.
    """

    table: pd.DataFrame
    shards: tuple[Shard, ...]
    standard: str | None = None


def save(index: Index, file: Path) -> None:
    """Write an index, whole or not at all.

    Raises:
        OSError: the folder is full or read-only.
    """
    table = index.table.copy(deep=False)
    for column in ("label", "split"):
        table[column] = table[column].astype("category")  # a class name is then written once
    for column in [
        str(name) for name, kind in table.dtypes.items() if str(kind) == "object"
    ]:  # what a CSV mixes has no type but text
        table[column] = table[column].map(str, na_action="ignore").astype("string")
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    plain = {
        "version": VERSION,
        "standard": index.standard,
        "shards": [asdict(shard) for shard in index.shards],
    }
    metadata = {**(arrow.schema.metadata or {}), _METADATA: json.dumps(plain).encode()}
    arrow = arrow.replace_schema_metadata(metadata)
    write_atomically(file, lambda partial: pq.write_table(arrow, partial, compression="zstd"))


def is_index(file: Path) -> bool:
    """Whether a Parquet file is the index of a set of shards, of any version."""
    try:
        return _METADATA in (pq.read_schema(file).metadata or {})
    except (OSError, ValueError):  # pyarrow's errors are ValueErrors
        return False


def load(stream: IO[bytes] | Path, name: str) -> Index:
    """Read an index.

    Args:
        stream: the file, or its content.
        name: of it, for messages.

    Raises:
        InputError: it is no index, of another version, or damaged.
    """
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
    return Index(table, shards, plain.get("standard"))


_SHARDS = TypeAdapter(tuple[Shard, ...])


def _refuse_misplaced(table: pd.DataFrame, shards: Sequence[Shard], name: str) -> None:
    """Refuse places outside the shards, before anything is read there, and places that are listed twice."""
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
        raise InputError(f"{name} lists a picture twice: two rows point to one place in a shard. {_ANEW}")


_ANEW = "Write it anew with effnetv2 shards, or delete it to have the headers of the tars read instead."


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
    """Dictionaries spelled out: the rest of the package compares labels as text."""
    for place, field in enumerate(arrow.schema):
        if pa.types.is_dictionary(field.type):
            arrow = arrow.set_column(place, field.name, arrow.column(place).cast(field.type.value_type))
    pandas = {key: value for key, value in (arrow.schema.metadata or {}).items() if key != b"pandas"}
    return arrow.replace_schema_metadata(pandas)


INDEX = "index.parquet"
SUFFIX = ".tar"

_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
#: Why such a one can't be read, to follow its name.
COMPRESSED = (
    "is compressed, so no picture can be read out of its middle; pictures are compressed themselves and gain nothing "
    "by it. Unpack it to a plain .tar."
)
# The innermost pair of braces: a range of numbers or a list of words.
_BRACES = re.compile(r"\{([^{}]*)\}")
# A path into a shard: the first tar in it is the shard.
_WITHIN = re.compile(r"(.+?\.tar)#(.+)", re.DOTALL | re.IGNORECASE)
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
# A mistyped range should not fill the memory. Ours; ImageNet-21k in shards of 100 MB has 14,000.
_MOST_SHARDS = 1_000_000


def is_url(data: str) -> bool:
    """Whether DATA lies in a store of another machine (``s3://…``, ``https://…``)."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", data) is not None


def shard_of(path: str) -> tuple[str, str] | None:
    """The tar, and the name within it, of a path into a shard (``../a/train-0.tar#its/own.jpg``), or None."""
    match = _WITHIN.fullmatch(path)
    return (match[1], match[2]) if match else None


def is_pattern(data: str) -> bool:
    """Whether DATA names tars: one, or several with braces or stars.

    Raises:
        InputError: they are compressed ones.
    """
    if is_compressed(data):
        raise InputError(f"'{data}' {COMPRESSED}")
    return data.lower().endswith(SUFFIX)


def is_compressed(name: str) -> bool:
    """Whether a file is called as a compressed tar is."""
    return name.lower().endswith(_COMPRESSED)


def expanded(pattern: str) -> list[str]:
    """The names that braces stand for, in their order: ``train-{000..002}.tar``, ``{train,val}-0.tar``.

    As bash and WebDataset have it; a number keeps the leading zeros of the range's first one.

    Raises:
        InputError: a range runs backwards or is absurdly long.
    """
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    words = _words(braces[1], pattern)
    return [name for word in words for name in expanded(before + word + after)]


def _words(inside: str, pattern: str) -> list[str]:
    numbers = _NUMBERS.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not first <= last < first + _MOST_SHARDS:
        raise InputError(
            f"'{pattern}': {{{inside}}} counts from {first} to {last}, but a range goes upwards and names at most "
            f"{_MOST_SHARDS} shards. Write the smaller number first."
        )
    return [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]


def parted(data: str) -> tuple[str, str]:
    """The folder or URL that shards lie in, absolute and without a slash at its end, and the last part of DATA.

    Args:
        data: a pattern whose folders have neither braces nor stars, but for those that are called so.

    Raises:
        InputError: a folder of the pattern has some.
    """
    base, _, name = data.replace("\\", "/").rpartition("/") if not is_url(data) else data.rpartition("/")
    called_so = not is_url(data) and Path(os.path.expanduser(base)).is_dir()
    if not called_so and any(sign in base for sign in "{}*[]"):
        raise InputError(
            f"'{data}': braces and stars stand in the name of a shard, not in its folder '{base}'. "
            "Give the shards of one folder."
        )
    return (base if is_url(data) else Path(os.path.expanduser(base or ".")).absolute().as_posix()), name
