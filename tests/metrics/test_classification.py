"""Metrics equal those of scikit-learn, also if classes have no images or predictions."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from tests.messages import mentioning

from efficientnetv2.metrics import classification
from efficientnetv2.metrics.classification import (
    ClassMetrics,
    SizeMetrics,
    best_size,
    classification_metrics,
    size_metrics,
    top5_correct,
    top_classes,
)
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

NAMES = ("forest", "pasture", "maize")


def _one_hot(predicted, classes):
    return np.eye(classes)[np.asarray(predicted)]


def test_six_images_by_hand():
    """forest 2 of 3 right, pasture 1 of 2, maize 1 of 1: each metric is a fraction that can be counted."""
    true = [0, 0, 0, 1, 1, 2]
    found = classification_metrics(true, _one_hot([0, 0, 1, 1, 2, 2], 3), NAMES)
    assert found.top1 == pytest.approx(4 / 6)
    assert found.top5 is None
    assert found.per_class["forest"] == ClassMetrics(1.0, pytest.approx(2 / 3), pytest.approx(4 / 5), 3)
    assert found.per_class["pasture"] == ClassMetrics(0.5, 0.5, 0.5, 2)
    assert found.per_class["maize"] == ClassMetrics(0.5, 1.0, pytest.approx(2 / 3), 1)
    assert found.macro_f1 == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found.majority_top1 == 0.5
    assert found.majority_class == "forest"
    assert found.confusion.toarray().tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found.class_names == NAMES
    assert found.num_images == 6


@given(data=st.data(), classes=st.integers(2, 8), pictures=st.integers(1, 40))
def test_metrics_equal_scikit_learn_over_the_present_classes(data, classes, pictures):
    """For any classes that are missing in labels or predictions, and without warnings."""
    numbers = st.lists(st.integers(0, classes - 1), min_size=pictures, max_size=pictures)
    true, predicted = np.array(data.draw(numbers)), np.array(data.draw(numbers))
    found = classification_metrics(true, _one_hot(predicted, classes), [f"c{k}" for k in range(classes)])
    present = np.unique(true)
    assert found.top1 == pytest.approx(metrics.accuracy_score(true, predicted))
    f1 = metrics.f1_score(true, predicted, labels=present, average="macro", zero_division=0)
    assert found.macro_f1 == pytest.approx(f1)
    recalls = [(predicted[true == k] == k).mean() for k in present]
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls))
    measured = [name for name, one in found.per_class.items() if one.f1 is not None]
    assert measured == [f"c{k}" for k in present]
    assert found.majority_top1 == pytest.approx(np.bincount(true).max() / pictures)


def test_top5_counts_labels_among_the_five_most_probable_classes():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(8), size=50)
    true = generator.integers(0, 8, size=50)
    expected = np.mean([true[i] in np.argsort(probabilities[i])[-5:] for i in range(50)])
    assert classification_metrics(true, probabilities, [str(k) for k in range(8)]).top5 == pytest.approx(expected)
    assert classification_metrics(true % 5, generator.dirichlet(np.ones(5), size=50), list("abcde")).top5 is None


def test_top5_takes_the_first_classes_of_equal_probability():
    """As in top-1. Probabilities written with six digits are often equal."""
    probabilities = np.tile([0.3, *[0.1] * 7], (8, 1))
    assert top5_correct(np.arange(8), probabilities).tolist() == [True] * 5 + [False] * 3
    generator = np.random.default_rng(0)
    probabilities = generator.integers(1, 4, (200, 8)).astype(float)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    true = generator.integers(0, 8, 200)
    first = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    assert (top5_correct(true, probabilities) == (first == true[:, None]).any(axis=1)).all()
    assert (
        classification_metrics(true, probabilities, [str(k) for k in range(8)]).top5
        == top5_correct(true, probabilities).mean()
    )


def test_21841_classes_need_little_memory():
    """A dense confusion matrix would be 3.8 GB. Images are ranked in parts, and all of them count."""
    classes, num_images = 21_841, 400  # 183 images are ranked at a time
    generator = np.random.default_rng(0)
    probabilities = generator.random((num_images, classes), dtype=np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    true = np.where(np.arange(num_images) % 4, np.argsort(probabilities, axis=1)[:, -5], 0)
    names = [f"n{k:08}" for k in range(classes)]
    tracemalloc.start()
    found = classification_metrics(true, probabilities, names)
    intervals = bootstrap_intervals(found, key=Key.of(0), draws=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
    assert found.top5 == 0.75
    assert intervals["top5"][0] < 0.75 < intervals["top5"][1]


def test_single_class_is_always_right():
    found = classification_metrics([0, 0], np.ones((2, 1)), ["only"])
    assert (found.top1, found.macro_f1, found.majority_top1) == (1.0, 1.0, 1.0)


def test_invalid_input_names_the_image():
    with pytest.raises(InputError, match="no labeled image"):
        classification_metrics([], np.empty((0, 3)), NAMES)
    with pytest.raises(InputError, match=mentioning("1", "-1", "label")):
        classification_metrics([0, -1], _one_hot([0, 0], 3), NAMES)
    with pytest.raises(InputError, match=mentioning("0", "3", "label")):
        classification_metrics([3, 0], _one_hot([0, 0], 3), NAMES)
    probabilities = _one_hot([0, 0, 1], 3)
    probabilities[2, 1] = np.nan
    with pytest.raises(InputError, match=mentioning("1", "3", "2")):
        classification_metrics([0, 0, 1], probabilities, NAMES)


def test_top_classes_are_found_without_a_full_sort(monkeypatch):
    """The sorted order of a row needs twice its memory. Of equal probabilities, the first class comes first."""
    few = np.array([[0.1, 0.4, 0.4, 0.1], [0.5, 0.1, 0.1, 0.3]])
    assert top_classes(few, 2).tolist() == [[1, 2], [0, 3]]
    assert top_classes(np.empty((0, 4)), 2).shape == (0, 2)
    monkeypatch.setattr(classification, "_SORTED_AT_ONCE", 50_000)
    probabilities = np.random.default_rng(0).random((1_000, 1_000), np.float32)
    tracemalloc.start()
    try:
        found = top_classes(probabilities, 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < probabilities.nbytes / 2
    np.testing.assert_array_equal(found, np.argsort(-probabilities, axis=1, kind="stable")[:, :5])


def test_metrics_of_a_size_are_computed_from_its_predictions():
    """3 of 4 right in 2 s, with F1 of 2/3 and 4/5. Then all right in 8 s."""
    small, large = (
        size_metrics(px, [0, 0, 1, 1], _one_hot(predicted, 2), ("cat", "dog"), seconds)
        for px, predicted, seconds in ((64, [0, 1, 1, 1], 2.0), (128, [0, 0, 1, 1], 8.0))
    )
    assert (small.image_size, small.top1, small.images_per_s) == (64, 0.75, 2.0)
    assert small.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert (large.image_size, large.top1, large.images_per_s) == (128, 1.0, 0.5)
    # Wilson's interval of 3 of 4: (0.75 + z²/8 ± z sqrt(0.1875/4 + z²/64)) / (1 + z²/4) with z = 1.96
    assert (small.low, small.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)


def test_best_size_is_the_smallest_with_the_highest_metric():
    points = [
        SizeMetrics(px, top1, 0.0, 1.0, macro_f1, 1.0)
        for px, top1, macro_f1 in ((96, 0.7, 0.6), (128, 0.8, 0.5), (160, 0.8, 0.6))
    ]
    assert best_size(points).image_size == 128
    assert best_size(points, "macro_f1").image_size == 96
