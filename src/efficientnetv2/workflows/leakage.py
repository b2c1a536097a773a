"""Metrics on the images that neither trained nor selected a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from efficientnetv2.evaluation.clusters import Clusters
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.metric_intervals import metric_intervals
from efficientnetv2.metrics.multilabel import MACRO_METRICS, compute_metrics, macro_metric
from efficientnetv2.metrics.subgroups import SMALL_SLICE
from efficientnetv2.training.train_overlap import TrainOverlap
from efficientnetv2.utils.rng import Key


@dataclass(frozen=True)
class UnseenMetrics:
    """Metrics of the images that neither trained nor selected a model, as a sentence and as plain values."""

    sentence: str
    values: Mapping[str, Any]


def unseen_metrics(
    predictions: Predictions,
    overlap: TrainOverlap,
    class_names: Sequence[str],
    clusters: Clusters | None = None,
) -> UnseenMetrics | None:
    """Metrics of the unseen images alone; of an ensemble, unseen by every member.

    ``overlap`` and ``clusters`` are of the predicted images. None if all or none are unseen, it is not known of each,
    or there are fewer than 30.
    """
    rows = overlap.unseen
    if rows is None or not SMALL_SLICE <= len(rows) < overlap.of:
        return None
    labels, probabilities = predictions.labels[rows], predictions.probabilities[rows]
    metrics = compute_metrics(labels, probabilities, class_names, predictions.answer)
    ids = None if clusters is None else clusters.clusters[rows]
    found = metric_intervals(metrics, labels, probabilities, clusters=ids, key=Key.of(0).fold("unseen"))
    name, mean = macro_metric(metrics)
    values = {"top1": metrics.top1, name: mean}
    intervals = {metric: found[metric] for metric in values if metric in found}

    def text(metric: str) -> str:
        ends = intervals.get(metric)
        return f"{values[metric]:.1%}" + ("" if ends is None else f" ({ends[0]:.1%} to {ends[1]:.1%})")

    which = "neither trained nor chose it" if overlap.chose else "did not train it"
    return UnseenMetrics(
        f"On the {len(rows):,} of these {overlap.of:,} images that {which}: top-1 {text('top1')}, "
        f"{MACRO_METRICS[name]} {text(name)}; 95 % intervals.",
        {"num_images": len(rows), **values, "intervals": intervals},
    )
