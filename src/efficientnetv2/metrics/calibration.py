"""Whether a network is right as often as it says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def expected_calibration_error(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, bins: int = 15
) -> float:
    """Mean distance between how sure the network is and how often it is then right.

    Pictures are put into bins by the probability of their most probable class; each bin's distance
    between mean probability and share of right answers counts by its number of pictures.

    Args:
        labels: (N,) integers, N ≥ 1.
        probabilities: (N, K), rows sum to 1.
        bins: of equal width over [0, 1], each with its upper edge.

    Returns:
        0 (calibrated) to 1.

    Source: arXiv:1706.04599, section 2 and its 15 bins.
    """
    shares = np.asarray(probabilities, dtype=np.float64)
    right = shares.argmax(axis=1) == np.asarray(labels)
    confidence = shares.max(axis=1)
    bin_of = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    # Per bin: |sum of probabilities - number right|, over all pictures.
    gap = np.bincount(bin_of, weights=confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / len(right))
