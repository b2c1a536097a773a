"""Scenes that a network recognises, and labels that it doubts where pictures hang together."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from efficientnetv2.base.keys import Key
from efficientnetv2.evaluation.inspect import embedded
from efficientnetv2.evaluation.inspect.embedded import (
    LARGEST_SCENE,
    doubted_labels,
    out_of_fold,
    standing_out,
)
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

    paths = [f"{row}.jpg" for row in range(len(labels))]
    manifest = Manifest(class_names=names, paths=paths, targets=labels, separator=None)
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


def test_scenes_shown_again_do_not_choose_the_strength():
    """Asked for what it knows by heart, a classifier would take too weak a penalty, and be sure of what is chance."""
    rng = np.random.default_rng(2)
    labels = np.tile(np.arange(60) % 3, 3)
    own = rng.normal(size=(60, 300))
    shown = (np.tile(own, (3, 1)) + 0.1 * rng.normal(size=(180, 300))).astype(np.float32)
    groups = np.tile(np.arange(60), 3)
    probabilities = out_of_fold(shown, labels, groups, key=Key.of(0))
    loss = -np.log(probabilities[np.arange(180), labels]).mean()
    assert loss == pytest.approx(np.log(3), abs=0.05), "no more than chance among three is known"


def scenes(*sizes, spread=0.1):
    """Vectors of things, each shown so many times with a little between; and the places of each that is shown again."""
    rng = np.random.default_rng(0)
    things = rng.normal(size=(len(sizes), 64))
    vectors = np.repeat(things, sizes, axis=0) + spread * rng.normal(size=(sum(sizes), 64))
    ends = np.cumsum(sizes)
    return vectors.astype(np.float32), [
        tuple(range(end - n, end)) for end, n in zip(ends, sizes, strict=True)
    ]


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.2])
def test_a_scene_stands_out_however_often_it_is_shown(spread):
    sizes = [*range(2, LARGEST_SCENE + 1), *[1] * 200]
    vectors, groups = scenes(*sizes, spread=spread)
    found = standing_out(vectors)
    assert sorted(group for group, _ in found) == groups[: LARGEST_SCENE - 1]
    ratios = [ratio for _, ratio in found]
    assert ratios == sorted(ratios)
    assert max(ratios) < 0.5


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.2])
def test_what_is_alike_in_larger_numbers_is_no_scene(spread):
    """Such as a class whose pictures look alike: nothing in it stands out from the rest of it."""
    vectors, _ = scenes(LARGEST_SCENE + 1, 20, 40, *[1] * 100, spread=spread)
    assert standing_out(vectors) == []


def test_no_scene_without_a_gap_on_all_sides():
    """Each like the next: three of an end have a gap behind them as the first sees it, but not as the third does."""
    angles = np.radians([0, 10, 20, 32, 44, 56, 68, 180, 270])
    assert standing_out(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)) == []


@pytest.mark.parametrize("count", range(4))
def test_equal_pictures_are_no_scene_without_another_beside_them(count):
    assert standing_out(np.ones((count, 4), dtype=np.float32)) == []


def test_as_many_distances_are_held_as_fit_however_many_pictures_there_are(monkeypatch):
    vectors, groups = scenes(2, 3, 4, *[1] * 50)
    whole = standing_out(vectors)
    monkeypatch.setattr(embedded, "_AT_ONCE", 150)  # two rows of 59
    assert standing_out(vectors) == whole
    assert sorted(group for group, _ in whole) == groups[:3]
