"""Image sizes of a run: limited by the stored images, lowered for a time limit, and checked against the stride."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.progressive.schedule import Ramp, StepSettings
from efficientnetv2.training.initial_weights import model_title
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError

# Sizes are lowered, and those at evaluation lie apart, in multiples of the stride of most models.
_STRIDE = 32
# Smallest image size that sizes are lowered to: the feature maps still have two positions each way. Ours.
_MIN_PX = 64
# Sizes are lowered until this many epochs fit into the time. With fewer, most images are seen at one size only. Ours.
_MIN_EPOCHS = 3.0
# The same by an estimate before anything is measured. Ours: on cold caches it was low by up to 2.3 times.
ROUGH_MIN_EPOCHS = 1.0
# If so few fit at no size, as reading alone takes long: this fraction of the epochs of the smallest size. Ours.
_NEARLY_ALL = 0.8


def settings_by_size(recipe: Recipe) -> list[StepSettings]:
    """One setting per image size; of sizes that grow at every step, the first of each stage and the last."""
    stages = [recipe.progressive.stage(index) for index in range(recipe.progressive.stages)]
    return list({setting.image_size: setting for setting in [*stages, recipe.progressive.last]}.values())


def default_eval_sizes(trained_px: int) -> tuple[int, ...]:
    """The sizes that ``auto`` evaluates: from that of training up to half as large again, in steps of an eighth.

    Steps are whole multiples of 32 px: 128, 160 and 192; 224, 256, 288 and 320. As random crops magnify
    (arXiv:1906.06423), the released models (B0 to XL, google/automl) are evaluated at 1.17 to 1.33 times the size of
    training. The steps and the end are ours.
    """
    step = _STRIDE * math.ceil(trained_px / 8 / _STRIDE)
    return tuple(range(trained_px, trained_px * 3 // 2 + 1, step))


def eval_size_candidates(recipe: Recipe) -> tuple[int, ...]:
    """The evaluation sizes of a resolved recipe, ``eval_image_size`` included, growing; empty if none are compared."""
    candidates, size = recipe.eval_image_size_candidates, recipe.eval_image_size
    return tuple(sorted({*candidates, size})) if isinstance(candidates, tuple) and size is not None else ()


def requested_px(recipe: Recipe) -> tuple[float, float]:
    """First and last training size as requested, before ``size_multiple`` rounds them."""
    plan = recipe.progressive
    if not isinstance(plan.image_size, Ramp):
        return plan.image_size, plan.image_size
    grows = plan.stages > 1 or plan.image_size.continuous
    return plan.image_size.start if grows else plan.image_size.end, plan.image_size.end


def rounding_note(recipe: Recipe) -> list[str]:
    """A note if the first or last size is rounded to a multiple."""
    plan = recipe.progressive
    first, last = requested_px(recipe)
    trained = {first: plan.stage(0).image_size, last: plan.last.image_size}
    changed = [f"{px} px instead of {requested:g}" for requested, px in trained.items() if px != round(requested)]
    if plan.size_multiple == 1 or not changed:
        return []
    fix = "`progressive.size_multiple=1` keeps them"
    return [f"Sizes are multiples of {plan.size_multiple} px: {' and '.join(changed)} ({fix})."]


def limit_upscaling(recipe: Recipe, stored_size: float | None) -> tuple[Recipe, list[str]]:
    """The recipe with ``max_upscale`` applied to its sizes, and a note if they change."""
    plan, most = recipe.progressive, recipe.max_upscale
    recipe = recipe.model_copy(update={"max_upscale": None})
    if most is None or stored_size is None:
        return recipe, []
    multiple = plan.size_multiple
    end_px = max(_MIN_PX, math.ceil(most * stored_size / multiple) * multiple)
    if end_px >= plan.last.image_size:
        return recipe, []
    smaller = plan.with_image_size(end_px)
    first_px = smaller.stage(0).image_size
    sizes = f"{end_px} px" if first_px == end_px else f"{first_px} to {end_px} px"
    return recipe.model_copy(update={"progressive": smaller}), [
        f"Sizes: {sizes} instead of up to {plan.last.image_size}, {most:g} times the stored "
        f"{stored_size:g} px or little more (`max_upscale=null` keeps them)."
    ]


def lower_sizes_for_budget(
    recipe: Recipe,
    epochs_of: Callable[[Recipe], float],
    takes: Callable[[Recipe], bool],
    min_epochs: float = _MIN_EPOCHS,
) -> tuple[Recipe, list[str]]:
    """The recipe with the largest image sizes at which ``min_epochs`` fit into the time, and a note if they are lower.

    Where so many epochs fit at no size, the recipe gets the largest at which nearly as many fit as at the smallest.
    ``epochs_of`` gives the epochs that fit into the time with the sizes of a recipe, and ``takes`` is whether the model
    takes these sizes.
    """
    plan = recipe.progressive
    last_px, fitting = plan.last.image_size, epochs_of(recipe)
    if fitting >= min_epochs or last_px <= _MIN_PX:
        return recipe, []
    step = plan.size_multiple if plan.size_multiple > 1 else _STRIDE
    sizes = [px for px in range((last_px - 1) // step * step, 0, -step) if px >= _MIN_PX] or [_MIN_PX]
    smaller = [_with_last_size(recipe, px) for px in sizes]
    least = next((sized for sized in reversed(smaller) if takes(sized)), recipe)
    most = epochs_of(least)
    needed = _NEARLY_ALL * most if 0 < most < min_epochs else min_epochs
    if least is recipe or fitting >= needed:
        return recipe, []
    lower = next((sized for sized in smaller if epochs_of(sized) >= needed and takes(sized)), least)
    evaluated = "" if lower.eval_image_size is None else f", and evaluation at {lower.eval_image_size} px"
    trained = sorted({lower.progressive.stage(0).image_size, lower.progressive.last.image_size})
    return lower, [
        f"Sizes: {' to '.join(map(str, trained))} px instead of up to {last_px} px (`minutes` leaves time for about "
        f"{fitting:.2g} epochs at up to {last_px} px, and {epochs_of(lower):.2g} at these){evaluated}. "
        f"To keep the sizes, use `image_size={last_px}`."
    ]


def _with_last_size(recipe: Recipe, px: int) -> Recipe:
    """The recipe with another last training size, and the other sizes in proportion."""
    factor = px / recipe.progressive.last.image_size

    def scaled(size: int) -> int:
        return max(px, round(size * factor / _STRIDE) * _STRIDE)

    changes: dict[str, object] = {"progressive": recipe.progressive.with_image_size(px), "max_upscale": None}
    if recipe.eval_image_size is not None:
        changes["eval_image_size"] = scaled(recipe.eval_image_size)
    if isinstance(recipe.eval_image_size_candidates, tuple):
        sizes = {scaled(size) for size in recipe.eval_image_size_candidates}
        changes["eval_image_size_candidates"] = tuple(sorted(sizes))
    return recipe.model_copy(update=changes)


def resolve_eval_sizes(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """Fields with the image sizes at evaluation that are open, and a note."""
    last_px = recipe.progressive.last.image_size
    fields: dict[str, Any] = {}
    among = ""
    if recipe.eval_image_size_candidates == "auto":
        fields["eval_image_size_candidates"] = default_eval_sizes(last_px)
        among = f" among {', '.join(map(str, default_eval_sizes(last_px)))}"
    if recipe.eval_image_size is None:
        fields["eval_image_size"] = last_px
    if not fields:
        return {}, []
    px = recipe.eval_image_size or last_px
    which = "" if recipe.eval_image_size else ", the last training size"
    selects = recipe.eval_image_size_candidates is not None
    selected = f", or what minival selects in the end{among}" if selects else ""
    return fields, [f"Evaluation at {px} px{which}{selected}."]


def validate_stride(recipe: Recipe, model: str | Architecture, stride: int | None) -> None:
    """Check that no size is below the model's stride; open sizes and an unknown stride (None) pass."""
    # As requested, before rounding: whoever asks for 8 px does not mean the 32 px it would be rounded to.
    first, last = (round(px) for px in requested_px(recipe))
    larger = "Use a larger `image_size`."
    start = f"Use a larger `image_size`, or `progressive.image_size={{start: {stride}, end: {last}}}`."
    trained = [("the largest training image", last, larger), ("the smallest training image", first, start)]
    if first == last:
        trained = [("every training image", last, larger)]
    evaluated = [(field, px, f"Use `{field}={stride}` or more.") for field, px in sizes_by_field(recipe)]
    for what, px, fix in [*trained, *evaluated]:
        if px is not None and stride is not None and px < stride:
            raise InputError(f"{what} is {px} px, but {model_title(model)} has a stride of {stride} px. {fix}")


def sizes_by_field(recipe: Recipe) -> list[tuple[str, int | None]]:
    """The sizes at evaluation with the field of each."""
    sizes = [px for px in eval_size_candidates(recipe) if px != recipe.eval_image_size]
    return [("eval_image_size", recipe.eval_image_size), *(("eval_image_size_candidates", px) for px in sizes)]
