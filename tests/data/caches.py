"""What the tests of the cache share."""

from __future__ import annotations

import numpy as np

from efficientnetv2.data.cache_reader import CachedImageReader
from efficientnetv2.data.cache_writer import CacheJob, CacheSpec, cache_in_memory
from efficientnetv2.data.readers import source_reader

PLENTY = 2**30


def order(dataset, kept=CacheSpec(30, "shorter"), *, threads=2):  # noqa: B008 - frozen
    """To keep all images of a dataset."""
    return CacheJob(source_reader(dataset), len(dataset), kept, threads)


def in_a_cache(dataset, kept=CacheSpec(30, "shorter")) -> CachedImageReader:  # noqa: B008 - frozen
    """The reader of a cache of all images of a dataset, in memory."""
    filled = cache_in_memory(order(dataset, kept), room_bytes=PLENTY)
    return filled.reader(np.arange(len(dataset)), source_reader(dataset))
