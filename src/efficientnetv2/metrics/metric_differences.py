"""Differences of metrics between two models with intervals and tests, on the same images or on independent ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import binomtest

from efficientnetv2.metrics.confidence_intervals import (
    CELLS_AT_ONCE,
    DRAWS,
    Difference,
    Ints,
    metrics_from_counts,
    num_clusters,
    paired_bootstrap,
    unit_counts,
)
from efficientnetv2.utils.random_key import Floats, Key

# Significance level of the tests.
_LEVEL = 0.05
# Metrics in which an image counts by its class.
_MACRO = ("macro_f1", "balanced_accuracy")
# Units up to which all swaps are enumerated; with one more there are more swaps than draws.
_MAX_ENUMERATED = DRAWS.bit_length()
# Differences this close count as equal.
_ROUNDING = 1e-9


def paired_difference(
    labels: Ints, first: Ints, second: Ints, clusters: Ints, num_classes: int, *, key: Key
) -> dict[str, Difference]:
    """``paired_bootstrap`` intervals that are safe for few clusters and few differing predictions.

    An interval is the union of two: of single images and of whole clusters, whose (N,) ids are all different, or all
    equal, without clusters. It reaches 0 unless an exact test finds a difference too: a sign test for top-1 and for a
    class (at 5 % over the number of classes), and a test that swaps predictions for macro metrics. With clusters both
    the images and the clusters must pass.
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
    passed = set(certain)
    for number, units in enumerate(levels):
        if not passed.isdisjoint(_MACRO):
            p_values = _swap_test(labels, first, second, units, num_classes, key.fold("swaps", number))
            passed -= {name for name in _MACRO if p_values[name] >= _LEVEL}
        passed = {name for name in passed if name in _MACRO or _sign_test(name, labels, first, second, units)}
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


def _sign_test(name: str, labels: Ints, first: Ints, second: Ints, units: Ints) -> bool:
    """Whether a sign test over (N,) unit ids finds a difference in ``top1`` or ``f1:k``.

    Source: McNemar's test, exact by the binomial distribution; of clusters, the sign test on which model is right
        more often in each.
    """
    metric, _, class_id = name.partition(":")
    correct = [predictions == labels for predictions in (first, second)]
    level = _LEVEL
    if metric == "f1":
        k = int(class_id)
        # Correct about the class: of it and predicted so, or neither.
        correct = [(predictions == k) == (labels == k) for predictions in (first, second)]
        level /= len(np.unique(labels))
    gained = np.bincount(units, weights=correct[0] & ~correct[1])
    lost = np.bincount(units, weights=correct[1] & ~correct[0])
    better, worse = int((gained > lost).sum()), int((lost > gained).sum())
    return better + worse > 0 and bool(binomtest(better, better + worse).pvalue < level)


def _swap_test(labels: Ints, first: Ints, second: Ints, units: Ints, num_classes: int, key: Key) -> dict[str, float]:
    """Two-sided p-value of each macro metric: the predictions of both models are swapped unit by unit.

    All swaps are enumerated if there are few, else as many as bootstrap draws are random. (scipy's permutation_test
    swaps single images, without clusters, and takes 17 times as long.)

    Source: Fisher's randomization test of pairs, The Design of Experiments (1935), section 21; with the observed
        difference among the draws, as Davison and Hinkley, section 4.2, have it.
    """
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
    parts: dict[str, list[Floats]] = {name: [] for name in _MACRO}
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
