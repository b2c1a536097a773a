"""Metrics of multi-label classification. scikit-learn computes average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficientnetv2.metrics.calibration import expected_calibration_error
from efficientnetv2.metrics.classification import TOP, ClassificationMetrics, classification_metrics, top5_correct
from efficientnetv2.utils.errors import InputError, non_finite_error
from efficientnetv2.utils.probability import Activation

#: Metrics in which every class counts alike: key in files -> name. Single-label data has the first.
MACRO_METRICS = {"macro_f1": "macro-F1", "mean_average_precision": "mean average precision"}
#: Metrics of validations and comparisons: key in files -> name.
METRIC_NAMES = {"top1": "top-1", **MACRO_METRICS}

# Threshold of an assigned label. With softmax relative to the largest probability: the m labels of an image are trained
# as 1 / m each and all others as 0, so half of the largest is the middle. Ours. With sigmoid absolute.
_THRESHOLD = 0.5
#: Which classes are assigned, as a phrase after "every class".
ASSIGNMENT_RULES: dict[Activation, str] = {
    "softmax": "with at least half of its largest probability",
    "sigmoid": "with a probability of at least 0.5",
}


@dataclass(frozen=True)
class MultilabelClassMetrics:
    """Metrics of one class; None for a class without images. F1 is of the assigned labels (``assigned_labels``)."""

    average_precision: float | None
    f1: float | None
    support: int


@dataclass(frozen=True, eq=False)
class MultilabelMetrics:
    """Metrics of one model on one multi-label dataset, as fractions; means are over the classes with images."""

    top1: float  # of images whose most probable class is a label
    top5: float | None  # with a label among the five most probable classes; None with five classes or fewer
    mean_average_precision: float
    f1_micro: float
    f1_macro: float
    per_class: dict[str, MultilabelClassMetrics]
    majority_top1: float  # of always predicting the most frequent class
    majority_class: str
    ece: float  # expected calibration error of the most probable class; meaningful only with sigmoid
    num_images: int
    activation: Activation = "softmax"
    without: int = 0  # images without an assigned label

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K classes, in order."""
        return tuple(self.per_class)


#: Metrics of single-label or multi-label classification.
Metrics = ClassificationMetrics | MultilabelMetrics


def is_correct(labels: npt.ArrayLike, predicted: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """(N,) whether a predicted class is a label, which are (N,) or (N, M) class ids padded with -1."""
    true = np.asarray(labels)
    columns = true if true.ndim == 2 else true[:, None]
    correct: npt.NDArray[np.bool_] = (columns == np.asarray(predicted)[:, None]).any(axis=1)
    return correct


def compute_metrics(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, class_names: Sequence[str], activation: Activation = "softmax"
) -> Metrics:
    """Metrics of single-label, (N,), or multi-label, (N, M), class ids."""
    if np.ndim(labels) == 1:
        return classification_metrics(labels, probabilities, class_names)
    return multilabel_metrics(labels, probabilities, class_names, activation)


def macro_metric(metrics: Metrics) -> tuple[str, float]:
    """Key, one of ``MACRO_METRICS``, and value of the metric in which every class counts alike."""
    if isinstance(metrics, MultilabelMetrics):
        return "mean_average_precision", metrics.mean_average_precision
    return "macro_f1", metrics.macro_f1


def multilabel_metrics(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, class_names: Sequence[str], activation: Activation = "softmax"
) -> MultilabelMetrics:
    """Metrics of (N, K) probabilities for (N, M) class ids, each once and padded with -1.

    Source: scikit-learn; top1 is the precision at 1 of google/automl, efficientnetv2/main.py.
    """
    from sklearn.metrics import average_precision_score  # takes a second to load

    true, scores = np.asarray(labels), np.asarray(probabilities)
    if len(true) == 0:
        raise InputError("no labeled image to compute metrics on. Choose a split with labeled images.")
    bare = np.flatnonzero((true < 0).all(axis=1))
    if len(bare):
        raise InputError(f"image {bare[0]} has no label. Remove images without a label.")
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(broken):
        raise non_finite_error(len(broken), len(true), int(broken[0]))
    predicted = scores.argmax(axis=1)
    correct = is_correct(true, predicted)
    images, classes = np.nonzero(true >= 0)[0], true[true >= 0]
    support = np.bincount(classes, minlength=len(class_names))
    # scikit-learn's F1, from the matrix: an untrained sigmoid model assigns every class to every image.
    assigned = assigned_labels(scores, activation)
    hits = np.bincount(classes[assigned[images, classes]], minlength=len(class_names))
    totals = support + assigned.sum(axis=0)
    f1 = 2 * hits / np.maximum(totals, 1)
    per_class = {}
    for k, name in enumerate(class_names):
        positive = np.zeros(len(scores), dtype=bool)
        positive[images[classes == k]] = True
        average = float(average_precision_score(positive, scores[:, k])) if support[k] else None
        per_class[name] = MultilabelClassMetrics(average, float(f1[k]) if support[k] else None, int(support[k]))
    averages = [each.average_precision for each in per_class.values() if each.average_precision is not None]
    return MultilabelMetrics(
        top1=float(correct.mean()),
        top5=float(top5_correct(true, scores).mean()) if len(class_names) > TOP else None,
        mean_average_precision=float(np.mean(averages)),
        f1_micro=float(2 * hits.sum() / totals.sum()),
        f1_macro=float(f1[support > 0].mean()),
        per_class=per_class,
        majority_top1=float(support.max() / len(true)),
        majority_class=class_names[int(support.argmax())],
        ece=expected_calibration_error(np.where(correct, predicted, -1), scores),
        num_images=len(true),
        activation=activation,
        without=int((~assigned.any(axis=1)).sum()),
    )


def assigned_labels(probabilities: npt.ArrayLike, activation: Activation = "softmax") -> npt.NDArray[np.bool_]:
    """(N, K) whether each class is assigned to an image, by ``ASSIGNMENT_RULES``. With sigmoid maybe none."""
    scores = np.asarray(probabilities)
    scale = scores.max(axis=1, keepdims=True) if activation == "softmax" else 1.0
    assigned: npt.NDArray[np.bool_] = scores >= _THRESHOLD * scale
    return assigned
