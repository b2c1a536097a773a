"""The map as a file: a GeoTIFF that knows where it lies and what its values mean.

Band 1 holds the class of each pixel, from 1 in the order of the model's classes, with a colour for each of up to 255;
band 2 how probable it is, in per cent. 0 is where the raster has no data. Smaller copies of it lie in the same file, so
that a viewer need not read all of it to show all of it.

The classes' names stand in the metadata: the item ``class_names`` as a JSON list, and in band 1 an item for each value.
For QGIS and all else that reads by GDAL they stand beside it too, as category names in ``map.tif.aux.xml``, where GDAL
looks for them: a GeoTIFF itself has no place for such.
"""

from __future__ import annotations

import colorsys
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.geotiff import RasterDataset, ignore_not_georeferenced, open_raster, read_errors
from efficientnetv2.geospatial.pixel_area import row_hectares
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import write_atomically, write_text_atomically
from efficientnetv2.utils.optional_deps import import_optional

BLOCK_PX = 256  # side of the blocks that a map is written and stored in; GDAL's habit
NODATA = 0  # of a map: classes count from 1, and so does confidence in per cent

Window = tuple[tuple[int, int], tuple[int, int]]  # first row and the one behind the last; columns likewise
# Writes a block: its classes and its per cent, (H, W) each, and where it lies.
WriteBlock = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64], Window], None]

_MOST_COLOURED = 255  # values of a byte, but the one for no data
_MOST_CLASSES = 65_535  # values of 16 bits, likewise
_TURN = 0.618034  # of the colour wheel between classes: the golden section, so that neighbours differ. Ours.
_COUNTED_PX = 2**20  # at a time, of a row of blocks: some 40 MB, however wide a map is. Ours.


def write_map(
    path: Path,
    source: RasterDataset,
    class_names: Sequence[str],
    fill: Callable[[WriteBlock], None],
    *,
    told: Mapping[str, str],
) -> None:
    """Write a map beside ``path``, then put it there whole; and its categories' names beside it.

    Args:
        path: of the map; its folder exists.
        source: the raster, for size and place.
        class_names: K of the model, at most 65,535.
        fill: is given the function that writes a block of it.
        told: further items of metadata.

    Raises:
        InputError: it has no room for so many classes, or it can't be written, as on a full disk.
    """
    if len(class_names) > _MOST_CLASSES:
        raise InputError(
            f"{path}: the model knows {len(class_names):,} classes, but a pixel of a map tells at most "
            f"{_MOST_CLASSES:,} apart. Give a model of fewer."
        )
    rasterio = import_optional("rasterio", "geo", "Writing a map")
    profile: dict[str, Any] = {
        "driver": "GTiff", "width": source.width, "height": source.height, "count": 2,
        "dtype": "uint8" if len(class_names) <= _MOST_COLOURED else "uint16", "nodata": NODATA,
        "tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "compress": "deflate",
        "interleave": "band", "photometric": "MINISBLACK", "bigtiff": "IF_SAFER",
    }  # fmt: skip
    if source.crs is not None or not source.transform.is_identity:
        profile |= {"crs": source.crs, "transform": source.transform}

    def written(partial: Path) -> None:
        sums: list[tuple[Window, int]] = []
        with rasterio.open(partial, "w", **profile) as target:

            def put(values: npt.NDArray[np.int64], per_cent: npt.NDArray[np.int64], window: Window) -> None:
                block = np.stack([values, per_cent]).astype(profile["dtype"])
                sums.append((window, zlib.crc32(block.tobytes())))
                target.write(block, window=window)

            _describe(target, class_names, told)
            fill(put)
        # What GDAL fails to write as it closes a file, it tells nobody.
        with rasterio.open(partial) as target:
            if any(zlib.crc32(target.read(window=window).tobytes()) != checksum for window, checksum in sums):
                raise OSError("what was written can't be read again")
        _add_overviews(partial)

    try:
        with ignore_not_georeferenced():
            write_atomically(path, written)
    except OSError as error:
        # GDAL's own words lie beneath rasterio's "see previous exception".
        reason = error.strerror or error.__cause__ or error.__context__ or error
        raise InputError(
            f"{path}: the map could not be written ({reason}). Is the disk full? Nothing was left there; give another "
            "place by --out."
        ) from error
    names = path.with_name(f"{path.name}.aux.xml")
    try:
        write_text_atomically(names, categories_xml(class_names))
    except OSError as error:
        raise InputError(
            f"{names}: the names of the classes, as QGIS reads them, could not be written ({error.strerror or error}): "
            f"is it open in another program? The map itself, {path}, is whole, and names its classes within."
        ) from error


def _add_overviews(partial: Path) -> None:
    """Copies of half the size, a quarter, and so on, down to a block; of each four pixels one stands for all.

    Raises:
        OSError: they can't be written whole.
    """
    from rasterio import open as opened_by_gdal
    from rasterio.enums import Resampling

    with opened_by_gdal(partial, "r+") as target:
        longer = max(target.width, target.height)
        factors = [2**power for power in range(1, 32) if longer > BLOCK_PX * 2 ** (power - 1)]
        if factors:  # nearest: a class between two others is neither of them
            with _as_os_error():
                target.build_overviews(factors, Resampling.nearest)
    for level in range(len(factors)):
        with opened_by_gdal(partial, overview_level=level) as copy:
            for _, window in copy.block_windows(1):
                copy.read(window=window)  # as above: what was lost in closing shows when it is read


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Around a step of rasterio that tells a full disk in its own words, or in GDAL's, which are no OSError.

    Raises:
        OSError: the step failed.
    """
    from rasterio._err import CPLE_BaseError  # named nowhere else
    from rasterio.errors import RasterioError

    try:
        yield
    except (CPLE_BaseError, RasterioError) as error:
        raise OSError(str(error)) from error


def categories_xml(class_names: Sequence[str]) -> str:
    """The names of a map's values as GDAL reads them beside a file: its "persistent auxiliary metadata".

    Args:
        class_names: K of the model.

    Returns:
        XML.
    """
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    listed = ElementTree.SubElement(band, "CategoryNames")
    for name in ("no data", *class_names):
        text = "".join(letter for letter in name if letter.isprintable())  # XML has no others
        ElementTree.SubElement(listed, "Category").text = text
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _describe(target: RasterDataset, class_names: Sequence[str], told: Mapping[str, str]) -> None:
    target.set_band_description(1, "class")
    target.set_band_description(2, "probability of the class, per cent")
    target.update_tags(class_names=json.dumps(list(class_names), ensure_ascii=False), **told)
    target.update_tags(1, **{f"class_{value}": name for value, name in enumerate(class_names, start=1)})
    if len(class_names) <= _MOST_COLOURED:
        target.write_colormap(1, {NODATA: (0, 0, 0, 0), **class_colors(len(class_names))})


def class_colors(classes: int) -> dict[int, tuple[int, int, int, int]]:
    """A colour, (red, green, blue, alpha) of 0 to 255, for each value of a map; the first is green."""
    table = {}
    for place in range(classes):
        hue = (1 / 3 + place * _TURN) % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.9 if place % 2 else 0.7)
        table[place + 1] = (round(255 * red), round(255 * green), round(255 * blue), 255)
    return table


def count_classes(
    path: Path,
) -> tuple[tuple[str, ...], npt.NDArray[np.int64], npt.NDArray[np.float64] | None]:
    """What a map says.

    Args:
        path: of a map that ``write`` made; other software may have clipped it or stored it anew.

    Returns:
        The names of its K classes, (K,) pixels of each, and (K,) hectares; None where a pixel's are not known.

    Raises:
        InputError: it is no such map, or holds a value that is none of its classes.
    """
    with open_raster(path) as dataset:
        names = read_class_names(dataset, path)
        pixels, hectares = np.zeros(len(names) + 1, np.int64), np.zeros(len(names) + 1)
        of_row = row_hectares(dataset)
        for rows, columns in _parts(dataset):
            with read_errors(dataset):
                stored = dataset.read(1, window=(rows, columns), masked=True)
            values = to_class_values(stored, len(names), path).ravel()
            pixels += np.bincount(values, minlength=len(pixels))
            if of_row is not None:
                each = np.repeat(of_row[slice(*rows)], columns[1] - columns[0])
                hectares += np.bincount(values, weights=each, minlength=len(pixels))
    return names, pixels[1:], None if of_row is None else hectares[1:]


def _parts(dataset: RasterDataset) -> Iterator[Window]:
    """Windows that cover a raster, none of which cuts a block of ours in two."""
    wide = _COUNTED_PX // BLOCK_PX
    for top in range(0, dataset.height, BLOCK_PX):
        for left in range(0, dataset.width, wide):
            yield (top, min(top + BLOCK_PX, dataset.height)), (left, min(left + wide, dataset.width))


def to_class_values(stored: npt.NDArray[Any], classes: int, path: Path) -> npt.NDArray[np.uint16]:
    """The classes that values of a map stand for, 0 where it has no data.

    Software for maps gives what it clips a nodata value of its own, and may store classes as floats.

    Args:
        stored: of band 1, of any shape and type; masked where the file says that there is no data.
        classes: K of the map.
        path: of the map, for the message.

    Returns:
        Of the same shape; 0 to K.

    Raises:
        InputError: a value is none of these.
    """
    values = np.ma.filled(stored, NODATA)
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=NODATA)
    wrong = (values < 0) | (values > classes)
    if values.dtype.kind == "f":
        wrong |= values != np.rint(values)
    if wrong.any():
        raise InputError(
            f"{path} holds the value {values[wrong].flat[0]:g}, but its classes are 1 to {classes}; {NODATA} is no "
            "data. Give it as effnetv2 geo map wrote it; or, if that means no data, say so in the file: with GDAL, "
            "gdal_edit -a_nodata."
        )
    return values.astype(np.uint16)


def is_map(path: Path) -> bool:
    """Whether a file is a map that ``write`` made."""
    try:
        with open_raster(path) as dataset:
            read_class_names(dataset, path)
    except InputError:
        return False
    return True


def read_class_names(dataset: RasterDataset, path: Path) -> tuple[str, ...]:
    """The names that a map's values stand for, in their order.

    Raises:
        InputError: it is no map of ours.
    """
    try:
        names = json.loads(dataset.tags()["class_names"])
    except (KeyError, ValueError):
        raise InputError(
            f"{path} is no map of effnetv2 geo map: its metadata has no class_names. Give a map made by it."
        ) from None
    return tuple(str(name) for name in names)
