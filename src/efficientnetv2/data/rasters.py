"""Pictures that are rasters: told from ordinary ones, measured once for a whole set, read by that one rule."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.keys import Key
from efficientnetv2.base.preprocessing import Bands
from efficientnetv2.data.pictures import Pixels, Source, UnreadablePicture
from efficientnetv2.data.raster import (
    Dataset,
    bands_seen,
    opened,
    read,
    refuse_missing_bands,
    side_m,
    values_of,
)

if TYPE_CHECKING:
    from efficientnetv2.data.readers import Reader

_SUFFIXES = (".tif", ".tiff")
# Of a set's rasters so many are measured, drawn evenly, and of each about so many pixels: enough that a percentile of
# all moves by less than a grey level. The outermost hundredths are haze, clouds and faults of the sensor. Ours.
_MEASURED, _SIDE_PX = 256, 64
_PERCENTILES = (1.0, 99.0)
_PLAIN_BANDS = (1, 3)


def is_raster(path: str) -> bool:
    """Whether a file is called as a raster is; ordinary pictures may be called so too."""
    return os.path.splitext(path)[1].lower() in _SUFFIXES


def readable() -> bool:
    """Whether the extra ``geo`` is installed."""
    return importlib.util.find_spec("rasterio") is not None


def glance(path: str) -> tuple[str, str]:
    """Why a raster cannot be used, or ''; and what it is, in words. As ``data.look`` wants it."""
    if not readable():
        return "is a raster that only the extra 'geo' reads (pip install rasterio)", ""
    try:
        with opened(path) as dataset:
            if min(dataset.width, dataset.height) < 2:
                return f"is too small: {dataset.width}×{dataset.height} px", ""
            return "", f"rasters of {dataset.count} x {dataset.dtypes[0]}" if dataset.count else "is empty"
    except InputError:
        return "is no picture that Pillow can read, and no raster that GDAL can open", ""


def picture(path: str, bands: Bands) -> Pixels:
    """A whole raster as a picture.

    Raises:
        UnreadablePicture: it lacks a band, or can't be read.
    """
    try:
        with opened(path) as dataset:
            refuse_missing_bands(dataset, bands, "it")
            return read(dataset, bands)[0]
    except InputError as error:
        raise UnreadablePicture(path, str(error)) from error


def rule_of(files: Sequence[str], numbers: tuple[int, int, int] | None, *, seed: int) -> Bands | None:
    """How the rasters of a set are to be seen: one rule for all, by those that train.

    8-bit values stay as they are. Of others the 1st to the 99th percentile of each band, over all pictures, become 0
    to 255. What stands for missing data is the bands' mean.

    Args:
        files: of the pictures that train; all of them are asked what they hold, some are measured.
        numbers: of the bands that are red, green and blue; None lets the first raster say it.
        seed: of which are measured.

    Returns:
        None where nothing but ordinary pictures are there: 8-bit, of one or three bands, and no bands were given.

    Raises:
        InputError: the bands are not there or not known, or the extra ``geo`` is not installed.
    """
    files = [file for file in files if is_raster(file)]
    if not files and numbers is not None:
        raise InputError(
            f"--bands {','.join(map(str, numbers))}: there are no rasters ({' or '.join(_SUFFIXES)}) among the "
            "training pictures. Leave it out."
        )
    if not files or (numbers is None and not (readable() and any(map(_needs_rule, files)))):
        return None
    with opened(files[0]) as dataset:
        bands = Bands(bands_seen(dataset, files[0]) if numbers is None else numbers)
    drawn = Key.of(seed).fold("bands").generator().permutation(len(files))[:_MEASURED]
    parts = [found for one in sorted(drawn.tolist()) if (found := _some(files[one], bands)) is not None]
    values = np.concatenate([part.values for part in parts], axis=1)
    if not values.shape[1]:
        raise InputError(
            f"{files[0]} and the other rasters hold no data at all: only their nodata value. Leave them out."
        )
    deep = any(part.kind != np.uint8 for part in parts)
    ends = [_range(band) if deep else (0.0, 255.0) for band in values]
    low, high = (tuple(side) for side in zip(*ends, strict=True))
    middle = [
        round(float(np.nanmean(((band - least) * 255 / (most - least)).clip(0, 255))))
        for band, (least, most) in zip(values, ends, strict=True)
    ]
    sides = [part.side_m for part in parts if part.side_m is not None]
    side = float(np.median(sides)) if sides else None
    return Bands(bands.numbers, low, high, (middle[0], middle[1], middle[2]), side)


@dataclass(frozen=True, eq=False)
class _Part:
    """What was measured of a raster: (3, n) values, NaN where one is missing; their kind; its side on the ground."""

    values: npt.NDArray[np.float64]
    kind: Any
    side_m: float | None


def _needs_rule(file: str) -> bool:
    try:
        with opened(file) as dataset:
            return set(dataset.dtypes) != {"uint8"} or dataset.count not in _PLAIN_BANDS
    except InputError:
        return False


def _some(file: str, bands: Bands) -> _Part | None:
    """Of a raster; None where it can't be read."""
    try:
        with opened(file) as dataset:
            refuse_missing_bands(dataset, bands, file)
            return _measured(dataset, bands)
    except InputError as error:
        if "are to be seen" in str(error):
            raise
        return None


def _measured(dataset: Dataset, bands: Bands) -> _Part:
    shape = (min(dataset.height, _SIDE_PX), min(dataset.width, _SIDE_PX))
    values, valid = values_of(dataset, bands.numbers, ((0, dataset.height), (0, dataset.width)), shape)
    chosen = values[:, valid].astype(np.float64)
    chosen[~np.isfinite(chosen)] = np.nan
    side = side_m(dataset)
    return _Part(chosen, values.dtype, side and side * math.sqrt(dataset.height * dataset.width))


def _range(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(value) for value in np.percentile(finite, _PERCENTILES)) if len(finite) else (0.0, 1.0)
    return (low, high) if low < high else (low, low + 1)


@dataclass(frozen=True)
class Rasters:
    """A reader of files that reads the rasters among them by a rule.

    Args:
        files: reads all others.
        bands: the rule.
    """

    files: Reader
    bands: Bands

    def source(self, sample: int) -> Source:
        """A raster's pixels, or what the files' reader gives.

        Raises:
            UnreadablePicture: see ``picture``.
        """
        path = self.files.name(sample)
        return picture(path, self.bands) if is_raster(path) else self.files.source(sample)

    def name(self, sample: int) -> str:
        """The path."""
        return self.files.name(sample)

    def ahead(self, samples: Sequence[int]) -> Reader:
        """A reader of the same pictures."""
        return Rasters(self.files.ahead(samples), self.bands)

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """Each file's, and by which rule it is read."""
        return [f"{stamp} {self.bands}" for stamp in self.files.stamps(samples)]
