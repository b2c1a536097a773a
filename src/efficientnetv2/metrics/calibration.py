"""Whether a network is right as often as it says, and the one number that brings it closer to that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from efficientnetv2.metrics.confidence_intervals import wilson_interval
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.rng import Key

#: Fewest pictures to fit a temperature on: of fewer, chance in their choice moves it more than it mends. Ours.
MIN_TEMPERATURE_IMAGES = 30
# Temperatures looked at, 1/20 to 20. Networks of the source need 0.8 to 3.5. Ours.
_WIDEST = math.log(20)
# Draws of what chance alone gives: its 95th percentile is known to a few hundredths of itself. Ours.
_DRAWS = 2_000


@dataclass(frozen=True)
class ReliabilityBin:
    """Pictures that the network is about equally sure of.

    Args:
        low, high: of the probability of the most probable class; high belongs to the bin, low to the one below.
        pictures: how many, at least one.
        confidence: mean of that probability.
        right: share of them that is labelled right.
        interval: of that share, 95 %, Wilson's.
    """

    low: float
    high: float
    pictures: int
    confidence: float
    right: float
    interval: tuple[float, float]


def reliability_bins(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, bins: int = 15
) -> tuple[ReliabilityBin, ...]:
    """The pictures by how sure the network is: a reliability diagram as numbers.

    Args:
        labels: (N,) integers, N ≥ 1; -1 is right for no class.
        probabilities: (N, K); the largest of each row counts.
        bins: of equal width over [0, 1], each with its upper edge.

    Returns:
        The bins that have a picture, by growing probability.

    Source: arXiv:1706.04599, section 2 and its 15 bins.
    """
    shares = np.asarray(probabilities)
    right = shares.argmax(axis=1) == np.asarray(labels)
    sure = shares.max(axis=1).astype(np.float64)
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.digitize(sure, edges[1:-1], right=True)
    found = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        count, share = int(inside.sum()), float(right[inside].mean())
        low, high = float(edges[number]), float(edges[number + 1])
        found.append(
            ReliabilityBin(low, high, count, float(sure[inside].mean()), share, wilson_interval(share, count))
        )
    return tuple(found)


def expected_calibration_error(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, bins: int = 15
) -> float:
    """Mean distance between how sure the network is and how often it is then right.

    Pictures are put into bins by the probability of their most probable class; each bin's distance
    between mean probability and share of right answers counts by its number of pictures.

    Args:
        labels: (N,) integers, N ≥ 1.
        probabilities: (N, K); the largest of each row counts.
        bins: of equal width over [0, 1], each with its upper edge.

    Returns:
        0 (calibrated) to 1.

    Source: arXiv:1706.04599, section 2 and its 15 bins.
    """
    found = reliability_bins(labels, probabilities, bins=bins)
    gaps = sum(one.pictures * abs(one.confidence - one.right) for one in found)
    return gaps / sum(one.pictures for one in found)


def calibration_error_by_chance(bins: Sequence[ReliabilityBin], *, key: Key) -> float:
    """What the expected calibration error of a network that is right exactly as often as it says stays below, 95 %.

    In each bin as many answers are right as a draw gives at its mean probability. With few pictures in a bin their
    share is far from that, above or below, and the distances of the bins add up.

    Args:
        bins: as ``reliability_bins`` gives them.
        key: of the draws.

    Returns:
        The 95th percentile, 0 to 1.
    """
    pictures = np.array([one.pictures for one in bins])
    stated = np.array([one.confidence for one in bins]).clip(0, 1)  # float32 rows sum to 1 only nearly
    right = key.generator().binomial(pictures, stated, size=(_DRAWS, len(bins)))
    errors = np.abs(right - pictures * stated).sum(axis=1) / pictures.sum()
    return float(np.quantile(errors, 0.95))


def log_loss(labels: npt.ArrayLike, logits: npt.ArrayLike, *, temperature: float = 1.0) -> float:
    """Mean of minus the logarithm of the true class's probability: lower is better, and no bins are needed.

    Args:
        labels: (N,) class ids, N ≥ 1.
        logits: (N, K).
        temperature: that the logits are divided by, > 0.
    """
    true = np.asarray(labels)
    logs = log_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)
    return float(-logs[np.arange(len(true)), true].mean())


def fit_temperature(labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """The number to divide logits by, so that probabilities say how often the network is right.

    It changes no answer, only how sure of it the network calls itself. Above 1 the network was too sure.

    Of pictures that are all answered right, the likeliest temperature is 0: always certain, whatever comes. So the
    logarithm of the temperature has a prior, normal around 0 with deviation 1, that weighs as one picture would; of
    some hundreds nothing is left of it.

    Args:
        labels: (N,) class ids of pictures that neither trained the network nor give a figure; N ≥ 30.
        logits: (N, K) of the same.

    Raises:
        InputError: there are fewer pictures.

    Source: arXiv:1706.04599, section 4.2 (temperature scaling, by the log-loss); the prior is ours.
    """
    true, values = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    if len(true) < MIN_TEMPERATURE_IMAGES:
        raise InputError(
            f"a temperature is fitted on {MIN_TEMPERATURE_IMAGES} pictures or more, but there are {len(true)}. Set more aside."
        )

    def loss(log_temperature: float) -> float:
        spread = len(true) * log_loss(true, values, temperature=math.exp(log_temperature))
        return spread + log_temperature**2 / 2

    found = minimize_scalar(loss, bounds=(-_WIDEST, _WIDEST), method="bounded", options={"xatol": 1e-5})
    return math.exp(found.x)
