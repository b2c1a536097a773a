"""How much memory there is, how much is taken, and whether an error says that there is too little."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch
from torch.utils.data import get_worker_info

from efficientnetv2.utils.errors import InputError

GIB = 2**30

# What is said by those that raise a plain RuntimeError: PyTorch's allocator on the CPU (Linux, Windows) and on Apple's
# GPUs; C++; and oneDNN, the CPU's convolutions, which gives no reason when it gets no memory for its plan of one.
_SAYINGS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "could not create a primitive",
)
# Between two looks at the memory in use: a few while a layer is computed. Ours.
_LOOK_S = 0.001


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):  # of the system, as where a process can't be begun
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


def first_line(error: BaseException) -> str:
    """What an error says, in one line, for a message of ours: the first of its lines, or its name if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def release_memory(device: torch.device) -> None:
    """Give back what is kept of a device's memory without being used."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(
            ctypes.CDLL(None), "malloc_trim", None
        )  # glibc's; others give memory back by themselves
        if trim is not None:
            trim(0)


def limit_memory(device: torch.device, gib: float) -> None:
    """Let PyTorch's allocator refuse what goes beyond a limit, where it can: on NVIDIA's GPUs.

    Args:
        device: of the memory.
        gib: that this process may take.

    Raises:
        InputError: a limit of nothing, or no number.
    """
    if not 0 < gib < math.inf:
        raise InputError(
            f"--memory-gib is {gib:g}, but has to be a number above 0. Leave it out to take what there is."
        )
    if device.type == "cuda":
        # Unlike PyTorch's other questions about a GPU, this one takes no "cuda" without a number.
        number = torch.cuda.current_device() if device.index is None else device.index
        total = torch.cuda.get_device_properties(number).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total), number)


def in_use_bytes(device: torch.device) -> int:
    """What this process takes of a device's memory now; on a CPU all that is resident."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.current_allocated_memory())
    import psutil  # only here: a loop of one's own does without it

    return int(psutil.Process().memory_info().rss)


def peak_bytes(device: torch.device) -> int:
    """The most that this process has taken of a device's memory at a time; on a CPU all that was resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())  # its allocator keeps what it once had
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 2**10  # elsewhere it counts in KiB


def reset_peak_memory(device: torch.device) -> None:
    """Let ``peak_bytes`` begin anew, at what is in use now; what is kept without being used is given back first.

    On the CPU of macOS and Windows the system keeps the peak for as long as the process lives, and it stays.
    """
    release_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu" and sys.platform == "linux":
        with contextlib.suppress(OSError):  # a container may not let it be written
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is set to what is resident now


def free_bytes(
    device: torch.device,
    limit_gib: float | None = None,
    *,
    sharing: int = 1,
    root: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
) -> int:
    """What this process may still take of a device's memory.

    On a CPU the least of what the machine has available, what the container's limit leaves, and what the stated
    limit leaves; on a GPU of what no program has taken and what the stated limit leaves.

    Args:
        device: of the memory.
        limit_gib: that this process may take in all.
        sharing: how many processes share what is free, by equal parts.
        root: where the system shows a container's limits.
        own: where it says which of its groups this process is in.

    Returns:
        Bytes; negative if more is taken than the stated limit allows.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        import psutil

        free = min([psutil.virtual_memory().available, *_left_by_container(root, own)])
    free = int(free) // sharing
    if limit_gib is None:
        return free
    return int(min(free, limit_gib * GIB - in_use_bytes(device)))


def _left_by_container(root: Path, own: Path) -> list[int]:
    """What cgroups of version 2 or 1 leave, empty where they set no limit. The cache of files gives way: it is free.

    A container sees its own group as the root. A job of Slurm or systemd is in one further down, and each one above it
    limits it too.
    """
    left = []
    new = ("memory.max", "memory.current", "inactive_file")
    old = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    within = _groups_of(own)
    for folder, (limit, usage, cache) in (
        *((root / group, new) for group in within.get("", (".",))),
        *((root / "memory" / group, old) for group in within.get("memory", (".",))),
    ):
        try:
            most, taken = (folder / limit).read_text().strip(), int((folder / usage).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most != "max":
            left.append(int(most) - taken + int(statistics.get(cache, 0)))
    return left


def _groups_of(own: Path) -> dict[str, list[str]]:
    """The group of this process and all above it: '' (version 2) or ``memory`` (version 1) -> their paths."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, list[str]] = {}
    for line in lines:
        _, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        steps = [step for step in path.split("/") if step]
        above = (
            [".", *("/".join(steps[: end + 1]) for end in range(len(steps)))] if ".." not in steps else ["."]
        )
        for kind in kinds.split(","):
            found[kind] = above
    return found


class PeakMemory:
    """Within: looks at the memory in use; afterwards ``bytes`` is the most that was seen at a time.

    A GPU's allocator keeps that figure itself. Elsewhere a thread looks every millisecond.

    Args:
        device: of the memory.

    Attributes:
        bytes: the most in use, what was there before included.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.bytes = int(torch.cuda.max_memory_allocated(self.device))
            return
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.is_set():
            self.bytes = max(self.bytes, in_use_bytes(self.device))
            self._done.wait(_LOOK_S)


class MemoryBudget:
    """Memory that the threads of a process take in turn, so that together they never need more than there is.

    A thread that needs more than is left waits for the others. One that needs more than the others may take together
    goes alone.

    Args:
        small: bytes that nobody counts.
        share: of the free memory that those who are counted may take together.
    """

    def __init__(self, small: int, share: float) -> None:
        self.small, self.share = small, share
        self._begin()
        if hasattr(os, "register_at_fork"):  # a child inherits the lock as it is, but not who holds it
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._changed, self._taken, self._most = threading.Condition(), 0, 0

    @contextlib.contextmanager
    def take(self, bytes_needed: int) -> Iterator[None]:
        """Around what needs so much memory.

        Args:
            bytes_needed: at its peak.

        Raises:
            MemoryError: there is not so much, with both numbers.
        """
        if bytes_needed <= self.small:
            yield
            return
        with self._changed:
            while self._taken and self._taken + bytes_needed > self._most:
                self._changed.wait()
            if not self._taken:
                self._refuse(bytes_needed)
            self._taken += bytes_needed
        try:
            yield
        finally:
            with self._changed:
                self._taken -= bytes_needed
                self._changed.notify_all()

    def _refuse(self, bytes_needed: int) -> None:
        """Count what is free, of which each process that reads gets its part, and refuse what goes beyond."""
        others = get_worker_info()
        free = free_bytes(torch.device("cpu"), sharing=others.num_workers if others else 1)
        if bytes_needed > free:
            raise MemoryError(
                f"needs {bytes_needed / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free"
            )
        self._most = int(self.share * free)
