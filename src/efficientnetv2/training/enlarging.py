"""Image sizes that are lowered: images that are stored small, and runs with too little time for larger ones."""

from __future__ import annotations

import math
from collections.abc import Callable

from efficientnetv2.training.recipe import Recipe

# To which pictures are enlarged, however small they are stored: two positions each way are left after the last stage.
_LEAST_PX = 64
# Sizes are lowered until so many epochs fit into the time. Ours: with fewer, most images are seen at one size only.
_LEAST_EPOCHS = 3.0
# Sizes are lowered by multiples of this where the recipe has no multiple: the stride of most networks.
_STRIDE = 32


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


def lowered_in_time(
    recipe: Recipe, epochs_of: Callable[[Recipe], float], stored_px: float | None
) -> tuple[Recipe, list[str]]:
    """The recipe with image sizes at which three epochs fit into the time, and a sentence if they are lower.

    Sizes that are lowered are not above the size at which the images are stored. Where three epochs fit at no size,
    the recipe gets the smallest.

    Args:
        recipe: Recipe with its sizes.
        epochs_of: Number of epochs that fit into the time with the sizes of a recipe.
        stored_px: Side of the images as they are stored, in pixels. None if it is not known.
    """
    plan = recipe.progressive
    last_px, fitting = plan.last.image_px, epochs_of(recipe)
    if fitting >= _LEAST_EPOCHS or last_px <= _LEAST_PX:
        return recipe, []
    step = plan.px_multiple if plan.px_multiple > 1 else _STRIDE
    most_px = last_px - 1 if stored_px is None else min(last_px - 1, max(_LEAST_PX, int(stored_px)))
    sizes = [px for px in range(most_px // step * step, 0, -step) if px >= _LEAST_PX] or [_LEAST_PX]
    lower = recipe
    for px in sizes:
        lower = _ending_at(recipe, px)
        if epochs_of(lower) >= _LEAST_EPOCHS:
            break
    evaluated = "" if lower.eval_px is None else f", and evaluation at {lower.eval_px} px"
    trained = sorted({lower.progressive.stage(0).image_px, lower.progressive.last.image_px})
    return lower, [
        f"Sizes: {' to '.join(map(str, trained))} px instead of up to {last_px} px (--minutes leaves time for about "
        f"{fitting:.2g} epochs at up to {last_px} px, and {epochs_of(lower):.2g} at these){evaluated}. "
        f"To keep the sizes, pass --image-px {last_px}."
    ]


def _ending_at(recipe: Recipe, px: int) -> Recipe:
    """The recipe with its last training size, and the others in proportion."""
    share = px / recipe.progressive.last.image_px

    def smaller(size: int) -> int:
        return max(px, round(size * share / _STRIDE) * _STRIDE)

    changes: dict[str, object] = {"progressive": recipe.progressive.with_image_px(px), "enlarge": None}
    if recipe.eval_px is not None:
        changes["eval_px"] = smaller(recipe.eval_px)
    if isinstance(recipe.eval_px_tried, tuple):
        changes["eval_px_tried"] = tuple(sorted({smaller(size) for size in recipe.eval_px_tried}))
    return recipe.model_copy(update=changes)
