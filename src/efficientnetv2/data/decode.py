"""From a file to the square of pixels a network sees: draw the crop, decode little, resize once.

A JPEG is decoded at the smallest of its own scales (1, 1/2, 1/4, 1/8) that leaves enough pixels for
the crop; which crop is drawn from the size in the header, before anything is decoded. A random crop is
cut at whole pixels of what was decoded, half of one from its place at most, and what lies below it is not
decoded where the file allows that; evaluation cuts exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from efficientnetv2.data.image_io import Pixels, Source, StoredImage, open_stored
from efficientnetv2.preprocessing import IMAGENET_MEAN, RGB, Framing, Preprocessing

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


Interpolation = Literal["bilinear", "bicubic"]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# EXIF orientation: from a place (x, y) of the upright unit square to the stored one: exchange x and y first?, then
# mirror x?, mirror y?
_TURNS = {
    #  exchange mirror x mirror y
    1: (False,  False,   False),
    2: (False,  True,    False),
    3: (False,  True,    True),
    4: (False,  False,   True),
    5: (True,   False,   False),
    6: (True,   False,   True),
    7: (True,   True,    True),
    8: (True,   True,    False),
}  # fmt: skip


def load_image(source: Source) -> Image.Image:
    """The whole picture, upright (EXIF applied), in RGB.

    Args:
        source: a path; ``file.bin#index`` for a record of CIFAR's binary files; the bytes of a file; a
            Pillow image; or pixels, (height, width, 3) uint8, upright RGB.

    Returns:
        A Pillow image of mode RGB; how other modes become RGB: ``pictures.to_rgb``.

    Raises:
        UnreadablePicture: with the reason in words.
    """
    with open_stored(source) as picture:
        whole = picture.pixels(1, True, picture.height)
        return Image.fromarray(upright(whole, picture.orientation))


def load_train_image(
    source: Source,
    *,
    image_px: int,
    framing: Framing,
    area_min: float,
    uniforms: npt.NDArray[np.float64] | Sequence[float],
    interpolation: Interpolation = "bicubic",
    mean: Sequence[float] = IMAGENET_MEAN,
) -> Pixels:
    """A random crop of a picture, as a square.

    Args:
        source: see ``load_image``.
        image_px: side of the square.
        framing: ``crop`` draws a crop whose width over height, in pixels, is within ``ASPECT``, and squeezes it into
            the square. ``whole`` draws it relative to the picture's own shape, so that with ``area_min`` 1 it is the
            whole picture, squeezed. ``pad`` draws it likewise, but keeps its shape and pads.
        area_min: smallest share of the picture that a crop covers, in (0, 1].
        uniforms: at least ``CROP_UNIFORMS`` numbers in [0, 1), this sample's alone.
        interpolation: of the resize; antialiased.
        mean: of the network's ``Preprocessing``, in [0, 1]; ``pad`` fills with it.

    Returns:
        (image_px, image_px, C) uint8; C is 3 but for pixels of other channels.

    Raises:
        UnreadablePicture: with the reason in words.
    """
    with open_stored(source) as picture:
        width, height = _upright_size(picture)
        if framing == "crop":
            box = draw_crop(width, height, area_min, ASPECT, uniforms)
        else:
            part = draw_crop(1, 1, area_min, ASPECT, uniforms)
            box = Box(part.left * width, part.top * height, part.right * width, part.bottom * height)
        return _square(picture, box, image_px, framing, interpolation, mean, exact=False)


def load_eval_image(source: Source, preprocessing: Preprocessing) -> Pixels:
    """A picture framed as its network expects, without any randomness.

    Args:
        source: see ``load_image``.
        preprocessing: of the network.

    Returns:
        (image_px, image_px, C) uint8; C is 3 but for pixels of other channels.

    Raises:
        UnreadablePicture: with the reason in words.
    """
    with open_stored(source) as picture:
        width, height = _upright_size(picture)
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
            picture,
            box,
            preprocessing.image_px,
            preprocessing.framing,
            preprocessing.interpolation,
            preprocessing.mean,
            exact=True,
        )


def load_resized_image(source: Source, size: Callable[[int, int], tuple[int, int]]) -> Pixels:
    """The whole picture, made smaller once.

    Args:
        source: see ``load_image``.
        size: from the picture's width and height to those wanted.

    Returns:
        (height, width, C) uint8, upright; RGB but for pixels of other channels.

    Raises:
        UnreadablePicture: with the reason in words.
    """
    with open_stored(source) as picture:
        width, height = _upright_size(picture)
        whole = Box(0, 0, width, height)
        return _resized(picture, whole, size(width, height), "bicubic", exact=True)


def _square(
    picture: StoredImage,
    box: Box,
    px: int,
    framing: Framing,
    interpolation: Interpolation,
    mean: Sequence[float],
    *,
    exact: bool,
) -> Pixels:
    """The box of the upright picture as a square of ``px``, squeezed or padded."""
    if framing != "pad":
        return _resized(picture, box, (px, px), interpolation, exact)
    scale = px / max(box.width, box.height)
    width, height = max(1, round(box.width * scale)), max(1, round(box.height * scale))
    left, top = (px - width) // 2, (px - height) // 2
    part = _resized(picture, box, (width, height), interpolation, exact)
    canvas = np.empty((px, px, part.shape[2]), np.uint8)
    canvas[:] = [min(255, max(0, round(255 * value))) for value in mean]
    canvas[top : top + height, left : left + width] = part
    return canvas


def _resized(
    picture: StoredImage, box: Box, size: tuple[int, int], interpolation: Interpolation, exact: bool
) -> Pixels:
    """Decode, crop and resize at once.

    At least the pixels needed are decoded, each way, if there are so many; where it is to be exact, twice
    as many. That leaves the result that of a full decode but for 0.2 of a grey level; once as many, for 0.3 to
    0.9 (measured).
    """
    box = _stored_box(box, picture)
    if picture.orientation >= 5:
        size = (size[1], size[0])
    spare = 2 if exact else 1
    most = min(box.width / (spare * size[0]), box.height / (spare * size[1]))
    scale = max(one for one in picture.scales if one <= max(1, most))
    # A pixel at this scale more than the box has, because it is rounded.
    pixels = picture.pixels(scale, exact, math.ceil(box.bottom) + scale)
    height, width = -(-picture.height // scale), -(-picture.width // scale)
    # What rounding lets stick out by a hair is cut off.
    region = (
        max(0.0, box.left / scale),
        max(0.0, box.top / scale),
        min(float(width), box.right / scale),
        min(float(height), box.bottom / scale),
    )
    if exact and region != (0, 0, width, height):
        return upright(_resize_exactly(pixels, size, interpolation, region), picture.orientation)
    left, right = _whole_pixels(region[0], region[2], width)
    top, bottom = _whole_pixels(region[1], region[3], height)
    part = _resize(pixels[top:bottom, left:right], size, interpolation)
    return upright(part, picture.orientation)


def _resize_exactly(
    pixels: Pixels,
    size: tuple[int, int],
    interpolation: Interpolation,
    region: tuple[float, float, float, float],
) -> Pixels:
    """A part to (width, height) pixels by Pillow, whose filter sees what lies about the part, too.

    So a crop is that of the resized picture.
    """

    def resized(values: Pixels) -> Pixels:
        return np.asarray(Image.fromarray(values).resize(size, _FILTERS[interpolation], box=region))

    if pixels.shape[2] == RGB:
        return resized(pixels)
    # Of four Pillow would take the last for a mask, and of more it has no notion.
    return np.stack([resized(np.ascontiguousarray(band)) for band in pixels.transpose(2, 0, 1)], axis=2)


def _whole_pixels(low: float, high: float, length: int) -> tuple[int, int]:
    """The nearest ones, at least one."""
    first = min(round(low), length - 1)
    return first, max(round(high), first + 1)


def _resize(pixels: Pixels, size: tuple[int, int], interpolation: Interpolation) -> Pixels:
    """To (width, height) pixels, antialiased: Pillow's to two grey levels, and much faster where there is AVX2."""
    # Copied by numpy: a copy by PyTorch would set its threads to work, beside those that read other pictures.
    # Channels-last comes from the order of these two: permuted before it gets its first axis, it is not known as such.
    # And what may not be written to, as the pages of a cache, is copied, for PyTorch warns of it.
    batch = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(batch, size[::-1], mode=interpolation, antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1)[0].numpy())


def _stored_box(box: Box, picture: StoredImage) -> Box:
    """The same part in the picture as it is stored, before it is turned upright."""
    exchange, mirror_x, mirror_y = _TURNS[picture.orientation]
    left, top, right, bottom = (box.top, box.left, box.bottom, box.right) if exchange else box
    if mirror_x:
        left, right = picture.width - right, picture.width - left
    if mirror_y:
        top, bottom = picture.height - bottom, picture.height - top
    return Box(left, top, right, bottom)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels as they are to be seen.

    Args:
        pixels: (H, W, C), as they are stored.
        orientation: 1 to 8, as EXIF and TIFF number them.
    """
    exchange, mirror_x, mirror_y = _TURNS[orientation]
    turned = pixels[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]
    return np.ascontiguousarray(turned.transpose(1, 0, 2) if exchange else turned)


def _upright_size(picture: StoredImage) -> tuple[int, int]:
    size = picture.width, picture.height
    return size if picture.orientation < 5 else (size[1], size[0])
