"""``effnetv2 crossval``: how good a recipe is on all the pictures there are, each answered by a network new to it."""

from __future__ import annotations

from typing import Annotated

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.options import spread


@spread
def crossval(
    context: typer.Context,
    data: options.Data,
    recipe: options.RecipeOptions,
    table: options.TableOptions,
    machine: options.MachineOptions,
    folds: Annotated[
        int, typer.Option(help="How many parts, each answered once.", callback=options.between(1, 1000))
    ] = 5,
    by: Annotated[
        str,
        typer.Option(
            metavar="auto|class|group|place|time",
            help="What a fold keeps whole. auto: places (spatial blocks) and groups, where they are known and no class "
            "vanishes by it; class: neither, at random with each class's share; time: the past answers for the future.",
        ),
    ] = "auto",
    block_degrees: Annotated[
        float | None,
        typer.Option(
            metavar="DEGREES",
            help="Side of the spatial blocks; 1 is about 111 km. (Default: the largest of 1 to 1/32 that deals well.)",
            callback=options.between(0.001, 90),
            show_default=False,
        ),
    ] = None,
    time_column: Annotated[
        str | None,
        typer.Option(
            help="Column of a year or date, for --by time. (Default: year, date, datetime, timestamp or time, where "
            "there is one.)",
            show_default=False,
        ),
    ] = None,
    attempts: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="'A.B=C ...'",
            help="Settings to choose from, those of one try in one text; repeat it for each. In every fold each try is "
            "trained on three quarters of the fold's training pictures; the best on the last quarter by macro-F1 "
            "is trained again on all of them.",
            show_default=False,
        ),
    ] = None,
    try_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--try-set",
            metavar="A.B=C",
            help="A field of the recipe while choosing only, such as epochs=4; may be repeated.",
            show_default=False,
        ),
    ] = None,
    members: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Networks that answer each fold together, their probabilities averaged: with --try the N best tries "
            "(as many as there are: all, and none is tried beforehand), else the recipe with N seeds. N runs answer a "
            "fold instead of one.",
            callback=options.between(1, 100),
        ),
    ] = 1,
    compare_splits: Annotated[
        bool,
        typer.Option(
            "--compare-splits",
            help="Train a second set of folds, at random beside by place, and say how much neighbours flatter. Without "
            "it, a linear probe on the given weights says so, in seconds.",
        ),
    ] = False,
    out: options.RunOut = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the folds in --out, or with the newest under runs/.")
    ] = False,
) -> None:
    """Cross-validate: train a network for each fold, answer the pictures that it has not seen, report all answers.

    The figure uses every picture once, so it is surer than that of one held-out part. The folder holds a run for each
    fold, the answers of all, and the folds' networks as one predictor: effnetv2 predict FOLDER NEW_PICTURES.
    --minutes is for the whole.

    Examples:
    - `effnetv2 crossval photos/`
    - `effnetv2 crossval train.csv --by place --minutes 60 --compare-splits`
    - `effnetv2 crossval train.csv --by time --time-column year --folds 4`
    - `effnetv2 crossval train.csv --try "balance=null" --try "balance=equal" --try-set epochs=4`
    - `effnetv2 crossval train.csv --members 3`
    - `effnetv2 crossval photos/ --out runs/folds --resume`
    """
    from efficientnetv2.workflows.output_paths import refuse_run_within

    if not resume:
        refuse_run_within(data, out, "crossval")
    from efficientnetv2.cli.bars import TrainingBar  # torch, which takes seconds
    from efficientnetv2.cli.results import ResultPrinter
    from efficientnetv2.workflows.crossval import run_crossval
    from efficientnetv2.workflows.crossval_config import CrossValConfig

    plan = CrossValConfig(
        folds=folds,
        by=by,
        block_degrees=block_degrees,
        time_column=time_column,
        tries=tuple(attempts or ()),
        try_settings=tuple(try_settings or ()),
        members=members,
        compare_splits=compare_splits,
    )
    with Screen(quiet=machine.as_json, verbose=machine.verbose) as screen, TrainingBar(screen) as bar:
        run_crossval(
            recipe.words(), table.source(data), machine.place(out, resume=resume), plan, _typed(context),
            callbacks=[bar], on_result=ResultPrinter(screen, as_json=machine.as_json),
        )  # fmt: skip


def _typed(context: typer.Context) -> frozenset[str]:
    """Names of the options that stand on the command line, their values defaults or not."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(name for name, source in sources.items() if source and source.name == "COMMANDLINE")
