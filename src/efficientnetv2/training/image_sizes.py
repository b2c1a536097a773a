"""Image sizes and group sizes that a model can process, checked before the first step."""

from __future__ import annotations

import math

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.progressive.schedule import Ramp, StepSettings
from efficientnetv2.training.auto_batch import MemoryProbe
from efficientnetv2.training.initial_weights import model_title
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError

# Distances of image sizes are multiples of it: the stride of most models.
_STRIDE = 32


def settings_by_size(recipe: Recipe) -> list[StepSettings]:
    """One setting per image size; of sizes that grow at every step, the first of each stage and the last."""
    stages = [recipe.progressive.stage(index) for index in range(recipe.progressive.stages)]
    return list({setting.image_px: setting for setting in [*stages, recipe.progressive.last]}.values())


def default_eval_sizes(trained_px: int) -> tuple[int, ...]:
    """The sizes that ``auto`` tries: from that of training on, up to half as large again.

    Their distance is an eighth, in whole steps of 32 px: 128, 160 and 192; 224, 256, 288 and 320. As random crops
    magnify (arXiv:1906.06423), the released models (B0 to XL, google/automl) are evaluated at 1.17 to 1.33 times the
    size of training. The steps and the end are ours.
    """
    step = _STRIDE * math.ceil(trained_px / 8 / _STRIDE)
    return tuple(range(trained_px, trained_px * 3 // 2 + 1, step))


def eval_size_candidates(recipe: Recipe) -> tuple[int, ...]:
    """The sizes that a resolved recipe tries at evaluation, ``eval_px`` included, growing; empty if none."""
    if recipe.eval_px_tried is None or recipe.eval_px_tried == "auto" or recipe.eval_px is None:
        return ()
    return tuple(sorted({*recipe.eval_px_tried, recipe.eval_px}))


def requested_px(recipe: Recipe) -> tuple[float, float]:
    """First and last training size as requested, before ``px_multiple`` rounds them."""
    plan = recipe.progressive
    if not isinstance(plan.image_px, Ramp):
        return plan.image_px, plan.image_px
    grows = plan.stages > 1 or plan.image_px.continuous
    return plan.image_px.start if grows else plan.image_px.end, plan.image_px.end


def rounding_note(recipe: Recipe) -> list[str]:
    """A note if the first or last size is rounded to a multiple."""
    plan = recipe.progressive
    first, last = requested_px(recipe)
    trained = {first: plan.stage(0).image_px, last: plan.last.image_px}
    changed = [
        f"{px} px instead of {requested:g}" for requested, px in trained.items() if px != round(requested)
    ]
    if plan.px_multiple == 1 or not changed:
        return []
    return [
        f"Sizes are multiples of {plan.px_multiple} px: {' and '.join(changed)} (--set progressive.px_multiple=1 "
        "rounds nothing)."
    ]


def validate_sizes(recipe: Recipe, probe: MemoryProbe) -> None:
    """Check that the model can process every size in training and evaluation.

    Raises:
        InputError: It can't. The message gives the size and a fix.
    """
    validate_stride(recipe, recipe.model, probe.stride)
    if isinstance(probe.network, EfficientNet):
        return
    trained = sorted(setting.image_px for setting in settings_by_size(recipe))
    for field, px in [*(("progressive", px) for px in trained), *_eval_sizes(recipe)]:
        if px is None:
            continue
        try:
            probe.counted(px)
        except InputError as error:
            what = "a training image" if field == "progressive" else field
            raise InputError(f"{what} is {px} px. {error}{_fix(recipe, probe, field)}") from error


def validate_stride(recipe: Recipe, model: str | Architecture, stride: int | None) -> None:
    """Check that no size is below the model's stride. Open sizes, and an unknown stride (None), pass.

    Raises:
        InputError: A size is too small. The message gives the size and a fix.
    """
    # As requested, before rounding: whoever asks for 8 px does not mean the 32 px it would be rounded to.
    first, last = (round(px) for px in requested_px(recipe))
    larger = "Take larger images (--image-px, or --set progressive.image_px={...})."
    start = f'--set "progressive.image_px={{start: {stride}, end: {last}}}"'
    trained = [
        ("the largest training image", last, larger),
        (
            "the smallest training image",
            first,
            f"Start with larger ones ({start}), or take larger ones throughout (--image-px).",
        ),
    ]
    if first == last:
        trained = [("every training image", last, larger)]
    evaluated = [(field, px, f"Take larger ones (--set {field}=...).") for field, px in _eval_sizes(recipe)]
    for what, px, fix in [*trained, *evaluated]:
        if px is not None and stride is not None and px < stride:
            raise InputError(
                f"{what} is {px} px, but {model_title(model)} has a stride of {stride} px: at least {stride} px. {fix}"
            )


def _eval_sizes(recipe: Recipe) -> list[tuple[str, int | None]]:
    """The sizes at evaluation with the field of each."""
    candidates = [("eval_px_tried", px) for px in eval_size_candidates(recipe) if px != recipe.eval_px]
    return [("eval_px", recipe.eval_px), *candidates]


def _fix(recipe: Recipe, probe: MemoryProbe, field: str) -> str:
    """A size that the model can process and how to set it; '' if none is known."""
    for px in (recipe.progressive.last.image_px, probe.network.preprocessing.image_px):
        try:
            probe.counted(px)
        except InputError:
            continue
        options = {
            "progressive": f"--image-px {px} --set progressive.stages=1",
            "eval_px": f"--set eval_px={px}",
            "eval_px_tried": "--set eval_px_tried=null",
        }
        return f" It takes {px} px: {options[field]}."
    return ""


def smallest_group(recipe: Recipe, probe: MemoryProbe) -> tuple[int, str]:
    """The fewest images of a group, and what is wrong with fewer."""
    mixup, cutmix = _mixes(recipe)
    if mixup and cutmix:
        return 4, "leaves mixup or cutmix, which share a group by halves, an image without a partner"
    if mixup or cutmix:
        return 2, f"leaves {'mixup' if mixup else 'cutmix'} an image without a partner to be mixed with"
    if recipe.frozen_statistics:  # batch-norm takes no statistics of the group
        return 1, ""
    px = min(setting.image_px for setting in settings_by_size(recipe))
    if isinstance(probe.network, EfficientNet):
        single_value = math.ceil(px / probe.network.architecture.stride) == 1
    else:
        single_value = probe.needs_two(px)
    reason = f"of {px} px leaves batch-norm one number per channel, which has no spread"
    return (2, reason) if single_value else (1, "")


def unmixed_note(recipe: Recipe, group: int) -> str:
    """A note on images that mixing leaves without a partner; '' if there are none.

    Partners are the images in reverse order, as in the released code, so the middle of an odd number has none.
    """
    mixup, cutmix = _mixes(recipe)
    if not (mixup or cutmix):
        return ""
    parts = (group // 2, group - group // 2) if mixup and cutmix else (group,)
    unmixed = sum(part % 2 for part in parts)
    if unmixed == 0:
        return ""
    return (
        f"Mixing: of each group of {group} images {unmixed} without a partner {'is' if unmixed == 1 else 'are'} left "
        f"unmixed; groups of a multiple of {2 * len(parts)} leave none (--set group_images)."
    )


def _mixes(recipe: Recipe) -> tuple[bool, bool]:
    """Whether any setting has mixup, and CutMix."""
    settings = [recipe.progressive.stage(0), *settings_by_size(recipe)]
    mixup, cutmix = (
        any(getattr(setting, name) for setting in settings) for name in ("mixup_alpha", "cutmix_alpha")
    )
    return mixup, cutmix
