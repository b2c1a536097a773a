"""Open anything Pillow opens, as upright RGB; or say in words why not."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from efficientnetv2.data import builtin_datasets, jpeg
from efficientnetv2.data.image_formats import (
    ForeignFormatError,
    NotRegularFileError,
    loaded,
    open_image,
    read_file,
)
from efficientnetv2.preprocessing import RGB
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.memory import Shared

Pixels = npt.NDArray[np.uint8]

# A path, the bytes of a file, a record of a CIFAR file ("data_batch_1.bin#17"), a Pillow image, or decoded pixels:
# (height, width, channels), upright; red, green and blue, or bands of a raster as ``data.bands`` reads them.
Source = str | Path | bytes | Image.Image | Pixels

#: The shorter side that a picture needs, in pixels. Ours.
MIN_SIDE = 2
_CIFAR_PX = 32
_DEEP = ("I", "F")  # how the modes of 16 and 32 bits begin
# Formats that can be decoded at a smaller scale, and so must not be loaded before that is chosen.
_SCALABLE = ("JPEG", "MPO")
# Memory that an image takes at the peak of its decoding, per pixel: a JPEG of one scan; of several, which are kept;
# anything else, measured at 11 (GIF) to 22 (WebP). Ours.
_JPEG_BYTES, _SCANS_BYTES, _PILLOW_BYTES = 6, 12, 24
# Images below 64 MiB are not counted: threads that decode such are as many as cores. Ours.
_DECODING = Shared(small=64 * 2**20, share=0.5)
# Share of the values of a deep image that may lie outside of the range that is read: clouds, missing data. Ours.
_MOST_OUTSIDE = 0.1
_ALL_BITS = "the extra 'geo' measures the range of TIFFs"
_CUT = "is cut off before its end"
_RECORD = re.compile(r"(?P<file>.+\.bin)#(?P<index>\d+)")


class UnreadableImageError(Exception):
    """A picture that cannot be used, and why.

    Args:
        name: the file, or "the picture" where it has no name.
        reason: in words, to follow the name and a colon.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that it survives the way from a worker process
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"

    @property
    def is_cut(self) -> bool:
        """Whether the file's end is missing."""
        return self.reason.startswith(_CUT)


@dataclass(frozen=True)
class StoredImage:
    """A picture as it is stored: its header read, its pixels perhaps not yet.

    Args:
        width: in pixels, before it is turned upright.
        height: likewise.
        orientation: EXIF's, 1 (upright) to 8.
        scales: what its sides can be divided by in decoding; 1 among them.
        pixels: from one of ``scales``, whether exactness matters and how many rows are needed (see
            ``jpeg.decode``) to (height, width, channels) uint8, mostly in RGB, each side divided and rounded up; rows
            that are not needed may be left out at the bottom.
    """

    width: int
    height: int
    orientation: int
    scales: tuple[int, ...]
    pixels: Callable[[int, bool, int], Pixels]


@contextmanager
def open_stored(source: Source) -> Iterator[StoredImage]:
    """The picture with its header read, its pixels not yet.

    Everything that fails within the block, decoding included, comes out as ``UnreadableImageError``.

    Args:
        source: see ``Source``.

    Raises:
        UnreadablePicture: no such file, not a picture, damaged, smaller than 2 px, or so large that it
            may be an attack (Pillow's limit, 179 million pixels).
    """
    try:
        content = _content(source)
        if isinstance(content, np.ndarray):
            yield _checked(
                StoredImage(
                    content.shape[1], content.shape[0], 1, (1,), lambda _scale, _exact, _bottom: content
                )
            )
        elif isinstance(content, Image.Image):
            with _quietly():
                yield _by_pillow(content.copy())
        elif (found := jpeg.header(content)) is not None:
            pixels = partial(_jpeg_pixels, content, found)
            picture = _checked(
                StoredImage(found.width, found.height, found.orientation, jpeg.scales(found), pixels)
            )
            each = _JPEG_BYTES
            if found.rows_in_order is None:
                jpeg.refuse_many_scans(content, found.width * found.height)
                each = _SCANS_BYTES
            with _DECODING.take(each * found.width * found.height):
                yield picture
        else:
            with _quietly(), open_image(content) as image:
                validate_size(*image.size)
                jpeg.refuse_many_scans(content, image.width * image.height)
                with _DECODING.take(_PILLOW_BYTES * image.width * image.height):
                    yield _by_pillow(image, content)
    except UnreadableImageError as error:
        raise UnreadableImageError(_name(source), error.reason) from error
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise UnreadableImageError(_name(source), _reason(error)) from error


def image_size(source: Source) -> tuple[int, int]:
    """Width and height before any turning upright; of a file no more than the header is read.

    Raises:
        UnreadablePicture: with the reason in words.
    """
    if isinstance(source, str | Path) and not _RECORD.fullmatch(str(source)):
        try:
            with _quietly(), open_image(source) as image:
                return image.size
        except Exception as error:  # as in ``open_stored``
            raise UnreadableImageError(_name(source), _reason(error)) from error
    with open_stored(source) as picture:
        return picture.width, picture.height


def max_pixels() -> int:
    """Of how many pixels a picture is taken for an attack: Pillow's limit."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)


def is_high_bit_depth(source: Source) -> bool:
    """Whether a picture stores values of more than 8 bits, as far as its header says; not what can't be read.

    Pillow knows such ones of one channel alone; of colours it hands on 8 bits.
    """
    if isinstance(source, np.ndarray) or (isinstance(source, str | Path) and _RECORD.fullmatch(str(source))):
        return False
    try:
        with _quietly():
            if isinstance(source, Image.Image):
                return source.mode.startswith(_DEEP)
            with open_image(source) as image:
                return image.mode.startswith(_DEEP)
    except Exception:  # as in ``open_stored``: whoever reads it will say
        return False


def max_level(source: Source) -> int:
    """Decode an image once, at its smallest scale, and find its highest level, 0 to 255.

    Raises:
        UnreadablePicture: with the reason in words.
    """
    with open_stored(source) as picture:
        return int(picture.pixels(max(picture.scales), True, picture.height).max())


def is_high_bit_depth_image(image: Image.Image) -> bool:
    """Whether an image that is opened, not loaded, stores more than 8 bits; of colors too."""
    return image.mode.startswith(_DEEP) or ";16" in str(getattr(image, "tile", ""))


def display_channels(pixels: Pixels) -> Pixels:
    """What people are shown of pixels: three channels as they are, of more the first three, of fewer the first as grey.

    Args:
        pixels: (H, W, C).

    Returns:
        (H, W, 3).
    """
    return pixels[..., :RGB] if pixels.shape[-1] >= RGB else pixels[..., :1].repeat(RGB, axis=-1)


@contextmanager
def _quietly() -> Iterator[None]:
    """Pillow's warnings are about the picture, and what is wrong enough becomes an error here anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _checked(picture: StoredImage) -> StoredImage:
    validate_size(picture.width, picture.height)
    return picture


def validate_size(width: int, height: int) -> None:
    """Refuse an image in which there is nothing to see.

    Raises:
        UnreadablePicture: a side is shorter than ``MIN_SIDE``.
    """
    if min(width, height) < MIN_SIDE:
        raise UnreadableImageError("", f"is {width} x {height} px; at least 2 x 2 are needed")


def _by_pillow(image: Image.Image, content: bytes = b"") -> StoredImage:
    """As Pillow reads it; without content the image is the user's own.

    Raises:
        Exception: the pixels are damaged.
    """
    if image.format in _SCALABLE:
        return StoredImage(
            *image.size, _orientation_of(image), jpeg.SCALES, partial(_pillow_pixels, image, content)
        )
    # Images that cannot be decoded at a smaller scale are loaded for the orientation. TIFF images turn themselves in
    # that and are upright afterwards; of a PNG the metadata may stand behind the pixels.
    image = loaded(image, content)
    return _checked(
        StoredImage(*image.size, _orientation_of(image), (1,), partial(_pillow_pixels, image, b""))
    )


def _jpeg_pixels(content: bytes, found: jpeg.Header, scale: int, exact: bool, bottom: int) -> Pixels:
    pixels = jpeg.decode(content, found, scale, exact=exact, bottom=bottom)
    if pixels is not None:
        return pixels
    with _quietly(), open_image(content) as image:
        return _pillow_pixels(image, b"", scale, exact, bottom)


def _pillow_pixels(image: Image.Image, content: bytes, scale: int, _exact: bool, _bottom: int) -> Pixels:
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    pixels = np.asarray(to_rgb(image))
    if content:  # of a JPEG: Pillow shows lost pixels as gray
        jpeg.refuse_lost(content)
    return pixels


def _orientation_of(image: Image.Image) -> int:
    """How the stored picture is to be turned: EXIF's 1 (upright) to 8."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata does not spoil the pixels; damaged pixels fail when they load
        return 1
    return value if value in range(1, 9) else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in red, green, blue; not turned.

    What is transparent shows white, as on a page. 16-bit values keep their upper 8 bits; 32-bit whole
    numbers are read as 16-bit ones (that is how Pillow hands on most 16-bit formats); floats of 0 to 1 become
    0 to 255, whatever else the image holds, so that all images of a dataset are read by one rule.

    Raises:
        UnreadablePicture: more than a tenth of the values lie outside of that range.
    """
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image) >> 8)
    if image.mode == "I":
        return _grey(_within(np.asarray(image), 65535).clip(0, 65535) >> 8)
    if image.mode == "F":
        return _grey(_within(np.nan_to_num(np.asarray(image), posinf=0.0, neginf=0.0), 1).clip(0, 1) * 255)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None is only for inPlace
        return converted
    if _see_through(image):
        above = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), above).convert("RGB")
    return image.convert("RGB")


def rgb_conversion(image: Image.Image) -> str:
    """What becomes RGB when an image is read, in words; '' for RGB itself and for what only stores it otherwise.

    Args:
        image: opened; its pixels need not be loaded.
    """
    if _see_through(image):
        return "with an alpha channel (laid over white)"
    if image.mode == "I":
        return f"gray of 16 or 32 bits (0 to 65,535 become 0 to 255; {_ALL_BITS})"
    if image.mode == "F":
        return f"gray of floating-point values (0 to 1 become 0 to 255; {_ALL_BITS})"
    if is_high_bit_depth_image(image):
        kind = "gray" if image.mode.startswith(_DEEP) else "colors"
        return f"{kind} of 16 bits (the upper 8 bits are read; {_ALL_BITS})"
    if image.mode in ("1", "L"):
        return "grey (three equal channels)"
    return "" if image.mode in ("RGB", "RGBX", "P", "YCbCr", "HSV") else image.mode


def _see_through(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _grey(levels: npt.NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _within(values: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    """The values, if nearly all of them lie in 0 to ``most``.

    Raises:
        UnreadablePicture: they do not.
    """
    if ((values < 0) | (values > most)).mean() > _MOST_OUTSIDE:
        raise UnreadableImageError(
            "",
            f"holds values from {values.min():g} to {values.max():g}, but only 0 to {most:,} are read without a range. "
            "Install the extra 'geo', which measures the range of a dataset's TIFFs, or scale all images alike",
        )
    return values


def _content(source: Source) -> bytes | Image.Image | Pixels:
    """The content of a file; a Pillow image or pixels as they are."""
    if isinstance(source, Image.Image | np.ndarray):
        return source
    if isinstance(source, bytes):
        content = source
    elif "#" in str(source) and (record := _RECORD.fullmatch(str(source))):
        return _cifar_record(record["file"], int(record["index"]))
    else:
        content = read_file(source)
    if not content:
        raise UnreadableImageError("", "the file is empty")
    return content


def _cifar_record(path: str, index: int) -> Pixels:
    rows = builtin_datasets.cifar_records(Path(path))
    if index >= len(rows):
        raise UnreadableImageError("", f"is not there: the file has {len(rows)} records")
    planes = rows[index, -builtin_datasets.PIXELS :].reshape(3, _CIFAR_PX, _CIFAR_PX)
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else "the picture"


def _reason(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a picture"
    if isinstance(error, NotRegularFileError):
        return "is not a regular file, but a pipe or a device"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, jpeg.DamagedJpegError):
        return str(error)
    if isinstance(error, ForeignFormatError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "is not an image in a format that is opened here, or its beginning is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large to be safe ({error})"
    if isinstance(error, MemoryError):
        return str(error) or "needs more memory than there is"
    if "truncated" in str(error).lower():
        return f"{_CUT} ({error})"
    return f"is damaged ({type(error).__name__}: {error})"
