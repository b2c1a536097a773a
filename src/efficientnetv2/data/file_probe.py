"""A file at a glance: is it a picture, does it look whole, what would tell it from another?

Nothing is decoded that need not be: a JPEG is believed if its header reads and its end is there, and so is a raster
that Pillow can't open.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO, TypeVar

from PIL import Image, UnidentifiedImageError

from efficientnetv2.data import tiff_tags
from efficientnetv2.data.image_formats import (
    MAX_BYTES,
    ForeignFormatError,
    NotRegularFileError,
    TooLongSideError,
    image_in,
    regular_file,
)
from efficientnetv2.data.image_io import (
    MIN_SIDE,
    UnreadableImageError,
    is_high_bit_depth_image,
    max_level,
    max_pixels,
    rgb_conversion,
)
from efficientnetv2.data.records import image_extensions
from efficientnetv2.data.tiff_tags import cut_short, glance, is_raster, lacks_reader

# All ours: how far from a file's end JPEG's end marker may lie (some cameras pad), and how much of the end is hashed.
_END_MARKER, _END_BYTES = b"\xff\xd9", 64
_TAIL_BYTES = 1024
_SMALL_BYTES = 65536  # up to here a file is read in one go
# The share of files, missing or unreadable, that may be skipped. Ours.
MAX_UNREADABLE = 0.05
_CHUNK = 256  # files a thread takes at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class FileProbe:
    """A file at a glance.

    Args:
        reason: why it cannot be used; '' if it can.
        colours: what becomes RGB when it is read; see ``pictures.not_rgb``.
        size: in bytes.
        tail: a hash of its end.
        brightest: level, 0 to 255, of the largest value, where values of more than 8 bits become levels; else None.
    """

    reason: str
    colours: str = ""
    size: int = 0
    tail: int = 0
    brightest: int | None = None

    @property
    def too_large(self) -> bool:
        """Whether that it has too many pixels is why it cannot be used."""
        return self.reason == _too_large()


def probe(file: str) -> FileProbe:
    """Whether a file is a picture that decodes, as far as a glance shows; Pillow may warn as it looks."""
    try:
        with regular_file(file) as raw:
            size = os.fstat(raw.fileno()).st_size
            stream: IO[bytes] = io.BytesIO(raw.read()) if size <= _SMALL_BYTES else io.BufferedReader(raw)
            seen = _seen(stream, size)
        if not (size and is_raster(file) and (seen.reason or seen.colours)):
            return seen
        if not seen.reason and (seen.brightest is None or not tiff_tags.readable()):
            return replace(seen, reason=cut_short(file))
        if seen.too_large or not (tiff_tags.readable() or lacks_reader(file)):
            return seen
        reason, colours = glance(file)
        return replace(seen, reason=reason, colours=colours, brightest=None)
    except FileNotFoundError:
        return FileProbe("does not exist")
    except NotRegularFileError:
        return FileProbe("is not a regular file, but a pipe or a device")
    except OSError as error:
        return FileProbe(f"may not be read ({(error.strerror or str(error)).lower()})")


def probe_bytes(content: bytes) -> FileProbe:
    """The same of a file's content."""
    return _seen(io.BytesIO(content), len(content))


def max_levels(looks: Sequence[FileProbe]) -> list[int]:
    """The highest levels of those that have one: of usable images of more than 8 bits."""
    return [seen.brightest for seen in looks if seen.brightest is not None and not seen.reason]


def _seen(stream: IO[bytes], size: int) -> FileProbe:
    if size == 0:
        return FileProbe("is empty (0 bytes)")
    stream.seek(max(0, size - _TAIL_BYTES))
    tail = stream.read()
    stream.seek(0)
    mark = int.from_bytes(hashlib.blake2b(tail, digest_size=8).digest(), "little")
    return replace(_glance(stream, tail), size=size, tail=mark)


def _glance(stream: IO[bytes], tail: bytes) -> FileProbe:
    """Why a file cannot be used, and which colours it has; without its size and end."""
    level = None
    try:
        picture = image_in(stream)
        width, height = picture.size
        if min(width, height) < MIN_SIDE:
            return FileProbe(f"is too small: {width}×{height} px")
        colours, deep = rgb_conversion(picture), is_high_bit_depth_image(picture)
        if picture.format == "PNG" and not deep:
            picture.verify()  # the sums of its chunks, up to its last one
        elif picture.format != "JPEG" or _END_MARKER not in tail[-_END_BYTES:]:
            if stream.seek(0, os.SEEK_END) > MAX_BYTES:
                return FileProbe(f"has more than {MAX_BYTES // 2**30} GiB")
            stream.seek(0)
            level = max_level(stream.read())
    except TooLongSideError as error:
        return FileProbe(f"is too large to be safe ({error})")
    except Image.DecompressionBombError:
        return FileProbe(_too_large())
    except ForeignFormatError as error:
        return FileProbe(str(error))
    except UnidentifiedImageError:
        return FileProbe(
            "holds text, not a picture" if _is_text(tail) else "is no picture that Pillow can read"
        )
    except UnreadableImageError as error:
        return FileProbe("is cut short (truncated)" if error.is_cut else error.reason)
    except Exception as error:  # a decoder meeting broken data raises all kinds
        cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
        words = str(error) or type(error).__name__
        return FileProbe("is cut short (truncated)" if cut else f"cannot be decoded ({words})")
    return FileProbe("", colours, brightest=level if deep else None)


def _too_large() -> str:
    return f"has more than {max_pixels() // 1_000_000} million pixels (a decompression bomb?)"


def _is_text(data: bytes) -> bool:
    return not data.translate(None, delete=bytes([9, 10, 13, *range(32, 127), *range(128, 256)]))


def map_chunks(
    work: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    workers: int,
    progress: Callable[[int], object] | None = None,
) -> list[Result]:
    """``work`` of the items, a few hundred at a time, in threads; the results in their order.

    Args:
        work: a few items -> a result for each.
        items: all of them.
        workers: threads.
        progress: called with the number of items done so far.
    """
    image_extensions()  # loads Pillow's plugins once, before the threads would
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # around the threads, since filters belong to the process
        chunks = pool.map(lambda first: work(items[first : first + _CHUNK]), range(0, len(items), _CHUNK))
        done: list[Result] = []
        for results in chunks:
            done += results
            if progress is not None:
                progress(len(done))
        return done
