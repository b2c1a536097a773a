"""A run that is to end in time: the remaining steps are planned again and again, from the pace of the last ones.

A revision is written into the run folder before it holds, so that a resumed run takes the same steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from efficientnetv2.progressive.step_plan import Revision, StepPlan
from efficientnetv2.training.estimate import estimate_run
from efficientnetv2.training.run_config import RunConfig
from efficientnetv2.training.schedule_points import stage_ends, validation_steps
from efficientnetv2.training.timing import StepTimings
from efficientnetv2.utils.distributed import all_gather_object, broadcast_from_main

# The remaining steps are planned at each stage's start and this many times over the run. Ours: if the pace halves right
# after a plan, the run is late by 1/32 of its steps.
_PLANS = 32
# Weight of the pace before the last plan, against that of the steps since. Ours.
_REMEMBERED = 0.5
# Share of the time that stays free, for what is not foreseen. Ours.
_RESERVE = 0.03
# Share of the time that may pass before the first step. Ours.
BEFORE_SHARE = 0.2
# Share of the time that validations which choose nothing may take. Ours: with few steps, or a slow machine, they would
# take as long as the steps.
_VALIDATING = 0.1
# Positions at which the pace of the remaining steps is looked up. Ours.
_LOOKED_AT = 64


@dataclass(frozen=True)
class StartupBudget:
    """The time that a command may take for what comes before the first step.

    Args:
        seconds: Seconds from the command on.
        began: ``time.monotonic()`` when the command began.
    """

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
    """The time that a run has, from the command to the report.

    Args:
        seconds: Seconds of the whole run.
        report_s: Estimated seconds of the report, in the measured pace.
        rates: Measured rates of the processes together.
        used_s: Seconds used before ``began``, in earlier parts of a resumed run.
        began: ``time.monotonic()`` when this part of the run began.
    """

    seconds: float
    report_s: float
    rates: StepTimings
    used_s: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the time used so far stands for the two clocks."""
        used_s = self.used_s + time.monotonic() - self.began
        return {
            "seconds": self.seconds,
            "report_s": self.report_s,
            "rates": asdict(self.rates),
            "used_s": used_s,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], *, began: float, resumed: bool) -> TimeLimit:
        """The limit that a run folder keeps.

        Args:
            plain: As ``to_json`` gave it.
            began: ``time.monotonic()`` when this part of the run began.
            resumed: Whether another part came before.
        """
        rates = TypeAdapter(StepTimings).validate_python(plain["rates"])
        return cls(plain["seconds"], plain["report_s"], rates, plain["used_s"] if resumed else 0.0, began)


class Pacer:
    """Plans the steps that remain, so that the run ends in time.

    Args:
        job: The run.
        plan: Its steps, which are revised.
        limit: Its time.
        used_s: Seconds used by earlier parts of a resumed run, up to its checkpoint. None takes those of ``limit``.
        thins: Whether validations before the last one may be left out.
    """

    def __init__(
        self,
        job: RunConfig,
        plan: StepPlan,
        limit: TimeLimit,
        used_s: float | None = None,
        *,
        thins: bool = False,
    ) -> None:
        self._job, self._plan, self._thins = job, plan, thins
        self._limit = limit if used_s is None else replace(limit, used_s=used_s)
        recipe, length = job.recipe, job.length
        self._ends = stage_ends(recipe, length)
        self._validations = sorted(validation_steps(recipe, length))
        evenly = (round(number * length.steps / _PLANS) for number in range(1, _PLANS))
        self._moments = sorted({*self._ends[:-1], *evenly} - {0})
        run = estimate_run(recipe, limit.rates, job.image_counts)
        self._validation_s = run.others_s["validation"] / len(self._validations)
        apart = ("compiling", "validation", "checkpoints")
        self._final_s = sum(seconds for what, seconds in run.others_s.items() if what not in apart)
        self._pace = 1.0
        self._validating: float | None = None
        self._validated = time.monotonic()
        self._took_s = self._expected_s = 0.0

    @property
    def used_s(self) -> float:
        """Seconds used since the command, over all parts of a resumed run."""
        return self._limit.used_s + time.monotonic() - self._limit.began

    def stepped(self, image_px: int, seconds: float) -> None:
        """Take note of a step.

        Args:
            image_px: Size of its images.
            seconds: Time that the step took.
        """
        self._took_s += seconds
        self._expected_s += self._limit.rates.step_s(image_px)

    def validated(self, seconds: float) -> None:
        """Take note of how long a validation took, in seconds."""
        self._validating, self._validated = seconds, time.monotonic()

    def skips_validation(self, step: int) -> bool:
        """Whether the validation after a step is left out, since the last one took too much of the time since.

        All processes call this after the same step.
        """
        if not self._thins or self._validating is None or step >= self._plan.steps:
            return False
        due_s = self._validating * (1 / _VALIDATING - 1)
        return broadcast_from_main(self._job.world, lambda: time.monotonic() - self._validated < due_s)

    def plan(self, step: int, *, begins: bool = False) -> None:
        """Plan the remaining steps and write the plan down, if it is time to.

        All processes call this after the same step.

        Args:
            step: Number of steps done.
            begins: Whether the run, or this part of it, begins here.

        Raises:
            InputError: The plan cannot be written, as on a full disk.
        """
        decided = self._plan.revisions[-1].decided if self._plan.revisions else -1
        if step <= decided or not (begins or self._plan.passes(step, self._moments)):
            return
        first = max(all_gather_object(self._job.world, max(step, self._plan.requested)))
        if first >= self._plan.steps:
            return
        self._plan.revise(broadcast_from_main(self._job.world, lambda: self._revision(step, first)))
        self._job.folder.amend_beginning(revisions=self._plan.to_json())

    def _revision(self, step: int, first: int) -> Revision:
        if self._expected_s:
            self._pace = self._took_s / self._expected_s
            self._took_s, self._expected_s = _REMEMBERED * self._took_s, _REMEMBERED * self._expected_s
        begin = self._plan.position(first)
        left_s = self._limit.seconds * (1 - _RESERVE) - self.used_s - self._end_s(begin)
        left_s -= (first - step) * self._pace * self._mean_step_s(self._plan.position(step), begin)
        each_s = self._pace * self._mean_step_s(begin, self._job.length.steps)
        validations = sum(moment > begin for moment in self._validations)
        validating_s = validations * self._validation_each_s
        if self._thins:
            validating_s = min(validating_s, _VALIDATING * left_s + self._validation_each_s)
        steps = (left_s - validating_s) / each_s
        if steps < validations and not self._thins:  # some steps pass several of them, and validate once
            steps = left_s / (each_s + self._validation_each_s)
        stages = sum(end > begin for end in self._ends)
        return Revision(step, first, first + max(stages, math.floor(steps)))

    @property
    def _validation_each_s(self) -> float:
        """Seconds of a validation: of the last one, or else in the measured pace."""
        return self._pace * self._validation_s if self._validating is None else self._validating

    def _mean_step_s(self, begin: float, end: float) -> float:
        """Seconds of a step between two positions, in the measured pace."""
        steps, progressive = self._job.length.steps, self._job.recipe.progressive
        looked_at = np.linspace(begin, max(begin, min(end, steps) - 1), _LOOKED_AT).astype(int)
        sizes = [progressive.at(min(int(one), steps - 1), steps=steps).image_px for one in looked_at]
        return float(np.mean([self._limit.rates.step_s(px) for px in sizes]))

    def _end_s(self, begin: float) -> float:
        """Seconds of all that is left from a position on but the steps and validations."""
        saved_s = sum(end > begin for end in self._ends) * self._limit.rates.checkpoints.each_s
        final_s = self._final_s * self._validation_each_s / self._validation_s
        return saved_s + final_s + self._pace * self._limit.report_s
