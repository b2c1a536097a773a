"""Recipes with fields changed by the texts of ``--set``."""

from __future__ import annotations

from collections.abc import Sequence

from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import apply_overrides, validate_recipe
from efficientnetv2.utils.errors import truncate


def with_overrides(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with fields changed by ``a.b=c``. Raises InputError for an unknown field or an invalid value."""
    where = " ".join(truncate(setting, 200) for setting in settings)
    return validate_recipe(apply_overrides(recipe.to_json(), settings), where=where)
