"""The expected calibration error against arithmetic by hand and a plain loop."""

import numpy as np
import pytest

from efficientnetv2.metrics.calibration import expected_calibration_error


def test_four_pictures_by_hand():
    """Bin of 0.9: two pictures, one right, gap 0.4; bin of 0.6: two, both right, gap 0.4."""
    shares = [[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]]
    assert expected_calibration_error([0, 1, 0, 1], shares) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)


def test_gaps_of_different_bins_do_not_cancel():
    """Too sure in one bin by 0.2, too timid in another by 0.2: the error is 0.2, not 0."""
    shares = [[0.7, 0.3]] * 2 + [[0.8, 0.2]] * 1
    by_hand = (2 / 3) * abs(0.7 - 0.5) + (1 / 3) * abs(0.8 - 1.0)
    assert expected_calibration_error([0, 1, 0], shares) == pytest.approx(by_hand)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_as_a_plain_loop_over_bins(bins):
    generator = np.random.default_rng(3)
    shares = generator.dirichlet(np.ones(4) * 0.5, size=500)
    true = generator.integers(0, 4, size=500)
    sure, right = shares.max(axis=1), shares.argmax(axis=1) == true
    expected = 0.0
    for b in range(bins):
        inside = (sure > b / bins) & (sure <= (b + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
    assert expected_calibration_error(true, shares, bins=bins) == pytest.approx(expected)


def test_a_network_that_tells_the_truth_has_almost_none():
    """Labels drawn from the probabilities themselves; what is left falls with the root of the pictures."""
    generator = np.random.default_rng(0)
    first = generator.uniform(size=200_000)
    true = (generator.uniform(size=200_000) > first).astype(int)
    assert expected_calibration_error(true, np.stack([first, 1 - first], axis=1)) < 0.005
