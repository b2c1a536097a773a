"""Measure one rule, ``Bands``, for the rasters of a dataset, and read rasters by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from efficientnetv2.data import geotiff
from efficientnetv2.data import raster_checks as checks
from efficientnetv2.data.decode import upright
from efficientnetv2.data.geotiff import RasterDataset, open_raster
from efficientnetv2.data.image_io import DECODING, Pixels, UnreadableImageError, fault_of, is_high_bit_depth
from efficientnetv2.data.raster_checks import is_raster
from efficientnetv2.preprocessing import RGB, Bands
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

# Rasters that are measured, drawn evenly, and side of the grid of pixels of each: enough that percentiles move by less
# than a gray level. The outermost hundredths are haze, clouds and faults of the sensor. Ours.
_MAX_RASTERS, _SIDE_PX = 256, 64
_PERCENTILES = (1.0, 99.0)
# When the minimum or maximum is undeclared missing data: minimum fraction of pixels with it, minimum fraction of these
# next to another, and minimum number of distinct other values, since bands of fewer hold codes. It must be further from
# all others than their spread. Ours.
_MIN_FRACTION, _ADJACENT_FRACTION, _MIN_VALUES = 0.001, 0.5, 16
_MIDDLE = 128  # level of a band without any value
# Peak memory, bytes per pixel: float64 and masks of each band that is compared with nodata; of one band that is scaled:
# four arrays of float64. Ours.
_NODATA_BYTES, _SCALING_BYTES = 10, 34

BandSelection = tuple[int, ...] | Literal["all"] | None


@dataclass(frozen=True)
class _ReferenceRaster:
    """The raster that determines the bands of a dataset: its bands without alpha, and, unless all are read, visible."""

    file: str
    every: int
    seen: int | None

    def mismatch(self, dataset: RasterDataset, bands: Bands) -> str:
        """Why a raster has another number of bands. As many visible bands match too."""
        if len(geotiff.all_bands(dataset)) == self.every or len(set(geotiff.visible_bands(dataset))) == self.seen:
            return ""
        fix = f"{self.file} has {self.every}. Give rasters with equal bands, or select `bands` that all have."
        return checks.missing_bands_fault(checks.band_count(dataset), bands, fix)


def load_raster(path: str, bands: Bands) -> Pixels:
    """A whole raster as an upright image. Raises UnreadableImageError if it does not fit the rule or is unreadable."""
    try:
        with open_raster(path) as dataset:
            if fault := checks.mismatch(dataset, bands) or checks.size_fault(dataset):
                raise UnreadableImageError(path, fault)
            with DECODING.take(_bytes_to_read(dataset, bands)):
                return upright(geotiff.read_raster(dataset, bands)[0], checks.orientation(path))
    except (InputError, MemoryError) as error:
        raise UnreadableImageError(path, fault_of(error)) from error


def _bytes_to_read(dataset: RasterDataset, bands: Bands) -> int:
    """Memory that reading a whole raster takes at its peak."""
    chosen, distinct = bands.channels, len(set(bands.numbers))
    value_bytes = np.dtype(dataset.dtypes[bands.numbers[0] - 1]).itemsize
    # Stored values, the values of the channels, and masks of both.
    each = (distinct + chosen) * (value_bytes + 2)
    each += _NODATA_BYTES * chosen if bands.nodata else 0
    each += _SCALING_BYTES if checks.is_high_bit_depth_rule(bands) else 0
    # GDAL decodes a block of all bands at a time.
    block = math.prod(dataset.block_shapes[0]) * dataset.count * value_bytes
    return int(dataset.width * dataset.height * each + block)


def measure_bands(
    files: Sequence[str],
    selection: BandSelection,
    *,
    seed: int,
    others: Sequence[str] = (),
    nodata: tuple[float, ...] | None = None,
) -> Bands | None:
    """Measure one rule for all rasters of a dataset. None where Pillow reads all correctly.

    ``files`` are the training images: all are checked, some measured. ``others`` must match the rule. 8-bit values
    stay. Otherwise the 1st to the 99th percentile of each band becomes 0 to 255, and missing data its mean.
    ``selection`` None takes the bands that are visible in the first raster. ``nodata`` None finds a minimum or maximum
    that fills connected areas far from all other values, such as -9999.
    """
    rasters = [file for file in files if is_raster(file)]
    if not rasters and selection is not None:
        given = selection if selection == "all" else ",".join(map(str, selection))
        raise InputError(f"`bands={given}`: no training image is a raster (.tif or .tiff). Leave it out.")
    gdal = checks.has_gdal()
    # Without GDAL, opening the first raster of a given nodata value names the missing extra.
    if not rasters or (selection is None and not (any(map(_needs_rule, rasters)) if gdal else nodata)):
        if gdal:
            _validate_ordinary(others)
        return None
    bands, first = _select_bands(rasters, selection)
    # Rasters first, so that a message does not blame an ordinary image.
    kinds: set[str] = set()
    for file in sorted(files, key=is_raster, reverse=True):
        kinds.update(_check_dtypes(file, bands, checks.band_mismatch, first))
    bands = replace(bands, kinds=tuple(sorted(kinds)), nodata=nodata or ())
    drawn = Key.of(seed).fold("bands").generator().permutation(len(rasters))[:_MAX_RASTERS]
    chosen = [rasters[index] for index in sorted(drawn.tolist())]
    parts = _samples(chosen, bands)
    if nodata is None and (undeclared := _undeclared_nodata(parts)):
        bands = replace(bands, nodata=undeclared)
        parts = _samples(chosen, bands)
    if not any(part.values.shape[1] for part in parts):
        raise InputError(f"{rasters[0]} and the other rasters hold only their nodata value. Leave them out.")
    rule = _rule_from_samples(bands, parts)
    for file in others:
        _check_dtypes(file, rule, checks.mismatch, first)
    if checks.is_high_bit_depth_rule(rule):
        for file in (*files, *others):  # Pillow would keep the upper 8 bits, and the rule scales them
            if not is_raster(file) and is_high_bit_depth(file):
                raise InputError(f"{file} {checks.not_geotiff_fault(rule)}")
    return rule


def _needs_rule(file: str) -> bool:
    with suppress(InputError), open_raster(file) as dataset:
        return checks.needs_bands(dataset, file) or checks.is_gdal_only(file)
    return False


def _validate_ordinary(others: Sequence[str]) -> None:
    """Refuse rasters that need a rule where the training images have none."""
    for file in filter(is_raster, others):
        fault = ""
        with suppress(InputError), open_raster(file) as dataset:  # unreadable files are reported elsewhere
            fault = checks.no_rule_fault(dataset) if checks.needs_bands(dataset, file) else ""
        if fault:
            raise InputError(f"{file} {fault}")


def _select_bands(rasters: Sequence[str], selection: BandSelection) -> tuple[Bands, _ReferenceRaster | None]:
    """Bands with the names of the first readable raster, and that raster unless the bands were given by number."""
    for file in rasters:
        try:
            with open_raster(file) as dataset:
                if isinstance(selection, tuple):
                    # Without colors: given bands may be in any order.
                    return Bands(selection, names=geotiff.band_names(dataset, selection)), None
                numbers = (geotiff.visible_bands if selection is None else geotiff.all_bands)(dataset)
                seen = None if selection == "all" else len(set(geotiff.visible_bands(dataset)))
                first = _ReferenceRaster(file, len(geotiff.all_bands(dataset)), seen)
                return Bands(numbers, names=geotiff.band_names_or_colors(dataset, numbers)), first
        except InputError:
            if not checks.has_gdal():
                raise
    raise InputError(f"None of the rasters among the training images can be read. The first is {rasters[0]}.")


def _check_dtypes(
    file: str, bands: Bands, why_not: Callable[[RasterDataset, Bands], str], first: _ReferenceRaster | None
) -> tuple[str, ...]:
    """Types of a readable raster's values. Raises InputError on a mismatch."""
    if not is_raster(file):
        if bands.channels != RGB:
            fault = checks.channels_fault(bands)
            raise InputError(f"{file} {fault}. Leave it out, or read three bands: `bands=4,3,2`.")
        return ()
    kinds: tuple[str, ...] = ()
    fault = ""
    with suppress(InputError), open_raster(file) as dataset:
        if first is not None:
            fault = checks.encoding_fault(dataset) or first.mismatch(dataset, bands)
        fault = fault or why_not(dataset, bands)
        kinds = () if fault else checks.dtypes_of(dataset, bands.numbers)
    if fault:
        raise InputError(f"{file} {fault}")
    return kinds


@dataclass(frozen=True, eq=False)
class _RasterSample:
    """Evenly taken (channels, H, W) values, NaN where missing; (channels, n) of them where any channel has one."""

    grid: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    kind: Any
    side_m: float | None


def _samples(files: Sequence[str], bands: Bands) -> list[_RasterSample]:
    """Samples of the readable rasters."""
    found = []
    for file in files:
        # Not from overviews: the range of averages would be too narrow.
        with suppress(InputError), open_raster(file, overviews=False) as dataset:
            shape = (min(dataset.height, _SIDE_PX), min(dataset.width, _SIDE_PX))
            values, present = geotiff.read_values(dataset, bands.numbers, None, shape, nodata=bands.nodata)
            grid = np.where(present, values, np.nan).astype(np.float64)
            side = geotiff.pixel_side_m(dataset)
            side_m = side and side * math.sqrt(dataset.height * dataset.width)
            found.append(_RasterSample(grid, grid[:, present.any(axis=0)], values.dtype, side_m))
    return found


def _rule_from_samples(bands: Bands, parts: Sequence[_RasterSample]) -> Bands:
    values = np.concatenate([part.values for part in parts], axis=1)
    deep = any(part.kind != np.uint8 for part in parts)
    ends = [_percentile_range(band) if deep else (0.0, 255.0) for band in values]
    seen = [
        ((band - least) * 255 / (most - least)).clip(0, 255) for band, (least, most) in zip(values, ends, strict=True)
    ]
    known = [band[np.isfinite(band)] for band in seen]
    sides = [part.side_m for part in parts if part.side_m is not None]
    return replace(
        bands,
        low=tuple(least for least, _ in ends),
        high=tuple(most for _, most in ends),
        missing=tuple(round(float(band.mean())) if len(band) else _MIDDLE for band in known),
        # A constant band has no spread; 1 avoids a division by zero.
        spread=tuple(max(1.0, round(float(band.std()), 3)) if len(band) else 1.0 for band in known),
        ground_m=float(np.median(sides)) if sides else None,
    )


def _percentile_range(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(value) for value in np.percentile(finite, _PERCENTILES)) if len(finite) else (0.0, 1.0)
    if low < high:
        return low, high
    return low, max(low + 1, float(np.nextafter(low, np.inf)))  # 1 is nothing next to a fill such as -3.4e38


def _undeclared_nodata(parts: Sequence[_RasterSample]) -> tuple[float, ...]:
    """Minimum and maximum values of bands that are undeclared missing data."""
    deep = [part for part in parts if part.kind != np.uint8]
    found = set()
    for channel in range(len(deep[0].values) if deep else 0):
        values = np.concatenate([part.values[channel] for part in deep])
        values = values[np.isfinite(values)]
        for end in (values.min(initial=np.inf), values.max(initial=-np.inf)):
            others = values[values != end]
            if len(values) - len(others) < max(2, _MIN_FRACTION * len(values)) or len(others) < _MIN_VALUES:
                continue
            low, high = np.percentile(others, _PERCENTILES)
            if np.abs(others - end).min() <= high - low or len(np.unique(others)) < _MIN_VALUES:
                continue
            if _is_connected([part.grid[channel] == end for part in deep]):
                found.add(float(end))
    return tuple(sorted(found))


def _is_connected(masks: Sequence[npt.NDArray[np.bool_]]) -> bool:
    """Whether most marked pixels of (H, W) masks are next to another."""
    adjacent = 0
    for mask in masks:
        around = np.pad(mask, 1)
        neighbors = around[:-2, 1:-1] | around[2:, 1:-1] | around[1:-1, :-2] | around[1:-1, 2:]
        adjacent += int((mask & neighbors).sum())
    return adjacent >= _ADJACENT_FRACTION * sum(int(mask.sum()) for mask in masks)
