"""How far chance reaches in figures of pictures with several labels each, some of which hang together."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from efficientnetv2.base.keys import Floats, Key
from efficientnetv2.metrics.intervals import CELLS_AT_ONCE, Interval
from efficientnetv2.metrics.resampling import DRAWS, Ints, few, percentiles, stretched

# Each draw ranks all pictures for every class anew: so many probabilities are gone through at most, a few seconds'
# worth; and for fewer draws than these none is made. Ours.
_MOST_RANKED, _LEAST_DRAWS = 500_000_000, 200


def several(
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
    whole, count = scores(np.ones((1, pictures), dtype=np.int64)), few(clusters)
    reached = {name: percentiles(np.concatenate([part[name] for part in parts])) for name in parts[0]}
    return {name: stretched(float(whole[name][0]), one, count, least=0.0) for name, one in reached.items()}


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
