"""Metrics at several image sizes.

Random crops show objects larger than evaluation does, so a network is often most accurate above its training size
(arXiv:1906.06423).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.confidence_intervals import wilson_interval


@dataclass(frozen=True)
class SizeMetrics:
    """Metrics at an image size.

    Attributes:
        low, high: 95 % interval of ``top1``.
        images_per_s: Throughput, reading included.
    """

    image_size: int
    top1: float
    low: float
    high: float
    macro_f1: float
    images_per_s: float


def evaluate_sizes(
    predict: Callable[[int], tuple[Predictions, float]], sizes: Sequence[int], class_names: Sequence[str]
) -> tuple[SizeMetrics, ...]:
    """Metrics at each size; ``predict`` gives the predictions at a size, and the seconds that they took."""
    points = []
    for px in sizes:
        predictions, seconds = predict(px)
        score = classification_metrics(predictions.labels, predictions.probabilities, class_names)
        low, high = wilson_interval(score.top1, score.num_images)
        throughput = round(score.num_images / max(1e-9, seconds), 1)
        points.append(SizeMetrics(px, score.top1, low, high, score.macro_f1, throughput))
    return tuple(points)


def best_size(points: Sequence[SizeMetrics], by: Literal["top1", "macro_f1"] = "top1") -> SizeMetrics:
    """The point of the highest metric; of equal ones the smallest size, which is the fastest."""
    return max(points, key=lambda point: (getattr(point, by), -point.image_size))
