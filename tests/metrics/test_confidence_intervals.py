"""Intervals equal those of resampled images or clusters, and have the stated coverage."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.sparse import csr_array
from sklearn import metrics
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score

from efficientnetv2.metrics import confidence_intervals
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.confidence_intervals import (
    _average_precision,
    cluster_bootstrap,
    multilabel_bootstrap,
    paired_bootstrap,
    percentile_interval,
    unit_counts,
    wilson_interval,
)
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.utils.random_key import Key

NAMES = ("a", "b", "c")
LABELS = np.repeat([0, 1, 2], [60, 30, 12])


def _guesses(true, generator, right=0.75, classes=3):
    """Predictions that are right with this probability, otherwise any class."""
    any_class = generator.integers(0, classes, len(true))
    return np.where(generator.uniform(size=len(true)) < right, true, any_class)


def _metrics(true, predicted, names=NAMES):
    return classification_metrics(true, np.eye(len(names))[predicted], names)


@pytest.mark.parametrize(
    ("name", "statistic"),
    [
        ("macro_f1", lambda t, p: metrics.f1_score(t, p, average="macro")),
        ("balanced_accuracy", metrics.balanced_accuracy_score),
        ("f1:a", lambda t, p: metrics.f1_score(t, p, labels=[0], average="macro", zero_division=0)),
    ],
)
def test_intervals_equal_scipy_bootstrap(name, statistic):
    """With enough images and errors in each class, both methods give nearly the same interval."""
    true = np.repeat([0, 1, 2], [100, 80, 60])
    predicted = _guesses(true, np.random.default_rng(1))
    found = bootstrap_intervals(_metrics(true, predicted), key=Key.of(0), draws=4000)[name]
    theirs = stats.bootstrap(
        (true, predicted), statistic, paired=True, vectorized=False, n_resamples=1000,
        method="percentile", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert found == pytest.approx(tuple(theirs), abs=0.15 * width)


def test_wilson_interval_equals_scipy():
    for right, images in [(0, 10), (7, 10), (10, 10), (93, 412)]:
        theirs = stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
        assert wilson_interval(right / images, images) == pytest.approx(tuple(theirs), abs=1e-12)


def test_ten_of_ten_right_has_an_interval():
    found = bootstrap_intervals(_metrics(LABELS[:10], LABELS[:10]), key=Key.of(0))
    assert found["top1"] == (pytest.approx(0.7225, abs=1e-4), 1.0)


def test_nine_of_nine_right_has_an_interval_for_each_class():
    """Wilson's lower end at 3 of 3 is 3 / (3 + 1.96²) = 0.4385, as F1 0.877 / 1.4385. For means, divide by √3."""
    found = bootstrap_intervals(_metrics(*[np.repeat([0, 1, 2], 3)] * 2), key=Key.of(0))
    f1 = 2 * 0.43850 / 1.43850
    for name in NAMES:
        assert found[f"f1:{name}"] == (pytest.approx(f1, abs=1e-4), 1.0)
    assert found["macro_f1"] == (pytest.approx(1 - (1 - f1) / 3**0.5, abs=1e-4), 1.0)
    assert found["balanced_accuracy"] == (pytest.approx(1 - (1 - 0.43850) / 3**0.5, abs=1e-4), 1.0)


def test_class_with_zero_recall_has_an_interval():
    true, predicted = np.repeat([0, 1, 2], [8, 8, 4]), np.repeat([0, 1, 0], [8, 8, 4])
    found = bootstrap_intervals(_metrics(true, predicted), key=Key.of(0))
    share = 1.96**2 / (4 + 1.96**2)  # Wilson's upper end at 0 of 4
    assert found["f1:c"] == (0.0, pytest.approx(2 * share / (1 + share), abs=1e-3))


@pytest.mark.parametrize("each", [3, 6])
def test_intervals_of_few_images_keep_their_coverage(each):
    """Three classes, 95 % right: often all images are right, where the bootstrap alone would have too low coverage."""
    generator = np.random.default_rng(7)
    true = np.repeat([0, 1, 2], each)
    inside = {"macro_f1": 0, "balanced_accuracy": 0, "f1:a": 0}
    for trial in range(300):
        wrong = generator.random(len(true)) < 0.05
        predicted = np.where(wrong, (true + generator.integers(1, 3, len(true))) % 3, true)
        found = bootstrap_intervals(_metrics(true, predicted), key=Key.of(trial), draws=200)
        for name in inside:
            inside[name] += found[name][0] <= 0.95 <= found[name][1]
    assert min(inside.values()) >= 0.93 * 300, inside


def test_intervals_have_95_percent_coverage():
    """400 datasets of 150 images from a known classifier. 95 % ± 3 standard errors, minus a point for few images."""
    generator = np.random.default_rng(5)
    frequencies = np.array([0.5, 0.3, 0.2])
    behavior = np.array([[0.8, 0.15, 0.05], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    joint = frequencies[:, None] * behavior
    f1 = 2 * joint.diagonal() / (joint.sum(0) + joint.sum(1))
    truth = {"top1": joint.trace(), "macro_f1": f1.mean(), "balanced_accuracy": 2.2 / 3, "f1:b": f1[1]}
    inside = dict.fromkeys(truth, 0)
    for trial in range(400):
        cells = generator.choice(9, p=joint.ravel(), size=150)
        found = bootstrap_intervals(_metrics(cells // 3, cells % 3), key=Key.of(trial), draws=400)
        for name, value in truth.items():
            inside[name] += found[name][0] <= value <= found[name][1]
    for name, count in inside.items():
        assert 0.905 <= count / 400 <= 0.985, (name, count)


def test_intervals_depend_on_the_key_but_not_on_the_memory(monkeypatch):
    shown = _metrics(LABELS, _guesses(LABELS, np.random.default_rng(1)))
    whole = bootstrap_intervals(shown, key=Key.of(0))
    assert whole != bootstrap_intervals(shown, key=Key.of(1))
    monkeypatch.setattr("efficientnetv2.metrics.confidence_intervals.CELLS_AT_ONCE", 50)
    assert bootstrap_intervals(shown, key=Key.of(0)) == whole


def test_only_classes_with_images_have_intervals_and_top5_needs_six_classes():
    names = [f"c{k}" for k in range(7)]
    found = bootstrap_intervals(_metrics(np.array([0, 0, 1]), np.array([0, 5, 1]), names), key=Key.of(0))
    of_classes = {f"{figure}:{name}" for figure in ("f1", "recall", "precision") for name in ("c0", "c1")}
    assert set(found) == {"top1", "top5", "macro_f1", "balanced_accuracy", *of_classes}
    never_called = bootstrap_intervals(_metrics(np.array([0, 1]), np.array([0, 0])), key=Key.of(0))
    assert "precision:b" not in never_called
    assert found["recall:c0"] == wilson_interval(0.5, 2)
    assert found["precision:c0"] == wilson_interval(1.0, 1)
    assert "top5" not in bootstrap_intervals(_metrics(LABELS, LABELS), key=Key.of(0))


@pytest.mark.timeout(60)
def test_many_classes_and_images_take_seconds():
    generator = np.random.default_rng(0)
    true = generator.integers(0, 1000, 50_000)
    predicted = _guesses(true, generator, classes=1000)
    shown = _metrics(true, predicted, [str(k) for k in range(1000)])
    low, high = bootstrap_intervals(shown, key=Key.of(0))["macro_f1"]
    assert high - low == pytest.approx(0.008, abs=0.002)  # 2 * 1.96 * sqrt(0.75 * 0.25 / 50,000)


def test_memory_depends_on_the_present_classes_only():
    """For the 21,841 classes of ImageNet-21k, 2,000 draws of each would need a gigabyte."""
    true = np.arange(500) * 40
    predicted = np.where(np.arange(500) % 4 == 0, true + 1, true)
    names = [str(k) for k in range(21_841)]
    probabilities = csr_array((np.ones(500), (np.arange(500), predicted)), shape=(500, len(names))).toarray()
    shown = classification_metrics(true, probabilities, names)
    del probabilities
    tracemalloc.start()
    found = bootstrap_intervals(shown, key=Key.of(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
    assert found["top1"] == wilson_interval(0.75, 500)
    assert found["recall:0"] == wilson_interval(0.0, 1)
    assert "recall:1" not in found


def test_draws_are_saved_as_means_not_by_class(monkeypatch):
    """F1 and recall of 3,000 classes in 500 draws are 24 MB. For the classes of ImageNet-21k, they are 170 MB."""
    monkeypatch.setattr("efficientnetv2.metrics.confidence_intervals.CELLS_AT_ONCE", 60_000)
    labels = np.arange(3_000)
    shown = _metrics(labels, np.where(labels % 4 == 0, labels + 1, labels), [str(k) for k in labels])
    tracemalloc.start()
    found = bootstrap_intervals(shown, key=Key.of(0), draws=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert found["macro_f1"][0] < shown.macro_f1 < found["macro_f1"][1]
    assert found["balanced_accuracy"][0] < 0.75 < found["balanced_accuracy"][1]


KEY = Key.of(0)


def answered(seed: int, count: int, right: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels of three classes, and predictions with this fraction right."""
    drawn = np.random.default_rng(seed)
    labels = drawn.choice(3, count, p=[0.6, 0.3, 0.1])
    return labels, np.where(drawn.random(count) < right, labels, drawn.integers(0, 3, count))


def test_copies_in_one_cluster_do_not_narrow_the_interval():
    """Eight copies of each image, as a cluster, give the interval of one. As independent images, they do not."""
    labels, predicted = answered(0, 150, 0.6)
    once = cluster_bootstrap(labels, predicted, np.arange(150), 3, key=KEY)
    copied = [np.repeat(each, 8) for each in (labels, predicted, np.arange(150))]
    together, apart = (
        cluster_bootstrap(*copied, 3, key=KEY),
        cluster_bootstrap(*copied[:2], np.arange(1200), 3, key=KEY),
    )
    for name, (low, high) in once.items():
        classes = 0.06 if ":" in name else 0.02  # fewer images, so draws differ more
        assert together[name] == pytest.approx((low, high), abs=classes)
        assert apart[name][1] - apart[name][0] < 0.5 * (high - low)


def test_cluster_intervals_have_95_percent_coverage():
    """40 locations of 10 images, all right or all wrong: about 95 of 100 intervals contain the true value."""
    covered = {"together": 0, "apart": 0}
    for seed in range(100):
        drawn = np.random.default_rng(seed)
        labels, places = np.tile([0, 1], 200), np.arange(400) // 10
        predicted = np.where((drawn.random(40) < 0.7)[places], labels, 1 - labels)
        for name, clusters in (("together", places), ("apart", np.arange(400))):
            low, high = cluster_bootstrap(labels, predicted, clusters, 2, key=KEY.fold(seed))["top1"]
            covered[name] += low <= 0.7 <= high
    assert covered["together"] >= 88
    assert covered["apart"] <= 60


@given(st.integers(0, 1000), st.sampled_from([0.4, 0.9]))
def test_difference_equals_the_difference_of_scikit_learn_metrics(seed, right):
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


def test_equal_predictions_have_no_difference():
    labels, one = answered(3, 80, 0.7)
    for found in paired_bootstrap(labels, one, one, np.arange(80), 3, key=KEY).values():
        assert (found.value, found.low, found.high, found.certain) == (0, 0, 0, False)


def test_paired_difference_is_certain_although_intervals_overlap():
    """A difference of 5 points on the same images is certain."""
    labels = np.tile([0, 1], 200)
    other = np.where(np.arange(400) % 3 == 0, 1 - labels, labels)
    one = np.where((np.arange(400) % 3 == 0) & (np.arange(400) >= 60), 1 - labels, labels)
    assert paired_bootstrap(labels, one, other, np.arange(400), 2, key=KEY)["top1"].certain
    spans = [cluster_bootstrap(labels, each, np.arange(400), 2, key=KEY)["top1"] for each in (one, other)]
    assert spans[0][0] < spans[1][1]


def test_intervals_of_five_clusters_have_95_percent_coverage():
    """Accuracies of locations are drawn from Beta(4, 1), forty images each: the true value is 0.8."""
    covered = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        place = np.repeat(np.arange(5), 40)
        labels = np.zeros(200, dtype=np.int64)
        predicted = (draw.random(200) > draw.beta(4, 1, 5)[place]).astype(np.int64)
        low, high = cluster_bootstrap(labels, predicted, place, 2, key=Key.of(seed))["top1"]
        covered += low <= 0.8 <= high
        assert 0 <= low <= high <= 1
    assert covered >= 0.9 * 200, covered


def lone(true, one, other, key=KEY):
    """The paired bootstrap of independent images."""
    return paired_bootstrap(true, one, other, np.arange(len(true)), 3, key=key)


def test_differences_of_classes_equal_scikit_learn():
    labels, one = answered(3, 220, 0.8)
    _, other = answered(4, 220, 0.5)
    found = lone(labels, one, other)
    by_class = np.subtract(*(f1_score(labels, each, average=None) for each in (one, other)))
    assert [found[f"f1:{k}"].value for k in range(3)] == pytest.approx(list(by_class))
    there = lone(np.array([0, 2, 2]), np.array([0, 2, 0]), np.array([0, 2, 1]))
    assert [name for name in there if name.startswith("f1:")] == ["f1:0", "f1:2"]


def test_paired_intervals_equal_scipy_bootstrap():
    """The paired bootstrap of macro-F1 gives the same ends, except for random variation."""
    labels, one = answered(3, 220, 0.8)
    _, other = answered(4, 220, 0.5)
    theirs = stats.bootstrap(
        (labels, one, other),
        lambda t, a, b: f1_score(t, a, average="macro") - f1_score(t, b, average="macro"),
        paired=True, vectorized=False, n_resamples=1000, method="percentile", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    found = lone(labels, one, other)["macro_f1"]
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.15 * (theirs.high - theirs.low))


def test_paired_intervals_have_95_percent_coverage():
    """250 datasets of 150 images, two classifiers of known accuracy. 95 % ± 3 standard errors of 250."""
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


def test_single_image_clusters_need_little_memory_and_any_memory_gives_equal_results(monkeypatch):
    """A dense table of a thousand classes would fill the memory."""
    labels = np.random.default_rng(0).integers(0, 1000, 20_000)
    one, other = (np.where(np.arange(20_000) % 4 == 0, 0, labels), np.where(np.arange(20_000) % 3 == 0, 1, labels))
    found = paired_bootstrap(labels, one, other, np.arange(20_000), 1000, key=KEY)["top1"]
    assert found.value == pytest.approx(1 / 3 - 1 / 4, abs=0.002)
    few = [each[:60] % 3 for each in (labels, one, other)]
    whole = lone(*few)
    monkeypatch.setattr("efficientnetv2.metrics.confidence_intervals.CELLS_AT_ONCE", 500)
    assert lone(*few) == whole


@given(st.integers(0, 1000))
def test_average_precision_of_a_draw_equals_scikit_learn(seed):
    """With equal probabilities of several images, and images drawn twice or not at all."""
    rng = np.random.default_rng(seed)
    is_so, probabilities = rng.random(12) < 0.4, rng.integers(0, 5, 12) / 5
    is_so[0] = True
    times = rng.multinomial(12, np.full(12, 1 / 12), size=4)
    for drawn, found in zip(times, _average_precision(times, is_so, probabilities), strict=True):
        rows = np.repeat(np.arange(12), drawn)
        if is_so[rows].any():
            assert found == pytest.approx(average_precision_score(is_so[rows], probabilities[rows]))
        else:
            assert np.isnan(found)


def test_multilabel_copies_in_one_cluster_do_not_narrow_the_interval(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.stack([rng.permutation(3)[:2] for _ in range(100)])
    probabilities = rng.dirichlet(np.ones(3), 100)
    probabilities[np.arange(100), labels[:, 0]] += 0.3
    called, right = probabilities > 0.4, (labels == probabilities.argmax(axis=1)[:, None]).any(axis=1)
    once = multilabel_bootstrap(labels, called, probabilities, right, np.arange(100), key=KEY)
    data = [np.repeat(each, 8, axis=0) for each in (labels, called, probabilities, right, np.arange(100))]
    together = multilabel_bootstrap(*data, key=KEY)
    apart = multilabel_bootstrap(*data[:4], np.arange(800), key=KEY)
    for name, (low, high) in once.items():
        assert together[name] == pytest.approx((low, high), abs=0.03), name
        assert apart[name][1] - apart[name][0] < 0.6 * (high - low), name
    monkeypatch.setattr(confidence_intervals, "_MAX_RANKED", 200 * 300 - 1)
    assert multilabel_bootstrap(labels, called, probabilities, right, np.arange(100), key=KEY) == {}, (
        "it would take too long"
    )


def test_single_images_are_drawn_by_type_beside_clusters():
    """Drawing a million images one by one would take minutes."""
    labels, predicted = answered(0, 20_000, 0.7)
    places = np.where(np.arange(20_000) < 10, np.arange(20_000) // 2, np.arange(20_000))
    _, counts = unit_counts(labels, [predicted], places, 3)
    assert len(counts) == 9 + 5, "of each of three classes called each of three, and five places"
    assert counts.sum() == 20_000 - 5


def test_interval_of_single_images_and_clusters_equals_direct_resampling():
    """200 single images and 10 locations of 10, all right or all wrong."""
    labels, predicted = answered(0, 300, 0.7)
    places = np.where(np.arange(300) < 100, np.arange(300) // 10, np.arange(300))
    predicted[:100] = np.where(places[:100] < 7, labels[:100], (labels[:100] + 1) % 3)
    cluster_of_image = np.unique(places, return_inverse=True)[1]
    times = np.random.default_rng(0).multinomial(210, np.full(210, 1 / 210), size=4000)[:, cluster_of_image]
    expected = percentile_interval(times @ (labels == predicted) / times.sum(axis=1))
    assert cluster_bootstrap(labels, predicted, places, 3, key=KEY)["top1"] == pytest.approx(expected, abs=0.01)
