"""Selective prediction: accuracy against coverage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficientnetv2.metrics.confidence_intervals import Interval, wilson_interval

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CoverageCurve:
    """Accuracy of the images whose top probability reaches a threshold, for each threshold.

    Attributes:
        threshold: (P,) decreasing.
        coverage: (P,) fraction of images at or above the threshold, up to 1.
        accuracy: (P,) fraction of these that is correct.
        aurc: Area under the risk-coverage curve, 0 to 1; images of equal probability count in mean order.
    """

    threshold: Floats
    coverage: Floats
    accuracy: Floats
    aurc: float
    num_images: int

    def at_coverage(self, fraction: float) -> int:
        """The first point with at least this coverage."""
        return int(np.searchsorted(self.coverage, fraction - 1e-9))

    def at_threshold(self, threshold: float) -> tuple[int, float | None, Interval | None]:
        """Number of images at or above a threshold, their accuracy and its 95 % interval; None for no image."""
        point = int(np.searchsorted(-self.threshold, -threshold, side="right")) - 1
        if point < 0:
            return 0, None, None
        count, fraction = round(self.coverage[point] * self.num_images), float(self.accuracy[point])
        return count, fraction, wilson_interval(fraction, count)


def coverage_curve(correct: npt.ArrayLike, confidence: npt.ArrayLike) -> CoverageCurve:
    """The curve of (N,) correctness and top probability, N ≥ 1.

    Source: Geifman and El-Yaniv, arXiv:1705.08500 (risk against coverage), arXiv:1805.08206 (AURC); mean order ours.
    """
    hits, scores = np.asarray(correct, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    hits, scores = hits[order], scores[order]
    first = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
    sizes = np.diff(np.append(first, len(scores)))
    even = np.repeat(np.add.reduceat(hits, first) / sizes, sizes)
    ranks = np.arange(1, len(hits) + 1)
    mean_accuracy = np.cumsum(even) / ranks
    last = first + sizes - 1
    return CoverageCurve(
        threshold=scores[last],
        coverage=ranks[last] / len(hits),
        accuracy=np.cumsum(hits)[last] / ranks[last],
        aurc=float(np.mean(1 - mean_accuracy)),
        num_images=len(hits),
    )
