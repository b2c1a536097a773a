"""Ranking of images to label next: uncertain and diverse images first, with equal results each time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2.utils.random_key import Key
from efficientnetv2.workflows import active_learning
from efficientnetv2.workflows.active_learning import rank_for_labeling


def pictures(sure, clusters, seed=0):
    """Probabilities of two classes, and vectors near one of several distant points."""
    rng = np.random.default_rng(seed)
    points = 10 * np.eye(16)[np.asarray(clusters)]
    probabilities = np.stack([np.asarray(sure), 1 - np.asarray(sure)], axis=1)
    return probabilities, points + 0.01 * rng.normal(size=points.shape)


def test_entropy_and_margin_by_hand():
    """Probability 0.5 has the maximal entropy. 0.9 and 0.1 have 0.469 bits."""
    found = rank_for_labeling(np.array([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0]]), np.eye(3), key=Key.of(0))
    assert found.entropy == pytest.approx([1, 0.4690, 0], abs=1e-4)
    assert found.margin == pytest.approx([0, 0.8, 1])


def test_one_image_of_each_cluster_comes_first():
    """Eight clusters of ten images, all equally uncertain: the first eight images are of eight clusters."""
    clusters = np.repeat(np.arange(8), 10)
    probabilities, vectors = pictures(np.full(80, 0.55), clusters)
    order = rank_for_labeling(probabilities, vectors, key=Key.of(1)).order
    assert len(set(clusters[order[:8]])) == 8


def test_uncertain_images_come_first():
    confidence = np.r_[np.full(50, 0.999), 0.52, np.full(49, 0.999)]
    probabilities, vectors = pictures(confidence, np.arange(100) % 16)
    assert rank_for_labeling(probabilities, vectors, key=Key.of(0)).order[0] == 50
    mixed = np.r_[np.full(90, 0.9999), np.full(10, 0.6)]
    probabilities, vectors = pictures(mixed, np.arange(100) % 16)
    assert set(rank_for_labeling(probabilities, vectors, key=Key.of(0), most=10).order[:10]) == set(range(90, 100))


def test_duplicates_are_ranked_after_all_different_images():
    probabilities, vectors = pictures([0.5] * 6, [0, 1, 2, 0, 1, 2])
    vectors[3:] = vectors[:3]
    found = rank_for_labeling(probabilities, vectors, key=Key.of(0))
    assert found.diverse == 3
    assert {int(row) % 3 for row in found.order[:3]} == {0, 1, 2}
    assert sorted(found.order) == list(range(6))


def test_second_image_is_drawn_by_its_gradient_distance():
    """By brute force: probabilities follow the squared distance to the first image or to zero, whichever is less."""
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet(np.ones(3), size=5)
    vectors = rng.normal(size=(5, 4))
    residuals = probabilities - np.eye(3)[probabilities.argmax(axis=1)]
    gradients = np.einsum("ik,id->ikd", residuals, vectors).reshape(5, -1)
    first = int((gradients**2).sum(axis=1).argmax())
    squares = np.minimum(((gradients - gradients[first]) ** 2).sum(axis=1), (gradients**2).sum(axis=1))
    seconds = [
        rank_for_labeling(probabilities, vectors, key=Key.of(seed), most=2).order[:2].tolist() for seed in range(2000)
    ]
    assert {pair[0] for pair in seconds} == {first}
    often = np.bincount([pair[1] for pair in seconds], minlength=5) / 2000
    assert often == pytest.approx(squares / squares.sum(), abs=0.04)


@given(count=st.integers(1, 30), most=st.integers(0, 40), seed=st.integers(0, 5))
def test_ranking_has_every_image_once_and_is_deterministic(count, most, seed):
    rng = np.random.default_rng(seed)
    probabilities, vectors = rng.dirichlet(np.ones(4), size=count), rng.normal(size=(count, 6))
    found = rank_for_labeling(probabilities, vectors, key=Key.of(seed), most=most)
    assert sorted(found.order) == list(range(count))
    assert found.diverse == min(count, most)
    assert (found.order == rank_for_labeling(probabilities, vectors, key=Key.of(seed), most=most).order).all()
    rest = found.entropy[found.order[found.diverse :]]
    assert (np.diff(rest) <= 0).all()


def test_vectors_are_not_copied_as_a_whole():
    """A float64 copy with squares would take eight times the memory, 10 GB for 100,000 images and five models."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(2), size=3_000)
    vectors = rng.normal(size=(3_000, 1_000)).astype(np.float32)
    tracemalloc.start()
    try:
        rank_for_labeling(probabilities, vectors, key=Key.of(0), most=4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < vectors.nbytes / 2


def test_probabilities_are_not_copied_as_a_whole():
    """For a million images and a thousand classes, a float64 copy would be 8 GB."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(5_000), size=2_000).astype(np.float32)
    tracemalloc.start()
    try:
        rank_for_labeling(probabilities, rng.normal(size=(2_000, 4)), key=Key.of(0), most=4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < probabilities.nbytes / 2


def test_ranking_in_chunks_equals_float64(monkeypatch):
    """Also for similar images, whose distances are not exact in float32."""
    rng = np.random.default_rng(4)
    probabilities = rng.dirichlet(np.ones(3), size=60)
    vectors = (100 + 0.01 * rng.normal(size=(60, 8))).astype(np.float32)
    monkeypatch.setattr(active_learning, "_CHUNK", 8 * 7)  # seven at a time, four in the last part
    progress = []
    found = rank_for_labeling(probabilities, vectors, key=Key.of(2), most=40, progress=progress.append)
    assert progress == list(range(1, 41))
    wide = vectors.astype(np.float64)
    residuals = probabilities - np.eye(3)[probabilities.argmax(axis=1)]
    whole = {True: wide, False: residuals}  # vectors are used without subtraction
    monkeypatch.setattr(
        active_learning, "_squared_norms", lambda _, called=None: (whole[called is None] ** 2).sum(axis=1)
    )
    monkeypatch.setattr(
        active_learning, "_products", lambda _, at, called=None: whole[called is None] @ whole[called is None][at]
    )
    assert found.order.tolist() == rank_for_labeling(probabilities, vectors, key=Key.of(2), most=40).order.tolist()
