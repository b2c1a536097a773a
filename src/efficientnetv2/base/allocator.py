"""What the C library does with memory that a tensor no longer needs.

Glibc gives the memory of large blocks back to the system the moment they are freed, and asks for it again in the next
layer; the system then clears every page anew. A training step on a CPU does that thousands of times a second.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Names of mallopt's parameters in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_MOST = 2**31 - 1  # bytes at the heap's end that may lie free: the largest that mallopt takes


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next tensors; ``memory.release`` still gives it back.

    Takes effect at once and until the process ends, children that it forks included. Whoever has set glibc's allocator
    by environment variables (``MALLOC_...``, ``GLIBC_TUNABLES``) keeps his settings. What it gains is measured by
    ``python -m benchmarks.kept_memory``.

    Returns:
        Whether it did: Linux with glibc alone has this to set.
    """
    theirs = any(name.startswith("MALLOC_") for name in os.environ)
    if sys.platform != "linux" or theirs or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    # No block by a mapping of its own: that goes back to the system with the block, whatever the threshold.
    return bool(mallopt(_TRIM_THRESHOLD, _MOST)) and bool(mallopt(_MMAP_MAX, 0))
