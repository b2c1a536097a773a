"""Answers by what mistakes cost: of each picture the one that costs least, as far as its probabilities tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficientnetv2.utils.rng import Floats, Key

# Of a test of honesty: so often labels are drawn, of so many pictures at most, which takes a second or less. Ours.
_DRAWS, _MOST_DRAWN = 2000, 5000
#: Stands among answers for none: the picture is left to a person.
ABSTAIN = -1


@dataclass(frozen=True, eq=False)
class ErrorCosts:
    """What each answer costs.

    Args:
        matrix: (K, K), at least 0: row of the true class, column of the answer; the diagonal is usually 0.
        no_answer: what it costs to leave a picture to a person; None where every picture is answered.
    """

    matrix: npt.NDArray[np.float64]
    no_answer: float | None = None


@dataclass(frozen=True)
class CostMetrics:
    """Mean costs of a picture on one set of pictures.

    Args:
        most_probable: of answering the most probable class.
        cheapest: of the answers of ``min_cost_predictions``.
        constant: of the best answer that is the same for all pictures (or of leaving all to a person).
        constant_answer: that answer, a class id or ``ABSTAIN``.
        changed: share of the pictures that are answered otherwise than by the most probable class.
        left: share of them that are left to a person.
    """

    most_probable: float
    cheapest: float
    constant: float
    constant_answer: int
    changed: float
    left: float


def min_cost_predictions(probabilities: npt.ArrayLike, costs: ErrorCosts) -> npt.NDArray[np.int64]:
    """Of each picture the answer of least expected cost; of equal ones the more probable, and an answer before none.

    Nothing is fitted: given the costs, the thresholds follow from the probabilities. So these have to be honest (see
    ``calibration``), and the pictures that the costs are reported on choose nothing.

    Args:
        probabilities: (N, K), rows sum to 1.
        costs: of the K classes.

    Returns:
        (N,) class ids, or ``ABSTAIN``.

    Source: Elkan, The Foundations of Cost-Sensitive Learning, IJCAI 2001, equation 1; leaving a picture to a person
        as one more answer, Chow, IEEE Transactions on Information Theory 16 (1970).
    """
    shares = np.asarray(probabilities, dtype=np.float64)
    expected = np.round(shares @ costs.matrix, 12)
    least = expected.min(axis=1, keepdims=True)
    answers: npt.NDArray[np.int64] = np.where(expected == least, shares, -1.0).argmax(axis=1)
    if costs.no_answer is not None:
        answers[least[:, 0] > costs.no_answer] = ABSTAIN
    return answers


def mean_cost(labels: npt.ArrayLike, answers: npt.ArrayLike, costs: ErrorCosts) -> float:
    """What a picture costs on average.

    Args:
        labels: (N,) class ids, N ≥ 1.
        answers: (N,) class ids, or ``ABSTAIN`` where the costs know what that costs.
        costs: of the classes.
    """
    true, given = np.asarray(labels), np.asarray(answers)
    answered = given != ABSTAIN
    total = costs.matrix[true[answered], given[answered]].sum()
    if not answered.all():
        assert costs.no_answer is not None, "answers leave pictures out, but no cost of that is known"
        total += costs.no_answer * (~answered).sum()
    return float(total / len(true))


def cost_metrics(labels: npt.ArrayLike, probabilities: npt.ArrayLike, costs: ErrorCosts) -> CostMetrics:
    """What the answers cost, beside those that take no picture into account.

    Args:
        labels: (N,) class ids, N ≥ 1.
        probabilities: (N, K).
        costs: of the K classes.
    """
    true = np.asarray(labels)
    plain = np.asarray(probabilities).argmax(axis=1)
    cheapest = min_cost_predictions(probabilities, costs)
    constants: Mapping[int, float] = {
        answer: mean_cost(true, np.full(len(true), answer), costs)
        for answer in [*range(len(costs.matrix)), *([] if costs.no_answer is None else [ABSTAIN])]
    }
    best = min(constants, key=lambda answer: constants[answer])
    return CostMetrics(
        most_probable=mean_cost(true, plain, costs),
        cheapest=mean_cost(true, cheapest, costs),
        constant=constants[best],
        constant_answer=best,
        changed=float((cheapest != plain).mean()),
        left=float((cheapest == ABSTAIN).mean()),
    )


def calibrated_cost_p_value(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, costs: ErrorCosts, *, key: Key
) -> float:
    """How often the cheapest answers would cost so much more than the most probable classes, were probabilities honest.

    Labels are drawn from the probabilities: even then chance makes the cheapest answers the dearer ones now and then,
    of a few pictures often. Pictures are drawn singly, though some may belong together.

    Args:
        labels: (N,) class ids.
        probabilities: (N, K), rows sum to 1.
        costs: of the K classes.
        key: of the draws.

    Returns:
        From 0 to 1. Small: chance hardly explains it. 1 where no answer is another.

    Source: Bröcker and Smith, Increasing the Reliability of Reliability Diagrams, Weather and Forecasting 22 (2007),
        section 3: consistency resampling.
    """
    shares, true = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    plain, cheapest = shares.argmax(axis=1), min_cost_predictions(shares, costs)
    generator = key.generator()
    changed = np.flatnonzero(cheapest != plain)
    if len(changed) > _MOST_DRAWN:
        changed = generator.permutation(changed)[:_MOST_DRAWN]
    total: Floats = np.zeros(_DRAWS)
    found = 0.0
    for row in changed.tolist():
        answer = cheapest[row]
        paid = np.full(shares.shape[1], costs.no_answer) if answer == ABSTAIN else costs.matrix[:, answer]
        dearer = paid - costs.matrix[:, plain[row]]  # (K,) by the true class
        total += dearer[generator.choice(len(dearer), _DRAWS, p=shares[row] / shares[row].sum())]
        found += dearer[true[row]]
    # Sums of the same numbers in another order differ in their last digits.
    return float((1 + (total >= found - 1e-9 * max(1.0, abs(found))).sum()) / (1 + _DRAWS))
