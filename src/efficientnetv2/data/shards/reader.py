"""What is wrong with a set of shards, before the first step; what is found is ``data.validate``'s to judge."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.file_probe import FileProbe, map_chunks, max_levels, probe_bytes
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.shards.index import CHECKSUM, CONTENT, PLACE, Shard, ShardSet
from efficientnetv2.data.shards.storage import Range, Stat, Store, store_at
from efficientnetv2.utils.errors import InputError, count_of


class ShardReader:
    """A reader (``data.readers``) of pictures by shard, offset and length.

    Args:
        table: of a dataset, with the columns that an index adds.
        shards: that they point into.
    """

    def __init__(self, table: pd.DataFrame, shards: ShardSet) -> None:
        self._paths = table["path"]
        self._number, self._offset, self._bytes = (table[name].to_numpy(dtype=np.int64) for name in PLACE)
        self._checksums = table[CHECKSUM].to_numpy(dtype=np.uint32) if CHECKSUM in table else None
        self._shards = shards
        self._store: Store = store_at(shards.base)

    def source(self, sample: int) -> bytes:
        """The picture's bytes.

        Raises:
            UnreadablePicture: the shard is missing, cut short, damaged there, or can't be read.
            InputError: a store of another machine does not answer.
        """
        (content,) = self._store.read([self._range(sample)])
        return self.picture(sample, content)

    def name(self, sample: int) -> str:
        """The set's folder or URL, the shard, and the name within."""
        return f"{self._shards.base}/{self._paths.iat[sample]}"

    def ahead(self, samples: Sequence[int]) -> Fetched:
        """The same pictures, those of ``samples`` read together.

        Raises:
            InputError: a store of another machine does not answer.
        """
        read = self._store.read([self._range(sample) for sample in samples])
        return Fetched(self, MappingProxyType(dict(zip(samples, read, strict=True))))

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """Each picture's place, and the state of its shard."""
        numbers = sorted({int(self._number[sample]) for sample in samples})
        stats = self._store.stats([self._shards.shards[number].name for number in numbers])
        states = dict(zip(numbers, stats, strict=True))
        return [f"{self._offset[sample]} {states[int(self._number[sample])]}" for sample in samples]

    def picture(self, sample: int, content: bytes | str) -> bytes:
        """What the store gave for a picture.

        Raises:
            UnreadablePicture: it gave a reason instead, or bytes that are not those that were packed. (A decoder makes
                a picture even of a JPEG with a hole in it, and nobody would know.)
        """
        if isinstance(content, str):
            raise UnreadableImageError(self.name(sample), content)
        if self._checksums is not None and zlib.crc32(content) != self._checksums[sample]:
            raise UnreadableImageError(
                self.name(sample), f"is damaged: {self._range(sample)} are not what was packed"
            )
        return content

    def _range(self, sample: int) -> Range:
        start = int(self._offset[sample])
        name = self._shards.shards[self._number[sample]].name
        return Range(name, start, start + int(self._bytes[sample]))


class Fetched:
    """A reader that has some pictures at hand and asks another for the rest."""

    def __init__(self, reader: ShardReader, read: Mapping[int, bytes | str]) -> None:
        self._reader, self._read = reader, read

    def source(self, sample: int) -> bytes:
        """See ``ShardReader.source``."""
        if sample not in self._read:
            return self._reader.source(sample)
        return self._reader.picture(sample, self._read[sample])

    def name(self, sample: int) -> str:
        """See ``ShardReader.name``."""
        return self._reader.name(sample)

    def ahead(self, samples: Sequence[int]) -> Fetched:
        """See ``ShardReader.ahead``."""
        return self._reader.ahead(samples)

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """See ``ShardReader.stamps``."""
        return self._reader.stamps(samples)


Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Damage:
    """What is wrong with the shards of a dataset.

    Args:
        reasons: why a picture is lost, by its row.
        notes: a sentence for each damaged shard.
    """

    reasons: dict[int, str]
    notes: tuple[str, ...]


def damage_of(table: pd.DataFrame, shards: ShardSet) -> Damage:
    """Compare the shards with their index; no picture is read.

    Args:
        table: of a dataset, with the columns that an index adds.
        shards: that they point into.

    Raises:
        InputError: a shard is another than the index was written for, or a store can't be reached.
    """
    number, offset, size = (table[name].to_numpy(dtype=np.int64) for name in PLACE)
    used = np.flatnonzero(np.bincount(number, minlength=len(shards.shards)))
    stats = store_at(shards.base).stats([shards.shards[shard].name for shard in used])
    reasons: dict[int, str] = {}
    empty = [shard for shard in shards.shards if shard.damage and not shard.pictures]
    notes = [f"Damaged shard: {shard.name} {shard.damage}; none of its pictures are used." for shard in empty]
    for shard, stat in zip(used.tolist(), stats, strict=True):
        known = shards.shards[shard]
        damage, whole = _damage(known, stat, shards.base)
        if not damage and not known.damage:
            continue
        rows = np.flatnonzero(number == shard)
        gone = rows[offset[rows] + size[rows] > whole]
        reasons |= dict.fromkeys(gone.tolist(), f"is lost: the shard {damage}")
        found = count_of(len(rows), "picture")
        left = f"{len(rows) - len(gone)} of its {found}" if damage else f"the {found} found in it"
        are = "is" if len(rows) - len(gone) == 1 else "are"
        notes.append(f"Damaged shard: {known.name} {damage or known.damage}; {left} {are} used.")
    return Damage(reasons, tuple(notes))


def look_within(
    table: pd.DataFrame, shards: ShardSet, lost: Collection[int], workers: int
) -> tuple[Ints, dict[int, str], Counter[str], list[int]]:
    """Look at the pictures of shards, where whoever packed them did not.

    Args:
        table: of a dataset, with the columns that an index adds.
        shards: that they point into.
        lost: rows that need no look.
        workers: threads.

    Returns:
        (N,) numbers, equal where the packed files held the same bytes, -1 where unknown; why a picture can't be used,
        by its row; how many of which colours become RGB; and the highest level, 0 to 255, of each image of more than 8
        bits. The last three are empty where no look was needed.
    """
    contents = np.full(len(table), -1, dtype=np.int64)
    if CONTENT in table:
        contents[:] = table[CONTENT]
        return contents, {}, Counter(), []
    rows = np.setdiff1d(np.arange(len(table)), list(lost)).tolist()
    reader = ShardReader(table, shards)

    def of_chunk(chunk: Sequence[int]) -> list[tuple[FileProbe, int]]:
        fetched = reader.ahead(chunk)
        return [_look(fetched, row) for row in chunk]

    reasons: dict[int, str] = {}
    found = map_chunks(of_chunk, rows, workers)
    for row, (seen, content) in zip(rows, found, strict=True):
        if seen.reason:
            reasons[row] = seen.reason
        else:
            contents[row] = content
    looks = [seen for seen, _ in found]
    return contents, reasons, Counter(seen.colours for seen in looks if seen.colours), max_levels(looks)


def _damage(known: Shard, stat: Stat | None, base: str) -> tuple[str, int]:
    """What is wrong with a shard in words, '' if nothing, and how many bytes of it are there."""
    if stat is None:
        return "is missing", 0
    if stat.bytes > known.bytes:
        raise InputError(
            f"{base}/{known.name} has {stat.bytes:,} bytes, but {known.bytes:,} in the index: it was written anew "
            "since, and the index would cut pictures out of the wrong places. Bring the right shard back, or write the "
            "index anew."
        )
    if stat.bytes < known.bytes:
        return f"is cut short ({stat.bytes:,} of {known.bytes:,} bytes)", stat.bytes
    return "", known.bytes


def _look(reader: Fetched, row: int) -> tuple[FileProbe, int]:
    try:
        data = reader.source(row)
    except UnreadableImageError as error:
        return FileProbe(error.reason), -1
    return probe_bytes(data), mark_of(data)


def mark_of(data: bytes) -> int:
    """A number of 63 bits that tells files apart: equal for equal bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1
