"""``effnetv2 crossval``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.options import advanced, between, flag, option, spread
from efficientnetv2.cli.parsing import ADVANCED


@spread
def crossval(
    context: typer.Context,
    data: options.Data,
    recipe: options.RecipeOptions,
    table: options.TableOptions,
    machine: options.MachineOptions,
    folds: Annotated[int, option("Number of folds.", "N", check=between(1, 1000))] = 5,
    by: Annotated[
        Literal["auto", "class", "group", "place", "time"],
        option("What a fold keeps whole: auto, group, place, time; class is random, stratified.", "NAME"),
    ] = "auto",
    block_degrees: Annotated[
        float | None, advanced("Size of spatial blocks.  [default: automatic]", "DEGREES", check=between(0.001, 90))
    ] = None,
    time_column: options.TimeColumn = None,
    candidates: Annotated[
        list[str] | None,
        advanced("Recipe fields of a candidate to choose from in each fold; repeatable.", "'A.B=C ...'", "--candidate"),
    ] = None,
    candidate_settings: Annotated[
        list[str] | None,
        advanced("A recipe field of candidate runs alone, such as epochs=4; repeatable.", "A.B=C", "--candidate-set"),
    ] = None,
    members: Annotated[
        int,
        advanced("Models per fold: the best candidates, or as many seeds.", "N", "--ensemble", check=between(1, 100)),
    ] = 1,
    compare_splits: Annotated[
        bool, flag("--compare-splits", "Compare with a second set of folds: random ones, or by place.", panel=ADVANCED)
    ] = False,
    out: options.RunOut = None,
    resume: options.Resume = False,
) -> None:
    """Train a model per fold, and report on all images.

    Examples:
    - `effnetv2 crossval train.csv --by place --minutes 60`
    - `effnetv2 crossval train.csv --by time --time-column year --folds 4`
    - `effnetv2 crossval train.csv --candidate class_sampling=null --candidate class_sampling=equal`
    """
    from efficientnetv2.workflows.arguments import validate_run_paths

    if not resume:
        validate_run_paths(data, out, "crossval")
    from efficientnetv2.cli.progress_bars import TrainingBar  # torch, which takes seconds
    from efficientnetv2.cli.result_tables import ResultPrinter
    from efficientnetv2.workflows.crossval import run_crossval
    from efficientnetv2.workflows.crossval_config import CrossValConfig

    plan = CrossValConfig(
        folds, by, block_degrees, time_column, tuple(candidates or ()), tuple(candidate_settings or ()), members,
        compare_splits
    )  # fmt: skip
    given = (name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE")  # type: ignore[union-attr]
    with Screen(quiet=machine.as_json, verbose=machine.verbose) as screen, TrainingBar(screen) as bar:
        run_crossval(
            recipe.overrides(), table.data_config(data), machine.run_options(out, resume=resume), plan,
            frozenset(given), callbacks=[bar], on_result=ResultPrinter(screen, as_json=machine.as_json)
        )  # fmt: skip
