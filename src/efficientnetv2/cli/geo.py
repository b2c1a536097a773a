"""``effnetv2 geo``: maps from rasters, and areas from maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from efficientnetv2.cli import options, parsing
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import argument, between, option
from efficientnetv2.utils.errors import format_duration, pluralize
from efficientnetv2.utils.shell import shell_join

if TYPE_CHECKING:
    from efficientnetv2.workflows.area import Estimate, MapAreas
    from efficientnetv2.workflows.predict_map import MapResult

app = parsing.app(name="geo", help="Map the classes of a raster, and estimate areas.")


@app.command("map", cls=parsing.Command)
def draw_map(
    model: options.Model,
    raster: Annotated[Path, argument("RASTER", "A GeoTIFF, or another raster that GDAL opens.")],
    out: Annotated[Path, option("GeoTIFF to write.", "TIF", "--output")] = Path("map.tif"),
    window_m: Annotated[float | None, option("Window in meters.  [default: as in training, if known]", "M")] = None,
    window_px: Annotated[
        int | None, option("Window size in pixels.  [default: the model's, without meters]", "PX")
    ] = None,
    stride_px: Annotated[int | None, option("Pixels between windows.  [default: half of one]", "PX")] = None,
    bands: Annotated[str | None, option("Bands, from 1.  [default: those in training]", "N,N")] = None,
    value_range: Annotated[
        str | None, option("Values shown as 0 and 255.  [default: those in training]", "LOW,HIGH")
    ] = None,
    batch_size: Annotated[int, option("Windows per batch.", "N", check=between(1))] = 32,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Classify overlapping windows of a raster, and write a map as a GeoTIFF.

    Band 1 has the class of each pixel, from 1; 0 means no data. Band 2 has its probability in percent. Needs the
    extra "geo".

    Examples:
    - `effnetv2 geo map runs/land_cover scene.tif`
    - `effnetv2 geo map runs/land_cover sentinel2.tif --bands 4,3,2 --value-range 0,3000 --window-m 5000`
    """
    from efficientnetv2.workflows.predict_map import MapOptions, run_map

    chosen = MapOptions(window_m, window_px, stride_px, bands, value_range, batch_size, device)
    with Screen(quiet=as_json) as screen:
        drawn = run_map(model, raster, chosen, out)
        print_map(drawn, screen)
    if as_json:
        print_json(drawn.to_json())


def print_map(drawn: MapResult, screen: Screen) -> None:
    """Print the classes on a map, and how it is used."""
    tally, names = drawn.tally, drawn.class_names
    covered = max(1, int(tally.pixels.sum()))
    columns = ["class", "value", "pixels", "fraction", "hectares", "probability"]
    rows = [
        [
            names[index], str(index + 1), f"{int(tally.pixels[index]):,}", f"{tally.pixels[index] / covered:.1%}",
            "" if tally.hectares is None else f"{tally.hectares[index]:,.1f}", f"{tally.confidence[index]:.2f}"
        ]
        for index in sorted(range(len(names)), key=lambda index: -int(tally.pixels[index]))
        if tally.pixels[index]
    ]  # fmt: skip
    if tally.hectares is None:
        columns, *rows = [row[:4] + row[5:] for row in (columns, *rows)]
    screen.table("Map", columns, rows)
    if absent := len(names) - len(rows):
        screen.say(f"{absent:,} of the model's {pluralize(len(names), 'class')} are not on the map.")
    if tally.nodata:
        screen.say(f"{pluralize(tally.nodata, 'pixel')} without data.")
    speed, took = len(drawn.grid) / max(drawn.seconds, 1e-9), format_duration(drawn.seconds)
    screen.say(f"{pluralize(len(drawn.grid), 'window')} in {took} ({speed:.0f} windows/s). Map: {drawn.path}")
    command = shell_join(["effnetv2", "geo", "area", str(drawn.path), "SAMPLE.csv"])
    screen.say(f"These areas include the model's errors. To correct them by a labeled sample: {command}")


@app.command(cls=parsing.Command)
def area(
    map_file: Annotated[Path, argument("MAP", "A map of effnetv2 geo map.")],
    sample: Annotated[
        Path, argument("SAMPLE", "CSV with label and x, y (or longitude, latitude, or map), or an evaluation.")
    ],
    label_column: Annotated[str, option("Column of the label.", "NAME")] = "label",
    as_json: options.Json = False,
) -> None:
    """Estimate the area of each class from a map and a labeled sample.

    The sample is drawn at random within each class of the map, with 50 places or more (Olofsson et al. 2014, Remote
    Sensing of Environment 148). Needs the extra "geo".

    Examples:
    - `effnetv2 geo area map.tif visited.csv`
    - `effnetv2 geo area map.tif evaluation/ --json`
    """
    from efficientnetv2.workflows.area import estimate_areas

    with Screen(quiet=as_json) as screen:
        areas = estimate_areas(map_file, sample, label_column=label_column)
        print_areas(areas, screen)
    if as_json:
        print_json(areas.to_json())


def print_areas(areas: MapAreas, screen: Screen) -> None:
    """Print the area of each class, and how good the map is."""
    found, unit = areas.found, "pixels" if areas.hectares is None else "ha"
    total = float(areas.pixels) if areas.hectares is None else areas.hectares
    rows = [
        [
            name, f"{one.mapped * total:,.1f}", f"{one.share.value * total:,.1f}", f"{one.share.margin * total:,.1f}",
            _percent(one.users_accuracy), _percent(one.producers_accuracy), str(one.samples)
        ]
        for name, one in sorted(found.classes.items(), key=lambda item: -item[1].share.value)
        if one.mapped or one.samples or one.share.value
    ]  # fmt: skip
    columns = ["class", f"mapped, {unit}", f"area, {unit}", "± 95 %", "user's", "producer's", "sample"]
    screen.table("Area by class, corrected by the sample", columns, rows)
    if absent := len(found.classes) - len(rows):
        count = f"{absent:,} of the map's {len(found.classes):,} classes"
        screen.say(f"{count} are neither on it nor in the sample.")
    screen.say(f"Map accuracy, by area: {_percent(found.accuracy)}.")
    if warning := found.flawless_warning():
        screen.say(warning)


def _percent(one: Estimate | None) -> str:
    return "" if one is None else f"{one.value:.1%} ± {100 * one.margin:.1f}"
