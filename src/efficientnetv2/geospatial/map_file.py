"""Maps as GeoTIFF files, and the ground area of their pixels.

Band 1 holds the class of each pixel, from 1 in the order of the model's classes, with a color table for up to 255
classes; band 2 its probability in percent. 0 means no data. Overviews let a viewer show the whole map fast.

Class names are metadata: ``class_names`` as a JSON list, and an item of band 1 for each value. QGIS and other software
read them as category names from ``map.tif.aux.xml``, where GDAL looks for them.
"""

from __future__ import annotations

import colorsys
import json
import math
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.geotiff import (
    AREA_TOLERANCE,
    EARTH_RADIUS_M,
    ECCENTRICITY_2,
    RasterDataset,
    Window,
    ground_share,
    open_raster,
    pixel_side_m,
    read_errors,
)
from efficientnetv2.data.records import Ints
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import write_atomically, write_text_atomically
from efficientnetv2.utils.optional_deps import import_optional

BLOCK_PX = 256  # side of the blocks of a map. Source: GDAL's default
NODATA = 0

# Writes a block: (H, W) classes and percent, and where it lies.
WriteBlock = Callable[[Ints, Ints, Window], None]

_MAX_COLORED = 255  # values of a byte, except the one for no data
_MAX_CLASSES = 65_535  # values of 16 bits, also
_COUNTED_PX = 2**20  # pixels to count at a time: about 40 MB, however wide a map is. Ours.


def write_map(
    path: Path,
    source: RasterDataset,
    class_names: Sequence[str],
    fill: Callable[[WriteBlock], None],
    *,
    metadata: Mapping[str, str],
) -> None:
    """Write a map of the size and location of ``source`` atomically, and the category names next to it.

    ``fill`` gets the function that writes a block. Raises InputError, as on a full disk.
    """
    if len(class_names) > _MAX_CLASSES:
        raise InputError(f"{path}: a map has at most {_MAX_CLASSES:,} classes, not {len(class_names):,}.")
    rasterio = import_optional("rasterio", "geo", "Writing a map")
    profile: dict[str, Any] = {
        "driver": "GTiff", "width": source.width, "height": source.height, "count": 2,
        "dtype": "uint8" if len(class_names) <= _MAX_COLORED else "uint16", "nodata": NODATA,
        "tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "compress": "deflate",
        "interleave": "band", "photometric": "MINISBLACK", "bigtiff": "IF_SAFER",
    }  # fmt: skip
    if source.crs is not None or not source.transform.is_identity:
        profile |= {"crs": source.crs, "transform": source.transform}

    def write(partial: Path) -> None:
        checksums: list[tuple[Window, int]] = []
        with rasterio.open(partial, "w", **profile) as target:

            def write_block(values: Ints, percent: Ints, window: Window) -> None:
                block = np.stack([values, percent]).astype(profile["dtype"])
                checksums.append((window, zlib.crc32(block.tobytes())))
                target.write(block, window=window)

            points, crs = source.gcps
            if points and crs is not None and source.transform.is_identity:  # with points, GDAL clears a transform
                target.gcps = points, crs
            if rpcs := source.tags(ns="RPC"):
                target.update_tags(ns="RPC", **rpcs)
            _write_metadata(target, class_names, metadata)
            fill(write_block)
        # GDAL reports no errors while it closes a file.
        with rasterio.open(partial) as target:
            if any(zlib.crc32(target.read(window=window).tobytes()) != crc for window, crc in checksums):
                raise OSError("the written file can't be read")
        _add_overviews(partial)

    try:
        # Commands explain the consequences of a missing location.
        with warnings.catch_warnings(action="ignore", category=rasterio.errors.NotGeoreferencedWarning):
            write_atomically(path, write)
    except OSError as error:
        # GDAL's message is the cause of rasterio's "see previous exception".
        reason = error.strerror or error.__cause__ or error.__context__ or error
        raise InputError(f"{path}: the map could not be written ({reason}). Is the disk full?") from error
    names = path.with_name(f"{path.name}.aux.xml")
    try:
        write_text_atomically(names, categories_xml(class_names))
    except OSError as error:
        fault = f"the class names for QGIS could not be written ({error.strerror or error})"
        raise InputError(f"{names}: {fault}. The map itself is complete.") from error


def _write_metadata(target: RasterDataset, class_names: Sequence[str], metadata: Mapping[str, str]) -> None:
    target.set_band_description(1, "class")
    target.set_band_description(2, "probability of the class, per cent")
    target.update_tags(class_names=json.dumps(list(class_names), ensure_ascii=False), **metadata)
    target.update_tags(1, **{f"class_{value}": name for value, name in enumerate(class_names, start=1)})
    if len(class_names) <= _MAX_COLORED:
        target.write_colormap(1, {NODATA: (0, 0, 0, 0), **class_colors(len(class_names))})


def _add_overviews(partial: Path) -> None:
    """Add copies of half the size, a quarter, and so on, down to a block, with nearest values. Raises OSError."""
    import rasterio
    from rasterio._err import CPLE_BaseError  # exported nowhere else
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioError

    with rasterio.open(partial, "r+") as target:
        longer = max(target.width, target.height)
        factors = [2**power for power in range(1, 32) if longer > BLOCK_PX * 2 ** (power - 1)]
        if factors:
            try:
                target.build_overviews(factors, Resampling.nearest)
            except (CPLE_BaseError, RasterioError) as error:  # not OSErrors
                raise OSError(str(error)) from error
    for level in range(len(factors)):
        with rasterio.open(partial, overview_level=level) as overview:
            for _, window in overview.block_windows(1):
                overview.read(window=window)  # fails if it was not written whole


def categories_xml(class_names: Sequence[str]) -> str:
    """Class names in GDAL's format of category names, "persistent auxiliary metadata"."""
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    categories = ElementTree.SubElement(band, "CategoryNames")
    for name in ("no data", *class_names):
        printable = "".join(filter(str.isprintable, name))  # XML allows no others
        ElementTree.SubElement(categories, "Category").text = printable
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def class_colors(classes: int) -> dict[int, tuple[int, int, int, int]]:
    """Red, green, blue and alpha, 0 to 255, of each value of a map; the first is green."""
    table = {}
    for place in range(classes):
        hue = (1 / 3 + place * 0.618034) % 1  # by the golden ratio, so that neighboring classes differ. Ours.
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.9 if place % 2 else 0.7)
        table[place + 1] = (round(255 * red), round(255 * green), round(255 * blue), 255)
    return table


def count_classes(path: Path) -> tuple[tuple[str, ...], Ints, npt.NDArray[np.float64] | None]:
    """Names, (K,) pixels and (K,) hectares, None if not known, of the classes of a map."""
    with open_raster(path) as dataset:
        names = read_class_names(dataset, path)
        pixels, hectares = np.zeros(len(names) + 1, np.int64), np.zeros(len(names) + 1)
        hectares_of_row = row_hectares(dataset)
        width = _COUNTED_PX // BLOCK_PX
        corners = [(y, x) for y in range(0, dataset.height, BLOCK_PX) for x in range(0, dataset.width, width)]
        for top, left in corners:  # without cutting blocks
            bottom, right = min(top + BLOCK_PX, dataset.height), min(left + width, dataset.width)
            with read_errors(dataset):
                stored = dataset.read(1, window=((top, bottom), (left, right)), masked=True)
            values = to_class_values(stored, len(names), path).ravel()
            pixels += np.bincount(values, minlength=len(pixels))
            if hectares_of_row is not None:
                each = np.repeat(hectares_of_row[top:bottom], right - left)
                hectares += np.bincount(values, weights=each, minlength=len(pixels))
    return names, pixels[1:], None if hectares_of_row is None else hectares[1:]


def to_class_values(stored: npt.NDArray[Any], classes: int, path: Path) -> npt.NDArray[np.uint16]:
    """Stored values of band 1, masked without data, as 0 to ``classes``; other software may store floats."""
    values = np.ma.filled(stored, NODATA)
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=NODATA)
    wrong = (values < 0) | (values > classes)
    if values.dtype.kind == "f":
        wrong |= values != np.rint(values)
    if wrong.any():
        raise InputError(
            f"{path} holds the value {values[wrong].flat[0]:g}, but its classes are 1 to {classes}, and {NODATA} is no "
            "data. If the value means no data, declare it: gdal_edit -a_nodata."
        )
    return values.astype(np.uint16)


def is_map(path: Path) -> bool:
    """Whether a file is a map of ``write_map``."""
    try:
        with open_raster(path) as dataset:
            read_class_names(dataset, path)
    except InputError:
        return False
    return True


def read_class_names(dataset: RasterDataset, path: Path) -> tuple[str, ...]:
    """The class names of a map, in the order of its values; raises InputError if it is no map of ``write_map``."""
    try:
        names = json.loads(dataset.tags()["class_names"])
    except (KeyError, ValueError):
        raise InputError(f"{path} has no class_names. Give a map of effnetv2 geo map.") from None
    return tuple(str(name) for name in names)


def row_hectares(dataset: RasterDataset) -> npt.NDArray[np.float64] | None:
    """(H,) hectares of a pixel in each row of a raster; in degrees on the ellipsoid WGS 84. None if not known.

    Source: Snyder, Map projections: a working manual (USGS Professional Paper 1395, 1987), equation 3-12.
    """
    crs, transform = dataset.crs, dataset.transform
    if crs is None:
        return None
    if crs.is_projected:
        if distortion_warning(dataset):
            return None
        side = pixel_side_m(dataset)
        assert side is not None, "a projection has a unit of length"
        return np.full(dataset.height, side**2 / 1e4)
    if not crs.is_geographic or transform.b or transform.d:
        return None
    edges = transform.f + transform.e * np.arange(dataset.height + 1)
    sine, eccentricity = np.sin(np.radians(edges.clip(-90, 90))), math.sqrt(ECCENTRICITY_2)
    logarithm = np.log((1 - eccentricity * sine) / (1 + eccentricity * sine))
    # Snyder's q: from the equator to a latitude the area is radius² / 2 * q per radian of longitude.
    q = (1 - ECCENTRICITY_2) * (sine / (1 - ECCENTRICITY_2 * sine**2) - logarithm / (2 * eccentricity))
    width = math.radians(abs(transform.a))
    return np.asarray(EARTH_RADIUS_M**2 / 2 * width * np.abs(np.diff(q)) / 1e4, np.float64)


def distortion_warning(dataset: RasterDataset) -> str:
    """Why areas of a projected raster are given in pixels; '' if they are true in the middle and the corners."""
    crs = dataset.crs
    if crs is None or not crs.is_projected:
        return ""
    bottom, right = dataset.height - 1, dataset.width - 1
    middle = (dataset.height // 2, dataset.width // 2)
    places = [middle, (0, 0), (0, right), (bottom, 0), (bottom, right)]
    shares = [share for place in places if (share := ground_share(dataset, *place)) is not None]
    if shares and max(abs(share - 1) for share in shares) <= AREA_TOLERANCE:
        return ""
    ends = [f"{share:.0%}" for share in (min(shares), max(shares))] if shares else ["an unknown share"]
    covered = " to ".join(dict.fromkeys(ends))
    return (
        f"Areas are given in pixels: in this projection a pixel covers {covered} of its stated area. Project the "
        "raster first, such as with gdalwarp -t_srs EPSG:32721 (the number of your zone)."
    )
