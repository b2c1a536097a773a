"""``effnetv2 area``: how much of each class there really is, from a map and a sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.cli import options


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
    from efficientnetv2.workflows.area import estimate_and_tell

    estimate_and_tell(map_file, sample, label_column=label_column, as_json=as_json)
