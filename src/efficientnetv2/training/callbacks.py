"""Callbacks of a training run, early stopping, and the context of a run that its parts share.

Minival decides which weights of a run are kept, and when training ends early. The model before training is a candidate
if it can classify, so that a run whose training fails still ends with a useful model. With ``minival: auto`` it and the
last weights are the only candidates: of many validations on few images the best is mostly the luckiest, and its weights
miss the end of the schedule. The last weights are then kept unless the model before training is significantly better:
few images say little, and training mostly helps. ``val``, which gives the metrics of the run, selects nothing. The
selection is part of each checkpoint, so a resumed run selects the same.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from efficientnetv2.data.records import Ints
from efficientnetv2.metrics.metric_intervals import paired_difference
from efficientnetv2.metrics.multilabel import METRIC_NAMES
from efficientnetv2.progressive.schedule import StepPlan, StepSettings
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_setup import RunLength, RunSetup, validation_steps
from efficientnetv2.training.time_limit import Pacer
from efficientnetv2.training.train_state import TrainState
from efficientnetv2.utils.errors import InputError, did_you_mean, format_duration, pluralize, short_repr
from efficientnetv2.utils.logs import IS_PROGRESS
from efficientnetv2.utils.random_key import Key

_logger = logging.getLogger(__name__)

_NO_CLASSES: Ints = np.empty((3, 0), dtype=np.int64)
_COMPARISON_KEY = Key.of(0).fold("start or last")
# Seconds between two lines of progress. Ours.
_PROGRESS_S = 30.0


class Callback:
    """Code that runs at points of a training run: a subclass overrides the methods that it needs.

    Callbacks run in the first process. ``KeyboardInterrupt`` stops the run after this step, with a checkpoint (with
    several processes, one step later); ``resume=True`` continues it.
    Any other exception ends the run at once, and ``resume=True`` starts from its last checkpoint. A resumed run calls
    ``on_train_start`` and ``on_stage_start`` again. To end a run early with its report, use early stopping
    (``patience``).

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
        """After a validation; ``metrics`` are those of its row in ``metrics.jsonl``, such as ``top1``.

        The last one, after ``on_train_end``, is the evaluation of the kept weights on the validation images.
        """

    def on_train_end(self, step: int) -> None:
        """After the last step, before the final evaluation."""


def checked_callbacks(callbacks: object) -> list[Callback]:
    """The callbacks of a user. Raises InputError for what is none, and for a misspelled method."""
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
        raise InputError(f"`callbacks` must be a list, not {short_repr(callbacks)}. Write: callbacks=[...]")
    checked = []
    for callback in callbacks:
        if not isinstance(callback, Callback):
            fix = "Add ()" if isinstance(callback, type) and issubclass(callback, Callback) else "Inherit from Callback"
            raise InputError(f"`callbacks`: {short_repr(callback)} is not an instance of Callback. {fix}.")
        known = [name for name in vars(Callback) if name.startswith("on_")]
        for name in dir(callback):
            near = did_you_mean(name, known)
            if name.startswith("on_") and name not in known and near != ".":
                raise InputError(f"`callbacks`: {type(callback).__name__}.{name} is never called{near}")
        checked.append(callback)
    return checked


def describe_step(settings: StepSettings, loss: float) -> str:
    """Image size, regularization and loss of a step, for a line of progress."""
    dropout = "" if settings.dropout is None else f", dropout {settings.dropout:.2g}"
    augment = "" if settings.randaugment is None else f", RandAugment {settings.randaugment:.3g}"
    mixup = f", mixup {settings.mixup_alpha:.2g}" if settings.mixup_alpha else ""
    return f"{settings.image_size} px{dropout}{augment}{mixup}, loss {loss:.3f}"


class ProgressLog(Callback):
    """Logs how far a run has come, with its speed and the time left."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_S

    def on_log(
        self, step: int, num_steps: int, settings: StepSettings, loss: float, images_per_s: float, seconds_left: float
    ) -> None:
        """Log a line if the last one is long ago."""
        if time.monotonic() < self._next or step >= num_steps:
            return
        self._next = time.monotonic() + _PROGRESS_S
        _logger.info(
            f"{step / num_steps:.0%}: {describe_step(settings, loss)}, {images_per_s:.0f} images/s, "
            f"{format_duration(seconds_left)} left",
            extra={IS_PROGRESS: True},
        )


def unused_patience(recipe: Recipe, length: RunLength, *, has_start: bool) -> list[str]:
    """A note if ``patience`` is set but can't end the run early; ``has_start``: the initial model is a candidate."""
    last_stage = [0, *recipe.progressive.stage_ends(length.steps)][-2]
    count = sum(step > last_stage for step in validation_steps(recipe, length))
    # With one stage and no start, the first validation only sets what the others are compared with.
    counted = count - (last_stage == 0 and not has_start)
    if recipe.patience is None or recipe.patience < counted:
        return []
    fewer = f", or a patience of {counted - 1} at most" if counted > 1 else ""
    compared = "" if counted == count else ", of which the first sets the value to compare with"
    return [
        f"`patience` is {recipe.patience}, but the last stage has {pluralize(count, 'validation')}{compared}, so it "
        f"can't end this run early. Take more epochs{fewer}."
    ]


class ModelSelection:
    """Decides by minival which weights are kept, and when early stopping ends the run.

    ``plan`` has the steps of a run whose number may change. The best weights are kept; with ``ends_only`` the last,
    unless the start is significantly better.
    """

    def __init__(self, recipe: Recipe, length: RunLength, plan: StepPlan | None = None) -> None:
        self._by, self._patience, self._length = recipe.monitor, recipe.patience, length
        self.ends_only = recipe.minival == "auto" and recipe.patience is None
        self._plan = plan or StepPlan(length.steps)
        self._last_stage = [0, *recipe.progressive.stage_ends(length.steps)][-2]
        self._validations: dict[int, float] = {}  # Metric on minival by steps done, in order; higher is better
        self._weights: dict[str, Tensor] = {}
        self._start_name = ""
        self._start_classes = _NO_CLASSES
        self._start_is_better = False  # Significantly, than the last weights

    def add(
        self, step: int, metrics: dict[str, float], network: nn.Module, classes: Ints, *, start_name: str = ""
    ) -> bool:
        """Add a validation after ``step`` steps; returns whether its weights are kept, as none before were better.

        ``metrics`` have the names of ``monitor``. ``classes`` are (3, n): rows of minival, their classes, and the
        predicted ones. ``start_name`` describes the model before training, of step 0.
        """
        if step == 0:
            self._start_name, self._start_classes = start_name, classes
        self._validations[step] = metrics[self._by]
        if self.ends_only and step:
            if step < self._plan.steps:
                return False
            self._start_is_better = self._is_start_better(classes)
        if self._best != step:
            return False
        self._weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
        return True

    @property
    def _best(self) -> int:
        """Step of the best candidate; of equal ones the latest, whose weights have seen more images. Ours."""
        if self.ends_only:
            return 0 if self._start_is_better else max(self._validations)
        return max(self._validations.items(), key=lambda point: point[::-1])[0]

    def _is_start_better(self, classes: Ints) -> bool:
        """Whether the start is significantly better than the last weights, on images that both could read."""
        if self._validations.get(0, -math.inf) <= self._validations[max(self._validations)]:
            return False
        rows, here, there = np.intersect1d(self._start_classes[0], classes[0], return_indices=True)
        if not len(rows):
            return False
        # Images count one by one: of a few groups, none could save a run whose training failed.
        all_classes = np.concatenate([self._start_classes[1:, here], classes[2:, there]])
        names, (labels, first, second) = np.unique(all_classes, return_inverse=True)
        return paired_difference(labels, first, second, rows, len(names), key=_COMPARISON_KEY)[self._by].low > 0

    @property
    def over(self) -> bool:
        """Whether training ends now, before its last step."""
        if self._patience is None or not self._validations:
            return False
        first_best = max(self._validations, key=self._validations.__getitem__)
        before = max((step for step in self._validations if not self._is_in_last_stage(step)), default=0)
        return sum(step > max(before, first_best) for step in self._validations) >= self._patience

    def _is_in_last_stage(self, step: int) -> bool:
        """Whether the last of ``step`` steps is of the last stage."""
        return step > 0 and self._plan.scheduled_step(step - 1) >= self._last_stage

    def apply(self, network: nn.Module) -> None:
        """Load the best weights into a model of the same shape."""
        network.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        points = list(self._validations.items())
        compared = {"start_classes": self._start_classes.tolist(), "start_is_better": self._start_is_better}
        return {"points": points, "weights": self._weights, "start": self._start_name, **compared}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self._validations = dict(state["points"])
        self._weights = state["weights"]
        self._start_name = state["start"]
        self._start_classes = np.array(state["start_classes"], dtype=np.int64)
        self._start_is_better = state["start_is_better"]

    def to_json(self) -> dict[str, Any]:
        """The selection, for the report and the model file."""
        best, start, trained = self._outcome()
        return {
            "kept_model": "start" if best == 0 else "trained",
            "start_metric": start,
            "trained_metric": trained,
            "selected_on": "minival",
            "selected_by": self._by,
            "selected_step": best,
            "selected_epoch": self._epoch(best),
            "selected_score": self._validations[best],
            "validations": len(self._validations),
            "stopped_early": self.over and max(self._validations) < self._plan.steps,
        }

    def __str__(self) -> str:
        """The selection, in sentences."""
        (best, start, trained), name = self._outcome(), METRIC_NAMES[self._by]
        if best == 0:
            at_most = "" if self.ends_only else " at most"
            kept = f"{self._start_name}, before the training"
            other = "" if trained is None else f" Training reached {trained:.1%}{at_most}."
        else:
            count = pluralize(len(self._validations), "validation")
            which = "the last weights" if self.ends_only else f"the best weights of {count}"
            kept = f"{which}, after step {best:,} (epoch {self._epoch(best):.3g})"
            other = "" if start is None else f" Before training it was {start:.1%}."
            if start is not None and start > self._validations[best]:
                other = f" Before training it was {start:.1%}, which is not significantly better."
        score = self._validations[best]
        return f"Kept: {kept}. On minival its {name} is {score:.1%}.{other} The images of val selected nothing."

    def _outcome(self) -> tuple[int, float | None, float | None]:
        """Step of the best candidate, metric of the model before training, best of the trained candidates."""
        trained = [metric for step, metric in self._validations.items() if step]
        candidates = trained[-1:] if self.ends_only else trained
        return self._best, self._validations.get(0), max(candidates, default=None)

    def why_over(self) -> str:
        """Why training ends early, in a sentence."""
        last = max(self._validations)
        return (
            f"Stopped early, after step {last} of {self._plan.steps} (epoch {self._epoch(last):g}): "
            f"{METRIC_NAMES[self._by]} on minival has not risen for {pluralize(self._patience or 0, 'validation')} "
            "(patience)."
        )

    def _epoch(self, step: int) -> float:
        return round(step / self._length.steps_per_epoch, 4)


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
    is_training: bool = False  # Between the first and the last step
    interrupted: bool = False  # Whether a callback has asked the run to stop

    @property
    def is_done(self) -> bool:
        """Whether training has ended: after all steps, or by early stopping."""
        return self.state.step >= self.plan.steps or (self.selection is not None and self.selection.over)

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return round(self.state.step / self.setup.length.steps_per_epoch, 4)

    def notify(self, call: Callable[[Callback], object]) -> None:
        """Call the callbacks. A KeyboardInterrupt of one is noted during the training, when others may be in a step."""
        for callback in self.callbacks:
            try:
                call(callback)
            except KeyboardInterrupt:
                if not self.is_training or self.stop_requested():  # a second Ctrl-C
                    raise
                self.interrupted = True

    def start_stage(self, stage_ends: list[int]) -> None:
        """Call ``on_stage_start``."""
        step = self.plan.scheduled_step(self.state.step)
        settings = self.setup.recipe.progressive.at(step, total_steps=self.plan.scheduled)
        stage = bisect_right(stage_ends, step)
        self.notify(lambda callback: callback.on_stage_start(stage, self.state.step, settings))
