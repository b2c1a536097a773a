"""``effnetv2 evaluate``: how good a model is on labelled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen


def evaluate(
    model: options.Model,
    data: options.Data,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="train|minival|val|test|all",
            help="Which part of DATA. (Default: test where there is one, else val, else all.)",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json, report.html and predictions.csv.", show_default=False),
    ] = None,
    image_px: Annotated[
        int | None,
        typer.Option(
            help="Size at which the pictures are seen. (Default: the model file's.)", show_default=False
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="PX,PX,...",
            help="Compare sizes as well: 96,128,160. Choose by pictures that train the model, not by those whose "
            "figure you quote.",
            show_default=False,
        ),
    ] = None,
    views: options.Views = None,
    slices: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN,...|none",
            help="Figures by year, region, size: columns of DATA to cut the pictures by; longer_side_px is their size "
            "as stored. (Default: that, and those of few values, or of numbers.)",
            show_default=False,
        ),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="What mistakes cost: a row for each true class, a column for each answer, and one called no_answer "
            "for leaving a picture to a person.",
            show_default=False,
        ),
    ] = None,
    abstain_below: options.AbstainBelow = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Fit a temperature on these pictures, which must not have trained the model, and write the model "
            "with it to FILE. Evaluate that on other pictures.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Folder of another run or evaluation: the difference on the same pictures, with its interval.",
            show_default=False,
        ),
    ] = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    path_column: options.PathColumn = "path",
    label_column: options.LabelColumn = "label",
    group_column: options.GroupColumn = None,
    labels: options.Labels = "exact",
    label_separator: options.LabelSeparator = None,
    layout: options.FolderLayout = "auto",
    strict: options.Strict = False,
    as_json: options.Json = False,
) -> None:
    """Evaluate a model on labelled pictures it was not trained on.

    Where their groups or places are known, intervals draw these as a whole.

    Examples:
    - `effnetv2 evaluate runs/demo photos/`
    - `effnetv2 evaluate model.safetensors test.csv --out evaluation/ --json`
    - `effnetv2 evaluate model.safetensors test.csv --group-column patient`
    - `effnetv2 evaluate model.safetensors test.csv --slices year,region --against runs/before`
    - `effnetv2 evaluate model.safetensors test.csv --abstain-below 0.8 --costs costs.csv`
    - `effnetv2 evaluate model.safetensors test.csv --views symmetries`
    - `effnetv2 evaluate model.safetensors train.csv --sizes 96,128,160,192 --out sizes/`
    """
    from efficientnetv2.cli.results import ResultPrinter
    from efficientnetv2.data.config import DataConfig
    from efficientnetv2.workflows.evaluate import evaluate_and_report
    from efficientnetv2.workflows.evaluate_options import EvaluateOptions

    source = DataConfig(data, path_column, label_column, group_column, labels, label_separator, layout=layout)
    with Screen(quiet=as_json) as screen:
        evaluate_and_report(
            model,
            source,
            split=split,
            out=out,
            device=device,
            workers=workers,
            strict=strict,
            image_px=image_px,
            sizes=sizes,
            views=views,
            asking=EvaluateOptions(slices, costs, abstain_below, against, calibrate),
            on_result=ResultPrinter(screen, as_json=as_json),
        )
