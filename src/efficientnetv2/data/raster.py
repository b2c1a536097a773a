"""GeoTIFF and what else GDAL opens: any number of bands and any depth become a picture, by one rule.

The rule is ``Bands``: which three bands are seen as red, green and blue, and which values become 0 and 255. A pixel
has data where one of these bands has; where none has, the level ``missing`` stands in each.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.extras import needed
from efficientnetv2.base.preprocessing import Bands
from efficientnetv2.data.pictures import Pixels

Valid = npt.NDArray[np.bool_]
Dataset = Any  # rasterio.DatasetReader; rasterio has no types

# GDAL keeps blocks it has decoded; by itself it would take a twentieth of the machine's memory. Ours.
CACHE_MB = 128
_COLOURS = ("red", "green", "blue")
_OPENING = threading.Lock()  # which warnings are shown is the whole process's affair


@contextmanager
def opened(path: str | Path) -> Iterator[Dataset]:
    """A raster to read from, of bounded memory.

    Raises:
        InputError: the extra ``geo`` is not installed, there is no such file, or it is no raster.
    """
    rasterio = needed("rasterio", "geo", f"Reading the raster {path}")
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist, or is no file. Give a GeoTIFF or another raster.")
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        try:
            with _OPENING, unplaced_quietly():
                dataset = rasterio.open(path)
        except rasterio.errors.RasterioIOError as error:
            raise InputError(f"{path} is no raster that GDAL can open: {error}.") from error
        with dataset:
            yield dataset


@contextmanager
def unplaced_quietly() -> Iterator[None]:
    """Without rasterio's warning that a raster is placed nowhere: commands say what follows from that."""
    rasterio = needed("rasterio", "geo", "Reading a raster")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


def bands_seen(dataset: Dataset, name: str) -> tuple[int, int, int]:
    """Which bands are red, green and blue, as the raster itself says it.

    By their colour interpretation; else the first three of three, or the only one three times.

    Args:
        dataset: opened.
        name: of the raster, for the message.

    Raises:
        InputError: it has other bands, and does not say.
    """
    colours = [colour.name for colour in dataset.colorinterp]
    if all(colour in colours for colour in _COLOURS):
        red, green, blue = (colours.index(colour) + 1 for colour in _COLOURS)
        return red, green, blue
    seen = [number for number, colour in enumerate(colours, start=1) if colour != "alpha"]
    if len(seen) == 3:
        return seen[0], seen[1], seen[2]
    if len(seen) == 1:
        return seen[0], seen[0], seen[0]
    raise InputError(
        f"{name} has {dataset.count} bands{_described(dataset)}, and a picture has three. Say which are to be seen as "
        "red, green and blue, as --bands 4,3,2."
    )


def refuse_missing_bands(dataset: Dataset, bands: Bands, name: str) -> None:
    """Refuse a raster that lacks a band, or whose numbers are complex.

    Args:
        dataset: opened.
        bands: that are needed.
        name: of the raster, for the message.

    Raises:
        InputError: naming the band.
    """
    if max(bands.numbers) > dataset.count:
        having = "1 band" if dataset.count == 1 else f"{dataset.count} bands"
        raise InputError(
            f"{name} has {having}{_described(dataset)}, but bands {', '.join(map(str, bands.numbers))} are to be seen "
            "as red, green and blue. Give a raster with these, or say others by --bands R,G,B."
        )
    kinds = {dataset.dtypes[number - 1] for number in bands.numbers}
    if strange := [kind for kind in kinds if "complex" in kind]:
        raise InputError(
            f"{name} holds complex numbers ({strange[0]}). Turn them into magnitudes before: with GDAL, gdal_calc."
        )


def read(
    dataset: Dataset,
    bands: Bands,
    left: int = 0,
    top: int = 0,
    width: int | None = None,
    height: int | None = None,
) -> tuple[Pixels, Valid]:
    """A part of a raster as a picture.

    Args:
        dataset: opened.
        bands: the rule.
        left: first column.
        top: first row.
        width: columns; None is to the right end.
        height: rows; None is to the lower end.

    Returns:
        (height, width, 3) uint8, and (height, width) whether there is data.

    Raises:
        InputError: the file is damaged or cut short.
    """
    width = dataset.width - left if width is None else width
    height = dataset.height - top if height is None else height
    values, valid = values_of(dataset, bands.numbers, ((top, top + height), (left, left + width)))
    return levels(values, valid, bands), valid


def values_of(
    dataset: Dataset,
    numbers: tuple[int, ...],
    window: tuple[tuple[int, int], tuple[int, int]],
    shape: tuple[int, int] | None = None,
) -> tuple[npt.NDArray[Any], Valid]:
    """Values as they are stored, and where there are any.

    Args:
        dataset: opened.
        numbers: of the bands, from 1.
        window: first and last row, first and last column; the last ones are not within.
        shape: (H, W) to take fewer pixels, evenly; None takes all.

    Returns:
        (bands, H, W), and (H, W) whether one of the bands has data there: is neither the file's nodata value nor
        masked by the file, and a number.

    Raises:
        InputError: the file is damaged or cut short.
    """
    distinct = sorted(set(numbers))
    size = {} if shape is None else {"out_shape": (len(distinct), *shape)}
    try:
        stored = dataset.read(distinct, window=window, **size)
        has_data = dataset.read_masks(distinct, window=window, **size) > 0
    except OSError as error:
        reason = error.__cause__ or error
        raise InputError(
            f"{dataset.name} can't be read to its end ({reason}): it is damaged or cut short. Fetch it again."
        ) from error
    if stored.dtype.kind == "f":
        has_data &= np.isfinite(stored)
    return stored[[distinct.index(number) for number in numbers]], has_data.any(axis=0)


def levels(values: npt.NDArray[Any], valid: Valid, bands: Bands) -> Pixels:
    """Values of three bands as a picture.

    Args:
        values: (3, H, W), as stored.
        valid: (H, W) whether there is data.
        bands: the rule.

    Returns:
        (H, W, 3) uint8.
    """
    picture = np.empty((*valid.shape, 3), np.uint8)
    missing = ~valid
    for channel, (low, high, level) in enumerate(zip(bands.low, bands.high, bands.missing, strict=True)):
        band = values[channel]
        if band.dtype == np.uint8 and (low, high) == (0, 255):
            picture[..., channel] = band
        else:
            scaled = (band.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
            absent = ~np.isfinite(scaled)
            scaled[absent] = level  # a number is missing in this band alone
            picture[..., channel] = np.rint(scaled.clip(0, 255))
        picture[..., channel][missing] = level
    return picture


def side_m(dataset: Dataset) -> float | None:
    """Metres along a side of a pixel; None where the raster has no coordinates in a unit of length.

    Of pixels that are not square, the side of a square of equal area; in Mercator's projection, which enlarges towards
    the poles, at the raster's middle.
    """
    if dataset.crs is None or not dataset.crs.is_projected:
        return None
    metres: float = dataset.crs.linear_units_factor[1]
    side = math.sqrt(abs(dataset.transform.determinant)) * metres
    return side * math.cos(math.radians(_middle_latitude(dataset))) if is_mercator(dataset.crs) else side


def _middle_latitude(dataset: Dataset) -> float:
    from rasterio.warp import transform  # there is a dataset, so it is installed

    east, north = dataset.xy(dataset.height // 2, dataset.width // 2)
    latitude: float = transform(dataset.crs, "EPSG:4326", [east], [north])[1][0]
    return latitude


def is_mercator(crs: Any) -> bool:
    """Whether coordinates are in Mercator's projection, which enlarges by the secant of the latitude."""
    return crs.to_epsg() == 3857 or crs.to_dict().get("proj") in ("merc", "webmerc")


def _described(dataset: Dataset) -> str:
    """What the raster calls its bands, in parentheses; '' where it calls them nothing."""
    named = [f"{number} {name}" for number, name in enumerate(dataset.descriptions, start=1) if name]
    return f" ({', '.join(named[:20])})" if named else ""
