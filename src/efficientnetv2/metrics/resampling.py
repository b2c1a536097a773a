"""How far chance reaches where pictures hang together, and between two answers to the same pictures.

``intervals.bootstrap`` takes pictures for independent. Those of one place or one patient are not: chance draws the
place, and all its pictures with it. And two answers to the same pictures are right and wrong together, so that their
difference varies less than either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.stats import norm, t

from efficientnetv2.base.keys import Floats, Key
from efficientnetv2.metrics.intervals import CELLS_AT_ONCE, Interval

Ints = npt.NDArray[np.int64]

# Draws of the bootstrap, as in metrics.intervals. Ours.
DRAWS = 2000


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
    """95 % intervals of figures, clusters of pictures drawn as one.

    Args:
        labels: (N,) true classes.
        answers: (N,) classes.
        clusters: (N,) equal where pictures hang together.
        num_classes: K.
        key: of the resampling.

    Returns:
        ``top1``, ``macro_f1``, ``balanced_accuracy``; ``f1:k`` and ``recall:k`` of each class k that has a picture,
        ``precision:k`` only of those of them that a picture was called, as ``intervals.bootstrap`` has them by name.

    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8: whole clusters are drawn
        with replacement; for few of them see ``stretched``.
    """
    drawn = _drawn(labels, [answers], clusters, num_classes, key, of_classes=("f1", "recall", "precision"))
    whole = _of_all(labels, [answers], num_classes)
    count = few(clusters)
    return {
        name: stretched(float(whole[name][0, 0]), percentiles(values[:, 0]), count, least=0.0)
        for name, values in drawn.items()
    }


def paired(
    labels: Ints, one: Ints, other: Ints, clusters: Ints, num_classes: int, *, key: Key
) -> dict[str, Difference]:
    """How much better one answers than the other.

    Args:
        labels: (N,) true classes.
        one: (N,) classes that the first answers.
        other: (N,) classes that the second answers to the same pictures.
        clusters: (N,) equal where pictures hang together; all different where none do.
        num_classes: K.
        key: of the resampling.

    Returns:
        ``top1``, ``macro_f1``, ``balanced_accuracy``, and ``f1:k`` of each class k that has a picture.

    Source: the percentile bootstrap of pairs; Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13; for
        few clusters see ``stretched``.
    """
    drawn = _drawn(labels, [one, other], clusters, num_classes, key, of_classes=("f1",))
    whole, count = _of_all(labels, [one, other], num_classes), few(clusters)
    found = {}
    for name, values in drawn.items():
        value = float(whole[name][0, 0] - whole[name][0, 1])
        reach = percentiles(values[:, 0] - values[:, 1])
        found[name] = Difference(value, *stretched(value, reach, count, least=-1.0))
    return found


def cells_of(
    labels: Ints, answers: list[Ints], clusters: Ints, num_classes: int
) -> tuple[csr_array, npt.NDArray[np.int64]]:
    """What is drawn: (units, answers * 3 * K) pictures right, true and called, and how many units there are of each.

    Lone pictures of the same label and the same answers are one unit: a million of them are few kinds, whatever hangs
    together beside them.
    """
    table = np.stack([labels, *answers], axis=1)
    _, of_picture, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    lone = sizes[of_picture] == 1
    kinds, counts = np.unique(table[lone], axis=0, return_counts=True)
    together = np.unique(of_picture[~lone], return_inverse=True)[1]
    table = np.concatenate([kinds, table[~lone]])
    of_picture = np.concatenate([np.arange(len(kinds)), len(kinds) + together])
    counts = np.concatenate([counts, np.ones(together.max(initial=-1) + 1, dtype=np.int64)])
    true = table[:, 0]
    rows, columns = [], []
    for place in range(len(answers)):
        called = table[:, place + 1]
        hit = true == called
        start = 3 * num_classes * place
        rows += [of_picture[hit], of_picture, of_picture]
        columns += [start + true[hit], start + num_classes + true, start + 2 * num_classes + called]
    places = (np.concatenate(rows), np.concatenate(columns))
    shape = (len(counts), 3 * num_classes * len(answers))
    return csr_array((np.ones(len(places[0])), places), shape=shape), counts


def _drawn(
    labels: Ints,
    answers: list[Ints],
    clusters: Ints,
    num_classes: int,
    key: Key,
    *,
    of_classes: tuple[str, ...],
) -> dict[str, Floats]:
    """Figures of each draw: name → (draws, answers); of classes those figures that are asked for."""
    cells, counts = cells_of(labels, answers, clusters, num_classes)
    units, generator = int(counts.sum()), key.generator()
    at_once = max(1, CELLS_AT_ONCE // max(cells.shape))
    there = np.unique(labels)
    classes = {"precision": np.intersect1d(there, np.concatenate(answers))}
    names = ["top1", "macro_f1", "balanced_accuracy"]
    names += [f"{figure}:{k}" for figure in of_classes for k in classes.get(figure, there).tolist()]
    parts = []
    for start in range(0, DRAWS, at_once):
        size = min(at_once, DRAWS - start)
        times = generator.multinomial(units, counts / units, size=size)
        found = scores((times @ cells).reshape(size, len(answers), 3, num_classes))
        parts.append({name: found[name].copy() for name in names})  # a view would keep all classes
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def scores(sums: Floats) -> dict[str, Floats]:
    """Figures from (draws, answers, 3, K) pictures right, true and called; a class without a picture is left out."""
    right, true, called = np.moveaxis(sums, 2, 0)
    absent = true == 0
    of_classes = {
        "f1": np.where(absent, np.nan, 2 * right / np.maximum(true + called, 1)),
        "recall": np.where(absent, np.nan, right / np.maximum(true, 1)),
        "precision": np.where(called == 0, np.nan, right / np.maximum(called, 1)),
    }
    return {
        "top1": right.sum(axis=-1) / np.maximum(true.sum(axis=-1), 1),
        "macro_f1": np.nanmean(of_classes["f1"], axis=-1),
        "balanced_accuracy": np.nanmean(of_classes["recall"], axis=-1),
        **{
            f"{name}:{k}": values[..., k]
            for name, values in of_classes.items()
            for k in range(values.shape[-1])
        },
    }


def _of_all(labels: Ints, answers: list[Ints], num_classes: int) -> dict[str, Floats]:
    """The figures themselves, of all pictures: name → (1, answers)."""
    cells, counts = cells_of(labels, answers, np.arange(len(labels)), num_classes)
    return scores((counts @ cells).reshape(1, len(answers), 3, num_classes))


def few(clusters: Ints) -> int | None:
    """How many clusters there are; None where no two pictures share one, or all do."""
    count = len(np.unique(clusters))
    return count if 1 < count < len(clusters) else None


def stretched(value: float, reach: Interval, clusters: int | None, *, least: float) -> Interval:
    """An interval of drawn clusters, as wide as so few of them leave it.

    Their spread is estimated from themselves: the bootstrap's is too small by the root of (c - 1) / c, and Student's t
    with c - 1 degrees of freedom stands in the normal distribution's place.

    Args:
        value: of all pictures.
        reach: percentiles of the draws.
        clusters: how many there are; None where pictures were drawn.
        least: what the figure can be at the least; at the most it is 1.

    Source: Davison and Hinkley, as above, section 2.3; Cameron, Gelbach and Miller, Bootstrap-based improvements for
        inference with clustered errors (2008).
    """
    if clusters is None:
        return reach
    wider = t.ppf(0.975, clusters - 1) / norm.ppf(0.975) * math.sqrt(clusters / (clusters - 1))
    low, high = (value + wider * (end - value) for end in reach)
    return float(max(least, min(low, reach[0]))), float(min(1.0, max(high, reach[1])))


def percentiles(values: Floats) -> Interval:
    """Draws without the class do not count."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)
