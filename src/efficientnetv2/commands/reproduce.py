"""``effnetv2 reproduce``: a table of the paper, with ours beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.commands import options

Name = Annotated[
    str,
    typer.Argument(metavar="TABLE", help="1, 2, 3, 5 to 13, figure1, figure4 or figure5."),
]
ScaleWord = Annotated[
    str,
    typer.Option(
        help="How much of the paper's work: tiny (minutes, shows that it runs), small (hours), paper."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Pictures to train on; of table 8 several sets, with commas. Otherwise those of the repository (tiny) or "
        "imagenette, for table 8 cifar10 (small); at paper ImageNet's folder is needed, but for table 8, which trains "
        "on all its sets.",
        show_default=False,
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        callback=options.between(1, 1000),
        help="Runs per cell: 1 at tiny, 3 at small, 5 at paper.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Of table 8: what transfer goes on from; at paper each network has its own, NETWORK.in1k.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder; runs/reproduce_TABLE_SCALE otherwise. What is done there is kept.", show_default=False
    ),
]


def reproduce(
    table: Name,
    scale: ScaleWord = "tiny",
    data: Data = None,
    seeds: Seeds = None,
    weights: Weights = None,
    device: options.Device = "auto",
    out: Out = None,
    as_json: options.Json = False,
) -> None:
    """Print a table of the paper (arXiv:2104.00298) with our column beside it.

    What can be counted is counted, speeds are measured on this machine, and accuracies are trained at the scale
    asked for. Stopped, it goes on where it was when called again. Writes table.json, table.md, figure.png and log.txt.

    Examples:
    - `effnetv2 reproduce 7`
    - `effnetv2 reproduce 13 --scale small --data imagenette --seeds 3`
    - `effnetv2 reproduce 8 --scale small --data cifar10 --weights trunk.safetensors`
    """
    from efficientnetv2.commands.reproduction.job import Asked, reproduced
    from efficientnetv2.commands.reproduction.table import NOT_OURS
    from efficientnetv2.commands.screen import Screen, answer

    screen = Screen(quiet=as_json)
    asked = Asked(table, scale, data, seeds, weights, device, out, as_json)
    made, folder = reproduced(asked, screen)
    if as_json:
        answer(made.to_json())
        return
    screen.table(made.title, made.headings(), made.cells())
    screen.say(f"Paper: {made.paper_says}")
    screen.say(f"Ours: {made.ours_says}")
    if made.paper_only:
        screen.say(f"{NOT_OURS}: {'; '.join(made.paper_only)}")
    for line in made.missing:
        screen.say(f"Missing: {line}")
    screen.say(f"Written to {folder}")
