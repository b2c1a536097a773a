"""How much of each class there really is, from a map and a sample whose truth is known.

Counting a map's pixels repeats the map's mistakes: a class that is often called another comes out too small. A
sample says how often, and corrects it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from efficientnetv2.utils.errors import InputError, some
from efficientnetv2.utils.rng import Floats


@dataclass(frozen=True)
class Estimate:
    """A share, and how far chance reaches.

    Args:
        value: 0 to 1.
        margin: half the width of its interval.
    """

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
    """One class on a map and in truth.

    Args:
        mapped: share of the map that it covers.
        share: of the area that it really covers, as estimated.
        users_accuracy: share of what is mapped as it that is it; None where nothing is mapped as it.
        producers_accuracy: share of it that is mapped as it; None where there is none of it.
        samples: that lie in what is mapped as it.
    """

    mapped: float
    share: Estimate
    users_accuracy: Estimate | None
    producers_accuracy: Estimate | None
    samples: int


_NOWHERE = ClassArea(0.0, Estimate(0.0, 0.0), None, None, 0)  # neither on the map nor in the sample


@dataclass(frozen=True)
class AdjustedAreas:
    """What a map and its sample say together.

    Args:
        classes: by name.
        accuracy: share of the whole area that is mapped as what it is.
    """

    classes: dict[str, ClassArea]
    accuracy: Estimate


def adjusted_areas(
    counts: npt.ArrayLike | coo_array,
    mapped: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    level: float = 0.95,
) -> AdjustedAreas:
    """Error-adjusted area of each class by the stratified estimator, the map's classes being the strata.

    With W_i the share of the map that class i covers, n_ij how many of the n_i samples mapped as i are truly j, and
    p_ij = W_i n_ij / n_i:

    - area of j: p_j = sum_i p_ij, its variance sum_i W_i^2 (n_ij / n_i) (1 - n_ij / n_i) / (n_i - 1);
    - user's accuracy of i: U_i = n_ii / n_i, variance U_i (1 - U_i) / (n_i - 1);
    - producer's accuracy of j: P_j = p_jj / p_j, variance (W_j^2 (1 - P_j)^2 U_j (1 - U_j) / (n_j - 1)
      + P_j^2 sum_(i != j) W_i^2 (n_ij / n_i) (1 - n_ij / n_i) / (n_i - 1)) / p_j^2;
    - overall accuracy: sum_i W_i U_i, variance sum_i W_i^2 U_i (1 - U_i) / (n_i - 1).

    It holds for samples drawn at random within each mapped class (or over the whole map). Where every sample of a
    class is right, its variance is 0, which few samples do not warrant; and where less than about five samples of a
    stratum are of another class, the interval is too short: draw more there.

    Args:
        counts: (K, K) numbers of samples; rows mapped, columns true. Of very many classes better sparse.
        mapped: (K,) area mapped as each class, in any unit, its sum above 0.
        class_names: K.
        level: share of such intervals that hold the true value; normal quantiles.

    Raises:
        InputError: a class that is on the map has fewer than two samples.

    Source: Olofsson et al., Good practices for estimating area and assessing accuracy of land change, Remote Sensing
    of Environment 148 (2014), equations 1 to 11.
    """
    cells, area = coo_array(counts), np.asarray(mapped, dtype=np.float64)
    # Of thousands of classes a map shows a few: of the others there is nothing to compute.
    met = np.unique(np.concatenate([np.flatnonzero(area), cells.row, cells.col]))
    n, area = np.zeros((len(met), len(met))), area[met]
    np.add.at(n, (np.searchsorted(met, cells.row), np.searchsorted(met, cells.col)), cells.data)
    total = n.sum(axis=1)
    _refuse_few(total, area, [class_names[k] for k in met])
    weight, there = area / area.sum(), total > 0
    share = np.divide(n, total[:, None], out=np.zeros_like(n), where=there[:, None])  # (K, K) n_ij / n_i
    # Of a stratum that is not on the map nothing counts: its weight is 0.
    spread = share * (1 - share) / np.maximum(total - 1, 1)[:, None]
    joint, joint_variance = weight[:, None] * share, weight[:, None] ** 2 * spread
    true, right = joint.sum(axis=0), share.diagonal()
    producers = np.divide(joint.diagonal(), true, out=np.zeros_like(true), where=true > 0)
    producers_variance = _producers_variance(joint_variance, producers, true)
    z = NormalDist().inv_cdf((1 + level) / 2)

    def estimate(value: float, variance: float) -> Estimate:
        return Estimate(float(value), float(z * np.sqrt(variance)))

    found = {
        class_names[of]: ClassArea(
            mapped=float(weight[k]),
            share=estimate(true[k], joint_variance[:, k].sum()),
            users_accuracy=estimate(right[k], spread[k, k]) if there[k] else None,
            producers_accuracy=estimate(producers[k], producers_variance[k]) if true[k] > 0 else None,
            samples=int(total[k]),
        )
        for k, of in enumerate(met)
    }
    classes = {name: found.get(name, _NOWHERE) for name in class_names}
    accuracy = estimate(joint.trace(), joint_variance.trace())
    return AdjustedAreas(classes, accuracy)


def _producers_variance(joint_variance: Floats, producers: Floats, true: Floats) -> Floats:
    own = joint_variance.diagonal()
    others = joint_variance.sum(axis=0) - own
    above = (1 - producers) ** 2 * own + producers**2 * others
    result: Floats = np.divide(above, true**2, out=np.zeros_like(true), where=true > 0)
    return result


def _refuse_few(total: Floats, area: Floats, class_names: Sequence[str]) -> None:
    few = np.flatnonzero((area > 0) & (total < 2)).tolist()
    if few:
        raise InputError(
            f"Fewer than two samples lie in what is mapped as {some([class_names[k] for k in few])}, so nothing is "
            "known of that part of the map. Draw samples in every class of the map, 50 or more in each."
        )
