"""After the last step: select weights and image size, fit the temperature, evaluate, save the model.

The best image size is hard to know beforehand: random crops magnify, so it is above that of training, by how much
depends on the images (arXiv:1906.06423).
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import groupings
from efficientnetv2.data.image_metadata import MAX_HASHED, content_hashes
from efficientnetv2.inference.predict import Predictions, Runtime, embed_dataset
from efficientnetv2.metrics.calibration import MIN_TEMPERATURE_IMAGES, fit_temperature
from efficientnetv2.metrics.classification import SizeMetrics, best_size, size_metrics
from efficientnetv2.metrics.multilabel import compute_metrics, macro_metric
from efficientnetv2.models import model_file
from efficientnetv2.models.provenance import Calibration, TrainingFingerprint
from efficientnetv2.models.unknown import MAX_IMAGES, MIN_IMAGES, UnknownDetector
from efficientnetv2.training.callbacks import ModelSelection, RunContext
from efficientnetv2.training.metrics_log import MetricsLog
from efficientnetv2.training.resolve_image_sizes import eval_size_candidates
from efficientnetv2.training.run_dir import NullRunDir
from efficientnetv2.training.run_setup import RunSetup, eval_network
from efficientnetv2.training.train_state import TrainState
from efficientnetv2.training.validation import DivergenceCheck, Validator
from efficientnetv2.utils.distributed import broadcast_from_main
from efficientnetv2.utils.errors import DivergedError, InputError, ReaderKilledError, pluralize
from efficientnetv2.utils.io import hint_for_os_error

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalSizeSelection:
    """Metrics on minival at each image size, growing, and the name of the metric that selects."""

    points: tuple[SizeMetrics, ...]
    by: Literal["top1", "macro_f1"]

    @property
    def image_size(self) -> int:
        """The best size; of equal ones the smallest, which is the fastest."""
        return best_size(self.points, self.by).image_size

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the report."""
        return {"image_size": self.image_size, "sizes": [asdict(point) for point in self.points]}

    def __str__(self) -> str:
        """The selection in a sentence."""
        found = best_size(self.points, self.by)
        metric = f"top-1 {found.top1:.1%}" if self.by == "top1" else f"macro-F1 {found.macro_f1:.1%}"
        among = ", ".join(str(point.image_size) for point in self.points)
        return f"Evaluation at {found.image_size} px, which was best on minival, {metric}, of {among}."


@dataclass
class Result:
    """What a run gave."""

    predictions: Predictions  # Of the saved model on ``val``
    seconds: float  # Wall time over all resumed parts, validation and saving included
    images: int  # Images seen in training
    history: list[dict[str, Any]]  # Rows of ``metrics.jsonl``
    selection: ModelSelection | None = None  # None if the last weights were kept
    sizes: EvalSizeSelection | None = None
    calibration: Calibration | None = None  # Temperature fitted on minival


def finish_training(context: RunContext, log: MetricsLog, validator: Validator, divergence: DivergenceCheck) -> Result:
    """Select, calibrate, evaluate and save the model of a run whose steps are done; outputs that diverged remove it."""
    setup, state, selection = context.setup, context.state, context.selection
    if context.pacer is not None:
        _logger.info(f"Trained: {epochs_trained(setup, state.step):.3g} epochs, as the time allowed.")
    if selection:
        if state.step < context.plan.steps:
            _logger.info(selection.why_over())
        selection.apply(eval_network(state))
        _logger.info(str(selection))
    if setup.world.is_main_process:  # whatever becomes of the evaluation, the model is there
        eval_network(state).trained_on = _fingerprint(setup)
        save_model(setup, state, selection)
    sizes = None
    try:
        if setup.recipe.eval_image_size_candidates is not None and setup.minival is not None:
            sizes = _select_eval_size(setup, state, setup.minival)
            setup = replace(setup, preprocessing=replace(setup.preprocessing, image_size=sizes.image_size))
            _logger.info(str(sizes))
        calibration = _calibrate(setup, state)
        _logger.info(f"Evaluating on {pluralize(len(setup.val), f'{setup.eval_split} image')}.")
        predictions = setup.predict(state, setup.val)
    except DivergedError as error:
        if setup.world.is_main_process:
            setup.folder.model_file.unlink(missing_ok=True)
        raise divergence.output_error() from error
    except InputError as error:
        if isinstance(setup.folder, NullRunDir):  # of a search, or of another process
            raise
        raise type(error)(f"{error} The model is saved: {setup.folder.model_file}") from error
    validator.record_final(predictions)
    for note in unreadable_note(setup, predictions):
        _logger.info(note)
    seconds = log.seconds
    if setup.world.is_main_process:
        try:
            _fit_unknown(setup, state)
        except ReaderKilledError:
            raise
        except (InputError, DivergedError) as error:
            _logger.warning(f"The model has no detector of unknown images: {error}")
        save_model(setup, state, selection, predictions)
    images = state.step * setup.recipe.batch_size
    return Result(predictions, seconds, images, setup.folder.history(), selection, sizes, calibration)


def save_model(
    setup: RunSetup, state: TrainState, selection: ModelSelection | None, predictions: Predictions | None = None
) -> None:
    """Write the model file; before the last evaluation, without ``predictions``, it has no metrics of ``val``.

    Raises InputError on a full disk: the checkpoints have the model, and the run resumes from them.
    """
    names, split = setup.train.class_names, setup.eval_split
    metrics: dict[str, Any] = {"epochs": epochs_trained(setup, state.step)}
    if predictions is not None:
        score = compute_metrics(predictions.labels, predictions.probabilities, names, predictions.activation)
        name, mean = macro_metric(score)
        metrics |= {f"{split}_top1": score.top1, f"{split}_{name}": mean, f"{split}_images": score.num_images}
    try:
        model_file.save(
            setup.folder.model_file,
            eval_network(state),
            preprocessing=setup.preprocessing,
            class_names=names,
            recipe=setup.recipe.to_json(),
            metrics=metrics | (selection.to_json() if selection else {}),
        )
    except InputError as error:
        if (cause := error.__cause__) is None or isinstance(cause, InputError):
            raise
        raise InputError(
            f"{setup.folder.model_file} can't be written ({getattr(cause, 'strerror', None) or cause}). "
            f"{hint_for_os_error(cause)}, then continue with `resume`."
        ) from cause


def unreadable_note(setup: RunSetup, predictions: Predictions) -> list[str]:
    """A note on images of the last evaluation that could not be read; none if all could."""
    if not predictions.unreadable:
        return []
    lost, total = len(predictions.unreadable), len(setup.val)
    return [
        f"{lost:,} of {total:,} {setup.eval_split} images could not be read ({setup.folder.skipped_file.name} lists "
        f"them). The metrics are of the other {total - lost:,}."
    ]


def epochs_trained(setup: RunSetup, steps: int) -> float:
    """The epochs of a run's steps: those of the recipe, unless it had a time limit or stopped early."""
    if steps != setup.length.steps:
        return round(steps * setup.recipe.batch_size / len(setup.train), 4)
    return float(setup.recipe.epochs)


def _fingerprint(setup: RunSetup) -> TrainingFingerprint | None:
    """Content hashes of the images that trained and selected, besides those of the initial weights."""

    def fingerprint(part: ImageDataset) -> TrainingFingerprint:
        return TrainingFingerprint(len(part), np.sort(content_hashes(part)[1]))

    try:
        selecting = None if setup.minival is None else fingerprint(setup.minival)
        trained = replace(fingerprint(setup.train), selection=selecting)
    except InputError as error:  # remote shards are gone, which is no reason to lose the model
        _logger.info(f"The model file does not record its training images: {error}")
        return None
    return trained.started_from(setup.network.trained_on, most=MAX_HASHED)


def _select_eval_size(setup: RunSetup, state: TrainState, minival: ImageDataset) -> EvalSizeSelection:
    """Evaluate minival at each size; all processes call this and get the same."""
    evaluated: dict[int, tuple[Predictions, float]] = {}
    for px in eval_size_candidates(setup.recipe):
        began = time.perf_counter()
        resized = replace(setup, preprocessing=replace(setup.preprocessing, image_size=px))
        evaluated[px] = resized.predict(state, minival), time.perf_counter() - began
    names = setup.train.class_names
    points = broadcast_from_main(
        setup.world,
        lambda: tuple(
            size_metrics(px, found.labels, found.probabilities, names, seconds)
            for px, (found, seconds) in evaluated.items()
        ),
    )
    return EvalSizeSelection(points, setup.recipe.monitor)


def _calibrate(setup: RunSetup, state: TrainState) -> Calibration | None:
    """Fit the temperature of the kept model on minival; None without enough of it. All processes call this."""
    if setup.minival is None:
        return None
    if len(setup.minival) < MIN_TEMPERATURE_IMAGES:
        _logger.info(
            f"No temperature was fitted: minival has {pluralize(len(setup.minival), 'image')}, fewer than "
            f"{MIN_TEMPERATURE_IMAGES}."
        )
        return None
    predictions = setup.predict(state, setup.minival)

    def fitted() -> Calibration | None:
        if len(predictions.labels) < MIN_TEMPERATURE_IMAGES:  # the others could not be read
            return None
        temperature = fit_temperature(predictions.labels, predictions.logits.numpy())
        return Calibration(temperature, len(predictions.labels), "minival")

    found = broadcast_from_main(setup.world, fitted)
    if found is not None:
        eval_network(state).calibration = found
        _logger.info(f"Temperature: {found.temperature:.3g} (fitted on {found.num_images} images of minival)")
    return found


def _fit_unknown(setup: RunSetup, state: TrainState) -> None:
    """Fit the detector of unknown images on images of the last evaluation, if there are enough."""
    network, split = eval_network(state), setup.eval_split
    drawn = setup.key.fold("unknown").generator().permutation(len(setup.val))[:MAX_IMAGES]
    part = setup.val.select(np.sort(drawn))
    if len(part) < MIN_IMAGES:
        _logger.info(f"Unknown images: not scored ({split} has fewer than {MIN_IMAGES} images)")
        return
    embedded = embed_dataset(
        network, part, preprocessing=setup.preprocessing, runtime=Runtime(setup.device, setup.workers)
    )
    if len(embedded.vectors) < MIN_IMAGES:  # the others could not be read
        return
    levels = groupings(part.select(embedded.samples), None)
    groups = next((torch.from_numpy(level.clusters) for level in levels if level.groups and level.block is None), None)
    vectors, labels = torch.from_numpy(embedded.vectors), torch.from_numpy(embedded.labels)
    network.unknown = UnknownDetector.fit(vectors, split, groups=groups, labels=labels)
    if network.unknown is None:
        _logger.info(f"Unknown images: not scored (in {split}, too few images are of classes with several groups)")
        return
    _logger.info(
        f"Unknown images: threshold {network.unknown.threshold:.3g} (flags {network.unknown.false_alarm_rate:.0%} of "
        f"known images, fitted on {len(embedded.vectors)} images of {split})"
    )
