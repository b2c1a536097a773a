"""Pictures known by their contents, wherever they lie and whatever they are called."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.data.file_probe import map_chunks
from efficientnetv2.data.image_formats import open_image, read_file
from efficientnetv2.data.image_io import Source, UnreadableImageError, image_size
from efficientnetv2.data.readers import BestEffortReader, Reader, source_reader
from efficientnetv2.data.records import Ints, packed_record
from efficientnetv2.data.shards.index import CONTENT
from efficientnetv2.data.shards.reader import mark_of
from efficientnetv2.utils.rng import Floats, Key

# Pictures that are looked into: whole sets of most people, and of a million enough to find a part of it again. Their
# marks take 8 bytes each: 131 kB, 0.5 % of the smallest network of the family. Ours.
MAX_HASHED = 16_384
# Reading waits for the disk or the net more than for the processor. Ours.
_THREADS = 8


def content_hashes(dataset: ImageDataset, *, most: int = MAX_HASHED) -> tuple[Ints, Ints]:
    """Marks of the contents of a dataset's pictures: of all, or of a part drawn evenly, always the same one.

    The mark of a picture is a hash of its file's bytes; a shard with our index has that of the file that was packed,
    and then no picture is read. Otherwise the files are read once, whole.

    Args:
        dataset: of any kind of pictures.
        most: that are read.

    Returns:
        (n,) rows of the dataset, ascending; and the (n,) marks of their pictures, 0 to 2^63 - 1. What can't be read
        is left out.

    Raises:
        InputError: a store of another machine does not answer.
    """
    rows = np.arange(len(dataset), dtype=np.int64)
    if len(rows) > most:
        drawn = Key.of(0).fold("contents").generator().choice(len(rows), most, replace=False)
        rows = np.sort(drawn).astype(np.int64)
    if CONTENT in dataset.table:
        return rows, dataset.table[CONTENT].to_numpy(dtype=np.int64)[rows]
    marks = np.array(_read(dataset, rows.tolist()), dtype=np.int64)
    return rows[marks >= 0], marks[marks >= 0]


def _read(dataset: ImageDataset, rows: Sequence[int]) -> list[int]:
    """The mark of each picture, -1 where it can't be read."""
    reader = source_reader(replace(dataset, bands=None))  # the files, however they are read

    def marks(chunk: Sequence[int]) -> list[int]:
        ahead = reader.ahead(chunk)
        return [_mark(ahead, row) for row in chunk]

    return map_chunks(marks, rows, _THREADS)


def _mark(reader: Reader, row: int) -> int:
    try:
        return mark_of(file_bytes(reader.source(row)))
    except (UnreadableImageError, OSError):
        return -1


def file_bytes(source: Source) -> bytes:
    """A picture's file as it is; of a record in a binary file, which has no format of its own, a PNG.

    Raises:
        UnreadablePicture: it is no picture.
        OSError: its file can't be read.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | Path) and packed_record(str(source)) is None:
        return read_file(source)
    lossless = io.BytesIO()
    load_image(source).save(lossless, "PNG")
    return lossless.getvalue()


# Headers that are read: a few seconds' worth. Of more pictures none is. Ours.
MAX_MEASURED = 50_000
# Pictures whose sides stand for those of all: a tenth of a second's worth. Ours.
_SOME = 100
# Reading waits for the disk more than for the processor. Ours.
_THREADS_sides = 8


def longer_sides(dataset: ImageDataset) -> Floats | None:
    """The longer side of each picture, in pixels; turning it upright does not change that.

    Args:
        dataset: of any kind of pictures.

    Returns:
        (N,), NaN where a header can't be read; None where it takes more than headers of files: of shards, records in
        binary files and rasters, and of more than ``MAX_MEASURED`` pictures.
    """
    if dataset.shards is not None or dataset.bands is not None or len(dataset) > MAX_MEASURED:
        return None
    files = [dataset.file(row) for row in range(len(dataset))]
    if any(packed_record(file) is not None for file in files):
        return None
    return np.array(map_chunks(_of_chunk, files, _THREADS_sides), dtype=np.float64)


def median_shorter_side(dataset: ImageDataset) -> float | None:
    """The median of the shorter sides of some pictures, in pixels; None where none of them can be had.

    Args:
        dataset: of any kind of pictures.
    """
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(_SOME, len(dataset))).astype(np.int64)).tolist()
    reader = BestEffortReader(source_reader(dataset).ahead(rows))
    sizes = [size for row in rows if (size := reader.made(row, image_size)) is not None]
    return float(np.median([min(size) for size in sizes])) if sizes else None


def _of_chunk(files: Sequence[str]) -> list[float]:
    return [_longer_side(file) for file in files]


def _longer_side(file: str) -> float:
    try:
        with open_image(file) as image:
            return float(max(image.size))
    except Exception:  # a decoder meeting broken data raises all kinds
        return math.nan
