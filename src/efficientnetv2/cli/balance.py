"""``effnetv2 balance``: a set in which no class is rare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import spread
from efficientnetv2.utils import shell
from efficientnetv2.utils.errors import pluralize


@spread
def balance(
    data: options.Data,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="A folder, new or empty, for augmented copies and pictures.csv; with --fewer a .csv file.",
            show_default=False,
        ),
    ],
    table: options.OneLabelOptions,
    to: Annotated[
        str,
        typer.Option(
            metavar="equal|sqrt|effective",
            help="Proportions of the classes: alike, as the roots of their numbers, or by their effective numbers.",
        ),
    ] = "equal",
    fewer: Annotated[
        bool,
        typer.Option(
            "--fewer", help="Leave out pictures of frequent classes instead of adding copies of rare ones."
        ),
    ] = False,
    recipe: Annotated[
        str,
        typer.Option(
            help="Whose augmentation, at its last stage: a named recipe, a recipe.yaml, or a run folder."
        ),
    ] = "finetune",
    settings: options.Settings = None,
    seed: Annotated[int, typer.Option(help="Number that fixes everything random.")] = 0,
    strict: options.Strict = False,
    as_json: options.Json = False,
) -> None:
    """Write a balanced set: copies of rare classes' pictures, augmented, or fewer pictures of frequent ones.

    Only training pictures are balanced: where no val split is given, one is held out first, as train would, and stays
    as it is. Each copy names its origin in the column augmented_from; copies never part from it in any split or fold
    made here, and no figure of train and crossval is of copies; evaluate answers all that it is given.

    Training does not need this: with --set balance=equal (or sqrt, which finetune has) it draws rare classes more often
    and augments each time anew. This is for tools that do not, and to look at.

    Examples:
    - `effnetv2 balance train.csv balanced/ --set augment.flip=symmetries`
    - `effnetv2 balance train.csv balanced/ --to sqrt`
    - `effnetv2 balance photos/ fewer.csv --fewer`
    """
    from efficientnetv2.workflows.oversample import balance_and_write

    with Screen(quiet=as_json) as screen:
        made = balance_and_write(
            table.source(data),
            out,
            to=to,
            fewer=fewer,
            recipe=recipe,
            settings=tuple(settings or ()),
            seed=seed,
            strict=strict,
        )
        if as_json:
            print_json(made.to_json())
        else:
            rows = [[name, str(before), str(after)] for name, (before, after) in made.counts.items()]
            screen.table("Training pictures", ["class", "before", "after"], rows)
        left_out = pluralize(sum(before - after for before, after in made.counts.values()), "picture")
        written = pluralize(made.copies, "augmented picture")
        what = f"{left_out} left out, none written" if fewer else f"{written} written"
        screen.say(f"{what}. Table: {made.table}")
        words = [
            "effnetv2",
            "train",
            str(made.table),
            *shell.option_args(bands=table.bands),
            "--set",
            "balance=null",
        ]
        screen.say(f"To train on it as it is, drawn as often as listed: {shell.shell_join(words)}")
