"""Before the first step: whether the network takes pictures of every size of the recipe, and groups as small."""

from __future__ import annotations

import math

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.progressive.schedule import Ramp, Setting
from efficientnetv2.training.auto_batch import MemoryProbe
from efficientnetv2.training.initial_weights import model_title
from efficientnetv2.training.post_training import eval_size_candidates
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError


def settings_by_size(recipe: Recipe) -> list[Setting]:
    """A setting of each size; of one that grows at every step, those where stages begin and the last."""
    stages = [recipe.progressive.stage(index) for index in range(recipe.progressive.stages)]
    return list({setting.image_px: setting for setting in [*stages, recipe.progressive.last]}.values())


def requested_px(recipe: Recipe) -> tuple[float, float]:
    """The first and the last size of training as asked for, before they are rounded to ``px_multiple``."""
    plan = recipe.progressive
    if not isinstance(plan.image_px, Ramp):
        return plan.image_px, plan.image_px
    grows = plan.stages > 1 or plan.image_px.continuous
    return plan.image_px.start if grows else plan.image_px.end, plan.image_px.end


def rounding_note(recipe: Recipe) -> list[str]:
    """A sentence on the first or the last size where a multiple is trained at in its place."""
    plan = recipe.progressive
    first, last = requested_px(recipe)
    trained = {first: plan.stage(0).image_px, last: plan.last.image_px}
    others = [f"{px} px in the place of {asked:g}" for asked, px in trained.items() if px != round(asked)]
    if plan.px_multiple == 1 or not others:
        return []
    return [
        f"Sizes are multiples of {plan.px_multiple} px: {' and '.join(others)} (--set progressive.px_multiple=1 rounds "
        "nothing)."
    ]


def validate_sizes(recipe: Recipe, preflight: MemoryProbe) -> None:
    """The network takes every size: any from its stride on, others than ours if a pass of it can be counted, too.

    Args:
        recipe: its sizes in training and at evaluation.
        preflight: of the run.

    Raises:
        InputError: it does not, naming the size and what to take.
    """
    validate_stride(recipe, recipe.model, preflight.stride)
    if isinstance(preflight.network, EfficientNet):
        return
    trained = sorted(setting.image_px for setting in settings_by_size(recipe))
    for what, px in [*(("a training picture", px) for px in trained), *_evaluated(recipe)]:
        if px is None:
            continue
        try:
            preflight.counted(px)
        except InputError as error:
            fix = _instead(recipe, preflight, "progressive" if what == "a training picture" else what)
            raise InputError(f"{what} is {px} px. {error}{fix}") from error


def validate_stride(recipe: Recipe, model: str | Architecture, stride: int | None) -> None:
    """No size of the recipe is below the network's stride.

    Args:
        recipe: its sizes in training and at evaluation; those that are open are not looked at.
        model: the network.
        stride: of it, in pixels; None is not known.

    Raises:
        InputError: one is, naming the size and what to take.
    """
    # As asked, before a multiple is made of them: nobody who asks for 8 px means the 32 that it would be rounded to.
    first, last = (round(px) for px in requested_px(recipe))
    larger = "Take larger pictures (--image-px, or --set progressive.image_px={...})."
    begin = f'--set "progressive.image_px={{start: {stride}, end: {last}}}"'
    trained_on = [
        ("the largest training picture", last, larger),
        (
            "the smallest training picture",
            first,
            f"Begin with larger ones ({begin}), or take larger ones throughout (--image-px).",
        ),
    ]
    if first == last:
        trained_on = [("every training picture", last, larger)]
    evaluated = [(field, px, f"Take larger ones (--set {field}=...).") for field, px in _evaluated(recipe)]
    for what, px, fix in [*trained_on, *evaluated]:
        if px is not None and stride is not None and px < stride:
            raise InputError(
                f"{what} is {px} px, but {model_title(model)} makes one number of every {stride} x {stride} pixels: at "
                f"least {stride} px. {fix}"
            )


def _evaluated(recipe: Recipe) -> list[tuple[str, int | None]]:
    """The sizes at evaluation, by the fields that name them."""
    tried = [("eval_px_tried", px) for px in eval_size_candidates(recipe) if px != recipe.eval_px]
    return [("eval_px", recipe.eval_px), *tried]


def _instead(recipe: Recipe, preflight: MemoryProbe, field: str) -> str:
    """A size that the network takes, and the words for it; nothing where none is known."""
    for px in (recipe.progressive.last.image_px, preflight.network.preprocessing.image_px):
        try:
            preflight.counted(px)
        except InputError:
            continue
        words = {
            "progressive": f"--image-px {px} --set progressive.stages=1",
            "eval_px": f"--set eval_px={px}",
            "eval_px_tried": "--set eval_px_tried=null",
        }
        return f" It takes {px} px: {words[field]}."
    return ""


def smallest_group(recipe: Recipe, preflight: MemoryProbe) -> tuple[int, str]:
    """The fewest pictures that a group can have, and what is wrong with fewer.

    Args:
        recipe: its sizes and its mixing.
        preflight: of the run.
    """
    mixup, cutmix = _mixes(recipe)
    if mixup and cutmix:
        return 4, "leaves mixup or cutmix, which share a group by halves, a picture without a partner"
    if mixup or cutmix:
        return 2, f"leaves {'mixup' if mixup else 'cutmix'} a picture without a partner to be mixed with"
    network, px = preflight.network, _smallest_px(recipe)
    if recipe.frozen_statistics:  # nothing takes statistics of the pictures of a pass
        return 1, ""
    if isinstance(network, EfficientNet):
        alone = math.ceil(px / network.architecture.stride) == 1
    else:
        alone = preflight.needs_two(px)
    return (
        (2, f"of {px} px leaves batch-norm one number per channel, which has no spread") if alone else (1, "")
    )


def unmixed_note(recipe: Recipe, group: int) -> str:
    """A sentence on pictures of a group that are their own partner in mixing; empty where there are none.

    Partners are the pictures in reverse, as in the released code, so the middle one of an odd number stays as it is.

    Args:
        recipe: its mixing.
        group: pictures of it.
    """
    mixup, cutmix = _mixes(recipe)
    if not (mixup or cutmix):
        return ""
    parts = (group // 2, group - group // 2) if mixup and cutmix else (group,)
    alone = sum(part % 2 for part in parts)
    if alone == 0:
        return ""
    return (
        f"Mixing: of each group of {group} pictures {alone} without a partner {'is' if alone == 1 else 'are'} left "
        f"unmixed; groups of a multiple of {2 * len(parts)} leave none (--set group_images)."
    )


def _mixes(recipe: Recipe) -> tuple[bool, bool]:
    """Whether any setting has mixup, and cutmix."""
    settings = [recipe.progressive.stage(0), *settings_by_size(recipe)]
    mixup, cutmix = (
        any(getattr(setting, name) for setting in settings) for name in ("mixup_alpha", "cutmix_alpha")
    )
    return mixup, cutmix


def _smallest_px(recipe: Recipe) -> int:
    return min(setting.image_px for setting in settings_by_size(recipe))
