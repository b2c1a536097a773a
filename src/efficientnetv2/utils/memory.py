"""Memory of a device: what is free, what is used, and whether an error means that it ran out."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from efficientnetv2.utils.errors import InputError, MemoryShortError, error_summary
from efficientnetv2.utils.processes import control_groups

GIB = 2**30

# Messages of a plain RuntimeError from PyTorch's allocators on the CPU and on Apple's GPUs, from C++, and from oneDNN,
# which gives no reason where it gets no memory for a convolution.
_OUT_OF_MEMORY = (
    "can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "could not create a primitive"
)  # fmt: skip
_limited: set[int] = set()  # GPUs whose memory this process limits
_POLL_S = 0.001  # Between two readings of the memory in use: a few per layer. Ours.


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):  # Of the system, as where a process cannot start.
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _OUT_OF_MEMORY)


def release_memory(device: torch.device) -> None:
    """Return the unused memory of a device that this process keeps."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)  # others than glibc do it by themselves


def retry_halving_batch(
    compute: Callable[[Tensor], Tensor], images: Tensor, most: int, device: torch.device
) -> tuple[Tensor, int]:
    """Compute a batch in parts of ``most`` images, halved while memory runs out; returns it and the size that fits."""
    results: list[Tensor] = []
    done = 0
    while done < len(images):
        part = images[done : done + most]
        try:
            results.append(compute(part))
            done += len(part)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                raise MemoryShortError(
                    f"Memory ran out at a single image of {images.shape[-1]} px in evaluation mode "
                    f"({error_summary(error)}). End other programs and run the command again (training: `resume`), "
                    "or use smaller images."
                ) from error
        # Outside of the handler: the traceback of the error keeps tensors alive.
        most = len(part) // 2
        release_memory(device)
    return torch.cat(results), most


def limit_memory(device: torch.device, gib: float | None) -> None:
    """Let PyTorch's allocator refuse what exceeds a limit; only on NVIDIA GPUs. Raises InputError unless it is > 0.

    None ends the limit of an earlier call in this process.
    """
    if gib is not None and not 0 < gib < math.inf:
        raise InputError(f"`memory_gib` is {gib:g}, but must be a number above 0.")
    if device.type != "cuda" or (gib is None and not _limited):
        return
    number = torch.cuda.current_device() if device.index is None else device.index
    fraction = 1.0
    if gib is not None:
        fraction = min(1.0, gib * GIB / torch.cuda.get_device_properties(number).total_memory)
        _limited.add(number)
    elif number in _limited:
        _limited.discard(number)
    else:  # a fraction that the user has set stays
        return
    torch.cuda.set_per_process_memory_fraction(fraction, number)


def in_use_bytes(device: torch.device) -> int:
    """Memory of a device that this process uses; on a CPU its resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.current_allocated_memory())
    import psutil  # Only here: a training loop does not need it.

    return int(psutil.Process().memory_info().rss)


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process on a device; on a CPU its resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())  # Its allocator keeps what it once had.
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 2**10  # Elsewhere in KiB.


def reset_peak_memory(device: torch.device) -> None:
    """Start ``peak_bytes`` again from the memory in use, after unused memory is returned.

    On the CPU of macOS and Windows, the peak stays for the life of the process.
    """
    release_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu" and sys.platform == "linux":
        with contextlib.suppress(OSError):  # a container may not let it be written
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is set to what is resident now


def free_bytes(device: torch.device, limit_gib: float | None = None, *, sharing: int = 1) -> int:
    """Bytes of a device's memory that this process may still take; negative if it exceeds ``limit_gib``.

    ``sharing`` processes share the free memory equally. On a CPU a container's limit counts too.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        import psutil

        free = min([psutil.virtual_memory().available, *_left_by_container()])
    free = int(free) // sharing
    return free if limit_gib is None else int(min(free, limit_gib * GIB - in_use_bytes(device)))


def _left_by_container() -> list[int]:
    """What the cgroups (version 2 or 1) leave, with the file cache; empty without a limit."""
    new = ("memory.max", "memory.current", "inactive_file")
    old = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    left = []
    for folder, (limit, usage, cache) in control_groups("memory", new, old):
        try:
            most, taken = (folder / limit).read_text().strip(), int((folder / usage).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most != "max":
            left.append(int(most) - taken + int(statistics.get(cache, 0)))
    return left


class PeakMemory:
    """A context; afterward ``bytes`` is the peak memory in use, including what was used before.

    A GPU's allocator records it. Elsewhere a thread reads the memory every millisecond.
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

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.bytes = int(torch.cuda.max_memory_allocated(self.device))
            return
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.is_set():
            self.bytes = max(self.bytes, in_use_bytes(self.device))
            self._done.wait(_POLL_S)


class MemoryBudget:
    """Memory that the threads of a process share: a thread that needs more than is left waits for the others.

    Requests up to ``small`` bytes are not counted. All others get ``share`` of the free memory together; a larger one
    runs alone.
    """

    def __init__(self, small: int, share: float) -> None:
        self.small, self.share = small, share
        self._begin()
        if hasattr(os, "register_at_fork"):  # A child inherits the lock, but not its holder.
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._changed, self._taken, self._most = threading.Condition(), 0, 0

    @contextlib.contextmanager
    def take(self, bytes_needed: int) -> Iterator[None]:
        """A context that needs ``bytes_needed`` at its peak. Raises MemoryError if there is less."""
        if bytes_needed <= self.small:
            yield
            return
        with self._changed:
            while self._taken and self._taken + bytes_needed > self._most:
                self._changed.wait()
            if not self._taken:  # refuse what exceeds this process's part of the free memory
                worker = get_worker_info()
                free = free_bytes(torch.device("cpu"), sharing=worker.num_workers if worker else 1)
                if bytes_needed > free:
                    needed, left = f"{bytes_needed / GIB:.1f} GiB", f"{free / GIB:.1f} GiB"
                    raise MemoryError(f"needs {needed} of memory, and {left} are free")
                self._most = int(self.share * free)
            self._taken += bytes_needed
        try:
            yield
        finally:
            with self._changed:
                self._taken -= bytes_needed
                self._changed.notify_all()
