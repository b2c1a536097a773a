"""``effnetv2 area``: how much of each class there really is, from a map and a sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.utils.errors import shorten

if TYPE_CHECKING:
    from efficientnetv2.metrics.area import Estimate
    from efficientnetv2.workflows.area import MapAreas


def area(
    map_file: Annotated[
        Path, typer.Argument(metavar="MAP", help="A map by effnetv2 map.", show_default=False)
    ],
    sample: Annotated[
        Path,
        typer.Argument(
            metavar="SAMPLE",
            help="Places on the map whose truth is known: a CSV with a label and x and y (in the map's coordinates), "
            "longitude and latitude, or the mapped class as map. Or the folder or report.json of an evaluation on "
            "pictures that did not train the model.",
            show_default=False,
        ),
    ],
    label_column: options.LabelColumn = "label",
    as_json: options.Json = False,
) -> None:
    """Area of each class, corrected by how often the map is wrong, with 95 % intervals; the map's accuracies.

    Counting a map's pixels repeats its mistakes. The sample should be drawn at random within each class of the map,
    50 places or more in each (Olofsson et al. 2014, Remote Sensing of Environment 148). Needs the extra "geo".

    Examples:
    - `effnetv2 area map.tif visited.csv`
    - `effnetv2 area map.tif evaluation/ --json`
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
            _share(one.users_accuracy), _share(one.producers_accuracy), str(one.samples),
        ]
        for name, one in sorted(found.classes.items(), key=lambda item: -item[1].share.value)
        if one.mapped or one.samples or one.share.value
    ]  # fmt: skip
    columns = ["class", f"mapped, {unit}", f"area, {unit}", "± 95 %", "user's", "producer's", "sample"]
    screen.table("Area by class, corrected by the sample", columns, rows)
    if nowhere := len(found.classes) - len(rows):
        screen.say(
            f"Of the map's {len(found.classes):,} classes {nowhere:,} {'is' if nowhere == 1 else 'are'} neither on it "
            "nor in the sample."
        )
    screen.say(f"The map is right on {_share(found.accuracy)} of its area.")
    flawless = {
        name: one.samples
        for name, one in found.classes.items()
        if one.users_accuracy is not None and one.mapped and one.users_accuracy.value == 1
    }
    if flawless:
        # The rule of three: of n draws without an event, its share is below 3 / n with 95 % confidence.
        shares = [f"{name} {min(1.0, 3 / samples):.1%}" for name, samples in flawless.items()]
        most = ", ".join(shares[:5]) + (", ..." if len(shares) > 5 else "")
        screen.say(
            f"No mistake was found where the map says {shorten(flawless)}. The intervals take that as certain; so few "
            f"places leave room for this share of mistakes there: {most}."
        )


def _share(one: Estimate | None) -> str:
    return "" if one is None else f"{one.value:.1%} ± {100 * one.margin:.1f}"
