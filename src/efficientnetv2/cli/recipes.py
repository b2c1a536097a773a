"""``effnetv2 recipes``: the named recipes, one in full with its stages, and what the fields of all of them mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json

if TYPE_CHECKING:  # heavy, and --help has to be quick
    from efficientnetv2.training.recipe import Recipe

_SELDOM = ("cutout", "label_smoothing")

Fields = Annotated[
    bool,
    typer.Option(
        "--fields",
        help="What --set takes: every field of a recipe, its values, its default, what it means; with NAME also what "
        "that recipe says.",
    ),
]
OneField = Annotated[
    str | None,
    typer.Option(
        metavar="FIELD",
        help="The same of one field (optimizer.lr), of a part (optimizer), or of all that begin so (crop).",
        show_default=False,
    ),
]


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One recipe, in full: a named one, a recipe.yaml, or a run folder.", show_default=False
        ),
    ] = None,
    fields: Fields = False,
    field: OneField = None,
    as_json: options.Json = False,
) -> None:
    """List the recipes, show one in full with the setting of each stage, or say what the fields of a recipe mean.

    Examples:
    - `effnetv2 recipes`
    - `effnetv2 recipes efficientnetv2_s_paper`
    - `effnetv2 recipes quick --json`
    - `effnetv2 recipes runs/demo`
    - `effnetv2 recipes --fields`
    - `effnetv2 recipes finetune --field optimizer`
    """
    from efficientnetv2.training.recipes import RECIPES

    if fields or field is not None:
        _fields(name, field or "", as_json)
        return
    if name is not None:
        _one(name, as_json)
        return
    labels = {key: named.title for key, named in RECIPES.items()}
    if as_json:
        print_json([{"name": key, "label": label} for key, label in labels.items()])
        return
    Screen().table("Recipes", ["name", "what for"], [[key, label] for key, label in labels.items()])


def _one(name: str, as_json: bool) -> None:
    from efficientnetv2.training.recipes import RECIPES, load_recipe

    recipe = load_recipe(name, "NAME")
    stages = _stages(recipe)
    if as_json:
        print_json(recipe.to_json() | {"stages": stages})
        return
    screen = Screen()
    label = f"{recipe.name}, as it stands in {name}." if name not in RECIPES else RECIPES[name].description
    screen.say(label or "")
    screen.say("")
    # What hardly any recipe has takes no room in the tables of the others.
    columns = [
        column for column in stages[0] if column not in _SELDOM or any(stage[column] for stage in stages)
    ]
    rows = [
        [str(number), *(_cell(column, stage[column]) for column in columns)]
        for number, stage in enumerate(stages, start=1)
    ]
    headings = [column.removesuffix("_alpha").replace("_", " ") for column in columns]
    screen.table("Stages", ["stage", *headings], rows)
    screen.say("")
    screen.say(recipe.to_yaml())


def _fields(name: str | None, word: str, as_json: bool) -> None:
    """What the fields mean whose names begin with the word, and what the recipe says, if one is named."""
    from efficientnetv2.training.recipe_fields import field_values, find_fields, format_value
    from efficientnetv2.training.recipes import load_recipe

    found = find_fields(word)
    said = None if name is None else field_values(load_recipe(name, "NAME"))
    if as_json:
        print_json([one.to_json() | ({} if said is None else {"value": said[one.name]}) for one in found])
        return
    columns = ["field", "values", "default", *([] if name is None else [f"in {name}"]), "meaning"]
    rows = [
        [
            one.name,
            one.values,
            "" if one.required else format_value(one.default),
            *([] if said is None else [format_value(said[one.name])]),
            one.meaning,
        ]
        for one in found
    ]
    Screen().entries("Fields of a recipe, for --set FIELD=VALUE", columns, rows)


def _cell(column: str, value: Any) -> str:
    if column == "epochs" and value is None:
        return "auto"
    return "off" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _stages(recipe: Recipe) -> list[dict[str, Any]]:
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
                "cutout": setting.cutout,
                "label_smoothing": setting.label_smoothing,
                # "auto" is settled by the number of pictures, shares of the time by measuring.
                "epochs": None
                if recipe.epochs == "auto" or recipe.time_shares is not None
                else recipe.epochs * plan.weights[index],
            }
        )
    return stages
