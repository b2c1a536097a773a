"""Pictures out of shards, wherever they stand in them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd

from efficientnetv2.data.pictures import UnreadablePicture
from efficientnetv2.data.shards.index import CHECKSUM, PLACE, ShardSet
from efficientnetv2.data.shards.stores import Range, Store, store_at


class ShardReader:
    """A reader (``data.readers``) of pictures by shard, offset and length.

    Args:
        table: of a manifest, with the columns that an index adds.
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
            raise UnreadablePicture(self.name(sample), content)
        if self._checksums is not None and zlib.crc32(content) != self._checksums[sample]:
            raise UnreadablePicture(
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
