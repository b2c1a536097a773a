"""Cutout: a square hole in every image."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.transforms.per_sample import as_ids, from_rows, on_device, to_rows, where
from efficientnetv2.utils.device import to_device
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.rng import Key

Fill = Literal["mean", "noise"]

# Each picture's noise is a window into one strip of noise; so many windows there are. Ours.
_WINDOWS = 65536


def cutout(images: Tensor, *, fraction: float, key: Key, ids: npt.ArrayLike, fill: Fill = "noise") -> Tensor:
    """Cut a square hole around a random pixel of uint8 or float images; it may run over the edge.

    Args:
        fraction: Side of the hole over the image's shorter side, 0 to 1; rounded down to an even number of pixels.
        fill: ``mean`` is the image's own mean color; ``noise`` is uniform over 0..255 in uint8 images and standard
            normal in float ones.

    Raises:
        InputError: A fraction outside 0 to 1.

    Source: arXiv:1708.04552; the transfer recipe of the released code cuts a hole of half the side, filled with noise
        (its range there is the brighter half of the values; ours is all of them).
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"cutout is {fraction:g}, but must be in 0 to 1 (the hole's side over the image's).")
    draws = on_device(key.uniform_rows(as_ids(ids), 3), images)
    reach = int(fraction * min(images.shape[2:])) // 2
    mask = hole_mask(images, torch.full_like(draws[:, 0], reach), draws[:, 0], draws[:, 1])
    values, channels = to_rows(images), images.shape[1]
    if fill == "noise":
        return from_rows(where(mask, to_rows(_noise(images, key, draws[:, 2])), values), channels)
    mean = images.float().mean((2, 3))
    mean = mean if images.is_floating_point() else mean.round()
    filled = mean.to(images.dtype).repeat(1, images.shape[3])[:, None]  # (N, 1, W * C)
    return from_rows(where(mask, filled, values), channels)


def hole_mask(images: Tensor, reach_px: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """A square hole from ``reach_px`` before a center pixel to ``reach_px`` after it, as a mask for ``to_rows``.

    Args:
        reach_px: (N,) whole numbers.
        y: (N,) in [0, 1), the center's row.
        x: (N,) in [0, 1), the center's column.

    Returns:
        (N, H, W * C) uint8: 255 in the hole, 0 elsewhere.
    """
    height, width = images.shape[2:]
    rows, columns = _span(y, reach_px, height), _span(x, reach_px, width)
    return rows[:, :, None] & columns.repeat_interleave(images.shape[1], 1)[:, None]


def _span(where: Tensor, reach: Tensor, length: int) -> Tensor:
    # A draw just below 1 may round up to 1 in float32: the last pixel then.
    center = (where * length).floor().clamp(max=length - 1)[:, None]
    place = torch.arange(length, device=where.device) - center
    inside = (place >= -reach[:, None]) & (place < reach[:, None])
    return inside.to(torch.uint8).neg()  # 0 or 255


def _noise(images: Tensor, key: Key, start: Tensor) -> Tensor:
    values = images[0].numel()
    generator = key.fold("noise").generator()
    if images.is_floating_point():
        strip = torch.from_numpy(generator.standard_normal(values + _WINDOWS, dtype=np.float32))
    else:
        strip = torch.from_numpy(generator.integers(0, 256, values + _WINDOWS, dtype=np.uint8))
    windows = to_device(strip, images.device, dtype=images.dtype).unfold(0, values, 1)  # a view
    chosen = windows.index_select(0, (start * _WINDOWS).long())
    return chosen.view(images.shape)
