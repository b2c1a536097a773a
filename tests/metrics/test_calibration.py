"""Calibration error, temperature and coverage curve, compared with calculations by hand and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from tests.messages import mentioning

from efficientnetv2.metrics.calibration import (
    calibration_error_by_chance,
    coverage_curve,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    reliability_bins,
)
from efficientnetv2.metrics.confidence_intervals import wilson_interval
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key


def test_calibration_error_of_four_images_by_hand():
    """Bin of 0.9: two images, one right, gap 0.4. Bin of 0.6: two images, both right, gap 0.4."""
    probabilities = [[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]]
    assert expected_calibration_error([0, 1, 0, 1], probabilities) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)


def test_gaps_of_different_bins_do_not_cancel():
    """Overconfident in one bin by 0.2, underconfident in another by 0.2: the error is 0.2, not 0."""
    probabilities = [[0.7, 0.3]] * 2 + [[0.8, 0.2]] * 1
    by_hand = (2 / 3) * abs(0.7 - 0.5) + (1 / 3) * abs(0.8 - 1.0)
    assert expected_calibration_error([0, 1, 0], probabilities) == pytest.approx(by_hand)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_a_plain_loop_over_bins(bins):
    generator = np.random.default_rng(3)
    probabilities = generator.dirichlet(np.ones(4) * 0.5, size=500)
    true = generator.integers(0, 4, size=500)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == true
    expected = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert expected_calibration_error(true, probabilities, bins=bins) == pytest.approx(expected)


def test_calibrated_model_has_nearly_no_calibration_error():
    """Labels are drawn from the probabilities. The remaining error falls with the square root of the image count."""
    generator = np.random.default_rng(0)
    first = generator.uniform(size=200_000)
    true = (generator.uniform(size=200_000) > first).astype(int)
    assert expected_calibration_error(true, np.stack([first, 1 - first], axis=1)) < 0.005


@pytest.mark.parametrize("pictures", [60, 3000])
def test_calibrated_model_is_below_the_chance_limit_in_95_percent(pictures):
    """Labels are drawn 300 times from the probabilities, not from the means of the bins."""
    generator = np.random.default_rng(1)
    probabilities = generator.dirichlet(np.ones(4) * 0.5, size=pictures)
    below, limits = [], []
    for _ in range(300):
        true = (generator.random((pictures, 1)) > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=3)
        limits.append(calibration_error_by_chance(reliability_bins(true, probabilities), key=Key.of(0)))
        below.append(expected_calibration_error(true, probabilities) <= limits[-1])
    assert 0.9 < np.mean(below) < 0.99
    assert max(limits) == min(limits), "what is right does not enter"
    assert (limits[0] > 0.1) == (pictures == 60)


def test_certain_predictions_have_no_error_by_chance():
    """float32 rows may sum to a little more than 1."""
    certain = np.array([[1.0000001, 0.0]] * 3, dtype=np.float32)
    assert calibration_error_by_chance(reliability_bins([0, 0, 0], certain), key=Key.of(0)) == 0


def test_reliability_bins_by_hand():
    """Two images at 0.9, one right, and two at 0.6, both right: bins 9 and 14 of 15."""
    low, high = reliability_bins([0, 1, 0, 1], [[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert (low.num_images, low.confidence, low.right) == (2, pytest.approx(0.6), 1.0)
    assert (high.num_images, high.confidence, high.right) == (2, pytest.approx(0.9), 0.5)
    assert (low.low, low.high) == pytest.approx((8 / 15, 9 / 15))
    assert high.interval == wilson_interval(0.5, 2)


def _overconfident(generator, pictures, times):
    """Logits of 4 classes, and labels drawn from the softmax of the logits divided by ``times``."""
    logits = times * generator.normal(size=(pictures, 4)) * 1.5
    honest = softmax(logits / times, axis=1)
    labels = (generator.random((pictures, 1)) > honest.cumsum(axis=1)).sum(axis=1).clip(max=3)
    return labels, logits


@pytest.mark.parametrize("times", [0.4, 1.0, 2.5])
def test_known_temperature_is_found(times):
    """With 4,000 images to within 6 %. On other images, the error falls below 0.03."""
    generator = np.random.default_rng(0)
    labels, logits = _overconfident(generator, 4000, times)
    temperature = fit_temperature(labels, logits)
    assert temperature == pytest.approx(times, rel=0.06)
    labels, logits = _overconfident(generator, 4000, times)
    before = expected_calibration_error(labels, softmax(logits, axis=1))
    after = expected_calibration_error(labels, softmax(logits / temperature, axis=1))
    assert after < 0.03
    if times != 1.0:
        assert after < before / 3
        assert log_loss(labels, logits, temperature=temperature) < log_loss(labels, logits)


def test_temperature_equals_scikit_learn():
    """Both minimize the log-loss. With 600 images, the prior has little effect."""
    pytest.importorskip("sklearn", "1.8", reason="scikit-learn scales temperatures from 1.8 on")
    generator = np.random.default_rng(1)
    labels, logits = _overconfident(generator, 600, 2.0)
    frozen = LogisticRegression()
    frozen.classes_, frozen.coef_, frozen.intercept_ = np.arange(4), np.eye(4), np.zeros(4)
    frozen.n_features_in_ = 4
    theirs = CalibratedClassifierCV(FrozenEstimator(frozen), method="temperature").fit(logits, labels)
    ours = softmax(logits / fit_temperature(labels, logits), axis=1)
    assert ours == pytest.approx(theirs.predict_proba(logits), abs=5e-3)


def test_perfect_accuracy_does_not_give_certainty():
    """Fifty correct predictions at 0.88: more confident than before, but neither 0 nor the end of the search range."""
    logits = np.tile([2.0, 0.0], (50, 1))
    assert 0.2 < fit_temperature(np.zeros(50, dtype=int), logits) < 0.6


def test_log_loss_by_hand():
    assert log_loss([0], [[np.log(3.0), 0.0]]) == pytest.approx(-np.log(0.75))
    assert log_loss([0], [[2 * np.log(3.0), 0.0]], temperature=2.0) == pytest.approx(-np.log(0.75))


def test_too_few_images_are_rejected():
    with pytest.raises(InputError, match=mentioning("30", "29")):
        fit_temperature(np.zeros(29, dtype=int), np.zeros((29, 2)))


def test_coverage_curve_of_four_images_by_hand():
    """Right, right, wrong, right in order of confidence: error rates 0, 0, 1/3, 1/4, mean 7/48."""
    curve = coverage_curve([1, 1, 0, 1], [0.9, 0.8, 0.7, 0.6])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.accuracy == pytest.approx([1, 1, 2 / 3, 3 / 4])
    assert curve.threshold.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert curve.aurc == pytest.approx(7 / 48)


def test_accuracy_at_a_threshold():
    curve = coverage_curve([1, 1, 0, 1], [0.9, 0.8, 0.7, 0.6])
    assert curve.at_threshold(0.7) == (3, pytest.approx(2 / 3), wilson_interval(2 / 3, 3))
    assert curve.at_threshold(0.65)[0] == 3
    assert curve.at_threshold(0.71)[0] == 2
    assert curve.at_threshold(0.0)[0] == 4
    assert curve.at_threshold(0.95) == (0, None, None)


def test_requested_coverage_is_reached_or_exceeded():
    curve = coverage_curve([1, 1, 0, 1, 1], [0.9, 0.8, 0.8, 0.8, 0.6])
    assert curve.coverage.tolist() == [0.2, 0.8, 1.0]
    assert [curve.coverage[curve.at_coverage(share)] for share in (0.1, 0.2, 0.5, 0.8, 0.81, 1.0)] == [
        0.2, 0.2, 0.8, 0.8, 1.0, 1.0,
    ]  # fmt: skip


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.5, 0.6, 0.7, 0.9])), min_size=1, max_size=30))
def test_order_of_equal_probabilities_does_not_matter(pictures):
    right, confidence = zip(*pictures, strict=True)
    one = coverage_curve(right, confidence)
    order = np.random.default_rng(0).permutation(len(right))
    other = coverage_curve(np.array(right)[order], np.array(confidence)[order])
    assert one.aurc == pytest.approx(other.aurc)
    assert one.accuracy == pytest.approx(other.accuracy)
    assert one.accuracy[-1] == pytest.approx(np.mean(right))
    assert 0 <= one.aurc <= 1


def test_informative_confidence_has_a_lower_aurc_than_random_confidence():
    generator = np.random.default_rng(0)
    right = generator.random(2000) < 0.7
    knows = coverage_curve(right, np.where(right, 0.9, 0.3) + generator.random(2000) / 100)
    guesses = coverage_curve(right, generator.random(2000))
    assert guesses.aurc == pytest.approx(0.3, abs=0.02)
    # Perfect order: no errors up to coverage 0.7, then 1 - 0.7 / coverage, with the integral 0.3 + 0.7 ln 0.7.
    assert knows.aurc == pytest.approx(0.3 + 0.7 * np.log(0.7), abs=0.02)
