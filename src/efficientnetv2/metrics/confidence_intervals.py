"""Confidence intervals: Wilson's of a fraction, and the bootstrap of metrics and of paired differences.

A draw is a count of each sampling unit (an image, or a cluster of images that are not independent), and all metrics of
it are one sparse product. ``scipy.stats.bootstrap`` draws the images themselves, and takes 3 to 13 times as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array
from scipy.stats import norm, t

from efficientnetv2.utils.random_key import Floats, Key

Interval = tuple[float, float]
#: Standard normal quantile of two-sided 95 % intervals.
Z95 = NormalDist().inv_cdf(0.975)
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
# Number of bootstrap draws. Ours.
DRAWS = 2000
# Resampled counts in memory together (32 MB). Ours.
CELLS_AT_ONCE = 4_000_000
# The multilabel bootstrap ranks all images in each draw, so it draws less often on large datasets: at most this many
# probabilities in total, a few seconds, and no interval with fewer than this many draws. Ours.
_MAX_RANKED, _MIN_DRAWS = 500_000_000, 200


def wilson_interval(fraction: float, n: int) -> Interval:
    """The 95 % interval of a fraction of ``n`` ≥ 1 independent images. Source: Wilson, JASA 22 (1927)."""
    center = (fraction + Z95 * Z95 / (2 * n)) / (1 + Z95 * Z95 / n)
    half = Z95 / (1 + Z95 * Z95 / n) * math.sqrt(fraction * (1 - fraction) / n + (Z95 / (2 * n)) ** 2)
    # At fractions 0 and 1 an end equals the fraction except for rounding.
    return (min(max(0.0, center - half), fraction), max(min(1.0, center + half), fraction))


@dataclass(frozen=True)
class Difference:
    """Difference of a metric between two models on the same images, first minus second, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    @property
    def points(self) -> str:
        """``+5.0 points (+1.0 to +9.0)``."""
        return f"{100 * self.value:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def cluster_bootstrap(
    labels: Ints, predictions: Ints, clusters: Ints, num_classes: int, *, key: Key
) -> dict[str, Interval]:
    """95 % intervals of metrics, with whole clusters of (N,) ids drawn.

    Classes k with an image have ``f1:k``, ``recall:k`` and, if predicted, ``precision:k``.

    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8; for few clusters see
        ``widen_interval``.
    """
    per_class = ("f1", "recall", "precision")
    values, draws = _draw_metrics(labels, [predictions], clusters, num_classes, key, per_class)
    count = num_clusters(clusters)
    return {
        name: widen_interval(float(values[name][0]), percentile_interval(drawn[:, 0]), count, minimum=0.0)
        for name, drawn in draws.items()
    }


def paired_bootstrap(
    labels: Ints, first: Ints, second: Ints, clusters: Ints, num_classes: int, *, key: Key
) -> dict[str, Difference]:
    """Differences between two models, (N,) predictions ``first`` minus ``second``, with whole clusters drawn.

    Source: the percentile bootstrap of pairs; Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13; for
        few clusters see ``widen_interval``.
    """
    values, draws = _draw_metrics(labels, [first, second], clusters, num_classes, key, ("f1",))
    count, differences = num_clusters(clusters), {}
    for name, drawn in draws.items():
        value = float(values[name][0] - values[name][1])
        interval = percentile_interval(drawn[:, 0] - drawn[:, 1])
        differences[name] = Difference(value, *widen_interval(value, interval, count, minimum=-1.0))
    return differences


def unit_counts(labels: Ints, predictions: list[Ints], clusters: Ints, num_classes: int) -> tuple[csr_array, Ints]:
    """Sampling units: (units, models * 3 * K) correct, true and predicted images, and the multiplicity of each unit.

    Single images with equal label and predictions are one unit.
    """
    table = np.stack([labels, *predictions], axis=1)
    _, cluster_of, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    single = sizes[cluster_of] == 1
    kinds, counts = np.unique(table[single], axis=0, return_counts=True)
    clustered = np.unique(cluster_of[~single], return_inverse=True)[1]
    table = np.concatenate([kinds, table[~single]])
    unit_of = np.concatenate([np.arange(len(kinds)), len(kinds) + clustered])
    counts = np.concatenate([counts, np.ones(clustered.max(initial=-1) + 1, dtype=np.int64)])
    true = table[:, 0]
    rows, columns = [], []
    for model in range(len(predictions)):
        predicted = table[:, model + 1]
        correct = true == predicted
        start = 3 * num_classes * model
        rows += [unit_of[correct], unit_of, unit_of]
        columns += [start + true[correct], start + num_classes + true, start + 2 * num_classes + predicted]
    places = (np.concatenate(rows), np.concatenate(columns))
    shape = (len(counts), 3 * num_classes * len(predictions))
    return csr_array((np.ones(len(places[0])), places), shape=shape), counts


def metrics_from_counts(sums: Floats) -> dict[str, Floats]:
    """Metrics from (..., 3, K) counts of correct, true and predicted images; NaN for a class without images."""
    correct, true, predicted = np.moveaxis(sums, -2, 0)
    absent = true == 0
    per_class = {
        "f1": np.where(absent, np.nan, 2 * correct / np.maximum(true + predicted, 1)),
        "recall": np.where(absent, np.nan, correct / np.maximum(true, 1)),
        "precision": np.where(predicted == 0, np.nan, correct / np.maximum(predicted, 1)),
    }
    metrics = {
        "top1": correct.sum(axis=-1) / np.maximum(true.sum(axis=-1), 1),
        "macro_f1": np.nanmean(per_class["f1"], axis=-1),
        "balanced_accuracy": np.nanmean(per_class["recall"], axis=-1),
    }
    for name, values in per_class.items():
        metrics |= {f"{name}:{k}": values[..., k] for k in range(values.shape[-1])}
    return metrics


def macro_intervals(confusion: coo_array, *, key: Key, draws: int) -> tuple[Interval, Interval]:
    """Intervals of macro-F1 and balanced accuracy, with single images drawn from a (K, K) confusion matrix."""
    rows, columns = confusion.row, confusion.col
    present = np.unique(rows)  # a class without a true image has no metric
    masks = (rows == columns, np.ones(len(rows), dtype=bool), np.isin(columns, present))
    units = np.concatenate([np.flatnonzero(mask) for mask in masks])
    places = np.concatenate(
        [
            number * len(present) + np.searchsorted(present, ids[mask])
            for number, (mask, ids) in enumerate(zip(masks, (rows, rows, columns), strict=True))
        ]
    )
    cells = csr_array((np.ones(len(units)), (units, places)), shape=(len(rows), 3 * len(present)))
    f1, recall = np.empty((2, draws))
    for part, times in _multinomial(confusion.data, max(1, CELLS_AT_ONCE // max(cells.shape)), key, draws):
        # Only the means are kept: 2,000 draws of all classes of ImageNet-21k would be a gigabyte.
        sums = np.ascontiguousarray(times @ cells).reshape(len(times), 3, len(present))
        metrics = metrics_from_counts(sums)
        f1[part], recall[part] = metrics["macro_f1"], metrics["balanced_accuracy"]
    return percentile_interval(f1), percentile_interval(recall)


def multilabel_bootstrap(
    labels: Ints,
    assigned: Bools,
    probabilities: npt.NDArray[np.floating[Any]],
    correct: Bools,
    clusters: Ints,
    *,
    key: Key,
) -> dict[str, Interval]:
    """95 % intervals of multilabel metrics, with whole clusters drawn; empty where 200 draws take too long.

    ``labels`` are (N, M), padded with -1; ``correct`` is (N,) whether the most probable class is a label.
    """
    images, classes = assigned.shape
    draws = min(DRAWS, _MAX_RANKED // (images * classes))
    if draws < _MIN_DRAWS:
        return {}
    units, unit_of = np.unique(clusters, return_inverse=True)
    true = np.zeros((images, classes), dtype=bool)
    true[np.nonzero(labels >= 0)[0], labels[labels >= 0]] = True
    cells = csr_array(np.hstack([true & assigned, true, assigned]).astype(np.int64))
    present = np.flatnonzero(true.any(axis=0)).tolist()
    generator, at_once = key.generator(), max(1, CELLS_AT_ONCE // max(images, 3 * classes))

    def metrics(times: Ints) -> dict[str, Floats]:
        precision = [_average_precision(times, true[:, k], probabilities[:, k]) for k in present]
        hits, positives, predicted = np.moveaxis((times @ cells).reshape(len(times), 3, classes), 1, 0)
        f1 = np.where(positives > 0, 2 * hits / np.maximum(positives + predicted, 1), np.nan)
        return {
            "top1": times @ correct / times.sum(axis=1),
            "mean_average_precision": np.nanmean(np.stack(precision), axis=0),
            "f1_micro": 2 * hits.sum(axis=1) / np.maximum((positives + predicted).sum(axis=1), 1),
            "f1_macro": np.nanmean(f1, axis=1),
        }

    parts: list[dict[str, Floats]] = []
    for start in range(0, draws, at_once):
        drawn = [generator.integers(0, len(units), len(units)) for _ in range(min(at_once, draws - start))]
        times = np.stack([np.bincount(draw, minlength=len(units)) for draw in drawn])
        parts.append(metrics(times[:, unit_of]))
    count, intervals = num_clusters(clusters), {}
    for name, value in metrics(np.ones((1, images), dtype=np.int64)).items():
        interval = percentile_interval(np.concatenate([part[name] for part in parts]))
        intervals[name] = widen_interval(float(value[0]), interval, count, minimum=0.0)
    return intervals


def num_clusters(clusters: Ints) -> int | None:
    """Number of clusters; None if no two images share one, or all do."""
    count = len(np.unique(clusters))
    return count if 1 < count < len(clusters) else None


def widen_interval(value: float, interval: Interval, clusters: int | None, *, minimum: float) -> Interval:
    """Widen a cluster bootstrap interval for a small number of clusters; None leaves it.

    The bootstrap underestimates the spread of c clusters by the root of (c - 1) / c, and Student's t with c - 1
    degrees of freedom replaces the normal distribution. The result stays within ``minimum`` and 1.

    Source: Davison and Hinkley, as above, section 2.3; Cameron, Gelbach and Miller, Bootstrap-based improvements for
        inference with clustered errors (2008).
    """
    if clusters is None:
        return interval
    factor = t.ppf(0.975, clusters - 1) / norm.ppf(0.975) * math.sqrt(clusters / (clusters - 1))
    low, high = (value + factor * (end - value) for end in interval)
    return float(max(minimum, min(low, interval[0]))), float(min(1.0, max(high, interval[1])))


def percentile_interval(values: Floats) -> Interval:
    """The central 95 % of the draws; NaN draws do not count."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def _draw_metrics(
    labels: Ints, predictions: list[Ints], clusters: Ints, num_classes: int, key: Key, per_class: tuple[str, ...]
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """(models,) values of each metric on all images, and (draws, models) values on the drawn ones."""
    cells, counts = unit_counts(labels, predictions, clusters, num_classes)
    values = metrics_from_counts((counts @ cells).reshape(len(predictions), 3, num_classes))
    present = np.unique(labels)
    classes = {"precision": np.intersect1d(present, np.concatenate(predictions))}
    names = ["top1", "macro_f1", "balanced_accuracy"]
    names += [f"{metric}:{k}" for metric in per_class for k in classes.get(metric, present).tolist()]
    drawn = {name: np.empty((DRAWS, len(predictions))) for name in names}
    for part, times in _multinomial(counts, max(1, CELLS_AT_ONCE // max(cells.shape)), key, DRAWS):
        found = metrics_from_counts((times @ cells).reshape(len(times), len(predictions), 3, num_classes))
        for name in names:
            drawn[name][part] = found[name]
    return values, drawn


def _multinomial(counts: Ints, at_once: int, key: Key, draws: int) -> Iterator[tuple[slice, Ints]]:
    """Slices of the draws, and (part, units) how often each unit was drawn."""
    generator, total = key.generator(), int(counts.sum())
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        yield slice(start, start + size), generator.multinomial(total, counts / total, size=size)


def _average_precision(times: Ints, true: Bools, probabilities: npt.NDArray[np.floating[Any]]) -> Floats:
    """(draws,) average precision of a class from (draws, N) multiplicities; equal probabilities share one rank."""
    order = np.argsort(-probabilities, kind="stable")
    ranks, positive = -probabilities[order], true[order]
    positive_ranks = ranks[positive]
    predicted = times[:, order].cumsum(axis=1)[:, np.searchsorted(ranks, positive_ranks, side="right") - 1]
    positives = times[:, order[positive]]
    hits = positives.cumsum(axis=1)[:, np.searchsorted(positive_ranks, positive_ranks, side="right") - 1]
    total = positives.sum(axis=1)
    summed = (positives * hits / np.maximum(predicted, 1)).sum(axis=1)
    found: Floats = np.where(total > 0, summed / np.maximum(total, 1), np.nan)
    return found
