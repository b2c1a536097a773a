"""OpenMP's waiting threads, glibc's allocator, and a time limit for calls that have none."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, MutableMapping
from typing import TypeVar

Result = TypeVar("Result")

# Rounds that a waiting thread of GNU's OpenMP spins before it sleeps; the default is 300,000. While it spins it holds a
# core. Ours: on two idle cores 10,000 cost a step nothing, 1,000 half of it; with two other busy programs 10,000 were
# 1.8 times as fast as the default (one machine; benchmarks/results/step_tried.md).
_SPIN_COUNT = 10_000
# Names of mallopt's parameters in glibc's malloc.h, and the largest value that it takes.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_MAX_INT = 2**31 - 1


def limit_openmp_spin(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting threads free their core soon, unless the user has set how threads wait.

    Must be called before PyTorch is imported. Only GNU's OpenMP reads it.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = str(_SPIN_COUNT)


def call_with_timeout(seconds: float, call: Callable[[], Result]) -> Result:
    """The result of a call, or TimeoutError after ``seconds``.

    The timeout of a connection holds for each address of a server, and not for the look-up of its name. The call runs
    in a thread, which is abandoned when the time is up.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]


def keep_freed_memory() -> bool:
    """Let this process and its forks reuse the memory that they free; ``memory.release_memory`` returns it.

    Environment variables of glibc's allocator take precedence. ``python -m benchmarks.kept_memory`` measures the gain.

    Returns:
        Whether it was set: only Linux with glibc has it.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    if sys.platform != "linux" or is_set or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none.
    # Without mappings of their own: those return to the system with the block.
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, _MAX_INT)) and bool(mallopt(_MMAP_MAX, 0))
