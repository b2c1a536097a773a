"""Whether a raster can be read by the rule of others, and if not, why: its bands, how they are stored, their pages."""

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
from efficientnetv2.utils.errors import InputError, count_of

_INKS = ("cyan", "magenta", "yellow", "black")


@dataclass(frozen=True)
class ReferenceRaster:
    """The raster that says which bands are seen of all, where none were given by number.

    Args:
        file: its path.
        every: of its bands, not counting alpha.
        seen: of these, as a raster is seen alone; None where all are asked for.
    """

    file: str
    every: int
    seen: int | None

    @classmethod
    def of(cls, file: str, dataset: RasterDataset, *, every_seen: bool) -> ReferenceRaster:
        """Of an opened file; ``every_seen`` where all bands are asked for."""
        every = len(all_bands(dataset))
        return cls(file, every, None if every_seen else len(set(visible_bands(dataset))))


def dtypes_of(dataset: RasterDataset, numbers: Sequence[int]) -> tuple[str, ...]:
    """The types that values of some bands are stored as, each once, in order: ``uint16``."""
    return tuple(sorted({dataset.dtypes[number - 1] for number in numbers}))


def count_dtypes(rasters: Iterable[str], bands: Bands) -> Counter[str]:
    """How many rasters store the bands of a rule as each type: ``uint16`` -> 40.

    Args:
        rasters: files; what can't be read is not counted.
        bands: the rule.
    """
    found: Counter[str] = Counter()
    for file in rasters:
        with contextlib.suppress(InputError), open_raster(file) as dataset:
            found.update(dtypes_of(dataset, bands.numbers))
    return found


def mismatch(dataset: RasterDataset, bands: Bands) -> str:
    """Why a raster can't be read by a rule, to follow its name; '' where it can.

    As ``band_mismatch``; or its values are of another type than measured, so that all of it would
    become white or black.

    Args:
        dataset: opened.
        bands: the rule.
    """
    return band_mismatch(dataset, bands) or dtype_mismatch(dtypes_of(dataset, bands.numbers)[0], bands)


def dtype_mismatch(kind: str, bands: Bands) -> str:
    """Why values of a kind can't be read by a rule, to follow the raster's name; '' where they can.

    Of a rule of an older model file, which does not know its kinds, this much is known: what leaves values of 0 to 255
    as they are was measured on 8 bits.
    """
    kinds = bands.kinds or (() if is_high_bit_depth_rule(bands) else ("uint8",))
    if not kinds or dtype_group(kind) in map(dtype_group, kinds):
        return ""
    low, high = f"{min(bands.low):g}", f"{max(bands.high):g}"
    return (
        f"holds {kind}, but the rule by which {low} to {high} become 0 to 255 is for rasters of {' and '.join(kinds)}. "
        f"Give it stored and scaled as these are: with GDAL, gdal_translate -ot {_in_gdal(kinds[0])} -scale FROM TO "
        f"{low} {high}. Or let effnetv2 map take it as it is, by --value-range FROM,TO."
    )


def is_high_bit_depth_rule(bands: Bands) -> bool:
    """Whether a rule makes levels of other values than 8 bits."""
    return set(zip(bands.low, bands.high, strict=True)) != {(0.0, 255.0)}


def not_geotiff_fault(bands: Bands) -> str:
    """Why values of 16 bits in another format than TIFF can't be read beside a rule, to follow the picture's name."""
    low, high = f"{min(bands.low):g}", f"{max(bands.high):g}"
    return (
        f"holds values of more than 8 bits, and the rule by which {low} to {high} become 0 to 255 is for GeoTIFFs. "
        "Make it one, with GDAL by gdal_translate -of GTiff FROM TO."
    )


def dtype_group(kind: str) -> str:
    """One word for types that hold the same numbers for the same ground: 8 bits and fractions are scaled otherwise."""
    if kind.startswith("float"):
        return "float"
    return kind if kind.endswith("int8") else "integers"


def _in_gdal(kind: str) -> str:
    """What GDAL calls a type: ``UInt16``."""
    return "Byte" if kind == "uint8" else kind.capitalize().replace("Uint", "UInt")


def band_mismatch(dataset: RasterDataset, bands: Bands) -> str:
    """Why bands can't be read from a raster, whatever their values mean, to follow its name; '' where they can.

    One may be missing, stand elsewhere by its name or colour, hold complex numbers, or numbers of another type than the
    next.

    Args:
        dataset: opened.
        bands: the rule.
    """
    if max(bands.numbers) > dataset.count:
        having = count_of(dataset.count, "band")
        return missing_bands_fault(f"{having}{_described(dataset)}", bands, _pages_joined(dataset))
    known = list(zip(bands.numbers, bands.names, strict=True))
    # Colours count as names where the bands were found by them.
    called_so = band_names_or_colors if set(COLORS) <= set(bands.names) else band_names
    for number, band in zip(bands.numbers, called_so(dataset, bands.numbers), strict=True):
        elsewhere = [place for place, called in known if band and called == band]
        if elsewhere and number not in elsewhere:
            return (
                f"calls its band {number} {band}, but {band} is to be band {elsewhere[0]} ({bands.listed}), as in the "
                "first training picture. Put the bands into that order, with GDAL by gdal_translate -b."
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
    """Why a raster of more or fewer bands than the first can't be seen as it is, to follow its name; '' where it can.

    It can where each is seen by as many of its bands: as red, green and blue, whatever else they hold. Of bands in
    pages ``band_mismatch`` and ``multipage_fault`` know more.

    Args:
        dataset: opened.
        bands: the rule.
        first: the raster that it was made by.
    """
    there = ReferenceRaster.of(first.file, dataset, every_seen=first.seen is None)
    alike = there.every == first.every or (there.seen == first.seen and first.seen is not None)
    if alike or _pages_joined(dataset):
        return ""
    common = min(there.every, first.every)
    which = "1,1,1" if common == 1 else f"some of 1 to {common}"
    return (
        f"has {count_of(there.every, 'band')}{_described(dataset)}, but {_wanted(bands)} to be seen, as in "
        f"{first.file}, which has {first.every}. Give rasters of as many bands, or say which to see of all: "
        f"--bands {which}."
    )


def _wanted(bands: Bands) -> str:
    """The bands of a rule, each once, with their verb."""
    distinct = list(dict.fromkeys(bands.listed.split(", ")))
    return f"band {distinct[0]} is" if len(distinct) == 1 else f"bands {bands.listed} are"


def missing_bands_fault(having: str, bands: Bands, fix: str = "") -> str:
    """That a picture has not all bands of a rule, to follow its name.

    Args:
        having: what it has, in words.
        bands: the rule.
        fix: what to do, as a sentence; '' is to give another picture.
    """
    fix = fix or "Give a raster with these, or say others by --bands."
    return f"has {having}, but {_wanted(bands)} to be seen. {fix}"


def palette_fault(dataset: RasterDataset) -> str:
    """Why the numbers of an ordinary picture are no levels, to follow its name; '' where they are.

    Pillow makes colours of a palette's numbers, inverts levels that count from white, and spreads levels of few bits;
    GDAL hands on the numbers. Where such a picture trains among ordinary ones, Pillow reads it. A container, such as a
    NetCDF of several variables, holds no numbers itself.

    Args:
        dataset: opened.
    """
    if not dataset.count:
        return f"has no bands itself. {_pages_joined(dataset) or 'Give one that has.'}"
    if any(colour.name == "palette" for colour in dataset.colorinterp):
        return (
            "holds numbers of a palette's colours, not levels. Make them colours, with GDAL by gdal_translate -expand "
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
    """Why a network that learnt ordinary pictures can't be asked about a raster, to follow its name.

    Args:
        dataset: opened; no ordinary picture.
    """
    kinds = ", ".join(sorted(set(dataset.dtypes)))
    seen = tuple(dict.fromkeys(visible_bands(dataset)))
    fix = "".join(f" -b {number}" for number in seen) if len(seen) in (1, RGB) else " -b RED -b GREEN -b BLUE"
    if kinds != "uint8":
        return bit_depth_fault(kinds, fix)
    pages = len(dataset.subdatasets)
    having = count_of(dataset.count, "band") + (f" in the first of its {pages} pages" if pages > 1 else "")
    if dataset.count == RGB:
        having += f" ({', '.join(map(str, seen))} are red, green and blue)"
    why = (
        f"has {having}{_described(dataset)}, and the model was trained on ordinary pictures of {RGB} channels"
    )
    return f"{why}. Give it as these are: with GDAL, gdal_translate{fix}."


def bit_depth_fault(kinds: str, chosen: str = " -b 1") -> str:
    """Why a model of ordinary pictures can't be asked about values of other than 8 bits, to follow the picture's name.

    Args:
        kinds: types that the values are stored as.
        chosen: gdal_translate's options for the bands to be seen.
    """
    return (
        f"holds {kinds}, but the model was trained on 8-bit pictures, and does not know which values were made 0 "
        f"and 255 for these. Give it as these are: with GDAL, gdal_translate{chosen} -ot Byte -scale FROM TO 0 255."
    )


def multipage_fault(dataset: RasterDataset) -> str:
    """Why bands of a raster have to be given by number, to follow its name; '' where all of them can be seen.

    Bands in further pages of a TIFF are not among those that GDAL counts, and they may be of another size.

    Args:
        dataset: opened.
    """
    fix = _pages_joined(dataset)
    if not fix or not dataset.count:
        return ""
    first = ",".join(map(str, visible_bands(dataset)))
    having = count_of(dataset.count, "band")
    return f"has {having} in its first page, and others behind. {fix} Or see the first page alone: --bands {first}."


def cmyk_fault(dataset: RasterDataset) -> str:
    """Why a printed picture can't be seen as a raster, to follow its name; '' of all others.

    GDAL itself makes red, green and blue of the inks where they are of 8 bits.

    Args:
        dataset: opened.
    """
    if tuple(colour.name for colour in dataset.colorinterp) != _INKS:
        return ""
    return f"holds a printed picture's inks ({', '.join(_INKS)}). Save it as RGB of 8 bits, or leave it out."


def _pages_joined(dataset: RasterDataset) -> str:
    """How pages become bands, as a sentence; '' of a raster of one page."""
    pages = len(dataset.subdatasets)
    if pages < 2:
        return ""
    return (
        f"Its {pages} pages are rasters of their own: make them bands of one, with GDAL by gdalbuildvrt -separate "
        "-resolution highest, then gdal_translate."
    )


def _described(dataset: RasterDataset) -> str:
    """What the raster calls its bands, in parentheses; '' where it calls them nothing."""
    named = [f"{number} {name}" for number, name in enumerate(dataset.descriptions, start=1) if name]
    return f" ({', '.join(named[:20])})" if named else ""
