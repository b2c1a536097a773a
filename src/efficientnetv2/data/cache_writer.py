"""Where a cache lies: in memory for one run, or on disk for later ones too; and whether there is room for it.

On disk it is filled beside its place, under a lock, and moved there when it is whole: a killed fill leaves nothing
that could be taken for a cache, and two runs that want the same one fill it once.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import tempfile
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock, Timeout

from efficientnetv2.data.decode import load_resized_image
from efficientnetv2.data.image_cache import (
    PIXELS_AT,
    CachedImageReader,
    CacheIndex,
    CacheSpec,
    InvalidCacheError,
    cache_digest,
)
from efficientnetv2.data.image_io import Pixels, UnreadableImageError, image_size
from efficientnetv2.data.readers import Reader
from efficientnetv2.data.records import Ints
from efficientnetv2.preprocessing import RGB
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import UNUSED_DAYS, is_unused, remove_partial, write_atomically
from efficientnetv2.utils.logs import silenced
from efficientnetv2.utils.progress import progress

_logger = logging.getLogger(__name__)

# All ours: how many pieces of work each thread is given ahead, so that none waits; the pictures of a piece, when their
# headers are read and when they are decoded: more are handed over, and fetched from far away, at less cost, but take
# more memory.
_AHEAD, _HEADERS, _PICTURES = 2, 64, 8
# Of the index: place and size of a picture, and the rest.
_INDEX_BYTES_EACH, _INDEX_BYTES = 16, 4096

Result = TypeVar("Result")


@dataclass(frozen=True)
class CacheJob:
    """What is to be kept, and who looks on.

    Args:
        reader: of the originals.
        count: how many there are.
        kept: at what size.
        threads: that decode.
    """

    reader: Reader
    count: int
    kept: CacheSpec
    threads: int


def image_offsets(order: CacheJob) -> Ints:
    """Where the pixels of each picture will stand, from their headers alone.

    Args:
        order: what to keep.

    Returns:
        (N + 1,) bytes from the file's beginning: where each begins, and the last ends.
    """
    lengths: list[int] = []
    with (
        progress("measuring pictures", order.count) as counted,
        _working(_bytes_kept, order, _HEADERS) as pieces,
    ):
        for several in pieces:
            lengths += several
            counted(len(lengths))
    return PIXELS_AT + np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _bytes_kept(reader: Reader, row: int, kept: CacheSpec) -> int:
    """How many a picture will take; none, if it can't be read."""
    try:
        source = reader.source(row)
        width, height = kept.size(*image_size(source))
    except UnreadableImageError:
        return 0
    return width * height * (source.shape[2] if isinstance(source, np.ndarray) else RGB)


def total_bytes(places: Ints) -> int:
    """Bytes of the whole file, from what ``image_offsets`` gave."""
    return int(places[-1]) + _INDEX_BYTES_EACH * (len(places) - 1) + _INDEX_BYTES


def write_cache(path: Path, order: CacheJob, places: Ints, content: str) -> None:
    """Decode every picture and write the file; those that can't be read are told in its index.

    Args:
        path: of the file.
        order: what to keep.
        places: as ``image_offsets`` gave them.
        content: see ``cache.content_of``.

    Raises:
        OSError: the disk is full or read-only.
    """
    sizes = np.zeros((order.count, 2), np.int32)
    offsets, end = places[:-1].copy(), int(places[-1])
    reasons: dict[int, str] = {}
    channels = RGB
    path.touch()
    with (
        path.open("r+b") as file,
        progress("filling the cache", order.count) as counted,
        _working(_decoded, order, _PICTURES) as decoded,
    ):
        for row, picture in enumerate(itertools.chain.from_iterable(decoded)):
            if isinstance(picture, str):
                reasons[row] = picture
            else:
                if picture.nbytes > places[row + 1] - places[row]:  # its header said less, or has changed
                    offsets[row], end = end, end + picture.nbytes
                sizes[row], channels = picture.shape[:2], picture.shape[2]
                file.seek(int(offsets[row]))
                file.write(picture.data)
            if (row + 1) % _PICTURES == 0 or row + 1 == order.count:
                counted(row + 1)
        file.truncate(end)  # the last pictures may be such as could not be read
        CacheIndex(content, offsets, sizes, reasons, channels).write(file)


def any_readable(order: CacheJob, rows: Sequence[int]) -> bool:
    """Whether any of these can be decoded now, as ``write_cache`` would; it looks no further than the first.

    Args:
        order: what to keep.
        rows: pictures of it, by number.

    Raises:
        InputError: a store of another machine does not answer.
    """
    return any(not isinstance(_decoded(order.reader, row, order.kept), str) for row in rows)


def _decoded(reader: Reader, row: int, kept: CacheSpec) -> Pixels | str:
    """A picture as it is kept, or why it can't be."""
    try:
        return load_resized_image(reader.source(row), kept.size)
    except UnreadableImageError as error:
        return error.reason


@contextmanager
def _working(
    work: Callable[[Reader, int, CacheSpec], Result], order: CacheJob, pictures: int
) -> Iterator[Iterator[list[Result]]]:
    """``work`` of each picture, in order, in pieces done by threads a little ahead; leaving the block stops them."""

    def piece(first: int) -> list[Result]:
        rows = range(first, min(first + pictures, order.count))
        reader = order.reader.ahead(rows)
        return [work(reader, row, order.kept) for row in rows]

    pieces = _results(piece, range(0, order.count, pictures), order.threads)
    with warnings.catch_warnings(), closing(pieces):
        # Around the threads, because filters belong to the process: within, each opener sets its own aside.
        warnings.simplefilter("ignore")
        yield pieces


def _results(work: Callable[[int], Result], items: range, threads: int) -> Generator[Result, None, None]:
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_SPARE_BYTES = 2**30  # what the run itself needs of the disk; ours


@dataclass(frozen=True)
class CacheFile:
    """A cache that can be read.

    Args:
        path: of its file.
        content: see ``cache.content_of``.
        bytes: of the file.
        reused: it was there already.
        holder: has to live as long as its readers: the memory that the file lies in.
    """

    path: Path
    content: str
    bytes: int
    reused: bool
    holder: object = None

    def reader(self, rows: Ints, originals: Reader) -> CachedImageReader:
        """Of samples that are these rows of the order; ``originals`` knows the samples by their number."""
        return CachedImageReader(self.path, self.content, rows, originals, self.holder)


def cache_in_memory(order: CacheJob, *, room_bytes: int) -> CacheFile:
    """Keep pictures in memory that worker processes share, and that is gone with this process.

    Args:
        order: what to keep.
        room_bytes: most that it may take.

    Raises:
        InputError: it would take more.
    """
    places = image_offsets(order)
    if total_bytes(places) > room_bytes:
        raise InputError(
            f"--cache ram: {_what(order)} need {format_bytes(total_bytes(places))}, but of the free memory only "
            f"{format_bytes(room_bytes)} can be spared for it. Use --cache disk, or {_LESS}."
        )
    path, holder = _memory_file()
    content = cache_digest(order.reader, order.count, order.kept)
    write_cache(path, order, places, content)
    return CacheFile(path, content, path.stat().st_size, reused=False, holder=holder)


def cache_on_disk(folder: Path, order: CacheJob) -> CacheFile:
    """The cache in a folder: as it is there if it is whole and of these pictures, with all that can be read; else anew.

    Args:
        folder: of this cache alone; made if need be.
        order: what to keep.

    Raises:
        InputError: the disk has no room for it, or the folder can't be written.
    """
    file = folder / "pictures.bin"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / "lock"):
            content = cache_digest(order.reader, order.count, order.kept)
            if reused := _there(file, content, order):
                os.utime(file)  # used today: see remove_unused
            else:
                file.unlink(missing_ok=True)
                remove_partial(folder)
                remove_unused_caches(folder.parent)
                places = image_offsets(order)
                _refuse_without_room(folder, order, total_bytes(places))
                write_atomically(file, lambda partial: write_cache(partial, order, places, content))
            return CacheFile(file, content, file.stat().st_size, reused)
    except OSError as error:
        raise InputError(
            f"--cache disk: {folder} can't be written ({(error.strerror or str(error)).lower()}). Name another place "
            f"with EFFNETV2_CACHE=FOLDER, or {_LESS}."
        ) from error


def is_cached(folder: Path, order: CacheJob) -> bool:
    """Whether ``cache_on_disk`` would find the cache in its folder, whole and of these pictures."""
    content = cache_digest(order.reader, order.count, order.kept)
    with silenced():
        return _there(folder / "pictures.bin", content, order)


def remove_unused_caches(caches: Path) -> None:
    """Remove the caches of a folder that no run has used for 30 days, but those that one is at now."""
    for file in caches.glob("*/pictures.bin"):
        if not is_unused(file):
            continue
        with suppress(Timeout, OSError), FileLock(file.parent / "lock", timeout=0):
            if is_unused(file):  # still: whoever had the lock may have used it
                shutil.rmtree(file.parent, ignore_errors=True)
                _logger.info(
                    f"Removed the cache {file.parent}, which no run has used for {UNUSED_DAYS} days."
                )


def format_bytes(count: int) -> str:
    """Bytes as people say them: ``1.2 GiB``, ``340 MiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(1, round(count / 2**20))} MiB"


def _there(file: Path, content: str, order: CacheJob) -> bool:
    """Whether this cache is in its place; if there is another, why it will not do is said.

    What could not be read when it was filled is asked for again: a mount that failed for a moment leaves the files as
    they are, and so the content, and would be kept for a damage of theirs for good.
    """
    try:
        with file.open("rb") as opened:
            index = CacheIndex.read(opened)
    except FileNotFoundError:
        return False
    except InvalidCacheError as error:
        _logger.info(f"The cache {file} {error}: filling it anew.")
        return False
    if index.content != content:
        _logger.info(f"The pictures are not those in the cache {file} any more: filling it anew.")
        return False
    if any_readable(order, list(index.reasons)):
        _logger.info(
            f"Pictures that could not be read when the cache {file} was filled can be now: filling it anew."
        )
        return False
    return True


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock of a killed one."""
    alone = FileLock(lock)
    try:
        alone.acquire(timeout=0)
    except Timeout:
        _logger.info(f"Another run is filling the cache {lock.parent}: waiting for it.")
        alone.acquire()
    try:
        yield
    finally:
        alone.release()


def _refuse_without_room(folder: Path, order: CacheJob, needed: int) -> None:
    free = shutil.disk_usage(folder).free - _SPARE_BYTES
    if needed > free:
        raise InputError(
            f"--cache disk: {_what(order)} need {format_bytes(needed)}, but {folder} has "
            f"{format_bytes(max(0, free))} free ({format_bytes(_SPARE_BYTES)} left aside for the run). Make room, "
            f"name another disk with EFFNETV2_CACHE=FOLDER, or {_LESS}."
        )


_LESS = "keep less detail (--set cache_detail=0.25), or leave --cache out"


def _what(order: CacheJob) -> str:
    side = {"shorter": "shorter side", "longer": "longer side", "mean": "mean side"}[order.kept.side]
    return f"{order.count:,} pictures, kept decoded with their {side} up to {order.kept.px} px,"


def _memory_file() -> tuple[Path, object]:
    """A file in memory, and what it lives as long as.

    On Linux it has no name and no limit but the memory's, unlike /dev/shm in a container. Elsewhere a temporary
    file stands in, which the system keeps in memory while there is room.
    """
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("effnetv2-pictures")
        return Path(f"/proc/{os.getpid()}/fd/{handle}"), _Open(handle)
    folder = tempfile.TemporaryDirectory(prefix="effnetv2-", ignore_cleanup_errors=True)
    return Path(folder.name) / "pictures.bin", folder


class _Open:
    """An open file, closed with the last reader of it."""

    def __init__(self, handle: int) -> None:
        weakref.finalize(self, os.close, handle)
