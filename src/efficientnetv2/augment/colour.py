"""Operations on the colours of a uint8 batch, with a strength of its own for every picture.

They compute what Pillow's ``ImageOps`` and ``ImageEnhance`` compute, Pillow's rounding included.
Where the released TensorFlow operations round otherwise, the difference is one grey level; where
they differ in substance, the docstring says so.
"""

from __future__ import annotations

import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.augment.rows import as_ids, on_device
from efficientnetv2.base.keys import Key


def jitter(images: Tensor, key: Key, ids: npt.ArrayLike, *, strength: float) -> Tensor:
    """Change brightness, contrast and saturation a little, in this order.

    Args:
        images: (N, 3, H, W) uint8.
        key: of this purpose.
        ids: (N,) draw ids.
        strength: each factor is uniform in [1 - strength, 1 + strength]; 0 < strength ≤ 1.

    Returns:
        (N, 3, H, W) uint8.
    """
    factors = on_device(1 + strength * (2 * key.uniform_rows(as_ids(ids), 3) - 1), like=images)
    return saturation(contrast(brightness(images, factors[:, 0]), factors[:, 1]), factors[:, 2])


def grey(images: Tensor) -> Tensor:
    """ITU-R 601 luma in Pillow's fixed point: (N, 3, H, W) uint8 to (N, 1, H, W) int32, 0..255."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).unsqueeze(1)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel of each picture to 0..255; a constant channel stays.

    Args:
        images: (N, C, H, W) uint8.

    Returns:
        (N, C, H, W) uint8.
    """
    low, high = images.amin((2, 3)).double(), images.amax((2, 3)).double()  # (N, C)
    # Divided as a tensor: a number over a tensor would be a reciprocal and a product, rounded twice.
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    levels = torch.arange(256, device=images.device, dtype=torch.float64)
    table = levels * scale[..., None] + (-low * scale)[..., None]  # (N, C, 256)
    table = torch.where((high > low)[..., None], table, levels)
    return _look_up(images, table.clamp(0, 255).to(torch.uint8))


def equalize(images: Tensor) -> Tensor:
    """Flatten the histogram of each channel of each picture.

    Args:
        images: (N, C, H, W) uint8.

    Returns:
        (N, C, H, W) uint8.
    """
    count, channels = images.shape[:2]
    index = _channel_levels(images).long()
    # Not bincount: on a GPU it would wait for the result.
    ones = torch.ones(1, dtype=torch.int32, device=images.device).expand(len(index))
    histogram = torch.zeros(count * channels * 256, dtype=torch.int32, device=images.device)
    histogram = histogram.scatter_add_(0, index, ones).view(count, channels, 256)
    below = histogram.cumsum(2) - histogram
    # The fullest bin that counts is the brightest one in use: its pixels are not spread further.
    total = images.shape[2] * images.shape[3]
    brightest = histogram.gather(2, images.amax((2, 3)).long()[..., None])  # (N, C, 1)
    step = (total - brightest) // 255
    table = (below + step // 2) // step.clamp(min=1)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return _look_up(images, table.clamp(0, 255).to(torch.uint8))


def invert(images: Tensor) -> Tensor:
    """The negative: 255 minus each value."""
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits of each value.

    Args:
        images: (N, C, H, W) uint8.
        bits: (N,) whole numbers, 0 (black) to 8 (unchanged).

    Returns:
        (N, C, H, W) uint8.
    """
    mask = 256 - torch.exp2(8 - bits)
    return images & mask.to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values at or above a threshold.

    Args:
        images: (N, C, H, W) uint8.
        threshold: (N,), 0 (the negative) to 256 (unchanged).

    Returns:
        (N, C, H, W) uint8.
    """
    # 256 does not fit into the pictures' type: such pictures are masked out.
    limit = threshold.clamp(max=255).to(torch.uint8)[:, None, None, None]
    changing = (threshold < 256).to(torch.uint8).neg()[:, None, None, None]
    bright = (images >= limit).to(torch.uint8).neg()  # 0 or 255
    return images ^ (bright & changing)


def solarize_add(images: Tensor, addition: Tensor) -> Tensor:
    """Brighten the values below 128, up to 255.

    Args:
        images: (N, C, H, W) uint8.
        addition: (N,) whole numbers, 0 to 255.

    Returns:
        (N, C, H, W) uint8.
    """
    headroom = torch.minimum(255 - images, addition.to(torch.uint8)[:, None, None, None])
    dark = (images >> 7) - 1  # 255 below 128, else 0
    return images + (headroom & dark)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Away from grey (factor above 1) or towards it (below); ``ImageEnhance.Color``.

    Args:
        images: (N, 3, H, W) uint8.
        factor: (N,) ≥ 0; 1 changes nothing.

    Returns:
        (N, 3, H, W) uint8.
    """
    return _blend(grey(images).float(), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the picture's mean grey (factor above 1) or towards it; ``ImageEnhance.Contrast``.

    Args:
        images: (N, 3, H, W) uint8.
        factor: (N,) ≥ 0; 1 changes nothing.

    Returns:
        (N, 3, H, W) uint8.
    """
    # The sum in integers: the mean is exact for pictures of any size.
    mean = grey(images).sum((1, 2, 3), keepdim=True).double() / (images.shape[2] * images.shape[3])
    return _blend(torch.floor(mean + 0.5).float(), images, factor)


def released_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Contrast as the released code computes it: about a grey that depends on the size alone.

    It averages the histogram's counts instead of its grey levels, so the grey is the number of pixels
    over 256: 64 at 128 px, white from 256 px on.

    Args:
        images: (N, 3, H, W) uint8.
        factor: (N,) ≥ 0; 1 changes nothing.

    Returns:
        (N, 3, H, W) uint8.

    Source: google/automl, efficientnetv2 (autoaugment, contrast).
    """
    level = min(255, images.shape[2] * images.shape[3] // 256)
    return _blend(torch.full((), float(level), device=images.device), images, factor)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Each value times the factor; ``ImageEnhance.Brightness``.

    Args:
        images: (N, C, H, W) uint8.
        factor: (N,) ≥ 0; 1 changes nothing, 0 is black.

    Returns:
        (N, C, H, W) uint8.
    """
    return _blend(torch.zeros((), device=images.device), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the smoothed picture (factor above 1) or towards it; ``ImageEnhance.Sharpness``.

    Args:
        images: (N, C, H, W) uint8; the outermost pixels stay.
        factor: (N,) ≥ 0; 1 changes nothing.

    Returns:
        (N, C, H, W) uint8.
    """
    if min(images.shape[2:]) < 3:
        return images
    wide = images.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    total = (box + 4 * wide[:, :, 1:-1, 1:-1]).float()  # 3 x 3 of ones, 5 in the middle; sum 13
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = torch.floor((total + 6.5) / 13)
    return _blend(smooth, images, factor)


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """From a degenerate picture to the picture and beyond, cut to 0..255 and truncated as Pillow does."""
    difference = images.float() - degenerate
    blended = difference.mul_(factor[:, None, None, None]).add_(degenerate)
    # By way of int16: from float to uint8 directly is four times slower on a CPU.
    return blended.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _channel_levels(images: Tensor) -> Tensor:
    """Index of each value in a table of 256 per channel per picture, in (N, C, H, W) order; int32."""
    count, channels = images.shape[:2]
    tables = torch.arange(count * channels, device=images.device, dtype=torch.int32) * 256
    return images.reshape(count * channels, -1).to(torch.int32).add_(tables[:, None]).view(-1)


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replace each value by its entry in the (N, C, 256) uint8 table of its channel and picture."""
    return table.view(-1).index_select(0, _channel_levels(images)).view(images.shape)
