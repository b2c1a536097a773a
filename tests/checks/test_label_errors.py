"""Labels that a network doubts, where images hang together and where there are very many of them."""

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


def asked(together, *, classes=2):
    """Images of some classes, told apart by their embeddings; the first of all has a wrong label."""
    labels = np.repeat(np.arange(classes), EACH)
    vectors = np.random.default_rng(0).normal(size=(len(labels), 8)).astype(np.float32)
    vectors[np.arange(len(labels)), labels] += 8
    labels[0] = 1
    return doubted(labels, vectors, together)


def doubted(labels, vectors, together=()):
    """What is said of images with these labels, -1 for none."""

    class Manifest(SimpleNamespace):
        def __len__(self) -> int:
            return len(labels)

    names = tuple(f"c{k}" for k in range(labels.max() + 1))
    paths = [f"{row}.jpg" for row in range(len(labels))]
    dataset = Manifest(class_names=names, paths=paths, targets=labels, separator=None)
    return label_error_section(dataset, Embeddings(np.arange(len(labels)), labels, vectors), together, key=Key.of(0))


def test_a_class_that_is_one_scene_over_and_over_is_not_asked_about():
    """As the frames of a film are, each like the next: no fold could teach the class without knowing all of it."""
    film = [(row, row + 1) for row in range(EACH, 2 * EACH - 1)]
    alone = asked(film)
    assert alone.facts == {}, "of the other class alone nothing can be said"
    (note,) = alone.issues  # else the page would call its labels right
    assert (note.kind, note.severity) == ("unchecked_labels", "note")
    assert mentions(note.sentence, "'c1'", "5", "'c0'")
    found = asked(film, classes=3)
    assert found.facts["num_checked"] == 2 * EACH - 1
    assert found.facts["suspected_labels"] == []
    (note,) = found.issues
    assert mentions(note.sentence, "1", "3", "'c1'", "5")


def test_classes_of_a_few_pictures_are_named_and_one_class_alone_is_not():
    vectors = np.random.default_rng(0).normal(size=(9 + EACH, 8)).astype(np.float32)
    few = np.repeat([0, 1], [9, EACH])
    (note,) = doubted(few, vectors).issues
    assert mentions(note.sentence, "'c0'", "10", "'c1'")
    for labels in (np.zeros_like(few), np.full_like(few, -1)):
        assert doubted(labels, vectors).issues == [], "of that there are findings already"


@pytest.mark.parametrize("scenes", [5, 6])
def test_classes_of_a_few_scenes_are_asked_about(scenes):
    groups = [
        tuple(range(start, EACH * k + EACH, scenes)) for k in range(2) for start in range(EACH * k, EACH * k + scenes)
    ]
    facts = asked([group for group in groups if 0 not in group]).facts
    assert [one["path"] for one in facts["suspected_labels"]] == ["0.jpg"]
    assert facts["out_of_fold_accuracy"] > 0.95


def test_scenes_shown_again_do_not_choose_the_strength():
    """Asked for what it knows by heart, a classifier would take too weak a penalty, and be sure of what is chance."""
    rng = np.random.default_rng(2)
    labels = np.tile(np.arange(60) % 3, 3)
    own = rng.normal(size=(60, 300))
    shown = (np.tile(own, (3, 1)) + 0.1 * rng.normal(size=(180, 300))).astype(np.float32)
    groups = np.tile(np.arange(60), 3)
    probabilities = out_of_fold_probabilities(shown, labels, groups, key=Key.of(0))
    loss = -np.log(probabilities[np.arange(180), labels]).mean()
    assert loss == pytest.approx(np.log(3), abs=0.05), "no more than chance among three is known"


def test_of_very_many_pictures_some_of_each_class_teach_the_others(monkeypatch):
    """In 8 dimensions a fit of two classes takes 3,200 multiply-adds an image; five of them answer, five choose."""
    sizes, learnt = [], module.fit_classifier

    def counted(vectors, labels, strength, balanced):
        sizes.append(len(vectors))
        return learnt(vectors, labels, strength, balanced)

    monkeypatch.setattr(module, "fit_classifier", counted)
    monkeypatch.setattr(module, "_MAX_PREDICTION_WORK", 26 * 5 * 3200)
    monkeypatch.setattr(module, "_MAX_TUNING_WORK", 26 * 5 * 3200)
    found = asked([])
    assert max(sizes) <= 26
    assert found.facts["num_checked"] == 2 * EACH
    assert [one["path"] for one in found.facts["suspected_labels"]] == ["0.jpg"]
    assert mentions(found.issues[0].advice, "26")
    monkeypatch.setattr(module, "_MAX_TUNING_WORK", 0)
    sizes.clear()
    asked([])
    assert len(sizes) == 5, "the usual strength is not chosen"


def test_so_many_classes_that_they_would_take_hours_are_not_asked_about(monkeypatch):
    monkeypatch.setattr(module, "_MAX_PREDICTION_WORK", 19 * 5 * 3200)  # ten images of either class are twenty
    monkeypatch.setattr(module, "fit_classifier", lambda *_, **__: pytest.fail("it has learnt"))
    found = asked([])
    assert found.facts == {}
    assert [one.kind for one in found.issues] == ["unchecked_labels"]
    assert mentions(found.issues[0].sentence, "2", "class")


def test_the_longest_part_tells_how_far_it_is_and_ends_where_it_said():
    told = {}

    @contextmanager
    def counting(what, total, unit):
        told[what] = [total]
        yield told[what].append

    labels = np.repeat([0, 1], EACH)
    vectors = np.random.default_rng(0).normal(size=(len(labels), 8)).astype(np.float32)
    with reported_to(counting):
        find_lookalikes(vectors)
        out_of_fold_probabilities(vectors, labels, np.arange(len(labels)), key=Key.of(0))
    assert list(told) == ["comparing", "choosing the label classifier", "checking labels"]
    for total, *done in told.values():
        assert done == sorted(done)
        assert done[-1] == total
    assert told["checking labels"] == [4 * 60, *range(48, 241, 48)], "of five folds each four teach"


def test_a_rare_class_is_learnt_whole_where_the_others_are_not():
    labels = np.repeat([0, 1], [10_000, 12])
    taught = labels[module._stratified_sample(labels, 500, Key.of(0))]
    assert np.bincount(taught).tolist() == [499, 10]
