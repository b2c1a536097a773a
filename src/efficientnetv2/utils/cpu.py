"""Threads that wait: how long one keeps a core meanwhile, and how long one waits for an answer at most.

PyTorch shares a layer among threads, one for each core, and all wait for the last of them. With GNU's OpenMP who waits
goes round a loop first, before it sleeps. Beside another busy program it holds a core that way which the thread it
waits for could have.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, MutableMapping
from typing import TypeVar

Answer = TypeVar("Answer")

# Rounds of that loop; GNU's default is 300,000. Ours: on two cores 10,000 cost an undisturbed step nothing, 1,000 made
# it half as long again; beside two busy programs 10,000 were 1.8 times as fast as the default (one machine;
# benchmarks/results/step_tried.md).
_ROUNDS = 10_000
_THEIRS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def limit_openmp_spin(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait give their core to other programs soon. To be called before PyTorch is imported.

    Whoever has said how threads wait (``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``) keeps it. Other kinds of OpenMP than
    GNU's, as on macOS and Windows, take no notice.

    Args:
        environment: of this process and those that it starts.
    """
    if not any(name in environment for name in _THEIRS):
        environment["GOMP_SPINCOUNT"] = str(_ROUNDS)


def call_with_timeout(seconds: float, question: Callable[[], Answer]) -> Answer:
    """The answer to a question, or ``TimeoutError`` after so many seconds.

    A timeout of a connection holds for each address of a server, and none for the look-up of its name: behind a
    firewall that swallows packets they add up to minutes. A thread that is left behind dies with the process.
    """
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            answers.append(question())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answers[0]


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
