"""The number of steps of a run that may change during it, and the position of each step in the schedule."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

# Positions are sums of fractions: closer than this they are equal. Ours.
_EQUAL = 1e-6


@dataclass(frozen=True)
class Revision:
    """Another number of steps for the rest of a run.

    Args:
        decided: Number of steps done when the revision was made.
        step: Number of steps done from which the revision holds.
        steps: Number of steps of the whole run.
    """

    decided: int
    step: int
    steps: int


class StepPlan:
    """How many steps a run has, and the position of each step in the recipe's schedule.

    Image size, regularization and learning rate are functions of the position, 0 to ``scheduled``. Without a revision,
    step ``n`` has position ``n``. A revision changes how fast later steps pass through the rest of the schedule;
    positions never jump and never go back.

    Attributes:
        revisions: Revisions so far, in order.
        requested: Number of steps whose images have been requested: a revision cannot change these.

    Example:
        >>> plan = StepPlan(100)
        >>> plan.revise(Revision(decided=50, step=50, steps=75))  # half as many steps for the second half
        >>> plan.steps, plan.position(50), plan.position(60), plan.position(75)
        (75, 50.0, 70.0, 100.0)
    """

    def __init__(self, scheduled: int, revisions: Iterable[Revision] = ()) -> None:
        self.scheduled = scheduled
        self.revisions: list[Revision] = []
        self.requested = 0
        self._parts: list[tuple[int, float, int]] = [(0, 0.0, scheduled)]  # first step, its position, steps
        for revision in revisions:
            self.revise(revision)

    @property
    def steps(self) -> int:
        """Number of steps of the whole run, as planned now."""
        return self._parts[-1][2]

    def position(self, step: int) -> float:
        """Position in the schedule after ``step`` steps, from 0 to ``scheduled``."""
        first, begin, steps = self._parts[bisect_right(self._parts, step, key=lambda part: part[0]) - 1]
        if step >= steps:
            return float(self.scheduled)
        return begin + (self.scheduled - begin) * (step - first) / (steps - first)

    def scheduled_step(self, step: int) -> int:
        """The step of the schedule that a step of the run, from 0, takes its values from."""
        return min(self.scheduled - 1, math.floor(self.position(step) + _EQUAL))

    def passes(self, step: int, moments: Sequence[int]) -> bool:
        """Whether the run reaches one of some ascending positions with the last of ``step`` steps."""
        before, after = (self.position(one) + _EQUAL for one in (step - 1, step))
        return bisect_right(moments, after) > bisect_right(moments, before)

    def revise(self, revision: Revision) -> None:
        """Add a revision. Raises ValueError if it changes steps before an earlier one, or ends the run too soon."""
        if revision.step < self._parts[-1][0] or revision.steps < max(1, revision.step):
            raise ValueError(f"{revision} does not follow {self._parts[-1]}")
        begin = self.position(revision.step)
        self._parts = [part for part in self._parts if part[0] < revision.step]
        self._parts.append((revision.step, begin, revision.steps))
        self.revisions.append(revision)

    def to_json(self) -> list[list[int]]:
        """The revisions as plain JSON values: ``[decided, step, steps]`` each."""
        return [list(astuple(revision)) for revision in self.revisions]

    @classmethod
    def from_json(cls, scheduled: int, plain: Sequence[Sequence[int]]) -> StepPlan:
        """The plan with the revisions that ``to_json`` gave."""
        return cls(scheduled, [Revision(*one) for one in plain])
