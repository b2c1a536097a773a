"""Quick checks of image files. A JPEG counts as complete if its header is readable and its end marker is there."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO, TypeVar

from PIL import UnidentifiedImageError

from efficientnetv2.data import raster_checks
from efficientnetv2.data.image_io import (
    TOO_LARGE,
    fault_of,
    is_high_bit_depth_image,
    max_level,
    rgb_conversion,
    validate_size,
)
from efficientnetv2.data.open_image import (
    IGNORED_WARNINGS,
    MAX_BYTES,
    RAW_DATA,
    ForeignFormatError,
    image_extensions,
    image_in,
    regular_file,
)

# Distance of JPEG's end marker from the end of a file, since some cameras pad; bytes of the end that are hashed; size
# up to which a file is read at once. Ours.
_END_MARKER, _END_BYTES = b"\xff\xd9", 64
_TAIL_BYTES = 1024
_SMALL_BYTES = 65536
# Maximum fraction of missing or unreadable files that is skipped. Ours.
MAX_UNREADABLE = 0.05
# Files per task of a thread, and threads: checks wait for the disk more than for the processor. Ours.
_CHUNK, _THREADS = 256, 8
AHEAD = 32  # where a task first fetches all its files: with 256, the photos of 8 threads take gigabytes. Ours

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class FileProbe:
    """Result of a quick check. An unusable file has a ``reason``."""

    reason: str
    colors: str = ""
    size: int = 0
    tail: int = 0
    brightest: int | None = None


def probe(file: str) -> FileProbe:
    """Check a file. Pillow may warn."""
    try:
        with regular_file(file) as raw:
            size = os.fstat(raw.fileno()).st_size
            stream: IO[bytes] = io.BytesIO(raw.read()) if size <= _SMALL_BYTES else io.BufferedReader(raw)
            found = _probe(stream, size)
        if not (size and raster_checks.is_raster(file) and (found.reason or found.colors)):
            return found
        if not found.reason and (found.brightest is None or not raster_checks.has_gdal()):
            colors = found.colors
            if raster_checks.has_gdal() and raster_checks.raster_content(file):  # a fourth band, for Pillow alpha
                colors = raster_checks.probe_raster(file)[1]
            return replace(found, reason=raster_checks.truncation_fault(file), colors=colors)
        is_certain = found.reason.startswith(TOO_LARGE) or RAW_DATA in found.reason
        if is_certain or not (raster_checks.has_gdal() or raster_checks.needs_gdal(file)):
            return found
        reason, colors = raster_checks.probe_raster(file)
        if found.reason and not reason and not raster_checks.raster_content(file):  # an ordinary image
            reason = raster_checks.damage(file)
        return replace(found, reason=reason, colors=colors, brightest=None)
    except OSError as error:
        return FileProbe(fault_of(error))


def probe_bytes(content: bytes) -> FileProbe:
    """Check the content of a file."""
    return _probe(io.BytesIO(content), len(content))


def fault_of_source(source: object, content: bytes) -> str:
    """Why an image is unusable, or ''. Of a path this can be that only the extra 'geo' reads the raster."""
    reason = probe_bytes(content).reason
    return (reason and isinstance(source, str) and probe(source).reason) or reason


def _probe(stream: IO[bytes], size: int) -> FileProbe:
    if size == 0:
        return FileProbe("is empty (0 bytes)")
    stream.seek(max(0, size - _TAIL_BYTES))
    tail = stream.read()
    stream.seek(0)
    mark = int.from_bytes(hashlib.blake2b(tail, digest_size=8).digest(), "little")
    found = FileProbe("", size=size, tail=mark)
    level = None
    try:
        image = image_in(stream)
        validate_size(*image.size)
        colors, is_deep = rgb_conversion(image), is_high_bit_depth_image(image)
        if image.format == "PNG" and not is_deep:
            image.verify()  # checksums of all chunks
        elif image.format != "JPEG" or _END_MARKER not in tail[-_END_BYTES:]:
            if stream.seek(0, os.SEEK_END) > MAX_BYTES:
                return replace(found, reason=f"has more than {MAX_BYTES // 2**30} GiB")
            stream.seek(0)
            level = max_level(stream.read())
    except Exception as error:  # decoders raise nearly everything on damaged files
        unknown = isinstance(error, UnidentifiedImageError) and not isinstance(error, ForeignFormatError)
        return replace(found, reason="holds text, not an image" if unknown and _is_text(tail) else fault_of(error))
    return replace(found, colors=colors, brightest=level if is_deep else None)


def _is_text(data: bytes) -> bool:
    return not data.translate(None, delete=bytes([9, 10, 13, *range(32, 127), *range(128, 256)]))


def map_chunks(
    function: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    progress: Callable[[int], object] | None = None,
    *,
    threads: int = _THREADS,
    size: int | None = None,
) -> list[Result]:
    """Results of a function that takes ``size`` items at a time, in threads, in the order of the items."""
    size = size or _CHUNK
    image_extensions()  # loads Pillow's plugins once, before the threads would
    done: list[Result] = []
    with IGNORED_WARNINGS, ThreadPoolExecutor(threads) as pool:
        # Not in a variable: where the loop ends early, its end cancels what has not started.
        for results in pool.map(lambda first: function(items[first : first + size]), range(0, len(items), size)):
            done += results
            if progress is not None:
                progress(len(done))
    return done
