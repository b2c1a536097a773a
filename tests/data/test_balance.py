"""How much each class counts: by hand, and the limits that the paper names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2.data.sampler import class_fractions, effective_number, epoch_order, image_weights
from efficientnetv2.utils.rng import Key

COUNTS = st.lists(st.integers(1, 5000), min_size=2, max_size=8).map(np.array)


def test_the_effective_number_by_hand():
    """With beta 0.9: 1, 1 + 0.9, 1 + 0.9 + 0.81, and towards 10."""
    assert effective_number([1, 2, 3, 10_000], 0.9) == pytest.approx([1, 1.9, 2.71, 10])


@given(COUNTS)
def test_between_one_image_a_class_and_all_of_them(counts):
    assert effective_number(counts, 0.0) == pytest.approx(np.ones(len(counts)))
    assert effective_number(counts, 1 - 1e-9) == pytest.approx(counts, rel=1e-4)
    assert class_fractions(counts, "effective", 0.0) == pytest.approx(class_fractions(counts, None))
    assert class_fractions(counts, "effective", 1 - 1e-9) == pytest.approx(
        class_fractions(counts, "equal"), rel=1e-4
    )


def test_shares_of_three_classes_by_hand():
    """30, 10 and 4: as they are; a third each; roots 5.477, 3.162, 2."""
    assert class_fractions([30, 10, 4], None) == pytest.approx([30 / 44, 10 / 44, 4 / 44])
    assert class_fractions([30, 10, 4], "equal") == pytest.approx([1 / 3] * 3)
    assert class_fractions([30, 10, 4], "sqrt") == pytest.approx([0.5148, 0.2972, 0.1880], abs=1e-4)


def test_a_class_without_images_has_no_share():
    assert class_fractions([8, 0, 8], "equal").tolist() == [0.5, 0, 0.5]
    assert image_weights([8, 0], "sqrt")[1] == 0


@given(COUNTS, st.sampled_from(["sqrt", "effective", "equal"]))
def test_rare_classes_come_forward_and_never_past_the_frequent_ones(counts, class_sampling):
    before, after = class_fractions(counts, None), class_fractions(counts, class_sampling)
    rarest, commonest = counts.argmin(), counts.argmax()
    assert after[rarest] >= before[rarest] - 1e-12
    assert after[rarest] <= after[commonest] + 1e-12


def test_an_epoch_draws_by_the_effective_number():
    labels = np.repeat([0, 1], [900, 100])
    drawn = np.bincount(labels[epoch_order(labels, "effective", Key.of(0), 0, beta=0.99)[0]])
    share = class_fractions([900, 100], "effective", 0.99)
    assert drawn.tolist() == np.round(1000 * share).astype(int).tolist()
    assert 100 < drawn[1] < 500
