"""Whether a TIFF is an ordinary image or a raster, and why a raster does not fit ``Bands``.

Faults are texts that follow the name of the raster, or ''.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from efficientnetv2.data import geotiff
from efficientnetv2.data.geotiff import RasterDataset, open_raster, visible_bands
from efficientnetv2.data.image_io import MIN_SIDE
from efficientnetv2.data.open_image import IGNORED_WARNINGS, MAX_SIDE, CameraRawError, max_pixels, open_image
from efficientnetv2.preprocessing import RGB, Bands
from efficientnetv2.utils.errors import InputError, pluralize

#: Suffixes of files that may be rasters.
SUFFIXES = (".tif", ".tiff")
# First bytes of a TIFF and of a BigTIFF, in either byte order.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Compressions that Pillow reads only if its libtiff was built with them.
_OPTIONAL_COMPRESSION = ("lzma", "zstd", "webp")
_ORIENTATION = 274  # TIFF tag
_INKS = ("cyan", "magenta", "yellow", "black")
_AS_STORED = "or read the numbers as they are: `bands=1,1,1`."


def is_raster(path: str) -> bool:
    """Whether a file has the suffix of a raster. Ordinary images may have it too."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def is_tiff(content: bytes) -> bool:
    """Whether content starts like a TIFF."""
    return content[:4] in _TIFF


def has_gdal() -> bool:
    """Whether the extra ``geo`` is installed."""
    return importlib.util.find_spec("rasterio") is not None


def needs_gdal(path: str) -> bool:
    """Whether a file is a TIFF that Pillow cannot read, so that only the extra ``geo`` can."""
    if not _unknown_to_pillow(path):
        return False
    with open(path, "rb") as file:
        return is_tiff(file.read(4))


def is_gdal_only(path: str) -> bool:
    """Whether GDAL opens a file, and Pillow does not."""
    if _unknown_to_pillow(path):
        with suppress(InputError), open_raster(path) as dataset:
            return bool(dataset.count)
    return False


def _unknown_to_pillow(path: str) -> bool:
    """Whether Pillow does not support the format or the compression of a file. Other faults do not count."""
    try:
        with IGNORED_WARNINGS, open_image(path) as image:
            return image.info.get("compression") in _OPTIONAL_COMPRESSION and not _loads(image)
    except CameraRawError:
        return False
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


def needs_bands(dataset: RasterDataset, file: str) -> bool:
    """Whether a raster is not an ordinary image, which Pillow (if it opens it) and GDAL read alike."""
    if dataset.driver in ("PNG", "JPEG", "WEBP", "BMP", "GIF"):  # whatever its name
        return False
    if dataset.count and len(dataset.subdatasets) > 1:
        return True
    if _is_cmyk(dataset) or dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK":
        return is_gdal_only(file)
    if set(dataset.dtypes) != {"uint8"} or dataset.count not in (1, RGB):
        return True
    # Pillow ignores another order of red, green and blue.
    return dataset.count == RGB and visible_bands(dataset) != (1, 2, 3)


def raster_content(path: str) -> str:
    """Content of a raster that Pillow does not open or that needs ``Bands``: "5 bands of uint16". '' for others."""
    with suppress(InputError), open_raster(path) as dataset:
        if dataset.count and (needs_bands(dataset, path) or _unknown_to_pillow(path)):
            return f"{pluralize(dataset.count, 'band')} of {dataset.dtypes[0]}"
    return ""


def orientation(path: str) -> int:
    """Orientation tag of a TIFF, 1 to 8, which GDAL ignores. 1 without a tag or on errors, which reading reports."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            if not is_tiff(head):
                return 1
            tags = ImageFileDirectory_v2(head + (file.read(8) if b"+" in head[2:4] else b""))
            file.seek(tags.next)
            tags.load(file)
            value = tags.get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and value in range(1, 9) else 1


def probe_raster(path: str) -> tuple[str, str]:
    """Why a raster is unusable, or '', and what it is. Reads only the last block, which a truncated file lacks."""
    if not has_gdal():
        return "is a raster that only the extra 'geo' reads (pip install rasterio)", ""
    try:
        with open_raster(path) as dataset:
            if min(dataset.shape) < MIN_SIDE:
                return f"is too small: {dataset.width}×{dataset.height} px", ""
            if not dataset.count:
                return "has no bands", ""
            if fault := size_fault(dataset):
                return fault, ""
            return _last_block_fault(dataset), f"rasters of {dataset.count} x {dataset.dtypes[0]}"
    except InputError:
        return "is not an image that Pillow can read, and not a raster that GDAL can open", ""


def damage(path: str) -> str:
    """Why GDAL cannot read a whole raster, or ''."""
    try:
        with open_raster(path) as dataset, geotiff.read_errors(dataset):
            dataset.read()
    except InputError:
        return "is damaged"
    return ""


def truncation_fault(path: str) -> str:
    """Why a raster whose first band Pillow has read is incomplete. '' also without the extra ``geo``."""
    if has_gdal():
        with suppress(InputError), open_raster(path) as dataset:  # Pillow has read it
            return _last_block_fault(dataset) if dataset.count else ""
    return ""


def _last_block_fault(dataset: RasterDataset) -> str:
    """The last block of the last band is near the end of the file."""
    top, left = (
        (side - 1) // block * block for side, block in zip(dataset.shape, dataset.block_shapes[-1], strict=True)
    )
    try:
        with geotiff.read_errors(dataset):
            dataset.read(dataset.count, window=((top, dataset.height), (left, dataset.width)))
    except InputError:
        return "is a raster that is cut short or damaged: its last block can't be read"
    return ""


def size_fault(dataset: RasterDataset) -> str:
    """Why a raster is too large for an image."""
    pixels, most = dataset.width * dataset.height, max_pixels()
    if (not most or pixels <= most) and max(dataset.shape) <= MAX_SIDE:
        return ""
    limit = f"{most // 1_000_000} million or " if most else ""
    return (
        f"has {pixels / 1e6:,.0f} million pixels, {dataset.width:,} x {dataset.height:,}, above "
        f"{limit}{MAX_SIDE:,} a side. Cut it into pieces (gdal_retile.py), or map it: effnetv2 geo map"
    )


def dtypes_of(dataset: RasterDataset, numbers: Sequence[int]) -> tuple[str, ...]:
    """Distinct types of bands, sorted: ``uint16``."""
    return tuple(sorted({dataset.dtypes[number - 1] for number in numbers}))


def dtype_group(kind: str) -> str:
    """Group of types with equal values for equal content. 8 bits and floats are scaled differently."""
    if kind.startswith("float"):
        return "float"
    return kind if kind.endswith("int8") else "integers"


def _gdal_name(kind: str) -> str:
    """GDAL's name of a type: ``UInt16``."""
    return "Byte" if kind == "uint8" else kind.capitalize().replace("Uint", "UInt")


def is_high_bit_depth_rule(bands: Bands) -> bool:
    """Whether a rule scales values, other than 8-bit ones."""
    return set(zip(bands.low, bands.high, strict=True)) != {(0.0, 255.0)}


def mismatch(dataset: RasterDataset, bands: Bands) -> str:
    """``band_mismatch``, or values of another type than the measured ones, which would all become white or black."""
    return band_mismatch(dataset, bands) or dtype_mismatch(dtypes_of(dataset, bands.numbers)[0], bands)


def dtype_mismatch(kind: str, bands: Bands) -> str:
    """Why values of a type do not fit a rule. Rules of older model files have no types, but 0 to 255 means 8 bits."""
    kinds = bands.kinds or (() if is_high_bit_depth_rule(bands) else ("uint8",))
    if not kinds or dtype_group(kind) in map(dtype_group, kinds):
        return ""
    low, high = f"{min(bands.low):g}", f"{max(bands.high):g}"
    return (
        f"holds {kind}, but the rule by which {low} to {high} become 0 to 255 is for rasters of {' and '.join(kinds)}. "
        f"Convert it: gdal_translate -ot {_gdal_name(kinds[0])} -scale FROM TO {low} {high}; or map it with "
        "`value_range=FROM,TO`."
    )


def not_geotiff_fault(bands: Bands) -> str:
    """Why 16-bit values in another format than TIFF do not fit a rule."""
    return (
        f"holds values of more than 8 bits, and the rule by which {min(bands.low):g} to {max(bands.high):g} become 0 "
        "to 255 is for GeoTIFFs. Convert it: gdal_translate -of GTiff FROM TO."
    )


def channels_fault(bands: Bands) -> str:
    """Why an ordinary image does not fit a rule of other than three channels."""
    return (
        f"is an ordinary image of {RGB} channels, but images of {pluralize(bands.channels, 'band')} ({bands.listed}) "
        "are needed, from a GeoTIFF"
    )


def band_mismatch(dataset: RasterDataset, bands: Bands) -> str:
    """Why the bands of a rule cannot be read: missing, in another order by name, complex, or of mixed types."""
    if max(bands.numbers) > dataset.count:
        return missing_bands_fault(band_count(dataset), bands, _pages_fix(dataset))
    # Colors count as names where the bands were found by them.
    by_color = set(geotiff.COLORS) <= set(bands.names)
    names = (geotiff.band_names_or_colors if by_color else geotiff.band_names)(dataset, bands.numbers)
    for number, name in zip(bands.numbers, names, strict=True):
        expected = [n for n, known in zip(bands.numbers, bands.names, strict=True) if name and known == name]
        if expected and number not in expected:
            return (
                f"calls its band {number} {name}, but {name} must be band {expected[0]} ({bands.listed}), as in the "
                "first training image. Reorder them: gdal_translate -b."
            )
    kinds = dtypes_of(dataset, bands.numbers)
    if any("complex" in kind for kind in kinds):
        return f"holds complex numbers ({', '.join(kinds)}). Turn them into magnitudes: gdal_calc."
    if len(kinds) > 1:
        stored = ", ".join(f"{n} {dataset.dtypes[n - 1]}" for n in dict.fromkeys(bands.numbers))
        common = _gdal_name(np.result_type(*kinds).name)
        return f"holds bands of different types ({stored}). Make them alike: gdal_translate -ot {common}."
    return ""


def missing_bands_fault(having: str, bands: Bands, fix: str = "") -> str:
    """Why an image that has other bands does not fit a rule. ``fix`` is a sentence."""
    distinct = ", ".join(dict.fromkeys(bands.listed.split(", ")))
    fix = fix or "Give a raster with these, or select others by `bands`."
    return f"has {having}, but the bands to be read are {distinct}. {fix}"


def encoding_fault(dataset: RasterDataset) -> str:
    """Why what GDAL reads are not levels of all bands: no bands, pages, inks, palettes, levels from white, few bits."""
    pages = _pages_fix(dataset)
    if not dataset.count:
        return f"has no bands. {pages or 'Give a raster with bands.'}"
    fault = _coding_fault(dataset, "." if pages else f"; {_AS_STORED}")
    if pages:
        fix = f"Or read the first page: `bands={','.join(map(str, visible_bands(dataset)))}`."
        if fault:
            fix = f"The first page {fault}"
        having = f"has {pluralize(dataset.count, 'band')} in its first page, and others in later pages"
        return f"{having}. {pages} {fix}"
    return fault


def _coding_fault(dataset: RasterDataset, end: str) -> str:
    """Why the numbers of a page are not levels of its bands; ``end`` follows a fix."""
    if _is_cmyk(dataset):
        return "holds the inks of a printed image (CMYK). Save it as RGB of 8 bits, or leave it out."
    if any(color.name == "palette" for color in dataset.colorinterp):
        return f"holds numbers of a palette's colors. Convert it: gdal_translate -expand rgb{end}"
    if dataset.count > 1 or dataset.dtypes[0] != "uint8":
        return ""
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
    from_white = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    if bits == 8 and not from_white:
        return ""
    what = "levels that count from white (MINISWHITE)" if from_white else f"levels of few bits (NBITS={bits})"
    ends = "255 0 -co PHOTOMETRIC=MINISBLACK" if from_white else "0 255 -co NBITS=8"
    return f"holds {what}. Convert it: gdal_translate -scale 0 {2**bits - 1} {ends}{end}"


def _is_cmyk(dataset: RasterDataset) -> bool:
    return tuple(color.name for color in dataset.colorinterp) == _INKS


def _pages_fix(dataset: RasterDataset) -> str:
    """How pages become bands. '' for a raster of one page."""
    pages = len(dataset.subdatasets)
    fix = "are separate rasters. Combine them: gdalbuildvrt -separate, then gdal_translate."
    return f"Its {pages} pages {fix}" if pages > 1 else ""


def no_rule_fault(dataset: RasterDataset) -> str:
    """Why a model that was trained on ordinary images cannot predict a raster."""
    seen = tuple(dict.fromkeys(visible_bands(dataset)))
    bands = seen if len(seen) in (1, RGB) else ("RED", "GREEN", "BLUE")
    selected = "".join(f" -b {band}" for band in bands)
    if set(dataset.dtypes) != {"uint8"}:
        return bit_depth_fault(", ".join(sorted(set(dataset.dtypes))), selected)
    pages = " in the first of its pages" if len(dataset.subdatasets) > 1 else ""
    order = f" ({', '.join(map(str, seen))} are red, green and blue)" if dataset.count == RGB else ""
    return (
        f"has {band_count(dataset)}{pages}{order}, and the model was trained on ordinary images of {RGB} channels. "
        f"Convert it: gdal_translate{selected}."
    )


def bit_depth_fault(kinds: str, selected: str = " -b 1") -> str:
    """Why a model of ordinary images cannot predict values of these types. ``selected``: gdal_translate's bands."""
    return (
        f"holds {kinds}, but the model was trained on 8-bit images, and does not know which values are 0 and 255. "
        f"Convert it: gdal_translate{selected} -ot Byte -scale FROM TO 0 255."
    )


def band_count(dataset: RasterDataset) -> str:
    """Number of bands, with up to 20 descriptions: ``2 bands (1 B04, 2 B08)``."""
    named = [f"{number} {name}" for number, name in enumerate(dataset.descriptions, start=1) if name]
    return pluralize(dataset.count, "band") + (f" ({', '.join(named[:20])})" if named else "")
