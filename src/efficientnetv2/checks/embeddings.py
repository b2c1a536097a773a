"""Images that a pretrained model finds alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from efficientnetv2.checks.issues import (
    CheckSection,
    connected_groups,
    count_groups,
    crosses_splits,
    issue,
    labels_differ,
)
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints
from efficientnetv2.inference.predict import Embeddings
from efficientnetv2.utils.logs import progress

# Largest ratio of the distance to the last image of a scene over that to the next image: Lowe's ratio test (IJCV 2004,
# 0.8 for keypoints). Stricter, from looking at pairs of aerial images. Ours.
STANDS_OUT = 0.65
# Largest scene, the number of symmetries of a square: more lookalikes may be a whole class. Ours.
LARGEST_SCENE = 8
# Distance below which vectors are equal in float32. Ours.
_EQUAL = 1e-3
# Distances in memory at once; with their order, half a gigabyte. Ours.
_AT_ONCE = 2**25

Floats = npt.NDArray[np.float32]


def lookalike_section(
    dataset: ImageDataset, embeddings: Embeddings, copies: Sequence[Sequence[int]]
) -> tuple[CheckSection, list[tuple[int, ...]]]:
    """Images far more alike than any other: one scene again, shifted, rotated, or in other light.

    A group counts if each of its images is much closer to the rest of the group than to any other image. Pixel
    duplicates, given as rows of two or more each in ``copies``, count as one image. All pairs are compared, in n² short
    steps: less work than the embedding, up to a million images.

    Returns:
        The section, and the groups with all their copies.
    """
    copy_ids = connected_groups(len(dataset), copies)[embeddings.samples]
    originals = np.sort(np.unique(copy_ids, return_index=True)[1])
    rows_of: dict[int, list[int]] = {}
    for copy_id, row in zip(copy_ids.tolist(), embeddings.samples.tolist(), strict=True):
        rows_of.setdefault(copy_id, []).append(row)
    scenes = [
        (tuple(sorted(row for place in places for row in rows_of[int(copy_ids[originals[place]])])), ratio)
        for places, ratio in find_lookalikes(embeddings.vectors[originals].astype(np.float32))
    ]
    across = [scene for scene in scenes if crosses_splits(dataset, scene[0])]
    unlike = [scene for scene in scenes if labels_differ(dataset, scene[0])]
    harmful = {*across, *unlike}
    issues = []
    for kind, found, how in (
        ("lookalike_across_splits", across, ", on both sides of a split"),
        ("lookalike_other_label", unlike, ", with different labels"),
        ("lookalike", [scene for scene in scenes if scene not in harmful], ""),
    ):
        if found:
            groups = [group for group, _ in found]
            sentence = f"{count_groups(groups)} of images look like one scene{how}."
            issues.append(
                issue(kind, sentence, groups, [f"distance ratio {ratio:.2f}" for _, ratio in found])
            )
    facts = {
        "lookalikes": [{"paths": [dataset.paths[row] for row in group], "ratio": r} for group, r in scenes]
    }
    return CheckSection(facts, issues), [group for group, _ in scenes]


def find_lookalikes(vectors: Floats, *, most: float = STANDS_OUT) -> list[tuple[tuple[int, ...], float]]:
    """Groups of (n, d) vectors that are close to each other and far from all others, the clearest first.

    Args:
        vectors: Only directions count.
        most: Largest ratio of the distance to the farthest member over that to the nearest other vector.

    Returns:
        Positions of each group, ascending, of two to ``LARGEST_SCENE``, and its largest ratio. Groups are disjoint; of
        nested ones the larger counts.
    """
    largest = min(LARGEST_SCENE, len(vectors) - 1)  # one at least is outside
    with progress("comparing", len(vectors)) as update:
        nearest, distances = _nearest_neighbors(vectors, max(0, largest), update)
    found: list[tuple[tuple[int, ...], float]] = []
    named = np.zeros(len(vectors), dtype=bool)
    for size in range(largest, 1, -1):
        ratio = np.maximum(distances[:, size - 2], _EQUAL) / np.maximum(distances[:, size - 1], _EQUAL)
        clear = np.flatnonzero((ratio <= most) & ~named)
        balls = np.sort(np.column_stack([clear, nearest[clear, : size - 1]]), axis=1)  # each with its nearest
        groups, agreeing = np.unique(balls, axis=0, return_counts=True)
        for group in groups[agreeing == size]:
            found.append((tuple(group.tolist()), round(float(ratio[group].max()), 3)))
            named[group] = True
    return sorted(found, key=lambda each: each[1])


def _nearest_neighbors(
    vectors: Floats, count: int, update: Callable[[int], object]
) -> tuple[Ints, npt.NDArray[np.float64]]:
    """(n, count) nearest other vectors and their chord distances."""
    total = len(vectors)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    nearest, distances = np.empty((total, count), dtype=np.int64), np.empty((total, count))
    rows = max(1, _AT_ONCE // max(1, total))
    for start in range(0, total if count else 0, rows):
        cosine = unit[start : start + rows] @ unit.T
        places = np.arange(len(cosine))
        cosine[places, start + places] = -np.inf
        best = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(cosine, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        block = slice(start, start + len(cosine))
        nearest[block] = np.take_along_axis(best, order, axis=1)
        distances[block] = np.sqrt(np.maximum(0, 2 - 2 * np.take_along_axis(values, order, axis=1)))
        update(block.stop)
    return nearest, distances
