"""Time, memory and disk of a run from measured timings, and the steps that fit into a time limit."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from efficientnetv2.metrics.calibration import MIN_TEMPERATURE_IMAGES
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Revision, StepPlan
from efficientnetv2.training.image_sizes import eval_size_candidates
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS, MicrobatchPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import ImageCounts, RunConfig
from efficientnetv2.training.run_length import RunLength, stage_ends, validation_steps
from efficientnetv2.training.timing import StepTimings
from efficientnetv2.utils.distributed import all_gather_object, broadcast_from_main

# Evenly spaced steps whose sizes are sampled where the size may change at every step. Ours.
_SAMPLED_STEPS = 1024
# Fraction of the time that stays free for the unexpected. Ours.
RESERVE = 0.03
# Checkpoints on the disk at a time: two whole ones, and one in writing (``training.train_state``).
_CHECKPOINTS = 3
# Plans over the run, besides those at each stage's start. Ours: if the speed halves right after a plan, the run is late
# by 1/32 of its steps.
_PLANS = 32
# Weight of the speed before the last plan, against that of the steps since. Ours.
_SPEED_MEMORY = 0.5
# Fraction of the time that may pass before the first step. Ours.
BEFORE_SHARE = 0.2
# Fraction of the time for validations that select nothing. Ours: with few steps they would take as long as the steps.
_VALIDATION_FRACTION = 0.1
# Positions in the remaining steps at which their time is sampled. Ours.
_SAMPLES = 64


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
    validated = counts.minival or min(counts.val, recipe.val_max_images)
    saved = _checkpoints(recipe, length, stages)
    # The model before training is validated too, if it can classify and minival may select it.
    start = counts.minival > 0 and recipe.weights != "none" and recipe.head_init == "linear_probe"
    others = {
        "validation": (len(validation_steps(recipe, length)) + start) * timings.curve.seconds(validated),
        "checkpoints": timings.checkpoints.seconds(saved),
        "final evaluation": timings.answers.seconds(counts.val) * largest,
        "model file": timings.model_s,
    }
    if counts.minival >= MIN_TEMPERATURE_IMAGES:
        others["temperature"] = timings.answers.seconds(counts.minival) * largest
    if areas:
        others["evaluation sizes"] = timings.answers.seconds(counts.minival) * sum(areas)
    if recipe.compile:
        others = {"compiling": timings.compile_s, **others}
    best_bytes = timings.model_bytes if counts.minival else 0  # each checkpoint has the best weights too
    disk = {
        "checkpoints": min(saved, _CHECKPOINTS) * (timings.checkpoint_bytes + best_bytes),
        "model file": timings.model_bytes,
    }
    return RunEstimate(length, stages, others, disk)


def steps_by_size(plan: ProgressiveSchedule, steps: int, measured: list[int]) -> list[tuple[int, list[float], int]]:
    """Size, some sizes that count with it, and number of steps: one entry per stage, in order.

    Where the size changes all the time, one entry per ``measured`` size (growing), which takes the steps up to it.
    """
    if not plan.changes_always:
        firsts = [0]
        while (end := plan.stage_end(firsts[-1], total_steps=steps)) < steps:
            firsts.append(end)
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
    groups = recipe.batch_size // (recipe.ghost_batch_size or recipe.batch_size)
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
                microbatches=min(groups, microbatches.at(px)),
                memory_bytes=by_px[px].memory_bytes,
            )
        )
    return tuple(stages)


def _checkpoints(recipe: Recipe, length: RunLength, stages: tuple[StageEstimate, ...]) -> int:
    """Number of checkpoints: one at each stage's end, and every ``checkpoint_minutes`` within."""
    every_s = recipe.checkpoint_minutes * 60
    if every_s == 0:
        return length.steps
    ends = len(stage_ends(recipe, length))
    lasting = [stage.seconds for stage in stages] if ends > 1 else [sum(stage.seconds for stage in stages)]
    return ends + sum(math.floor(seconds / every_s) for seconds in lasting)


@dataclass(frozen=True)
class StartupBudget:
    """The time before the first step: ``seconds`` from ``began``, a ``time.monotonic()``."""

    seconds: float
    began: float

    @property
    def used_s(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self.began

    @property
    def left_s(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.seconds - self.used_s)


@dataclass(frozen=True)
class TimeLimit:
    """The time of a run, from the command to the report."""

    seconds: float
    report_s: float  # Estimated
    rates: StepTimings  # Measured, of all processes together
    used_s: float = 0.0  # Seconds used before ``began``, in earlier parts of a resumed run
    began: float = field(default_factory=time.monotonic)  # Of this part of the run

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the time used so far."""
        plain = asdict(self) | {"used_s": self.used_s + time.monotonic() - self.began}
        del plain["began"]
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], *, began: float) -> TimeLimit:
        """Inverse of ``to_json``, for a part of the run that began at ``began``."""
        rates = TypeAdapter(StepTimings).validate_python(plain["rates"])
        return cls(plain["seconds"], plain["report_s"], rates, plain["used_s"], began)


class Pacer:
    """Revises the plan of a run so that it ends in time. ``thins`` is whether validations may be left out.

    ``used_s`` are the seconds of earlier parts of a resumed run, up to its checkpoint; None takes those of ``limit``.
    """

    def __init__(
        self, config: RunConfig, plan: StepPlan, limit: TimeLimit, used_s: float | None = None, *, thins: bool = False
    ) -> None:
        self._config, self._plan, self._thins = config, plan, thins
        self._limit = limit if used_s is None else replace(limit, used_s=used_s)
        recipe, length = config.recipe, config.length
        self._ends = stage_ends(recipe, length)
        self._validations = sorted(validation_steps(recipe, length))
        evenly = (round(number * length.steps / _PLANS) for number in range(1, _PLANS))
        self._plan_steps = sorted({*self._ends[:-1], *evenly} - {0})
        run = estimate_run(recipe, limit.rates, config.image_counts)
        self._validation_s = run.others_s["validation"] / len(self._validations)
        excluded = ("compiling", "validation", "checkpoints")
        self._final_s = sum(seconds for name, seconds in run.others_s.items() if name not in excluded)
        self._slowdown = 1.0
        self._last_validation_s: float | None = None
        self._last_validation = time.monotonic()
        self._took_s = self._expected_s = 0.0

    @property
    def used_s(self) -> float:
        """Seconds used since the command, over all parts of a resumed run."""
        return self._limit.used_s + time.monotonic() - self._limit.began

    def stepped(self, image_size: int, seconds: float) -> None:
        """Note the time of a step."""
        self._took_s += seconds
        self._expected_s += self._limit.rates.step_s(image_size)

    def validated(self, seconds: float) -> None:
        """Note the time of a validation."""
        self._last_validation_s, self._last_validation = seconds, time.monotonic()

    def skips_validation(self, step: int) -> bool:
        """Whether to leave out the validation after a step, as the last one was too long. All processes call this."""
        if not self._thins or self._last_validation_s is None or step >= self._plan.steps:
            return False
        due_s = self._last_validation_s * (1 / _VALIDATION_FRACTION - 1)
        waited_s = time.monotonic() - self._last_validation
        return broadcast_from_main(self._config.world, lambda: waited_s < due_s)

    def plan(self, step: int, *, begins: bool = False) -> None:
        """Plan the remaining steps if a plan is due or this part of the run ``begins``. All processes call this.

        The plan is written into the run directory before it applies, so that a resumed run takes the same steps.
        """
        decided = self._plan.revisions[-1].decided if self._plan.revisions else -1
        if step <= decided or not (begins or self._plan.passes(step, self._plan_steps)):
            return
        first = max(all_gather_object(self._config.world, max(step, self._plan.requested)))
        if first >= self._plan.steps:
            return
        self._plan.revise(broadcast_from_main(self._config.world, lambda: self._revision(step, first)))
        self._config.folder.amend_beginning(revisions=self._plan.to_json())

    def _revision(self, step: int, first: int) -> Revision:
        if self._expected_s:
            self._slowdown = self._took_s / self._expected_s
            self._took_s, self._expected_s = _SPEED_MEMORY * self._took_s, _SPEED_MEMORY * self._expected_s
        begin = self._plan.position(first)
        left_s = self._limit.seconds * (1 - RESERVE) - self.used_s - self._end_s(begin)
        left_s -= (first - step) * self._slowdown * self._mean_step_s(self._plan.position(step), begin)
        each_s = self._slowdown * self._mean_step_s(begin, self._config.length.steps)
        validations = sum(step > begin for step in self._validations)
        validating_s = validations * self._validation_each_s
        if self._thins:
            validating_s = min(validating_s, _VALIDATION_FRACTION * left_s + self._validation_each_s)
        steps = (left_s - validating_s) / each_s
        if steps < validations and not self._thins:  # some steps pass several of them, and validate once
            steps = left_s / (each_s + self._validation_each_s)
        stages = sum(end > begin for end in self._ends)
        return Revision(step, first, first + max(stages, math.floor(steps)))

    @property
    def _validation_each_s(self) -> float:
        """Seconds of a validation: of the last one, or else as estimated."""
        last_s = self._last_validation_s
        return self._slowdown * self._validation_s if last_s is None else last_s

    def _mean_step_s(self, begin: float, end: float) -> float:
        """Mean estimated seconds of a step between two positions."""
        steps, progressive = self._config.length.steps, self._config.recipe.progressive
        positions = np.linspace(begin, max(begin, min(end, steps) - 1), _SAMPLES).astype(int).clip(max=steps - 1)
        sizes = [progressive.at(position, total_steps=steps).image_size for position in positions.tolist()]
        return float(np.mean([self._limit.rates.step_s(px) for px in sizes]))

    def _end_s(self, begin: float) -> float:
        """Seconds of all that remains after a position, but steps and validations."""
        saved_s = sum(end > begin for end in self._ends) * self._limit.rates.checkpoints.each_s
        final_s = self._final_s * self._validation_each_s / self._validation_s
        return saved_s + final_s + self._slowdown * self._limit.report_s
