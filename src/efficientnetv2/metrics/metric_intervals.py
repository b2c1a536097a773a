"""How far chance reaches in the figures of pictures, of one label or of several, by themselves or hanging together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from efficientnetv2.metrics import bootstrap as resampling_several
from efficientnetv2.metrics.bootstrap import cluster_bootstrap, num_clusters
from efficientnetv2.metrics.classification import ClassificationMetrics, Integers, top5_correct
from efficientnetv2.metrics.confidence_intervals import Interval, bootstrap_intervals, wilson_interval
from efficientnetv2.metrics.multilabel import MultilabelMetrics, assigned_labels, is_correct
from efficientnetv2.utils.rng import Key

# Sums of some sixty shares differ by less from what they would be without rounding. Ours.
_ROUNDING = 1e-9


def metric_intervals(
    found: ClassificationMetrics | MultilabelMetrics,
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    clusters: Integers | None = None,
    key: Key,
) -> dict[str, Interval]:
    """95 % intervals of what ``several.measured`` gave of the same labels and probabilities.

    Where pictures hang together an interval reaches as far as the farther of two: chance drew pictures, or whole
    clusters of them. Of few clusters that are right and wrong alike the second alone would leave nothing to chance.

    Args:
        found: the figures.
        labels: (N,) class ids, or (N, M).
        probabilities: (N, K).
        clusters: (N,) equal where pictures hang together; None where none are known to.
        key: of the resampling.

    Returns:
        By name. Of pictures with several labels a figure that is the same in every draw, as where all labels are right
        or none, reaches as far as a share of as many pictures or clusters does (Wilson's interval; ours).
    """
    reach = _of_pictures(found, labels, probabilities, key)
    together = None if clusters is None else num_clusters(clusters)
    if clusters is not None and together is not None:
        for name, (low, high) in _of_clusters(
            found, labels, probabilities, clusters, key.fold("clusters")
        ).items():
            reach[name] = (min(reach[name][0], low), max(reach[name][1], high))
    if not isinstance(found, MultilabelMetrics):
        return reach
    # What no draw has changed is not certain: all labels of so many pictures were right, or none.
    drawn = together or found.pictures
    return {
        name: one if one[1] - one[0] > _ROUNDING else wilson_interval(min(1.0, one[0]), drawn)
        for name, one in reach.items()
    }


def accuracy_intervals(found: MultilabelMetrics) -> dict[str, Interval]:
    """95 % intervals of ``top1`` and, where there is one, ``top5``: Wilson's, as in ``intervals.bootstrap``."""
    shares = {"top1": found.top1, "top5": found.top5}
    return {
        name: wilson_interval(share, found.pictures) for name, share in shares.items() if share is not None
    }


def _of_pictures(
    found: ClassificationMetrics | MultilabelMetrics,
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    key: Key,
) -> dict[str, Interval]:
    """As if other pictures had been drawn, each by itself."""
    if not isinstance(found, MultilabelMetrics):
        return bootstrap_intervals(found, key=key)
    alone = np.arange(found.pictures, dtype=np.int64)
    reach = _several(found, labels, probabilities, alone, key)
    # Of few pictures of a class their precision is a little higher among those drawn, twice as some are, than it is.
    values = {name: float(getattr(found, name)) for name in reach}
    held = {name: (min(low, values[name]), max(high, values[name])) for name, (low, high) in reach.items()}
    return held | accuracy_intervals(found)


def _of_clusters(
    found: ClassificationMetrics | MultilabelMetrics,
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    clusters: Integers,
    key: Key,
) -> dict[str, Interval]:
    """As if other clusters had been drawn, each with all its pictures; by the names of ``_of_pictures``."""
    answers = np.asarray(probabilities).argmax(axis=1).astype(np.int64)  # those that the figures have counted
    if isinstance(found, MultilabelMetrics):
        reach = _several(found, labels, probabilities, clusters, key)
        reach["top1"] = _share(
            is_correct(labels, answers), clusters, key.fold("top1")
        )  # of however many pictures
    else:
        names = found.class_names
        drawn = cluster_bootstrap(np.asarray(labels), answers, clusters, len(names), key=key)
        reach = {_called(name, names): one for name, one in drawn.items()}
    if found.top5 is not None:
        reach["top5"] = _share(top5_correct(labels, probabilities), clusters, key.fold("top5"))
    return reach


def _share(hits: npt.NDArray[np.bool_], clusters: Integers, key: Key) -> Interval:
    """Of the share of pictures, (N,), that are hits of some kind."""
    return cluster_bootstrap(np.ones(len(hits), dtype=np.int64), hits.astype(np.int64), clusters, 2, key=key)[
        "top1"
    ]


def _called(name: str, class_names: tuple[str, ...]) -> str:
    """Of a class a figure is called by its number in ``cluster_bootstrap``, by its name in ``bootstrap_intervals``."""
    figure, of_class, number = name.partition(":")
    return f"{figure}:{class_names[int(number)]}" if of_class else name


def _several(
    found: MultilabelMetrics,
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    clusters: Integers,
    key: Key,
) -> dict[str, Interval]:
    """Of pictures of several labels, (N, M), by drawing whole clusters of them (``resampling_several``)."""
    true, shares = np.asarray(labels), np.asarray(probabilities)
    hits = is_correct(true, shares.argmax(axis=1))
    given = assigned_labels(shares, found.answer)
    return resampling_several.multilabel_bootstrap(true, given, shares, hits, clusters, key=key)
