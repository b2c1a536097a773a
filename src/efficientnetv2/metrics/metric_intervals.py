"""Confidence intervals of metrics, and of their differences between two models on the same or on other images."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array
from scipy.stats import binomtest

from efficientnetv2.metrics.classification import ClassificationMetrics, top5_correct
from efficientnetv2.metrics.confidence_intervals import (
    CELLS_AT_ONCE,
    DRAWS,
    Difference,
    Interval,
    Ints,
    cluster_bootstrap,
    macro_intervals,
    metrics_from_counts,
    multilabel_bootstrap,
    num_clusters,
    paired_bootstrap,
    unit_counts,
    wilson_interval,
)
from efficientnetv2.metrics.multilabel import Metrics, MultilabelMetrics, assigned_labels, is_correct
from efficientnetv2.utils.random_key import Floats, Key

# Rounding of sums of about sixty fractions; differences this close count as equal. Ours.
_ROUNDING = 1e-9
# Significance level of the tests.
_LEVEL = 0.05
# Metrics in which an image counts by its class.
_MACRO = ("macro_f1", "balanced_accuracy")
# Units up to which all swaps are enumerated; with one more there are more swaps than draws.
_MAX_ENUMERATED = DRAWS.bit_length()


def metric_intervals(
    metrics: Metrics, labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, clusters: Ints | None = None, key: Key
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


def _class_intervals(confusion: coo_array, present: Ints) -> tuple[Floats, Floats]:
    """F1 and recall of each present class: (classes, 3) value, low, high."""
    correct, true, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)

    def fractions(of: Ints) -> Floats:
        return np.array([(correct[k] / of[k], *wilson_interval(correct[k] / of[k], int(of[k]))) for k in present])

    overlap = fractions(true + predicted - correct)
    return 2 * overlap / (1 + overlap), fractions(true)


def _mean_interval(rows: Floats) -> Interval:
    """Interval of the mean of independent values from their intervals, (classes, 3) value, low, high."""
    value, low, high = rows.T
    below, above = (float(np.sqrt(((end - value) ** 2).sum()) / len(rows)) for end in (low, high))
    return max(0.0, float(value.mean()) - below), min(1.0, float(value.mean()) + above)


def _union(first: Interval, second: Interval) -> Interval:
    return min(first[0], second[0]), max(first[1], second[1])


def _cluster_intervals(metrics: Metrics, labels: Ints, scores: Floats, clusters: Ints, key: Key) -> dict[str, Interval]:
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
    metrics: MultilabelMetrics, labels: Ints, scores: Floats, clusters: Ints, key: Key
) -> dict[str, Interval]:
    correct = is_correct(labels, scores.argmax(axis=1))
    assigned = assigned_labels(scores, metrics.activation)
    return multilabel_bootstrap(labels, assigned, scores, correct, clusters, key=key)


def paired_difference(
    labels: Ints, first: Ints, second: Ints, clusters: Ints, num_classes: int, *, key: Key
) -> dict[str, Difference]:
    """``paired_bootstrap`` intervals that are safe for few clusters and few differing predictions.

    An interval is the union of two: of single images and of whole clusters, whose (N,) ids are all different, or all
    equal, without clusters. It reaches 0 unless an exact test finds a difference too: a sign test for top-1, and a test
    that swaps predictions for macro metrics and the F1 of a class (at 5 % over the number of classes). With clusters
    both the images and the clusters must pass.
    """
    images = np.arange(len(labels), dtype=np.int64)
    found = paired_bootstrap(labels, first, second, images, num_classes, key=key)
    levels = [images]
    if num_clusters(clusters) is not None:
        levels.append(np.unique(clusters, return_inverse=True)[1])
        clustered = paired_bootstrap(labels, first, second, clusters, num_classes, key=key.fold("together"))
        for name, each in found.items():
            other = clustered[name]
            found[name] = Difference(each.value, min(each.low, other.low), max(each.high, other.high))
    certain = [name for name, difference in found.items() if difference.certain]
    passed, of_class = set(certain), _LEVEL / max(1, len(np.unique(labels)))
    # As many random swaps give no smaller p-value. With more classes, a sign test is of one class against the others.
    swapped = _MACRO if of_class <= 1 / (DRAWS + 1) else (*_MACRO, "f1:")
    for number, units in enumerate(levels):
        by_swaps, p_values = {name for name in passed if name.startswith(swapped)}, dict[str, float]()
        if by_swaps:
            p_values = _swap_test(labels, first, second, units, by_swaps, num_classes, key.fold("swaps", number))
        p_values |= {name: _sign_test(name, labels, first, second, units) for name in passed - by_swaps}
        passed = {name for name in passed if p_values[name] < (of_class if ":" in name else _LEVEL)}
    for name in certain:
        if name not in passed:
            each = found[name]
            found[name] = Difference(each.value, min(each.low, 0.0), max(each.high, 0.0))
    return found


def unpaired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Difference of a metric between two independent samples, each given as value, low, high of its 95 % interval.

    Source: Newcombe, Interval estimation for the difference between independent proportions (1998), method 10; of
        other metrics: Zou and Donner, Construction of confidence limits about effect measures (2008).
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    below, above = math.hypot(a - a_low, b_high - b), math.hypot(a_high - a, b - b_low)
    return Difference(a - b, a - b - below, a - b + above)


def _sign_test(name: str, labels: Ints, first: Ints, second: Ints, units: Ints) -> float:
    """Two-sided p-value of McNemar's exact test (of clusters: which model is right more often in each)."""
    metric, _, class_id = name.partition(":")
    correct = [predictions == labels for predictions in (first, second)]
    if metric == "f1":
        k = int(class_id)
        # Correct about the class: of it and predicted so, or neither.
        correct = [(predictions == k) == (labels == k) for predictions in (first, second)]
    gained = np.bincount(units, weights=correct[0] & ~correct[1])
    lost = np.bincount(units, weights=correct[1] & ~correct[0])
    better, worse = int((gained > lost).sum()), int((lost > gained).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _swap_test(
    labels: Ints, first: Ints, second: Ints, units: Ints, names: Collection[str], num_classes: int, key: Key
) -> dict[str, float]:
    """Two-sided p-values of macro metrics and F1 of classes: the predictions of both are swapped unit by unit."""
    # Source: Fisher's randomization test of pairs, The Design of Experiments (1935), section 21; with the observed
    # difference among the draws, as Davison and Hinkley, section 4.2, have it. All swaps are enumerated if there are
    # few, else as many as bootstrap draws are random. (scipy's permutation_test swaps single images, without clusters,
    # and takes 17 times as long.)
    cells, counts = unit_counts(labels, [first, second], units, num_classes)
    width = 3 * num_classes
    first_sum, second_sum = (counts @ cells).reshape(2, width)
    gain = csr_array(cells[:, :width] - cells[:, width:])
    gain.eliminate_zeros()
    differing = np.flatnonzero(np.diff(gain.indptr))
    if counts[differing].sum() <= _MAX_ENUMERATED:
        differing = np.repeat(differing, counts[differing])
        counts = np.ones_like(counts)
    gain, counts = gain[differing], counts[differing]
    at_once = max(1, CELLS_AT_ONCE // max(len(counts), 2 * width))
    parts: dict[str, list[Floats]] = {name: [] for name in names}
    for swaps in _swaps(counts, at_once, key):
        moved = swaps @ gain
        sums = np.stack([first_sum - moved, second_sum + moved], axis=1)
        metrics = metrics_from_counts(sums.reshape(-1, 2, 3, num_classes))
        for name, values in parts.items():
            values.append(np.abs(metrics[name][:, 0] - metrics[name][:, 1]))
    differences = {name: np.concatenate(values) for name, values in parts.items()}
    return {name: float((values >= values[0] - _ROUNDING).mean()) for name, values in differences.items()}


def _swaps(counts: Ints, at_once: int, key: Key) -> Iterator[Ints]:
    """(swaps, units) how many of each unit are swapped, in parts; the first swap is of none."""
    places = np.arange(len(counts))
    if counts.sum() <= _MAX_ENUMERATED:
        # The last unit stays: swapping all units gives the same absolute difference.
        ways = np.arange(2 ** max(0, len(counts) - 1))
        for start in range(0, len(ways), at_once):
            yield ways[start : start + at_once, None] >> places & 1
        return
    generator = key.generator()
    yield np.zeros((1, len(counts)), dtype=np.int64)
    for start in range(0, DRAWS, at_once):
        yield generator.binomial(counts, 0.5, size=(min(at_once, DRAWS - start), len(counts)))
