"""Fill a cache of decoded images, in memory for one run or on disk for others. Its file is in ``cache_reader``."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock, Timeout

from efficientnetv2.data.cache_reader import (
    PIXELS_OFFSET,
    VERSION,
    CachedImageReader,
    CacheIndex,
    InvalidCacheError,
    is_cache,
)
from efficientnetv2.data.decode import ASPECT, load_resized_image
from efficientnetv2.data.file_probe import map_chunks
from efficientnetv2.data.image_io import MIN_SIDE, Pixels, UnreadableImageError, image_size
from efficientnetv2.data.readers import Reader
from efficientnetv2.data.records import Ints
from efficientnetv2.preprocessing import RGB, CropMode
from efficientnetv2.utils.errors import InputError, format_bytes
from efficientnetv2.utils.io import UNUSED_DAYS, is_unused, remove_partial, write_atomically
from efficientnetv2.utils.logs import progress, silenced

_logger = logging.getLogger(__name__)

_GRID = 401  # points each way for the quantile of crop sizes. Ours.
# Images per task of a thread, for headers and for decoding. Larger tasks need fewer remote requests and more memory.
# Ours.
_HEADERS, _IMAGES = 64, 16
# Bytes of the index: offset and size of an image, and the rest.
_INDEX_BYTES_EACH, _INDEX_BYTES = 16, 4096
_SPARE_BYTES = 2**30  # disk space that the run itself needs. Ours.
_LESS = "keep less detail by `cache_resolution=0.25`"

Side = Literal["shorter", "mean", "longer"]
_SIDES: dict[CropMode, Side] = {"squash": "shorter", "center": "mean", "border": "longer"}


@dataclass(frozen=True)
class CacheSpec:
    """Size of cached images: minimum length ``px`` of their ``side`` (``mean``: root of the area); none is enlarged."""

    px: int
    side: Side

    @classmethod
    def enough(cls, *, image_size: int, crop_mode: CropMode, area_min: float, detail: float) -> CacheSpec:
        """The size from which a fraction ``detail``, in (0, 1], of the random crops has all the pixels that it needs.

        Exact for square images and the crop mode ``squash``. ``image_size`` is the largest size of a resized crop.
        """
        area = np.linspace(area_min, 1, _GRID)[:, None]
        aspect = np.exp(np.linspace(math.log(ASPECT[0]), math.log(ASPECT[1]), _GRID))
        flat = np.minimum(aspect, 1 / aspect)
        fits = area <= flat
        shorter_side = np.sqrt(area * flat)[fits]  # of the crop, relative to the image
        # Where no shape fits, draw_crop falls back to the whole image.
        part = float(np.quantile(shorter_side, 1 - detail)) if fits.any() else 1.0
        return cls(math.ceil(image_size / part - 1e-9), _SIDES[crop_mode])

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Cached width and height of an image."""
        lengths = {"shorter": min(width, height), "longer": max(width, height)}
        scale = min(1.0, self.px / lengths.get(self.side, math.sqrt(width * height)))
        small = [max(min(MIN_SIDE, side), math.ceil(side * scale - 1e-9)) for side in (width, height)]
        return small[0], small[1]


@dataclass(frozen=True)
class CacheJob:
    """``count`` images of a reader to cache with this size, decoded by ``threads``."""

    reader: Reader
    count: int
    spec: CacheSpec
    threads: int

    def digest(self) -> str:
        """32 hexadecimal digits of the images and their size: other files give other digits."""
        digest = hashlib.blake2b(f"{VERSION} {self.spec.px} {self.spec.side}".encode(), digest_size=16)
        for sample, stamp in enumerate(self.reader.stamps(range(self.count))):
            digest.update(f"\0{self.reader.name(sample)}\0{stamp}".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def require_room(self, pixel_bytes: int, room: int, where: str, fix: str) -> None:
        """Raise InputError if ``pixel_bytes`` and the index take more than ``room`` bytes."""
        needed = pixel_bytes + _INDEX_BYTES_EACH * self.count + _INDEX_BYTES
        if needed > room:
            raise InputError(
                f"{where}: {self.count:,} images, kept decoded with their {self.spec.side} side up to {self.spec.px} "
                f"px, need {format_bytes(needed)}, but {format_bytes(room)} are free for it. {fix}, or {_LESS}."
            )


@dataclass(frozen=True)
class CacheFile:
    """A complete cache, made now or ``reused``. ``holder`` keeps the file's memory alive; its readers hold it."""

    path: Path
    digest: str
    bytes: int
    reused: bool
    holder: object = None

    def reader(self, rows: Ints, originals: Reader) -> CachedImageReader:
        """Reader of samples that are these rows of the job. ``originals`` names the samples."""
        return CachedImageReader(self.path, self.digest, rows, originals, self.holder)


def cache_in_memory(job: CacheJob, *, room_bytes: int) -> CacheFile:
    """Cache images in memory that worker processes share, until this process ends. Raises InputError."""
    job.require_room(_pixel_bytes(job), room_bytes, "`cache=ram`", "Set `cache=disk`")
    holder: object
    if hasattr(os, "memfd_create"):
        # The file has no name and no limit but the memory's, unlike /dev/shm in a container.
        handle = os.memfd_create("effnetv2-images")
        path, holder = Path(f"/proc/{os.getpid()}/fd/{handle}"), _Open(handle)
    else:  # a temporary file, which the system keeps in memory while there is room
        folder = tempfile.TemporaryDirectory(prefix="effnetv2-cache-", ignore_cleanup_errors=True)
        path, holder = Path(folder.name) / "images.bin", folder
    digest = job.digest()
    _write_cache(path, job, digest)
    return CacheFile(path, digest, path.stat().st_size, reused=False, holder=holder)


class _Open:
    """An open file, closed with its last reader."""

    def __init__(self, handle: int) -> None:
        weakref.finalize(self, os.close, handle)


def cache_on_disk(folder: Path, job: CacheJob) -> CacheFile:
    """Cache images in a folder of their own, or reuse its complete cache. Raises InputError without room or access."""
    file = folder / "images.bin"
    fix = "Name another place with EFFNETV2_CACHE=FOLDER"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            digest = job.digest()
            if reused := _is_valid(file, digest, job):
                os.utime(file)  # used today: see remove_unused_caches
            else:
                file.unlink(missing_ok=True)
                remove_partial(folder)
                remove_unused_caches(folder.parent)
                needed = _pixel_bytes(job)
                free = max(0, shutil.disk_usage(folder).free - _SPARE_BYTES)
                job.require_room(needed, free, f"`cache=disk`: {folder}", fix)
                write_atomically(file, lambda partial: _write_cache(partial, job, digest))
            return CacheFile(file, digest, file.stat().st_size, reused)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"`cache=disk`: {folder} can't be written ({reason}). {fix}, or {_LESS}.") from error


def is_cached(folder: Path, job: CacheJob) -> bool:
    """Whether ``cache_on_disk`` would reuse the cache of a folder."""
    with silenced():
        return _is_valid(folder / "images.bin", job.digest(), job)


def remove_unused_caches(caches: Path) -> None:
    """Remove the caches of a folder that no run has used for 30 days, unless one is in use now."""
    for file in [*caches.glob("*/images.bin"), *caches.glob("*/.images.bin.*.partial")]:  # of a killed run
        if not is_unused(file):
            continue
        with suppress(Timeout, OSError):
            if file.suffix != ".partial" and not is_cache(file):  # another program's file of this name
                continue
            with FileLock(file.parent / "lock", timeout=0):
                if not is_unused(file):  # still, after waiting for the lock
                    continue
                file.unlink()
                remove_partial(file.parent)
                (file.parent / "lock").unlink(missing_ok=True)
                file.parent.rmdir()
                _logger.info(f"Removed the cache {file.parent}, not used for {UNUSED_DAYS} days.")


def _write_cache(path: Path, job: CacheJob, digest: str) -> None:
    """Decode every image and write the cache file. Its index lists the unreadable ones. Raises OSError."""
    starts, sizes = np.zeros(job.count, np.int64), np.zeros((job.count, 2), np.int32)
    reasons: dict[int, str] = {}
    channels, end, lock = RGB, PIXELS_OFFSET, threading.Lock()
    path.touch()
    with path.open("r+b") as file, progress("filling the cache", job.count) as counted:

        def write_chunk(rows: Sequence[int]) -> list[int]:
            nonlocal channels, end
            reader = job.reader.ahead(rows)
            for row in rows:
                image = _decode(reader, row, job.spec)
                if isinstance(image, str):
                    reasons[row] = image
                    continue
                with lock:
                    file.write(image.data)
                    starts[row], end = end, end + image.nbytes
                    sizes[row], channels = image.shape[:2], image.shape[2]
            return list(rows)

        file.seek(end)
        map_chunks(write_chunk, range(job.count), counted, threads=job.threads, size=_IMAGES)
        file.truncate(end)  # there may be no readable image
        CacheIndex(digest, starts, sizes, reasons, channels).write(file)


def _pixel_bytes(job: CacheJob) -> int:
    """Bytes of the cache file without its index, from the headers of the images."""

    def measure(rows: Sequence[int]) -> list[int]:
        reader = job.reader.ahead(rows)
        return [_image_bytes(reader, row, job.spec) for row in rows]

    with progress("measuring images", job.count) as counted:
        lengths = map_chunks(measure, range(job.count), counted, threads=job.threads, size=_HEADERS)
    return PIXELS_OFFSET + sum(lengths)


def _image_bytes(reader: Reader, row: int, spec: CacheSpec) -> int:
    try:
        source = reader.source(row)
        width, height = spec.size(*image_size(source))
    except UnreadableImageError:
        return 0
    return width * height * (source.shape[2] if isinstance(source, np.ndarray) else RGB)


def _decode(reader: Reader, row: int, spec: CacheSpec) -> Pixels | str:
    """The cached pixels of an image, or why it is unreadable."""
    try:
        return load_resized_image(reader.source(row), spec.size)
    except UnreadableImageError as error:
        return error.reason


def _is_valid(file: Path, digest: str, job: CacheJob) -> bool:
    """Whether a cache is complete and of these images, also those that were unreadable. Otherwise logs the reason."""
    fault = ""
    try:
        with file.open("rb") as opened:
            index = CacheIndex.read(opened)
        if index.digest != digest:
            fault = "holds other images"
        elif any(not isinstance(_decode(job.reader, row, job.spec), str) for row in index.reasons):
            fault = "lacks images that are readable now"
    except FileNotFoundError:
        return False
    except InvalidCacheError as error:
        fault = str(error)
    if fault:
        _logger.info(f"The cache {file} {fault}: filling it again.")
    return not fault


def _locked(file: Path) -> AbstractContextManager[object]:
    """A held lock, for a ``with`` block: one process at a time. The system releases the lock of a killed one."""
    lock = FileLock(file)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        _logger.info(f"Another run is filling the cache {file.parent}: waiting for it.")
        return lock.acquire()
