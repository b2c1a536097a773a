"""Decode an image, crop it and resize it to the square that a model sees.

A crop, random for training and centered for evaluation, is drawn before the image is decoded. A JPEG is decoded at the
smallest of its scales (1, 1/2, 1/4, 1/8) that leaves enough pixels for it. Training rounds the crop to whole decoded
pixels; evaluation crops exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from efficientnetv2.data.image_io import Pixels, Source, StoredImage, open_stored
from efficientnetv2.preprocessing import IMAGENET_MEAN, RGB, CropMode, Interpolation, Preprocessing
from efficientnetv2.utils.random_key import Floats

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# EXIF orientation -> how a point (x, y) of the upright unit square becomes one of the stored image: swap x and y, then
# mirror x, mirror y.
_ORIENTATIONS = {
    #  swap    mirror x mirror y
    1: (False,  False,   False),
    2: (False,  True,    False),
    3: (False,  True,    True),
    4: (False,  False,   True),
    5: (True,   False,   False),
    6: (True,   False,   True),
    7: (True,   True,    True),
    8: (True,   True,    False),
}  # fmt: skip
# Attempts at a random crop before the center crop. Source: Inception, as torchvision.
_ATTEMPTS = 10
# Uniform numbers per crop: its position (2), then area and aspect ratio of each attempt.
CROP_UNIFORMS = 2 + 2 * _ATTEMPTS
# Range of width / height of a random crop. Source: Inception.
ASPECT = (3 / 4, 4 / 3)


class Box(NamedTuple):
    """A rectangle in pixels from the upper left corner, possibly fractional."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """In pixels."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """In pixels."""
        return self.bottom - self.top


def draw_crop(
    width: float, height: float, area_min: float, aspect: tuple[float, float], uniforms: Floats | Sequence[float]
) -> Box:
    """A random crop: uniform in area and in the logarithm of the aspect ratio.

    Returns the first of ten attempts that fits into the image, else the largest center crop within ``aspect``, the
    range of width / height. ``uniforms`` are ``CROP_UNIFORMS`` numbers in [0, 1).

    Source: arXiv:1409.4842, section 6; attempts and fallback as in torchvision.
    """
    x, y = uniforms[0], uniforms[1]
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for attempt in range(_ATTEMPTS):
        area = (area_min + (1 - area_min) * uniforms[2 + 2 * attempt]) * width * height
        ratio = math.exp(low + (high - low) * uniforms[3 + 2 * attempt])
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if crop_width <= width and crop_height <= height:
            left, top = x * (width - crop_width), y * (height - crop_height)
            return Box(left, top, left + crop_width, top + crop_height)
    return center_crop(width, height, min(width, height * aspect[1]), min(height, width / aspect[0]))


def center_crop(width: float, height: float, crop_width: float, crop_height: float) -> Box:
    """The crop of this width and height in the middle of an image."""
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return Box(left, top, left + crop_width, top + crop_height)


def load_image(source: Source) -> Image.Image:
    """The whole image, upright (EXIF applied), in mode RGB. Raises UnreadableImageError with a reason."""
    with open_stored(source) as image:
        return Image.fromarray(upright(image.pixels(1, True, image.height), image.orientation))


def load_train_image(
    source: Source,
    *,
    image_size: int,
    crop_mode: CropMode,
    area_min: float,
    uniforms: Floats | Sequence[float],
    interpolation: Interpolation = "bicubic",
    mean: Sequence[float] = IMAGENET_MEAN,
) -> Pixels:
    """A random crop of an image, as a square: (image_size, image_size, C) uint8. Raises UnreadableImageError.

    ``center`` draws a crop with width / height in ``ASPECT``. ``squash`` and ``border`` draw it relative to the image's
    own shape, then squeeze it or pad it with the color ``mean``. ``area_min`` is the minimum fraction of the image that
    a crop covers. ``uniforms`` are ``CROP_UNIFORMS`` numbers in [0, 1).
    """
    with open_stored(source) as image:
        width, height = _upright_size(image)
        if crop_mode == "center":
            box = draw_crop(width, height, area_min, ASPECT, uniforms)
        else:
            part = draw_crop(1, 1, area_min, ASPECT, uniforms)
            box = Box(part.left * width, part.top * height, part.right * width, part.bottom * height)
        return _square(image, box, image_size, crop_mode, interpolation, mean, exact=False)


def load_eval_image(source: Source, preprocessing: Preprocessing) -> Pixels:
    """An image as its model expects it, (image_size, image_size, C) uint8. Raises UnreadableImageError."""
    size, mode = preprocessing.image_size, preprocessing.crop_mode
    with open_stored(source) as image:
        width, height = _upright_size(image)
        box = Box(0, 0, width, height)
        if mode != "border":
            kept = width * preprocessing.crop_pct, height * preprocessing.crop_pct
            box = center_crop(width, height, *((min(kept),) * 2 if mode == "center" else kept))
        return _square(image, box, size, mode, preprocessing.interpolation, preprocessing.mean, exact=True)


def load_resized_image(source: Source, size: Callable[[int, int], tuple[int, int]]) -> Pixels:
    """The whole upright image at the size that ``size`` makes of width and height. Raises UnreadableImageError."""
    with open_stored(source) as image:
        width, height = _upright_size(image)
        return _resized(image, Box(0, 0, width, height), size(width, height), "bicubic", exact=True)


def _square(
    image: StoredImage,
    box: Box,
    px: int,
    crop_mode: CropMode,
    interpolation: Interpolation,
    mean: Sequence[float],
    *,
    exact: bool,
) -> Pixels:
    """The box of the upright image as a square, squeezed or padded."""
    if crop_mode != "border":
        return _resized(image, box, (px, px), interpolation, exact)
    scale = px / max(box.width, box.height)
    width, height = max(1, round(box.width * scale)), max(1, round(box.height * scale))
    left, top = (px - width) // 2, (px - height) // 2
    part = _resized(image, box, (width, height), interpolation, exact)
    canvas = np.empty((px, px, part.shape[2]), np.uint8)
    canvas[:] = [min(255, max(0, round(255 * value))) for value in mean]
    canvas[top : top + height, left : left + width] = part
    return canvas


def _resized(image: StoredImage, box: Box, size: tuple[int, int], interpolation: Interpolation, exact: bool) -> Pixels:
    """Decode, crop and resize."""
    box = _stored_box(box, image)
    if image.orientation >= 5:
        size = (size[1], size[0])
    # Twice the pixels of the result differ from a full decode by 0.2 gray levels, once by 0.3 to 0.9 (measured).
    oversampling = 2 if exact else 1
    largest = min(box.width / (oversampling * size[0]), box.height / (oversampling * size[1]))
    scale = max(scale for scale in image.scales if scale <= max(1, largest))
    # One decoded pixel more than the box, for rounding.
    pixels = image.pixels(scale, exact, math.ceil(box.bottom) + scale)
    height, width = -(-image.height // scale), -(-image.width // scale)
    # Rounding may make the box stick out slightly.
    left, right = max(0.0, box.left / scale), min(float(width), box.right / scale)
    top, bottom = max(0.0, box.top / scale), min(float(height), box.bottom / scale)
    is_scaled = (round(left) + size[0], round(top) + size[1], left % 1, top % 1) != (right, bottom, 0, 0)
    if exact and is_scaled and (left, top, right, bottom) != (0, 0, width, height):
        part = _resize_exactly(pixels, size, interpolation, (left, top, right, bottom))
    else:
        columns, rows = _whole_pixels(left, right, width), _whole_pixels(top, bottom, height)
        part = _resize(pixels[rows, columns], size, interpolation)
    return upright(part, image.orientation)


def _whole_pixels(low: float, high: float, length: int) -> slice:
    """The nearest range of at least one pixel."""
    first = min(round(low), length - 1)
    return slice(first, max(round(high), first + 1))


def _resize_exactly(
    pixels: Pixels, size: tuple[int, int], interpolation: Interpolation, region: tuple[float, float, float, float]
) -> Pixels:
    """Resize a region by Pillow, whose filter also sees the pixels around it, as if cropped after resizing."""

    def resized(values: Pixels) -> Pixels:
        return np.asarray(Image.fromarray(values).resize(size, _FILTERS[interpolation], box=region))

    if pixels.shape[2] == RGB:
        return resized(pixels)
    # Of four channels Pillow would take the last for a mask; it does not support more.
    return np.stack([resized(np.ascontiguousarray(band)) for band in pixels.transpose(2, 0, 1)], axis=2)


def _resize(pixels: Pixels, size: tuple[int, int], interpolation: Interpolation) -> Pixels:
    """Antialiased resize to (width, height): within two gray levels of Pillow's, and much faster with AVX2."""
    if pixels.shape[1::-1] == size:
        return np.array(pixels, order="C")
    # numpy copies: a copy by PyTorch would use its threads, while others read images. The order of indexing and permute
    # makes PyTorch see channels-last memory. Read-only pixels, such as a cache's, are copied: PyTorch warns of them.
    batch = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(batch, size[::-1], mode=interpolation, antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1)[0].numpy())


def _stored_box(box: Box, image: StoredImage) -> Box:
    """The same box in the image as stored, before it is turned upright."""
    swap, mirror_x, mirror_y = _ORIENTATIONS[image.orientation]
    left, top, right, bottom = (box.top, box.left, box.bottom, box.right) if swap else box
    if mirror_x:
        left, right = image.width - right, image.width - left
    if mirror_y:
        top, bottom = image.height - bottom, image.height - top
    return Box(left, top, right, bottom)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn stored (H, W, C) pixels upright, by their EXIF or TIFF orientation, 1 to 8."""
    swap, mirror_x, mirror_y = _ORIENTATIONS[orientation]
    turned = pixels[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]
    return np.ascontiguousarray(turned.transpose(1, 0, 2) if swap else turned)


def _upright_size(image: StoredImage) -> tuple[int, int]:
    size = image.width, image.height
    return size if image.orientation < 5 else (size[1], size[0])
