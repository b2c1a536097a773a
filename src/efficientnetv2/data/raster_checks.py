"""Why a raster cannot be read by a rule, ``Bands``: texts that follow the name of the raster, or ''."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from efficientnetv2.data.geotiff import (
    COLORS,
    RasterDataset,
    all_bands,
    band_names,
    band_names_or_colors,
    open_raster,
    visible_bands,
)
from efficientnetv2.preprocessing import RGB, Bands
from efficientnetv2.utils.errors import InputError, pluralize

_INKS = ("cyan", "magenta", "yellow", "black")


@dataclass(frozen=True)
class ReferenceRaster:
    """The raster that determines the bands of a dataset: its bands without alpha, and those visible."""

    file: str
    every: int
    seen: int | None

    @classmethod
    def of(cls, file: str, dataset: RasterDataset, *, every_seen: bool) -> ReferenceRaster:
        """From an opened file. ``every_seen``: all bands are read."""
        every = len(all_bands(dataset))
        return cls(file, every, None if every_seen else len(set(visible_bands(dataset))))


def dtypes_of(dataset: RasterDataset, numbers: Sequence[int]) -> tuple[str, ...]:
    """Distinct types of bands, sorted: ``uint16``."""
    return tuple(sorted({dataset.dtypes[number - 1] for number in numbers}))


def count_dtypes(rasters: Iterable[str], bands: Bands) -> Counter[str]:
    """Number of readable rasters with each type of the bands of a rule: ``uint16`` -> 40."""
    found: Counter[str] = Counter()
    for file in rasters:
        with contextlib.suppress(InputError), open_raster(file) as dataset:
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
        f"Give it stored and scaled as these are: with GDAL, gdal_translate -ot {_in_gdal(kinds[0])} -scale FROM TO "
        f"{low} {high}. Or let effnetv2 geo map take it as it is, by --value-range FROM,TO."
    )


def is_high_bit_depth_rule(bands: Bands) -> bool:
    """Whether a rule scales values, other than 8-bit ones."""
    return set(zip(bands.low, bands.high, strict=True)) != {(0.0, 255.0)}


def not_geotiff_fault(bands: Bands) -> str:
    """Why 16-bit values in another format than TIFF do not fit a rule."""
    low, high = f"{min(bands.low):g}", f"{max(bands.high):g}"
    return (
        f"holds values of more than 8 bits, and the rule by which {low} to {high} become 0 to 255 is for GeoTIFFs. "
        "Make it one, with GDAL by gdal_translate -of GTiff FROM TO."
    )


def dtype_group(kind: str) -> str:
    """Group of types with equal values for equal content. 8 bits and floats are scaled differently."""
    if kind.startswith("float"):
        return "float"
    return kind if kind.endswith("int8") else "integers"


def _in_gdal(kind: str) -> str:
    """GDAL's name of a type: ``UInt16``."""
    return "Byte" if kind == "uint8" else kind.capitalize().replace("Uint", "UInt")


def band_mismatch(dataset: RasterDataset, bands: Bands) -> str:
    """Why the bands of a rule cannot be read: missing, in another order by name, complex, or of mixed types."""
    if max(bands.numbers) > dataset.count:
        having = pluralize(dataset.count, "band")
        return missing_bands_fault(f"{having}{_band_list(dataset)}", bands, _pages_fix(dataset))
    known = list(zip(bands.numbers, bands.names, strict=True))
    # Colors count as names where the bands were found by them.
    names_in = band_names_or_colors if set(COLORS) <= set(bands.names) else band_names
    for number, band in zip(bands.numbers, names_in(dataset, bands.numbers), strict=True):
        elsewhere = [place for place, name in known if band and name == band]
        if elsewhere and number not in elsewhere:
            return (
                f"calls its band {number} {band}, but {band} is to be band {elsewhere[0]} ({bands.listed}), as in the "
                "first training image. Put the bands into that order, with GDAL by gdal_translate -b."
            )
    kinds = dtypes_of(dataset, bands.numbers)
    if strange := [kind for kind in kinds if "complex" in kind]:
        return (
            f"holds complex numbers ({strange[0]}). Turn them into magnitudes before: with GDAL, gdal_calc."
        )
    if len(kinds) > 1:
        stored = ", ".join(
            f"{number} {dataset.dtypes[number - 1]}" for number in dict.fromkeys(bands.numbers)
        )
        return (
            f"holds bands of different types ({stored}), which can't be read together. Make them alike, with GDAL by "
            f"gdal_translate -ot {_in_gdal(np.result_type(*kinds).name)}."
        )
    return ""


def band_count_mismatch(dataset: RasterDataset, bands: Bands, first: ReferenceRaster) -> str:
    """Why a raster has another number of bands than the reference. As many visible bands match too."""
    there = ReferenceRaster.of(first.file, dataset, every_seen=first.seen is None)
    alike = there.every == first.every or (there.seen == first.seen and first.seen is not None)
    if alike or _pages_fix(dataset):
        return ""
    common = min(there.every, first.every)
    which = "1,1,1" if common == 1 else f"some of 1 to {common}"
    return (
        f"has {pluralize(there.every, 'band')}{_band_list(dataset)}, but {_bands_phrase(bands)} to be seen, as in "
        f"{first.file}, which has {first.every}. Give rasters of as many bands, or say which to see of all: "
        f"--bands {which}."
    )


def _bands_phrase(bands: Bands) -> str:
    """Distinct bands of a rule, with a verb."""
    distinct = list(dict.fromkeys(bands.listed.split(", ")))
    return f"band {distinct[0]} is" if len(distinct) == 1 else f"bands {bands.listed} are"


def missing_bands_fault(having: str, bands: Bands, fix: str = "") -> str:
    """Text for an image that lacks bands of a rule but has ``having``. ``fix`` is a sentence."""
    fix = fix or "Give a raster with these, or say others by --bands."
    return f"has {having}, but {_bands_phrase(bands)} to be seen. {fix}"


def palette_fault(dataset: RasterDataset) -> str:
    """Why the numbers that GDAL reads are not levels: palettes, levels from white, few bits, no bands."""
    if not dataset.count:
        return f"has no bands itself. {_pages_fix(dataset) or 'Give one that has.'}"
    if any(color.name == "palette" for color in dataset.colorinterp):
        return (
            "holds numbers of a palette's colors, not levels. Make them colors, with GDAL by gdal_translate -expand "
            "rgb; or see the numbers as they are: --bands 1,1,1."
        )
    if dataset.count > 1 or dataset.dtypes[0] != "uint8":
        return ""
    if dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES":
        return (
            "holds levels that count from white (MINISWHITE). Turn them, with GDAL by gdal_translate -scale 0 255 255 "
            "0 -co PHOTOMETRIC=MINISBLACK; or see them as they are: --bands 1,1,1."
        )
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
    if bits < 8:
        most = 2**bits - 1
        return (
            f"holds levels of 0 to {most} (NBITS={bits}). Spread them, with GDAL by gdal_translate -scale 0 {most} 0 "
            "255 -co NBITS=8; or see them as they are: --bands 1,1,1."
        )
    return ""


def no_rule_fault(dataset: RasterDataset) -> str:
    """Why a model that was trained on ordinary images cannot predict a raster."""
    kinds = ", ".join(sorted(set(dataset.dtypes)))
    seen = tuple(dict.fromkeys(visible_bands(dataset)))
    fix = "".join(f" -b {number}" for number in seen) if len(seen) in (1, RGB) else " -b RED -b GREEN -b BLUE"
    if kinds != "uint8":
        return bit_depth_fault(kinds, fix)
    pages = len(dataset.subdatasets)
    having = pluralize(dataset.count, "band") + (f" in the first of its {pages} pages" if pages > 1 else "")
    if dataset.count == RGB:
        having += f" ({', '.join(map(str, seen))} are red, green and blue)"
    why = f"has {having}{_band_list(dataset)}, and the model was trained on ordinary images of {RGB} channels"
    return f"{why}. Give it as these are: with GDAL, gdal_translate{fix}."


def bit_depth_fault(kinds: str, chosen: str = " -b 1") -> str:
    """Why a model of ordinary images cannot predict values of these types. ``chosen``: gdal_translate's bands."""
    return (
        f"holds {kinds}, but the model was trained on 8-bit images, and does not know which values were made 0 "
        f"and 255 for these. Give it as these are: with GDAL, gdal_translate{chosen} -ot Byte -scale FROM TO 0 255."
    )


def multipage_fault(dataset: RasterDataset) -> str:
    """Why the user must give the bands by number: GDAL does not count bands in further pages of a TIFF."""
    fix = _pages_fix(dataset)
    if not fix or not dataset.count:
        return ""
    first = ",".join(map(str, visible_bands(dataset)))
    having = pluralize(dataset.count, "band")
    return f"has {having} in its first page, and others behind. {fix} Or see the first page alone: --bands {first}."


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
        f"Its {pages} pages are rasters of their own: make them bands of one, with GDAL by gdalbuildvrt -separate "
        "-resolution highest, then gdal_translate."
    )


def _band_list(dataset: RasterDataset) -> str:
    """Band descriptions in parentheses, or ''."""
    named = [f"{number} {name}" for number, name in enumerate(dataset.descriptions, start=1) if name]
    return f" ({', '.join(named[:20])})" if named else ""
