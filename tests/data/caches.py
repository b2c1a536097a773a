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


def order(manifest, kept=Kept(30, "shorter"), *, said=None, threads=2, counting=uncounted):  # noqa: B008 - frozen
    """To keep all pictures of a manifest; sentences are added to ``said``."""
    say = (lambda line: None) if said is None else said.append
    return Order(originals(manifest), len(manifest), kept, threads, say, counting)


def in_a_cache(manifest, kept=Kept(30, "shorter")) -> CachedPictures:  # noqa: B008 - frozen
    """The reader of a cache of all pictures of a manifest, in memory."""
    filled = in_memory(order(manifest, kept), room_bytes=PLENTY)
    return filled.reader(np.arange(len(manifest)), originals(manifest))
