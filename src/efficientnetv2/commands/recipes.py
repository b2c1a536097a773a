"""``effnetv2 recipes``: the named recipes, one in full with its stages."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from efficientnetv2.commands import options
from efficientnetv2.commands.screen import Screen, answer


def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe, in full.", show_default=False)] = None,
    as_json: options.Json = False,
) -> None:
    """List the recipes, or show one in full with the setting of each stage.

    Examples:
    - `effnetv2 recipes`
    - `effnetv2 recipes efficientnetv2_s_paper`
    - `effnetv2 recipes quick --json`
    """
    from efficientnetv2.training.recipes import RECIPES

    if name is not None:
        _one(name, as_json)
        return
    labels = {key: (inspect.getdoc(function) or "").splitlines()[0] for key, function in RECIPES.items()}
    if as_json:
        answer([{"name": key, "label": label} for key, label in labels.items()])
        return
    Screen().table("Recipes", ["name", "what for"], [[key, label] for key, label in labels.items()])


def _one(name: str, as_json: bool) -> None:
    from efficientnetv2.training.recipes import RECIPES, named

    recipe = named(name)
    stages = _stages(name)
    if as_json:
        answer(recipe.to_json() | {"stages": stages})
        return
    screen = Screen()
    screen.say(inspect.getdoc(RECIPES[name]) or "")
    screen.say("")
    columns = list(stages[0])
    rows = [
        [str(number), *(_cell(stage[column]) for column in columns)] for number, stage in enumerate(stages)
    ]
    headings = [column.removesuffix("_alpha").replace("_", " ") for column in columns]
    screen.table("Stages", ["stage", *headings], rows)
    screen.say("")
    screen.say(recipe.to_yaml())


def _cell(value: Any) -> str:
    return "off" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _stages(name: str) -> list[dict[str, Any]]:
    from efficientnetv2.training.recipes import named

    recipe = named(name)
    plan = recipe.progressive
    stages = []
    for index in range(plan.stages):
        setting = plan.stage(index)
        stages.append(
            {
                "image_px": setting.image_px,
                "dropout": setting.dropout,
                "drop_path": setting.drop_path,
                "randaugment": setting.randaugment,
                "mixup_alpha": setting.mixup_alpha,
                "cutmix_alpha": setting.cutmix_alpha,
                # "auto" is settled by the number of pictures, shares of the time by measuring.
                "epochs": None
                if recipe.epochs == "auto" or recipe.time_shares is not None
                else recipe.epochs * plan.weights[index],
            }
        )
    return stages
