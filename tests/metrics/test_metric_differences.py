"""Differences on the same images are certain only if chance is excluded, by images and by clusters."""

from __future__ import annotations

import numpy as np
import pytest
from tests.metrics.test_confidence_intervals import KEY, answered, lone

from efficientnetv2.metrics.confidence_intervals import paired_bootstrap
from efficientnetv2.metrics.metric_intervals import paired_difference


def alike_places() -> tuple[np.ndarray, ...]:
    """Labels, two predictions and locations: four locations of ten images, with one error against two in each."""
    labels, place = np.tile([0, 1], 20), np.arange(40) // 10
    wrong = [np.isin(np.arange(40) % 10, those) for those in ([0], [1, 2])]
    return labels, *(np.where(those, 1 - labels, labels) for those in wrong), place


def test_interval_of_few_equal_clusters_is_at_least_that_of_single_images():
    labels, one, other, place = alike_places()
    assert paired_bootstrap(labels, one, other, place, 2, key=KEY)["top1"].certain
    apart = paired_bootstrap(labels, one, other, np.arange(40), 2, key=KEY)
    assert not apart["top1"].certain
    for name, found in paired_difference(labels, one, other, place, 2, key=KEY).items():
        assert found.value == apart[name].value
        assert found.low <= apart[name].low
        assert found.high >= apart[name].high


@pytest.mark.parametrize(("places", "certain"), [(4, False), (6, True)])
def test_six_clusters_are_needed_for_a_certain_difference(places, certain):
    """Three of ten images are better in each location: enough if images were independent."""
    place = np.repeat(np.arange(places), 10)
    labels = np.zeros(len(place), dtype=np.int64)
    other = (np.arange(len(place)) % 10 < 3).astype(np.int64)
    found = paired_difference(labels, labels, other, place, 2, key=KEY)
    assert found["top1"].certain is certain
    assert paired_difference(labels, labels, other, np.arange(len(place)), 2, key=KEY)["top1"].certain


@pytest.mark.parametrize(("pictures", "certain"), [(1, False), (5, False), (6, True)])
def test_few_different_images_give_no_certain_difference(pictures, certain):
    """The first model has a few more of 200 right. 2 * 0.5^5 is 0.06, and 2 * 0.5^6 is 0.03."""
    labels = np.tile([0, 1], 100)
    other = labels.copy()
    other[:pictures] = 1 - other[:pictures]
    found = paired_difference(labels, labels, other, np.arange(200), 2, key=KEY)
    assert found["top1"].value == pytest.approx(pictures / 200)
    assert found["top1"].certain is certain
    assert found["macro_f1"].certain is certain


def test_class_with_few_images_has_no_certain_difference():
    """The three images of class 2 are right in one model only. The significance level for each class is 5 % / 3."""
    labels = np.concatenate([np.tile([0, 1], 50), [2, 2, 2]])
    other = np.where(labels == 2, 0, labels)
    assert lone(labels, labels, other)["f1:2"].certain
    found = paired_difference(labels, labels, other, np.arange(103), 3, key=KEY)
    assert not found["f1:2"].certain
    assert found["f1:2"].value == 1


@pytest.mark.parametrize(("rare", "certain"), [(5, False), (6, True)])
def test_few_images_of_a_rare_class_give_no_certain_difference(rare, certain):
    """The first model has the rare class right and one frequent image wrong, the second model the opposite.

    Few draws of 200 have no rare image, so the interval of macro-F1 excludes 0. In the exact permutation test, 2 of 2^5
    permutations are as extreme for five images: p = 0.06.
    """
    labels = np.arange(200) < rare
    one = np.where(np.arange(200) == 199, True, labels).astype(np.int64)
    other, labels = np.zeros(200, dtype=np.int64), labels.astype(np.int64)
    assert lone(labels, one, other)["macro_f1"].certain
    found = paired_difference(labels, one, other, np.arange(200), 2, key=KEY)
    assert not found["top1"].certain
    assert found["macro_f1"].certain is certain
    assert found["balanced_accuracy"].certain is certain
    assert found["macro_f1"].value > 0.4


def test_f1_of_a_class_is_tested_itself():
    """Three times as many of a rare class are found, with a few more errors.

    F1 rises from 40 / 125 to 120 / 210. About the class, and in top-1, the first model is right on fewer images.
    """
    labels = (np.arange(10_000) < 100).astype(np.int64)
    other, one = labels * 0, labels * 0
    other[:20] = one[:60] = 1
    other[200:205] = one[200:250] = 1
    found = paired_difference(labels, one, other, np.arange(10_000), 2, key=KEY)
    assert found["f1:1"].value == pytest.approx(120 / 210 - 40 / 125)
    assert found["f1:1"].certain
    assert not found["top1"].certain


def test_equally_good_models_rarely_differ():
    """200 pairs on 300 images with a rare class, with equal accuracy."""
    certain, of_class, draw = 0, 0, np.random.default_rng(0)
    for trial in range(200):
        labels = draw.choice(3, 300, p=[0.68, 0.3, 0.02])
        one, other = (np.where(draw.random(300) < 0.8, labels, draw.integers(0, 3, 300)) for _ in range(2))
        found = paired_difference(labels, one, other, np.arange(300), 3, key=KEY.fold(trial))
        certain += found["macro_f1"].certain
        of_class += any(found[f"f1:{k}"].certain for k in np.unique(labels))
    assert certain <= 20, certain
    assert of_class <= 20, of_class


def test_strong_difference_is_certain_also_if_computed_in_parts(monkeypatch):
    labels, one = answered(5, 600, 0.9)
    _, other = answered(6, 600, 0.6)
    whole = paired_difference(labels, one, other, np.arange(600), 3, key=KEY)
    assert whole["macro_f1"].certain
    assert whole["balanced_accuracy"].certain
    monkeypatch.setattr("efficientnetv2.metrics.metric_intervals.CELLS_AT_ONCE", 500)
    assert paired_difference(labels, one, other, np.arange(600), 3, key=KEY) == whole


@pytest.mark.parametrize(("pictures", "certain"), [(6, False), (7, True)])
def test_significance_level_is_divided_by_the_number_of_classes(pictures, certain):
    """2 * 0.5^6 is 0.031, which is enough for one class; 2 * 0.5^7 is 0.016. 5 % / 3 is 0.017."""
    labels = np.concatenate([np.tile([0, 1], 50), np.full(pictures, 2)])
    other = np.where(labels == 2, 0, labels)
    assert lone(labels, labels, other)["f1:2"].certain
    found = paired_difference(labels, labels, other, np.arange(len(labels)), 3, key=KEY)
    assert found["f1:2"].certain is certain
