"""``effnetv2 train``: from pictures to a model file and a report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.options import spread


@spread
def train(
    data: options.Data,
    recipe: options.RecipeOptions,
    table: options.TableOptions,
    machine: options.MachineOptions,
    out: options.RunOut = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or with the newest under runs/.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Folder of another run: is this one better, on the same pictures? (Default: the newest finished run "
            "beside it that answered them.)",
            show_default=False,
            metavar="RUN",
        ),
    ] = None,
) -> None:
    """Train a classifier on pictures and report honestly how good it is.

    With no other word it chooses a recipe and a network that suit the machine, holds out a fifth of the
    pictures (whole places and groups, where they are known), and writes model, report and log into a new
    folder under runs/.

    Examples:
    - `effnetv2 train photos/`
    - `effnetv2 train pictures.csv --label-column species --minutes 15`
    - `effnetv2 train photos/ --model efficientnetv2_s --epochs 30 --image-px 300`
    - `effnetv2 train photos/ --weights efficientnetv2_s.in21k_ft_in1k`
    - `effnetv2 train photos/ --weights theirs.pth --set freeze_stages=all`
    - `effnetv2 train photos/ --set progressive.stages=1 --set optimizer.lr=0.001`
    - `effnetv2 train photos/ --cache ram`
    - `effnetv2 train photos/ --epochs 40 --set minival=0.1 --set patience=5`
    - `effnetv2 train photos/ --image-px 300 --against runs/mine`
    - `effnetv2 train photos/ --resume`
    """
    began = time.monotonic()
    from efficientnetv2.workflows.output_paths import refuse_run_within

    if not resume:
        refuse_run_within(data, out, "train")
    from efficientnetv2.cli.bars import TrainingBar  # torch, which takes seconds
    from efficientnetv2.cli.results import ResultPrinter
    from efficientnetv2.workflows.train import train_and_report

    place = machine.place(out, resume=resume, against=against)
    with Screen(quiet=machine.as_json, verbose=machine.verbose) as screen, TrainingBar(screen) as bar:
        train_and_report(
            recipe.words(), table.source(data), place,
            began=began, callbacks=[bar], on_result=ResultPrinter(screen, as_json=machine.as_json),
        )  # fmt: skip
