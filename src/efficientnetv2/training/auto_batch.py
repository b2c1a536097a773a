"""Resolve the batch of a step: which group size fits into memory, and how many groups per pass."""

from __future__ import annotations

import math

from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.training.ddp import evenly_shared
from efficientnetv2.training.image_sizes import settings_by_size, sizes_by_field, validate_stride
from efficientnetv2.training.initial_weights import model_title
from efficientnetv2.training.memory_probe import MemoryProbe
from efficientnetv2.training.microbatch import MicrobatchPlan, divisors
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError, MemoryShortError, pluralize
from efficientnetv2.utils.memory import GIB

# A GPU with fewer images per step waits more than it computes. Ours.
_MIN_GPU_IMAGES = 32


def validate_sizes(recipe: Recipe, probe: MemoryProbe) -> None:
    """Check that the model can process every size in training and evaluation.

    Raises:
        InputError: It can't. The message gives the size and a fix.
    """
    validate_stride(recipe, recipe.model, probe.stride)
    if isinstance(probe.network, EfficientNet):
        return
    trained = sorted(setting.image_size for setting in settings_by_size(recipe))
    for field, px in [*(("progressive", px) for px in trained), *sizes_by_field(recipe)]:
        if px is None:
            continue
        try:
            probe.counted(px)
        except InputError as error:
            what = "a training image" if field == "progressive" else field
            raise InputError(f"{what} is {px} px. {error}{_fix(recipe, probe, field)}") from error


def _fix(recipe: Recipe, probe: MemoryProbe, field: str) -> str:
    """A size that the model can process and how to set it; '' if none is known."""
    for px in (recipe.progressive.last.image_size, probe.network.preprocessing.image_size):
        try:
            probe.counted(px)
        except InputError:
            continue
        options = {
            "progressive": f"--image-size {px} --set progressive.stages=1",
            "eval_image_size": f"--set eval_image_size={px}",
            "eval_image_size_candidates": "--set eval_image_size_candidates=null",
        }
        return f" It takes {px} px: {options[field]}."
    return ""


def fit_groups(
    recipe: Recipe, probe: MemoryProbe, *, is_set: bool, is_fixed: bool = False
) -> tuple[int, MicrobatchPlan, list[str]]:
    """Images per group, groups per pass, and a note for each choice."""
    group = group_size(recipe, probe, is_set=is_set, is_fixed=is_fixed)
    microbatches = probe.microbatches(settings_by_size(recipe), ghost_batch_size=group)
    world, batch = probe.world, recipe.batch_size
    notes = []
    if group < batch:
        notes.append(f"Groups of {group} of the {batch} images of a batch share batch-norm statistics.")
    notes += filter(None, [unmixed_note(recipe, group)])
    if world.is_distributed and probe.device.type != "cpu" and batch // world.size < _MIN_GPU_IMAGES:
        notes.append(
            f"Each of the {world.size} GPUs gets {batch // world.size} images a step, which leaves it idle between "
            f"them. --batch-size {_MIN_GPU_IMAGES * world.size} or more uses them better; the learning rate follows."
        )
    if microbatches.most > 1:
        notes.append(f"Of a step's {batch // group} groups run at a time: {microbatches}.")
    return group, microbatches, notes


def group_size(recipe: Recipe, probe: MemoryProbe, *, is_set: bool, is_fixed: bool = False) -> int:
    """``ghost_batch_size``: as set, if it fits; else the largest divisor of the batch that fits and can be shared.

    Args:
        recipe: Recipe, whose ``ghost_batch_size`` may be open or a choice that may become smaller.
        probe: Memory of the run.
        is_set: Whether the user has set it.
        is_fixed: Whether the run, or others of its kind, exist already.
    """
    batch, given = recipe.batch_size, recipe.ghost_batch_size
    least, reason = smallest_group(recipe, probe)
    if (given or batch) < least:
        larger = next((images for images in divisors(batch, most=batch) if images >= least), None)
        fix = f"--set ghost_batch_size={larger}" if larger else "a larger batch, with --batch-size"
        raise InputError(
            f"A group of {pluralize(given or batch, 'image')} {reason}: take at least {least} ({fix})."
        )
    possible = [images for images in divisors(batch, most=given or batch) if images >= least]
    candidates = possible if is_set else evenly_shared(possible, batch_size=batch, processes=probe.world.size)
    largest = max(settings_by_size(recipe), key=lambda setting: setting.image_size)
    group = probe.largest_group(largest, among=candidates)
    if group == 0 or (is_set and given is not None and group < given):
        raise _group_too_large(recipe, probe, candidates[0], group, is_fixed=is_fixed)
    return group


def _group_too_large(
    recipe: Recipe, probe: MemoryProbe, smallest: int, fitting: int, *, is_fixed: bool
) -> MemoryShortError:
    px = max(setting.image_size for setting in settings_by_size(recipe))
    room = f"the {probe.room / GIB:.2f} GiB of memory that are free for it"
    more = "Give more (--memory-gib)" if probe.limited else "End what else takes memory"
    if fitting == 0:
        took = probe.took[smallest]
        result = "memory ran out, with" if took is None else f"it took {took / GIB:.2f} GiB, more than"
        less = "" if is_fixed else ", or use a smaller model (--model) or smaller images (--image-size)"
        return MemoryShortError(
            f"Not even a group of {smallest} of {px} px fits. When {model_title(recipe.model)} tried one, {result} "
            f"{room}. {more}{less}."
        )
    fix = (
        f"{more}: the run was begun with it"
        if is_fixed
        else f"Set it to that (--set ghost_batch_size={fitting})"
    )
    return MemoryShortError(
        f"ghost_batch_size is {recipe.ghost_batch_size}, but of the divisors of the batch of {recipe.batch_size} the "
        "largest "
        f"that fits at {px} px into {room} is {fitting}. {fix}."
    )


def smallest_group(recipe: Recipe, probe: MemoryProbe) -> tuple[int, str]:
    """The fewest images of a group, and what is wrong with fewer."""
    mixup, cutmix = _mixes(recipe)
    if mixup and cutmix:
        return 4, "leaves mixup or cutmix, which share a group by halves, an image without a partner"
    if mixup or cutmix:
        return 2, f"leaves {'mixup' if mixup else 'cutmix'} an image without a partner to be mixed with"
    if recipe.freeze_bn:  # batch-norm takes no statistics of the group
        return 1, ""
    px = min(setting.image_size for setting in settings_by_size(recipe))
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
        f"unmixed; groups of a multiple of {2 * len(parts)} leave none (--set ghost_batch_size)."
    )


def _mixes(recipe: Recipe) -> tuple[bool, bool]:
    """Whether any setting has mixup, and CutMix."""
    settings = [recipe.progressive.stage(0), *settings_by_size(recipe)]
    mixup, cutmix = (
        any(getattr(setting, name) for setting in settings) for name in ("mixup_alpha", "cutmix_alpha")
    )
    return mixup, cutmix
