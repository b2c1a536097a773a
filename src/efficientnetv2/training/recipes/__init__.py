"""The named recipes, and how a name, a file or a run directory becomes a recipe."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from efficientnetv2.training.recipe import NamedRecipe, Recipe
from efficientnetv2.training.recipe_io import read_recipe
from efficientnetv2.training.recipes import custom_data
from efficientnetv2.utils.errors import InputError, did_you_mean

_CUSTOM_DATA = {named.recipe.name: named for named in custom_data.RECIPES}


@cache
def named_recipes() -> dict[str, NamedRecipe]:
    """All recipes by name, in the order in which a new user wants to read them."""
    from efficientnetv2.training.recipes import imagenet, nas_proxy, transfer  # which most runs do not need

    published = (imagenet.RECIPES, transfer.RECIPES, imagenet.OTHER_MODEL_RECIPES, nas_proxy.RECIPES)
    return _CUSTOM_DATA | {named.recipe.name: named for recipes in published for named in recipes}


def load_recipe(word: str, called: str = "`recipe`") -> Recipe:
    """The recipe of a name, of a YAML file, or of a run directory. Raises InputError."""
    file = recipe_file(word)
    if file is None:
        return get_recipe(word)
    if not file.is_file():
        raise InputError(f"{called} {word}: there is no such file. Give a recipe.yaml, a run directory, or a name.")
    return read_recipe(file)


def recipe_file(word: str) -> Path | None:
    """The file that a word for a recipe stands for, whether it exists or not; None for a name."""
    if _find(word) is not None:
        return None
    path = Path(word)
    if path.suffix in {".yaml", ".yml"}:
        return path
    return path / "recipe.yaml" if (path / "recipe.yaml").is_file() else None


def get_recipe(name: str) -> Recipe:
    """The recipe of a name. Raises InputError, which names the nearest."""
    if (named := _find(name)) is None:
        near = did_you_mean(name, named_recipes())
        raise InputError(f"There is no recipe '{name}'{near} To list them all: effnetv2 recipes")
    return named.recipe


def _find(name: str) -> NamedRecipe | None:
    return _CUSTOM_DATA.get(name) or named_recipes().get(name)
