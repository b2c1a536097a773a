"""Accuracy against the share of pictures answered: by hand, by a plain loop, and by what sorting can promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2.metrics.confidence_intervals import wilson_interval
from efficientnetv2.metrics.selective import coverage_curve


def test_four_pictures_by_hand():
    """Right, right, wrong, right from the surest on: wrong shares 0, 0, 1/3, 1/4, mean 7/48."""
    curve = coverage_curve([1, 1, 0, 1], [0.9, 0.8, 0.7, 0.6])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.accuracy == pytest.approx([1, 1, 2 / 3, 3 / 4])
    assert curve.threshold.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert curve.aurc == pytest.approx(7 / 48)


def test_of_a_threshold():
    curve = coverage_curve([1, 1, 0, 1], [0.9, 0.8, 0.7, 0.6])
    assert curve.at_threshold(0.7) == (3, pytest.approx(2 / 3), wilson_interval(2 / 3, 3))
    assert curve.at_threshold(0.65)[0] == 3
    assert curve.at_threshold(0.71)[0] == 2
    assert curve.at_threshold(0.0)[0] == 4
    assert curve.at_threshold(0.95) == (0, None, None)


def test_the_point_of_a_share_answers_at_least_that_share():
    curve = coverage_curve([1, 1, 0, 1, 1], [0.9, 0.8, 0.8, 0.8, 0.6])
    assert curve.coverage.tolist() == [0.2, 0.8, 1.0]
    assert [curve.coverage[curve.at_coverage(share)] for share in (0.1, 0.2, 0.5, 0.8, 0.81, 1.0)] == [
        0.2, 0.2, 0.8, 0.8, 1.0, 1.0,
    ]  # fmt: skip


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.5, 0.6, 0.7, 0.9])), min_size=1, max_size=30))
def test_pictures_of_equal_probability_stand_in_no_order(pictures):
    right, sure = zip(*pictures, strict=True)
    one = coverage_curve(right, sure)
    order = np.random.default_rng(0).permutation(len(right))
    other = coverage_curve(np.array(right)[order], np.array(sure)[order])
    assert one.aurc == pytest.approx(other.aurc)
    assert one.accuracy == pytest.approx(other.accuracy)
    assert one.accuracy[-1] == pytest.approx(np.mean(right))
    assert 0 <= one.aurc <= 1


def test_a_network_that_knows_its_mistakes_has_less_area_than_one_that_guesses_them():
    generator = np.random.default_rng(0)
    right = generator.random(2000) < 0.7
    knows = coverage_curve(right, np.where(right, 0.9, 0.3) + generator.random(2000) / 100)
    guesses = coverage_curve(right, generator.random(2000))
    assert guesses.aurc == pytest.approx(0.3, abs=0.02)
    # Sorted perfectly: no mistake up to share 0.7, then 1 - 0.7 / share, whose integral is 0.3 + 0.7 ln 0.7.
    assert knows.aurc == pytest.approx(0.3 + 0.7 * np.log(0.7), abs=0.02)
