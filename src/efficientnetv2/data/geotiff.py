"""GeoTIFF and what else GDAL opens: any number of bands and any depth become a picture, by one rule.

The rule is ``Bands``: which bands are the channels, and which values become 0 and 255. A pixel has data where one of
these bands has; where a band has none, its level ``missing`` stands.
"""

from __future__ import annotations

import math
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.geodesy import RADIUS_M, TOLERANCE, ground_share
from efficientnetv2.data.image_io import Pixels
from efficientnetv2.preprocessing import RGB, Bands
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.optional_deps import needed
from efficientnetv2.utils.shell import typed

Valid = npt.NDArray[np.bool_]
RasterDataset = Any  # rasterio.DatasetReader; rasterio has no types

# GDAL keeps blocks it has decoded; by itself it would take a twentieth of the machine's memory. Ours.
CACHE_MB = 128
COLORS = ("red", "green", "blue")  # GDAL's words for what a band is seen as
# Names of Mercator's projection, of one or two standard parallels, on the ellipsoid or on a sphere; others, such as the
# transverse one, begin otherwise. In WKT it is PROJECTION or METHOD.
_MERCATOR = re.compile(
    r'\b(PROJECTION|METHOD)\["(Mercator|Popular[ _]Visualisation[ _]Pseudo[ _]Mercator)', re.IGNORECASE
)
_STEP_M = 1_000.0  # in Mercator's projection, to see how far that is on the equator. Ours.
# GDAL's drivers that are used: formats of files whose pixels lie in the file, or in local files beside it. None of them
# takes pixels from a network or from other files that the content names, as VRT, WMS and HTTP do. Ours.
DRIVERS = (
    "GTiff", "JP2OpenJPEG", "PNG", "JPEG", "WEBP", "BMP", "GIF", "HFA", "ENVI", "EHdr", "ERS", "NITF", "AAIGrid",
    "SAGA", "SRTMHGT", "PCIDSK", "RMF", "SGI", "GRIB", "netCDF", "HDF5", "HDF5Image", "BAG", "GPKG",
)  # fmt: skip
_BESIDE = (".ovr", ".msk")  # suffixes of overviews and masks, which GDAL opens by any driver
_TIFF_STARTS = (b"II", b"MM")
_OPENING = threading.Lock()  # which warnings are shown is the whole process's affair


@contextmanager
def open_raster(path: str | Path, *, overviews: bool = True) -> Iterator[RasterDataset]:
    """A raster to read from, of bounded memory.

    Args:
        path: of it.
        overviews: read fewer pixels from the smaller copies that the file may hold, which are averages; else from its
            own.

    Raises:
        InputError: the extra ``geo`` is not installed, there is no such file, it is no raster of ``DRIVERS``, or it
            refers to overviews elsewhere.
    """
    rasterio = needed("rasterio", "geo", f"Reading the raster {path}")
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist, or is no file. Give a GeoTIFF or another raster.")
    _refuse_strange_beside(path)
    # This would be the only file at a URL that is opened.
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB, CPL_VSIL_CURL_ALLOWED_FILENAME="/none"):
        try:
            with _OPENING, ignore_not_georeferenced():
                # Unlike rasterio.open it takes several drivers.
                dataset = rasterio.io.DatasetReader(
                    str(path), driver=list(DRIVERS), **({} if overviews else {"OVERVIEW_LEVEL": "NONE"})
                )
        except rasterio.errors.RasterioIOError as error:
            if Path(path).suffix.lower() == ".vrt":
                tif = Path(path).with_suffix(".tif")
                raise InputError(
                    f"{path} only names other files, which are not opened for it. Write one raster of them: "
                    f"{typed(['gdal_translate', str(path), str(tif)])}"
                ) from error
            raise InputError(f"{path} is no raster that GDAL can open: {error}.") from error
        with dataset:
            if elsewhere := dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE"):
                raise InputError(
                    f"{path} names '{elsewhere}' as its overviews. Remove this tag OVERVIEW_FILE from it."
                )
            yield dataset


def _refuse_strange_beside(path: str | Path) -> None:
    """Refuse overviews and masks beside a raster that are no TIFFs: their content may name other files, or URLs.

    Raises:
        InputError: naming the file.
    """
    for suffix in _BESIDE:
        beside = Path(f"{path}{suffix}")
        if beside.is_file():
            with beside.open("rb") as file:
                start = file.read(2)
            if start not in _TIFF_STARTS:
                raise InputError(f"{beside} is no TIFF, so {path} is not opened. Remove {beside.name}.")


@contextmanager
def ignore_not_georeferenced() -> Iterator[None]:
    """Without rasterio's warning that a raster is placed nowhere: commands say what follows from that."""
    rasterio = needed("rasterio", "geo", "Reading a raster")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


def visible_bands(dataset: RasterDataset) -> tuple[int, ...]:
    """Which bands a picture is made of where nobody says it: those that the raster calls red, green and blue.

    Where it does not, a single band three times, as a grey picture; else all of them, but not an alpha band.

    Args:
        dataset: opened.
    """
    named = color_bands(dataset)
    every = all_bands(dataset)
    if len(named) == RGB:
        return named
    return every * RGB if len(every) == 1 else every


def all_bands(dataset: RasterDataset) -> tuple[int, ...]:
    """Every band but alpha, from 1; those that the raster calls red, green and blue first, in that order.

    Args:
        dataset: opened.
    """
    named = color_bands(dataset)
    others = [
        number
        for number, colour in enumerate(dataset.colorinterp, start=1)
        if colour.name != "alpha" and number not in named
    ]
    return (*named, *others)


def color_bands(dataset: RasterDataset) -> tuple[int, ...]:
    """The bands that the raster calls red, green and blue (``COLORS``); none where one of these is not there."""
    colours = [colour.name for colour in dataset.colorinterp]
    there = all(colour in colours for colour in COLORS)
    return tuple(colours.index(colour) + 1 for colour in COLORS) if there else ()


def band_names(dataset: RasterDataset, numbers: Sequence[int]) -> tuple[str, ...]:
    """What the raster describes some of its bands as; '' where it says nothing, or has no such band."""
    names = [name or "" for name in dataset.descriptions]
    return tuple(names[number - 1] if number <= len(names) else "" for number in numbers)


def band_names_or_colors(dataset: RasterDataset, numbers: Sequence[int]) -> tuple[str, ...]:
    """What the raster calls some of its bands: as ``band_names``, else red, green or blue where it has all three."""
    colours = dict(zip(color_bands(dataset), COLORS, strict=False))  # none where one is missing
    names = zip(numbers, band_names(dataset, numbers), strict=True)
    return tuple(name or colours.get(number, "") for number, name in names)


def read_raster(
    dataset: RasterDataset,
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
        (height, width, channels) uint8, and (height, width) whether there is data.

    Raises:
        InputError: the file is damaged or cut short.
    """
    width = dataset.width - left if width is None else width
    height = dataset.height - top if height is None else height
    window = ((top, top + height), (left, left + width))
    values, present = read_values(dataset, bands.numbers, window, nodata=bands.nodata)
    valid: Valid = np.logical_or.reduce(present)
    return scale_to_uint8(values, present, bands), valid


@contextmanager
def read_errors(dataset: RasterDataset) -> Iterator[None]:
    """Around whatever reads values.

    Args:
        dataset: opened.

    Raises:
        InputError: the file is damaged or cut short.
    """
    try:
        yield
    except OSError as error:
        reason = error.__cause__ or error
        raise InputError(
            f"{dataset.name} can't be read to its end ({reason}): it is damaged or cut short. Fetch it again."
        ) from error


def read_values(
    dataset: RasterDataset,
    numbers: tuple[int, ...],
    window: tuple[tuple[int, int], tuple[int, int]],
    shape: tuple[int, int] | None = None,
    *,
    nodata: Sequence[float] = (),
) -> tuple[npt.NDArray[Any], Valid]:
    """Values as they are stored, and where there are any.

    Args:
        dataset: opened.
        numbers: of the bands, from 1.
        window: first and last row, first and last column; the last ones are not within.
        shape: (H, W) to take fewer pixels, evenly; None takes all.
        nodata: Values that mean missing data in any band, besides those that the file declares.

    Returns:
        (bands, H, W) twice: the values, and whether each is one: a number, and neither the file's nodata value nor
        masked by the file. A 0 that is the nodata value counts where another of the bands has data: it may well be
        meant.

    Raises:
        InputError: the file is damaged or cut short.
    """
    distinct = sorted(set(numbers))
    size = {} if shape is None else {"out_shape": (len(distinct), *shape)}
    with read_errors(dataset):
        stored = dataset.read(distinct, window=window, **size)
        present = dataset.read_masks(distinct, window=window, **size) > 0
    if _asks_for_alpha(dataset, distinct):
        present[:] = True
    if stored.dtype.kind == "f":
        present &= np.isfinite(stored)
    somewhere = present.any(axis=0)
    for place, number in enumerate(distinct):
        if dataset.nodatavals[number - 1] == 0:
            present[place] |= somewhere & np.isfinite(stored[place])
    asked = [distinct.index(number) for number in numbers]
    return stored[asked], mask_nodata(stored[asked], present[asked], nodata)


def mask_nodata(values: npt.NDArray[Any], present: Valid, nodata: Sequence[float]) -> Valid:
    """Where values are present and none of those that mean missing data; both arrays (bands, H, W)."""
    for value in nodata:
        present = present & (values.astype(np.float64) != np.float64(value))
    return present


def _asks_for_alpha(dataset: RasterDataset, numbers: Sequence[int]) -> bool:
    """Whether all that masks a raster is a band called alpha that is asked for as a band, and so masks nothing.

    GDAL calls the fourth of four 8-bit bands so where the file does not say what it is: often it is near infrared.
    """
    flags = {flag.name for band in dataset.mask_flag_enums for flag in band}
    alpha = [number for number, colour in enumerate(dataset.colorinterp, start=1) if colour.name == "alpha"]
    return "alpha" in flags and bool(set(alpha) & set(numbers))


def scale_to_uint8(values: npt.NDArray[Any], present: Valid, bands: Bands) -> Pixels:
    """Values of bands as a picture.

    Args:
        values: (channels, H, W), as stored.
        present: (channels, H, W) whether each is a value.
        bands: the rule.

    Returns:
        (H, W, channels) uint8.
    """
    picture = np.empty((*values.shape[1:], len(values)), np.uint8)
    for channel, (low, high, level) in enumerate(zip(bands.low, bands.high, bands.missing, strict=True)):
        band = values[channel]
        if band.dtype == np.uint8 and (low, high) == (0, 255):
            picture[..., channel] = band
        else:
            # Whole numbers of 32 bits, and floats of 64, lose in float32 what they differ by.
            wide = np.float32 if band.dtype.itemsize <= 2 or band.dtype == np.float32 else np.float64
            with np.errstate(over="ignore"):  # of nodata such as the least float
                scaled = (band.astype(wide) - wide(low)) * wide(255 / (high - low))
            # What is too large is cut like all that lies beyond; a NaN is absent.
            picture[..., channel] = np.rint(np.nan_to_num(scaled).clip(0, 255))
        picture[..., channel][~present[channel]] = level
    return picture


def pixel_side_m(dataset: RasterDataset) -> float | None:
    """Metres along a side of a pixel; None where the raster has no coordinates in a unit of length.

    Of pixels that are not square, the side of a square of equal area. In Mercator's projection, which enlarges towards
    the poles, and in others that are not true to area by 1 % or more, such as a polar stereographic one far from the
    latitude that it is true at, what that is on the ground at the raster's middle.
    """
    if dataset.crs is None or not dataset.crs.is_projected:
        return None
    metres: float = dataset.crs.linear_units_factor[1]
    side = math.sqrt(abs(dataset.transform.determinant)) * metres
    if is_mercator(dataset.crs):
        return side * _ground_m(dataset, metres)
    share = ground_share(dataset, dataset.height // 2, dataset.width // 2)
    return side if share is None or abs(share - 1) <= TOLERANCE else side * math.sqrt(share)


def _ground_m(dataset: RasterDataset, metres: float) -> float:
    """Metres on the ground that a metre in Mercator's projection is, at a raster's middle.

    What it is on the equator, by the longitudes that it goes over: more than one where the projection is true to scale
    at another latitude; times the cosine of the latitude.

    Args:
        dataset: opened.
        metres: of its unit of length.
    """
    from rasterio.warp import transform  # there is a dataset, so it is installed

    east, north = dataset.xy(dataset.height // 2, dataset.width // 2)
    places = ([east, east + _STEP_M / metres], [north, north])
    (first, second), (latitude, _) = transform(dataset.crs, "EPSG:4326", *places)
    turned = math.radians((second - first) % 360)  # beyond the date line they count from -180
    return RADIUS_M * turned / _STEP_M * math.cos(math.radians(latitude))


def is_mercator(crs: Any) -> bool:
    """Whether coordinates are in Mercator's projection, which enlarges by the secant of the latitude."""
    return _MERCATOR.search(crs.to_wkt()) is not None
