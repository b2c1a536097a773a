"""From bytes to a model's input: scale to [0, 1], subtract the mean, divide by the standard deviation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efficientnetv2.utils.device import to_device
from efficientnetv2.utils.errors import InputError


def normalize(
    images: Tensor, *, mean: Sequence[float], std: Sequence[float], out: Tensor | None = None
) -> Tensor:
    """``(images / 255 - mean) / std``, as one multiply-add on the device that holds the images.

    Args:
        images: (N, C, H, W) uint8.
        mean: C numbers for values in [0, 1].
        std: C numbers above 0 for values in [0, 1].
        out: (N, C, H, W) float32 to write to; None allocates one in the same memory format.

    Raises:
        InputError: The images have another number of channels than mean and std.
        TypeError: The images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"normalize takes uint8 values 0 to 255, but was given {images.dtype}")
    if not images.shape[1] == len(mean) == len(std):
        raise InputError(
            f"the images have {images.shape[1]} channels, but the preprocessing has {len(mean)} means and "
            f"{len(std)} deviations. Give one of each per channel."
        )
    # In float64, rounded once: x * scale + offset is then as exact as float32 allows.
    deviation = torch.tensor(std, dtype=torch.float64)
    scale = to_device((1 / (255 * deviation)).float(), images.device)
    offset = to_device((-torch.tensor(mean, dtype=torch.float64) / deviation).float(), images.device)
    floats = images.float() if out is None else out.copy_(images)
    if floats.is_contiguous(memory_format=torch.channels_last):
        # A row of W * C numbers at a time: broadcasting over C = 3 alone would give up on vectors.
        width = floats.shape[3]
        values = floats.permute(0, 2, 3, 1).reshape(-1, width * len(mean))
        scale, offset = scale.repeat(width), offset.repeat(width)
    else:
        values, scale, offset = floats, scale.view(-1, 1, 1), offset.view(-1, 1, 1)
    torch.addcmul(offset, values, scale, out=values)  # in place: a second buffer costs more than the sums
    return floats
