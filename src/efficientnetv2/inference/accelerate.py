"""What the machine has: which device to use, and how many workers feed it."""

from __future__ import annotations

import os

import psutil
import torch
from torch import nn

from efficientnetv2.base.errors import InputError


def pick_device(word: str) -> torch.device:
    """The device that ``--device`` names; ``auto`` takes a GPU where there is one.

    Raises:
        InputError: no such device here.
    """
    if word == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(word)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--device {word}: not to be had here ({reason}). Use auto, cpu, cuda or mps."
        ) from error
    return device


def pick_workers(device: torch.device) -> int:
    """How many processes read pictures ahead: one per core up to eight, and none where the CPU trains.

    Ours. On a CPU the main process reads between steps instead; see ``data.loader.reading_threads``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores) if device.type != "cpu" else 0


def free_memory_bytes(device: torch.device) -> int:
    """Memory that a program could take now, on that device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """Put a network on a device in channels-last memory, which convolutions there are fastest in."""
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
