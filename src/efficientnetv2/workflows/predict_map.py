"""Map a raster: settle windows and bands, then draw."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from efficientnetv2.data.config import parse_bands
from efficientnetv2.data.geotiff import (
    RasterDataset,
    all_bands,
    band_names,
    open_raster,
    pixel_side_m,
    visible_bands,
)
from efficientnetv2.data.raster_checks import (
    band_mismatch,
    dtypes_of,
    mismatch,
    multipage_fault,
    palette_fault,
)
from efficientnetv2.geospatial import map_file
from efficientnetv2.geospatial.pixel_area import distortion_warning
from efficientnetv2.geospatial.predict_map import Grid, MapStatistics, predict_blocks
from efficientnetv2.inference.predict import require_classes, require_image_channels, require_single_label
from efficientnetv2.models import model_file
from efficientnetv2.preprocessing import RGB, Bands, Preprocessing
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import check_writable_file
from efficientnetv2.utils.progress import progress
from efficientnetv2.utils.shell import command_line
from efficientnetv2.workflows.batch_predict import device_for_rank, refuse_swapped_arguments
from efficientnetv2.workflows.outputs import refuse_others, tell_replaced

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MapOptions:
    """The options of those names; None is not given.

    Args:
        window_m, window_px, stride_px: of the windows.
        bands, value_range: as text, numbers with commas between.
    """

    window_m: float | None = None
    window_px: int | None = None
    stride_px: int | None = None
    bands: str | None = None
    value_range: str | None = None


@dataclass(frozen=True, eq=False)
class MapResult:
    """A map that has been drawn.

    Args:
        out: the file.
        raster: it is of.
        class_names: of the model.
        tally: of its pixels.
        grid: of the windows.
        bands: read.
        seconds: that it took.
    """

    out: Path
    raster: Path
    class_names: tuple[str, ...]
    tally: MapStatistics
    grid: Grid
    bands: Bands
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        covered = max(1, int(self.tally.pixels.sum()))
        return {
            "map": str(self.out),
            "raster": str(self.raster),
            "bands": list(self.bands.numbers),
            "windows": len(self.grid),
            "window_px": self.grid.window_px,
            "stride_px": self.grid.stride_px,
            "seconds": round(self.seconds, 2),
            "nodata_pixels": self.tally.nodata,
            "classes": {
                name: {
                    "value": place + 1,
                    "pixels": int(self.tally.pixels[place]),
                    "share": int(self.tally.pixels[place]) / covered,
                    "hectares": None if self.tally.hectares is None else float(self.tally.hectares[place]),
                    "probability": float(self.tally.confidence[place]) if self.tally.pixels[place] else None,
                }
                for place, name in enumerate(self.class_names)
            },
        }


def predict_map(
    model: str, raster: Path, wanted: MapOptions, *, out: Path, batch_images: int, device: str
) -> MapResult:
    """Map a raster.

    Raises:
        InputError: anything a user can mend.
    """
    on = device_for_rank(device, World())
    refuse_swapped_arguments(model, raster, "map")
    _refuse_place(out, raster)
    with open_raster(raster) as source:
        refuse_others(out, "--out", map_file.is_map, "is no map of effnetv2 geo map")
        tell_replaced(out)
        network = model_file.load(model)
        require_classes(network, model)
        require_single_label(network, "a map has one class at each place", model)
        require_image_channels(network, model)
        bands = resolve_bands(source, network.preprocessing, wanted, str(raster))
        grid = resolve_grid(source, network.preprocessing, wanted, raster)
        for line in _chosen(source, raster, grid, bands, wanted, _trained_m(network.preprocessing)):
            _logger.info(line)
        tallies: list[MapStatistics] = []
        started = time.perf_counter()
        with signals_as_ctrl_c(), progress("mapping", len(grid), "windows") as counted:

            def fill(put: map_file.WriteBlock) -> None:
                tallies.append(
                    predict_blocks(
                        network,
                        source,
                        put,
                        grid,
                        bands,
                        batch_images=batch_images,
                        device=on,
                        progress=counted,
                    )
                )

            told = {
                "model": model,
                "command": command_line(),
                "window_px": str(grid.window_px),
                "stride_px": str(grid.stride_px),
            }
            map_file.write_map(out, source, network.class_names, fill, told=told)
        seconds = time.perf_counter() - started
    return MapResult(out, raster, network.class_names, tallies[0], grid, bands, seconds)


def _refuse_place(out: Path, raster: Path) -> None:
    check_writable_file(out, "--out", such_as="map.tif")
    if out.exists() and raster.exists() and out.samefile(raster):
        raise InputError(f"--out {out} is RASTER itself. Give another file.")


def resolve_bands(
    source: RasterDataset, preprocessing: Preprocessing, wanted: MapOptions, name: str
) -> Bands:
    """How a raster is to be seen: as given, else as the model's pictures were, else as the raster says.

    Args:
        source: the raster.
        preprocessing: of the model.
        wanted: what was given.
        name: of the raster, for messages.

    Raises:
        InputError: bands that are not there or not known, values of another kind than the model's pictures had, or of
            which nobody says what becomes 0 and 255.
    """
    known = preprocessing.bands
    numbers = None if known is None else known.numbers
    asked = None if wanted.bands is None else parse_bands(wanted.bands)
    if asked is not None:
        numbers = None if asked == "all" else asked
    if not isinstance(asked, tuple) and (fault := multipage_fault(source) or palette_fault(source)):
        raise InputError(f"{name} {fault}")
    if numbers is None:
        numbers = (visible_bands if asked is None else all_bands)(source)
    _refuse_other_number(numbers, preprocessing, source, name)
    if known is None:
        known = Bands(numbers, missing=tuple(round(255 * value) for value in preprocessing.mean))
    elif numbers != known.numbers or isinstance(asked, tuple):
        # Asked for by number, so what they are called does not count.
        known = replace(known, numbers=numbers, names=band_names(source, numbers))
    by_rule = preprocessing.bands is not None and wanted.value_range is None
    if fault := (mismatch if by_rule else band_mismatch)(source, known):
        raise InputError(f"{name} {fault}")
    kinds = dtypes_of(source, known.numbers)
    if wanted.value_range is not None:
        low, high = _value_range(wanted.value_range)
        return replace(known, low=(low,) * known.channels, high=(high,) * known.channels, kinds=kinds)
    if preprocessing.bands is None and kinds != ("uint8",):
        raise InputError(
            f"{name} holds {', '.join(kinds)}, but the model was trained on 8-bit pictures, and does not know "
            "which values were made 0 and 255 for these. Say it, as --value-range 0,3000."
        )
    return known


def _refuse_other_number(
    numbers: tuple[int, ...], preprocessing: Preprocessing, source: RasterDataset, name: str
) -> None:
    """Refuse bands of another number than the model's pictures had."""
    count, bands = preprocessing.channels, preprocessing.bands
    if len(numbers) == count:
        return
    asked = f"--bands {','.join(map(str, numbers))}"
    if bands is None:
        raise InputError(
            f"{name} has {pluralize(source.count, 'band')}, and the model was trained on ordinary pictures of {count} "
            f"channels. Say which are to be seen as red, green and blue, as --bands 4,3,2 (not {asked})."
        )
    raise InputError(
        f"{asked}: the model was trained on {pluralize(count, 'band')} ({bands.listed}). Give so many, in that "
        "order, or leave --bands out."
    )


def _value_range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError
    except ValueError:
        raise InputError(
            f"--value-range is '{text}', but is two numbers, the lower first: the values seen as 0 and 255, as 0,3000."
        ) from None
    return low, high


def resolve_grid(
    source: RasterDataset, preprocessing: Preprocessing, wanted: MapOptions, raster: Path
) -> Grid:
    """Where the windows lie.

    Args:
        source: the raster.
        preprocessing: of the model; the default is the ground that its pictures showed, or else its size.
        wanted: what was given.
        raster: for messages.

    Raises:
        InputError: windows that do not fit, or metres where the raster has none.
    """
    px = wanted.window_px
    if wanted.window_m is not None:
        if px is not None:
            raise InputError("--window-px and --window-m both say how large a window is. Give one of them.")
        px = _pixels(source, wanted.window_m, raster)
    if px is None:
        side, trained_m = pixel_side_m(source), _trained_m(preprocessing)
        px = preprocessing.image_px
        if side is not None and trained_m is not None:
            px = max(2, round(trained_m / side))
    stride = max(1, px // 2) if wanted.stride_px is None else wanted.stride_px
    return Grid(source.height, source.width, px, stride)


def _pixels(source: RasterDataset, metres: float, raster: Path) -> int:
    side = pixel_side_m(source)
    if side is None:
        unit, fix = "no coordinate system", "."
        if source.crs is not None:
            unit = (
                "coordinates in degrees"
                if source.crs.is_geographic
                else "a coordinate system that is not projected"
            )
            fix = ", or project it first: with GDAL, gdalwarp -t_srs EPSG:32721 (with your UTM zone)."
        raise InputError(
            f"--window-m is {metres:g}, but {raster} has {unit}, so its pixels have no size in metres. Give "
            f"--window-px{fix}"
        )
    if not 0 < metres < math.inf or round(metres / side) < 2:
        raise InputError(
            f"--window-m is {metres:g}, but a pixel of {raster} is {side:g} m wide and a window has at least 2. Give "
            f"{2 * side:g} or more."
        )
    return round(metres / side)


def _trained_m(preprocessing: Preprocessing) -> float | None:
    return None if preprocessing.bands is None else preprocessing.bands.picture_m


def _chosen(
    source: RasterDataset, raster: Path, grid: Grid, bands: Bands, wanted: MapOptions, trained_m: float | None
) -> list[str]:
    """What a person should know before it begins, a sentence each."""
    side = pixel_side_m(source)
    ground = "" if side is None else f" ({side * grid.window_px:,.0f} m)"
    lines = [
        f"{raster}: {source.width:,} x {source.height:,} px; bands {bands.listed} of {source.count}"
        f"{' as red, green and blue' if bands.channels == RGB else ''}.",
        f"Windows: {len(grid.lefts)} x {len(grid.tops)} of {grid.window_px} px{ground}, one every {grid.stride_px} px.",
    ]
    if trained_m is not None and side is not None:
        lines.append(f"The pictures that trained the model showed {trained_m:,.0f} m.")
    elif wanted.window_px is None and wanted.window_m is None:
        lines.append(
            "That is the size of the model's input. A window should show as much ground as the pictures that trained "
            "the model: if theirs was another, say --window-m or --window-px."
        )
    if source.crs is None:
        lines.append(f"{raster} has no coordinate system, so the map has none either.")
    if fault := distortion_warning(source):
        lines.append(fault)
    return lines
