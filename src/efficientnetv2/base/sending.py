"""Tensors to the device that computes with them."""

from __future__ import annotations

import torch
from torch import Tensor


def send(
    tensor: Tensor,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """A tensor on a device; an NVIDIA GPU is not waited for, which may still be at work on what came before.

    It reads what it is sent from memory that is kept until then. Apple's GPUs read later what may be gone by then, a
    tensor that nobody else holds (pytorch/pytorch#139550); so they are waited for.

    Args:
        tensor: on the CPU, or there already.
        device: to send it to.
        dtype: to make of it; None keeps its own.
        memory_format: of the result.
    """
    return tensor.to(
        device, dtype or tensor.dtype, non_blocking=device.type == "cuda", memory_format=memory_format
    )
