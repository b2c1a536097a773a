"""Intervals of pictures that hang together, and of differences on the same pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score

from efficientnetv2.metrics import confidence_intervals
from efficientnetv2.metrics.confidence_intervals import (
    _average_precision,
    cluster_bootstrap,
    multilabel_bootstrap,
    paired_bootstrap,
    percentile_interval,
    unit_counts,
)
from efficientnetv2.metrics.metric_differences import paired_difference
from efficientnetv2.utils.rng import Key

KEY = Key.of(0)


def answered(seed: int, count: int, right: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels of three classes, and answers of which so many are right."""
    drawn = np.random.default_rng(seed)
    labels = drawn.choice(3, count, p=[0.6, 0.3, 0.1])
    return labels, np.where(drawn.random(count) < right, labels, drawn.integers(0, 3, count))


def test_copies_of_pictures_tell_nothing_new():
    """Eight copies of each, drawn as one, leave the interval of one each; taken for independent they would not."""
    labels, answers = answered(0, 150, 0.6)
    once = cluster_bootstrap(labels, answers, np.arange(150), 3, key=KEY)
    copied = [np.repeat(each, 8) for each in (labels, answers, np.arange(150))]
    together, apart = (
        cluster_bootstrap(*copied, 3, key=KEY),
        cluster_bootstrap(*copied[:2], np.arange(1200), 3, key=KEY),
    )
    for name, (low, high) in once.items():
        classes = 0.06 if ":" in name else 0.02  # of fewer pictures, so that the draws differ more
        assert together[name] == pytest.approx((low, high), abs=classes)
        assert apart[name][1] - apart[name][0] < 0.5 * (high - low)


def test_the_interval_holds_the_truth_where_places_differ():
    """40 places of 10 pictures, each place right as a whole or not: 95 % of 100 intervals hold the share, about."""
    held = {"together": 0, "apart": 0}
    for seed in range(100):
        drawn = np.random.default_rng(seed)
        labels, places = np.tile([0, 1], 200), np.arange(400) // 10
        answers = np.where((drawn.random(40) < 0.7)[places], labels, 1 - labels)
        for name, clusters in (("together", places), ("apart", np.arange(400))):
            low, high = cluster_bootstrap(labels, answers, clusters, 2, key=KEY.fold(seed))["top1"]
            held[name] += low <= 0.7 <= high
    assert held["together"] >= 88
    assert held["apart"] <= 60


@given(st.integers(0, 1000), st.sampled_from([0.4, 0.9]))
def test_the_difference_is_that_of_the_figures(seed, right):
    labels, one = answered(seed, 60, right)
    _, other = answered(seed + 1, 60, 0.5)
    there = np.unique(labels)
    apart = paired_bootstrap(labels, one, other, np.arange(60), 3, key=KEY)
    expected = {
        "top1": (one == labels).mean() - (other == labels).mean(),
        "macro_f1": np.subtract(*(f1_score(labels, x, labels=there, average="macro") for x in (one, other))),
        "balanced_accuracy": np.mean(
            [(one == k)[labels == k].mean() - (other == k)[labels == k].mean() for k in there]
        ),
    }
    if set(one) | set(other) <= set(there):
        assert expected["balanced_accuracy"] == pytest.approx(
            balanced_accuracy_score(labels, one) - balanced_accuracy_score(labels, other)
        )
    for name, value in expected.items():
        assert apart[name].value == pytest.approx(value)


def test_of_the_same_answers_the_difference_is_nothing():
    labels, one = answered(3, 80, 0.7)
    for found in paired_bootstrap(labels, one, one, np.arange(80), 3, key=KEY).values():
        assert (found.value, found.low, found.high, found.certain) == (0, 0, 0, False)


def test_right_together_is_surer_than_right_apart():
    """One better by 5 points on the same pictures is certain, though both intervals overlap."""
    labels = np.tile([0, 1], 200)
    other = np.where(np.arange(400) % 3 == 0, 1 - labels, labels)
    one = np.where((np.arange(400) % 3 == 0) & (np.arange(400) >= 60), 1 - labels, labels)
    assert paired_bootstrap(labels, one, other, np.arange(400), 2, key=KEY)["top1"].certain
    spans = [cluster_bootstrap(labels, each, np.arange(400), 2, key=KEY)["top1"] for each in (one, other)]
    assert spans[0][0] < spans[1][1]


def alike_places() -> tuple[np.ndarray, ...]:
    """Labels, two answers and places: four of ten pictures, in each of which one mistake stands against two."""
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
    """Three pictures of ten are answered better in each: more than enough pictures, were they independent."""
    place = np.repeat(np.arange(places), 10)
    labels = np.zeros(len(place), dtype=np.int64)
    other = (np.arange(len(place)) % 10 < 3).astype(np.int64)
    found = paired_difference(labels, labels, other, place, 2, key=KEY)
    assert found["top1"].certain is certain
    assert paired_difference(labels, labels, other, np.arange(len(place)), 2, key=KEY)["top1"].certain


def test_intervals_of_five_places_hold_the_truth():
    """Places differ as Beta(4, 1), forty pictures of each: the truth is 0.8."""
    held = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        place = np.repeat(np.arange(5), 40)
        labels = np.zeros(200, dtype=np.int64)
        answers = (draw.random(200) > draw.beta(4, 1, 5)[place]).astype(np.int64)
        low, high = cluster_bootstrap(labels, answers, place, 2, key=Key.of(seed))["top1"]
        held += low <= 0.8 <= high
        assert 0 <= low <= high <= 1
    assert held >= 0.9 * 200, held


def lone(true, one, other, key=KEY):
    """Of pictures that do not hang together."""
    return paired_bootstrap(true, one, other, np.arange(len(true)), 3, key=key)


def test_the_differences_of_classes_are_scikit_learns():
    labels, one = answered(3, 220, 0.8)
    _, other = answered(4, 220, 0.5)
    found = lone(labels, one, other)
    by_class = np.subtract(*(f1_score(labels, each, average=None) for each in (one, other)))
    assert [found[f"f1:{k}"].value for k in range(3)] == pytest.approx(list(by_class))
    there = lone(np.array([0, 2, 2]), np.array([0, 2, 0]), np.array([0, 2, 1]))
    assert [name for name in there if name.startswith("f1:")] == ["f1:0", "f1:2"]


def test_the_intervals_are_scipys_of_resampled_pictures():
    """Its paired bootstrap of macro-F1, picture by picture: the same ends but for the chance in both."""
    labels, one = answered(3, 220, 0.8)
    _, other = answered(4, 220, 0.5)
    theirs = stats.bootstrap(
        (labels, one, other),
        lambda t, a, b: f1_score(t, a, average="macro") - f1_score(t, b, average="macro"),
        paired=True, vectorized=False, n_resamples=1000, method="percentile", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    found = lone(labels, one, other)["macro_f1"]
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.15 * (theirs.high - theirs.low))


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    """250 sets of 150 pictures of two classifiers of known accuracy, 95 % ± 3 standard errors of 250."""
    generator, inside = np.random.default_rng(4), 0
    truth = (0.8 - 0.7) * 2 / 3  # a wrong guess is right in a third of the cases
    for trial in range(250):
        true = generator.integers(0, 3, 150)
        one, other = (
            np.where(generator.random(150) < right, true, generator.integers(0, 3, 150)) for right in (0.8, 0.7)
        )
        found = lone(true, one, other, KEY.fold(trial))["top1"]
        inside += found.low <= truth <= found.high
    assert 0.905 <= inside / 250 <= 0.992, inside


def test_lone_pictures_are_as_many_clusters_of_one_and_memory_changes_nothing(monkeypatch):
    """A table of all of a thousand classes would fill the memory: it is never made."""
    labels = np.random.default_rng(0).integers(0, 1000, 20_000)
    one, other = (np.where(np.arange(20_000) % 4 == 0, 0, labels), np.where(np.arange(20_000) % 3 == 0, 1, labels))
    found = paired_bootstrap(labels, one, other, np.arange(20_000), 1000, key=KEY)["top1"]
    assert found.value == pytest.approx(1 / 3 - 1 / 4, abs=0.002)
    few = [each[:60] % 3 for each in (labels, one, other)]
    whole = lone(*few)
    monkeypatch.setattr("efficientnetv2.metrics.confidence_intervals.CELLS_AT_ONCE", 500)
    assert lone(*few) == whole


@given(st.integers(0, 1000))
def test_average_precision_of_a_draw_is_scikit_learns_of_the_pictures_drawn(seed):
    """With shares that several pictures have, and pictures drawn twice or not at all."""
    rng = np.random.default_rng(seed)
    is_so, shares = rng.random(12) < 0.4, rng.integers(0, 5, 12) / 5
    is_so[0] = True
    times = rng.multinomial(12, np.full(12, 1 / 12), size=4)
    for drawn, found in zip(times, _average_precision(times, is_so, shares), strict=True):
        rows = np.repeat(np.arange(12), drawn)
        if is_so[rows].any():
            assert found == pytest.approx(average_precision_score(is_so[rows], shares[rows]))
        else:
            assert np.isnan(found)


def test_of_multilabel_too_copies_drawn_as_one_tell_nothing_new(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.stack([rng.permutation(3)[:2] for _ in range(100)])
    shares = rng.dirichlet(np.ones(3), 100)
    shares[np.arange(100), labels[:, 0]] += 0.3
    called, right = shares > 0.4, (labels == shares.argmax(axis=1)[:, None]).any(axis=1)
    once = multilabel_bootstrap(labels, called, shares, right, np.arange(100), key=KEY)
    data = [np.repeat(each, 8, axis=0) for each in (labels, called, shares, right, np.arange(100))]
    together = multilabel_bootstrap(*data, key=KEY)
    apart = multilabel_bootstrap(*data[:4], np.arange(800), key=KEY)
    for name, (low, high) in once.items():
        assert together[name] == pytest.approx((low, high), abs=0.03), name
        assert apart[name][1] - apart[name][0] < 0.6 * (high - low), name
    monkeypatch.setattr(confidence_intervals, "_MAX_RANKED", 200 * 300 - 1)
    assert multilabel_bootstrap(labels, called, shares, right, np.arange(100), key=KEY) == {}, "it would take too long"


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
    """Of 200 pairs on 300 pictures with a rare class, in which each is as often right."""
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
    monkeypatch.setattr("efficientnetv2.metrics.metric_differences.CELLS_AT_ONCE", 500)
    assert paired_difference(labels, one, other, np.arange(600), 3, key=KEY) == whole


def test_lone_pictures_beside_places_are_drawn_by_kinds():
    """One by one, the draws of a million of which a few hang together take minutes."""
    labels, answers = answered(0, 20_000, 0.7)
    places = np.where(np.arange(20_000) < 10, np.arange(20_000) // 2, np.arange(20_000))
    _, counts = unit_counts(labels, [answers], places, 3)
    assert len(counts) == 9 + 5, "of each of three classes called each of three, and five places"
    assert counts.sum() == 20_000 - 5


def test_the_interval_is_that_of_lone_pictures_and_places_drawn_alike():
    """200 by themselves and 10 places of 10, of which each is right as a whole or not."""
    labels, answers = answered(0, 300, 0.7)
    places = np.where(np.arange(300) < 100, np.arange(300) // 10, np.arange(300))
    answers[:100] = np.where(places[:100] < 7, labels[:100], (labels[:100] + 1) % 3)
    of_picture = np.unique(places, return_inverse=True)[1]
    times = np.random.default_rng(0).multinomial(210, np.full(210, 1 / 210), size=4000)[:, of_picture]
    expected = percentile_interval(times @ (labels == answers) / times.sum(axis=1))
    assert cluster_bootstrap(labels, answers, places, 3, key=KEY)["top1"] == pytest.approx(expected, abs=0.01)
