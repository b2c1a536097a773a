"""The named recipes: one function each, whose docstring is its label."""

from __future__ import annotations

from collections.abc import Callable

from efficientnetv2.base.errors import InputError, did_you_mean
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipes import imagenet, practical

#: Every recipe by name, in the order in which a newcomer wants to read them.
RECIPES: dict[str, Callable[[], Recipe]] = {
    function.__name__: function
    for function in (
        practical.quick,
        practical.finetune,
        imagenet.efficientnetv2_s_paper,
        imagenet.efficientnetv2_s_released,
    )
}


def named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise InputError(f"There is no recipe '{name}'{did_you_mean(name, RECIPES)} The recipes: {known}.")
    return RECIPES[name]()
