"""Calibration of a classifier: reliability bins, expected calibration error, temperature scaling, and coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from efficientnetv2.metrics.confidence_intervals import Interval, wilson_interval
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Floats, Key

#: Minimum number of images to fit a temperature; with fewer, it is mostly noise. Ours.
MIN_TEMPERATURE_IMAGES = 30
# Search range of the temperature, 1/20 to 20. The models of the source need 0.8 to 3.5. Ours.
_LOG_RANGE = math.log(20)
# Draws for the error by chance: its 95th percentile is then accurate to a few percent. Ours.
_DRAWS = 2_000


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose top probability lies in (low, high], with their accuracy and its 95 % Wilson interval."""

    low: float
    high: float
    num_images: int
    confidence: float
    right: float
    interval: tuple[float, float]


def reliability_bins(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, bins: int = 15
) -> tuple[ReliabilityBin, ...]:
    """The non-empty ones of equal bins over [0, 1], by increasing probability; label -1 matches no class.

    Source: arXiv:1706.04599, section 2 and its 15 bins.
    """
    scores = np.asarray(probabilities)
    correct = scores.argmax(axis=1) == np.asarray(labels)
    confidence = scores.max(axis=1).astype(np.float64)
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.digitize(confidence, edges[1:-1], right=True)
    found = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        count, accuracy, mean = (int(inside.sum()), float(correct[inside].mean()), float(confidence[inside].mean()))
        low, high = float(edges[number]), float(edges[number + 1])
        found.append(ReliabilityBin(low, high, count, mean, accuracy, wilson_interval(accuracy, count)))
    return tuple(found)


def expected_calibration_error(labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, bins: int = 15) -> float:
    """Mean absolute difference between top probability and accuracy over ``reliability_bins``, weighted by images."""
    found = reliability_bins(labels, probabilities, bins=bins)
    gaps = sum(each.num_images * abs(each.confidence - each.right) for each in found)
    return gaps / sum(each.num_images for each in found)


def calibration_error_by_chance(bins: Sequence[ReliabilityBin], *, key: Key) -> float:
    """The 95th percentile of the calibration error that a perfectly calibrated classifier has by chance."""
    images = np.array([each.num_images for each in bins])
    confidence = np.array([each.confidence for each in bins]).clip(0, 1)  # float32 may exceed 1 slightly
    correct = key.generator().binomial(images, confidence, size=(_DRAWS, len(bins)))
    errors = np.abs(correct - images * confidence).sum(axis=1) / images.sum()
    return float(np.quantile(errors, 0.95))


def log_loss(labels: npt.ArrayLike, logits: npt.ArrayLike, *, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of (N,) labels under (N, K) logits divided by the temperature."""
    true = np.asarray(labels)
    logs = log_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)
    return float(-logs[np.arange(len(true)), true].mean())


def fit_temperature(labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """The temperature that minimizes the log-loss of (N, K) logits, of images that the model has not seen.

    log(temperature) has a standard normal prior, which weighs as much as one image: on images that are all correct the
    likeliest temperature is 0. Source: arXiv:1706.04599, section 4.2; the prior is ours.
    """
    true, values = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    if len(true) < MIN_TEMPERATURE_IMAGES:
        raise InputError(
            f"a temperature needs {MIN_TEMPERATURE_IMAGES} images or more, found {len(true)}. Hold out more images."
        )

    def loss(log_temperature: float) -> float:
        spread = len(true) * log_loss(true, values, temperature=math.exp(log_temperature))
        return spread + log_temperature**2 / 2

    found = minimize_scalar(loss, bounds=(-_LOG_RANGE, _LOG_RANGE), method="bounded", options={"xatol": 1e-5})
    return math.exp(found.x)


@dataclass(frozen=True, eq=False)
class CoverageCurve:
    """Accuracy of the images whose top probability reaches a threshold, for each threshold."""

    threshold: Floats  # (P,) decreasing
    coverage: Floats  # (P,) fraction of images at or above the threshold, up to 1
    accuracy: Floats  # (P,) fraction of these that is correct
    aurc: float  # area under the risk-coverage curve; images of equal probability count in mean order
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
