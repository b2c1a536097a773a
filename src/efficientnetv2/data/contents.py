"""Pictures known by their contents, wherever they lie and whatever they are called."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from efficientnetv2.base.keys import Key
from efficientnetv2.data.decode import read_picture
from efficientnetv2.data.formats import read_file
from efficientnetv2.data.listing import Ints, packed
from efficientnetv2.data.look import chunks_in_threads
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.pictures import Source, UnreadablePicture
from efficientnetv2.data.readers import Reader, originals
from efficientnetv2.data.shards.checking import mark_of
from efficientnetv2.data.shards.index import CONTENT

# Pictures that are looked into: whole sets of most people, and of a million enough to find a part of it again. Their
# marks take 8 bytes each: 131 kB, 0.5 % of the smallest network of the family. Ours.
MOST = 16_384
# Reading waits for the disk or the net more than for the processor. Ours.
_THREADS = 8


def content_marks(manifest: Manifest, *, most: int = MOST) -> tuple[Ints, Ints]:
    """Marks of the contents of a manifest's pictures: of all, or of a part drawn evenly, always the same one.

    The mark of a picture is a hash of its file's bytes; a shard with our index has that of the file that was packed,
    and then no picture is read. Otherwise the files are read once, whole.

    Args:
        manifest: of any kind of pictures.
        most: that are read.

    Returns:
        (n,) rows of the manifest, ascending; and the (n,) marks of their pictures, 0 to 2^63 - 1. What can't be read
        is left out.

    Raises:
        InputError: a store of another machine does not answer.
    """
    rows = np.arange(len(manifest), dtype=np.int64)
    if len(rows) > most:
        drawn = Key.of(0).fold("contents").generator().choice(len(rows), most, replace=False)
        rows = np.sort(drawn).astype(np.int64)
    if CONTENT in manifest.table:
        return rows, manifest.table[CONTENT].to_numpy(dtype=np.int64)[rows]
    marks = np.array(_read(manifest, rows.tolist()), dtype=np.int64)
    return rows[marks >= 0], marks[marks >= 0]


def _read(manifest: Manifest, rows: Sequence[int]) -> list[int]:
    """The mark of each picture, -1 where it can't be read."""
    reader = originals(replace(manifest, bands=None))  # the files, however they are read

    def marks(chunk: Sequence[int]) -> list[int]:
        ahead = reader.ahead(chunk)
        return [_mark(ahead, row) for row in chunk]

    return chunks_in_threads(marks, rows, _THREADS)


def _mark(reader: Reader, row: int) -> int:
    try:
        return mark_of(file_bytes(reader.source(row)))
    except (UnreadablePicture, OSError):
        return -1


def file_bytes(source: Source) -> bytes:
    """A picture's file as it is; of a record in a binary file, which has no format of its own, a PNG.

    Raises:
        UnreadablePicture: it is no picture.
        OSError: its file can't be read.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | Path) and packed(str(source)) is None:
        return read_file(source)
    lossless = io.BytesIO()
    read_picture(source).save(lossless, "PNG")
    return lossless.getvalue()
