"""Predictions of minimum expected cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficientnetv2.utils.random_key import Floats, Key

# Label draws of the test, and images in it at most: a second or less. Ours.
_DRAWS, _MAX_IMAGES = 2000, 5000
#: The prediction of an image that is left to a person.
ABSTAIN = -1


@dataclass(frozen=True, eq=False)
class ErrorCosts:
    """Costs of predictions: a (K, K) matrix ≥ 0, rows true, columns predicted, and of abstaining (None: never)."""

    matrix: npt.NDArray[np.float64]
    abstain: float | None = None


@dataclass(frozen=True)
class CostMetrics:
    """Mean costs of an image for three rules of prediction."""

    most_probable: float
    cheapest: float
    constant: float  # of the best constant prediction, or of always abstaining
    constant_prediction: int  # that class id, or ``ABSTAIN``
    changed: float  # fraction of predictions that differ from the most probable class
    left: float  # fraction of abstentions


def min_cost_predictions(probabilities: npt.ArrayLike, costs: ErrorCosts) -> npt.NDArray[np.int64]:
    """(N,) class ids of least expected cost, or ``ABSTAIN``; of equal costs the more probable class.

    Source: Elkan, The Foundations of Cost-Sensitive Learning, IJCAI 2001, equation 1; abstention: Chow, IEEE
        Transactions on Information Theory 16 (1970).
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    expected = np.round(scores @ costs.matrix, 12)
    least = expected.min(axis=1, keepdims=True)
    predictions: npt.NDArray[np.int64] = np.where(expected == least, scores, -1.0).argmax(axis=1)
    if costs.abstain is not None:
        predictions[least[:, 0] > costs.abstain] = ABSTAIN
    return predictions


def mean_cost(labels: npt.ArrayLike, predictions: npt.ArrayLike, costs: ErrorCosts) -> float:
    """Mean cost of (N,) predicted class ids or ``ABSTAIN``, N ≥ 1."""
    true, predicted = np.asarray(labels), np.asarray(predictions)
    decided = predicted != ABSTAIN
    total = costs.matrix[true[decided], predicted[decided]].sum()
    if not decided.all():
        assert costs.abstain is not None, "abstention without a cost"
        total += costs.abstain * (~decided).sum()
    return float(total / len(true))


def cost_metrics(labels: npt.ArrayLike, probabilities: npt.ArrayLike, costs: ErrorCosts) -> CostMetrics:
    """Costs of the most probable classes, of ``min_cost_predictions`` and of the best constant prediction."""
    true = np.asarray(labels)
    plain = np.asarray(probabilities).argmax(axis=1)
    cheapest = min_cost_predictions(probabilities, costs)
    choices = [*range(len(costs.matrix)), *([] if costs.abstain is None else [ABSTAIN])]
    constants = {each: mean_cost(true, np.full(len(true), each), costs) for each in choices}
    best = min(constants, key=constants.__getitem__)
    return CostMetrics(
        most_probable=mean_cost(true, plain, costs),
        cheapest=mean_cost(true, cheapest, costs),
        constant=constants[best],
        constant_prediction=best,
        changed=float((cheapest != plain).mean()),
        left=float((cheapest == ABSTAIN).mean()),
    )


def calibrated_cost_p_value(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, costs: ErrorCosts, *, key: Key
) -> float:
    """Probability, for calibrated probabilities, that minimum-cost predictions exceed top-1 predictions by this cost.

    Labels are drawn from the (N, K) probabilities, image by image. Returns 1 if no prediction differs.

    Source: Bröcker and Smith, Increasing the Reliability of Reliability Diagrams, Weather and Forecasting 22 (2007),
        section 3: consistency resampling.
    """
    scores, true = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    plain, cheapest = scores.argmax(axis=1), min_cost_predictions(scores, costs)
    generator = key.generator()
    changed = np.flatnonzero(cheapest != plain)
    if len(changed) > _MAX_IMAGES:
        changed = generator.permutation(changed)[:_MAX_IMAGES]
    total: Floats = np.zeros(_DRAWS)
    found = 0.0
    for row in changed.tolist():
        best = cheapest[row]
        cost = np.full(scores.shape[1], costs.abstain) if best == ABSTAIN else costs.matrix[:, best]
        excess = cost - costs.matrix[:, plain[row]]  # (K,) by the true class
        total += excess[generator.choice(len(excess), _DRAWS, p=scores[row] / scores[row].sum())]
        found += excess[true[row]]
    # Sums in another order differ in their last digits.
    return float((1 + (total >= found - 1e-9 * max(1.0, abs(found))).sum()) / (1 + _DRAWS))
