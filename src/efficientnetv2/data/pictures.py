"""Open anything Pillow opens, as upright RGB; or say in words why not."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.preprocessing import RGB
from efficientnetv2.data import cifar, jpeg

Pixels = npt.NDArray[np.uint8]

# A path, the bytes of a file, a record of a CIFAR file ("data_batch_1.bin#17"), a Pillow image, or decoded pixels:
# (height, width, channels), upright; red, green and blue, or bands of a raster as ``data.rasters`` reads them.
Source = str | Path | bytes | Image.Image | Pixels

#: The shorter side that a picture needs, in pixels. Ours.
LEAST_PX = 2
_CIFAR_PX = 32
_DEEP = ("I", "F")  # how the modes of 16 and 32 bits begin
# Formats that can be decoded at a smaller scale, and so must not be loaded before that is chosen.
_SCALABLE = ("JPEG", "MPO")
_RECORD = re.compile(r"(?P<file>.+\.bin)#(?P<index>\d+)")


class UnreadablePicture(Exception):  # noqa: N818 - it names what it is about, and is caught per picture
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


@dataclass(frozen=True)
class Stored:
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
def stored(source: Source) -> Iterator[Stored]:
    """The picture with its header read, its pixels not yet.

    Everything that fails within the block, decoding included, comes out as ``UnreadablePicture``.

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
                Stored(content.shape[1], content.shape[0], 1, (1,), lambda _scale, _exact, _bottom: content)
            )
        elif isinstance(content, bytes) and (found := jpeg.header(content)) is not None:
            pixels = partial(_jpeg_pixels, content, found)
            yield _checked(Stored(found.width, found.height, found.orientation, jpeg.scales(found), pixels))
        else:
            with _quietly():
                image = (
                    content.copy() if isinstance(content, Image.Image) else Image.open(io.BytesIO(content))
                )
                orientation, scalable = _orientation_of(image), image.format in _SCALABLE
                scales = jpeg.SCALES if scalable else (1,)
                yield _checked(Stored(*image.size, orientation, scales, partial(_pillow_pixels, image)))
    except UnreadablePicture as error:
        raise UnreadablePicture(_name(source), error.reason) from error
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise UnreadablePicture(_name(source), _reason(error)) from error


def size_of(source: Source) -> tuple[int, int]:
    """Width and height before any turning upright; of a file no more than the header is read.

    Raises:
        UnreadablePicture: with the reason in words.
    """
    if isinstance(source, str | Path) and not _RECORD.fullmatch(str(source)):
        try:
            with _quietly(), Image.open(source) as image:
                return image.size
        except Exception as error:  # as in ``stored``
            raise UnreadablePicture(_name(source), _reason(error)) from error
    with stored(source) as picture:
        return picture.width, picture.height


def most_pixels() -> int:
    """Of how many pixels a picture is taken for an attack: Pillow's limit."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)


def is_deep(source: Source) -> bool:
    """Whether a picture stores values of more than 8 bits, as far as its header says; not what can't be read.

    Pillow knows such ones of one channel alone; of colours it hands on 8 bits.
    """
    if isinstance(source, np.ndarray) or (isinstance(source, str | Path) and _RECORD.fullmatch(str(source))):
        return False
    try:
        with _quietly():
            if isinstance(source, Image.Image):
                return source.mode.startswith(_DEEP)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return image.mode.startswith(_DEEP)
    except Exception:  # as in ``stored``: whoever reads it will say
        return False


def first_three(pixels: Pixels) -> Pixels:
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


def _checked(picture: Stored) -> Stored:
    if min(picture.width, picture.height) < LEAST_PX:
        size = f"{picture.width} x {picture.height} px"
        raise UnreadablePicture("", f"is {size}; at least 2 x 2 are needed")
    return picture


def _jpeg_pixels(content: bytes, found: jpeg.Header, scale: int, exact: bool, bottom: int) -> Pixels:
    pixels = jpeg.decode(content, found, scale, exact=exact, bottom=bottom)
    if pixels is not None:
        return pixels
    with _quietly(), Image.open(io.BytesIO(content)) as image:
        return _pillow_pixels(image, scale, exact, bottom)


def _pillow_pixels(image: Image.Image, scale: int, _exact: bool, _bottom: int) -> Pixels:
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    return np.asarray(to_rgb(image))


def _orientation_of(image: Image.Image) -> int:
    """How the stored picture is to be turned: EXIF's 1 (upright) to 8.

    Pictures that cannot be decoded at a smaller scale are loaded for it. TIFF pictures turn themselves
    in that and are upright afterwards; of a PNG the metadata may stand behind the pixels.

    Raises:
        Exception: the pixels are damaged.
    """
    if image.format not in _SCALABLE:
        # Outside the try: getexif would load a PNG too, and after a swallowed failure it counts as
        # loaded, all black.
        image.load()
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata does not spoil the pixels; damaged pixels fail when they load
        return 1
    return value if value in range(1, 9) else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in red, green, blue; not turned.

    What is transparent shows white, as on a page. 16-bit values keep their upper 8 bits; 32-bit whole
    numbers are read as 16-bit ones (that is how Pillow hands on most 16-bit formats); floats are taken
    as 0..1 if nothing lies above 1, else as 0..255, else as 0..65535.
    """
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image) >> 8)
    if image.mode == "I":
        return _grey(np.asarray(image).clip(0, 65535) >> 8)
    if image.mode == "F":
        return _grey(_float_levels(np.asarray(image)))
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None is only for inPlace
        return converted
    if _see_through(image):
        above = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), above).convert("RGB")
    return image.convert("RGB")


def not_rgb(image: Image.Image) -> str:
    """What becomes RGB when an image is read, in words; '' for RGB itself and for what only stores it otherwise.

    Args:
        image: opened; its pixels need not be loaded.
    """
    if _see_through(image):
        return "with an alpha channel (laid over white)"
    if image.mode == "I" or image.mode.startswith("I;16"):
        return "grey of 16 bits (the upper 8 of them in three equal channels; of TIFFs the extra 'geo' reads all)"
    if image.mode in ("1", "L", "F"):
        return "grey (three equal channels)"
    return "" if image.mode in ("RGB", "RGBX", "P", "YCbCr", "HSV") else image.mode


def _see_through(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _grey(levels: npt.NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _float_levels(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    largest = finite.max()
    scale = 255.0 if largest <= 1 else 1.0 if largest <= 255 else 1 / 256
    levels: npt.NDArray[np.float32] = (finite * np.float32(scale)).clip(0, 255)
    return levels


def _content(source: Source) -> bytes | Image.Image | Pixels:
    """The content of a file; a Pillow image or pixels as they are."""
    if isinstance(source, Image.Image | np.ndarray):
        return source
    if isinstance(source, bytes):
        content = source
    elif "#" in str(source) and (record := _RECORD.fullmatch(str(source))):
        return _cifar_record(record["file"], int(record["index"]))
    else:
        with open(source, "rb") as file:
            content = file.read()
    if not content:
        raise UnreadablePicture("", "the file is empty")
    return content


def _cifar_record(path: str, index: int) -> Pixels:
    rows = cifar.records(Path(path))
    if index >= len(rows):
        raise UnreadablePicture("", f"is not there: the file has {len(rows)} records")
    planes = rows[index, -cifar.PIXELS :].reshape(3, _CIFAR_PX, _CIFAR_PX)
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
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, UnidentifiedImageError):
        return "is not a picture in a format that Pillow knows, or its beginning is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large to be safe ({error})"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if "truncated" in str(error).lower():
        return f"is cut off before its end ({error})"
    return f"is damaged ({type(error).__name__}: {error})"
