"""Read rasters of any bands and bit depth with GDAL as uint8 images, by a rule, ``Bands``; area of their pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.image_io import Pixels
from efficientnetv2.data.open_image import IGNORED_WARNINGS
from efficientnetv2.preprocessing import RGB, Bands
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.optional_deps import import_optional
from efficientnetv2.utils.shell import shell_join

Valid = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Window = tuple[tuple[int, int], tuple[int, int]]  # rows and columns: the first, and the one behind the last
RasterDataset = Any  # rasterio.DatasetReader; rasterio has no types

# GDAL's cache of decoded blocks; its default is a twentieth of the machine's memory. Ours.
CACHE_MB = 128
COLORS = ("red", "green", "blue")  # GDAL's color interpretations
# Enabled drivers of GDAL: formats with pixels in the file, or in local files of its name. None reads from a network or
# from files that the content names, as VRT, WMS and HTTP do. Ours.
DRIVERS = (
    "GTiff", "JP2OpenJPEG", "PNG", "JPEG", "WEBP", "BMP", "GIF", "HFA", "ENVI", "EHdr", "ERS", "NITF", "AAIGrid",
    "SAGA", "SRTMHGT", "PCIDSK", "RMF", "SGI", "GRIB", "netCDF", "HDF5", "HDF5Image", "BAG", "GPKG",
)  # fmt: skip
# Overviews and masks, which GDAL opens by any driver: those that are no TIFFs may name other files or URLs.
_SIDECARS = (".ovr", ".msk")

# WGS 84: equatorial radius in meters, and the square of the eccentricity.
EARTH_RADIUS_M = 6_378_137.0
ECCENTRICITY_2 = 0.00669437999014
# Maximum relative error of a projection's area. UTM has less than half of it in its zone. Ours.
AREA_TOLERANCE = 0.01
_SQUARE_M = 1_000.0  # side of the measured square. Ours.


@contextmanager
def open_raster(path: str | Path, *, overviews: bool = True) -> Iterator[RasterDataset]:
    """Open a raster, with bounded memory. ``overviews`` uses the file's smaller copies, which are averages."""
    rasterio = import_optional("rasterio", "geo", f"Reading the raster {path}")
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file. Give a GeoTIFF or another raster.")
    for sidecar in (Path(f"{path}{suffix}") for suffix in _SIDECARS):
        if sidecar.is_file():
            with sidecar.open("rb") as file:
                if file.read(2) not in (b"II", b"MM"):
                    raise InputError(f"{sidecar} is not a TIFF, so {path} is not opened. Remove {sidecar.name}.")
    options = {} if overviews else {"OVERVIEW_LEVEL": "NONE"}
    # With this name, no file at a URL is opened.
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB, CPL_VSIL_CURL_ALLOWED_FILENAME="/none"):
        try:
            with IGNORED_WARNINGS:  # of missing georeferencing: commands explain its consequences
                # Unlike rasterio.open it takes several drivers.
                dataset = rasterio.io.DatasetReader(str(path), driver=list(DRIVERS), **options)
        except rasterio.errors.RasterioIOError as error:
            fix = ""
            if path.suffix.lower() == ".vrt":
                command = shell_join(["gdal_translate", str(path), str(path.with_suffix(".tif"))])
                fix = f" Files that it names are not opened; write one raster of them: {command}"
            raise InputError(f"{path} is not a raster that GDAL can open: {error}.{fix}") from error
        with dataset:
            if overview_file := dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE"):
                raise InputError(f"{path} has its overviews in '{overview_file}'. Remove its tag OVERVIEW_FILE.")
            yield dataset


def color_bands(dataset: RasterDataset) -> tuple[int, ...]:
    """Numbers of the bands named red, green and blue. Empty if any is missing."""
    colors = [color.name for color in dataset.colorinterp]
    return tuple(colors.index(color) + 1 for color in COLORS) if set(COLORS) <= set(colors) else ()


def all_bands(dataset: RasterDataset) -> tuple[int, ...]:
    """Numbers, from 1, of all bands but alpha. Red, green and blue come first, if the raster names all three."""
    named = color_bands(dataset)
    colors = enumerate(dataset.colorinterp, start=1)
    return (*named, *(number for number, color in colors if color.name != "alpha" and number not in named))


def visible_bands(dataset: RasterDataset) -> tuple[int, ...]:
    """Numbers of the default bands: those named red, green and blue; a single band three times; else all but alpha."""
    every = all_bands(dataset)
    return color_bands(dataset) or (every * RGB if len(every) == 1 else every)


def band_names(dataset: RasterDataset, numbers: Sequence[int]) -> tuple[str, ...]:
    """Descriptions of bands, '' for none."""
    return tuple(dict(enumerate(dataset.descriptions, start=1)).get(number) or "" for number in numbers)


def band_names_or_colors(dataset: RasterDataset, numbers: Sequence[int]) -> tuple[str, ...]:
    """Descriptions of bands, else red, green or blue if the raster names all three."""
    colors = dict(zip(color_bands(dataset), COLORS, strict=False))  # none where one is missing
    names = zip(numbers, band_names(dataset, numbers), strict=True)
    return tuple(name or colors.get(number, "") for number, name in names)


def read_raster(dataset: RasterDataset, bands: Bands, window: Window | None = None) -> tuple[Pixels, Valid]:
    """The raster, or a window, as (H, W, channels) uint8, and where any band has data. Raises InputError."""
    values, present = read_values(dataset, bands.numbers, window, nodata=bands.nodata)
    valid: Valid = np.logical_or.reduce(present)
    return scale_to_uint8(values, present, bands), valid


@contextmanager
def read_errors(dataset: RasterDataset) -> Iterator[None]:
    """Translate read errors: raises InputError if the file is damaged or cut short."""
    try:
        yield
    except OSError as error:
        reason = error.__cause__ or error
        raise InputError(f"{dataset.name} is damaged or cut short ({reason}). Download it again.") from error


def read_values(
    dataset: RasterDataset,
    numbers: tuple[int, ...],
    window: Window | None,
    shape: tuple[int, int] | None = None,
    *,
    nodata: Sequence[float] = (),
) -> tuple[npt.NDArray[Any], Valid]:
    """Stored values, and whether each is valid: (bands, H, W) both. ``shape`` reads fewer pixels, evenly.

    ``nodata`` are missing data besides the file's own. The file's 0 is valid where another band has data.
    """
    distinct = sorted(set(numbers))
    size = {} if shape is None else {"out_shape": (len(distinct), *shape)}
    with read_errors(dataset):
        stored = dataset.read(distinct, window=window, **size)
        present = dataset.read_masks(distinct, window=window, **size) > 0
    # A band named alpha masks nothing if it is read as a band. GDAL names the fourth of four 8-bit bands so where the
    # file does not name it: often it is near infrared.
    flags = {flag.name for band in dataset.mask_flag_enums for flag in band}
    if "alpha" in flags and any(dataset.colorinterp[number - 1].name == "alpha" for number in distinct):
        present[:] = True
    if stored.dtype.kind == "f":
        present &= np.isfinite(stored)
    somewhere = present.any(axis=0)
    for place, number in enumerate(distinct):
        if dataset.nodatavals[number - 1] == 0:
            present[place] |= somewhere & np.isfinite(stored[place])
    places = [distinct.index(number) for number in numbers]
    values = stored[places]
    return values, mask_nodata(values, present[places], nodata)


def mask_nodata(values: npt.NDArray[Any], present: Valid, nodata: Sequence[float]) -> Valid:
    """Where (bands, H, W) values are present and none of the nodata values. 0 is valid where another band has data."""
    for value in nodata:
        if values.dtype.kind == "f":  # the value as the file stores it, such as the lowest of float32
            with np.errstate(over="ignore"):
                lacks = values == values.dtype.type(value)
        else:
            lacks = values.astype(np.float64) == np.float64(value)
        if value == 0:
            lacks &= (lacks | ~present).all(axis=0)
        present = present & ~lacks
    return present


def scale_to_uint8(values: npt.NDArray[Any], present: Valid, bands: Bands) -> Pixels:
    """(channels, H, W) stored values, and whether each is valid, as an (H, W, channels) uint8 image."""
    image = np.empty((*values.shape[1:], len(values)), np.uint8)
    for channel, (low, high, level) in enumerate(zip(bands.low, bands.high, bands.missing, strict=True)):
        band = values[channel]
        if band.dtype == np.uint8 and (low, high) == (0, 255):
            image[..., channel] = band
        else:
            # float32 is too coarse for 32-bit integers and 64-bit floats.
            wide = np.float32 if band.dtype.itemsize <= 2 or band.dtype == np.float32 else np.float64
            with np.errstate(over="ignore"):  # nodata may be the smallest float
                scaled = (band.astype(wide) - wide(low)) * wide(255 / (high - low))
            # Infinities are clipped like all other values; NaN is missing data.
            image[..., channel] = np.rint(np.nan_to_num(scaled).clip(0, 255))
        image[..., channel][~present[channel]] = level
    return image


def pixel_side_m(dataset: RasterDataset) -> float | None:
    """Side of a square of a pixel's area in meters, or None without coordinates in a unit of length.

    Projections whose areas are off by 1 % or more are corrected for the center of the raster.
    """
    if dataset.crs is None or not dataset.crs.is_projected:
        return None
    side: float = math.sqrt(abs(dataset.transform.determinant)) * dataset.crs.linear_units_factor[1]
    share = ground_share(dataset, dataset.height // 2, dataset.width // 2)
    return side if share is None or abs(share - 1) <= AREA_TOLERANCE else side * math.sqrt(share)


def ground_share(dataset: Any, row: int, column: int) -> float | None:
    """Area on the ellipsoid / area in a raster's projection, around a pixel. None outside the projection's range."""
    from rasterio._err import CPLE_BaseError
    from rasterio.warp import transform

    half = _SQUARE_M / 2 / dataset.crs.linear_units_factor[1]
    east, north = dataset.xy(row, column)
    xs = [east - half, east + half, east + half, east - half]
    ys = [north - half, north - half, north + half, north + half]
    with suppress(CPLE_BaseError):
        places = np.array(transform(dataset.crs, "EPSG:4326", xs, ys))
        if np.isfinite(places).all():
            square = _in_space(*places)
            area = np.linalg.norm(np.cross(square[2] - square[0], square[3] - square[1])) / 2
            return float(area) / _SQUARE_M**2
    return None


def _in_space(longitudes: Floats, latitudes: Floats) -> Floats:
    """(n, 3) meters from the earth's center: continuous across the date line and at the poles."""
    longitude, latitude = np.radians(longitudes), np.radians(latitudes)
    radius = EARTH_RADIUS_M / np.sqrt(1 - ECCENTRICITY_2 * np.sin(latitude) ** 2)
    across = radius * np.cos(latitude)
    height = radius * (1 - ECCENTRICITY_2) * np.sin(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), height], axis=1)
