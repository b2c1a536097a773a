"""Label errors that a model suspects, among groups of images and in very large datasets."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from tests.messages import mentions

from efficientnetv2.checks import label_errors as module
from efficientnetv2.checks.duplicates import find_lookalikes
from efficientnetv2.checks.label_errors import label_error_section, out_of_fold_probabilities
from efficientnetv2.inference.predict import Embeddings
from efficientnetv2.utils.logs import reported_to
from efficientnetv2.utils.random_key import Key

EACH = 30


def check_classes(together, *, classes=2):
    """Check labels of some classes with separate embeddings. Only the first label is wrong."""
    labels = np.repeat(np.arange(classes), EACH)
    vectors = np.random.default_rng(0).normal(size=(len(labels), 8)).astype(np.float32)
    vectors[np.arange(len(labels)), labels] += 8
    labels[0] = 1
    return check_labels(labels, vectors, together)


def check_labels(labels, vectors, together=()):
    """Return the report section for these labels, -1 for unlabeled images."""

    class Manifest(SimpleNamespace):
        def __len__(self) -> int:
            return len(labels)

    names = tuple(f"c{k}" for k in range(labels.max() + 1))
    paths = [f"{row}.jpg" for row in range(len(labels))]
    dataset = Manifest(class_names=names, paths=paths, targets=labels, separator=None)
    return label_error_section(dataset, Embeddings(np.arange(len(labels)), labels, vectors), together, key=Key.of(0))


def test_class_of_a_single_scene_is_not_checked():
    """For example frames of a film, each like the next: no fold could learn the class from other images."""
    film = [(row, row + 1) for row in range(EACH, 2 * EACH - 1)]
    alone = check_classes(film)
    assert alone.facts == {}, "of the other class alone nothing can be said"
    (note,) = alone.issues  # otherwise the page would call the labels of this class correct
    assert (note.kind, note.severity) == ("unchecked_labels", "note")
    assert mentions(note.sentence, "'c1'", "5", "'c0'")
    found = check_classes(film, classes=3)
    assert found.facts["num_checked"] == 2 * EACH - 1
    assert found.facts["suspected_labels"] == []
    (note,) = found.issues
    assert mentions(note.sentence, "1", "3", "'c1'", "5")


def test_classes_of_few_images_are_named_and_a_single_class_is_not():
    vectors = np.random.default_rng(0).normal(size=(9 + EACH, 8)).astype(np.float32)
    few = np.repeat([0, 1], [9, EACH])
    (note,) = check_labels(few, vectors).issues
    assert mentions(note.sentence, "'c0'", "10", "'c1'")
    for labels in (np.zeros_like(few), np.full_like(few, -1)):
        assert check_labels(labels, vectors).issues == [], "of that there are findings already"


@pytest.mark.parametrize("scenes", [5, 6])
def test_classes_of_few_scenes_are_checked(scenes):
    groups = [
        tuple(range(start, EACH * k + EACH, scenes)) for k in range(2) for start in range(EACH * k, EACH * k + scenes)
    ]
    facts = check_classes([group for group in groups if 0 not in group]).facts
    assert [one["path"] for one in facts["suspected_labels"]] == ["0.jpg"]
    assert facts["out_of_fold_accuracy"] > 0.95


def test_repeated_scenes_do_not_select_the_regularization():
    """If tuned on scenes that it knows, a classifier would select too weak a penalty, and be confident by chance."""
    rng = np.random.default_rng(2)
    labels = np.tile(np.arange(60) % 3, 3)
    own = rng.normal(size=(60, 300))
    shown = (np.tile(own, (3, 1)) + 0.1 * rng.normal(size=(180, 300))).astype(np.float32)
    groups = np.tile(np.arange(60), 3)
    probabilities = out_of_fold_probabilities(shown, labels, groups, key=Key.of(0))
    loss = -np.log(probabilities[np.arange(180), labels]).mean()
    assert loss == pytest.approx(np.log(3), abs=0.05), "no more than chance among three is known"


def test_large_classes_are_sampled_to_train_the_classifier(monkeypatch):
    """In 8 dimensions a fit of two classes takes 3,200 multiply-adds per image. Five fits predict, five tune."""
    sizes, fit = [], module.fit_classifier

    def counted(vectors, labels, strength, balanced):
        sizes.append(len(vectors))
        return fit(vectors, labels, strength, balanced)

    monkeypatch.setattr(module, "fit_classifier", counted)
    monkeypatch.setattr(module, "_MAX_PREDICTION_WORK", 26 * 5 * 3200)
    monkeypatch.setattr(module, "_MAX_TUNING_WORK", 26 * 5 * 3200)
    found = check_classes([])
    assert max(sizes) <= 26
    assert found.facts["num_checked"] == 2 * EACH
    assert [one["path"] for one in found.facts["suspected_labels"]] == ["0.jpg"]
    assert mentions(found.issues[0].advice, "26")
    monkeypatch.setattr(module, "_MAX_TUNING_WORK", 0)
    sizes.clear()
    check_classes([])
    assert len(sizes) == 5, "the usual strength is not chosen"


def test_too_many_classes_are_not_checked(monkeypatch):
    monkeypatch.setattr(module, "_MAX_PREDICTION_WORK", 19 * 5 * 3200)  # ten images per class are 20 images
    monkeypatch.setattr(module, "fit_classifier", lambda *_, **__: pytest.fail("it has learnt"))
    found = check_classes([])
    assert found.facts == {}
    assert [one.kind for one in found.issues] == ["unchecked_labels"]
    assert mentions(found.issues[0].sentence, "2", "class")


def test_longest_step_reports_its_progress_and_ends_at_its_total():
    progress = {}

    @contextmanager
    def counting(what, total, unit):
        progress[what] = [total]
        yield progress[what].append

    labels = np.repeat([0, 1], EACH)
    vectors = np.random.default_rng(0).normal(size=(len(labels), 8)).astype(np.float32)
    with reported_to(counting):
        find_lookalikes(vectors)
        out_of_fold_probabilities(vectors, labels, np.arange(len(labels)), key=Key.of(0))
    assert list(progress) == ["comparing", "choosing the label classifier", "checking labels"]
    for total, *done in progress.values():
        assert done == sorted(done)
        assert done[-1] == total
    assert progress["checking labels"] == [4 * 60, *range(48, 241, 48)], "of five folds each four teach"


def test_sample_has_at_least_ten_images_of_a_rare_class():
    labels = np.repeat([0, 1], [10_000, 12])
    sampled = labels[module._stratified_sample(labels, 500, Key.of(0))]
    assert np.bincount(sampled).tolist() == [499, 10]
