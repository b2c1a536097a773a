"""Whether one network answers the same pictures better than another, beyond what chance in their choice explains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import binomtest

from efficientnetv2.metrics.bootstrap import (
    DRAWS,
    Difference,
    Ints,
    metrics_from_counts,
    paired_bootstrap,
    unit_counts,
)
from efficientnetv2.metrics.confidence_intervals import CELLS_AT_ONCE
from efficientnetv2.utils.rng import Floats, Key

# Of the tests: what the intervals leave out.
_LEVEL = 0.05
# Figures in which a picture counts for more or less by its class.
_OVER_CLASSES = ("macro_f1", "balanced_accuracy")
# Units whose answers are swapped in all ways; of one more these would be more than the draws.
_IN_ALL_WAYS = DRAWS.bit_length()
_ROUNDING = 1e-9  # up to which two differences count as equal


def paired_difference(
    labels: Ints, one: Ints, other: Ints, clusters: Ints, num_classes: int, *, key: Key
) -> dict[str, Difference]:
    """``paired_bootstrap``, an interval reaching as far as the wider of two: chance drew pictures, or whole clusters of them.

    Of few clusters the second alone would be too narrow: four that differ alike would leave nothing to chance. Of few
    pictures that the two answer differently either is: drawn anew they stay as they are, so that one picture can look
    certain. An interval reaches 0 unless an exact test on these pictures finds a difference too: of top-1 and of a
    class a sign test, of a class at 5 % over the number of classes; of means over classes, to which a rare class's
    picture adds more, one that swaps the answers. So must one on the clusters, each of which speaks in the sign test
    for the answers that are right more often there.

    Args:
        labels: (N,) true classes.
        one: (N,) classes that the first answers.
        other: (N,) classes that the second answers to the same pictures.
        clusters: (N,) equal where pictures hang together; all different, or all equal, where none do.
        num_classes: K.
        key: of the resampling.
    """
    pictures = np.arange(len(labels), dtype=np.int64)
    found = paired_bootstrap(labels, one, other, pictures, num_classes, key=key)
    units = [pictures]
    if 1 < len(np.unique(clusters)) < len(labels):
        units = [pictures, np.unique(clusters, return_inverse=True)[1]]
        whole = paired_bootstrap(labels, one, other, clusters, num_classes, key=key.fold("together"))
        found = {
            name: Difference(one.value, min(one.low, whole[name].low), max(one.high, whole[name].high))
            for name, one in found.items()
        }
    certain = {name for name, difference in found.items() if difference.certain}
    for number, each in enumerate(units):
        by_chance = (
            {}
            if certain.isdisjoint(_OVER_CLASSES)
            else _swapped(labels, one, other, each, num_classes, key.fold("swaps", number))
        )
        certain = {
            name
            for name in certain
            if (by_chance[name] < _LEVEL if name in by_chance else _signed(name, labels, one, other, each))
        }
    return {
        name: difference
        if not difference.certain or name in certain
        else Difference(difference.value, min(difference.low, 0.0), max(difference.high, 0.0))
        for name, difference in found.items()
    }


def unpaired_difference(one: Sequence[float], other: Sequence[float]) -> Difference:
    """The difference of a metric between two independent samples, from the interval of each.

    Args:
        one: value, low and high end of the 95 % interval on the first sample.
        other: The same three numbers on the second sample.

    Returns:
        The first value minus the second, with its 95 % interval.

    Example:
        >>> independent((0.9, 0.8, 0.95), (0.9, 0.8, 0.95)).value
        0.0

    Source: Newcombe, Interval estimation for the difference between independent proportions (1998), method 10; of other
        metrics than shares: Zou and Donner, Construction of confidence limits about effect measures (2008).
    """
    (a, a_low, a_high), (b, b_low, b_high) = one, other
    return Difference(
        a - b,
        a - b - math.hypot(a - a_low, b_high - b),
        a - b + math.hypot(a_high - a, b - b_low),
    )


def _signed(name: str, labels: Ints, one: Ints, other: Ints, units: Ints) -> bool:
    """Whether the sign test on the units that the two answer differently finds a difference in top-1, or in a class.

    Args:
        name: of the figure, ``top1`` or ``f1:k``.
        labels: (N,) true classes.
        one: (N,) answers of the first.
        other: (N,) answers of the second.
        units: (N,) from 0: of each picture, or of each cluster of them.

    Source: McNemar's test, exact by the binomial distribution; of clusters, the sign test on what each has more of.
    """
    figure, _, of_class = name.partition(":")
    right, others_right = one == labels, other == labels
    level = _LEVEL
    if figure == "f1":
        k = int(of_class)
        # Right about the class: of it and called so, or neither.
        right, others_right = (one == k) == (labels == k), (other == k) == (labels == k)
        level /= len(np.unique(labels))
    gained, lost = (
        np.bincount(units, weights=each) for each in (right & ~others_right, others_right & ~right)
    )
    better, worse = int((gained > lost).sum()), int((lost > gained).sum())
    return better + worse > 0 and bool(binomtest(better, better + worse).pvalue < level)


def _swapped(
    labels: Ints, one: Ints, other: Ints, units: Ints, num_classes: int, key: Key
) -> dict[str, float]:
    """By name of each mean over classes: how often chance alone sets the two as far apart, either way.

    Were both as good, it would be chance which of the two gave which answers to a unit. So they are swapped, unit by
    unit: in all ways where these are few, else in so many at random.

    Args:
        labels: (N,) true classes.
        one: (N,) answers of the first.
        other: (N,) answers of the second.
        units: (N,) from 0: of each picture, or of each cluster of them.
        num_classes: K.
        key: of the draws.

    Source: Fisher's randomisation test of pairs, The Design of Experiments (1935), section 21; with the swap of none
        among the draws, as Davison and Hinkley, section 4.2, have it.
    """
    cells, counts = unit_counts(labels, [one, other], units, num_classes)
    width = 3 * num_classes
    mine, theirs = (counts @ cells).reshape(2, width)
    gain = csr_array(cells[:, :width] - cells[:, width:])
    gain.eliminate_zeros()
    unlike = np.flatnonzero(np.diff(gain.indptr))
    if counts[unlike].sum() <= _IN_ALL_WAYS:  # each by itself
        unlike = np.repeat(unlike, counts[unlike])
        counts = np.ones_like(counts)
    gain, counts = gain[unlike], counts[unlike]
    at_once = max(1, CELLS_AT_ONCE // max(len(counts), 2 * width))
    apart: dict[str, list[Floats]] = {name: [] for name in _OVER_CLASSES}
    for swaps in _swaps(counts, at_once, key):
        moved = swaps @ gain
        found = metrics_from_counts(
            np.stack([mine - moved, theirs + moved], axis=1).reshape(-1, 2, 3, num_classes)
        )
        for name, values in apart.items():
            values.append(np.abs(found[name][:, 0] - found[name][:, 1]))
    drawn = {name: np.concatenate(values) for name, values in apart.items()}
    return {name: float((values >= values[0] - _ROUNDING).mean()) for name, values in drawn.items()}


def _swaps(counts: Ints, at_once: int, key: Key) -> Iterator[Ints]:
    """(ways, kinds) of how many of each kind the answers are swapped, in parts; the first is of none.

    Args:
        counts: (kinds,) units of each kind that the two answer differently.
        at_once: ways of a part, at most.
        key: of the draws.
    """
    places = np.arange(len(counts))
    if counts.sum() <= _IN_ALL_WAYS:
        # Without the last: with it swapped, each way is the mirror image of another, and sets them as far apart.
        ways = np.arange(2 ** max(0, len(counts) - 1))
        for start in range(0, len(ways), at_once):
            yield ways[start : start + at_once, None] >> places & 1
        return
    generator = key.generator()
    yield np.zeros((1, len(counts)), dtype=np.int64)
    for start in range(0, DRAWS, at_once):
        yield generator.binomial(counts, 0.5, size=(min(at_once, DRAWS - start), len(counts)))
