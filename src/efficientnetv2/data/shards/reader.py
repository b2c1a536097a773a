"""Read images from shards, and find damaged shards."""

from __future__ import annotations

import copy
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.records import ImageRecords
from efficientnetv2.data.shards.index import CHECKSUM, PLACE, ShardSet
from efficientnetv2.data.shards.storage import LocalStore, Range, store_at
from efficientnetv2.utils.errors import InputError, pluralize


class ShardReader:
    """A ``data.readers.Reader`` of images by shard, offset and length, the columns of an index."""

    def __init__(self, table: pd.DataFrame, shards: ShardSet) -> None:
        self._paths = table["path"]
        self._number, self._offset, self._bytes = (table[name].to_numpy(dtype=np.int64) for name in PLACE)
        self._checksums = table[CHECKSUM].to_numpy(dtype=np.uint32) if CHECKSUM in table else None
        self._shards = shards
        self._store = store_at(shards.base)
        self._fetched: dict[int, bytes | str] = {}  # content, or why it is unavailable

    def source(self, sample: int) -> bytes:
        """Bytes of the image. Raises UnreadableImageError, or InputError if a remote store does not respond."""
        content = self._fetched.get(sample)
        if content is None:
            (content,) = self._store.read([self._range(sample)])
        if isinstance(content, str):
            raise UnreadableImageError(self.name(sample), content)
        # Decoders accept a JPEG with a hole in it.
        if self._checksums is not None and zlib.crc32(content) != self._checksums[sample]:
            reason = f"is damaged: {self._range(sample)} are not what was packed"
            raise UnreadableImageError(self.name(sample), reason)
        return content

    def name(self, sample: int) -> str:
        """Folder or URL of the set, shard, and name within."""
        return f"{self._shards.base}/{self._paths.iat[sample]}"

    def ahead(self, samples: Sequence[int]) -> ShardReader:
        """A reader with these samples read together. Raises InputError if a remote store does not respond."""
        if isinstance(self._store, LocalStore):  # no faster together, and hundreds of photos take gigabytes
            return self
        reader = copy.copy(self)
        read = self._store.read([self._range(sample) for sample in samples])
        reader._fetched = dict(zip(samples, read, strict=True))
        return reader

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """Offset of each image, and state of its shard."""
        numbers = sorted({int(self._number[sample]) for sample in samples})
        stats = self._store.stats([self._shards.shards[number].name for number in numbers])
        states = dict(zip(numbers, stats, strict=True))
        return [f"{self._offset[sample]} {states[int(self._number[sample])]}" for sample in samples]

    def _range(self, sample: int) -> Range:
        start = int(self._offset[sample])
        name = self._shards.shards[self._number[sample]].name
        return Range(name, start, start + int(self._bytes[sample]))


def content_hash(data: bytes) -> int:
    """63-bit hash of a file."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class ShardDamage:
    """Reason of each lost image, by its row, and a sentence for each damaged shard."""

    reasons: dict[int, str]
    notes: tuple[str, ...]


def find_damage(records: ImageRecords, *, strict: bool) -> ShardDamage:
    """Compare the sizes of shards, if there are any, with their index, without reading images.

    Raises InputError for a replaced shard, and with ``strict`` for a damaged one.
    """
    shards = records.shards
    if shards is None:
        return ShardDamage({}, ())
    number, offset, size = (records.table[name].to_numpy(dtype=np.int64) for name in PLACE)
    used = np.flatnonzero(np.bincount(number, minlength=len(shards.shards)))
    stats = store_at(shards.base).stats([shards.shards[shard].name for shard in used])
    reasons: dict[int, str] = {}
    notes = [
        f"Damaged shard: {shard.name} {shard.damage}; none of its images are used."
        for shard in shards.shards
        if shard.damage and not shard.pictures
    ]
    for shard, stat in zip(used.tolist(), stats, strict=True):
        known, damage, size_now = shards.shards[shard], "", 0 if stat is None else stat.bytes
        if stat is None:
            damage = "is missing"
        elif size_now > known.bytes:
            raise InputError(
                f"{shards.base}/{known.name} has {size_now:,} bytes, but {known.bytes:,} in the index. "
                "Restore the shard, or write the index again."
            )
        elif size_now < known.bytes:
            damage = f"is cut short ({size_now:,} of {known.bytes:,} bytes)"
        if damage or known.damage:
            rows = np.flatnonzero(number == shard)
            gone = rows[offset[rows] + size[rows] > size_now]
            reasons |= dict.fromkeys(gone.tolist(), f"is lost: the shard {damage}")
            left = f"{len(rows) - len(gone)} of its {pluralize(len(rows), 'image')} found"
            notes.append(f"Damaged shard: {known.name} {damage or known.damage}; {left} are used.")
    if strict and notes:
        raise InputError(f"{records.source}: {notes[0]} Repair it, or leave `strict` out.")
    return ShardDamage(reasons, tuple(notes))
