"""Checks of a model in training: validations (on minival, which may select weights, or on part of val), divergence."""

from __future__ import annotations

import logging
import time

import numpy as np
import torch
from torch import Tensor

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints
from efficientnetv2.data.sampler import rank_in_class
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.multilabel import MACRO_METRICS, compute_metrics, macro_metric
from efficientnetv2.training.callbacks import RunContext, StopRequestedError
from efficientnetv2.training.loop import StepOutput
from efficientnetv2.training.run_setup import RunSetup, eval_network, validation_steps
from efficientnetv2.training.train_state import TrainState
from efficientnetv2.utils.distributed import broadcast_from_main
from efficientnetv2.utils.errors import DivergedError, pluralize
from efficientnetv2.utils.logs import as_details

_logger = logging.getLogger(__name__)

# Factor of the learning rate to try next, and the largest rate that is advised. Ours.
_LOWER, _LARGEST_LR = 0.1, 0.1
# Steps in a row without a finite loss that are divergence in fp16. Ours.
_LASTING = 20


class Validator:
    """Evaluates the model that would be kept, for the selection and the callbacks.

    ``is_due`` is whether a validation is due, as of a resumed run that an outage kept from it.
    """

    def __init__(self, context: RunContext, divergence: DivergenceCheck, *, is_due: bool = False) -> None:
        self._context, self._divergence, self.is_due = context, divergence, is_due
        self._steps = sorted(validation_steps(context.setup.recipe, context.setup.length))

    def schedule(self, step: int) -> None:
        """Set ``is_due`` after a step; all processes call this after the same step."""
        plan, pacer = self._context.plan, self._context.pacer
        self.is_due = plan.passes(step, self._steps)
        if self.is_due and pacer is not None and pacer.skips_validation(step):
            self.is_due = False
        if self._context.selection is None and step >= plan.steps:
            self.is_due = False  # the last point of the curve is the evaluation of the run

    def validate(self) -> None:
        """Validate now, or raise StopRequestedError if a signal asks the run to stop; resumed, it starts with this."""
        context, setup = self._context, self._context.setup
        step, selection = context.state.step, context.selection
        kind, split, images = "minival", "minival", setup.minival
        if images is None:
            kind, split, images = "val", setup.eval_split, _part_of_val(setup)
        began = time.perf_counter()
        try:
            predictions = setup.predict(context.state, images, once=True, progress=self._stop_if_requested)
        except DivergedError as error:
            if step == 0:  # the initial weights
                raise
            raise self._divergence.output_error() from error
        if context.pacer is not None:
            context.pacer.validated(time.perf_counter() - began)
        metrics, classes = broadcast_from_main(
            setup.world, lambda: (self._record(kind, predictions), _classes(predictions))
        )
        note = ""
        if selection is not None:
            network = eval_network(context.state)
            if selection.add(step, metrics, network, classes, start_name=setup.start) and step > 0:
                note = ", kept" if selection.ends_only else ", the best so far"
        self.is_due = False  # done, whether or not the log can be written
        self._log(metrics, split, note)

    def record_final(self, predictions: Predictions) -> None:
        """Record the metrics of the run: the predictions of the saved model on all of ``val``."""
        setup = self._context.setup
        if not setup.world.is_main_process:
            return
        last = {"kind": "val", "step": self._context.state.step, "num_images": len(predictions.labels)}
        if any(last.items() <= row.items() for row in setup.folder.history()):
            return  # an earlier part was killed while it wrote the report
        with as_details():  # shown with its interval, and by class
            self._log(self._record("val", predictions), setup.eval_split)

    def _record(self, kind: str, predictions: Predictions) -> dict[str, float]:
        """Write a validation row, and return its metrics."""
        setup, step = self._context.setup, self._context.state.step
        score = compute_metrics(
            predictions.labels, predictions.probabilities, setup.train.class_names, predictions.activation
        )
        name, mean = macro_metric(score)
        metrics = {"top1": score.top1, name: mean, "num_images": score.num_images}
        setup.folder.record({"kind": kind, "step": step, "epoch": self._context.epoch, **metrics})
        return metrics

    def _log(self, metrics: dict[str, float], split: str, note: str = "") -> None:
        step, epoch = self._context.state.step, self._context.epoch
        means = [f"{label} {metrics[name]:.3f}" for name, label in MACRO_METRICS.items() if name in metrics]
        when = f"epoch {epoch:.1f}" if step else "before training"
        _logger.info(
            f"{when}: top-1 {metrics['top1']:.1%}, {''.join(means)} "
            f"on {pluralize(int(metrics['num_images']), f'{split} image')}{note}"
        )
        self._context.notify(lambda callback: callback.on_validation_end(step, epoch, metrics))

    def _stop_if_requested(self, done: int) -> None:
        """After each batch of a validation, which may take long. Several processes stop together, after a step."""
        if self._context.stop_requested() and not self._context.setup.world.is_distributed:
            raise StopRequestedError


def _classes(predictions: Predictions) -> Ints:
    """(3, n): rows, classes (of several labels the first) and predicted classes."""
    labels = predictions.labels if predictions.labels.ndim == 1 else predictions.labels[:, 0]
    return np.stack([predictions.samples, labels, predictions.logits.argmax(dim=1).numpy()])


def _part_of_val(setup: RunSetup) -> ImageDataset:
    """A fixed part of ``val``, small enough for many validations, in which each class has its share."""
    val, most = setup.val, setup.recipe.val_max_images
    if len(val) <= most:
        return val
    order = setup.key.fold("validation part").generator().permutation(len(val))
    drawn = val.labels[order]
    _, place, size = np.unique(drawn, return_inverse=True, return_counts=True)
    stratified = order[np.argsort((rank_in_class(drawn) + 0.5) / size[place], kind="stable")]
    return val.select(np.sort(stratified[:most]))


class DivergenceCheck:
    """Collects the losses of the steps, and checks them when a check does not delay the device."""

    def __init__(self, setup: RunSetup, state: TrainState) -> None:
        self._recipe, self._length, self._state = setup.recipe, setup.length, state
        self._unchecked: list[tuple[int, float, Tensor]] = []  # number, learning rate and loss of steps
        self._lr = setup.recipe.optimizer.lr

    def add(self, output: StepOutput) -> None:
        """Collect the loss of a step."""
        self._unchecked.append((output.step, output.lr, output.loss))
        # In fp16 the scaler leaves out steps that overflow, so that only lasting overflow is divergence.
        self._unchecked = self._unchecked[-_LASTING:] if self._recipe.precision == "fp16" else self._unchecked
        self._lr = output.lr

    def check_loss(self) -> None:
        """Check all losses since the last check, in fp16 the last ones; waits for the device.

        Raises DivergedError if a loss is not finite, in fp16 if none of the last is. The message names the first step.
        """
        steps, self._unchecked = self._unchecked, []
        if not steps:
            return
        losses = torch.stack([loss for _, _, loss in steps]).cpu()
        broken = (~losses.isfinite()).nonzero().flatten().tolist()
        if self._recipe.precision == "fp16" and len(broken) < min(_LASTING, self._length.steps):
            self._unchecked = steps
        elif broken:
            step, lr, _ = steps[broken[0]]
            raise self._error(f"the loss is {float(losses[broken[0]])}", step, lr)

    def check_weights(self) -> None:
        """Check the losses, and the weights and statistics to keep; waits for the device.

        Raises DivergedError if a value is not finite. The message names the tensor.
        """
        self.check_loss()
        tensors = {
            name: tensor.detach()
            for name, tensor in self._state.eval_network.state_dict().items()
            if tensor.is_floating_point() and tensor.numel()
        }
        largest = torch.stack(torch._foreach_norm(list(tensors.values()), float("inf"))).cpu()
        broken = (~largest.isfinite()).nonzero().flatten().tolist()
        if broken:
            name = list(tensors)[broken[0]]
            raise self._error(f"the weights are not finite (first: {name})", self._state.step - 1, self._lr)

    def output_error(self) -> DivergedError:
        """The error where the weights are finite, but too large for the activations."""
        return self._error("the model's outputs are NaN or infinite", self._state.step - 1, self._lr)

    def _error(self, what: str, step: int, lr: float) -> DivergedError:
        schedule, epochs = self._recipe.schedule, self._length.steps / self._length.steps_per_epoch
        lower = min(_LOWER * self._recipe.optimizer.lr, _LARGEST_LR)
        longer = min(schedule.warmup_epochs + 2, schedule.max_warmup_fraction * epochs)
        fix = f"a lower learning rate (`optimizer.lr={lower:.2g}`)"
        if longer > 1.1 * schedule.warmup_epochs:
            fix += f" or a longer warm-up (`schedule.warmup_epochs={longer:.3g}`)"
        return DivergedError(
            f"Training diverged at step {step} (learning rate {lr:.3g}): {what}. Start a new run with {fix}."
        )
