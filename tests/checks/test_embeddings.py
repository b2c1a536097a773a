"""Scenes that a network recognizes."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from efficientnetv2.checks import embeddings as embedded
from efficientnetv2.checks.embeddings import LARGEST_SCENE, find_lookalikes, lookalike_section
from efficientnetv2.inference.predict import Embeddings


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
    found = find_lookalikes(vectors)
    assert sorted(group for group, _ in found) == groups[: LARGEST_SCENE - 1]
    ratios = [ratio for _, ratio in found]
    assert ratios == sorted(ratios)
    assert max(ratios) < 0.5


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.2])
def test_what_is_alike_in_larger_numbers_is_no_scene(spread):
    """Such as a class whose pictures look alike: nothing in it stands out from the rest of it."""
    vectors, _ = scenes(LARGEST_SCENE + 1, 20, 40, *[1] * 100, spread=spread)
    assert find_lookalikes(vectors) == []


def test_no_scene_without_a_gap_on_all_sides():
    """Each like the next: three of an end have a gap behind them as the first sees it, but not as the third does."""
    angles = np.radians([0, 10, 20, 32, 44, 56, 68, 180, 270])
    assert find_lookalikes(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)) == []


@pytest.mark.parametrize("count", range(4))
def test_equal_pictures_are_no_scene_without_another_beside_them(count):
    assert find_lookalikes(np.ones((count, 4), dtype=np.float32)) == []


def test_as_many_distances_are_held_as_fit_however_many_pictures_there_are(monkeypatch):
    vectors, groups = scenes(2, 3, 4, *[1] * 50)
    whole = find_lookalikes(vectors)
    monkeypatch.setattr(embedded, "_AT_ONCE", 150)  # two rows of 59
    assert find_lookalikes(vectors) == whole
    assert sorted(group for group, _ in whole) == groups[:3]


def test_many_scenes_on_both_sides_of_a_split_are_quickly_told(monkeypatch):
    """Each sought among all others, they would be 2 * 10^8 comparisons."""

    class Manifest(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.paths)

    rows = np.arange(40_000)
    found = [((first, first + 1), 0.5) for first in range(0, 40_000, 2)]
    monkeypatch.setattr(embedded, "find_lookalikes", lambda vectors, **words: found)
    dataset = Manifest(
        paths=[f"{row}.jpg" for row in rows], split=np.array(["train", "val"] * 20_000), targets=0 * rows
    )
    embeddings = Embeddings(rows, 0 * rows, np.zeros((40_000, 1), dtype=np.float32))
    begun = time.process_time()
    section, groups = lookalike_section(dataset, embeddings, [])
    assert time.process_time() - begun < 3
    assert [one.kind for one in section.issues] == ["lookalike_across_splits"]
    assert groups == [group for group, _ in found]
