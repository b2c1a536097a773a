"""Predictions of least expected cost, by hand and compared with all thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from efficientnetv2.evaluation.report_sections import cost_section
from efficientnetv2.metrics.cost_sensitive import (
    ABSTAIN,
    ErrorCosts,
    calibrated_cost_p_value,
    cost_metrics,
    mean_cost,
    min_cost_predictions,
)
from efficientnetv2.utils.random_key import Key

# A missed alarm (label 1, prediction 0) costs nine times a false alarm.
ALARM = ErrorCosts(np.array([[0.0, 1.0], [9.0, 0.0]]))


def test_threshold_follows_from_the_costs():
    """Predict 1 above p = 1 / (1 + 9). At 0.1 both cost the same, and the more probable class is predicted."""
    probabilities = [[0.95, 0.05], [0.91, 0.09], [0.9, 0.1], [0.89, 0.11], [0.2, 0.8]]
    assert min_cost_predictions(probabilities, ALARM).tolist() == [0, 0, 0, 1, 1]


def test_equal_costs_give_the_most_probable_class():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5), 300)
    equal = ErrorCosts(1.0 - np.eye(5))
    assert np.array_equal(min_cost_predictions(probabilities, equal), probabilities.argmax(axis=1))


def test_abstention_if_every_prediction_costs_more():
    """With equal costs of 1 and abstention at 0.3: below probability 0.7."""
    costs = ErrorCosts(1.0 - np.eye(2), abstain=0.3)
    assert min_cost_predictions([[0.69, 0.31], [0.7, 0.3], [0.9, 0.1]], costs).tolist() == [ABSTAIN, 0, 0]


def test_mean_cost_by_hand():
    costs = ErrorCosts(ALARM.matrix, abstain=0.5)
    assert mean_cost([0, 1, 1, 0], [1, 0, 1, ABSTAIN], costs) == pytest.approx((1 + 9 + 0 + 0.5) / 4)


def test_calibrated_probabilities_give_the_lowest_cost():
    """Labels are drawn from the probabilities: no other threshold costs less, and 0.5 costs more."""
    generator = np.random.default_rng(1)
    p = generator.beta(0.7, 2.0, 40_000)
    true = (generator.random(len(p)) < p).astype(int)
    found = cost_metrics(true, np.stack([1 - p, p], axis=1), ALARM)
    by_threshold = {t: mean_cost(true, (p > t).astype(int), ALARM) for t in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)}
    assert found.cheapest == pytest.approx(by_threshold[0.1], abs=1e-9)
    assert min(by_threshold, key=by_threshold.get) == 0.1
    assert found.most_probable == pytest.approx(by_threshold[0.5])
    assert found.cheapest < found.constant
    assert found.constant == pytest.approx(min(9 * true.mean(), 1 - true.mean()))
    assert found.constant_prediction == 1
    assert found.changed == pytest.approx(((p > 0.1) & (p < 0.5)).mean(), abs=1e-3)


def is_called_uncalibrated(true, p, costs, seed=0) -> bool:
    """Whether a report calls the probabilities (N,) of the second class uncalibrated."""
    probabilities = np.stack([1 - p, p], axis=1)
    return cost_section(true, probabilities, costs, ("0", "1"), key=Key.of(seed)).uncalibrated


@pytest.mark.parametrize("costs", [ALARM, ErrorCosts(1.0 - np.eye(2), abstain=0.3)])
def test_few_images_are_rarely_called_uncalibrated_by_chance(costs):
    """30 images with calibrated probabilities: the cost is often higher, but at most one in twenty is reported."""
    dearer = flagged = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        p = generator.beta(0.7, 2.0, 30)
        true = (generator.random(30) < p).astype(int)
        found = cost_metrics(true, np.stack([1 - p, p], axis=1), costs)
        dearer += found.cheapest > found.most_probable
        flagged += is_called_uncalibrated(true, p, costs, seed)
    assert dearer > 5
    assert flagged <= 5


def test_underconfident_probabilities_are_called_uncalibrated():
    """Each of 300 images has 20 % for class 1, but none is of class 1."""
    true, p = np.zeros(300, dtype=int), np.full(300, 0.2)
    assert is_called_uncalibrated(true, p, ALARM)
    assert not is_called_uncalibrated(true[:3], p[:3], ALARM)
    assert calibrated_cost_p_value(true, 1e-3 * np.ones(300)[:, None] * [999, 1], ALARM, key=Key.of(0)) == 1.0
