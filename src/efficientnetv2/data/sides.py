"""How large pictures are as they are stored, by the headers of their files alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from efficientnetv2.base.keys import Floats
from efficientnetv2.data.formats import opened_image
from efficientnetv2.data.listing import packed
from efficientnetv2.data.look import chunks_in_threads
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.pictures import size_of
from efficientnetv2.data.readers import Dispensable, originals

# Headers that are read: a few seconds' worth. Of more pictures none is. Ours.
MOST = 50_000
# Pictures whose sides stand for those of all: a tenth of a second's worth. Ours.
_SOME = 100
# Reading waits for the disk more than for the processor. Ours.
_THREADS = 8


def longer_sides(manifest: Manifest) -> Floats | None:
    """The longer side of each picture, in pixels; turning it upright does not change that.

    Args:
        manifest: of any kind of pictures.

    Returns:
        (N,), NaN where a header can't be read; None where it takes more than headers of files: of shards, records in
        binary files and rasters, and of more than ``MOST`` pictures.
    """
    if manifest.shards is not None or manifest.bands is not None or len(manifest) > MOST:
        return None
    files = [manifest.file(row) for row in range(len(manifest))]
    if any(packed(file) is not None for file in files):
        return None
    return np.array(chunks_in_threads(_of_chunk, files, _THREADS), dtype=np.float64)


def shorter_side(manifest: Manifest) -> float | None:
    """The median of the shorter sides of some pictures, in pixels; None where none of them can be had.

    Args:
        manifest: of any kind of pictures.
    """
    rows = np.unique(np.linspace(0, len(manifest) - 1, min(_SOME, len(manifest))).astype(np.int64)).tolist()
    reader = Dispensable(originals(manifest).ahead(rows))
    sizes = [size for row in rows if (size := reader.made(row, size_of)) is not None]
    return float(np.median([min(size) for size in sizes])) if sizes else None


def _of_chunk(files: Sequence[str]) -> list[float]:
    return [_longer_side(file) for file in files]


def _longer_side(file: str) -> float:
    try:
        with opened_image(file) as image:
            return float(max(image.size))
    except Exception:  # a decoder meeting broken data raises all kinds
        return math.nan
