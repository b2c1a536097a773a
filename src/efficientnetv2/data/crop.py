"""Crops of an image, random for training and centered for evaluation, drawn before the image is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from efficientnetv2.utils.random_key import Floats

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
