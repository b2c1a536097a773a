"""Which part of a picture a random crop keeps: drawn from its size alone, before anything is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Tries of a random crop before the centre one (Inception's, and everyone's since).
_TRIES = 10
# Uniform numbers that a crop is drawn from: its place (2), then area and shape of each try.
CROP_UNIFORMS = 2 + 2 * _TRIES
# Least and greatest width over height of a random crop (Inception's).
ASPECT = (3 / 4, 4 / 3)


class Box(NamedTuple):
    """A part of a picture, in pixels from its upper left corner; not necessarily whole ones."""

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
    width: float,
    height: float,
    area_min: float,
    aspect: tuple[float, float],
    uniforms: npt.NDArray[np.float64] | Sequence[float],
) -> Box:
    """A random crop in Inception's manner: area uniform, logarithm of the shape uniform.

    Args:
        width: of the picture, in any unit.
        height: in the same.
        area_min: the area is uniform in [area_min, 1] of the picture's, as far as the shapes fit in.
        aspect: least and greatest width over height.
        uniforms: at least ``CROP_UNIFORMS`` numbers in [0, 1).

    Returns:
        The first of ten tries that fits into the picture; else the largest centre crop whose shape lies
        within ``aspect``.

    Source: arXiv:1409.4842, section 6; tries and fallback as in torchvision.
    """
    x, y = uniforms[0], uniforms[1]
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for attempt in range(_TRIES):
        area = (area_min + (1 - area_min) * uniforms[2 + 2 * attempt]) * width * height
        shape = math.exp(low + (high - low) * uniforms[3 + 2 * attempt])
        crop_width, crop_height = math.sqrt(area * shape), math.sqrt(area / shape)
        if crop_width <= width and crop_height <= height:
            left, top = x * (width - crop_width), y * (height - crop_height)
            return Box(left, top, left + crop_width, top + crop_height)
    crop_width = min(width, height * aspect[1])
    crop_height = min(height, width / aspect[0])
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return Box(left, top, left + crop_width, top + crop_height)
