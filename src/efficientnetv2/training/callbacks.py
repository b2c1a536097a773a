"""Callbacks of a training run, and what the parts of a trainer share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from efficientnetv2.progressive.schedule import StepPlan, StepSettings
from efficientnetv2.training.model_selection import ModelSelection
from efficientnetv2.training.run_config import RunConfig
from efficientnetv2.training.time_limit import Pacer
from efficientnetv2.training.train_state import TrainState


class Callback:
    """Code that runs at points of a training run: a subclass overrides the methods that it needs.

    Callbacks run in the first process. An exception ends the run; with ``resume=True`` it goes on from its last
    checkpoint. A resumed run calls ``on_train_start`` and ``on_stage_start`` again.

    Example::

        class StopAtLoss(ev2.Callback):
            def on_log(self, step, num_steps, settings, loss, images_per_s, seconds_left):
                if loss < 0.1:
                    raise KeyboardInterrupt
    """

    def on_train_start(self, step: int, num_steps: int) -> None:
        """Before the first step, and before the model is compiled; ``step`` have been done in earlier parts."""

    def on_stage_start(self, stage: int, step: int, settings: StepSettings) -> None:
        """Before the first step of a stage, counted from 0, with the image size and regularization of that step."""

    def on_step_end(self, step: int, num_steps: int, settings: StepSettings) -> None:
        """After each step; ``step`` have been done. A run with a time limit may change ``num_steps`` under way."""

    def on_log(
        self, step: int, num_steps: int, settings: StepSettings, loss: float, images_per_s: float, seconds_left: float
    ) -> None:
        """After a row of training metrics is written, and at least every 10 seconds."""

    def on_validation_end(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """After a validation; ``metrics`` are those of its row in ``metrics.jsonl``, such as ``top1``."""

    def on_train_end(self, step: int) -> None:
        """After the last step, before the final evaluation."""


class StopRequestedError(Exception):
    """A signal asks the run to stop in the middle of a validation."""


@dataclass(eq=False)
class RunContext:
    """What the parts of a trainer share."""

    config: RunConfig
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
        return round(self.state.step / self.config.length.steps_per_epoch, 4)

    def start_stage(self, stage_ends: list[int]) -> None:
        """Call ``on_stage_start``."""
        step = self.plan.scheduled_step(self.state.step)
        settings = self.config.recipe.progressive.at(step, total_steps=self.plan.scheduled)
        for callback in self.callbacks:
            callback.on_stage_start(bisect_right(stage_ends, step), self.state.step, settings)
