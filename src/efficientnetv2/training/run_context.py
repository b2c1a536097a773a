"""The context of a training run, which the parts of a trainer share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from efficientnetv2.progressive.schedule import StepPlan
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.early_stopping import ModelSelection
from efficientnetv2.training.run_setup import RunSetup
from efficientnetv2.training.time_limit import Pacer
from efficientnetv2.training.train_state import TrainState


class StopRequestedError(Exception):
    """A signal asks the run to stop in the middle of a validation."""


@dataclass(eq=False)
class RunContext:
    """What the parts of a trainer share."""

    setup: RunSetup
    state: TrainState
    plan: StepPlan
    callbacks: tuple[Callback, ...] = ()  # The user's, in the first process
    selection: ModelSelection | None = None  # None keeps the last weights
    pacer: Pacer | None = None  # Plans the remaining steps of a run with a time limit
    stop_requested: Callable[[], bool] = lambda: False  # Whether a signal has asked the run to stop

    @property
    def is_done(self) -> bool:
        """Whether training has ended: after all steps, or by early stopping."""
        return self.state.step >= self.plan.steps or (self.selection is not None and self.selection.over)

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return round(self.state.step / self.setup.length.steps_per_epoch, 4)

    def start_stage(self, stage_ends: list[int]) -> None:
        """Call ``on_stage_start``."""
        step = self.plan.scheduled_step(self.state.step)
        settings = self.setup.recipe.progressive.at(step, total_steps=self.plan.scheduled)
        for callback in self.callbacks:
            callback.on_stage_start(bisect_right(stage_ends, step), self.state.step, settings)
