"""Recipes with fields changed as by ``--set``."""

from __future__ import annotations

from collections.abc import Sequence

from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import apply_overrides, validate_recipe
from efficientnetv2.utils.errors import truncate


def with_overrides(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Change fields by ``a.b=c``. Raise InputError for an unknown field or an invalid value."""
    where = " ".join(truncate(setting, 200) for setting in settings)
    return validate_recipe(apply_overrides(recipe.to_json(), settings), where=where)
