"""Differences on the same pictures: against scikit-learn, scipy, and what chance really does."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from efficientnetv2.base.keys import Key
from efficientnetv2.metrics.paired import paired

NAMES = ("a", "b", "c")


def _answers(true, right, generator):
    return np.where(generator.random(len(true)) < right, true, generator.integers(0, 3, len(true)))


@pytest.fixture(scope="module")
def answers():
    generator = np.random.default_rng(0)
    true = np.repeat([0, 1, 2], [120, 60, 40])
    return true, _answers(true, 0.8, generator), _answers(true, 0.6, generator)


def test_the_differences_are_scikit_learns(answers):
    true, one, over = answers
    found = paired(true, one, over, NAMES, key=Key.of(0))
    expected = {
        "top1": metrics.accuracy_score(true, one) - metrics.accuracy_score(true, over),
        "macro_f1": metrics.f1_score(true, one, average="macro")
        - metrics.f1_score(true, over, average="macro"),
        "balanced_accuracy": metrics.balanced_accuracy_score(true, one)
        - metrics.balanced_accuracy_score(true, over),
    }
    for name, value in expected.items():
        assert getattr(found, name).value == pytest.approx(value), name
    by_class = metrics.f1_score(true, one, average=None) - metrics.f1_score(true, over, average=None)
    assert [difference.value for difference in found.f1.values()] == pytest.approx(list(by_class))
    assert found.pictures == 220
    assert found.top1.clear


def test_the_intervals_are_scipys_of_resampled_pictures(answers):
    """Its paired bootstrap of macro-F1, picture by picture: the same ends but for the chance in both."""
    true, one, over = answers

    def statistic(t, a, b):
        return metrics.f1_score(t, a, average="macro") - metrics.f1_score(t, b, average="macro")

    theirs = stats.bootstrap(
        (true, one, over), statistic, paired=True, vectorized=False, n_resamples=1000, method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    found = paired(true, one, over, NAMES, key=Key.of(0)).macro_f1
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.15 * (theirs.high - theirs.low))


def test_pairing_is_what_makes_it_narrow():
    """Both wrong on the same pictures but for 6: the interval knows; that of independent pictures would hold 0."""
    true = np.zeros(200, dtype=int)
    over = np.where(np.arange(200) < 60, 1, 0)
    one = np.where(np.arange(200) < 50, 1, 0)
    found = paired(true, one, over, NAMES, key=Key.of(0)).top1
    assert found.value == pytest.approx(0.05)
    # Ten of 200 apart, all one way: a binomial share.
    low, high = stats.binom(200, 0.05).ppf([0.025, 0.975]) / 200
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.006)


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    """250 sets of 150 pictures of two classifiers of known accuracy, 95 % ± 3 standard errors of 250."""
    generator, inside = np.random.default_rng(4), 0
    truth = (0.8 - 0.7) * 2 / 3  # a wrong guess is right in a third of the cases
    for trial in range(250):
        true = generator.integers(0, 3, 150)
        one, over = _answers(true, 0.8, generator), _answers(true, 0.7, generator)
        found = paired(true, one, over, NAMES, key=Key.of(trial), draws=400).top1
        inside += found.low <= truth <= found.high
    assert 0.905 <= inside / 250 <= 0.992, inside


def test_the_same_answers_differ_in_nothing_and_absent_classes_are_left_out(monkeypatch):
    found = paired([0, 1, 1], [0, 1, 0], [0, 1, 0], NAMES, key=Key.of(0), draws=50)
    assert (found.macro_f1.value, found.macro_f1.low, found.macro_f1.high) == (0, 0, 0)
    assert list(found.f1) == ["a", "b"]
    assert not found.top1.clear


def test_what_fits_into_memory_changes_nothing(answers, monkeypatch):
    whole = paired(*answers, NAMES, key=Key.of(3), draws=60)
    monkeypatch.setattr("efficientnetv2.metrics.paired._CELLS_AT_ONCE", 200)
    assert paired(*answers, NAMES, key=Key.of(3), draws=60) == whole
