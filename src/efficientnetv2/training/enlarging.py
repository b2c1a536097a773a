"""Pictures that are stored small are not trained on much larger."""

from __future__ import annotations

import math

from efficientnetv2.training.recipe import Recipe

# To which pictures are enlarged, however small they are stored: two positions each way are left after the last stage.
_LEAST_PX = 64


def no_larger(recipe: Recipe, stored_px: float | None) -> tuple[Recipe, list[str]]:
    """The recipe with sizes that are not beyond its ``enlarge``, which is settled, and a sentence if they are others.

    Args:
        recipe: with sizes as it was named, or as they were asked for.
        stored_px: side of the pictures as they are stored; None if it is not known.
    """
    plan, most = recipe.progressive, recipe.enlarge
    recipe = recipe.model_copy(update={"enlarge": None})
    if most is None or stored_px is None:
        return recipe, []
    multiple = plan.px_multiple
    end_px = max(_LEAST_PX, math.ceil(most * stored_px / multiple) * multiple)
    if end_px >= plan.last.image_px:
        return recipe, []
    smaller = plan.with_image_px(end_px)
    least_px = smaller.stage(0).image_px
    sizes = f"{end_px} px" if least_px == end_px else f"{least_px} to {end_px} px"
    return recipe.model_copy(update={"progressive": smaller}), [
        f"Sizes: {sizes} instead of up to {plan.last.image_px}: the pictures are stored at {stored_px:g} px, and more "
        f"than {most:g} times that would take longer and show no more (--image-px {plan.last.image_px}, or --set "
        "enlarge=null)."
    ]
