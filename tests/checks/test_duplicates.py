"""Near-duplicates: all are found, compared with brute force and published datasets, in less than quadratic time."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from efficientnetv2.checks import duplicates
from efficientnetv2.checks.duplicates import (
    LARGEST_SCENE,
    MOST_BITS,
    candidate_pairs,
    duplicate_section,
    find_lookalikes,
    lookalike_section,
    near_duplicates,
)
from efficientnetv2.checks.image_stats import HASH_BITS, ImageStats, collect_image_stats
from efficientnetv2.checks.issues import connected_groups
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.inference.predict import Embeddings
from efficientnetv2.utils.random_key import Key

AID = Path(__file__).parents[3] / "shared" / "data" / "aid"
UCMERCED = AID.with_name("ucmerced")


def hashes(count, seed=0):
    return np.random.default_rng(seed).random((count, HASH_BITS)) < 0.5


def flipped(one, bits, rng):
    other = one.copy()
    other[rng.choice(HASH_BITS, bits, replace=False)] ^= True
    return other


@pytest.mark.parametrize("bits", [0, 2, 4, 6, 8])
def test_pairs_at_every_distance_are_found(bits):
    """300 of 3,000 have a near-duplicate. At the largest distance 1 % may be missed, at smaller distances none."""
    rng = np.random.default_rng(bits)
    some = hashes(3000, seed=1)
    planted = rng.choice(3000, 300, replace=False)
    alike = np.stack([flipped(some[row], bits, rng) for row in planted])
    found = {tuple(pair) for pair in candidate_pairs(np.concatenate([some, alike]), key=Key.of(0)).tolist()}
    hit = sum((int(row), 3000 + index) in found for index, row in enumerate(planted))
    assert hit >= (290 if bits == 8 else 299)


def test_pairs_are_near_and_unique():
    some = hashes(2000)
    some[:, :20] = False  # so that many are near
    pairs = candidate_pairs(some, key=Key.of(0))
    different = (some[pairs[:, 0]] != some[pairs[:, 1]]).sum(axis=1)
    assert len(pairs) > 10
    assert different.max() <= MOST_BITS
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs)


def test_time_grows_less_than_quadratically():
    def seconds(count):
        some = hashes(count)
        start = time.process_time()  # excludes other processes
        candidate_pairs(some, key=Key.of(0))
        return time.process_time() - start

    seconds(1000)
    assert seconds(40_000) < 40 * min(seconds(4_000) for _ in range(3))


def test_thousand_equal_hashes_are_one_group_without_comparing_all_pairs():
    """A series of a camera: each image is near some later images, which connect all images."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    series = np.repeat(hashes(1), 1000, axis=0)
    pairs = candidate_pairs(series, key=Key.of(0))
    assert len(pairs) <= 64 * 1000
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(1000, 1000))
    assert connected_components(graph, directed=False)[0] == 1


def test_thousand_nearly_equal_images_are_one_group_in_little_memory():
    """Half a million pairs are near, and a compared pair needs 12 kB."""
    rng = np.random.default_rng(0)
    series = np.stack([flipped(one, rng.integers(0, 4), rng) for one in np.repeat(hashes(1), 1000, axis=0)])
    small = rng.integers(0, 200, (16, 16, 3)) + rng.integers(0, 50, (1000, 16, 16, 3))
    table = pd.DataFrame({"reason": [""] * 1000, "content": np.arange(1000)})
    tracemalloc.start()
    found = near_duplicates(ImageStats(table, small.astype(np.uint8), series), key=Key.of(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6
    assert len(candidate_pairs(series, key=Key.of(0))) < 65 * 1000
    assert len(found) < 9 * 1000
    assert (connected_groups(1000, [pair for pair, _ in found]) == 0).all()


@pytest.mark.slow
@pytest.mark.skipif(not AID.is_dir(), reason=f"there is no {AID}: near duplicates of AID are not looked for")
def test_known_near_duplicates_of_aid_are_found():
    dataset = load_dataset(AID)
    dataset = dataset.select(np.flatnonzero(np.isin(dataset.table["label"], ["Port", "Stadium", "Desert"])))
    section, _ = duplicate_section(dataset, collect_image_stats(dataset, workers=2), key=Key.of(0))
    assert section.facts["same_files"] == []
    found = [one["paths"] for one in section.facts["near_duplicates"]]
    assert found[0] == ["Port/port_183.jpg", "Port/port_248.jpg"]
    assert {Path(path).parent.name for pair in found[1:] for path in pair} == {"Stadium"}  # one stadium twice


@pytest.mark.slow
@pytest.mark.skipif(not UCMERCED.is_dir(), reason=f"there is no {UCMERCED}: its copies are not looked for")
def test_known_copy_of_uc_merced_is_found():
    dataset = load_dataset(UCMERCED)
    dataset = dataset.select(np.flatnonzero(dataset.table["label"] == "airplane"))
    section, _ = duplicate_section(dataset, collect_image_stats(dataset, workers=2), key=Key.of(0))
    assert section.facts["same_files"] == [["airplane/airplane01.jpg", "airplane/airplane02.jpg"]]


def scenes(*sizes, spread=0.1):
    """Return embeddings of scenes that are repeated ``sizes`` times with noise, and the rows of each scene."""
    rng = np.random.default_rng(0)
    things = rng.normal(size=(len(sizes), 64))
    vectors = np.repeat(things, sizes, axis=0) + spread * rng.normal(size=(sum(sizes), 64))
    ends = np.cumsum(sizes)
    return vectors.astype(np.float32), [tuple(range(end - n, end)) for end, n in zip(ends, sizes, strict=True)]


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.2])
def test_scene_is_found_for_any_number_of_repetitions(spread):
    sizes = [*range(2, LARGEST_SCENE + 1), *[1] * 200]
    vectors, groups = scenes(*sizes, spread=spread)
    found = find_lookalikes(vectors)
    assert sorted(group for group, _ in found) == groups[: LARGEST_SCENE - 1]
    ratios = [ratio for _, ratio in found]
    assert ratios == sorted(ratios)
    assert max(ratios) < 0.5


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.2])
def test_larger_groups_of_similar_images_are_not_scenes(spread):
    """For example a class of similar images: each image is similar to the whole class."""
    vectors, _ = scenes(LARGEST_SCENE + 1, 20, 40, *[1] * 100, spread=spread)
    assert find_lookalikes(vectors) == []


def test_scene_needs_a_gap_on_all_sides():
    """A chain of similar images: the first of three sees a gap behind them, the third sees its next neighbor."""
    angles = np.radians([0, 10, 20, 32, 44, 56, 68, 180, 270])
    assert find_lookalikes(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)) == []


@pytest.mark.parametrize("count", range(4))
def test_equal_images_are_not_a_scene_without_other_images(count):
    assert find_lookalikes(np.ones((count, 4), dtype=np.float32)) == []


def test_memory_for_distances_does_not_depend_on_the_number_of_images(monkeypatch):
    vectors, groups = scenes(2, 3, 4, *[1] * 50)
    expected = find_lookalikes(vectors)
    monkeypatch.setattr(duplicates, "_DISTANCES_AT_ONCE", 150)  # two rows of 59
    assert find_lookalikes(vectors) == expected
    assert sorted(group for group, _ in expected) == groups[:3]


def test_many_scenes_on_both_sides_of_a_split_are_found_quickly(monkeypatch):
    """A search of each scene among all others would need 2 * 10^8 comparisons."""

    class Manifest(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.paths)

    rows = np.arange(40_000)
    found = [((first, first + 1), 0.5) for first in range(0, 40_000, 2)]
    monkeypatch.setattr(duplicates, "find_lookalikes", lambda vectors, **options: found)
    dataset = Manifest(
        paths=[f"{row}.jpg" for row in rows], split=np.array(["train", "val"] * 20_000), targets=0 * rows
    )
    embeddings = Embeddings(rows, 0 * rows, np.zeros((40_000, 1), dtype=np.float32))
    start = time.process_time()
    section, groups = lookalike_section(dataset, embeddings, [])
    assert time.process_time() - start < 3
    assert [one.kind for one in section.issues] == ["lookalike_across_splits"]
    assert groups == [group for group, _ in found]
