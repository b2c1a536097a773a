"""Open image files safely: a fixed list of formats, only regular files, limited sizes and texts."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO

from PIL import Image, PngImagePlugin, UnidentifiedImageError

# Pillow's default of 1 MiB refuses photos with a large color profile, and images with the workflow that made them.
PngImagePlugin.MAX_TEXT_CHUNK = 2**24

#: Supported formats of Pillow, whatever the name of a file. Missing are those that start other programs (EPS), need
#: other decoders, or unpack without a limit. TGA is last, since it has no signature. Ours.
FORMATS = (
    "JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF", "ICO", "DDS", "PCX", "PSD",
    "QOI", "SGI", "SUN", "TGA",
)  # fmt: skip
#: Longest side of an image, in pixels. Source: the JPEG format's largest, ITU-T T.81, table B.2.
MAX_SIDE = 65_535
#: Maximum size of a file: more than an uncompressed 8-bit image of ``max_pixels``. Ours.
MAX_BYTES = 2**31
# Without O_NONBLOCK, which Windows lacks, opening a pipe waits for its writer. For files it changes nothing.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)

# First bytes of other formats, their name and a fix. Source: the formats' specifications, and the tests of file(1).
_CONVERT, RAW_DATA = "convert it to JPEG first", "raw data of a camera"
_FOREIGN = (
    (rb".{4}ftyp(heic|heix|heim|heis|hevc|hevm|hevs|mif1|msf1)", "HEIC, as iPhones store images", _CONVERT),
    (rb".{4}ftypavif", "AVIF that cannot be decoded here", _CONVERT),
    (rb".{4}ftypcrx |FUJIFILMCCD-RAW|II(U\0|RO|RS)|MMOR|FOVb|.{6}HEAPCCDR", RAW_DATA, _CONVERT),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL", _CONVERT),
    (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", "a video", "leave it out"),
    (rb"%PDF-", "PDF", _CONVERT),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", _CONVERT),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf\x27\x1c|Rar!", "an archive", "unpack it"),
    (rb"\x93NUMPY|\x89HDF|.{128}DICM|SIMPLE  =", "scientific or medical data", _CONVERT),
    (rb"\s*(<!doctype html|<html)", "a web page (HTML)", "download the image again"),
    (rb"\s*(<\?xml[^>]*>\s*)?<svg", "SVG", _CONVERT),
    (rb"version https://git-lfs", "a pointer of Git LFS", "fetch the image with git lfs pull"),
)
_FOREIGN_BYTES = 256
# Tags of a TIFF whose first image is a preview that holds others: DNG, NEF, ARW. Source: the DNG specification.
_SUBFILE, _SUB_IFDS = 254, 330


class ForeignFormatError(UnidentifiedImageError):
    """A file in a known format that is not supported. The message names it and a fix."""


class CameraRawError(ForeignFormatError):
    """Raw data of a camera, whose preview Pillow and GDAL would read."""


class NotRegularFileError(OSError):
    """A pipe or a device, which may never end, instead of a file."""


def max_pixels() -> int:
    """Number of pixels from which an image may be an attack: Pillow's limit."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)


class _IgnoredWarnings:
    """Ignores warnings until the last of the threads that are within the context has left it."""

    def __init__(self) -> None:
        self._lock, self._num_threads, self._filters = threading.Lock(), 0, ExitStack()
        if hasattr(os, "register_at_fork"):  # a child would inherit the lock, but not the thread that releases it
            os.register_at_fork(
                before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._lock.release
            )

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_threads:
                self._filters.enter_context(warnings.catch_warnings(action="ignore"))
            self._num_threads += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_threads -= 1
            if not self._num_threads:
                self._filters.close()


#: A context without warnings. Filters belong to the process: if several threads set them by `warnings.catch_warnings`,
#: those of one thread stay behind.
IGNORED_WARNINGS = _IgnoredWarnings()


@lru_cache(maxsize=1)
def image_extensions() -> frozenset[str]:
    """Lower-case extensions, with their dot, of supported formats. Loads Pillow's plugins."""
    known = (*FORMATS, "MPO")  # a JPEG of several views; the first one is read
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder that exists; a circular link is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_image(name: str) -> bool:
    """Whether the extension of a file name is that of a supported format."""
    return os.path.splitext(name)[1].lower() in image_extensions()


@lru_cache(maxsize=1)
def _known() -> tuple[str, ...]:
    """``FORMATS`` that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def regular_file(path: str | Path) -> io.FileIO:
    """Open a regular file for unbuffered reading. Raises OSError; NotRegularFileError for a pipe or device."""
    descriptor = os.open(path, _FLAGS)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return io.FileIO(descriptor)
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise NotRegularFileError(errno.EINVAL, "Not a regular file", str(path))


def read_file(path: str | Path) -> bytes:
    """Content of a regular file, up to its current size. Raises as ``regular_file``, and OSError above 2 GiB."""
    with io.BufferedReader(regular_file(path)) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise OSError(errno.EFBIG, f"File of {size / 2**30:.1f} GiB, more than 2", str(path))
        return file.read(size)


def image_in(file: IO[bytes]) -> Image.Image:
    """Read the header of an image at the file's position. Raises ForeignFormatError, and whatever Pillow raises."""
    start = file.tell()
    try:
        image = Image.open(file, formats=_known())
    except UnidentifiedImageError:
        file.seek(start)
        beginning = file.read(_FOREIGN_BYTES)
        for pattern, what, fix in _FOREIGN:
            if re.match(pattern, beginning, re.DOTALL | re.IGNORECASE):
                fault = f"is not an image in a supported format, but {what}: {fix}"
                raise ForeignFormatError(fault) from None
        raise
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if isinstance(subfile := tags.get(_SUBFILE), int) and subfile & 1 and _SUB_IFDS in tags:
        raise CameraRawError(f"is not an image in a supported format, but {RAW_DATA}: {_CONVERT}")
    if max(image.size) > MAX_SIDE:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} px; a side may have {MAX_SIDE}")
    return image


@contextmanager
def open_image(source: str | Path | bytes) -> Iterator[Image.Image]:
    """Read the header of an image, given its path or content. Raises as ``image_in`` and ``regular_file``."""
    with (
        io.BytesIO(source) if isinstance(source, bytes) else io.BufferedReader(regular_file(source)) as file,
        image_in(file) as image,
    ):
        yield image
