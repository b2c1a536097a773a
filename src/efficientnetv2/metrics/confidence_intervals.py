"""How far chance reaches: 95 % intervals of the figures, as if other pictures had been drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from efficientnetv2.utils.rng import Floats, Key

if TYPE_CHECKING:  # which are computed with the intervals of shares
    from efficientnetv2.metrics.classification import ClassificationMetrics

Integers = npt.NDArray[np.int64]
Interval = tuple[float, float]

CELLS_AT_ONCE = 4_000_000  # resampled cells held in memory together (32 MB of counts): ours


def bootstrap_intervals(
    figures: ClassificationMetrics, *, key: Key, draws: int = 2000, level: float = 0.95
) -> dict[str, Interval]:
    """Intervals of ``top1``, ``top5``, ``macro_f1``, ``balanced_accuracy``, and of each class.

    ``top1``, ``top5`` and a class's recall and precision (producer's and user's accuracy) are plain shares and get
    Wilson's interval, which stays honest when all of a few pictures are right. So does a class's F1: it is
    2J / (1 + J) of the share J that is right of the pictures that are of the class or were called so, and its
    interval that of J, carried over.

    ``macro_f1`` and ``balanced_accuracy`` reach as far as the farther of two. A percentile bootstrap
    over pictures: every draw takes as many pictures as there are, with replacement. These figures see
    only how many pictures fell into each cell of the confusion matrix, so a draw is one of a
    multinomial over its cells, and no picture is touched. A draw without a class's pictures leaves
    that class out, as ``ClassificationMetrics`` does. It knows that a mistake costs two classes, but calls certain
    what was never wrong. And the classes' own intervals, put together as those of independent shares:
    they know the latter, but not the former.

    Pictures that belong together (one place, one patient) vary more than any of this says.

    Args:
        figures: of the pictures.
        key: of the resampling.
        draws: how many times to resample.
        level: share of such intervals that hold the true value.

    Returns:
        Name → (low, high). ``top5`` only where there is one; ``f1:NAME`` and ``recall:NAME`` only for classes with a
        picture, ``precision:NAME`` only for those of them that a picture was called.

    Source: Wilson, JASA 22 (1927); of F1, the indirect method of arXiv:2309.14621; Efron and Tibshirani, An
    Introduction to the Bootstrap, chapter 13; of several together, Zou and Donner, Statistics in Medicine 27 (2008);
    that the farther one counts is ours.
    """
    intervals = {"top1": wilson_interval(figures.top1, figures.pictures, level=level)}
    if figures.top5 is not None:
        intervals["top5"] = wilson_interval(figures.top5, figures.pictures, level=level)
    # Of each draw the means alone: of ImageNet-21k's classes, all of two thousand draws would be a gigabyte.
    drawn = [
        [np.nanmean(of_classes, axis=1) for of_classes in _scores(*sums)]
        for sums in _resampled(figures.confusion, key, draws)
    ]
    f1, recall = (np.concatenate(means) for means in zip(*drawn, strict=True))
    present = np.flatnonzero(figures.confusion.sum(axis=1))
    of_f1, of_recall = _of_classes(figures.confusion, present, level)
    intervals["macro_f1"] = _farther(_percentiles(f1, level), _mean_of(of_f1))
    intervals["balanced_accuracy"] = _farther(_percentiles(recall, level), _mean_of(of_recall))
    called, right = figures.confusion.sum(axis=0), figures.confusion.diagonal()
    for k, f1_of, recall_of in zip(present, of_f1, of_recall, strict=True):
        name = figures.class_names[k]
        intervals[f"f1:{name}"] = (float(f1_of[1]), float(f1_of[2]))
        intervals[f"recall:{name}"] = (float(recall_of[1]), float(recall_of[2]))
        if called[k]:
            share = float(right[k] / called[k])
            intervals[f"precision:{name}"] = wilson_interval(share, int(called[k]), level=level)
    return intervals


def _of_classes(confusion: coo_array, present: Integers, level: float) -> tuple[Floats, Floats]:
    """F1 and recall of each class that has a picture, with their intervals: (classes, 3) value, low, high."""
    right, true, called = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)

    def shares(of: Integers) -> Floats:
        rows = [
            (right[k] / of[k], *wilson_interval(right[k] / of[k], int(of[k]), level=level)) for k in present
        ]
        return np.array(rows)

    overlap = shares(true + called - right)
    return 2 * overlap / (1 + overlap), shares(true)


def _mean_of(rows: Floats) -> Interval:
    """Of the mean of independent values, from their own intervals; rows as of ``_of_classes``."""
    value, low, high = rows.T
    below, above = (float(np.sqrt(((end - value) ** 2).sum()) / len(rows)) for end in (low, high))
    return max(0.0, float(value.mean()) - below), min(1.0, float(value.mean()) + above)


def _farther(one: Interval, other: Interval) -> Interval:
    return min(one[0], other[0]), max(one[1], other[1])


def wilson_interval(share: float, pictures: int, *, level: float = 0.95) -> Interval:
    """The interval of a share of independent pictures: of all that could be drawn, how many are right.

    Args:
        share: found, 0 to 1.
        pictures: of how many, ≥ 1.
        level: share of such intervals that hold the true value.

    Source: Wilson, JASA 22 (1927), the score interval.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    shrunk = (share + z * z / (2 * pictures)) / (1 + z * z / pictures)
    half = z / (1 + z * z / pictures) * math.sqrt(share * (1 - share) / pictures + (z / (2 * pictures)) ** 2)
    # At shares 0 and 1 the ends meet the share but for rounding.
    return (min(max(0.0, shrunk - half), share), max(min(1.0, shrunk + half), share))


def _resampled(confusion: coo_array, key: Key, draws: int) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Of each draw and each class that has a true picture: pictures right, true, and predicted."""
    rows, columns, counts = confusion.row, confusion.col, confusion.data
    present, row_starts = np.unique(rows, return_index=True)
    right = np.flatnonzero(rows == columns)
    by_column = np.argsort(columns, kind="stable")
    named, column_starts = np.unique(columns[by_column], return_index=True)
    called = np.isin(named, present)  # a class without a true picture has no figure
    generator = key.generator()
    at_once = max(1, CELLS_AT_ONCE // len(counts))
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        cells = generator.multinomial(counts.sum(), counts / counts.sum(), size=size)
        hits, true, predicted = np.zeros((3, size, len(present)))
        hits[:, np.searchsorted(present, rows[right])] = cells[:, right]
        true[:] = np.add.reduceat(cells, row_starts, axis=1)
        of_column = np.add.reduceat(cells[:, by_column], column_starts, axis=1)
        predicted[:, np.searchsorted(present, named[called])] = of_column[:, called]
        yield hits, true, predicted


def _scores(hits: Floats, true: Floats, predicted: Floats) -> tuple[Floats, Floats]:
    """F1 and recall, (draws, classes); NaN where a draw has no picture of the class."""
    absent = true == 0
    f1 = np.where(absent, np.nan, 2 * hits / np.maximum(true + predicted, 1))
    recall = np.where(absent, np.nan, hits / np.maximum(true, 1))
    return f1, recall


def _percentiles(values: Floats, level: float) -> Interval:
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
