"""The named recipes, and how a name, a file or a run directory becomes a recipe."""

from __future__ import annotations

from pathlib import Path

from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import read_recipe
from efficientnetv2.training.recipes import custom_data, imagenet, nas_proxy, other_models, transfer
from efficientnetv2.training.recipes.named_recipe import NamedRecipe
from efficientnetv2.utils.errors import InputError, did_you_mean

#: All recipes by name, in the order in which a new user wants to read them.
RECIPES: dict[str, NamedRecipe] = {
    named.recipe.name: named
    for module in (custom_data, imagenet, transfer, other_models, nas_proxy)
    for named in module.RECIPES
}


def load_recipe(word: str, option: str = "--recipe") -> Recipe:
    """The recipe of a name, of a YAML file, or of a run directory.

    Raises:
        InputError: There is no such recipe, or the file is invalid. The message names ``option``.
    """
    file = recipe_file(word)
    if file is None:
        return get_recipe(word)
    if not file.is_file():
        raise InputError(
            f"{option} {word}: there is no such file. Give a recipe.yaml, a run directory, which holds one, or a "
            "name that effnetv2 recipes lists."
        )
    return read_recipe(file)


def recipe_file(word: str) -> Path | None:
    """The file that a word for a recipe stands for, whether it exists or not; None for a name."""
    if word in RECIPES:
        return None
    path = Path(word)
    if path.suffix in {".yaml", ".yml"}:
        return path
    return path / "recipe.yaml" if (path / "recipe.yaml").is_file() else None


def get_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        InputError: There is none. The message names the nearest.
    """
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise InputError(f"There is no recipe '{name}'{did_you_mean(name, RECIPES)} The recipes: {known}.")
    return RECIPES[name].recipe
