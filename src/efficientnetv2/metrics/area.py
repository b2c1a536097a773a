"""Area of each class, estimated from a map and a labeled sample of it.

Counting the pixels of a map repeats its errors. A sample with known truth corrects them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from efficientnetv2.metrics.confidence_intervals import Z95
from efficientnetv2.utils.errors import InputError, shorten


@dataclass(frozen=True)
class Estimate:
    """A fraction and the half-width of its 95 % interval."""

    value: float
    margin: float

    @property
    def low(self) -> float:
        """Lower end, at least 0."""
        return max(0.0, self.value - self.margin)

    @property
    def high(self) -> float:
        """Upper end, at most 1."""
        return min(1.0, self.value + self.margin)


@dataclass(frozen=True)
class ClassArea:
    """One class on the map and in truth."""

    mapped: float  # fraction of the map
    share: Estimate  # true fraction of the area
    users_accuracy: Estimate | None  # precision of the map; None if nothing is mapped as the class
    producers_accuracy: Estimate | None  # recall of the map; None if sampled is no true area of the class
    samples: int  # in the area mapped as the class


_ABSENT = ClassArea(0.0, Estimate(0.0, 0.0), None, None, 0)  # neither on the map nor in the sample


@dataclass(frozen=True)
class AdjustedAreas:
    """Areas by class name, and the fraction of the whole area that is mapped correctly."""

    classes: dict[str, ClassArea]
    accuracy: Estimate


def adjusted_areas(
    counts: npt.ArrayLike | coo_array, mapped: npt.ArrayLike, class_names: Sequence[str]
) -> AdjustedAreas:
    """Error-adjusted area of each class by the stratified estimator; the strata are the mapped classes.

    ``counts`` are (K, K) numbers of samples, rows mapped, columns true, random within each mapped class or over the
    whole map; ``mapped`` is the (K,) mapped area in any unit. With fewer than about five errors in a stratum the
    interval is too short.

    Source: Olofsson et al., Good practices for estimating area and assessing accuracy of land change, Remote Sensing
    of Environment 148 (2014), equations 1 to 11.
    """
    cells, area = coo_array(counts), np.asarray(mapped, dtype=np.float64)
    # Only the classes of the map or the sample: a map shows a few of thousands.
    present = np.unique(np.concatenate([np.flatnonzero(area), cells.row, cells.col]))
    n, area = np.zeros((len(present), len(present))), area[present]
    np.add.at(n, (np.searchsorted(present, cells.row), np.searchsorted(present, cells.col)), cells.data)
    total = n.sum(axis=1)
    if few := [class_names[k] for k in present[(area > 0) & (total < 2)]]:
        raise InputError(
            f"fewer than two samples lie in what is mapped as {shorten(few)}. Draw 50 or more in every class."
        )
    weight, sampled = area / area.sum(), total > 0
    share = np.divide(n, total[:, None], out=np.zeros_like(n), where=sampled[:, None])  # (K, K) n_ij / n_i
    # A stratum that is not on the map has weight 0.
    spread = share * (1 - share) / np.maximum(total - 1, 1)[:, None]
    joint, joint_variance = weight[:, None] * share, weight[:, None] ** 2 * spread
    true, right = joint.sum(axis=0), share.diagonal()
    producers = np.divide(joint.diagonal(), true, out=np.zeros_like(true), where=true > 0)
    exact = joint_variance.diagonal()
    above = (1 - producers) ** 2 * exact + producers**2 * (joint_variance.sum(axis=0) - exact)
    producers_variance = np.divide(above, true**2, out=np.zeros_like(true), where=true > 0)

    def estimate(value: float, variance: float) -> Estimate:
        return Estimate(float(value), float(Z95 * np.sqrt(variance)))

    found = {
        class_names[of]: ClassArea(
            mapped=float(weight[k]),
            share=estimate(true[k], joint_variance[:, k].sum()),
            users_accuracy=estimate(right[k], spread[k, k]) if sampled[k] else None,
            producers_accuracy=estimate(producers[k], producers_variance[k]) if true[k] > 0 else None,
            samples=int(total[k]),
        )
        for k, of in enumerate(present)
    }
    classes = {name: found.get(name, _ABSENT) for name in class_names}
    accuracy = estimate(joint.trace(), joint_variance.trace())
    return AdjustedAreas(classes, accuracy)
