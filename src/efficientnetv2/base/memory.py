"""How much memory there is, how much is taken, and whether an error says that there is too little."""

from __future__ import annotations

import torch

# What allocators say that raise a plain RuntimeError: PyTorch's on the CPU (Linux, Windows), and on Apple's GPUs.
_SAYINGS = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


def release(device: torch.device) -> None:
    """Give back what PyTorch keeps of a device's memory without using it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
