"""Intervals of metrics on clusters of images: as wide as clusters require, never narrower than by images."""

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
    """Two labels each of four classes, and probabilities that are related to them."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.permutation(4)[:2] for _ in range(count)])
    logits = rng.normal(size=(count, 4))
    logits[np.arange(count)[:, None], labels] += 1.5
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def of_six(count, seed=0):
    """Six classes with random probabilities, so the top five miss a class."""
    rng = np.random.default_rng(seed)
    probabilities = rng.random((count, 6))
    return rng.integers(0, 6, count), probabilities / probabilities.sum(axis=1, keepdims=True)


def of_three(count, seed=0):
    labels, predicted = answered(seed, count, 0.6)
    return labels, np.eye(3)[predicted]


@pytest.mark.parametrize("drawn", [of_three, of_six, of_several])
def test_copies_in_one_cluster_do_not_narrow_the_interval(drawn):
    """Eight copies of each image as clusters: intervals are about √8 times as wide as for independent images."""
    labels, probabilities, places = (np.repeat(each, 8, axis=0) for each in (*drawn(150), np.arange(150)))
    apart, together = reach(labels, probabilities), reach(labels, probabilities, places)
    assert set(apart) == set(together)
    wanted = {of_three: "precision:c2", of_six: "top5", of_several: "mean_average_precision"}
    assert {"top1", wanted[drawn]} <= set(apart)
    for name, one in apart.items():
        assert width(together[name]) > 2 * width(one), name


def test_uniform_clusters_count_as_one_image_each():
    """30 locations of 10 images give the interval of 30 images, not of 300."""
    labels = np.tile([0, 1], 150)
    right = np.repeat(np.arange(30) % 10 < 7, 10)
    probabilities = np.eye(2)[np.where(right, labels, 1 - labels)]
    found = reach(labels, probabilities, np.arange(300) // 10)["top1"]
    assert width(found) == pytest.approx(width(wilson_interval(0.7, 30)), rel=0.15)
    assert width(found) > 2.5 * width(wilson_interval(0.7, 300))


def test_cluster_intervals_have_95_percent_coverage():
    """100 datasets of 40 locations of 10 images, all right or all wrong."""
    covered = {"together": 0, "apart": 0}
    labels, places = np.tile([0, 1], 200), np.arange(400) // 10
    for seed in range(100):
        right = (np.random.default_rng(seed).random(40) < 0.7)[places]
        probabilities = np.eye(2)[np.where(right, labels, 1 - labels)]
        for name, clusters in (("together", places), ("apart", None)):
            low, high = reach(labels, probabilities, clusters, key=KEY.fold(seed))["top1"]
            covered[name] += low <= 0.7 <= high
    assert covered["together"] >= 90
    assert covered["apart"] <= 60


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 20), st.sampled_from([of_three, of_six, of_several]))
def test_cluster_interval_is_never_narrower_than_that_of_single_images(seed, places, drawn):
    labels, probabilities = drawn(40, seed)
    clusters = np.random.default_rng(seed).integers(0, places, 40)
    apart, together = reach(labels, probabilities), reach(labels, probabilities, clusters)
    assert set(apart) == set(together)
    for name, (low, high) in apart.items():
        assert together[name][0] <= low <= high <= together[name][1], name


def test_equal_clusters_do_not_narrow_the_interval():
    """Ten locations with nine of ten right each: all draws of locations would be equal."""
    labels = np.zeros(100, dtype=np.int64)
    probabilities = np.eye(2)[(np.arange(100) % 10 == 0).astype(np.int64)]
    assert reach(labels, probabilities, np.arange(100) // 10)["top1"] == wilson_interval(0.9, 100)


@pytest.mark.parametrize("clusters", [np.arange(60), np.zeros(60, dtype=np.int64)])
def test_single_image_clusters_or_one_cluster_change_nothing(clusters):
    labels, probabilities = of_six(60)
    assert reach(labels, probabilities, clusters) == reach(labels, probabilities)


def test_large_multilabel_datasets_draw_clusters_for_top1(monkeypatch):
    """Other metrics have no interval, because drawing them would take too long."""
    monkeypatch.setattr("efficientnetv2.metrics.confidence_intervals._MAX_RANKED", 1000)
    labels, probabilities, places = (np.repeat(each, 8, axis=0) for each in (*of_several(60), np.arange(60)))
    apart, together = reach(labels, probabilities), reach(labels, probabilities, places)
    assert apart == accuracy_intervals(multilabel_metrics(labels, probabilities, ("a", "b", "c", "d")))
    assert set(together) == {"top1"}
    assert width(together["top1"]) > 2 * width(apart["top1"])


@pytest.mark.parametrize(("probability", "f1"), [(0.4, 0.0), (0.6, 1.0)])
@pytest.mark.parametrize("clusters", [None, np.repeat(np.arange(4), 5)])
def test_metric_that_is_equal_in_all_draws_has_an_interval(probability, f1, clusters):
    """Each of twenty images gets its only label, or no image gets a label."""
    labels = np.arange(20)[:, None] % 2
    probabilities = np.where(np.arange(2) == labels, probability, 0.1)
    found = multilabel_metrics(labels, probabilities, ("c0", "c1"), "sigmoid")
    reached = metric_intervals(found, labels, probabilities, clusters=clusters, key=KEY)
    assert found.f1_micro == found.f1_macro == f1
    assert reached["f1_micro"] == reached["f1_macro"] == wilson_interval(f1, 20 if clusters is None else 4)
    assert reached["mean_average_precision"][0] < found.mean_average_precision == 1


@pytest.mark.parametrize("of_a_class", [7, 10, 13])
def test_perfect_average_precision_has_an_interval_despite_rounding(of_a_class):
    """Precision 1 at each image, summed in sevenths and tenths, is not exactly 1."""
    labels = np.repeat(np.arange(2), of_a_class)[:, None]
    right = np.linspace(0.6, 0.9, 2 * of_a_class)[:, None]
    probabilities = np.where(np.arange(2) == labels, right, right - 0.5)
    found = multilabel_metrics(labels, probabilities, ("c0", "c1"), "sigmoid")
    assert found.mean_average_precision == pytest.approx(1)
    reached = metric_intervals(found, labels, probabilities, key=KEY)["mean_average_precision"]
    assert reached == pytest.approx(wilson_interval(1.0, 2 * of_a_class))
