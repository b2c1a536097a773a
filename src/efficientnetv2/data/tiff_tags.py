"""What Pillow and GDAL see in a TIFF: an ordinary image, a raster, or neither."""

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
from efficientnetv2.utils.errors import InputError, pluralize

#: Suffixes of files that may be rasters.
SUFFIXES = (".tif", ".tiff")
# First bytes of a TIFF and of a BigTIFF, in either byte order.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Compressions that Pillow reads only if its libtiff was built with them.
_OPTIONAL_COMPRESSION = ("lzma", "zstd", "webp")
_PLAIN_BANDS = (1, 3)
_ORIENTATION = 274  # TIFF tag


def is_raster(path: str) -> bool:
    """Whether a file has the suffix of a raster. Ordinary images may have it too."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def has_gdal() -> bool:
    """Whether the extra ``geo`` is installed."""
    return importlib.util.find_spec("rasterio") is not None


def needs_gdal(path: str) -> bool:
    """Whether a file is a TIFF that Pillow cannot read, so that only the extra ``geo`` can."""
    if not unknown_to_pillow(path):
        return False
    with open(path, "rb") as file:
        return is_tiff(file.read(4))


def is_tiff(content: bytes) -> bool:
    """Whether content starts like a TIFF."""
    return content[:4] in _TIFF


def probe_raster(path: str) -> tuple[str, str]:
    """Why a raster is unusable, or '', and what it is. Reads only the last block, which a truncated file lacks."""
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
            return _missing_end(dataset), f"rasters of {dataset.count} x {dataset.dtypes[0]}"
    except InputError:
        return "is not an image that Pillow can read, and no raster that GDAL can open", ""


def truncation_fault(path: str) -> str:
    """Why a raster whose first band Pillow has read is incomplete, or ''. Also '' without the extra ``geo``."""
    if not has_gdal():
        return ""
    try:
        with open_raster(path) as dataset:
            return _missing_end(dataset) if dataset.count else ""
    except InputError:  # Pillow has read it
        return ""


def _missing_end(dataset: RasterDataset) -> str:
    """Why a raster is incomplete, or ''. The last block of the last band is near the end of the file."""
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
    """Whether Pillow does not support the format or the compression of a file. Other faults do not count."""
    try:
        with warnings.catch_warnings(action="ignore"), open_image(path) as image:
            return image.info.get("compression") in _OPTIONAL_COMPRESSION and not _loads(image)
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
    """Orientation tag of a TIFF, 1 to 8, which GDAL ignores. 1 without a tag or on errors, which reading reports."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            if head[:4] not in _TIFF:
                return 1
            tags = ImageFileDirectory_v2(head + (file.read(8) if b"+" in head[2:4] else b""))
            file.seek(tags.next)
            tags.load(file)
            value = tags.get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and value in range(1, 9) else 1


def size_fault(dataset: RasterDataset) -> str:
    """Why a raster is too large for an image, to follow its name, or ''."""
    pixels = dataset.width * dataset.height
    fix = "Cut it into pieces, with GDAL by gdal_retile.py; effnetv2 geo map predicts it as a whole"
    if pixels > max_pixels():
        return f"has {pixels / 1e6:,.0f} million pixels, more than the {max_pixels() // 1_000_000} of an image. {fix}"
    if max(dataset.shape) > MAX_SIDE:
        return f"is {dataset.width:,} x {dataset.height:,} px; a side may have {MAX_SIDE:,}. {fix}"
    return ""


def gdal_only_content(path: str) -> str:
    """Content of a raster that GDAL opens and Pillow does not, as "5 bands of uint16". '' for other files."""
    return _content(path, lambda dataset: True) if unknown_to_pillow(path) else ""


def raster_content(path: str) -> str:
    """Content of a raster that Pillow does not open or that needs ``Bands``. '' for other files."""
    return gdal_only_content(path) or _content(path, lambda dataset: needs_bands(dataset, path))


def _content(path: str, matches: Callable[[RasterDataset], bool]) -> str:
    """Content of a raster that matches, or ''."""
    if not has_gdal():
        return ""
    try:
        with open_raster(path) as dataset:
            if not dataset.count or not matches(dataset):
                return ""
            return f"{pluralize(dataset.count, 'band')} of {dataset.dtypes[0]}"
    except InputError:
        return ""


def needs_bands(dataset: RasterDataset, file: str) -> bool:
    """Whether a raster is not an ordinary image, which Pillow (if it opens it) and GDAL read alike."""
    if multipage_fault(dataset):
        return True
    turned = dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK"
    if turned or cmyk_fault(dataset):
        return bool(gdal_only_content(file))
    if set(dataset.dtypes) != {"uint8"} or dataset.count not in _PLAIN_BANDS:
        return True
    # Pillow ignores another order of red, green and blue.
    return dataset.count == RGB and visible_bands(dataset) != (1, 2, 3)
