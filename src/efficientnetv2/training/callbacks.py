"""What is kept of a run while it runs: rows of figures, the validation curve, checkpoints, time left."""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.file_probe import MAX_UNREADABLE
from efficientnetv2.data.loader import worker_errors
from efficientnetv2.data.records import Ints
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.multilabel import MACRO_METRICS, compute_metrics, macro_metric
from efficientnetv2.progressive.schedule import Setting
from efficientnetv2.progressive.step_plan import StepPlan
from efficientnetv2.training import checkpoint as resume
from efficientnetv2.training.early_stopping import ModelSelection
from efficientnetv2.training.loop import StepOutput
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import RunConfig, eval_network
from efficientnetv2.training.schedule_points import log_steps, stage_ends, validation_steps
from efficientnetv2.training.signals import DeferredWorkerDeath
from efficientnetv2.training.time_budget import Pacer
from efficientnetv2.training.train_state import RunLength, TrainState
from efficientnetv2.utils.distributed import broadcast_from_main
from efficientnetv2.utils.errors import DivergedError, InputError, count_of

_logger = logging.getLogger(__name__)

# Share of the learning rate to try next, and the largest rate that is advised. Ours.
_LOWER, _LARGEST_LR = 0.1, 0.1


def check_loss_finite(steps: Sequence[tuple[int, float, Tensor]], recipe: Recipe, length: RunLength) -> None:
    """Refuse to train on after a loss that is infinite or NaN. Reading the losses waits for the device.

    Args:
        steps: Number, learning rate and loss (a scalar) of each step to check, in order.
        recipe: Of the run.
        length: Of the run.

    Raises:
        DivergedError: A loss is not finite. The error names the first such step.
    """
    if not steps:
        return
    losses = torch.stack([loss for _, _, loss in steps]).cpu()
    broken = (~losses.isfinite()).nonzero().flatten().tolist()
    if broken:
        step, lr, _ = steps[broken[0]]
        raise divergence_error(f"the loss is {float(losses[broken[0]])}", step, lr, recipe, length)


def check_weights_finite(network: nn.Module, step: int, lr: float, recipe: Recipe, length: RunLength) -> None:
    """Refuse to keep weights or batch-norm statistics that are infinite or NaN.

    Args:
        network: That would be kept.
        step: Number of the step just done.
        lr: Its learning rate.
        recipe: Of the run.
        length: Of the run.

    Raises:
        DivergedError: A tensor of the network is not finite. The error names the tensor.
    """
    tensors = {
        name: one.detach()
        for name, one in network.state_dict().items()
        if one.is_floating_point() and one.numel()
    }
    largest = torch.stack(torch._foreach_norm(list(tensors.values()), float("inf"))).cpu()
    broken = (~largest.isfinite()).nonzero().flatten().tolist()
    if broken:
        name = list(tensors)[broken[0]]
        raise divergence_error(f"the weights are not finite (first: {name})", step, lr, recipe, length)


def divergence_error(what: str, step: int, lr: float, recipe: Recipe, length: RunLength) -> DivergedError:
    """The error of a run whose numbers are not finite any more.

    Args:
        what: Is not finite.
        step: Number of the step.
        lr: Its learning rate.
        recipe: Of the run.
        length: Of the run.
    """
    lower = min(_LOWER * recipe.optimizer.lr, _LARGEST_LR)
    return DivergedError(
        f"Training diverged at step {step} (learning rate {lr:.3g}): {what}. Start a new run (another --out) with a "
        f"lower learning rate (--set optimizer.lr={lower:.2g}){_longer_warmup(recipe, length)}."
    )


def _longer_warmup(recipe: Recipe, length: RunLength) -> str:
    """Another way out, in words that follow the first; '' where warm-up is as long as it may be."""
    longest = recipe.schedule.warmup_share * length.steps / length.steps_per_epoch
    longer = min(recipe.schedule.warmup_epochs + 2, longest)
    if longer <= 1.1 * recipe.schedule.warmup_epochs:
        return ""
    return f" or a longer warm-up (--set schedule.warmup_epochs={longer:.3g})"


# Seconds after which the bar is renewed though no row is due: in a day's run rows are minutes apart. Ours.
_SHOWN_S = 10.0


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

    def on_stage_start(self, stage: int, step: int, settings: Setting) -> None:
        """Before the first step of a stage, counted from 0, with the image size and regularization of that step."""

    def on_step_end(self, step: int, num_steps: int, settings: Setting) -> None:
        """After each step; ``step`` have been done. A run with a time limit may change ``num_steps`` under way."""

    def on_log(
        self,
        step: int,
        num_steps: int,
        settings: Setting,
        loss: float,
        images_per_s: float,
        seconds_left: float,
    ) -> None:
        """After a row of training metrics is written, and at least every 10 seconds."""

    def on_validation_end(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """After a validation; ``metrics`` are those of its row in ``metrics.jsonl``, such as ``top1``."""

    def on_train_end(self, step: int) -> None:
        """After the last step, before the final evaluation."""


class StopRequestedError(Exception):
    """A signal asks the run to stop."""


class TrainingCallbacks:
    """Keeps the books of a run.

    ``stopping`` says whether a signal has asked the run to stop.

    Args:
        job: that runs.
        state: that it changes.
        callbacks: called in the first process.
        kept: of earlier parts of a resumed run, as ``taken`` gives it; empty for a new one.
        selection: of the weights to keep; None keeps the last ones.
        plan: Steps of the run where their number may change. None takes those of the recipe.
        pacer: Plans the remaining steps of a run with a time limit. None for a run without.
    """

    def __init__(
        self,
        job: RunConfig,
        state: TrainState,
        callbacks: Sequence[Callback],
        kept: Mapping[str, Any],
        selection: ModelSelection | None = None,
        plan: StepPlan | None = None,
        pacer: Pacer | None = None,
    ) -> None:
        self.job, self.state, self.selection = job, state, selection
        self._callbacks = tuple(callbacks) if job.world.is_main_process else ()
        self._plan, self._pacer = plan or StepPlan(job.length.steps), pacer
        seconds: float = kept.get("seconds", 0.0)
        row = kept.get("row", {"images": 0, "train_s": 0.0, "waited_s": 0.0})
        self._begun = time.perf_counter() - seconds
        self._saved = self._shown = self._stepped = time.perf_counter()
        self._row_images, self._row_waited_s = row["images"], row["waited_s"]
        self.stopping: Callable[[], bool] = lambda: False
        self._lost: set[int] = set()
        self._unchecked: list[tuple[int, float, Tensor]] = []  # number, rate and loss of steps
        self._lr = job.recipe.optimizer.lr
        self._row_before_s: float = row["train_s"]
        self._row_begun = self._saved - self._row_before_s
        self._to_validate: bool = kept.get("to_validate", False)
        self._microbatches = job.microbatches
        self._killed = DeferredWorkerDeath()
        self._stage_ends = stage_ends(job.recipe, job.length)
        self._rows = sorted(log_steps(job.recipe, job.length))
        self._validations = sorted(validation_steps(job.recipe, job.length))

    @staticmethod
    def taken(checkpoint: dict[str, Any]) -> dict[str, Any]:
        """What books keep in a checkpoint, taken out of it; one of an earlier version has less."""
        return {
            name: checkpoint.pop(name)
            for name in ("seconds", "row", "to_validate", "used_s")
            if name in checkpoint
        }

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, validation and saving included."""
        return time.perf_counter() - self._begun

    @property
    def over(self) -> bool:
        """Whether the run is done: with all its steps, or with waiting for a better figure."""
        if self.state.step >= self._plan.steps:
            return True
        return self.selection is not None and self.selection.over

    def begin(self) -> None:
        """Validate the model before the first step, where it can classify and minival may choose it.

        Raises:
            StopAskedError: in the middle.
            InputError: too much of minival can't be read.
        """
        for callback in self._callbacks:
            callback.on_train_start(self.state.step, self._plan.steps)
        if self.state.step == 0 and self.selection is not None and self.job.start:
            with self._apart():
                self._validate()

    def catch_up(self) -> None:
        """Do the validation after which the last checkpoint was to be written, where an outage kept it from that.

        Raises:
            InputError: the outage goes on.
        """
        if not self._to_validate:
            return
        with self._apart():
            self._validate()
        self._write()

    def training_begins(self) -> None:
        """Called when the first pictures are asked for: what was before, compiling the network, is no training."""
        if self._pacer is not None:
            self._pacer.plan(self.state.step, begins=True)
        self._stage_begins()
        self._stepped = time.perf_counter()
        self._row_begun = self._stepped - self._row_before_s

    def _stage_begins(self) -> None:
        step, scheduled = self._plan.scheduled_step(self.state.step), self._plan.scheduled
        settings = self.job.recipe.progressive.at(step, steps=scheduled)
        for callback in self._callbacks:
            callback.on_stage_start(bisect_right(self._stage_ends, step), self.state.step, settings)

    def end(self) -> None:
        """Tell callbacks that the last step is done."""
        for callback in self._callbacks:
            callback.on_train_end(self.state.step)

    def after(self, done: StepOutput) -> None:
        """After a step: rows, validation and checkpoints when they are due.

        Raises:
            StopAskedError: in the middle of a validation, which a resumed run begins with.
            DivergedError: the loss or the weights are not finite.
            InputError: and then the step is kept if it can be, a file of the run can't be written, memory is too short
                to validate, a process that reads was killed, or too much of what is validated on can't be read.
        """
        self._row_images += done.images
        self._row_waited_s += done.waited_s
        step, recipe = self.state.step, self.job.recipe
        ends_stage = self._plan.passes(step, self._stage_ends)
        self._to_validate = self._plan.passes(step, self._validations)
        if self._to_validate and self._pacer is not None and self._pacer.skips_validation(step):
            self._to_validate = False
        if self._pacer is not None:
            self._pacer.stepped(done.setting.image_px, time.perf_counter() - self._stepped)
        # In fp16 the scaler leaves out a step whose numbers overflow, so that only lasting overflow is divergence.
        self._unchecked = [] if recipe.precision == "fp16" else self._unchecked
        self._unchecked.append((done.step, done.lr, done.loss))
        self._lr = done.lr
        if self.selection is None and step >= self._plan.steps:
            self._to_validate = False  # the last point is of all of val, see ``finish``
        try:
            with worker_errors():
                self._keep_up(done)
        except DivergedError:
            raise
        except (InputError, StopRequestedError):  # what was trained since the last checkpoint would be lost
            self.save(done)
            raise
        if ends_stage or self.over or time.perf_counter() - self._saved >= recipe.checkpoint_minutes * 60:
            self.save(done)
            with worker_errors():
                self._killed.raise_pending()
        for callback in self._callbacks:
            callback.on_step_end(step, self._plan.steps, done.setting)
        if ends_stage and not self.over:
            self._stage_begins()
        self._stepped = time.perf_counter()

    def _keep_up(self, done: StepOutput) -> None:
        """Rows and validation, when they are due after a step."""
        step = self.state.step
        if done.loss.device.type == "cpu":  # elsewhere reading it would wait for the device
            self._refuse_loss()
        self._note_short_memory(done)
        if self._plan.passes(step, self._rows):
            self._row(done)
        elif time.perf_counter() - self._shown > _SHOWN_S:
            self._show(done, self._row_images / max(1e-9, time.perf_counter() - self._row_begun))
        if self._to_validate:
            self._refuse_divergence()
            with self._apart():
                self._validate()
        if self.over and self._row_images:  # before its last step
            self._row(done)
        if self._pacer is not None and not self.over:
            self._pacer.plan(step)

    def save(self, done: StepOutput) -> None:
        """Write a checkpoint of the state after this step: the first process does, for all have the same."""
        if not self.job.world.is_main_process:
            return
        self._refuse_divergence()
        self._write()

    def _refuse_loss(self) -> None:
        check_loss_finite(self._unchecked, self.job.recipe, self.job.length)
        self._unchecked = []

    def _refuse_divergence(self) -> None:
        """Before anything is kept of the weights: rarely, for it waits for the device."""
        self._refuse_loss()
        job = self.job
        check_weights_finite(self.state.eval_network, self.state.step - 1, self._lr, job.recipe, job.length)

    def _write(self) -> None:
        if not self.job.world.is_main_process:
            return
        row = {
            "images": self._row_images,
            "train_s": time.perf_counter() - self._row_begun,
            "waited_s": self._row_waited_s,
        }
        with self._apart():
            kept = {"seconds": self.seconds, "row": row, "to_validate": self._to_validate}
            whole = self.state.state_dict() | kept
            if self._pacer is not None:
                whole["used_s"] = self._pacer.used_s
            if self.selection is not None:
                whole["selection"] = self.selection.state_dict()
            with self._killed.deferred():  # half a checkpoint cannot be kept
                resume.save(self.job.folder.checkpoints, whole, self.state.step)
        self._saved = time.perf_counter()

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """What happens within does not count in a row's images per second."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._row_begun += time.perf_counter() - begun

    def note_unreadable(self, unreadable: Sequence[tuple[int, str]]) -> None:
        """Pictures that were readable when the run began, and are not now.

        Args:
            unreadable: sample and reason of each, from all processes.

        Raises:
            InputError: there are too many; or one, where the job is strict.
        """
        folder, train = self.job.folder, self.job.train
        for sample, reason in unreadable:
            what = f"{train.paths[sample]}: {reason}"
            if self.job.strict:
                raise InputError(
                    f"{what}. Repair it, then go on with --resume; without --strict it is skipped."
                )
            # Counted by what this process has met: of a resumed run the folder knows those lost before, some of which
            # may be back.
            self._lost.add(sample)
            if folder.skip(train.paths[sample], reason):
                _logger.info(f"Skipped from now on: {what}.")
            if len(self._lost) > MAX_UNREADABLE * len(train):
                raise InputError(
                    f"{len(self._lost)} of {len(train)} training pictures have become unreadable during the run, more "
                    f"than the {MAX_UNREADABLE:.0%} that are passed over; the last is {what}. All are listed in "
                    f"{folder.skipped_file}. Bring them back, then go on with --resume."
                )

    def _note_short_memory(self, done: StepOutput) -> None:
        """Fewer groups at a time than before: say so, and let a resumed run begin with them."""
        if done.microbatches == self._microbatches:
            return
        px = done.setting.image_px
        before, now = self._microbatches.at(px), done.microbatches.at(px)
        _logger.info(
            f"Warning: memory ran out at step {done.step} with {before} groups of {px} px at a time. The step was done "
            f"again with {now} at a time, and so will be those to come: slower, with the same result."
        )
        self.job.folder.amend_beginning(groups_at_a_time=done.microbatches.to_json())
        self._microbatches = done.microbatches

    def _row(self, done: StepOutput) -> None:
        self._refuse_loss()
        now = time.perf_counter()
        train_s, waited_s = max(1e-9, now - self._row_begun), self._row_waited_s
        images_per_s = self._row_images / train_s
        settings = {name: value for name, value in done.setting.to_json().items() if name != "others"}
        self.job.folder.record(
            {
                "kind": "train",
                "step": self.state.step,
                "epoch": self._epoch,
                "loss": float(done.loss),
                "lr": done.lr,
                **settings,
                "images_per_s": round(images_per_s, 2),
                "train_s": round(train_s, 4),
                "waited_s": round(waited_s, 4),
                "seconds": round(self.seconds, 2),
                "memory_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
            }
        )
        # Only now: a row that can't be written has its part in the next one.
        self._row_begun, self._row_images, self._row_waited_s = now, 0, 0.0
        self._show(done, images_per_s)

    def _show(self, done: StepOutput, images_per_s: float) -> None:
        step, steps, loss = self.state.step, self._plan.steps, float(done.loss)
        left = self._seconds_left(done.setting, images_per_s)
        for callback in self._callbacks:
            callback.on_log(step, steps, done.setting, loss, images_per_s, left)
        self._shown = time.perf_counter()

    @property
    def _epoch(self) -> float:
        return round(self.state.step / self.job.length.steps_per_epoch, 4)

    def _seconds_left(self, setting: Setting, images_per_s: float) -> float:
        """Time for the steps to come: as now, but in proportion to each one's pixels."""
        step, steps = self.state.step, self._plan.steps
        if step >= steps:
            return 0.0
        ahead = np.linspace(step, steps - 1, num=min(64, steps - step)).astype(int)
        progressive, scheduled = self.job.recipe.progressive, self._plan.scheduled
        later = (self._plan.scheduled_step(int(one)) for one in ahead)
        pixels = float(np.mean([progressive.at(one, steps=scheduled).image_px ** 2 for one in later]))
        images = (steps - step) * self.job.recipe.batch_images
        return images / images_per_s * pixels / setting.image_px**2

    def _validate(self) -> None:
        """A point of the validation curve, which may choose the weights to keep."""
        job = self.job
        kind, on, part = (
            ("val", job.answered, self._part_of_val())
            if job.minival is None
            else ("minival", "minival", job.minival)
        )
        begun = time.perf_counter()
        try:
            predictions = job.predict(self.state, part, once=True, progress=self._refuse_to_stay)
        except DivergedError as error:
            if self.state.step == 0:  # of the weights that the run begins with
                raise
            raise self.diverged_outputs() from error
        if self._pacer is not None:
            self._pacer.validated(time.perf_counter() - begun)
        score = broadcast_from_main(job.world, lambda: self._scored(kind, predictions))
        best = False
        if self.selection is not None and self.state.step == 0:
            self.selection.add_start(score, eval_network(self.state), name=job.start)
        elif self.selection is not None:
            best = self.selection.add(self.state.step, score, eval_network(self.state))
        self._to_validate = False  # the figure stands, whether or not the log can be written
        self._log_point(score, on, best=best)

    def diverged_outputs(self) -> DivergedError:
        """What is raised where the weights are finite, but too large for the activations."""
        what = "the model's outputs are NaN or infinite"
        return divergence_error(what, self.state.step - 1, self._lr, self.job.recipe, self.job.length)

    def finish(self, predictions: Predictions) -> None:
        """The last point of the curve: the metrics of the run, of the model kept on all pictures of ``val``.

        Args:
            predictions: of these; on the first process.
        """
        if not self.job.world.is_main_process:
            return
        last = {"kind": "val", "step": self.state.step, "images": len(predictions.labels)}
        if any(last.items() <= row.items() for row in self.job.folder.history()):
            return  # it was killed while it wrote its report
        self._log_point(self._scored("val", predictions), self.job.answered)

    def _log_point(self, score: dict[str, float], on: str, *, best: bool = False) -> None:
        means = [f"{words} {score[name]:.3f}" for name, words in MACRO_METRICS.items() if name in score]
        when = f"epoch {self._epoch:.1f}" if self.state.step else "before training"
        _logger.info(
            f"{when}: top-1 {score['top1']:.1%}, {''.join(means)} "
            f"on {count_of(int(score['images']), f'{on} picture')}{', the best so far' * best}"
        )
        for callback in self._callbacks:
            callback.on_validation_end(self.state.step, self._epoch, score)

    def _refuse_to_stay(self, done: int) -> None:
        """After a batch of a validation, which may take longer than whoever asked this process to stop will wait.

        Several processes stop together, after a step.
        """
        if self.stopping() and not self.job.world.is_distributed:
            raise StopRequestedError

    def _part_of_val(self) -> ImageDataset:
        """A fixed part of ``val``, small enough to be looked at often, in which each class has its share."""
        part, most = self.job.val, self.job.recipe.validate_images
        if len(part) <= most:
            return part
        order = self.job.key.fold("validation part").generator().permutation(len(part))
        return part.select(np.sort(_by_class(part.labels, order)[:most]))

    def _scored(self, kind: str, predictions: Predictions) -> dict[str, float]:
        """The figures of a point of the curve, recorded."""
        names = self.job.train.class_names
        score = compute_metrics(predictions.labels, predictions.probabilities, names, predictions.answer)
        name, mean = macro_metric(score)
        row = {"top1": score.top1, name: mean, "images": score.num_images}
        self.job.folder.record({"kind": kind, "step": self.state.step, "epoch": self._epoch, **row})
        return row


def _by_class(labels: Ints, order: Ints) -> Ints:
    """The same order, but that in its first pictures, however many, each class has its share of them."""
    drawn = labels[order]
    before = pd.Series(drawn).groupby(drawn).cumcount().to_numpy()
    _, place, size = np.unique(drawn, return_inverse=True, return_counts=True)
    mixed: Ints = order[np.argsort((before + 0.5) / size[place], kind="stable")]
    return mixed
