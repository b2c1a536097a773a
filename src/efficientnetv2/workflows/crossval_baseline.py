"""Linear probes on the folds of a cross-validation, and the comparison of random folds with folds by place."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from efficientnetv2.data.folds import Folds
from efficientnetv2.data.records import Ints, is_copy
from efficientnetv2.evaluation.distribution_shift import SplitComparison
from efficientnetv2.evaluation.report_sections import predictions_frame
from efficientnetv2.inference.learning_curve import LearningCurve, learning_curve
from efficientnetv2.inference.linear_probe import fit_classifier, fit_probe, max_probe_images, out_of_fold_predictions
from efficientnetv2.inference.predict import Embeddings, Predictions, Runtime, embed_dataset
from efficientnetv2.inference.probe_splits import GroupedData
from efficientnetv2.metrics.classification import ClassificationMetrics, classification_metrics
from efficientnetv2.metrics.metric_intervals import paired_difference
from efficientnetv2.training.initial_weights import build_initial_model
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import read_recipe
from efficientnetv2.utils.device import pick_device, workers_for
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.logs import progress
from efficientnetv2.utils.memory import limit_memory
from efficientnetv2.utils.random_key import Key
from efficientnetv2.workflows.crossval_runs import FoldTrainer, first_preprocessing

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ProbeBaseline:
    """Linear probes on the initial weights, one for each fold."""

    predictions: Predictions
    other_predictions: Predictions | None  # with the comparison folds
    metrics: ClassificationMetrics
    table: pd.DataFrame  # as of ``evaluation.predictions.load_predictions``
    data_scaling_curve: LearningCurve | None  # in one fold; None if it has too few images
    label_curve_note: str  # which fold, as a sentence
    num_train_images: int  # that were embedded: the mean over folds
    num_available_images: int  # the mean over folds

    def metadata(self) -> dict[str, Any]:
        """Fields of a report's metadata."""
        f1 = {name: each.f1 for name, each in self.metrics.per_class.items() if each.f1 is not None}
        return {
            "linear_probe_top1": self.metrics.top1,
            "linear_probe_macro_f1": self.metrics.macro_f1,
            "linear_probe_f1": f1,
            "linear_probe_num_images": self.num_train_images,
            "linear_probe_num_available": self.num_available_images,
        }


def probe_baseline(folder: Path, trainer: FoldTrainer, folds: Folds, other_folds: Folds | None) -> ProbeBaseline | None:
    """Embed the images once and fit a linear probe for each fold. ``folder`` has a finished first fold.

    None for multi-label data, without pretrained weights, or if all embedded images are of one class.
    """
    dataset, recipe = trainer.dataset, read_recipe(folder / "fold1" / "recipe.yaml")
    if recipe.weights == "none" or dataset.separator is not None:
        return None
    embedded = _embeddings(folder, trainer, recipe)
    if embedded is None:
        return None
    key, balanced = Key.of(recipe.seed).fold("probe"), recipe.balances_classes

    def predict(folds: Folds) -> Predictions:
        pairs = [(part.train_rows, part.val_rows) for part in folds.parts]
        groups = _groups(embedded, folds, trainer)
        classes = out_of_fold_predictions(embedded, pairs, key=key, balanced=balanced, groups=groups)
        known = classes >= 0
        one_hot = np.eye(len(dataset.class_names), dtype=np.float32)[classes[known]]
        logits = (torch.from_numpy(one_hot) + 1e-6).log()
        return Predictions(embedded.samples[known], embedded.labels[known], logits)

    predictions = predict(folds)
    if not len(predictions.samples):
        return None
    other = None if other_folds is None else predict(other_folds)
    if other is not None and not len(np.intersect1d(predictions.samples, other.samples)):
        other = None
    # By time the last fold, which alone trains on most of the images.
    number = len(folds.parts) - 1 if folds.by == "time" else 0
    train_rows = [part.train_rows for part in folds.parts]
    images = pluralize(int((dataset.split != "test").sum()), "image")
    return ProbeBaseline(
        predictions,
        other,
        classification_metrics(predictions.labels, predictions.probabilities, dataset.class_names),
        predictions_frame(predictions, dataset, dataset.class_names),
        _label_curve(embedded, folds, number, key, trainer, balanced=balanced),
        f"This is fold {number + 1} alone, which trains on {len(train_rows[number]):,} of {images}.",
        round(float(np.mean([np.isin(rows, embedded.samples).sum() for rows in train_rows]))),
        round(float(np.mean([len(rows) for rows in train_rows]))),
    )


def _label_curve(
    embedded: Embeddings, folds: Folds, number: int, key: Key, trainer: FoldTrainer, *, balanced: bool
) -> LearningCurve | None:
    """The learning curve of the probe in one fold."""
    fold, dataset = folds.parts[number], trainer.dataset
    train, val = (
        Embeddings(embedded.samples[part], embedded.labels[part], embedded.vectors[part])
        for rows in (fold.train_rows, fold.val_rows)
        for part in [np.isin(embedded.samples, rows)]
    )
    if not len(val.labels) or len(np.unique(train.labels)) < 2:
        return None
    groups = _groups(train, folds, trainer)
    probe, strength = fit_probe(train, key=key.fold("fold", number), balanced=balanced, groups=groups)
    # Unreadable images are no labels; only images that were not embedded make the others a sample.
    readable = np.setdiff1d(fold.train_rows, [row for row, _ in embedded.unreadable])
    return learning_curve(
        train,
        val,
        probe.predict(val.vectors),
        fit=partial(fit_classifier, strength=strength, balanced=balanced),
        num_labeled=int((~is_copy(dataset)[readable]).sum()),
        key=key.fold("label curve"),
        groups=groups,
    )


def _groups(embedded: Embeddings, folds: Folds, trainer: FoldTrainer) -> GroupedData:
    """Groups of embedded images: what the folds kept whole, and augmented copies."""
    rows = embedded.samples
    return GroupedData.from_clusters(folds.clusters[rows], trainer.dataset.select(rows))


def _embeddings(folder: Path, trainer: FoldTrainer, recipe: Recipe) -> Embeddings | None:
    """Embeddings of the images, or of a sample; None if the weights are not available: the folds are not lost."""
    dataset, device = trainer.dataset, pick_device(trainer.options.device)
    preprocessing = first_preprocessing(folder)
    try:
        model = build_initial_model(
            recipe, class_names=dataset.class_names, device=device, in_channels=preprocessing.channels
        ).network
    except InputError as error:
        _logger.info(f"There is no linear probe, because the initial weights are not available: {error}")
        return None
    rows = np.flatnonzero(dataset.split != "test")
    # Twice what the probe of a run may embed, because it trains on all folds but one and predicts that one.
    most = 2 * max_probe_images(model, preprocessing.image_size, len(dataset.class_names), device)
    if len(rows) > most:
        rows = np.sort(Key.of(recipe.seed).fold("probe").generator().permutation(rows)[:most])
    runtime = Runtime(device, workers_for(trainer.options.workers, device))
    limit_memory(device, trainer.options.memory_gib)
    try:
        with progress("linear probe", len(rows)) as counted:
            found = embed_dataset(
                model, dataset.select(rows), preprocessing=preprocessing, runtime=runtime, progress=counted
            )
    finally:
        limit_memory(device, None)
    unreadable = tuple((int(rows[row]), reason) for row, reason in found.unreadable)
    return Embeddings(rows[found.samples], found.labels, found.vectors, unreadable)


def compare_folds(
    what: str, ours: Predictions, theirs: Predictions, folds: Folds, other_folds: Folds, num_classes: int, key: Key
) -> SplitComparison:
    """Compare predictions of a model (``what``) by random folds and by folds by place, on the images of both."""
    both = np.intersect1d(ours.samples, theirs.samples)
    labels = ours.labels[np.searchsorted(ours.samples, both)]
    by_place = other_folds if folds.by == "class" else folds
    classes: dict[str, Ints] = {}
    for predictions, used in ((ours, folds), (theirs, other_folds)):
        rows = np.searchsorted(predictions.samples, both)
        classes["random" if used.by == "class" else "place"] = predictions.logits.argmax(dim=1).numpy()[rows]
    difference = paired_difference(
        labels, classes["random"], classes["place"], by_place.clusters[both], num_classes,
        key=key.fold("beside", what),
    )  # fmt: skip
    names, numbers = ("macro_f1", "top1"), [str(number) for number in range(num_classes)]
    metrics = {
        rule: classification_metrics(labels, np.eye(num_classes)[predicted], numbers)
        for rule, predicted in classes.items()
    }
    return SplitComparison(
        what,
        {name: getattr(metrics["random"], name) for name in names},
        {name: getattr(metrics["place"], name) for name in names},
        {name: difference[name] for name in names},
    )
