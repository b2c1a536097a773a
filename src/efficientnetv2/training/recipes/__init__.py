"""The named recipes: one function each, whose docstring is its label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import read_recipe
from efficientnetv2.training.recipes import custom_data, imagenet, nas_proxy, other_models, transfer
from efficientnetv2.training.recipes import imagenet as imagenet21k
from efficientnetv2.utils.errors import InputError, did_you_mean

#: Every recipe by name, in the order in which a newcomer wants to read them.
RECIPES: dict[str, Callable[[], Recipe]] = {
    function.__name__: function
    for function in (
        custom_data.quick,
        custom_data.finetune,
        *(
            getattr(imagenet, f"efficientnetv2_{size}_{form}")
            for form in ("paper", "released")
            for size in ("s", "m", "l", "b0", "b1", "b2", "b3")
        ),
        *(getattr(imagenet21k, f"imagenet21k_{size}_paper") for size in ("s", "m", "l", "xl")),
        imagenet21k.imagenet21k_released,
        *(
            getattr(transfer, f"imagenet_from_21k_{size}_{form}")
            for form in ("paper", "released")
            for size in ("s", "m", "l", "xl")
        ),
        transfer.transfer_paper,
        transfer.transfer_released,
        other_models.resnet50_224_progressive,
        other_models.resnet50_380_progressive,
        other_models.resnet152_380_progressive,
        other_models.efficientnet_b4_progressive,
        other_models.efficientnet_b5_progressive,
        nas_proxy.proxy_small,
        nas_proxy.proxy_paper,
    )
}


def load_recipe(word: str, called: str = "--recipe") -> Recipe:
    """The recipe that a word means: a named one, or one in a file.

    Args:
        word: a name, a file that ends in .yaml or .yml, or the folder of a run, which holds its ``recipe.yaml``.
        called: what the user calls the word by.

    Raises:
        InputError: there is no such recipe, or the file is none.
    """
    file = recipe_file(word)
    if file is None:
        return get_recipe(word)
    if not file.is_file():
        raise InputError(
            f"{called} {word}: there is no such file. Give a recipe.yaml, the folder of a run, which holds one, or a "
            "name that effnetv2 recipes lists."
        )
    return read_recipe(file)


def recipe_file(word: str) -> Path | None:
    """The file that a word for a recipe means, there or not; None of a name."""
    if word in RECIPES:
        return None
    path = Path(word)
    if path.suffix in {".yaml", ".yml"}:
        return path
    return path / "recipe.yaml" if (path / "recipe.yaml").is_file() else None


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise InputError(f"There is no recipe '{name}'{did_you_mean(name, RECIPES)} The recipes: {known}.")
    return RECIPES[name]()
