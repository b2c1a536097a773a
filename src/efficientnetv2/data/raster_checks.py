"""Whether a TIFF is an ordinary image or a raster, and why a raster cannot be read by a rule, ``Bands``.

Reasons are texts that follow the name of the raster, or ''.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from efficientnetv2.data import geotiff
from efficientnetv2.data.geotiff import RasterDataset, open_raster, read_errors, visible_bands
from efficientnetv2.data.image_formats import MAX_SIDE, open_image
from efficientnetv2.data.image_io import MIN_SIDE, max_pixels
from efficientnetv2.preprocessing import RGB, Bands
from efficientnetv2.utils.errors import InputError, pluralize

_INKS = ("cyan", "magenta", "yellow", "black")
_AS_STORED = "or read the numbers as they are: --bands 1,1,1."

#: Suffixes of files that may be rasters.
SUFFIXES = (".tif", ".tiff")
# First bytes of a TIFF and of a BigTIFF, in either byte order.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Compressions that Pillow reads only if its libtiff was built with them.
_OPTIONAL_COMPRESSION = ("lzma", "zstd", "webp")
_PLAIN_BANDS = (1, 3)
_ORIENTATION = 274  # TIFF tag


@dataclass(frozen=True)
class ReferenceRaster:
    """The raster that determines the bands of a dataset: its bands without alpha, and those visible."""

    file: str
    every: int
    seen: int | None

    @classmethod
    def of(cls, file: str, dataset: RasterDataset, *, every_seen: bool) -> ReferenceRaster:
        """From an opened file. ``every_seen``: all bands are read."""
        seen = None if every_seen else len(set(geotiff.visible_bands(dataset)))
        return cls(file, len(geotiff.all_bands(dataset)), seen)


def dtypes_of(dataset: RasterDataset, numbers: Sequence[int]) -> tuple[str, ...]:
    """Distinct types of bands, sorted: ``uint16``."""
    return tuple(sorted({dataset.dtypes[number - 1] for number in numbers}))


def count_dtypes(rasters: Iterable[str], bands: Bands) -> Counter[str]:
    """Number of readable rasters with each type of the bands of a rule: ``uint16`` -> 40."""
    found: Counter[str] = Counter()
    for file in rasters:
        with contextlib.suppress(InputError), geotiff.open_raster(file) as dataset:
            found.update(dtypes_of(dataset, bands.numbers))
    return found


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
        f"Convert it: gdal_translate -ot {_gdal_name(kinds[0])} -scale FROM TO {low} {high}. Or map it as it is: "
        "effnetv2 geo map --value-range FROM,TO."
    )


def is_high_bit_depth_rule(bands: Bands) -> bool:
    """Whether a rule scales values, other than 8-bit ones."""
    return set(zip(bands.low, bands.high, strict=True)) != {(0.0, 255.0)}


def not_geotiff_fault(bands: Bands) -> str:
    """Why 16-bit values in another format than TIFF do not fit a rule."""
    return (
        f"holds values of more than 8 bits, and the rule by which {min(bands.low):g} to {max(bands.high):g} become 0 "
        "to 255 is for GeoTIFFs. Convert it: gdal_translate -of GTiff FROM TO."
    )


def dtype_group(kind: str) -> str:
    """Group of types with equal values for equal content. 8 bits and floats are scaled differently."""
    if kind.startswith("float"):
        return "float"
    return kind if kind.endswith("int8") else "integers"


def _gdal_name(kind: str) -> str:
    """GDAL's name of a type: ``UInt16``."""
    return "Byte" if kind == "uint8" else kind.capitalize().replace("Uint", "UInt")


def band_mismatch(dataset: RasterDataset, bands: Bands) -> str:
    """Why the bands of a rule cannot be read: missing, in another order by name, complex, or of mixed types."""
    if max(bands.numbers) > dataset.count:
        return missing_bands_fault(_band_count(dataset), bands, _pages_fix(dataset))
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
        stored = ", ".join(
            f"{number} {dataset.dtypes[number - 1]}" for number in dict.fromkeys(bands.numbers)
        )
        common = _gdal_name(np.result_type(*kinds).name)
        return f"holds bands of different types ({stored}). Make them alike: gdal_translate -ot {common}."
    return ""


def band_count_mismatch(dataset: RasterDataset, bands: Bands, first: ReferenceRaster) -> str:
    """Why a raster has another number of bands than the reference. As many visible bands match too."""
    there = ReferenceRaster.of(first.file, dataset, every_seen=first.seen is None)
    alike = there.every == first.every or (there.seen == first.seen and first.seen is not None)
    if alike or _pages_fix(dataset):
        return ""
    common = min(there.every, first.every)
    which = "1,1,1" if common == 1 else f"some of 1 to {common}"
    fix = f"Give rasters of as many bands, or select bands of all: --bands {which}."
    having = f"{pluralize(there.every, 'band')}{_band_list(dataset)}"
    return missing_bands_fault(having, bands, f"{first.file} has {first.every}. {fix}")


def missing_bands_fault(having: str, bands: Bands, fix: str = "") -> str:
    """Text for an image that lacks bands of a rule but has ``having``. ``fix`` is a sentence."""
    fix = fix or "Give a raster with these, or select others by --bands."
    distinct = ", ".join(dict.fromkeys(bands.listed.split(", ")))
    return f"has {having}, but the bands to be read are {distinct}. {fix}"


def palette_fault(dataset: RasterDataset) -> str:
    """Why the numbers that GDAL reads are not levels: palettes, levels from white, few bits, no bands."""
    if not dataset.count:
        return f"has no bands itself. {_pages_fix(dataset) or 'Give one that has.'}"
    if any(color.name == "palette" for color in dataset.colorinterp):
        return f"holds numbers of a palette's colors. Convert it: gdal_translate -expand rgb; {_AS_STORED}"
    if dataset.count > 1 or dataset.dtypes[0] != "uint8":
        return ""
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
    from_white = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    if bits == 8 and not from_white:
        return ""
    what = "levels that count from white (MINISWHITE)" if from_white else f"levels of few bits (NBITS={bits})"
    ends = "255 0 -co PHOTOMETRIC=MINISBLACK" if from_white else "0 255 -co NBITS=8"
    return f"holds {what}. Convert it: gdal_translate -scale 0 {2**bits - 1} {ends}; {_AS_STORED}"


def no_rule_fault(dataset: RasterDataset) -> str:
    """Why a model that was trained on ordinary images cannot predict a raster."""
    seen = tuple(dict.fromkeys(geotiff.visible_bands(dataset)))
    fix = "".join(f" -b {number}" for number in seen) if len(seen) in (1, RGB) else " -b RED -b GREEN -b BLUE"
    if set(dataset.dtypes) != {"uint8"}:
        return bit_depth_fault(", ".join(sorted(set(dataset.dtypes))), fix)
    pages = len(dataset.subdatasets)
    where = f" in the first of its {pages} pages" if pages > 1 else ""
    order = f" ({', '.join(map(str, seen))} are red, green and blue)" if dataset.count == RGB else ""
    return (
        f"has {pluralize(dataset.count, 'band')}{where}{order}{_band_list(dataset)}, and the model was trained on "
        f"ordinary images of {RGB} channels. Convert it: gdal_translate{fix}."
    )


def bit_depth_fault(kinds: str, chosen: str = " -b 1") -> str:
    """Why a model of ordinary images cannot predict values of these types. ``chosen``: gdal_translate's bands."""
    return (
        f"holds {kinds}, but the model was trained on 8-bit images, and does not know which values are 0 and 255. "
        f"Convert it: gdal_translate{chosen} -ot Byte -scale FROM TO 0 255."
    )


def multipage_fault(dataset: RasterDataset) -> str:
    """Why the user must give the bands by number: GDAL does not count bands in further pages of a TIFF."""
    fix = _pages_fix(dataset)
    if not fix or not dataset.count:
        return ""
    first = ",".join(map(str, geotiff.visible_bands(dataset)))
    having = pluralize(dataset.count, "band")
    return (
        f"has {having} in its first page, and others behind. {fix} Or read the first page: --bands {first}."
    )


def cmyk_fault(dataset: RasterDataset) -> str:
    """Why a CMYK image cannot be read as a raster. GDAL itself converts 8-bit CMYK to RGB."""
    if tuple(color.name for color in dataset.colorinterp) != _INKS:
        return ""
    return (
        f"holds the inks of a printed image ({', '.join(_INKS)}). Save it as RGB of 8 bits, or leave it out."
    )


def _pages_fix(dataset: RasterDataset) -> str:
    """A sentence on how pages become bands. '' for a raster of one page."""
    pages = len(dataset.subdatasets)
    if pages < 2:
        return ""
    return (
        f"Its {pages} pages are rasters of their own: make them bands of one by gdalbuildvrt -separate -resolution "
        "highest, then gdal_translate."
    )


def _band_count(dataset: RasterDataset) -> str:
    return pluralize(dataset.count, "band") + _band_list(dataset)


def _band_list(dataset: RasterDataset) -> str:
    """Band descriptions in parentheses, or ''."""
    named = [f"{number} {name}" for number, name in enumerate(dataset.descriptions, start=1) if name]
    return f" ({', '.join(named[:20])})" if named else ""


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
