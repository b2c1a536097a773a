"""How far chance reaches where pictures hang together, and between two answers to the same pictures.

``intervals.bootstrap`` takes pictures for independent. Those of one place or one patient are not: chance draws the
place, and all its pictures with it. And two answers to the same pictures are right and wrong together, so that their
difference varies less than either.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficientnetv2.base.keys import Floats, Key
from efficientnetv2.metrics.intervals import CELLS_AT_ONCE, Interval

Ints = npt.NDArray[np.int64]

# Draws of the bootstrap, as in metrics.intervals. Ours.
_DRAWS = 2000


@dataclass(frozen=True)
class Difference:
    """Of a figure between two answers to the same pictures.

    Args:
        value: the first's less the second's.
        low, high: the 95 % interval.
    """

    value: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether chance in the choice of pictures does not explain it."""
        return self.low > 0 or self.high < 0


def clustered(
    labels: Ints, answers: Ints, clusters: Ints, num_classes: int, *, key: Key
) -> dict[str, Interval]:
    """95 % intervals of ``top1``, ``macro_f1`` and ``balanced_accuracy``, clusters of pictures drawn as one.

    Args:
        labels: (N,) true classes.
        answers: (N,) classes.
        clusters: (N,) equal where pictures hang together.
        num_classes: K.
        key: of the resampling.

    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8: whole clusters are drawn
        with replacement.
    """
    drawn = _drawn(labels, [answers], clusters, num_classes, key)
    return {name: _percentiles(values[:, 0]) for name, values in drawn.items()}


def paired(
    labels: Ints, one: Ints, other: Ints, clusters: Ints, num_classes: int, *, key: Key
) -> dict[str, Difference]:
    """How much better one answers than the other: ``top1``, ``macro_f1`` and ``balanced_accuracy``.

    Args:
        labels: (N,) true classes.
        one: (N,) classes that the first answers.
        other: (N,) classes that the second answers to the same pictures.
        clusters: (N,) equal where pictures hang together; all different where none do.
        num_classes: K.
        key: of the resampling.

    Source: the percentile bootstrap of pairs; Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    drawn = _drawn(labels, [one, other], clusters, num_classes, key)
    whole = _scores(
        np.concatenate([_counts(labels, each, num_classes) for each in (one, other)]).reshape(1, 2, 3, -1)
    )
    return {
        name: Difference(
            float(whole[name][0, 0] - whole[name][0, 1]), *_percentiles(values[:, 0] - values[:, 1])
        )
        for name, values in drawn.items()
    }


def _counts(labels: Ints, answers: Ints, num_classes: int) -> Floats:
    """(3, K): pictures right, true and called, of each class."""
    parts = (labels[labels == answers], labels, answers)
    return np.stack([np.bincount(part, minlength=num_classes) for part in parts]).astype(np.float64)


def _drawn(
    labels: Ints, answers: list[Ints], clusters: Ints, num_classes: int, key: Key
) -> dict[str, Floats]:
    """Figures of each draw: name → (draws, answers)."""
    units, of_picture = np.unique(clusters, return_inverse=True)
    table = np.zeros((len(units), len(answers), 3, num_classes))
    rows = np.arange(len(labels))
    for place, each in enumerate(answers):
        right = labels == each
        for kind, (chosen, classes) in enumerate(
            ((rows[right], labels[right]), (rows, labels), (rows, each))
        ):
            np.add.at(table, (of_picture[chosen], place, kind, classes), 1.0)
    # Units alike in every number are drawn together: a million lone pictures are few kinds of them.
    kinds, counts = np.unique(table.reshape(len(units), -1), axis=0, return_counts=True)
    generator = key.generator()
    at_once = max(1, CELLS_AT_ONCE // max(len(counts), kinds.shape[1]))
    parts = []
    for start in range(0, _DRAWS, at_once):
        size = min(at_once, _DRAWS - start)
        times = generator.multinomial(len(units), counts / len(units), size=size)
        parts.append(_scores((times @ kinds).reshape(size, len(answers), 3, num_classes)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _scores(sums: Floats) -> dict[str, Floats]:
    """Figures from (draws, answers, 3, K) pictures right, true and called; a class without a picture is left out."""
    right, true, called = np.moveaxis(sums, 2, 0)
    absent = true == 0
    f1 = np.where(absent, np.nan, 2 * right / np.maximum(true + called, 1))
    recall = np.where(absent, np.nan, right / np.maximum(true, 1))
    return {
        "top1": right.sum(axis=-1) / np.maximum(true.sum(axis=-1), 1),
        "macro_f1": np.nanmean(f1, axis=-1),
        "balanced_accuracy": np.nanmean(recall, axis=-1),
    }


def _percentiles(values: Floats) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
