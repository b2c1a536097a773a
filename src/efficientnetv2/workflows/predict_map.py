"""Predict a map from a raster: `efficientnetv2.predict_map`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from efficientnetv2.data.config import parse_bands
from efficientnetv2.data.geotiff import RasterDataset, all_bands, band_names, open_raster, pixel_side_m, visible_bands
from efficientnetv2.data.raster_checks import band_mismatch, dtypes_of, encoding_fault, mismatch
from efficientnetv2.evaluation.evaluation_result import file_hashes
from efficientnetv2.geospatial import map_file
from efficientnetv2.geospatial.map_file import distortion_warning
from efficientnetv2.geospatial.sliding_window import Grid, MapStatistics, predict_blocks
from efficientnetv2.models.efficientnet import require_single_label
from efficientnetv2.models.model_file import NAME
from efficientnetv2.preprocessing import RGB, Bands, Preprocessing
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import check_writable_file
from efficientnetv2.utils.shell import command_line
from efficientnetv2.workflows.arguments import (
    PathLike,
    api,
    joined,
    note_replaced,
    number,
    path_text,
    refuse_foreign_file,
)
from efficientnetv2.workflows.batch_predict import device_for_rank, load_predictor

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MapOptions:
    """Options of ``effnetv2 geo map`` by their names."""

    window_m: float | None = None
    window_px: int | None = None
    stride_px: int | None = None
    bands: str | None = None
    value_range: str | None = None
    batch_size: int = 32
    device: str = "auto"


@dataclass(frozen=True, eq=False)
class MapResult:
    """A map, as `predict_map` wrote it.

    Example::

        import efficientnetv2 as ev2

        drawn = ev2.predict_map("runs/cover", "scene.tif", "cover.tif")
        print(drawn.classes)

    Attributes:
        path: The GeoTIFF.
        raster: The raster that it was predicted from.
        class_names: Class names; the first has the value 1.
        tally: Sums over the map.
        grid: The windows.
        bands: The bands that were read.
        seconds: Wall time of the prediction.
    """

    path: Path
    raster: Path
    class_names: tuple[str, ...]
    tally: MapStatistics
    grid: Grid
    bands: Bands
    seconds: float

    @property
    def classes(self) -> pd.DataFrame:
        """A row per class: value in the map, pixels, share of the map, hectares, mean probability."""
        return pd.DataFrame.from_dict(self.to_json()["classes"], orient="index")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        tally = self.tally
        covered = max(1, int(tally.pixels.sum()))
        return {
            "map": str(self.path),
            "raster": str(self.raster),
            "bands": list(self.bands.numbers),
            "windows": len(self.grid),
            "window_px": self.grid.window_px,
            "stride_px": self.grid.stride_px,
            "seconds": round(self.seconds, 2),
            "nodata_pixels": tally.nodata,
            "classes": {
                name: {
                    "value": place + 1,
                    "pixels": int(tally.pixels[place]),
                    "share": int(tally.pixels[place]) / covered,
                    "hectares": None if tally.hectares is None else float(tally.hectares[place]),
                    "probability": float(tally.confidence[place]) if tally.pixels[place] else None,
                }
                for place, name in enumerate(self.class_names)
            },
        }


@api
def predict_map(
    model: PathLike,
    raster: PathLike,
    output: PathLike = "map.tif",
    *,
    window_m: float | None = None,
    window_px: int | None = None,
    stride_px: int | None = None,
    bands: Sequence[int] | str | None = None,
    value_range: tuple[float, float] | None = None,
    batch_size: int = 32,
    device: str | torch.device = "auto",
) -> MapResult:
    """Classify overlapping windows of a raster, and write a map as a GeoTIFF. Needs the extra ``geo``.

    Band 1 has the class of each pixel, from 1; 0 means no data. Band 2 has its probability in percent.

    Example::

        import efficientnetv2 as ev2

        drawn = ev2.predict_map("runs/cover", "scene.tif", "cover.tif")
        print(drawn.classes)

    Args:
        model: A run, a model file or the name of pretrained weights.
        raster: A GeoTIFF, or another raster that GDAL opens.
        output: GeoTIFF to write. An earlier map is replaced.
        window_m: Window in meters. None takes that of the training images, if it is known.
        window_px: Window in pixels. None takes the image size of the model, if meters are not known.
        stride_px: Pixels between windows. None takes half of a window.
        bands: Bands, from 1. None takes those of training.
        value_range: Values that become 0 and 255. None takes those of training.
        batch_size: Windows per batch.
        device: "auto", or a device of torch.

    Raises:
        InputError: An argument or a file that the caller can fix.
    """
    options = MapOptions(
        number("window_m", window_m, 0, whole=False),
        number("window_px", window_px, 2),
        number("stride_px", stride_px, 1),
        None if bands is None else joined(bands),
        None if value_range is None else joined(value_range),
        number("batch_size", batch_size, 1),
        str(device),
    )
    return run_map(
        path_text("model", model), Path(path_text("raster", raster)), options, Path(path_text("output", output))
    )


def run_map(model: str, raster: Path, options: MapOptions, out: Path) -> MapResult:
    """Predict a map of a raster and write it."""
    device = device_for_rank(options.device, World())
    check_writable_file(out, "`output`", such_as="map.tif")
    if out.exists() and raster.exists() and out.samefile(raster):
        raise InputError(f"`output` {out} is RASTER itself. Give another file.")
    network = load_predictor(model, raster, "geo map")
    require_single_label(network, "a map has one class at each place", model)
    with open_raster(raster) as source:
        refuse_foreign_file(out, "`output`", map_file.is_map, "is not a map of effnetv2 geo map")
        note_replaced(out)
        bands = resolve_bands(source, network.preprocessing, options, str(raster))
        grid = resolve_grid(source, network.preprocessing, options, raster)
        _log_plan(source, raster, grid, bands, options, network.preprocessing)
        statistics: list[MapStatistics] = []
        started = time.perf_counter()

        def fill(write_block: map_file.WriteBlock) -> None:
            batch_size = options.batch_size
            statistics.append(
                predict_blocks(network, source, write_block, grid, bands, batch_size=batch_size, device=device)
            )

        metadata = {
            "model": model,
            "command": command_line(),
            "window_px": str(grid.window_px),
            "stride_px": str(grid.stride_px),
        }
        for digest in file_hashes(Path(model), Path(model) / NAME).values():  # none of published weights
            metadata["model_sha256"] = digest
        with signals_as_ctrl_c():
            map_file.write_map(out, source, network.class_names, fill, metadata=metadata)
        seconds = time.perf_counter() - started
    return MapResult(out, raster, network.class_names, statistics[0], grid, bands, seconds)


def resolve_bands(source: RasterDataset, preprocessing: Preprocessing, options: MapOptions, name: str) -> Bands:
    """Bands and value range: from the options, else those of the model's images, else those of the raster."""
    known = preprocessing.bands
    requested = None if options.bands is None else parse_bands(options.bands)
    if isinstance(requested, tuple):
        numbers = requested
    elif fault := encoding_fault(source):
        raise InputError(f"{name} {fault}")
    elif requested == "all":
        numbers = all_bands(source)
    else:
        numbers = visible_bands(source) if known is None else known.numbers
    if len(numbers) != preprocessing.channels:
        trained = "ordinary images" if known is None else f"the bands {known.listed}"
        raise InputError(
            f"{name} has {pluralize(source.count, 'band')}, of which {','.join(map(str, numbers))} would be read. The "
            f"model was trained on {trained} of {preprocessing.channels} channels. Give as many, such as `bands=4,3,2` "
            "for red, green and blue."
        )
    if known is None:
        bands = Bands(numbers, missing=tuple(round(255 * value) for value in preprocessing.mean))
    elif isinstance(requested, tuple) or numbers != known.numbers:
        bands = replace(known, numbers=numbers, names=band_names(source, numbers))  # any names are right
    else:
        bands = known
    check = mismatch if known is not None and options.value_range is None else band_mismatch
    if fault := check(source, bands):
        raise InputError(f"{name} {fault}")
    dtypes = dtypes_of(source, bands.numbers)
    if options.value_range is not None:
        low, high = _value_range(options.value_range)
        return replace(bands, low=(low,) * bands.channels, high=(high,) * bands.channels, kinds=dtypes)
    if known is None and dtypes != ("uint8",):
        raise InputError(
            f"{name} holds {', '.join(dtypes)}, but the model was trained on 8-bit images. Give the values that become "
            "0 and 255, such as `value_range=0,3000`."
        )
    return bands


def _value_range(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise InputError(
            f"`value_range`: invalid value '{text}'. Give the values that become 0 and 255, the lower first, as 0,3000."
        )
    return low, high


def resolve_grid(source: RasterDataset, preprocessing: Preprocessing, options: MapOptions, raster: Path) -> Grid:
    """Windows: from the options, else of the ground that the model's images showed, else of its image size."""
    px, side = options.window_px, pixel_side_m(source)
    if options.window_m is not None:
        if px is not None:
            raise InputError("`window_px` and `window_m` both give the size of a window. Give one of them.")
        px = _window_px(source, side, options.window_m, raster)
    if px is None:
        px, bands = preprocessing.image_size, preprocessing.bands
        if side is not None and bands is not None and bands.ground_m is not None:
            px = max(2, round(bands.ground_m / side))
    stride = max(1, px // 2) if options.stride_px is None else options.stride_px
    return Grid(source.height, source.width, px, stride)


def _window_px(source: RasterDataset, side: float | None, meters: float, raster: Path) -> int:
    if side is None:
        reason = "no coordinate system"
        if source.crs is not None:
            geographic = source.crs.is_geographic
            reason = "coordinates in degrees" if geographic else "a coordinate system that is not projected"
        raise InputError(
            f"`window_m` is {meters:g}, but {raster} has {reason}, so its pixels have no size in meters. Give "
            "`window_px`, or project the raster (with GDAL, gdalwarp -t_srs EPSG:32721 for your UTM zone)."
        )
    if not 0 < meters < math.inf or round(meters / side) < 2:
        raise InputError(
            f"`window_m` is {meters:g}, but a pixel of {raster} is {side:g} m wide and a window has at least 2. Give "
            f"{2 * side:g} or more."
        )
    return round(meters / side)


def _log_plan(
    source: RasterDataset, raster: Path, grid: Grid, bands: Bands, options: MapOptions, preprocessing: Preprocessing
) -> None:
    """Log what was chosen, before the work begins."""
    side = pixel_side_m(source)
    ground = "" if side is None else f" ({side * grid.window_px:,.0f} m)"
    colors = " as red, green and blue" if bands.channels == RGB else ""
    trained_m = None if preprocessing.bands is None else preprocessing.bands.ground_m
    _logger.info(f"{raster}: {source.width:,} x {source.height:,} px; bands {bands.listed} of {source.count}{colors}.")
    _logger.info(
        f"Windows: {len(grid.lefts)} x {len(grid.tops)} of {grid.window_px} px{ground}, one every {grid.stride_px} px."
    )
    if trained_m is not None and side is not None:
        _logger.info(f"The images that trained the model showed {trained_m:,.0f} m.")
    elif options.window_px is None and options.window_m is None:
        _logger.info(
            "The window is the size of the model's input. If its training images showed other ground, give `window_m` "
            "or `window_px`."
        )
    if warning := distortion_warning(source):
        _logger.info(warning)
