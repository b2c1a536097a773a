"""Differences on the same images are certain only where chance is excluded, by images and by clusters."""

from __future__ import annotations

import numpy as np
import pytest
from tests.metrics.test_confidence_intervals import KEY, answered, lone

from efficientnetv2.metrics.confidence_intervals import paired_bootstrap
from efficientnetv2.metrics.metric_intervals import paired_difference


def alike_places() -> tuple[np.ndarray, ...]:
    """Labels, two answers and places: four of ten images, in each of which one mistake stands against two."""
    labels, place = np.tile([0, 1], 20), np.arange(40) // 10
    wrong = [np.isin(np.arange(40) % 10, those) for those in ([0], [1, 2])]
    return labels, *(np.where(those, 1 - labels, labels) for those in wrong), place


def test_few_places_that_differ_alike_leave_as_much_to_chance_as_their_pictures():
    labels, one, other, place = alike_places()
    assert paired_bootstrap(labels, one, other, place, 2, key=KEY)["top1"].certain
    apart = paired_bootstrap(labels, one, other, np.arange(40), 2, key=KEY)
    assert not apart["top1"].certain
    for name, found in paired_difference(labels, one, other, place, 2, key=KEY).items():
        assert found.value == apart[name].value
        assert found.low <= apart[name].low
        assert found.high >= apart[name].high


@pytest.mark.parametrize(("places", "certain"), [(4, False), (6, True)])
def test_places_that_all_speak_for_one_have_to_be_six(places, certain):
    """Three images of ten are answered better in each: more than enough images, were they independent."""
    place = np.repeat(np.arange(places), 10)
    labels = np.zeros(len(place), dtype=np.int64)
    other = (np.arange(len(place)) % 10 < 3).astype(np.int64)
    found = paired_difference(labels, labels, other, place, 2, key=KEY)
    assert found["top1"].certain is certain
    assert paired_difference(labels, labels, other, np.arange(len(place)), 2, key=KEY)["top1"].certain


@pytest.mark.parametrize(("pictures", "certain"), [(1, False), (5, False), (6, True)])
def test_a_few_pictures_make_no_difference_certain(pictures, certain):
    """Of 200 the first network has a few right that the other has not; 2 * 0.5^5 is 0.06, 2 * 0.5^6 is 0.03."""
    labels = np.tile([0, 1], 100)
    other = labels.copy()
    other[:pictures] = 1 - other[:pictures]
    found = paired_difference(labels, labels, other, np.arange(200), 2, key=KEY)
    assert found["top1"].value == pytest.approx(pictures / 200)
    assert found["top1"].certain is certain
    assert found["macro_f1"].certain is certain


def test_of_a_class_with_few_pictures_nothing_is_certain():
    """All three of class 2 are right by the one and wrong by the other; of three classes a class has 5 % / 3."""
    labels = np.concatenate([np.tile([0, 1], 50), [2, 2, 2]])
    other = np.where(labels == 2, 0, labels)
    assert lone(labels, labels, other)["f1:2"].certain
    found = paired_difference(labels, labels, other, np.arange(103), 3, key=KEY)
    assert not found["f1:2"].certain
    assert found["f1:2"].value == 1


@pytest.mark.parametrize(("rare", "certain"), [(5, False), (6, True)])
def test_a_few_pictures_of_a_rare_class_speak_for_one_only_by_what_they_count(rare, certain):
    """The first has them right and a frequent one wrong, the second the other way round.

    Hardly a draw of 200 lacks all rare ones, so that the interval of macro-F1 leaves 0 out. Swapped in all ways, those
    in which the rare ones stay together set both as far apart: 2 of 2^5 for five, 0.06.
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


def test_answers_that_are_as_good_are_told_apart_as_seldom_as_it_says():
    """Of 200 pairs on 300 images with a rare class, in which each is as often right."""
    certain, draw = 0, np.random.default_rng(0)
    for trial in range(200):
        labels = draw.choice(3, 300, p=[0.68, 0.3, 0.02])
        one, other = (np.where(draw.random(300) < 0.8, labels, draw.integers(0, 3, 300)) for _ in range(2))
        found = paired_difference(labels, one, other, np.arange(300), 3, key=KEY.fold(trial))
        certain += found["macro_f1"].certain
    assert certain <= 20, certain


def test_a_strong_difference_of_many_pictures_is_certain_in_parts_too(monkeypatch):
    labels, one = answered(5, 600, 0.9)
    _, other = answered(6, 600, 0.6)
    whole = paired_difference(labels, one, other, np.arange(600), 3, key=KEY)
    assert whole["macro_f1"].certain
    assert whole["balanced_accuracy"].certain
    monkeypatch.setattr("efficientnetv2.metrics.metric_intervals.CELLS_AT_ONCE", 500)
    assert paired_difference(labels, one, other, np.arange(600), 3, key=KEY) == whole
