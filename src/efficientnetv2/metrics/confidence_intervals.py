"""Wilson's confidence interval of a fraction."""

from __future__ import annotations

import math
from statistics import NormalDist

Interval = tuple[float, float]
#: Standard normal quantile of two-sided 95 % intervals.
Z95 = NormalDist().inv_cdf(0.975)


def wilson_interval(fraction: float, n: int) -> Interval:
    """The 95 % interval of a fraction of ``n`` ≥ 1 independent images.

    Source: Wilson, JASA 22 (1927), the score interval.
    """
    center = (fraction + Z95 * Z95 / (2 * n)) / (1 + Z95 * Z95 / n)
    half = Z95 / (1 + Z95 * Z95 / n) * math.sqrt(fraction * (1 - fraction) / n + (Z95 / (2 * n)) ** 2)
    # At fractions 0 and 1 an end equals the fraction except for rounding.
    return (min(max(0.0, center - half), fraction), max(min(1.0, center + half), fraction))
