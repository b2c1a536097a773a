"""From a file to the square of pixels a network sees: draw the crop, decode little, resize once.

A JPEG is decoded at the smallest of its own scales (1, 1/2, 1/4, 1/8) that leaves enough pixels for
the crop; which crop is drawn from the size in the header, before anything is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from efficientnetv2.base.preprocessing import IMAGENET_MEAN, Framing, Preprocessing
from efficientnetv2.data.pictures import Pixels, Source, UnreadablePicture, opened, orientation_of, to_rgb

__all__ = [
    "CROP_UNIFORMS", "Box", "UnreadablePicture", "draw_crop", "eval_picture", "read_picture", "train_picture",
]  # fmt: skip

Interpolation = Literal["bilinear", "bicubic"]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# Tries of a random crop before the centre one (Inception's, and everyone's since).
_TRIES = 10
# Uniform numbers that a crop is drawn from: its place (2), then area and shape of each try.
CROP_UNIFORMS = 2 + 2 * _TRIES

# EXIF orientation: the turn that makes the stored picture upright; and, from a place (x, y) of the upright
# unit square back to the stored one: exchange x and y first?, then mirror x?, mirror y?
_TURNS = {
    #  turn                                 exchange mirror x mirror y
    2: (Image.Transpose.FLIP_LEFT_RIGHT,    False,   True,    False),
    3: (Image.Transpose.ROTATE_180,         False,   True,    True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,    False,   False,   True),
    5: (Image.Transpose.TRANSPOSE,          True,    False,   False),
    6: (Image.Transpose.ROTATE_270,         True,    False,   True),
    7: (Image.Transpose.TRANSVERSE,         True,    True,    True),
    8: (Image.Transpose.ROTATE_90,          True,    True,    False),
}  # fmt: skip


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


def read_picture(source: Source) -> Image.Image:
    """The whole picture, upright (EXIF applied), in RGB.

    Args:
        source: a path; ``file.bin#index`` for a record of CIFAR's binary files; the bytes of a file; a
            Pillow image; or pixels, (height, width, 3) uint8, upright RGB.

    Returns:
        A Pillow image of mode RGB; how other modes become RGB: ``pictures.to_rgb``.

    Raises:
        UnreadablePicture: with the reason in words.
    """
    with opened(source) as image:
        orientation = orientation_of(image)
        return _upright(to_rgb(image), orientation)


def train_picture(
    source: Source,
    *,
    image_px: int,
    framing: Framing,
    area_min: float,
    uniforms: npt.NDArray[np.float64] | Sequence[float],
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: Interpolation = "bicubic",
    mean: Sequence[float] = IMAGENET_MEAN,
) -> Pixels:
    """A random crop of a picture, as a square.

    Args:
        source: see ``read_picture``.
        image_px: side of the square.
        framing: ``crop`` draws a crop of ``aspect`` in pixels and squeezes it into the square.
            ``whole`` draws it relative to the picture's own shape, so that with ``area_min`` 1 it is the
            whole picture, squeezed. ``pad`` draws it likewise, but keeps its shape and pads.
        area_min: smallest share of the picture that a crop covers, in (0, 1].
        uniforms: at least ``CROP_UNIFORMS`` numbers in [0, 1), this sample's alone.
        aspect: least and greatest width over height.
        interpolation: of the resize; antialiased.
        mean: of the network's ``Preprocessing``, in [0, 1]; ``pad`` fills with it.

    Returns:
        (image_px, image_px, 3) uint8.

    Raises:
        UnreadablePicture: with the reason in words.
    """
    with opened(source) as image:
        orientation = orientation_of(image)
        width, height = _upright_size(image, orientation)
        if framing == "crop":
            box = draw_crop(width, height, area_min, aspect, uniforms)
        else:
            part = draw_crop(1, 1, area_min, aspect, uniforms)
            box = Box(part.left * width, part.top * height, part.right * width, part.bottom * height)
        return _square(image, orientation, box, image_px, framing, interpolation, mean, spare=1)


def eval_picture(source: Source, preprocessing: Preprocessing) -> Pixels:
    """A picture framed as its network expects, without any randomness.

    Args:
        source: see ``read_picture``.
        preprocessing: of the network.

    Returns:
        (image_px, image_px, 3) uint8.

    Raises:
        UnreadablePicture: with the reason in words.
    """
    with opened(source) as image:
        orientation = orientation_of(image)
        width, height = _upright_size(image, orientation)
        box = Box(0, 0, width, height)
        if preprocessing.framing != "pad":
            kept_width, kept_height = (
                width * preprocessing.crop_fraction,
                height * preprocessing.crop_fraction,
            )
            if preprocessing.framing == "crop":
                kept_width = kept_height = min(kept_width, kept_height)
            left, top = (width - kept_width) / 2, (height - kept_height) / 2
            box = Box(left, top, left + kept_width, top + kept_height)
        return _square(
            image,
            orientation,
            box,
            preprocessing.image_px,
            preprocessing.framing,
            preprocessing.interpolation,
            preprocessing.mean,
            spare=2,
        )


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


def _square(
    image: Image.Image,
    orientation: int,
    box: Box,
    px: int,
    framing: Framing,
    interpolation: Interpolation,
    mean: Sequence[float],
    *,
    spare: int,
) -> Pixels:
    """The box of the upright picture as a square of ``px``, squeezed or padded."""
    if framing != "pad":
        return np.array(_resized(image, orientation, box, (px, px), interpolation, spare))
    scale = px / max(box.width, box.height)
    size = (max(1, round(box.width * scale)), max(1, round(box.height * scale)))
    canvas = Image.new("RGB", (px, px), tuple(round(255 * value) for value in mean))
    part = _resized(image, orientation, box, size, interpolation, spare)
    canvas.paste(part, ((px - size[0]) // 2, (px - size[1]) // 2))
    return np.array(canvas)


def _resized(
    image: Image.Image,
    orientation: int,
    box: Box,
    size: tuple[int, int],
    interpolation: Interpolation,
    spare: int,
) -> Image.Image:
    """Decode, crop and resize at once.

    At least ``spare`` times the pixels needed are decoded, each way, if there are so many. Twice leaves
    the result that of a full decode but for 0.2 of a grey level; once, for 0.3 to 0.9 (measured).
    """
    box = _stored(box, orientation, image.size)
    if orientation >= 5:
        size = (size[1], size[0])
    width, height = image.size
    needed = [max(1, math.ceil(spare * n * whole / part)) for n, whole, part in
              zip(size, image.size, (box.width, box.height), strict=True)]  # fmt: skip
    drafted = image.draft(None, (needed[0], needed[1]))
    rgb = to_rgb(image)
    across, down = (drafted[1][2] / width, drafted[1][3] / height) if drafted else (1.0, 1.0)
    # What rounding lets stick out by a hair is cut off.
    region = (
        max(0.0, box.left * across),
        max(0.0, box.top * down),
        min(float(rgb.width), box.right * across),
        min(float(rgb.height), box.bottom * down),
    )
    return _upright(rgb.resize(size, _FILTERS[interpolation], box=region), orientation)


def _stored(box: Box, orientation: int, size: tuple[int, int]) -> Box:
    """The same part in the picture as it is stored, of this size, before it is turned upright."""
    if orientation == 1:
        return box
    _, exchange, mirror_x, mirror_y = _TURNS[orientation]
    left, top, right, bottom = (box.top, box.left, box.bottom, box.right) if exchange else box
    if mirror_x:
        left, right = size[0] - right, size[0] - left
    if mirror_y:
        top, bottom = size[1] - bottom, size[1] - top
    return Box(left, top, right, bottom)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image if orientation == 1 else image.transpose(_TURNS[orientation][0])


def _upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    return image.size if orientation < 5 else (image.height, image.width)
