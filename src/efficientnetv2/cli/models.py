"""``effnetv2 models`` and ``effnetv2 recipes``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import argument, flag, option
from efficientnetv2.utils.shell import shell_join

_RARE = ("cutout", "label_smoothing")  # columns of the stages that are left out where no stage uses them


def models(
    pretrained: Annotated[bool, flag("--pretrained", "List pretrained weights instead.")] = False,
    fetch: Annotated[str | None, option("Download weights, and print where the file is.", "NAME")] = None,
    as_json: options.Json = False,
) -> None:
    """List the published models, or pretrained weights.

    Examples:
    - `effnetv2 models --pretrained`
    - `effnetv2 models --fetch efficientnetv2_b0.in1k`
    """
    if fetch is not None:
        _fetch(fetch, as_json=as_json)
        return
    from efficientnetv2.models.hub import pretrained_weights, published_models

    rows = pretrained_weights() if pretrained else published_models()
    if as_json:
        print_json(rows)
    elif pretrained:
        _print_pretrained(rows)
    else:
        title = "Published models (1,000 classes; MACs of one image at the evaluation size)"
        cells = [
            [
                row["name"], f"{row['parameters']:,}", f"{row['multiply_adds'] / 1e9:,.2f} G",
                str(row["eval_image_size"]),
            ]
            for row in rows
        ]  # fmt: skip
        Screen().table(title, ["name", "parameters", "MACs", "px"], cells)


def _fetch(name: str, *, as_json: bool) -> None:
    """Download weights into the cache, and print how another machine uses the file."""
    from efficientnetv2.models import hub

    with Screen() as screen:
        path = hub.fetch(name)
    megabytes = round(path.stat().st_size / 1e6, 1)
    if as_json:
        print_json({"name": name, "path": str(path), "megabytes": megabytes})
        return
    copy = f"{name}{path.suffix}"
    screen.say(f"File: {path} ({megabytes:g} MB)")
    screen.say(f"To train from it: {shell_join(['effnetv2', 'train', 'DATA', '--weights', name])}")
    screen.say(f"For an offline machine, copy it: {shell_join(['cp', str(path), copy])}")
    screen.say(f"Train there with: {shell_join(['effnetv2', 'train', 'DATA', '--weights', copy])}")


def _print_pretrained(rows: list[dict[str, Any]]) -> None:
    screen = Screen()
    screen.table(
        "Pretrained weights (ImageNet-1k top-1 as published by their source; see docs/reference/models.md)",
        ["name", "px", "top-1 %", "about MB", "license", "source", "cached"],
        [
            [
                row["name"], str(row["image_size"]),
                "" if row["top1_percent"] is None else f"{row['top1_percent']:.1f}", f"{row['megabytes_about']:.0f}",
                row["license"].partition(" ")[0], row["source"], "yes" if row["cached"] else "no",
            ]
            for row in rows
        ],
    )  # fmt: skip
    screen.say("Weights that are not cached are downloaded. Those without top-1 have other classes.")


def recipes(
    name: Annotated[str | None, argument("[NAME]", "A named recipe, a recipe.yaml, or a run.")] = None,
    fields: Annotated[bool, flag("--fields", "List every field for --set.")] = False,
    field: Annotated[
        str | None, option("List one field, a part (optimizer), or all with a prefix (crop).", "FIELD")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the recipes, show one, or explain the fields.

    Examples:
    - `effnetv2 recipes runs/demo`
    - `effnetv2 recipes finetune --field optimizer`
    """
    from efficientnetv2.training.recipes import named_recipes

    if fields or field is not None:
        _print_fields(name, field or "", as_json)
    elif name is not None:
        _print_recipe(name, as_json)
    elif as_json:
        print_json([{"name": key, "label": recipe.title} for key, recipe in named_recipes().items()])
    else:
        rows = [[key, recipe.title] for key, recipe in named_recipes().items()]
        Screen().table("Recipes", ["name", "for"], rows)


def _print_recipe(name: str, as_json: bool) -> None:
    from efficientnetv2.training.recipes import load_recipe, named_recipes

    recipe = load_recipe(name, "NAME")
    stages = recipe.stages()
    if as_json:
        print_json(recipe.to_json() | {"stages": stages})
        return
    screen = Screen()
    screen.say(named_recipes()[name].description if name in named_recipes() else f"{recipe.name}, as in {name}.")
    columns = [name for name in stages[0] if name not in _RARE or any(stage[name] for stage in stages)]
    rows = [
        [str(number), *(_cell(column, stage[column]) for column in columns)]
        for number, stage in enumerate(stages, start=1)
    ]
    headings = [column.removesuffix("_alpha").replace("_", " ") for column in columns]
    screen.say("")
    screen.table("Stages", ["stage", *headings], rows)
    if recipe.progressive.continuous:
        end_px = recipe.progressive.last.image_size
        screen.say(f"Values grow at every step: a row is the first step of its stage. The run ends at {end_px} px.")
    screen.say(f"\n{recipe.to_yaml()}")


def _print_fields(name: str | None, word: str, as_json: bool) -> None:
    """The fields whose names start with a word, and their values in a recipe, if one is named."""
    from efficientnetv2.training.recipe_fields import field_values, find_fields, format_value
    from efficientnetv2.training.recipes import load_recipe

    found = find_fields(word)
    values = None if name is None else field_values(load_recipe(name, "NAME"))
    if as_json:
        print_json([asdict(one) | ({} if values is None else {"value": values[one.name]}) for one in found])
        return
    columns = ["field", "values", "default", *([] if name is None else [f"in {name}"]), "meaning"]
    rows = []
    for one in found:
        default = "" if one.required else format_value(one.default)
        value = [] if values is None else [format_value(values[one.name])]
        rows.append([one.name, one.values, default, *value, one.meaning])
    Screen().entries("Fields of a recipe, for --set FIELD=VALUE", columns, rows)


def _cell(column: str, value: Any) -> str:
    if column == "epochs" and value is None:
        return "auto"
    return "off" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
