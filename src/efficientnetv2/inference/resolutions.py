"""How good a network is at several picture sizes.

Random crops make things look larger in training than they are, so a network often sees whole pictures best at a
size above that of its training (arXiv:1906.06423).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.confidence_intervals import wilson_interval

# From a size to the answers at it, and the seconds that they took.
Answer = Callable[[int], tuple[Predictions, float]]


@dataclass(frozen=True)
class SizeMetrics:
    """A network's figures at one size.

    Args:
        image_px: side of the pictures.
        top1: share that is labelled right.
        low, high: its 95 % interval.
        macro_f1: mean of the classes' F1.
        images_per_s: that were answered, reading included.
    """

    image_px: int
    top1: float
    low: float
    high: float
    macro_f1: float
    images_per_s: float


def evaluate_sizes(
    answer: Answer, sizes: Sequence[int], class_names: Sequence[str]
) -> tuple[SizeMetrics, ...]:
    """The figures at each size.

    Args:
        answer: asked once for each size.
        sizes: to look at, in order.
        class_names: of the network.
    """
    points = []
    for px in sizes:
        predictions, seconds = answer(px)
        score = classification_metrics(predictions.labels, predictions.probabilities, class_names)
        low, high = wilson_interval(score.top1, score.num_images)
        speed = round(score.num_images / max(1e-9, seconds), 1)
        points.append(SizeMetrics(px, score.top1, low, high, score.macro_f1, speed))
    return tuple(points)


def best_size(points: Sequence[SizeMetrics], by: Literal["top1", "macro_f1"] = "top1") -> SizeMetrics:
    """The point of the highest figure; of equal ones the smallest size, which is the fastest.

    Args:
        points: at least one.
        by: which figure.
    """
    return max(points, key=lambda point: (getattr(point, by), -point.image_px))
