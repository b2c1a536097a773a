"""``effnetv2 predict``: labels for pictures that have none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json

OUT = Path("predictions.csv")


def predict(
    model: options.Model,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A picture, a folder of pictures (any depth), a CSV, TSV or Parquet file with a path column, or "
            "shards (a folder, URL or pattern of tars).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="CSV to write.")] = OUT,
    rank: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="What to label next: the pictures in the order in which their labels would teach most (the network is "
            "unsure of them, and they are unlike those before them); of a table labelled in part those without a "
            "label. A sheet of the first is written beside as .html.",
            show_default=False,
        ),
    ] = None,
    abstain_below: options.AbstainBelow = None,
    views: options.Views = None,
    label_separator: Annotated[
        str | None,
        typer.Option(
            help="Of a model of several labels a picture: give each picture all labels with a probability of at least "
            "0.5, maybe none (of a model that learnt shares, those with at least half of its largest), with this "
            "between them, such as ';'. (Default: each gets the most probable.)",
            show_default=False,
        ),
    ] = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    path_column: options.PathColumn = "path",
    label_column: options.LabelColumn = "label",
    strict: options.Strict = False,
    as_json: options.Json = False,
) -> None:
    """Write path, label and the probability of each class for every picture; of more than 1,000 classes the best five.

    With --abstain-below the label of a picture that stays below is empty. What could not be read is listed
    beside, in OUT_skipped.csv. Tables of the same kind that are there are replaced; other files are not. Stopped or
    killed, the same command goes on from the answers that it has kept beside OUT. Under torchrun, processes share the
    pictures.

    Examples:
    - `effnetv2 predict runs/demo new_photos/`
    - `effnetv2 predict model.safetensors list.csv --path-column file --out labels.csv`
    - `effnetv2 predict runs/demo unlabelled/ --rank next.csv`
    - `effnetv2 predict runs/birds birds.csv --label-column species --rank next.csv`
    - `effnetv2 predict runs/demo new_photos/ --abstain-below 0.8`
    - `effnetv2 predict runs/animals new_photos/ --label-separator ";"`
    """
    from efficientnetv2.data.config import DataConfig
    from efficientnetv2.workflows.predict import predict_and_write

    source = DataConfig(data, path_column, label_column)
    with Screen(quiet=as_json):
        table = predict_and_write(
            model,
            source,
            out=out,
            rank=rank,
            device=device,
            workers=workers,
            strict=strict,
            abstain_below=abstain_below,
            views=views,
            separator=label_separator,
        )
    if as_json and table is not None:
        print_json(table.to_dict(orient="records"))
