"""Labels that a network doubts, where pictures hang together."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from efficientnetv2.base.keys import Key
from efficientnetv2.evaluation.inspect.embedded import doubted_labels
from efficientnetv2.inference.predict import Embeddings

EACH = 30


def asked(together, *, classes=2):
    """Pictures of some classes, told apart by their embeddings; the first of all has a wrong label."""
    labels = np.repeat(np.arange(classes), EACH)
    vectors = np.random.default_rng(0).normal(size=(len(labels), 8)).astype(np.float32)
    vectors[np.arange(len(labels)), labels] += 8
    labels[0] = 1
    names = tuple(f"c{k}" for k in range(classes))

    class Manifest(SimpleNamespace):
        def __len__(self) -> int:
            return len(labels)

    manifest = Manifest(class_names=names, paths=[f"{row}.jpg" for row in range(len(labels))])
    embeddings = Embeddings(np.arange(len(labels)), labels, vectors)
    return doubted_labels(manifest, embeddings, together, key=Key.of(0)).facts


def test_a_class_that_is_one_scene_over_and_over_is_not_asked_about():
    """As the frames of a film are, each like the next: no fold could teach the class without knowing all of it."""
    film = [(row, row + 1) for row in range(EACH, 2 * EACH - 1)]
    assert asked(film) == {}, "of the other class alone nothing can be said"
    facts = asked(film, classes=3)
    assert facts["asked"] == 2 * EACH - 1
    assert facts["suspected_labels"] == []


@pytest.mark.parametrize("scenes", [5, 6])
def test_classes_of_a_few_scenes_are_asked_about(scenes):
    groups = [
        tuple(range(start, EACH * k + EACH, scenes))
        for k in range(2)
        for start in range(EACH * k, EACH * k + scenes)
    ]
    facts = asked([group for group in groups if 0 not in group])
    assert [one["path"] for one in facts["suspected_labels"]] == ["0.jpg"]
    assert facts["out_of_fold_accuracy"] > 0.95
