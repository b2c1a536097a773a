"""What a whole run will take, from what its pieces take: time, memory and disk, by stage. Arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from efficientnetv2.metrics.calibration import MIN_TEMPERATURE_IMAGES
from efficientnetv2.progressive.schedule import Progressive
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS, MicrobatchPlan
from efficientnetv2.training.post_training import eval_size_candidates
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.schedule_points import stage_ends, validation_steps
from efficientnetv2.training.timing import StepTimings
from efficientnetv2.training.train_state import RunLength
from efficientnetv2.utils.errors import InputError, count_of

# Steps that are looked at, evenly spread, where the size may change with each of them. Ours.
_LOOKED_AT = 1024
# Share of the time given that stays free, for the noise of the machine. Ours.
_RESERVE = 0.03
# Checkpoints on the disk at a time: two whole ones, and the one that is being written (``training.checkpoint``).
_CHECKPOINTS = 3


@dataclass(frozen=True)
class StageEstimate:
    """A stage of a run to come; of a run whose size changes all the time, its steps of about one size.

    Args:
        image_px: side of the pictures; of about one size, the largest.
        steps: of the run.
        images_per_s: pictures of a second, reading included.
        seconds: of these steps.
        groups_at_a_time: that run in one pass.
        memory_bytes: the most in use meanwhile.
    """

    image_px: int
    steps: int
    images_per_s: float
    seconds: float
    groups_at_a_time: int
    memory_bytes: int


@dataclass(frozen=True)
class RunEstimate:
    """What a run will take.

    Args:
        length: of the run.
        stages: in order; where the size changes all the time, by growing size.
        others_s: all that is not steps: what it is → seconds.
        disk_bytes: what stays in the run folder, or lies there at its fullest: what it is → bytes.
    """

    length: RunLength
    stages: tuple[StageEstimate, ...]
    others_s: Mapping[str, float]
    disk_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of all."""
        return sum(stage.seconds for stage in self.stages) + sum(self.others_s.values())

    @property
    def memory_bytes(self) -> int:
        """The most in use at a time, in the step that takes most."""
        return max(stage.memory_bytes for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "seconds": self.seconds,
            "steps": self.length.steps,
            "epochs": self.length.steps / self.length.steps_per_epoch,
            "stages": [asdict(stage) for stage in self.stages],
            "others_s": dict(self.others_s),
            "memory_bytes": self.memory_bytes,
            "disk_bytes": dict(self.disk_bytes),
        }


def estimate_run(
    recipe: Recipe,
    rates: StepTimings,
    *,
    images: int,
    val_images: int,
    minival_images: int = 0,
    microbatches: MicrobatchPlan = ONE_GROUP_PER_PASS,
) -> RunEstimate:
    """What the run takes from its first step to its last answer.

    Args:
        recipe: settled.
        rates: measured for this recipe, whatever its epochs were.
        images: to train on.
        val_images: to evaluate on.
        minival_images: to choose by; then training is taken to go on to its end.
        microbatches: how many groups run in one pass.

    Raises:
        InputError: a stage would get no step.
    """
    length = RunLength.of(recipe, images)
    recipe.progressive.at(0, steps=length.steps)
    stages = _stages(recipe, rates, length, microbatches)
    # Which of the sizes minival chooses is not known: the largest.
    areas = [(px / (recipe.eval_px or px)) ** 2 for px in eval_size_candidates(recipe)]
    largest = max(areas, default=1.0)
    on_curve = minival_images or min(val_images, recipe.validate_images)
    saved = _checkpoints(recipe, length, stages)
    # The model before training is looked at too, where it can classify and minival may choose it.
    start = minival_images > 0 and recipe.weights != "none" and recipe.classifier == "probe"
    others = {
        "validation": (len(validation_steps(recipe, length)) + start) * rates.curve.seconds(on_curve),
        "checkpoints": rates.checkpoints.seconds(saved),
        "final evaluation": rates.answers.seconds(val_images) * largest,
        "model file": rates.model_s,
    }
    if minival_images >= MIN_TEMPERATURE_IMAGES:
        others["temperature"] = rates.answers.seconds(minival_images) * largest
    if areas:
        others["evaluation sizes"] = rates.answers.seconds(minival_images) * sum(areas)
    if recipe.compile:
        others = {"compiling": rates.compile_s, **others}
    chosen_bytes = rates.model_bytes if minival_images else 0  # each checkpoint has the best weights too
    disk = {
        "checkpoints": min(saved, _CHECKPOINTS) * (rates.checkpoint_bytes + chosen_bytes),
        "model file": rates.model_bytes,
    }
    return RunEstimate(length, stages, others, disk)


def steps_by_size(plan: Progressive, steps: int, measured: list[int]) -> list[tuple[int, list[float], int]]:
    """How many steps of a run have which size.

    Args:
        plan: of the run.
        steps: of the run.
        measured: sizes that were measured, growing.

    Returns:
        A size, the sizes of some of the steps that are counted with it, and their number: for each stage in order. Of
        a plan without stages to wait for, for each measured size; a step between two counts with the larger one.
    """
    if not plan.changes_always:
        firsts = [0]
        while (end := plan.stage_end(firsts[-1], steps=steps)) < steps:
            firsts.append(end)
        sizes = [plan.at(first, steps=steps).image_px for first in firsts]
        counts = np.diff([*firsts, steps]).tolist()
        return [(px, [px], count) for px, count in zip(sizes, counts, strict=True)]
    looked_at = np.linspace(0, steps - 1, min(steps, _LOOKED_AT)).round().astype(int).tolist()
    by_px: dict[int, list[float]] = {px: [] for px in measured}
    for step in looked_at:
        px = plan.at(step, steps=steps).image_px
        by_px[min((one for one in measured if one >= px), default=measured[-1])].append(px)
    shares = np.cumsum([0, *(len(some) for some in by_px.values())]) / len(looked_at)
    counts = np.diff((shares * steps).round().astype(int)).tolist()
    return [(px, some, count) for (px, some), count in zip(by_px.items(), counts, strict=True) if count]


def _stages(
    recipe: Recipe, rates: StepTimings, length: RunLength, microbatches: MicrobatchPlan
) -> tuple[StageEstimate, ...]:
    by_px = {rate.image_px: rate for rate in rates.steps}
    groups = recipe.batch_images // (recipe.group_images or recipe.batch_images)
    stages: list[StageEstimate] = []
    for px, sizes, steps in steps_by_size(recipe.progressive, length.steps, sorted(by_px)):
        each = float(np.mean([rates.step_s(size) for size in sizes]))
        begin = by_px[px].begin_s if px not in {stage.image_px for stage in stages} else 0.0
        stages.append(
            StageEstimate(
                image_px=px,
                steps=steps,
                images_per_s=recipe.batch_images / each,
                seconds=begin + each * steps,
                groups_at_a_time=min(groups, microbatches.at(px)),
                memory_bytes=by_px[px].memory_bytes,
            )
        )
    return tuple(stages)


def _checkpoints(recipe: Recipe, length: RunLength, stages: tuple[StageEstimate, ...]) -> int:
    """How many are written: at each stage's end, and after so many minutes without one."""
    every_s = recipe.checkpoint_minutes * 60
    if every_s == 0:
        return length.steps
    ends = len(stage_ends(recipe, length))
    lasting = [stage.seconds for stage in stages] if ends > 1 else [sum(stage.seconds for stage in stages)]
    return ends + sum(math.floor(seconds / every_s) for seconds in lasting)


def epochs_for_budget(
    minutes: float,
    recipe: Recipe,
    rates: StepTimings,
    *,
    images: int,
    val_images: int,
    minival_images: int = 0,
    spent_s: float = 0.0,
    at_once: int = 1,
) -> float:
    """The epochs that fit into so many minutes.

    Args:
        minutes: of the run, from its first step to its last answer, and what has been spent before.
        recipe: settled but for the epochs.
        rates: of the run, measured by one process.
        images: to train on.
        val_images: to evaluate on.
        minival_images: to choose by.
        spent_s: on other work: filling a cache, or all that comes before the first step, and the report.
        at_once: processes that share steps and answers, each as fast as one alone (``Rates.shared``).

    Raises:
        InputError: not even one step per stage fits; it says how many minutes would do.
    """
    takes_of = partial(
        minutes_for_steps,
        recipe=recipe,
        rates=rates,
        images=images,
        val_images=val_images,
        minival_images=minival_images,
        spent_s=spent_s,
        at_once=at_once,
    )
    fits, too_many = recipe.progressive.stages, recipe.progressive.stages + 1
    if (takes := takes_of(fits)) > minutes:
        digit = 10 ** (math.floor(math.log10(takes)) - 1)  # rounded up to two of them
        least = count_of(float(f"{math.ceil(takes / digit) * digit:.2g}"), "minute")
        raise InputError(
            f"--minutes {minutes:g}: the shortest run has {count_of(fits, 'step')}, one for each stage; with "
            f"validation, checkpoints and the last evaluation it takes about {least}{_besides(spent_s)}. Give at least "
            "so many, or smaller pictures (--image-px) or a smaller network (--model)."
        )
    while takes_of(too_many) <= minutes:
        fits, too_many = too_many, 2 * too_many
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if takes_of(middle) <= minutes else (fits, middle)
    return float(f"{fits * recipe.batch_images / images:.4g}")


def minutes_for_steps(
    steps: int,
    recipe: Recipe,
    rates: StepTimings,
    *,
    images: int,
    val_images: int,
    minival_images: int = 0,
    spent_s: float = 0.0,
    at_once: int = 1,
) -> float:
    """The minutes that a run of so many steps is to be given: what it takes, what stays free, what has been spent.

    Args:
        steps: of the run, at least one per stage.
        recipe: settled but for the epochs.
        rates: of the run, measured by one process.
        images: to train on.
        val_images: to evaluate on.
        minival_images: to choose by.
        spent_s: before the first step.
        at_once: processes that share steps and answers, as of ``epochs_for_budget``.

    Raises:
        InputError: a stage would get no step.
    """
    run = estimate_run(
        recipe.model_copy(update={"epochs": steps * recipe.batch_images / images}),
        rates.shared(at_once, recipe.batch_images // (recipe.group_images or 1)),
        images=images,
        val_images=val_images,
        minival_images=minival_images,
    )
    return (spent_s + run.seconds / (1 - _RESERVE)) / 60


def _besides(spent_s: float) -> str:
    """What part of the minutes goes into other work than the run itself, in words; '' for nothing."""
    return f", {spent_s / 60:.2g} of them for preparation and the report" if spent_s else ""
