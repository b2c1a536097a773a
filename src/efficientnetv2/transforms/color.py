"""Operations on the colors of a batch, with a strength for every image: (N,) factors and thresholds.

They compute what Pillow computes (``ImageOps``, ``ImageEnhance``), rounding included. The released operations differ by
at most one gray level, unless a docstring states more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.preprocessing import RGB
from efficientnetv2.transforms.tensor_ops import as_ids, from_rows, on_device, to_rows
from efficientnetv2.utils.random_key import Key


def color_jitter(images: Tensor, key: Key, ids: npt.ArrayLike, *, strength: float) -> Tensor:
    """Multiply brightness, contrast and saturation by factors uniform in [1 - strength, 1 + strength].

    Images of other than three channels get brightness only: the others need a gray of red, green and blue.
    """
    factors = on_device(1 + strength * (2 * key.uniform_rows(as_ids(ids), 3) - 1), like=images)
    brighter = brightness(images, factors[:, 0])
    if images.shape[1] != RGB:
        return brighter
    return saturation(contrast(brighter, factors[:, 1]), factors[:, 2])


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel of each image to 0..255; a constant channel stays. On Apple's GPUs to one gray level."""
    finest = _finest(images.device)
    low, high = (_of_channels(images, extreme).to(finest) for extreme in (torch.amin, torch.amax))  # (N, C)
    # Divided as a tensor: a number over a tensor would be a reciprocal and a product, rounded twice.
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    levels = torch.arange(256, device=images.device, dtype=finest)
    table = levels * scale[..., None] + (-low * scale)[..., None]  # (N, C, 256)
    table = torch.where((high > low)[..., None], table, levels)
    return _look_up(images, table.clamp(0, 255).to(torch.uint8))


def equalize(images: Tensor) -> Tensor:
    """Flatten the histogram of each channel of each image."""
    count, channels = images.shape[:2]
    levels, bins = _channel_levels(images), count * channels * 256
    if images.device.type == "cpu":
        histogram = torch.bincount(levels, minlength=bins)
    else:  # where bincount would wait for the result; on a CPU it is three times as fast
        ones = torch.ones(1, dtype=torch.int64, device=images.device).expand(len(levels))
        zeros = torch.zeros(bins, dtype=torch.int64, device=images.device)
        histogram = zeros.scatter_add_(0, levels.long(), ones)
    histogram = histogram.view(count, channels, 256)
    below = histogram.cumsum(2) - histogram
    # The fullest bin that counts is the brightest one in use: its pixels are not spread further.
    total = images.shape[2] * images.shape[3]
    brightest = histogram.gather(2, _of_channels(images, torch.amax).long()[..., None])  # (N, C, 1)
    step = (total - brightest) // 255
    table = (below + step // 2) // step.clamp(min=1)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return _look_up(images, table.clamp(0, 255).to(torch.uint8))


def invert(images: Tensor) -> Tensor:
    """The negative: 255 minus each value."""
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits of each value, 0 (black) to 8 (unchanged)."""
    mask = 256 - torch.exp2(8 - bits)
    return images & mask.to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values at or above a threshold, 0 (the negative) to 256 (unchanged)."""
    limit = threshold.to(torch.int16)[:, None, None]
    below = ((to_rows(images).to(torch.int16) - limit) >> 15).to(torch.uint8)  # 255 below it, else 0
    return images ^ from_rows(~below, images.shape[1])


def solarize_add(images: Tensor, addition: Tensor) -> Tensor:
    """Brighten the values below 128 by a whole number, up to 255."""
    headroom = torch.minimum(255 - images, addition.to(torch.uint8)[:, None, None, None])
    dark = (images >> 7) - 1  # 255 below 128, else 0
    return images + (headroom & dark)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Away from gray (factor above 1) or towards it; ``ImageEnhance.Color``. Takes three channels."""
    values = to_rows(images).float()
    colorless = _gray(values)[..., None].expand(-1, -1, -1, 3).flatten(2)
    return _blend(colorless, values, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean gray (factor above 1) or towards it; ``ImageEnhance.Contrast``. Takes three channels."""
    values = to_rows(images).float()
    # In whole numbers: the mean, rounded half up, is exact for images of any size, on devices without doubles too.
    count = images.shape[2] * images.shape[3]
    mean = (2 * _gray(values).to(torch.int32).sum((1, 2)) + count) // (2 * count)
    return _blend(mean.float()[:, None, None], values, factor)


def released_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Contrast as the released code computes it: about a gray that is the number of pixels / 256.

    Source: google/automl, efficientnetv2 (autoaugment, contrast), which averages the histogram's counts.
    """
    level = min(255, images.shape[2] * images.shape[3] // 256)
    return _blend(torch.full((), float(level), device=images.device), to_rows(images).float(), factor)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Each value times the factor; ``ImageEnhance.Brightness``."""
    scaled = to_rows(images).float().mul_(factor[:, None, None])
    return from_rows(_levels(scaled), images.shape[1])


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the smoothed image (factor above 1) or towards it; ``ImageEnhance.Sharpness``. Border pixels stay."""
    if min(images.shape[2:]) < 3:
        return images
    channels = images.shape[1]
    values = to_rows(images)
    wide = values.to(torch.int16)
    rows = (wide[:, :-2] + wide[:, 2:]).add_(wide[:, 1:-1])
    box = (rows[..., : -2 * channels] + rows[..., 2 * channels :]).add_(rows[..., channels:-channels])
    inner = wide[:, 1:-1, channels:-channels]
    # 3 x 3 of ones, 5 in the middle; sum 13. No sum and a half is a multiple of 13, so a product is as good as
    # a division.
    smooth = box.add_(inner, alpha=4).float().add_(6.5).mul_(1 / 13).floor_()
    blended = smooth + (inner - smooth).mul_(factor[:, None, None])
    sharp = values.clone()
    sharp[:, 1:-1, channels:-channels] = _levels(blended)
    return from_rows(sharp, channels)


def _gray(values: Tensor) -> Tensor:
    """ITU-R 601 luma in Pillow's fixed point: (N, H, W * 3) levels to (N, H, W). Below 2^24, so float32 is exact."""
    red, green, blue = (values[..., channel::3] for channel in range(3))
    total = (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return total.add_(0x8000).mul_(2.0**-16).floor_()


def _blend(degenerate: Tensor, values: Tensor, factor: Tensor) -> Tensor:
    """From a degenerate image to the image and beyond, cut to 0..255 and truncated as Pillow does."""
    blended = (values - degenerate).mul_(factor[:, None, None]).add_(degenerate)
    return from_rows(_levels(blended), 3)


def _levels(values: Tensor) -> Tensor:
    """Floats, changed in place, to uint8: cut to 0..255 and truncated."""
    # By way of int16: from float to uint8 directly is four times slower on a CPU.
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _finest(device: torch.device) -> torch.dtype:
    """The most exact type of a device: Apple's GPUs refuse doubles, which Pillow computes in."""
    return torch.float32 if device.type == "mps" else torch.float64


def _of_channels(images: Tensor, extreme: Callable[..., Tensor]) -> Tensor:
    """The least or greatest value of each channel of each image: (N, C, H, W) to (N, C)."""
    # Over the rows first: long rows are compared many values at a time.
    columns = extreme(to_rows(images), 1).view(len(images), -1, images.shape[1])
    return extreme(columns, 1)


def _channel_levels(images: Tensor) -> Tensor:
    """Index of each value in a table of 256 per channel per image, in channels-last order; int32."""
    count, channels, _, width = images.shape
    tables = torch.arange(count * channels, device=images.device, dtype=torch.int32) * 256
    along = tables.view(count, 1, channels).repeat(1, 1, width)  # of each value of a row
    return to_rows(images).to(torch.int32).add_(along).view(-1)


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replace each value by its entry in the (N, C, 256) uint8 table of its channel and image."""
    values = table.view(-1).index_select(0, _channel_levels(images))
    return from_rows(values.view(to_rows(images).shape), images.shape[1])
