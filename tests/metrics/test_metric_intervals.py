"""Intervals of figures where images hang together: as wide as what was drawn leaves them, never narrower."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.metrics.test_confidence_intervals import answered

from efficientnetv2.metrics.confidence_intervals import wilson_interval
from efficientnetv2.metrics.metric_intervals import accuracy_intervals, metric_intervals
from efficientnetv2.metrics.multilabel import compute_metrics, multilabel_metrics
from efficientnetv2.utils.random_key import Key

KEY = Key.of(0)


def reach(labels, shares, clusters=None, *, key=KEY):
    names = tuple(f"c{k}" for k in range(shares.shape[1]))
    return metric_intervals(compute_metrics(labels, shares, names), labels, shares, clusters=clusters, key=key)


def width(interval):
    return interval[1] - interval[0]


def of_several(count, seed=0):
    """Two labels each of four classes, and shares that know them more or less."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.permutation(4)[:2] for _ in range(count)])
    logits = rng.normal(size=(count, 4))
    logits[np.arange(count)[:, None], labels] += 1.5
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def of_six(count, seed=0):
    """Of six classes, so that chance leaves one out of the five most probable."""
    rng = np.random.default_rng(seed)
    shares = rng.random((count, 6))
    return rng.integers(0, 6, count), shares / shares.sum(axis=1, keepdims=True)


def of_three(count, seed=0):
    labels, answers = answered(seed, count, 0.6)
    return labels, np.eye(3)[answers]


@pytest.mark.parametrize("drawn", [of_three, of_six, of_several])
def test_copies_of_pictures_tell_nothing_new(drawn):
    """Of eight copies each, drawn as one, every interval is about √8 times as wide as of as many images."""
    labels, shares, places = (np.repeat(each, 8, axis=0) for each in (*drawn(150), np.arange(150)))
    apart, together = reach(labels, shares), reach(labels, shares, places)
    assert set(apart) == set(together)
    wanted = {of_three: "precision:c2", of_six: "top5", of_several: "mean_average_precision"}
    assert {"top1", wanted[drawn]} <= set(apart)
    for name, one in apart.items():
        assert width(together[name]) > 2 * width(one), name


def test_places_that_are_right_or_wrong_as_a_whole_are_as_good_as_one_picture_each():
    """30 places of 10 images leave what 30 images leave, and not what 300 do."""
    labels = np.tile([0, 1], 150)
    right = np.repeat(np.arange(30) % 10 < 7, 10)
    shares = np.eye(2)[np.where(right, labels, 1 - labels)]
    found = reach(labels, shares, np.arange(300) // 10)["top1"]
    assert width(found) == pytest.approx(width(wilson_interval(0.7, 30)), rel=0.15)
    assert width(found) > 2.5 * width(wilson_interval(0.7, 300))


def test_the_interval_holds_the_truth_where_places_differ():
    """Of 100 sets of 40 places of 10 images, each place right as a whole or not: 95 % hold the share, about."""
    held = {"together": 0, "apart": 0}
    labels, places = np.tile([0, 1], 200), np.arange(400) // 10
    for seed in range(100):
        right = (np.random.default_rng(seed).random(40) < 0.7)[places]
        shares = np.eye(2)[np.where(right, labels, 1 - labels)]
        for name, clusters in (("together", places), ("apart", None)):
            low, high = reach(labels, shares, clusters, key=KEY.fold(seed))["top1"]
            held[name] += low <= 0.7 <= high
    assert held["together"] >= 90
    assert held["apart"] <= 60


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 20), st.sampled_from([of_three, of_six, of_several]))
def test_no_interval_is_narrower_than_that_of_single_pictures(seed, places, drawn):
    labels, shares = drawn(40, seed)
    clusters = np.random.default_rng(seed).integers(0, places, 40)
    apart, together = reach(labels, shares), reach(labels, shares, clusters)
    assert set(apart) == set(together)
    for name, (low, high) in apart.items():
        assert together[name][0] <= low <= high <= together[name][1], name


def test_places_all_alike_leave_no_less_to_chance():
    """Ten places of which each has nine right of ten: drawn as a whole they would all come to the same."""
    labels = np.zeros(100, dtype=np.int64)
    shares = np.eye(2)[(np.arange(100) % 10 == 0).astype(np.int64)]
    assert reach(labels, shares, np.arange(100) // 10)["top1"] == wilson_interval(0.9, 100)


@pytest.mark.parametrize("clusters", [np.arange(60), np.zeros(60, dtype=np.int64)])
def test_where_each_picture_is_by_itself_or_all_are_of_one_place_nothing_changes(clusters):
    labels, shares = of_six(60)
    assert reach(labels, shares, clusters) == reach(labels, shares)


def test_of_very_many_pictures_of_multilabel_the_shares_are_drawn_whole_too(monkeypatch):
    """Their other figures have no interval at all: to draw them would take too long."""
    monkeypatch.setattr("efficientnetv2.metrics.confidence_intervals._MAX_RANKED", 1000)
    labels, shares, places = (np.repeat(each, 8, axis=0) for each in (*of_several(60), np.arange(60)))
    apart, together = reach(labels, shares), reach(labels, shares, places)
    assert apart == accuracy_intervals(multilabel_metrics(labels, shares, ("a", "b", "c", "d")))
    assert set(together) == {"top1"}
    assert width(together["top1"]) > 2 * width(apart["top1"])


@pytest.mark.parametrize(("probability", "f1"), [(0.4, 0.0), (0.6, 1.0)])
@pytest.mark.parametrize("clusters", [None, np.repeat(np.arange(4), 5)])
def test_what_is_the_same_in_every_draw_is_not_called_certain(probability, f1, clusters):
    """Each of twenty images is given its one label, or none is given any."""
    labels = np.arange(20)[:, None] % 2
    shares = np.where(np.arange(2) == labels, probability, 0.1)
    found = multilabel_metrics(labels, shares, ("c0", "c1"), "sigmoid")
    reached = metric_intervals(found, labels, shares, clusters=clusters, key=KEY)
    assert found.f1_micro == found.f1_macro == f1
    assert reached["f1_micro"] == reached["f1_macro"] == wilson_interval(f1, 20 if clusters is None else 4)
    assert reached["mean_average_precision"][0] < found.mean_average_precision == 1


@pytest.mark.parametrize("of_a_class", [7, 10, 13])
def test_a_perfect_order_is_not_called_certain_for_a_rounding(of_a_class):
    """Precision 1 at each of them, added up in sevenths and tenths, is not 1 to the last digit."""
    labels = np.repeat(np.arange(2), of_a_class)[:, None]
    right = np.linspace(0.6, 0.9, 2 * of_a_class)[:, None]
    shares = np.where(np.arange(2) == labels, right, right - 0.5)
    found = multilabel_metrics(labels, shares, ("c0", "c1"), "sigmoid")
    assert found.mean_average_precision == pytest.approx(1)
    reached = metric_intervals(found, labels, shares, key=KEY)["mean_average_precision"]
    assert reached == pytest.approx(wilson_interval(1.0, 2 * of_a_class))
