"""``effnetv2 map``: a large raster as a land-cover map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.utils.errors import format_duration, pluralize
from efficientnetv2.utils.shell import shell_join

if TYPE_CHECKING:
    from efficientnetv2.workflows.predict_map import MapResult

OUT = Path("map.tif")


def draw_map(
    model: options.Model,
    raster: Annotated[
        Path,
        typer.Argument(
            metavar="RASTER", help="A GeoTIFF, or another raster that GDAL opens.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="GeoTIFF to write.")] = OUT,
    window_m: Annotated[
        float | None,
        typer.Option(
            help="Side of a window in metres. (Default: as much ground as the pictures showed that trained the model, "
            "where they were rasters that say it.)",
            show_default=False,
        ),
    ] = None,
    window_px: Annotated[
        int | None,
        typer.Option(
            help="The same in pixels of the raster. (Default, where the metres are not known: the model's input.)",
            show_default=False,
        ),
    ] = None,
    stride_px: Annotated[
        int | None,
        typer.Option(
            help="Pixels from a window to the next: less is smoother and takes longer. (Default: half a window.)",
            show_default=False,
        ),
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Bands that are seen, from 1: as many as the model was trained on, in that order. (Default: those "
            "that trained the model, else those that the raster calls red, green and blue.)",
            show_default=False,
        ),
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Values that are seen as 0 and 255, of rasters that are not 8-bit. (Default: those that trained the "
            "model.)",
            show_default=False,
        ),
    ] = None,
    batch_images: Annotated[
        int, typer.Option(callback=options.between(1), help="Windows computed at a time.")
    ] = 32,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Map a raster: what the model takes each place for, as a GeoTIFF in the raster's own grid.

    Overlapping windows are answered and blended. Band 1 holds the class of each pixel (from 1, in the order of the
    model's classes, with names and, of up to 255 classes, colours), band 2 its probability in per cent; 0 is where the
    raster has no data. A map that is there is replaced, another file is not. Needs the extra "geo".

    Examples:
    - `effnetv2 map runs/land_cover scene.tif`
    - `effnetv2 map runs/land_cover photo.tif --window-m 320`
    - `effnetv2 map model.safetensors sentinel2.tif --bands 4,3,2 --value-range 0,3000 --out cover.tif`
    """
    from efficientnetv2.workflows.predict_map import MapOptions, predict_map

    wanted = MapOptions(window_m, window_px, stride_px, bands, value_range)
    with Screen(quiet=as_json) as screen:
        drawn = predict_map(model, raster, wanted, out=out, batch_images=batch_images, device=device)
        print_map(drawn, screen)
    if as_json:
        print_json(drawn.to_json())


def print_map(drawn: MapResult, screen: Screen) -> None:
    """Print the classes on a map, and how it is used."""
    covered = max(1, int(drawn.tally.pixels.sum()))
    columns = ["class", "value", "pixels", "share", "hectares", "probability"]
    rows = []
    met = (place for place in range(len(drawn.class_names)) if drawn.tally.pixels[place])
    for place in sorted(met, key=lambda place: -int(drawn.tally.pixels[place])):
        pixels = int(drawn.tally.pixels[place])
        rows.append(
            [
                drawn.class_names[place], str(place + 1), f"{pixels:,}", f"{pixels / covered:.1%}",
                "" if drawn.tally.hectares is None else f"{drawn.tally.hectares[place]:,.1f}",
                f"{drawn.tally.confidence[place]:.2f}",
            ]
        )  # fmt: skip
    if drawn.tally.hectares is None:
        columns, rows = (
            [columns[i] for i in (0, 1, 2, 3, 5)],
            [[row[i] for i in (0, 1, 2, 3, 5)] for row in rows],
        )
    screen.table("On the map", columns, rows)
    if nowhere := len(drawn.class_names) - len(rows):
        are = "is" if nowhere == 1 else "are"
        screen.say(
            f"Of the model's {pluralize(len(drawn.class_names), 'class')} {nowhere:,} {are} not on it."
        )
    if drawn.tally.nodata:
        screen.say(f"{pluralize(drawn.tally.nodata, 'pixel')} without data stay so.")
    screen.say(
        f"{pluralize(len(drawn.grid), 'window')} in {format_duration(drawn.seconds)} "
        f"({len(drawn.grid) / max(drawn.seconds, 1e-9):.0f} windows/s)."
    )
    screen.say(
        f"Written to {drawn.out}. These areas repeat the model's mistakes; a sample whose truth is known corrects "
        "them: " + shell_join(["effnetv2", "area", str(drawn.out), "SAMPLE.csv"])
    )
