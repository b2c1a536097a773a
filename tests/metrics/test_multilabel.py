"""Multi-label metrics, compared with scikit-learn and with calculations by hand."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score
from tests.messages import mentioning

from efficientnetv2.metrics.classification import classification_metrics, top5_correct
from efficientnetv2.metrics.confidence_intervals import wilson_interval
from efficientnetv2.metrics.metric_intervals import accuracy_intervals, metric_intervals
from efficientnetv2.metrics.multilabel import (
    assigned_labels,
    compute_metrics,
    is_correct,
    macro_metric,
    multilabel_metrics,
)
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

NAMES = ("animal", "cat", "dog")


def test_four_images_by_hand():
    """The two images of dog are first and third by probability: (1/1 + 2/3) / 2."""
    labels = [[0, 1], [0, 2], [2, -1], [0, -1]]
    probabilities = [[0.2, 0.7, 0.1], [0.3, 0.1, 0.6], [0.5, 0.2, 0.3], [0.45, 0.15, 0.4]]
    found = multilabel_metrics(labels, probabilities, NAMES)
    assert found.top1 == 3 / 4  # all but the third
    assert found.top5 is None
    assert found.per_class["cat"].average_precision == 1.0
    assert found.per_class["dog"].average_precision == pytest.approx((1 + 2 / 3) / 2)
    # The three images of animal are at ranks 2, 3 and 4.
    assert found.per_class["animal"].average_precision == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3)
    assert [one.support for one in found.per_class.values()] == [3, 1, 2]
    assert (found.majority_class, found.majority_top1) == ("animal", 3 / 4)
    assert macro_metric(found) == ("mean_average_precision", found.mean_average_precision)
    assert accuracy_intervals(found) == {"top1": wilson_interval(3 / 4, 4)}
    # Labels from half of the largest probability on: cat, then animal and dog three times. 5 of the 6 labels are
    # assigned.
    assert assigned_labels(probabilities).tolist() == [[False, True, False], *[[True, False, True]] * 3]
    assert found.f1_micro == pytest.approx(2 * 5 / (6 + 7))
    f1 = {"animal": 2 * 2 / (3 + 3), "cat": 1.0, "dog": 2 * 2 / (2 + 3)}
    assert {name: one.f1 for name, one in found.per_class.items()} == pytest.approx(f1)
    assert found.f1_macro == pytest.approx(sum(f1.values()) / 3)


@st.composite
def pictures(draw, classes=8):
    count = draw(st.integers(1, 20))
    sets = [sorted(draw(st.sets(st.integers(0, classes - 1), min_size=1, max_size=4))) for _ in range(count)]
    labels = np.full((count, 4), -1)
    for row, one in enumerate(sets):
        labels[row, : len(one)] = draw(st.permutations(one))
    seed = draw(st.integers(0, 2**32 - 1))
    return sets, labels, np.random.default_rng(seed).dirichlet(np.ones(classes), count)


@given(pictures())
def test_metrics_equal_scikit_learn_and_python_sets(data):
    sets, labels, probabilities = data
    hot = np.array([[number in one for number in range(8)] for one in sets])
    found = multilabel_metrics(labels, probabilities, [str(number) for number in range(8)])
    present = hot.any(axis=0)
    assert found.mean_average_precision == pytest.approx(
        average_precision_score(hot[:, present], probabilities[:, present], average="macro")
    )
    best = np.argsort(-probabilities, axis=1, kind="stable")
    assert found.top1 == pytest.approx(np.mean([best[row, 0] in one for row, one in enumerate(sets)]))
    assert found.top5 == pytest.approx(np.mean([bool(set(best[row, :5]) & set(one)) for row, one in enumerate(sets)]))
    assert found.majority_top1 == hot.mean(axis=0).max()
    called = probabilities >= probabilities.max(axis=1, keepdims=True) / 2
    assert found.f1_micro == pytest.approx(f1_score(hot, called, average="micro"))
    by_class = f1_score(hot, called, average=None, zero_division=0.0)
    assert found.f1_macro == pytest.approx(by_class[present].mean())
    assert [one.average_precision is None for one in found.per_class.values()] == (~present).tolist()


def test_metrics_of_single_labels_equal_those_of_classification():
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 7, 50), rng.dirichlet(np.ones(7), 50)
    names = [str(number) for number in range(7)]
    one, several = (
        classification_metrics(labels, probabilities, names),
        compute_metrics(labels[:, None], probabilities, names),
    )
    for name in ("top1", "top5", "ece", "majority_top1", "majority_class", "num_images"):
        assert getattr(several, name) == pytest.approx(getattr(one, name)), name
    assert macro_metric(one) == ("macro_f1", one.macro_f1)


def test_prediction_is_right_if_it_is_one_of_the_labels():
    assert is_correct([[0, 1], [2, -1]], [1, 0]).tolist() == [True, False]
    assert is_correct([0, 2], [0, 0]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("labels", "shares", "message"),
    [
        (np.empty((0, 2), int), np.empty((0, 3)), ("no labeled image",)),
        ([[0, 1], [-1, -1]], [[0.5, 0.5, 0], [0.5, 0.5, 0]], ("1", "label")),
        ([[0, 1]], [[np.nan, 0.5, 0.5]], ("NaN",)),
    ],
)
def test_invalid_input_is_rejected(labels, shares, message):
    with pytest.raises(InputError, match=mentioning(*message)):
        multilabel_metrics(labels, shares, NAMES)


def test_intervals_contain_the_metrics_and_shrink_with_more_images():
    rng = np.random.default_rng(0)
    wide = {}
    for count in (40, 640):
        labels = np.stack([rng.permutation(4)[:2] for _ in range(count)])
        logits = rng.normal(size=(count, 4))
        logits[np.arange(count)[:, None], labels] += 1.5
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        found = multilabel_metrics(labels, probabilities, ("a", "b", "c", "d"))
        intervals = metric_intervals(found, labels, probabilities, key=Key.of(0))
        assert set(intervals) == {"top1", "mean_average_precision", "f1_micro", "f1_macro"}
        for name, (low, high) in intervals.items():
            assert low < getattr(found, name) < high, name
        wide[count] = {name: high - low for name, (low, high) in intervals.items()}
    for name, width in wide[640].items():
        assert width == pytest.approx(wide[40][name] / 4, rel=0.5), name  # sixteen times the images


def test_sigmoid_labels_are_assigned_from_one_half_on():
    """By hand: animal and cat, no label, dog at exactly 0.5. 3 of 5 labels are assigned, and all 3 are right."""
    labels = [[0, 1], [0, 2], [2, -1]]
    probabilities = [[0.9, 0.8, 0.1], [0.4, 0.1, 0.45], [0.2, 0.3, 0.5]]
    assert assigned_labels(probabilities, "sigmoid").tolist() == [
        [True, True, False],
        [False] * 3,
        [False, False, True],
    ]
    found = multilabel_metrics(labels, probabilities, NAMES, "sigmoid")
    assert found.activation == "sigmoid"
    assert found.f1_micro == pytest.approx(2 * 3 / (5 + 3))
    f1 = {"animal": 2 * 1 / (2 + 1), "cat": 1.0, "dog": 2 * 1 / (2 + 1)}
    assert {name: one.f1 for name, one in found.per_class.items()} == pytest.approx(f1)
    assert vars(compute_metrics(labels, probabilities, NAMES, "sigmoid")) == vars(found)
    shared = multilabel_metrics(labels, probabilities, NAMES)
    assert (found.top1, found.mean_average_precision) == (shared.top1, shared.mean_average_precision)
    assert found.f1_micro != shared.f1_micro


def test_intervals_use_the_label_rule_of_the_metrics():
    """With sigmoid, all labels are right in every draw. With softmax, some labels would be wrong."""
    labels = np.tile([[0, -1], [1, 2]], (20, 1))
    probabilities = np.tile([[0.9, 0.48, 0.48], [0.1, 0.6, 0.7]], (20, 1))
    found = multilabel_metrics(labels, probabilities, NAMES, "sigmoid")
    intervals = metric_intervals(found, labels, probabilities, key=Key.of(0))
    assert (found.f1_micro, intervals["f1_micro"]) == (1.0, wilson_interval(1.0, 40))
    by_softmax = multilabel_metrics(labels, probabilities, NAMES)
    assert metric_intervals(by_softmax, labels, probabilities, key=Key.of(0))["f1_micro"][1] < 1


def test_top5_of_21841_classes_is_computed_in_parts():
    generator = np.random.default_rng(0)
    probabilities = generator.random((200, 21_841), dtype=np.float32)  # 183 are sorted at a time
    best = np.argsort(-probabilities, axis=1)
    true = np.stack([best[:, 9], np.where(np.arange(200) % 2, best[:, 4], -1)], axis=1)
    tracemalloc.start()
    hits = top5_correct(true, probabilities)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert hits.tolist() == (np.arange(200) % 2 == 1).tolist()
    assert peak < 70e6
