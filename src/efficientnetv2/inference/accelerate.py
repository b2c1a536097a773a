"""What the machine has: which device to use, and how many workers feed it."""

from __future__ import annotations

import os
from typing import Literal

import psutil
import torch
from torch import nn

from efficientnetv2.base.errors import InputError

Precision = Literal["fp32", "bf16", "fp16"]


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


def lower_precision(device: torch.device) -> Precision | None:
    """The 16-bit format that a device multiplies in hardware, bf16 before fp16; None where there is none.

    GPUs have bf16 from compute capability 8.0 on, fp16 that pays from 7.0 on; processors bf16 with AVX-512 or AMX.
    Elsewhere (Apple's GPUs, ARM) nothing was measured, so nothing is promised.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else None
    if device.type == "cpu":
        tell = getattr(torch.cpu, "get_capabilities", dict)  # older PyTorch does not say
        capabilities: dict[str, object] = tell()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else None
    return None


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a network computes in that precision; its weights stay fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
