"""How far chance reaches where pictures hang together, and between two answers to the same pictures.

``intervals.bootstrap`` takes pictures for independent. Those of one place or one patient are not: chance draws the
place, and all its pictures with it. And two answers to the same pictures are right and wrong together, so that their
difference varies less than either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.stats import norm, t

from efficientnetv2.metrics.confidence_intervals import CELLS_AT_ONCE, Interval
from efficientnetv2.utils.rng import Floats, Key

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


def cluster_bootstrap(
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
        with replacement; for few of them see ``widen_interval``.
    """
    drawn = _drawn(labels, [answers], clusters, num_classes, key, of_classes=("f1", "recall", "precision"))
    whole = _of_all(labels, [answers], num_classes)
    count = num_clusters(clusters)
    return {
        name: widen_interval(float(whole[name][0, 0]), percentile_interval(values[:, 0]), count, least=0.0)
        for name, values in drawn.items()
    }


def paired_bootstrap(
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
        few clusters see ``widen_interval``.
    """
    drawn = _drawn(labels, [one, other], clusters, num_classes, key, of_classes=("f1",))
    whole, count = _of_all(labels, [one, other], num_classes), num_clusters(clusters)
    found = {}
    for name, values in drawn.items():
        value = float(whole[name][0, 0] - whole[name][0, 1])
        reach = percentile_interval(values[:, 0] - values[:, 1])
        found[name] = Difference(value, *widen_interval(value, reach, count, least=-1.0))
    return found


def unit_counts(
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
    cells, counts = unit_counts(labels, answers, clusters, num_classes)
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
        found = metrics_from_counts((times @ cells).reshape(size, len(answers), 3, num_classes))
        parts.append({name: found[name].copy() for name in names})  # a view would keep all classes
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def metrics_from_counts(sums: Floats) -> dict[str, Floats]:
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
    cells, counts = unit_counts(labels, answers, np.arange(len(labels)), num_classes)
    return metrics_from_counts((counts @ cells).reshape(1, len(answers), 3, num_classes))


def num_clusters(clusters: Ints) -> int | None:
    """How many clusters there are; None where no two pictures share one, or all do."""
    count = len(np.unique(clusters))
    return count if 1 < count < len(clusters) else None


def widen_interval(value: float, reach: Interval, clusters: int | None, *, least: float) -> Interval:
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


def percentile_interval(values: Floats) -> Interval:
    """Draws without the class do not count."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


# Each draw ranks all pictures for every class anew: so many probabilities are gone through at most, a few seconds'
# worth; and for fewer draws than these none is made. Ours.
_MOST_RANKED, _LEAST_DRAWS = 500_000_000, 200


def multilabel_bootstrap(
    labels: Ints,
    given: npt.NDArray[np.bool_],
    shares: npt.NDArray[np.floating[Any]],
    right: npt.NDArray[np.bool_],
    clusters: Ints,
    *,
    key: Key,
) -> dict[str, Interval]:
    """95 % intervals of the figures of pictures with several labels, clusters of pictures drawn as one.

    Args:
        labels: (N, M) class ids of each picture, -1 behind the last.
        given: (N, K) whether a picture was given a class.
        shares: (N, K) by which each class ranks the pictures.
        right: (N,) whether the most probable class is a label.
        clusters: (N,) equal where pictures hang together; all different where none do.
        key: of the resampling.

    Returns:
        ``top1``, ``mean_average_precision``, ``f1_micro`` and ``f1_macro``, over the classes that a draw has. Of more
        than some millions of pictures times classes nothing: 200 draws would take too long.

    Source: as ``resampling.clustered``.
    """
    pictures, classes = given.shape
    draws = min(DRAWS, _MOST_RANKED // (pictures * classes))
    if draws < _LEAST_DRAWS:
        return {}
    units, of_picture = np.unique(clusters, return_inverse=True)
    is_so = np.zeros((pictures, classes), dtype=bool)
    is_so[np.nonzero(labels >= 0)[0], labels[labels >= 0]] = True
    cells = csr_array(np.hstack([is_so & given, is_so, given]).astype(np.int64))
    present = np.flatnonzero(is_so.any(axis=0)).tolist()
    generator, at_once = key.generator(), max(1, CELLS_AT_ONCE // max(pictures, 3 * classes))
    parts: list[dict[str, Floats]] = []

    def scores(times: Ints) -> dict[str, Floats]:
        precision = [_average_precision(times, is_so[:, k], shares[:, k]) for k in present]
        hits, are, called = np.moveaxis((times @ cells).reshape(len(times), 3, classes), 1, 0)
        f1 = np.where(are > 0, 2 * hits / np.maximum(are + called, 1), np.nan)
        return {
            "top1": times @ right / times.sum(axis=1),
            "mean_average_precision": np.nanmean(np.stack(precision), axis=0),
            "f1_micro": 2 * hits.sum(axis=1) / np.maximum((are + called).sum(axis=1), 1),
            "f1_macro": np.nanmean(f1, axis=1),
        }

    for start in range(0, draws, at_once):
        drawn = [generator.integers(0, len(units), len(units)) for _ in range(min(at_once, draws - start))]
        parts.append(
            scores(np.stack([np.bincount(one, minlength=len(units)) for one in drawn])[:, of_picture])
        )
    whole, count = scores(np.ones((1, pictures), dtype=np.int64)), num_clusters(clusters)
    reached = {name: percentile_interval(np.concatenate([part[name] for part in parts])) for name in parts[0]}
    return {
        name: widen_interval(float(whole[name][0]), one, count, least=0.0) for name, one in reached.items()
    }


def _average_precision(
    times: Ints, is_so: npt.NDArray[np.bool_], shares: npt.NDArray[np.floating[Any]]
) -> Floats:
    """(draws,) of one class, NaN where a draw has none of its pictures; pictures of equal shares come at one place.

    Args:
        times: (draws, N) how often each picture was drawn.
        is_so: (N,) whether it is of the class; one is.
        shares: (N,) of the class.
    """
    order = np.argsort(-shares, kind="stable")
    ranks, mine = -shares[order], is_so[order]
    own = ranks[mine]
    called = times[:, order].cumsum(axis=1)[:, np.searchsorted(ranks, own, side="right") - 1]
    of_class = times[:, order[mine]]
    hits = of_class.cumsum(axis=1)[:, np.searchsorted(own, own, side="right") - 1]
    total = of_class.sum(axis=1)
    summed = (of_class * hits / np.maximum(called, 1)).sum(axis=1)
    found: Floats = np.where(total > 0, summed / np.maximum(total, 1), np.nan)
    return found
