"""The options that several commands share, said once."""

from __future__ import annotations

from typing import Annotated

import typer

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder with one sub-folder per class (or train/ and val/ of them), a CSV or Parquet file with "
        "path and label columns, shards (a folder, URL or pattern of tars), or the name of a standard set such as "
        "cifar10.",
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A model.safetensors, or the folder of a run.", show_default=False),
]
PathColumn = Annotated[str, typer.Option(help="Column of a table that names the picture.")]
LabelColumn = Annotated[str, typer.Option(help="Column of a table that holds the label.")]
GroupColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of a table whose equal values must stay on one side of a split.", show_default=False
    ),
]
Labels = Annotated[
    str,
    typer.Option(
        metavar="exact|casefold",
        help="casefold merges labels that differ only by case or by spaces around them.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that read pictures. (Default: by the machine.)", show_default=False),
]
MemoryGib = Annotated[
    float | None,
    typer.Option(
        help="What training may take of the memory, in GiB: of the GPU's, or without one of this process's. "
        "(Default: what there is.)",
        show_default=False,
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first unreadable picture instead of skipping it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout, all else on stderr.")]
