"""Open any image that Pillow reads, as upright RGB, or explain why it is unreadable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from efficientnetv2.data import jpeg
from efficientnetv2.data.open_image import (
    IGNORED_WARNINGS,
    ForeignFormatError,
    NotRegularFileError,
    open_image,
    read_file,
)
from efficientnetv2.preprocessing import RGB
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.memory import MemoryBudget

Pixels = npt.NDArray[np.uint8]

# A path, the bytes of a file, a Pillow image, or decoded pixels: (height, width, channels), upright, RGB or the bands
# of a raster as ``data.bands`` reads them.
Source = str | Path | bytes | Image.Image | Pixels

#: Minimum shorter side of an image, in pixels. Ours.
MIN_SIDE = 2
_HIGH_BIT_DEPTH = ("I", "F")  # prefixes of Pillow's modes with 16 and 32 bits
# Formats that can be decoded at a smaller scale, and so must not be loaded before the scale is chosen.
_SCALABLE = ("JPEG", "MPO")
# Peak memory of decoding, bytes per pixel: a JPEG of one scan; of several, which are kept; anything else, measured at
# 11 (GIF) to 22 (WebP). Ours.
_JPEG_BYTES, _SCANS_BYTES, _PILLOW_BYTES = 6, 12, 24
#: Memory for decoding. Images below 64 MiB are not counted: at most one per core is decoded at a time. Ours.
DECODING = MemoryBudget(small=64 * 2**20, share=0.5)
# Maximum fraction of values outside the range that is read (clouds, missing data) in a high-bit-depth image. Ours.
_MAX_OUTSIDE = 0.1
_ALL_BITS = "the extra 'geo' measures the range of TIFFs"
TOO_LARGE = "is too large to be safe (a decompression bomb?)"
_FAULTS = {
    FileNotFoundError: "does not exist",
    IsADirectoryError: "is a folder, not an image",
    NotRegularFileError: "is not a regular file, but a pipe or a device",
    UnidentifiedImageError: "is not an image that Pillow can read",
}


class UnreadableImageError(Exception):
    """An image that cannot be read. name: file, or "the image". reason: text that follows the name and a colon."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that it can be pickled
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class StoredImage:
    """An image as stored, with its header read: size and EXIF orientation before it is turned upright.

    ``scales`` are divisors of the sides that decoding supports. ``pixels`` maps (scale, exact, number of rows from the
    top) to (height, width, channels) uint8, rounded up.
    """

    width: int
    height: int
    orientation: int
    scales: tuple[int, ...]
    pixels: Callable[[int, bool, int], Pixels]


@contextmanager
def open_stored(source: Source) -> Iterator[StoredImage]:
    """Open an image without decoding it. Raises UnreadableImageError, also for errors of decoding within the block."""
    try:
        content = _content(source)
        if isinstance(content, np.ndarray):
            height, width = content.shape[:2]
            validate_size(width, height)
            yield StoredImage(width, height, 1, (1,), lambda _scale, _exact, _rows: content)
        elif isinstance(content, Image.Image):
            with IGNORED_WARNINGS:
                yield _from_pillow(content.copy())
        elif (header := jpeg.header(content)) is not None:
            width, height = header.width, header.height
            validate_size(width, height)
            if header.rows_in_order is None:
                jpeg.refuse_many_scans(content, width * height)
            bytes_each = _SCANS_BYTES if header.rows_in_order is None else _JPEG_BYTES
            with DECODING.take(bytes_each * width * height):
                pixels = partial(_jpeg_pixels, content, header)
                yield StoredImage(width, height, header.orientation, jpeg.scales(header), pixels)
        else:
            with IGNORED_WARNINGS, open_image(content) as image:
                validate_size(*image.size)
                jpeg.refuse_many_scans(content, image.width * image.height)
                with DECODING.take(_PILLOW_BYTES * image.width * image.height):
                    yield _from_pillow(image, content)
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise UnreadableImageError(_name(source), fault_of(error)) from error


def image_size(source: Source) -> tuple[int, int]:
    """Width and height as stored, from the header only. Raises UnreadableImageError."""
    if isinstance(source, str | Path | bytes):
        try:
            with IGNORED_WARNINGS, open_image(source) as image:
                return image.size
        except Exception as error:  # as in ``open_stored``
            raise UnreadableImageError(_name(source), fault_of(error)) from error
    with open_stored(source) as stored:
        return stored.width, stored.height


def is_high_bit_depth(source: Source) -> bool:
    """Whether an image has more than 8 bits, by its header. Pillow reads 16-bit colors as their upper 8 bits."""
    if isinstance(source, np.ndarray):
        return False
    if isinstance(source, Image.Image):
        return is_high_bit_depth_image(source)
    try:
        with IGNORED_WARNINGS, open_image(source) as image:
            return is_high_bit_depth_image(image)
    except Exception:  # reading it will give the reason
        return False


def is_high_bit_depth_image(image: Image.Image) -> bool:
    """Whether an opened, not loaded image stores more than 8 bits, in gray or in color."""
    tile = str(getattr(image, "tile", "")).replace("BGR;16", "")  # BMP with 5 or 6 bits per color
    return image.mode.startswith(_HIGH_BIT_DEPTH) or ";16" in tile


def max_level(source: Source) -> int:
    """Maximum of an image decoded at its smallest scale, 0 to 255. Raises UnreadableImageError."""
    with open_stored(source) as stored:
        return int(stored.pixels(max(stored.scales), True, stored.height).max())


def display_channels(pixels: Pixels) -> Pixels:
    """(H, W, 3) pixels to display: the first three channels, or the first as gray."""
    return pixels[..., :RGB] if pixels.shape[-1] >= RGB else pixels[..., :1].repeat(RGB, axis=-1)


def validate_size(width: int, height: int) -> None:
    """Raise UnreadableImageError if a side is shorter than ``MIN_SIDE``."""
    if min(width, height) < MIN_SIDE:
        raise UnreadableImageError("", f"is too small: {width}×{height} px")


def _from_pillow(image: Image.Image, content: bytes = b"") -> StoredImage:
    """As Pillow reads it. Without content it is the caller's image."""
    if image.format in _SCALABLE:
        pixels = partial(_pillow_pixels, image, content)
        return StoredImage(*image.size, _orientation(image), jpeg.SCALES, pixels)
    # TIFF images turn themselves upright while loading, and the metadata of a PNG may follow the pixels.
    image.load()
    validate_size(*image.size)
    return StoredImage(*image.size, _orientation(image), (1,), partial(_pillow_pixels, image, b""))


def _jpeg_pixels(content: bytes, header: jpeg.Header, scale: int, exact: bool, rows: int) -> Pixels:
    pixels = jpeg.decode(content, header, scale, exact=exact, bottom=rows)
    if pixels is not None:
        return pixels
    with IGNORED_WARNINGS, open_image(content) as image:
        return _pillow_pixels(image, b"", scale, exact, rows)


def _pillow_pixels(image: Image.Image, content: bytes, scale: int, _exact: bool, _rows: int) -> Pixels:
    if scale > 1:
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
    pixels = np.asarray(to_rgb(image))
    if content:  # of a JPEG: Pillow shows lost pixels as gray
        jpeg.refuse_lost(content)
    return pixels


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata does not spoil the pixels; damaged pixels fail when they load
        return 1
    return value if value in range(1, 9) else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, not turned. Raises UnreadableImageError if more than a tenth of the values are out of range.

    Transparent pixels become white. 16-bit values keep their upper 8 bits, and floats of 0 to 1 become 0 to 255: all
    images of a dataset follow one rule.
    """
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _gray(np.asarray(image) >> 8)
    if image.mode == "I":
        return _gray(_in_range(np.asarray(image), 65535).clip(0, 65535) >> 8)
    if image.mode == "F":
        return _gray(_in_range(np.nan_to_num(np.asarray(image), posinf=0.0, neginf=0.0), 1).clip(0, 1) * 255)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None is only for inPlace
        return converted
    if _has_alpha(image):
        above = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), above).convert("RGB")
    return image.convert("RGB")


def rgb_conversion(image: Image.Image) -> str:
    """What an opened image loses when it becomes RGB, in words. '' for RGB and for other encodings of it."""
    if _has_alpha(image):
        return "with an alpha channel (laid over white)"
    if image.mode == "I":
        return f"gray of 16 or 32 bits (0 to 65,535 become 0 to 255; {_ALL_BITS})"
    if image.mode == "F":
        return f"gray of floating-point values (0 to 1 become 0 to 255; {_ALL_BITS})"
    if is_high_bit_depth_image(image):
        colors = "gray" if image.mode.startswith(_HIGH_BIT_DEPTH) else "colors"
        return f"{colors} of 16 bits (the upper 8 bits are read; {_ALL_BITS})"
    if image.mode in ("1", "L"):
        return "gray (three equal channels)"
    return "" if image.mode in ("RGB", "RGBX", "P", "YCbCr", "HSV") else image.mode


def _has_alpha(image: Image.Image) -> bool:
    within_palette = image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA"
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info or within_palette


def _gray(levels: npt.NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _in_range(values: npt.NDArray[Any], largest: int) -> npt.NDArray[Any]:
    """The values, if nearly all of them are between 0 and ``largest``."""
    if ((values < 0) | (values > largest)).mean() > _MAX_OUTSIDE:
        raise UnreadableImageError(
            "",
            f"holds values from {values.min():g} to {values.max():g}, but only 0 to {largest:,} are read without the "
            "extra 'geo', which measures the range of TIFFs. Install it, or scale all images alike",
        )
    return values


def _content(source: Source) -> bytes | Image.Image | Pixels:
    """The content of a file. Pillow images and pixels stay."""
    if isinstance(source, Image.Image | np.ndarray):
        return source
    content = source if isinstance(source, bytes) else read_file(source)
    if not content:
        raise UnreadableImageError("", "is empty (0 bytes)")
    return content


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else "the image"


def fault_of(error: Exception) -> str:
    """Why an image cannot be read, to follow its name."""
    if isinstance(error, UnreadableImageError):
        return error.reason
    if isinstance(error, InputError | jpeg.DamagedJpegError | ForeignFormatError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"{TOO_LARGE} ({error})"
    if isinstance(error, MemoryError):
        return str(error) or "needs more memory than is available"
    if fault := next((text for kind, text in _FAULTS.items() if isinstance(error, kind)), ""):
        return fault
    if isinstance(error, OSError) and error.strerror:
        return f"may not be read ({error.strerror.lower()})"
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return "is cut short (truncated)"
    return f"cannot be decoded ({type(error).__name__}: {error})"
