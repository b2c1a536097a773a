"""Confidence intervals of classification metrics, over single images and over clusters of images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from efficientnetv2.metrics.classification import ClassificationMetrics, Integers, top5_correct
from efficientnetv2.metrics.confidence_intervals import (
    DRAWS,
    Interval,
    cluster_bootstrap,
    macro_intervals,
    multilabel_bootstrap,
    num_clusters,
    wilson_interval,
)
from efficientnetv2.metrics.multilabel import Metrics, MultilabelMetrics, assigned_labels, is_correct
from efficientnetv2.utils.random_key import Floats, Key

# Rounding of sums of about sixty fractions. Ours.
_ROUNDING = 1e-9


def metric_intervals(
    metrics: Metrics, labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, clusters: Integers | None = None, key: Key
) -> dict[str, Interval]:
    """95 % intervals of what ``compute_metrics`` gave for the same labels and probabilities, by the metric's name.

    With (N,) cluster ids an interval is the union of two: of single images and of whole clusters. A few clusters that
    are right and wrong alike would alone give an interval that is too short.
    """
    true, scores = np.asarray(labels), np.asarray(probabilities)
    count = None if clusters is None else num_clusters(clusters)
    if not isinstance(metrics, MultilabelMetrics):
        intervals = bootstrap_intervals(metrics, key=key)
    else:
        single = np.arange(metrics.num_images, dtype=np.int64)
        intervals = _multilabel_intervals(metrics, true, scores, single, key)
        # Average precision of a few images is higher in the draws, which repeat images, than on all of them.
        values = {name: float(getattr(metrics, name)) for name in intervals}
        intervals = {name: _union(each, (values[name], values[name])) for name, each in intervals.items()}
        intervals |= accuracy_intervals(metrics)
    if clusters is not None and count is not None:
        by_cluster = _cluster_intervals(metrics, true, scores, clusters, key.fold("clusters"))
        intervals |= {name: _union(intervals[name], interval) for name, interval in by_cluster.items()}
    if not isinstance(metrics, MultilabelMetrics):
        return intervals
    # A multilabel metric that is equal in every draw is not certain: it gets Wilson's interval. Ours.
    for name, (low, high) in intervals.items():
        if high - low <= _ROUNDING:
            intervals[name] = wilson_interval(min(1.0, low), count or metrics.num_images)
    return intervals


def accuracy_intervals(metrics: Metrics) -> dict[str, Interval]:
    """Wilson's 95 % intervals of ``top1`` and, with more than five classes, ``top5``."""
    intervals = {"top1": wilson_interval(metrics.top1, metrics.num_images)}
    if metrics.top5 is not None:
        intervals["top5"] = wilson_interval(metrics.top5, metrics.num_images)
    return intervals


def bootstrap_intervals(metrics: ClassificationMetrics, *, key: Key, draws: int = DRAWS) -> dict[str, Interval]:
    """95 % intervals of the metrics and of each class (``f1:NAME``, ``recall:NAME``, ...), over single images.

    Accuracy, recall and precision are fractions and get Wilson's interval. F1 is 2J / (1 + J) of the fraction J of
    images that are correct among those of the class or predicted so, and so is its interval. ``macro_f1`` and
    ``balanced_accuracy`` get the union of two: a percentile bootstrap, which knows that an error costs two classes,
    and the combined intervals of the classes, which know that a class without errors is not certain.

    Source: Wilson, JASA 22 (1927); of F1, the indirect method of arXiv:2309.14621; Efron and Tibshirani, An
    Introduction to the Bootstrap, chapter 13; of means, Zou and Donner, Statistics in Medicine 27 (2008); the union is
    ours.
    """
    confusion = metrics.confusion
    intervals = accuracy_intervals(metrics)
    present = np.flatnonzero(confusion.sum(axis=1))
    f1, recall = _class_intervals(confusion, present)
    drawn_f1, drawn_recall = macro_intervals(confusion, key=key, draws=draws)
    intervals["macro_f1"] = _union(drawn_f1, _mean_interval(f1))
    intervals["balanced_accuracy"] = _union(drawn_recall, _mean_interval(recall))
    predicted, correct = confusion.sum(axis=0), confusion.diagonal()
    for k, f1_row, recall_row in zip(present, f1.tolist(), recall.tolist(), strict=True):
        name = metrics.class_names[k]
        intervals[f"f1:{name}"] = (f1_row[1], f1_row[2])
        intervals[f"recall:{name}"] = (recall_row[1], recall_row[2])
        if predicted[k]:
            fraction = float(correct[k] / predicted[k])
            intervals[f"precision:{name}"] = wilson_interval(fraction, int(predicted[k]))
    return intervals


def _class_intervals(confusion: coo_array, present: Integers) -> tuple[Floats, Floats]:
    """F1 and recall of each present class: (classes, 3) value, low, high."""
    correct, true, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)

    def fractions(of: Integers) -> Floats:
        rows = [(correct[k] / of[k], *wilson_interval(correct[k] / of[k], int(of[k]))) for k in present]
        return np.array(rows)

    overlap = fractions(true + predicted - correct)
    return 2 * overlap / (1 + overlap), fractions(true)


def _mean_interval(rows: Floats) -> Interval:
    """Interval of the mean of independent values from their intervals, (classes, 3) value, low, high."""
    value, low, high = rows.T
    below, above = (float(np.sqrt(((end - value) ** 2).sum()) / len(rows)) for end in (low, high))
    return max(0.0, float(value.mean()) - below), min(1.0, float(value.mean()) + above)


def _union(first: Interval, second: Interval) -> Interval:
    return min(first[0], second[0]), max(first[1], second[1])


def _cluster_intervals(
    metrics: Metrics, labels: Integers, scores: Floats, clusters: Integers, key: Key
) -> dict[str, Interval]:
    predictions = scores.argmax(axis=1).astype(np.int64)
    accuracies = {}
    if isinstance(metrics, MultilabelMetrics):
        intervals = _multilabel_intervals(metrics, labels, scores, clusters, key)
        accuracies["top1"] = is_correct(labels, predictions)  # also if nothing else is resampled
    else:
        names, intervals = metrics.class_names, {}
        for name, interval in cluster_bootstrap(labels, predictions, clusters, len(names), key=key).items():
            metric, per_class, k = name.partition(":")
            intervals[f"{metric}:{names[int(k)]}" if per_class else name] = interval
    if metrics.top5 is not None:
        accuracies["top5"] = top5_correct(labels, scores)
    ones = np.ones(len(labels), dtype=np.int64)
    for name, correct in accuracies.items():
        found = cluster_bootstrap(ones, correct.astype(np.int64), clusters, 2, key=key.fold(name))
        intervals[name] = found["top1"]
    return intervals


def _multilabel_intervals(
    metrics: MultilabelMetrics, labels: Integers, scores: Floats, clusters: Integers, key: Key
) -> dict[str, Interval]:
    correct = is_correct(labels, scores.argmax(axis=1))
    assigned = assigned_labels(scores, metrics.activation)
    return multilabel_bootstrap(labels, assigned, scores, correct, clusters, key=key)
