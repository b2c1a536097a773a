"""Processes: how threads wait, their allocator, time limits, their end, and the environment of a launcher."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from efficientnetv2.utils.errors import InputError

Result = TypeVar("Result")
Names = TypeVar("Names", bound=tuple[str, ...])

# Where Linux shows the limits of cgroups, and the groups of this process.
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

_STARTING = threading.Lock()  # one thread at a time changes __main__

# Rounds that a waiting thread of GNU's OpenMP spins before it sleeps; the default is 300,000. While it spins it holds a
# core. Ours: on two idle cores 10,000 cost a step nothing, 1,000 half of it; with two other busy programs 10,000 were
# 1.8 times as fast as the default (one machine; benchmarks/results/step_tried.md).
_SPIN_COUNT = 10_000
# Names of mallopt's parameters in glibc's malloc.h, and the largest value that it takes.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_MAX_INT = 2**31 - 1

_PR_SET_PDEATHSIG = 1  # Source: prctl(2), linux/prctl.h.
# The variable and the content of the error file are torch.distributed.elastic.multiprocessing.errors'.
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
# torchrun takes the earliest failure for the cause, by whole seconds; one that only follows another is dated later.
_CONSEQUENCE_S = 2

#: The fix where the environment describes several processes but is not a launcher's.
START_OR_UNSET = "Start several processes with torchrun. For a single process, unset RANK and WORLD_SIZE."


def limit_openmp(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting threads of OpenMP free their core soon, and start no more than a container's quota has cores for.

    What the user has set stays. Call it before PyTorch's import.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = str(_SPIN_COUNT)
    # Several processes divide the cores themselves, unless it is set.
    if not {"OMP_NUM_THREADS", "WORLD_SIZE"} & environment.keys() and cores() < _affinity():
        environment["OMP_NUM_THREADS"] = str(cores())


def cores() -> int:
    """CPU cores that this process may use; a container's quota of CPU time is rounded up."""
    most, old = _affinity(), ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    for folder, names in control_groups("cpu", ("cpu.max",), old):
        try:
            quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
        except (OSError, ValueError):  # "max": no quota
            continue
        if quota > 0:
            most = min(most, -(-quota // period))
    return most


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def control_groups(controller: str, new: Names, old: Names) -> Iterator[tuple[Path, Names]]:
    """Folders of the cgroups that limit this process, with the names of their files in version 2 and version 1.

    A container sees its own group as the root. A job of Slurm or systemd is in a nested one, and all above limit it.
    """
    groups = {"": ["."], controller: ["."]}  # "" is version 2
    with suppress(OSError):
        for line in OWN_CGROUPS.read_text().splitlines():
            controllers, _, path = line.partition(":")[2].partition(":")
            steps = [step for step in path.split("/") if step]
            nested = [] if ".." in steps else ["/".join(steps[: end + 1]) for end in range(len(steps))]
            groups |= {name: [".", *nested] for name in controllers.split(",")}
    yield from ((CGROUPS / group, new) for group in groups[""])
    yield from ((CGROUPS / controller / group, old) for group in groups[controller])


def call_with_timeout(seconds: float, call: Callable[[], Result]) -> Result:
    """The result of a call, or TimeoutError after ``seconds``; it runs in a thread, which is then abandoned.

    The timeout of a connection holds for each address of a server, and not for the look-up of its name.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        if future.done():  # the call itself raised it
            raise
        raise TimeoutError(f"no reply within {seconds:g} s") from error


def keep_freed_memory() -> bool:
    """Let this process and its forks reuse the memory that they free; ``memory.release_memory`` returns it.

    Environment variables of glibc's allocator take precedence. ``python -m benchmarks.kept_memory`` measures the gain.
    Returns whether it was set: only Linux with glibc has it.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    if sys.platform != "linux" or is_set or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none.
    # Without mappings of their own: those return to the system with the block.
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, _MAX_INT)) and bool(mallopt(_MMAP_MAX, 0))


def end_with_parent(parent: int) -> None:
    """Let Linux kill this process when the thread that started it ends; ``parent`` is its process id."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def without_script() -> Iterator[None]:
    """Keep a new process from running the user's script, which may have no ``if __name__ == "__main__":``."""
    main = vars(sys.modules["__main__"])
    with _STARTING:
        hidden: dict[str, Any] = {name: main.pop(name) for name in ("__spec__", "__file__") if name in main}
        main["__spec__"] = None  # multiprocessing reads it
        try:
            yield
        finally:
            del main["__spec__"]
            main.update(hidden)


def rank_and_world_size() -> tuple[int, int] | None:
    """The process's rank and the number of processes, from the launcher's environment. None without a launcher."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    size = env_int("WORLD_SIZE", least=1)
    return env_int("RANK", below=size), size


def env_int(name: str, default: int = 0, *, least: int = 0, below: int | None = None) -> int:
    """A whole number from ``least`` to less than ``below`` in an environment variable of a launcher."""
    text = os.environ.get(name, str(default))
    if re.fullmatch(r"\d{1,9}", text) and int(text) in range(least, 10**9 if below is None else below):
        return int(text)
    most = "" if below is None else f" and below {below}"
    rule = f"must be a whole number, at least {least}{most}"
    raise InputError(f"environment variable {name}: invalid value '{text}' ({rule}). {START_OR_UNSET}")


def report_to_torchrun(message: str, *, cause: bool = True) -> None:
    """Write an error message for torchrun, which prints it last. ``cause`` is False after another process's error."""
    if _ERROR_FILE not in os.environ:
        return
    moment = int(time.time()) + (0 if cause else _CONSEQUENCE_S)
    details = {"py_callstack": message, "timestamp": str(moment)}
    content = {"message": {"message": message, "extraInfo": details}}
    with suppress(OSError):  # the message is on the screen nevertheless
        Path(os.environ[_ERROR_FILE]).write_text(json.dumps(content), encoding="utf-8")
