"""Validations of a run: on minival, which may select the weights, or on a part of val."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import pandas as pd

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.multilabel import MACRO_METRICS, compute_metrics, macro_metric
from efficientnetv2.training.callbacks import RunContext, StopRequestedError
from efficientnetv2.training.divergence import DivergenceCheck
from efficientnetv2.training.run_config import RunConfig, eval_network
from efficientnetv2.training.train_state import validation_steps
from efficientnetv2.utils.distributed import broadcast_from_main
from efficientnetv2.utils.errors import DivergedError, pluralize

_logger = logging.getLogger(__name__)


class Validator:
    """Evaluates the model that would be kept, and tells the selection and the callbacks.

    Args:
        context: The run.
        divergence: Makes the error for outputs that are not finite.
        is_due: Whether a validation is due, as of a resumed run that an outage kept from it.
    """

    def __init__(self, context: RunContext, divergence: DivergenceCheck, *, is_due: bool = False) -> None:
        self._context, self._divergence, self.is_due = context, divergence, is_due
        self._steps = sorted(validation_steps(context.config.recipe, context.config.length))

    def schedule(self, step: int) -> None:
        """Set ``is_due`` after a step; all processes call this after the same step."""
        plan, pacer = self._context.plan, self._context.pacer
        self.is_due = plan.passes(step, self._steps)
        if self.is_due and pacer is not None and pacer.skips_validation(step):
            self.is_due = False
        if self._context.selection is None and step >= plan.steps:
            self.is_due = False  # the last point of the curve is the evaluation of the run

    def validate(self) -> None:
        """Validate now.

        Raises:
            StopRequestedError: A signal asks the run to stop. A resumed run starts with this validation.
            InputError: Too many images can't be read, or memory is too short.
        """
        context, config = self._context, self._context.config
        step, selection = context.state.step, context.selection
        kind, split, images = (
            ("val", config.eval_split, _part_of_val(config))
            if config.minival is None
            else ("minival", "minival", config.minival)
        )
        began = time.perf_counter()
        try:
            predictions = config.predict(context.state, images, once=True, progress=self._stop_if_requested)
        except DivergedError as error:
            if step == 0:  # the initial weights
                raise
            raise self._divergence.output_error() from error
        if context.pacer is not None:
            context.pacer.validated(time.perf_counter() - began)
        metrics = broadcast_from_main(config.world, lambda: self._record(kind, predictions))
        best = False
        if selection is not None and step == 0:
            selection.add_start(metrics, eval_network(context.state), name=config.start)
        elif selection is not None:
            best = selection.add(step, metrics, eval_network(context.state))
        self.is_due = False  # done, whether or not the log can be written
        self._log(metrics, split, best=best)

    def record_final(self, predictions: Predictions) -> None:
        """Record the metrics of the run: the predictions of the saved model on all of ``val``."""
        config = self._context.config
        if not config.world.is_main_process:
            return
        last = {"kind": "val", "step": self._context.state.step, "num_images": len(predictions.labels)}
        if any(last.items() <= row.items() for row in config.folder.history()):
            return  # an earlier part was killed while it wrote the report
        self._log(self._record("val", predictions), config.eval_split)

    def _record(self, kind: str, predictions: Predictions) -> dict[str, float]:
        """Write a validation row, and return its metrics."""
        config, step = self._context.config, self._context.state.step
        score = compute_metrics(
            predictions.labels, predictions.probabilities, config.train.class_names, predictions.answer
        )
        name, mean = macro_metric(score)
        metrics = {"top1": score.top1, name: mean, "num_images": score.num_images}
        row: dict[str, Any] = {"kind": kind, "step": step, "epoch": self._context.epoch, **metrics}
        config.folder.record(row)
        return metrics

    def _log(self, metrics: dict[str, float], split: str, *, best: bool = False) -> None:
        step, epoch = self._context.state.step, self._context.epoch
        means = [f"{label} {metrics[name]:.3f}" for name, label in MACRO_METRICS.items() if name in metrics]
        _logger.info(
            f"{f'epoch {epoch:.1f}' if step else 'before training'}: top-1 {metrics['top1']:.1%}, {''.join(means)} "
            f"on {pluralize(int(metrics['num_images']), f'{split} picture')}{', the best so far' * best}"
        )
        for callback in self._context.callbacks:
            callback.on_validation_end(step, epoch, metrics)

    def _stop_if_requested(self, done: int) -> None:
        """After each batch of a validation, which may take long. Several processes stop together, after a step."""
        if self._context.stop_requested() and not self._context.config.world.is_distributed:
            raise StopRequestedError


def _part_of_val(config: RunConfig) -> ImageDataset:
    """A fixed part of ``val``, small enough for many validations, stratified by class."""
    val, most = config.val, config.recipe.val_max_images
    if len(val) <= most:
        return val
    order = config.key.fold("validation part").generator().permutation(len(val))
    return val.select(np.sort(_stratified(val.labels, order)[:most]))


def _stratified(labels: Ints, order: Ints) -> Ints:
    """The same order, changed so that each class has its share in every first part of it."""
    drawn = labels[order]
    before = pd.Series(drawn).groupby(drawn).cumcount().to_numpy()
    _, place, size = np.unique(drawn, return_inverse=True, return_counts=True)
    mixed: Ints = order[np.argsort((before + 0.5) / size[place], kind="stable")]
    return mixed
