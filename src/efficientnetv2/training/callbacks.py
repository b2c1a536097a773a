"""Callbacks of a training run.

Not callbacks: early stopping (``training.early_stopping``) and checkpoints (``training.checkpoints``).
"""

from __future__ import annotations

from collections.abc import Mapping

from efficientnetv2.progressive.schedule import StepSettings


class Callback:
    """Code that runs at points of a training run: a subclass overrides the methods that it needs.

    Callbacks run in the first process. An exception ends the run; with ``resume=True`` it goes on from its last
    checkpoint. A resumed run calls ``on_train_start`` and ``on_stage_start`` again.

    Example::

        import efficientnetv2 as ev2

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
