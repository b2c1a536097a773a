"""The time of a run: the part before its first step, and the steps that fit into the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from efficientnetv2.progressive.schedule import Revision, StepPlan
from efficientnetv2.training.run_estimate import estimate_run, validation_s
from efficientnetv2.training.run_setup import RunSetup, validation_steps
from efficientnetv2.training.timing import StepTimings
from efficientnetv2.utils.distributed import all_gather_object, broadcast_from_main

# Fraction of the time that stays free for the unexpected. Ours.
RESERVE = 0.03
# Plans over the run, besides those at each stage's start. Ours: if the speed halves right after a plan, the run is late
# by 1/32 of its steps.
_PLANS = 32
# Fraction of the steps left by a plan after which the next is due: where the machine is much faster than measured, a
# run has many steps for each position of its schedule. Ours.
_LEFT_FRACTION = 1 / 8
# Weight of the speed before the last plan, against that of the steps since. Ours.
_SPEED_MEMORY = 0.5
# Fraction of the time that may pass before the first step. Ours.
BEFORE_SHARE = 0.2
# Fraction of the time for validations that select nothing. Ours: with few steps they would take as long as the steps.
_VALIDATION_FRACTION = 0.1
# Positions in the remaining steps at which their time is sampled. Ours.
_SAMPLES = 64


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
        self, setup: RunSetup, plan: StepPlan, limit: TimeLimit, used_s: float | None = None, *, thins: bool = False
    ) -> None:
        self._setup, self._plan, self._thins = setup, plan, thins
        self._limit = limit if used_s is None else replace(limit, used_s=used_s)
        recipe, length = setup.recipe, setup.length
        self._ends = recipe.progressive.stage_ends(length.steps)
        # Without minival, the evaluation of the run takes the place of the last one.
        last = {length.steps} if setup.minival is None else set()
        self._validations = sorted(validation_steps(recipe, length) - last)
        evenly = (round(number * length.steps / _PLANS) for number in range(1, _PLANS))
        self._plan_steps = sorted({*self._ends[:-1], *evenly} - {0})
        run = estimate_run(recipe, limit.rates, setup.image_counts)
        self._validation_s = validation_s(recipe, limit.rates, setup.image_counts)
        excluded = ("compiling", "validation", "checkpoints")
        self._final_s = sum(seconds for name, seconds in run.others_s.items() if name not in excluded)
        self._slowdown = 1.0
        self._last_validation_s: float | None = None
        self._last_validation = time.monotonic()
        self._took_s = self._expected_s = self._planned_s = 0.0
        self._planned = -1  # Steps done when a plan was last due

    @property
    def used_s(self) -> float:
        """Seconds used since the command, over all parts of a resumed run."""
        return self._limit.used_s + time.monotonic() - self._limit.began

    def stepped(self, image_size: int, seconds: float) -> None:
        """Note the time of a step, with all that followed the step before but validations and checkpoints of stages."""
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
        return broadcast_from_main(self._setup.world, lambda: waited_s < due_s)

    def plan(self, step: int, *, begins: bool = False) -> None:
        """Plan the remaining steps if a plan is due or this part of the run ``begins``. All processes call this.

        The plan is written into the run directory before it applies, so that a resumed run takes the same steps.
        """
        decided, holds, steps = self._plan.revisions[-1] if self._plan.revisions else (-1, 0, 0)
        is_due = begins or self._plan.passes(step, self._plan_steps)
        since = step - max(decided, self._planned)
        is_due |= decided >= 0 and since >= max(1, _LEFT_FRACTION * (steps - decided))
        if not self._setup.world.is_distributed:  # several processes have clocks of their own
            is_due |= self.used_s - self._planned_s >= self._limit.seconds / _PLANS
        if step <= decided or not is_due:
            return
        self._planned, self._planned_s = step, self.used_s
        # A resumed run may be before the step that the last plan holds from.
        first = max(all_gather_object(self._setup.world, max(step, holds, self._plan.requested)))
        if first >= self._plan.steps:
            return
        self._plan.revise(broadcast_from_main(self._setup.world, lambda: self._revision(step, first)))
        self._setup.folder.amend_beginning(revisions=self._plan.revisions)

    def _revision(self, step: int, first: int) -> Revision:
        if self._expected_s:
            self._slowdown = self._took_s / self._expected_s
            self._took_s, self._expected_s = _SPEED_MEMORY * self._took_s, _SPEED_MEMORY * self._expected_s
        begin = self._plan.position(first)
        stages = sum(end > begin for end in self._ends)
        # Seconds of all that remains after that position, but steps and validations.
        end_s = stages * self._limit.rates.checkpoints.each_s
        end_s += self._final_s * self._validation_each_s / self._validation_s
        end_s += self._slowdown * self._limit.report_s
        left_s = self._limit.seconds * (1 - RESERVE) - self.used_s - end_s
        left_s -= (first - step) * self._slowdown * self._mean_step_s(self._plan.position(step), begin)
        each_s = self._slowdown * self._mean_step_s(begin, self._setup.length.steps)
        validations = sum(step > begin for step in self._validations)
        validating_s = validations * self._validation_each_s
        if self._thins:
            validating_s = min(validating_s, _VALIDATION_FRACTION * left_s + self._validation_each_s)
        steps = (left_s - validating_s) / each_s
        if steps < validations and not self._thins:  # some steps pass several of them, and validate once
            steps = left_s / (each_s + self._validation_each_s)
        return Revision(step, first, first + max(stages, math.floor(steps)))

    @property
    def _validation_each_s(self) -> float:
        """Seconds of a validation: of the last one, or else as estimated."""
        last_s = self._last_validation_s
        return self._slowdown * self._validation_s if last_s is None else last_s

    def _mean_step_s(self, begin: float, end: float) -> float:
        """Mean estimated seconds of a step between two positions."""
        steps, progressive = self._setup.length.steps, self._setup.recipe.progressive
        positions = np.linspace(begin, max(begin, min(end, steps) - 1), _SAMPLES).astype(int).clip(max=steps - 1)
        sizes = [progressive.at(position, total_steps=steps).image_size for position in positions.tolist()]
        return float(np.mean([self._limit.rates.step_s(px) for px in sizes]))
