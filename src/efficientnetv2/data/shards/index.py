"""Names of shards, and the index of a set of shards: a Parquet file with one row per image.

Its columns are those of the packed dataset (``path``, ``label``, ``split``, ``group``, ...), in the same order, and

    shard           number of the tar in the list of shards, which the metadata hold
    shard_offset    first byte of the image
    shard_bytes     length of the image
    shard_content   hash of the packed file, equal for identical files. Older indexes lack it.
    shard_crc32     zlib's checksum of the bytes in the tar. Indexes from the headers of tars lack it and the hash.
    shard_labels    JSON list of several labels, where there is no label. Only in indexes from headers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
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
CONTENT, CHECKSUM, LABEL_LIST = "shard_content", "shard_crc32", "shard_labels"
INDEX_NAME = "index.parquet"
SUFFIX = ".tar"
_TEXT = (pa.string(), pa.large_string())
_METADATA = b"efficientnetv2_shards"
_REWRITE = "Write it again with effnetv2 data pack, or delete it to read the headers of the tars."
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
#: Why a compressed shard can't be read, to follow its name.
COMPRESSED = "is compressed, so no image can be read out of its middle. Unpack it to a plain .tar."
# The innermost pair of braces: a range of numbers or a list of words.
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
# A mistyped range should not fill the memory. ImageNet-21k in shards of 100 MB has 14,000. Ours.
_MAX_SHARDS = 1_000_000
# A path into a shard. The first tar in it is the shard.
_WITHIN = re.compile(r"(.+?\.tar)#(.+)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Shard:
    """A tar in the folder of its set. ``damage`` is of its headers; ``lacks`` is why some images have no label."""

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
    for column in [str(name) for name, dtype in table.dtypes.items() if str(dtype) == "object"]:
        table[column] = table[column].map(str, na_action="ignore").astype("string")
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    shards = [asdict(shard) for shard in index.shards]
    plain = json.dumps({"version": VERSION, "standard": index.published, "shards": shards})
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), _METADATA: plain.encode()})
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
        plain: Any = json.loads((arrow.schema.metadata or {}).get(_METADATA, b"{}"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is damaged, or is not an index of shards: {error}. {_REWRITE}") from None
    version = plain.get("version") if isinstance(plain, dict) else None
    if version != VERSION:
        raise InputError(f"{name} has the version {version}, but the index must have {VERSION}. {_REWRITE}")
    for place, field in enumerate(arrow.schema):  # other code compares labels as text
        if pa.types.is_dictionary(field.type):
            arrow = arrow.set_column(place, field.name, arrow.column(place).cast(field.type.value_type))
    table = arrow.to_pandas(ignore_metadata=True)
    try:
        shards = TypeAdapter(tuple[Shard, ...]).validate_python(plain["shards"])
    except (KeyError, ValueError):
        raise InputError(f"{name} is damaged: its list of shards is invalid. {_REWRITE}") from None
    if fault := next(_faults(arrow, table, shards), None):
        raise InputError(f"{name} is damaged: {fault}. {_REWRITE}")
    return ShardIndex(table, shards, plain.get("standard"))


def _faults(arrow: pa.Table, table: pd.DataFrame, shards: Sequence[Shard]) -> Iterator[str]:
    """What is wrong with an index: columns, names of shards, places outside the shards, repeated places."""
    for column in ("path", "label", "split", *PLACE):
        if column not in table:
            yield f"it lacks the column '{column}'"
        elif column in PLACE:
            if not pd.api.types.is_integer_dtype(table[column]) or table[column].isna().any():
                yield f"its column '{column}' must hold whole numbers"
        elif arrow.schema.field(column).type not in _TEXT and table[column].notna().any():
            yield f"its column '{column}' must hold text"
    for shard in shards:
        if not shard.name or os.path.basename(shard.name) != shard.name:
            yield f"'{shard.name}' is not the name of a shard in its folder"
    if not len(table):
        return
    number, start, size = (table[column].to_numpy(dtype=np.int64) for column in PLACE)
    if number.min() < 0 or number.max() >= len(shards):
        yield f"it names shards that are not in its list of {len(shards)}"
    available = np.array([shard.bytes for shard in shards], dtype=np.int64)[number]
    for row in np.flatnonzero((start < 0) | (size < 0) | (start > available) | (size > available - start)):
        yield (
            f"it places '{table['path'].iloc[row]}' at {size[row]:,} bytes from byte {start[row]:,} of "
            f"{shards[number[row]].name}, which holds {available[row]:,} bytes"
        )
    # Shards are smaller than 2^40 bytes, and there are fewer than 2^23 of them.
    if len(np.unique(number << 40 | start)) < len(table):
        yield "it lists an image twice: two rows point to one place in a shard"


def is_url(data: str) -> bool:
    """Whether data are in a remote store (``s3://…``, ``https://…``)."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", data) is not None


def shard_of(path: str) -> tuple[str, str] | None:
    """Tar and name within it of a path into a shard (``../a/train-0.tar#its/own.jpg``), or None."""
    match = _WITHIN.fullmatch(path)
    return (match[1], match[2]) if match else None


def is_compressed(name: str) -> bool:
    """Whether a file has the suffix of a compressed tar."""
    return name.lower().endswith(_COMPRESSED)


def is_pattern(data: str) -> bool:
    """Whether data name tars: one, or several with braces or stars. Raises InputError for compressed tars."""
    if is_compressed(data):
        raise InputError(f"'{data}' {COMPRESSED}")
    return data.lower().endswith(SUFFIX)


def expand_braces(pattern: str) -> list[str]:
    """Names of a pattern with braces, as in bash: ``train-{000..002}.tar`` (padded alike), ``{train,val}-0.tar``."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    parts = braces[1].split(",")
    if numbers := _NUMBERS.fullmatch(braces[1]):
        first, last = int(numbers[1]), int(numbers[2])
        if not first <= last < first + _MAX_SHARDS:
            raise InputError(f"'{pattern}': {first} to {last} must increase, by less than {_MAX_SHARDS}.")
        parts = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [name for part in parts for name in expand_braces(before + part + after)]


def split_location(data: str) -> tuple[str, str]:
    """Absolute folder or URL of shards, without a final slash, and the last part of ``data``, which may have stars."""
    base, _, name = (data if is_url(data) else data.replace("\\", "/")).rpartition("/")
    folder = Path(os.path.expanduser(base or "."))
    if any(sign in base for sign in "{}*[]") and (is_url(data) or not folder.is_dir()):
        raise InputError(f"'{data}': braces and stars belong in the name of a shard, not in its folder.")
    return (base if is_url(data) else folder.absolute().as_posix()), name
