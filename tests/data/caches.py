"""What the tests of the cache share."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np

from efficientnetv2.data.cache_writer import Order, in_memory
from efficientnetv2.data.image_cache import CachedPictures, Kept
from efficientnetv2.data.readers import originals

PLENTY = 2**30


@contextmanager
def uncounted(what, total):
    yield lambda done: None


def order(dataset, kept=Kept(30, "shorter"), *, said=None, threads=2, counting=uncounted):  # noqa: B008 - frozen
    """To keep all pictures of a dataset; sentences are added to ``said``."""
    say = (lambda line: None) if said is None else said.append
    return Order(originals(dataset), len(dataset), kept, threads, say, counting)


def in_a_cache(dataset, kept=Kept(30, "shorter")) -> CachedPictures:  # noqa: B008 - frozen
    """The reader of a cache of all pictures of a dataset, in memory."""
    filled = in_memory(order(dataset, kept), room_bytes=PLENTY)
    return filled.reader(np.arange(len(dataset)), originals(dataset))
