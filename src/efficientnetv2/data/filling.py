"""Filling a cache: how large it gets, then every picture decoded once, by threads. Where it lies: ``data.keeping``."""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from efficientnetv2.base.counting import Counting
from efficientnetv2.base.preprocessing import RGB
from efficientnetv2.data.cache import PIXELS_AT, Index, Kept
from efficientnetv2.data.decode import shrunk_picture
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.pictures import Pixels, UnreadablePicture, size_of
from efficientnetv2.data.readers import Reader

# All ours: how many pieces of work each thread is given ahead, so that none waits; the pictures of a piece, when their
# headers are read and when they are decoded: more are handed over, and fetched from far away, at less cost, but take
# more memory.
_AHEAD, _HEADERS, _PICTURES = 2, 64, 8
# Of the index: place and size of a picture, and the rest.
_INDEX_BYTES_EACH, _INDEX_BYTES = 16, 4096

Result = TypeVar("Result")


@dataclass(frozen=True)
class Order:
    """What is to be kept, and who looks on.

    Args:
        reader: of the originals.
        count: how many there are.
        kept: at what size.
        threads: that decode.
        say: gets a line for the user.
        counting: shows progress.
    """

    reader: Reader
    count: int
    kept: Kept
    threads: int
    say: Callable[[str], None]
    counting: Counting


def measured(order: Order) -> Ints:
    """Where the pixels of each picture will stand, from their headers alone.

    Args:
        order: what to keep.

    Returns:
        (N + 1,) bytes from the file's beginning: where each begins, and the last ends.
    """
    lengths: list[int] = []
    with (
        order.counting("measuring pictures", order.count) as counted,
        _working(_bytes_kept, order, _HEADERS) as pieces,
    ):
        for several in pieces:
            lengths += several
            counted(len(lengths))
    return PIXELS_AT + np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _bytes_kept(reader: Reader, row: int, kept: Kept) -> int:
    """How many a picture will take; none, if it can't be read."""
    try:
        source = reader.source(row)
        width, height = kept.size(*size_of(source))
    except UnreadablePicture:
        return 0
    return width * height * (source.shape[2] if isinstance(source, np.ndarray) else RGB)


def needed(places: Ints) -> int:
    """Bytes of the whole file, from what ``measured`` gave."""
    return int(places[-1]) + _INDEX_BYTES_EACH * (len(places) - 1) + _INDEX_BYTES


def write(path: Path, order: Order, places: Ints, content: str) -> None:
    """Decode every picture and write the file; those that can't be read are told in its index.

    Args:
        path: of the file.
        order: what to keep.
        places: as ``measured`` gave them.
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
        order.counting("filling the cache", order.count) as counted,
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
        Index(content, offsets, sizes, reasons, channels).write(file)


def any_readable(order: Order, rows: Sequence[int]) -> bool:
    """Whether any of these can be decoded now, as ``write`` would; it looks no further than the first.

    Args:
        order: what to keep.
        rows: pictures of it, by number.

    Raises:
        InputError: a store of another machine does not answer.
    """
    return any(not isinstance(_decoded(order.reader, row, order.kept), str) for row in rows)


def _decoded(reader: Reader, row: int, kept: Kept) -> Pixels | str:
    """A picture as it is kept, or why it can't be."""
    try:
        return shrunk_picture(reader.source(row), kept.size)
    except UnreadablePicture as error:
        return error.reason


@contextmanager
def _working(
    work: Callable[[Reader, int, Kept], Result], order: Order, pictures: int
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
