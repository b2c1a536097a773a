"""What the tests of the cache share."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np

from efficientnetv2.data.cache_writer import CacheJob, cache_in_memory
from efficientnetv2.data.image_cache import CachedImageReader, CacheSpec
from efficientnetv2.data.readers import source_reader

PLENTY = 2**30


@contextmanager
def uncounted(what, total):
    yield lambda done: None


def order(dataset, kept=CacheSpec(30, "shorter"), *, said=None, threads=2, counting=uncounted):  # noqa: B008 - frozen
    """To keep all pictures of a dataset; sentences are added to ``said``."""
    say = (lambda line: None) if said is None else said.append
    return CacheJob(source_reader(dataset), len(dataset), kept, threads, say, counting)


def in_a_cache(dataset, kept=CacheSpec(30, "shorter")) -> CachedImageReader:  # noqa: B008 - frozen
    """The reader of a cache of all pictures of a dataset, in memory."""
    filled = cache_in_memory(order(dataset, kept), room_bytes=PLENTY)
    return filled.reader(np.arange(len(dataset)), source_reader(dataset))
