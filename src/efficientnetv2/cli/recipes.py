"""``effnetv2 recipes``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import argument, flag, option

if TYPE_CHECKING:  # heavy, and --help has to be quick
    from efficientnetv2.training.recipe import Recipe

_RARE = ("cutout", "label_smoothing")  # columns of the stages that are left out where no stage uses them


def recipes(
    name: Annotated[str | None, argument("[NAME]", "A named recipe, a recipe.yaml, or a run.")] = None,
    fields: Annotated[
        bool, flag("--fields", "List every field for --set: values, default and meaning.")
    ] = False,
    field: Annotated[
        str | None, option("List one field, a part (optimizer), or all that start so (crop).", "FIELD")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the recipes, show one, or explain the fields.

    Examples:
    - `effnetv2 recipes runs/demo`
    - `effnetv2 recipes finetune --field optimizer`
    """
    from efficientnetv2.training.recipes import RECIPES

    if fields or field is not None:
        _print_fields(name, field or "", as_json)
    elif name is not None:
        _print_recipe(name, as_json)
    elif as_json:
        print_json([{"name": key, "label": recipe.title} for key, recipe in RECIPES.items()])
    else:
        rows = [[key, recipe.title] for key, recipe in RECIPES.items()]
        Screen().table("Recipes", ["name", "for"], rows)


def _print_recipe(name: str, as_json: bool) -> None:
    from efficientnetv2.training.recipes import RECIPES, load_recipe

    recipe = load_recipe(name, "NAME")
    stages = _stages(recipe)
    if as_json:
        print_json(recipe.to_json() | {"stages": stages})
        return
    screen = Screen()
    screen.say(RECIPES[name].description if name in RECIPES else f"{recipe.name}, as in {name}.")
    columns = [
        column for column in stages[0] if column not in _RARE or any(stage[column] for stage in stages)
    ]
    rows = [
        [str(number), *(_cell(column, stage[column]) for column in columns)]
        for number, stage in enumerate(stages, start=1)
    ]
    headings = [column.removesuffix("_alpha").replace("_", " ") for column in columns]
    screen.say("")
    screen.table("Stages", ["stage", *headings], rows)
    screen.say(f"\n{recipe.to_yaml()}")


def _print_fields(name: str | None, word: str, as_json: bool) -> None:
    """The fields whose names start with a word, and their values in a recipe, if one is named."""
    from efficientnetv2.training.recipe_fields import field_values, find_fields, format_value
    from efficientnetv2.training.recipes import load_recipe

    found = find_fields(word)
    values = None if name is None else field_values(load_recipe(name, "NAME"))
    if as_json:
        print_json([one.to_json() | ({} if values is None else {"value": values[one.name]}) for one in found])
        return
    columns = ["field", "values", "default", *([] if name is None else [f"in {name}"]), "meaning"]
    rows = [
        [
            one.name,
            one.values,
            "" if one.required else format_value(one.default),
            *([] if values is None else [format_value(values[one.name])]),
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
    # "auto" is resolved by the number of images, fractions of the time by measuring.
    is_open = recipe.epochs == "auto" or recipe.stage_time is not None
    names = ("image_size", "dropout", "drop_path", "randaugment", "mixup_alpha", "cutmix_alpha", "cutout")
    stages = []
    for index in range(plan.stages):
        values = {name: getattr(plan.stage(index), name) for name in (*names, "label_smoothing")}
        epochs = None if is_open else float(recipe.epochs) * plan.weights[index]
        stages.append(values | {"epochs": epochs})
    return stages
