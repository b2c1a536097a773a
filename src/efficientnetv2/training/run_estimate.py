"""Time, memory and disk of a run, estimated from measured timings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from efficientnetv2.metrics.calibration import MIN_TEMPERATURE_IMAGES
from efficientnetv2.models.unknown import MAX_IMAGES, MIN_IMAGES
from efficientnetv2.progressive.schedule import ProgressiveSchedule
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS, MicrobatchPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.resolve_image_sizes import eval_size_candidates
from efficientnetv2.training.run_setup import ImageCounts, RunLength, validation_steps
from efficientnetv2.training.timing import StepTimings

# Evenly spaced steps whose sizes are sampled where the size may change at every step. Ours.
_SAMPLED_STEPS = 1024
# Checkpoints on the disk at a time: two whole ones, and one in writing (``training.checkpoints``).
_CHECKPOINTS = 3


@dataclass(frozen=True)
class StageEstimate:
    """Estimate of a stage, or of the steps of similar size (``image_size`` is the largest) in a continuous schedule."""

    image_size: int
    steps: int
    images_per_s: float  # Reading included
    seconds: float
    microbatches: int  # Groups per pass
    memory_bytes: int  # Peak


@dataclass(frozen=True)
class RunEstimate:
    """Estimate of a run."""

    length: RunLength
    stages: tuple[StageEstimate, ...]  # In order, or by growing size in a continuous schedule
    others_s: Mapping[str, float]  # Seconds of everything but the steps, by name
    disk_bytes: Mapping[str, int] = field(default_factory=dict)  # Peak bytes in the run directory, by name

    @property
    def seconds(self) -> float:
        """Time of the whole run."""
        return sum(stage.seconds for stage in self.stages) + sum(self.others_s.values())

    @property
    def memory_bytes(self) -> int:
        """Peak memory."""
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
    recipe: Recipe, timings: StepTimings, counts: ImageCounts, *, microbatches: MicrobatchPlan = ONE_GROUP_PER_PASS
) -> RunEstimate:
    """Estimate a run of a resolved recipe from its first step to its last prediction, without early stopping."""
    length = RunLength.of(recipe, counts.train)
    recipe.progressive.at(0, total_steps=length.steps)  # raises InputError if a stage would get no step
    stages = _stages(recipe, timings, length, microbatches)
    # The largest, as it is open which size minival selects.
    areas = [(px / (recipe.eval_image_size or px)) ** 2 for px in eval_size_candidates(recipe)]
    largest = max(areas, default=1.0)
    saved = _checkpoints(recipe, length, stages)
    # The model before training is validated too, if it can classify and minival may select it.
    start = counts.minival > 0 and recipe.weights != "none" and recipe.head_init == "linear_probe"
    # Without minival, the evaluation of the run takes the place of the last validation.
    validations = len(validation_steps(recipe, length)) + start - (counts.minival == 0)
    others = {
        "validation": validations * validation_s(recipe, timings, counts),
        "checkpoints": timings.checkpoints.seconds(saved),
        "final evaluation": timings.predictions.seconds(counts.val) * largest,
        "model file": timings.model_s,
    }
    if counts.minival >= MIN_TEMPERATURE_IMAGES:
        others["temperature"] = timings.predictions.seconds(counts.minival) * largest
    if counts.val >= MIN_IMAGES:
        others["unknown images"] = timings.curve.seconds(min(counts.val, MAX_IMAGES)) * largest
    if areas:
        others["evaluation sizes"] = timings.predictions.seconds(counts.minival) * sum(areas)
    if recipe.compile:
        others = {"compiling": timings.compile_s, **others}
    best_bytes = timings.model_bytes if counts.minival else 0  # each checkpoint has the best weights too
    disk = {
        "checkpoints": min(saved, _CHECKPOINTS) * (timings.checkpoint_bytes + best_bytes),
        "model file": timings.model_bytes,
    }
    return RunEstimate(length, stages, others, disk)


def validation_s(recipe: Recipe, timings: StepTimings, counts: ImageCounts) -> float:
    """Seconds of one validation."""
    return timings.curve.seconds(counts.minival or min(counts.val, recipe.val_max_images))


def steps_by_size(plan: ProgressiveSchedule, steps: int, measured: list[int]) -> list[tuple[int, list[float], int]]:
    """Size, some sizes that count with it, and number of steps: one entry per stage, in order.

    Where the size changes all the time, one entry per ``measured`` size (growing), which takes the steps up to it.
    """
    if not plan.changes_always:
        firsts = [0, *plan.stage_ends(steps)[:-1]]
        sizes = [plan.at(first, total_steps=steps).image_size for first in firsts]
        counts = np.diff([*firsts, steps]).tolist()
        return [(px, [px], count) for px, count in zip(sizes, counts, strict=True)]
    sampled = np.linspace(0, steps - 1, min(steps, _SAMPLED_STEPS)).round().astype(int).tolist()
    by_px: dict[int, list[float]] = {px: [] for px in measured}
    for step in sampled:
        px = plan.at(step, total_steps=steps).image_size
        by_px[min((size for size in measured if size >= px), default=measured[-1])].append(px)
    shares = np.cumsum([0, *(len(some) for some in by_px.values())]) / len(sampled)
    counts = np.diff((shares * steps).round().astype(int)).tolist()
    return [(px, some, count) for (px, some), count in zip(by_px.items(), counts, strict=True) if count]


def _stages(
    recipe: Recipe, timings: StepTimings, length: RunLength, microbatches: MicrobatchPlan
) -> tuple[StageEstimate, ...]:
    by_px = {timing.image_size: timing for timing in timings.steps}
    stages: list[StageEstimate] = []
    for px, sizes, steps in steps_by_size(recipe.progressive, length.steps, sorted(by_px)):
        each = float(np.mean([timings.step_s(size) for size in sizes]))
        begin = by_px[px].begin_s if px not in {stage.image_size for stage in stages} else 0.0
        stages.append(
            StageEstimate(
                image_size=px,
                steps=steps,
                images_per_s=recipe.batch_size / each,
                seconds=begin + each * steps,
                microbatches=min(recipe.num_groups, microbatches.at(px)),
                memory_bytes=by_px[px].memory_bytes,
            )
        )
    return tuple(stages)


def _checkpoints(recipe: Recipe, length: RunLength, stages: tuple[StageEstimate, ...]) -> int:
    """Number of checkpoints: one at each stage's end, and every ``checkpoint_minutes`` within."""
    every_s = recipe.checkpoint_minutes * 60
    if every_s == 0:
        return length.steps
    ends = len(recipe.progressive.stage_ends(length.steps))
    lasting = [stage.seconds for stage in stages] if ends > 1 else [sum(stage.seconds for stage in stages)]
    return ends + sum(math.floor(seconds / every_s) for seconds in lasting)
