"""What a TIFF is, to Pillow and to GDAL: an ordinary picture, a raster, or neither."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from efficientnetv2.data.geotiff import RasterDataset, open_raster, read_errors, visible_bands
from efficientnetv2.data.image_formats import MAX_SIDE, open_image
from efficientnetv2.data.image_io import MIN_SIDE, max_pixels
from efficientnetv2.data.raster_checks import cmyk_fault, multipage_fault
from efficientnetv2.preprocessing import RGB
from efficientnetv2.utils.errors import InputError, count_of

#: How files are called that may be rasters.
SUFFIXES = (".tif", ".tiff")
# How a TIFF begins, in either order of bytes, and one of more than 4 GB.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Ways to store a TIFF's values that Pillow knows by their numbers, and can read only as its own libtiff was built.
_SELDOM_READ = ("lzma", "zstd", "webp")
_PLAIN_BANDS = (1, 3)
_ORIENTATION = 274  # its tag in a TIFF


def is_raster(path: str) -> bool:
    """Whether a file is called as a raster is; ordinary pictures may be called so too."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def has_gdal() -> bool:
    """Whether the extra ``geo`` is installed."""
    return importlib.util.find_spec("rasterio") is not None


def needs_gdal(path: str) -> bool:
    """Whether a file is a TIFF that Pillow does not know, so that only the extra ``geo`` could read it."""
    if not unknown_to_pillow(path):
        return False
    with open(path, "rb") as file:
        return is_tiff(file.read(4))


def is_tiff(content: bytes) -> bool:
    """Whether the bytes of a file begin as a TIFF does."""
    return content[:4] in _TIFF


def probe_raster(path: str) -> tuple[str, str]:
    """Why a raster cannot be used, or ''; and what it is, in words. As ``data.file_probe`` wants it.

    Of its values only the last block is read: a file that is cut short lacks it, and it takes a few milliseconds.
    """
    if not has_gdal():
        return "is a raster that only the extra 'geo' reads (pip install rasterio)", ""
    try:
        with open_raster(path) as dataset:
            if min(dataset.width, dataset.height) < MIN_SIDE:
                return f"is too small: {dataset.width}×{dataset.height} px", ""
            if not dataset.count:
                return "has no bands", ""
            if fault := size_fault(dataset):
                return fault, ""
            return _end_lacking(dataset), f"rasters of {dataset.count} x {dataset.dtypes[0]}"
    except InputError:
        return "is not an image that Pillow can read, and no raster that GDAL can open", ""


def truncation_fault(path: str) -> str:
    """Why a raster whose first band Pillow has read can't be used, or '': others may lie behind; '' without ``geo``."""
    if not has_gdal():
        return ""
    try:
        with open_raster(path) as dataset:
            return _end_lacking(dataset) if dataset.count else ""
    except InputError:  # what GDAL can't open, Pillow has read
        return ""


def _end_lacking(dataset: RasterDataset) -> str:
    """Why a raster is not whole, or '': the last block of its last band lies at the end of a file, or near it."""
    height, width = dataset.block_shapes[-1]
    top, left = (
        (side - 1) // block * block for side, block in zip(dataset.shape, (height, width), strict=True)
    )
    try:
        with read_errors(dataset):
            dataset.read(dataset.count, window=((top, dataset.height), (left, dataset.width)))
    except InputError:
        return "is a raster that is cut short or damaged: its last block can't be read"
    return ""


def unknown_to_pillow(path: str) -> bool:
    """Whether Pillow does not know a file for a picture, or not how its values are stored.

    What else is wrong with one, whoever reads it will say.
    """
    try:
        with warnings.catch_warnings(action="ignore"), open_image(path) as image:
            return image.info.get("compression") in _SELDOM_READ and not _loads(image)
    except UnidentifiedImageError:
        return True
    except Exception:
        return False


def _loads(image: Image.Image) -> bool:
    try:
        image.load()
    except Exception:  # decoders raise all kinds
        return False
    return True


def orientation(path: str) -> int:
    """How a TIFF says that its pixels are turned, 1 to 8 as TIFF numbers it, which GDAL does not heed; else 1."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            if head[:4] not in _TIFF:
                return 1
            tags = ImageFileDirectory_v2(head + (file.read(8) if b"+" in head[2:4] else b""))
            file.seek(tags.next)
            tags.load(file)
            said = tags.get(_ORIENTATION, 1)
    except Exception:  # whatever else is wrong with it, whoever reads it will say
        return 1
    return said if isinstance(said, int) and said in range(1, 9) else 1


def size_fault(dataset: RasterDataset) -> str:
    """Why a raster can't be a picture, to follow its name; '' where it can."""
    pixels = dataset.width * dataset.height
    fix = "Cut it into pieces, with GDAL by gdal_retile.py; a model answers it as it is by effnetv2 map"
    if pixels > max_pixels():
        return f"has {pixels / 1e6:,.0f} million pixels, more than the {max_pixels() // 1_000_000} of a picture. {fix}"
    if max(dataset.shape) > MAX_SIDE:
        return f"is {dataset.width:,} x {dataset.height:,} px; a side may have {MAX_SIDE:,}. {fix}"
    return ""


def gdal_only_content(path: str) -> str:
    """What a raster holds that Pillow can't open and GDAL can, as "5 bands of uint16"; '' of any other file."""
    return _held(path, lambda dataset: True) if unknown_to_pillow(path) else ""


def raster_content(path: str) -> str:
    """The same of a raster that Pillow can't open, or that needs a rule, which Pillow has none of."""
    return gdal_only_content(path) or _held(path, lambda dataset: needs_bands(dataset, path))


def _held(path: str, said: Callable[[RasterDataset], bool]) -> str:
    """What a raster holds, if GDAL can open it and it is one of those; else ''."""
    if not has_gdal():
        return ""
    try:
        with open_raster(path) as dataset:
            if not dataset.count or not said(dataset):
                return ""
            return f"{count_of(dataset.count, 'band')} of {dataset.dtypes[0]}"
    except InputError:
        return ""


def needs_bands(dataset: RasterDataset, file: str) -> bool:
    """Whether a raster is none of the ordinary pictures, which Pillow, if it opens them, and GDAL see alike."""
    if multipage_fault(dataset):
        return True
    turned = dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK"
    if turned or cmyk_fault(dataset):
        return bool(gdal_only_content(file))
    if set(dataset.dtypes) != {"uint8"} or dataset.count not in _PLAIN_BANDS:
        return True
    # Three in another order are not seen so by Pillow.
    return dataset.count == RGB and visible_bands(dataset) != (1, 2, 3)
