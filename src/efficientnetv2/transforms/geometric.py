"""Flips, symmetries of the square, affine warps and holes, with a strength per image. Crops are in ``data.decode``."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.transforms.tensor_ops import apply_by_group, as_ids, from_rows, on_device, to_rows, where
from efficientnetv2.utils.device import to_device
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

# What a warp leaves empty: the released code's "replace" color (google/automl, efficientnetv2).
FILL = 128
Fill = Literal["mean", "noise"]
# Each image's noise is a window into one strip of noise; so many windows there are. Ours.
_WINDOWS = 65536


def random_horizontal_flip(images: Tensor, key: Key, ids: npt.ArrayLike) -> Tensor:
    """Mirror each image, left to right, with probability 1/2. Any type and number of channels."""
    mirrored = key.uniform_rows(as_ids(ids), 1)[:, 0] < 0.5
    return apply_by_group(images, np.where(mirrored, 0, -1), lambda _group, _rows, part: part.flip(3))


def random_symmetry(images: Tensor, key: Key, ids: npt.ArrayLike) -> Tensor:
    """Turn and mirror each image into one of the eight symmetries of the square. Raises InputError for other shapes."""
    height, width = images.shape[2:]
    if height != width:
        raise InputError(f"{width} x {height} px is not a square, which a turn needs. Use `augment.flip=horizontal`.")
    which = (key.uniform_rows(as_ids(ids), 1)[:, 0] * 8).astype(np.int64)
    return apply_by_group(images, which, lambda group, _rows, part: symmetry(part, group))


def symmetry(images: Tensor, index: int) -> Tensor:
    """One symmetry of the square, 0 to 7: bit 0 mirrors left to right, bit 1 top to bottom, bit 2 transposes."""
    flipped = [axis for bit, axis in ((1, 3), (2, 2)) if index & bit]
    turned = images.transpose(2, 3) if index & 4 else images
    return turned.flip(flipped) if flipped else turned


def warp(images: Tensor, *matrix: Tensor) -> Tensor:
    """Pull every output pixel from its affine place in the input, nearest neighbor, as in the released operations.

    The matrices (a, b, c; d, e, f), as six tensors (N,), map output (x, y, 1) to input (x, y), in the coordinates of
    ``PIL.Image.transform``: pixel centers are at halves, the origin is the upper left corner.
    """
    count, channels, height, width = images.shape
    xs = torch.arange(width, device=images.device) + 0.5
    ys = (torch.arange(height, device=images.device) + 0.5)[:, None]
    a, b, c, d, e, f = (entry[:, None, None] for entry in matrix)
    # Into images with a border of fill: what lies outside falls on it, and no place is negative, so that a conversion
    # to whole numbers rounds down.
    column = (a * xs + (b * ys + (c + 1))).clamp_(0, width + 1)  # (N, H, W)
    row = (d * xs + (e * ys + (f + 1))).clamp_(0, height + 1)
    bordered = images.new_full((count, height + 2, width + 2, channels), FILL)
    bordered[:, 1:-1, 1:-1] = images.permute(0, 2, 3, 1)
    # 32 bits where they suffice: the gather is bound by memory.
    integer = torch.int32 if bordered.numel() < 2**31 else torch.int64
    place = row.to(integer).mul_(width + 2).add_(column.to(integer))
    first = torch.arange(count, device=images.device, dtype=integer) * ((height + 2) * (width + 2))
    place += first[:, None, None]
    pulled = bordered.view(-1, channels).index_select(0, place.view(-1))
    return pulled.view(count, height, width, channels).permute(0, 3, 1, 2)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn about the center by (N,) degrees; positive is counter-clockwise, as in ``PIL.Image.rotate``."""
    height, width = images.shape[2:]
    radians = degrees * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    x, y = width / 2, height / 2
    return warp(images, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def shear_x(images: Tensor, slope: Tensor) -> Tensor:
    """Slide each row sideways by (N,) slopes times its height, as ``warp`` with the matrix (1, slope, 0; 0, 1, 0)."""
    heights = torch.arange(images.shape[2], device=images.device) + 0.5
    return _slide_rows(images, _steps(slope[:, None] * heights))


def shear_y(images: Tensor, slope: Tensor) -> Tensor:
    """Slide each column up or down by (N,) slopes times its place; see ``shear_x``."""
    one, zero = torch.ones_like(slope), torch.zeros_like(slope)
    return warp(images, one, zero, zero, slope, one, zero)


def translate_x(images: Tensor, offset_px: Tensor) -> Tensor:
    """Move left by (N,) pixels (right if negative), rounded to whole ones."""
    return _slide_rows(images, _steps(offset_px)[:, None].expand(-1, images.shape[2]))


def translate_y(images: Tensor, offset_px: Tensor) -> Tensor:
    """Move up by (N,) pixels (down if negative); see ``translate_x``."""
    rows = to_rows(images)
    # An image as one long row of which each of its rows is a pixel.
    moved = _slide(rows.flatten(1)[:, None], _steps(offset_px)[:, None], unit=rows.shape[2])
    return from_rows(moved.view(rows.shape), images.shape[1])


def _slide_rows(images: Tensor, steps: Tensor) -> Tensor:
    """Move each row of pixels by its own (N, H) steps."""
    channels = images.shape[1]
    return from_rows(_slide(to_rows(images), steps, unit=channels), channels)


def _slide(rows: Tensor, steps: Tensor, *, unit: int) -> Tensor:
    """Move rows (N, R, L): each pulls what is ``steps * unit`` values to its right; ``unit`` divides L."""
    count, height, length = rows.shape
    # Rows with as much fill between them: wherever a row is cut again, it finds fill next to it.
    spaced = rows.new_full((2 * count * height + 1, length), FILL)
    spaced[1::2] = rows.reshape(-1, length)
    starts = torch.arange(count * height, device=rows.device) * (2 * length) + length
    starts += (steps * unit).clamp(-length, length).reshape(-1)
    return spaced.view(-1).unfold(0, length, 1).index_select(0, starts).view(rows.shape)


def _steps(offset: Tensor) -> Tensor:
    """The pixel whose center is nearest, relative to its own."""
    return torch.floor(offset + 0.5).to(torch.int64)


def cutout(images: Tensor, *, fraction: float, key: Key, ids: npt.ArrayLike, fill: Fill = "noise") -> Tensor:
    """Cut a square hole around a random pixel; it may run over the edge.

    ``fraction`` is the side of the hole / the image's shorter side. ``noise`` is uniform. Source: arXiv:1708.04552; the
    released code draws the brighter half of the values.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"cutout is {fraction:g}, but must be in 0 to 1 (the hole's side over the image's).")
    draws = on_device(key.uniform_rows(as_ids(ids), 3), images)
    reach = int(fraction * min(images.shape[2:])) // 2
    mask = hole_mask(images, torch.full_like(draws[:, 0], reach), draws[:, 0], draws[:, 1])
    if fill == "noise":
        filled = to_rows(_noise(images, key, draws[:, 2]))
    else:
        mean = images.float().mean((2, 3)).round().to(images.dtype)
        filled = mean.repeat(1, images.shape[3])[:, None]  # (N, 1, W * C)
    return from_rows(where(mask, filled, to_rows(images)), images.shape[1])


def hole_mask(images: Tensor, reach_px: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(N, H, W * C) uint8, 255 in a square hole around a center, (N,) in [0, 1) each way, and 0 elsewhere."""
    height, width = images.shape[2:]
    rows, columns = _hole_span(y, reach_px, height), _hole_span(x, reach_px, width)
    return rows[:, :, None] & columns.repeat_interleave(images.shape[1], 1)[:, None]


def _hole_span(where: Tensor, reach: Tensor, length: int) -> Tensor:
    # A draw just below 1 may round up to 1 in float32: the last pixel then.
    center = (where * length).floor().clamp(max=length - 1)[:, None]
    place = torch.arange(length, device=where.device) - center
    inside = (place >= -reach[:, None]) & (place < reach[:, None])
    return inside.to(torch.uint8).neg()  # 0 or 255


def _noise(images: Tensor, key: Key, start: Tensor) -> Tensor:
    values = images[0].numel()
    strip = torch.from_numpy(key.fold("noise").generator().integers(0, 256, values + _WINDOWS, dtype=np.uint8))
    windows = to_device(strip, images.device).unfold(0, values, 1)  # a view
    return windows.index_select(0, (start * _WINDOWS).long()).view(images.shape)
