"""Helpers of the tests of the image cache."""

from __future__ import annotations

import numpy as np

from efficientnetv2.data.cache_reader import CachedImageReader
from efficientnetv2.data.cache_writer import CacheJob, CacheSpec, cache_in_memory
from efficientnetv2.data.readers import source_reader

PLENTY = 2**30


def cache_job(dataset, spec=CacheSpec(30, "shorter"), *, threads=2):  # noqa: B008 - frozen
    """The job of caching all images of a dataset."""
    return CacheJob(source_reader(dataset), len(dataset), spec, threads)


def memory_cache_reader(dataset, spec=CacheSpec(30, "shorter")) -> CachedImageReader:  # noqa: B008 - frozen
    """The reader of an in-memory cache of all images of a dataset."""
    cache = cache_in_memory(cache_job(dataset, spec), room_bytes=PLENTY)
    return cache.reader(np.arange(len(dataset)), source_reader(dataset))
