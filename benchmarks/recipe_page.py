"""docs/recipe.md: every field of a recipe, as ``training.recipe_fields`` reads them off the classes.

Run: python -m benchmarks.recipe_page

A test holds the page equal to the classes: whoever adds a field, or changes what it means, writes the page anew.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from efficientnetv2.training.recipe_fields import RecipeField, field_values, fields_of, format_value, recipe_parts
from efficientnetv2.training.recipes import get_recipe

PAGE = Path(__file__).parents[1] / "docs/recipe.md"
# The two that pictures of one's own are trained with.
SHOWN = ("quick", "finetune")
_INTRODUCTION = """\
# What a recipe says: every field of `--set`

A recipe decides a run, the data aside. `--set FIELD=VALUE` changes a field of it, and may be repeated:

```bash
effnetv2 train photos/ --set crop_scale_min=0.7 --set optimizer.lr=1e-4
effnetv2 train photos/ --set ema_decay=null                                  # null: off, or left open
effnetv2 train photos/ --set "progressive.image_size={start: 64, end: 128}"    # a ramp, from the first stage to the
last effnetv2 train photos/ --set progressive.image_size.end=192                    # the end of the ramp that is there
effnetv2 train photos/ --set "progressive.stage_fractions=[3, 2, 2, 1]" --recipe quick   # a list
```

`effnetv2 recipes` lists the recipes that have a name, `effnetv2 recipes finetune` shows one whole. The `recipe.yaml` of
a run is one too, in which nothing is `auto` any more but `minival`: it, or the folder of the run, may be given to
`--recipe` and to `effnetv2 recipes`. This page in the terminal:

```bash
effnetv2 recipes --fields                        # all of it
effnetv2 recipes --field crop                    # fields that begin so; or one field; or a part
effnetv2 recipes finetune --field optimizer      # and what finetune says
```

Some fields have an option of their own: `--model`, `--weights`, `--epochs`, `--image-size` (all stages are scaled, and
`max_upscale` becomes null), `--batch-size` (the learning rate follows), `--crop-mode` (`crop_pct` goes back to 1,
`train_crop_mode` to null), `--seed`; `--cache` sets `cache_resolution`. What `--set` says is done after them. The
length is said once: by `--epochs`, by `--minutes`, or by `--set epochs=...`.

In the tables, an empty cell below a recipe's name is the default; a field without a default is said by every recipe.
`{start, end, continuous}` is a ramp; with `continuous: true` it grows at every step instead of once per stage. Names
such as `models.adapt.freeze` are places in [src/efficientnetv2/](../src/efficientnetv2/). The page is written by
`python -m benchmarks.recipe_page`, from the classes of a recipe.
"""


def text() -> str:
    """The page."""
    said = {name: field_values(get_recipe(name)) for name in SHOWN}
    return "\n".join([_INTRODUCTION, *(_section(part, said) for part in recipe_parts())])


def write() -> None:
    """Write docs/recipe.md."""
    PAGE.write_text(text(), encoding="utf-8")


def _section(part: str, said: dict[str, dict[str, Any]]) -> str:
    """A part of the recipe: what it is, and a row for each of its fields."""
    heading = f"## `{part}`" if part else "## The recipe's own"
    columns = ["field", "values", "default", *(f"in `{name}`" for name in said), "meaning"]
    rows = [columns, ["---"] * len(columns), *(_row(field, said) for field in fields_of(part))]
    return "\n".join([heading, "", part_description(part), "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def _row(field: RecipeField, said: dict[str, dict[str, Any]]) -> list[str]:
    default = "" if field.required else format_value(field.default)
    own = [format_value(values[field.name]) for values in said.values()]
    cells = [field.values, default, *("" if value == default else value for value in own), field.meaning]
    return [f"`{field.name}`", *(cell.replace("|", "\\|") for cell in cells)]


def part_description(part: str) -> str:
    """Description of a part in Markdown: its class's docstring without its sections."""
    text = inspect.getdoc(recipe_parts()[part]) or ""
    return " ".join(re.split(r"\n(?:Args|Raises|Source):", text)[0].replace("``", "`").split())


if __name__ == "__main__":
    write()
