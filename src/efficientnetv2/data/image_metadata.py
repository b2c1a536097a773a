"""Hashes of the contents of images, and their sizes, read without decoding."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.data.file_probe import AHEAD, map_chunks
from efficientnetv2.data.image_io import Source, UnreadableImageError, image_size
from efficientnetv2.data.open_image import read_file
from efficientnetv2.data.readers import BestEffortReader, source_reader
from efficientnetv2.data.records import Ints
from efficientnetv2.data.shards.index import CONTENT
from efficientnetv2.data.shards.reader import content_hash
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Floats, Key

# Images that are hashed: all of most datasets, and of a million enough to recognize a part. A model file keeps 8 bytes
# of each: 131 kB, 0.5 % of the smallest model of the family. Ours.
MAX_HASHED = 16_384
# Images whose headers are read, in a few seconds. For more images none is. Ours.
MAX_MEASURED = 50_000
# Images whose median size is taken, in a tenth of a second. Ours.
_MAX_SAMPLED = 100


def content_hashes(dataset: ImageDataset, *, most: int = MAX_HASHED) -> tuple[Ints, Ints]:
    """(n,) ascending rows of readable images and (n,) 63-bit hashes of their files; of ``most``, always the same.

    The index of shards has the hashes already. Raises InputError if a remote store does not respond.
    """
    rows = np.arange(len(dataset), dtype=np.int64)
    if len(rows) > most:
        drawn = Key.of(0).fold("contents").generator().choice(len(rows), most, replace=False)
        rows = np.sort(drawn).astype(np.int64)
    if dataset.shards is not None and CONTENT in dataset.table:  # a table of files may have kept the column
        return rows, dataset.table[CONTENT].to_numpy(dtype=np.int64)[rows]
    reader = source_reader(replace(dataset, bands=None))  # files, however they are read

    def hash_chunk(chunk: Sequence[int]) -> list[int]:
        ahead, found = reader.ahead(chunk), []
        for row in chunk:
            try:
                found.append(content_hash(file_bytes(ahead.source(row))))
            except (UnreadableImageError, OSError):
                found.append(-1)
        return found

    hashes = np.array(map_chunks(hash_chunk, rows.tolist(), size=AHEAD), dtype=np.int64)
    return rows[hashes >= 0], hashes[hashes >= 0]


def file_bytes(source: Source) -> bytes:
    """The file of an image; a PNG of decoded pixels. Raises UnreadableImageError and OSError."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | Path):
        return read_file(source)
    png = io.BytesIO()
    load_image(source).save(png, "PNG")
    return png.getvalue()


def longer_sides(dataset: ImageDataset) -> Floats | None:
    """(N,) longer side of each image in pixels, NaN for unreadable headers. None for other than few single files."""
    if dataset.shards is not None or dataset.bands is not None or len(dataset) > MAX_MEASURED:
        return None
    files = [dataset.file(row) for row in range(len(dataset))]

    def longer_side(file: str) -> float:
        try:
            return float(max(image_size(file)))
        except UnreadableImageError:
            return math.nan

    return np.array(map_chunks(lambda chunk: list(map(longer_side, chunk)), files), dtype=np.float64)


def median_shorter_side(dataset: ImageDataset) -> float | None:
    """Median shorter side, in pixels, of up to 100 images. None if none is readable, or a remote store fails."""
    count = min(_MAX_SAMPLED, len(dataset))
    rows = np.unique(np.linspace(0, len(dataset) - 1, count).astype(np.int64)).tolist()
    try:
        reader = BestEffortReader(source_reader(dataset).ahead(rows))
    except InputError:
        return None
    sizes = [size for row in rows if (size := reader.read(row, image_size)) is not None]
    return float(np.median([min(size) for size in sizes])) if sizes else None
