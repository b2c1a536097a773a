"""The intervals are those of resampling pictures, and hold what they promise."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_array
from sklearn import metrics

from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.confidence_intervals import wilson_interval
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.utils.rng import Key

NAMES = ("a", "b", "c")
LABELS = np.repeat([0, 1, 2], [60, 30, 12])


def _guesses(true, generator, right=0.75, classes=3):
    """Answers that are right with that probability, else any class."""
    any_class = generator.integers(0, classes, len(true))
    return np.where(generator.uniform(size=len(true)) < right, true, any_class)


def _figures(true, predicted, names=NAMES):
    return classification_metrics(true, np.eye(len(names))[predicted], names)


@pytest.mark.parametrize(
    ("name", "statistic"),
    [
        ("macro_f1", lambda t, p: metrics.f1_score(t, p, average="macro")),
        ("balanced_accuracy", metrics.balanced_accuracy_score),
        ("f1:a", lambda t, p: metrics.f1_score(t, p, labels=[0], average="macro", zero_division=0)),
    ],
)
def test_as_scipy_resampling_the_pictures_themselves(name, statistic):
    """Of enough pictures, with mistakes in each class: where either way of ours says nearly the same."""
    true = np.repeat([0, 1, 2], [100, 80, 60])
    predicted = _guesses(true, np.random.default_rng(1))
    found = bootstrap_intervals(_figures(true, predicted), key=Key.of(0), draws=4000)[name]
    theirs = stats.bootstrap(
        (true, predicted), statistic, paired=True, vectorized=False, n_resamples=1000,
        method="percentile", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert found == pytest.approx(tuple(theirs), abs=0.15 * width)


def test_wilson_is_scipys():
    for right, images in [(0, 10), (7, 10), (10, 10), (93, 412)]:
        theirs = stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
        assert wilson_interval(right / images, images) == pytest.approx(tuple(theirs), abs=1e-12)


def test_all_of_ten_right_is_not_certain():
    found = bootstrap_intervals(_figures(LABELS[:10], LABELS[:10]), key=Key.of(0))
    assert found["top1"] == (pytest.approx(0.7225, abs=1e-4), 1.0)


def test_all_of_nine_right_is_not_certain_by_class_either():
    """Wilson's lower end at 3 of 3 is 3 / (3 + 1.96²) = 0.4385, as F1 0.877 / 1.4385; of three, by the root of 3."""
    found = bootstrap_intervals(_figures(*[np.repeat([0, 1, 2], 3)] * 2), key=Key.of(0))
    f1 = 2 * 0.43850 / 1.43850
    for name in NAMES:
        assert found[f"f1:{name}"] == (pytest.approx(f1, abs=1e-4), 1.0)
    assert found["macro_f1"] == (pytest.approx(1 - (1 - f1) / 3**0.5, abs=1e-4), 1.0)
    assert found["balanced_accuracy"] == (pytest.approx(1 - (1 - 0.43850) / 3**0.5, abs=1e-4), 1.0)


def test_a_class_never_right_may_be_right_sometimes():
    true, predicted = np.repeat([0, 1, 2], [8, 8, 4]), np.repeat([0, 1, 0], [8, 8, 4])
    found = bootstrap_intervals(_figures(true, predicted), key=Key.of(0))
    share = 1.96**2 / (4 + 1.96**2)  # Wilson's upper end at 0 of 4
    assert found["f1:c"] == (0.0, pytest.approx(2 * share / (1 + share), abs=1e-3))


@pytest.mark.parametrize("each", [3, 6])
def test_few_pictures_of_a_good_classifier_promise_no_more_than_they_hold(each):
    """Three classes, 95 % right: mostly all of a few pictures are, and the bootstrap alone holds the truth seldom."""
    generator = np.random.default_rng(7)
    true = np.repeat([0, 1, 2], each)
    inside = {"macro_f1": 0, "balanced_accuracy": 0, "f1:a": 0}
    for trial in range(300):
        wrong = generator.random(len(true)) < 0.05
        predicted = np.where(wrong, (true + generator.integers(1, 3, len(true))) % 3, true)
        found = bootstrap_intervals(_figures(true, predicted), key=Key.of(trial), draws=200)
        for name in inside:
            inside[name] += found[name][0] <= 0.95 <= found[name][1]
    assert min(inside.values()) >= 0.93 * 300, inside


def test_the_interval_holds_the_true_value_as_often_as_it_says():
    """400 sets of 150 pictures from a known classifier; 95 % ± 3 standard errors, less a point for few."""
    generator = np.random.default_rng(5)
    shares = np.array([0.5, 0.3, 0.2])
    behavior = np.array([[0.8, 0.15, 0.05], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    joint = shares[:, None] * behavior
    f1 = 2 * joint.diagonal() / (joint.sum(0) + joint.sum(1))
    truth = {"top1": joint.trace(), "macro_f1": f1.mean(), "balanced_accuracy": 2.2 / 3, "f1:b": f1[1]}
    inside = dict.fromkeys(truth, 0)
    for trial in range(400):
        cells = generator.choice(9, p=joint.ravel(), size=150)
        found = bootstrap_intervals(_figures(cells // 3, cells % 3), key=Key.of(trial), draws=400)
        for name, value in truth.items():
            inside[name] += found[name][0] <= value <= found[name][1]
    for name, count in inside.items():
        assert 0.905 <= count / 400 <= 0.985, (name, count)


def test_the_same_key_gives_the_same_interval_whatever_fits_into_memory(monkeypatch):
    shown = _figures(LABELS, _guesses(LABELS, np.random.default_rng(1)))
    whole = bootstrap_intervals(shown, key=Key.of(0))
    assert whole != bootstrap_intervals(shown, key=Key.of(1))
    monkeypatch.setattr("efficientnetv2.metrics.confidence_intervals.CELLS_AT_ONCE", 50)
    assert bootstrap_intervals(shown, key=Key.of(0)) == whole


def test_classes_without_pictures_get_no_interval_and_top5_where_there_is_one():
    names = [f"c{k}" for k in range(7)]
    found = bootstrap_intervals(_figures(np.array([0, 0, 1]), np.array([0, 5, 1]), names), key=Key.of(0))
    of_classes = {f"{figure}:{name}" for figure in ("f1", "recall", "precision") for name in ("c0", "c1")}
    assert set(found) == {"top1", "top5", "macro_f1", "balanced_accuracy", *of_classes}
    never_called = bootstrap_intervals(_figures(np.array([0, 1]), np.array([0, 0])), key=Key.of(0))
    assert "precision:b" not in never_called
    assert found["recall:c0"] == wilson_interval(0.5, 2)
    assert found["precision:c0"] == wilson_interval(1.0, 1)
    assert "top5" not in bootstrap_intervals(_figures(LABELS, LABELS), key=Key.of(0))


@pytest.mark.timeout(60)
def test_a_thousand_classes_of_fifty_thousand_pictures_take_seconds():
    generator = np.random.default_rng(0)
    true = generator.integers(0, 1000, 50_000)
    predicted = _guesses(true, generator, classes=1000)
    shown = _figures(true, predicted, [str(k) for k in range(1000)])
    low, high = bootstrap_intervals(shown, key=Key.of(0))["macro_f1"]
    assert high - low == pytest.approx(0.008, abs=0.002)  # 2 * 1.96 * sqrt(0.75 * 0.25 / 50,000)


def test_memory_follows_the_classes_that_there_are_not_those_that_there_could_be():
    """Of ImageNet-21k's classes, 2,000 draws of each would be a gigabyte."""
    true = np.arange(500) * 40
    predicted = np.where(np.arange(500) % 4 == 0, true + 1, true)
    names = [str(k) for k in range(21_841)]
    shares = csr_array((np.ones(500), (np.arange(500), predicted)), shape=(500, len(names))).toarray()
    shown = classification_metrics(true, shares, names)
    del shares
    tracemalloc.start()
    found = bootstrap_intervals(shown, key=Key.of(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
    assert found["top1"] == wilson_interval(0.75, 500)
    assert found["recall:0"] == wilson_interval(0.0, 1)
    assert "recall:1" not in found


def test_of_very_many_classes_the_means_of_each_draw_are_kept_not_the_classes(monkeypatch):
    """Kept for each of 500 draws, F1 and recall of 3,000 classes are 24 MB; of ImageNet-21k's they are 170 MB."""
    monkeypatch.setattr("efficientnetv2.metrics.confidence_intervals.CELLS_AT_ONCE", 60_000)
    labels = np.arange(3_000)
    shown = _figures(labels, np.where(labels % 4 == 0, labels + 1, labels), [str(k) for k in labels])
    tracemalloc.start()
    found = bootstrap_intervals(shown, key=Key.of(0), draws=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert found["macro_f1"][0] < shown.macro_f1 < found["macro_f1"][1]
    assert found["balanced_accuracy"][0] < 0.75 < found["balanced_accuracy"][1]
