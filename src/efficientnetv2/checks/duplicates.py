"""Exact and near duplicates, and images that a pretrained model finds alike.

Exact duplicates have equal hashes of their bytes. Near duplicates are found in two steps: candidates by a perceptual
hash of 64 bits, then correlation of small squares. Candidates are found by bit sampling (Indyk and Motwani,
"Approximate nearest neighbors", STOC 1998): images that agree in randomly drawn bits share a bucket, in many draws. The
number of bits leaves about one random image per bucket, so the work grows with n^1.2; the number of draws finds a pair
at the largest distance with 99 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree

from efficientnetv2.checks.image_stats import HASH_BITS, ImageStats
from efficientnetv2.checks.issues import (
    CheckSection,
    Issue,
    connected_groups,
    count_groups,
    crosses_splits,
    issue,
    labels_differ,
    share_text,
)
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints, copy_groups
from efficientnetv2.inference.predict import Embeddings
from efficientnetv2.utils.logs import progress
from efficientnetv2.utils.random_key import Key

# Bits that may differ, and minimum correlation of the small squares. Of ten thousand aerial images six pairs pass, each
# of one place taken twice. Ours, from looking at pairs on either side.
MOST_BITS = 8
LEAST_ALIKE = 0.75
# Gray levels in the small square up to which an image is blank: its hash is noise. Ours.
FLAT_GREYS = 2
# Probability to miss a pair at MOST_BITS.
_MISSED = 0.01
# Following images of a bucket that each is compared with: enough except for series of hundreds of similar images, which
# their neighbors still connect. Ours.
_FOLLOWING = 64
# Reported pairs of an image, the most alike, besides those that connect a series. Ours.
_REPORTED = 8
# Pairs of squares in memory together, 12 kB each. Ours.
_AT_ONCE = 1024
# Largest ratio of the distance to the last image of a scene over that to the next image: Lowe's ratio test (IJCV 2004,
# 0.8 for keypoints). Stricter, from looking at pairs of aerial images. Ours.
_MAX_RATIO = 0.65
# Largest scene, the number of symmetries of a square: more lookalikes may be a whole class. Ours.
LARGEST_SCENE = 8
# Distance below which vectors are equal in float32. Ours.
_EQUAL = 1e-3
# Distances in memory at once; with their order, half a gigabyte. Ours.
_DISTANCES_AT_ONCE = 2**25

Floats = npt.NDArray[np.float64]
Rows = tuple[int, ...]


def exact_duplicates(stats: ImageStats) -> list[Rows]:
    """Rows of files with equal bytes, by group, in their order."""
    rows = pd.Series(stats.readable)
    contents = stats.table["content"].to_numpy()[stats.readable]
    groups = rows.groupby(contents, sort=False)
    return sorted(tuple(group.tolist()) for _, group in groups if len(group) > 1)


def is_blank(stats: ImageStats) -> npt.NDArray[np.bool_]:
    """(N,) whether a readable image has a single color."""
    spread = stats.small.max(axis=(1, 2)) - stats.small.min(axis=(1, 2))  # (N, 3), never below 0
    blank: npt.NDArray[np.bool_] = spread.max(axis=1, initial=0) <= FLAT_GREYS
    return blank & (stats.table["reason"] == "").to_numpy()


def near_duplicates(stats: ImageStats, *, key: Key) -> list[tuple[Rows, float]]:
    """Pairs of different files that look the same, and the correlations of their small squares, the largest first.

    Of exact duplicates one is compared. Of long series of similar images only the closest pairs are reported, and those
    that connect the series.
    """
    usable = np.zeros(len(stats.table), dtype=bool)
    usable[stats.readable] = True
    usable &= ~stats.table["content"].duplicated().to_numpy() & ~is_blank(stats)
    rows = np.flatnonzero(usable).astype(np.int64)
    pairs = rows[candidate_pairs(stats.hashes[rows], key=key)]
    correlation = _correlation(stats.small, pairs)
    kept = np.flatnonzero(correlation >= LEAST_ALIKE)
    kept = kept[_thinned(pairs[kept], 1 - correlation[kept], len(stats.table), _REPORTED)]
    order = kept[np.lexsort((pairs[kept, 1], pairs[kept, 0], -correlation[kept]))]
    found = zip(pairs[order].tolist(), correlation[order].tolist(), strict=True)
    return [((first, second), round(alike, 4)) for (first, second), alike in found]


def candidate_pairs(hashes: npt.NDArray[np.bool_], *, key: Key) -> Ints:
    """(m, 2) positions of pairs of (n, HASH_BITS) hashes that differ in few bits, ascending, each once.

    At ``MOST_BITS`` 99 % are found, closer pairs nearly always. Of long series only the nearest pairs, and those that
    connect them.
    """
    count = len(hashes)
    found = np.empty((0, 2), dtype=np.int64)
    if count < 2:
        return found
    bits = min(48, max(8, math.ceil(math.log2(count))))
    # Probability that all drawn bits are equal ones.
    meet = math.comb(HASH_BITS - MOST_BITS, bits) / math.comb(HASH_BITS, bits)
    draws = math.ceil(math.log(_MISSED) / math.log(1 - meet))
    # As one sortable number each.
    packed = np.packbits(hashes, axis=1).view(">u8")[:, 0].astype(np.uint64)
    for draw in range(draws):
        chosen = key.fold("bits", draw).generator().choice(HASH_BITS, bits, replace=False)
        bucket = hashes[:, chosen] @ (1 << np.arange(bits, dtype=np.int64))
        # Repeated pairs would fill the memory; sorting finds them faster than numpy's hashing.
        met = np.sort(np.concatenate([found @ [count, 1], _within_buckets(bucket, packed)]))
        found = np.stack(np.divmod(met[np.diff(met, prepend=-1) > 0], count), axis=1)
        distance = np.bitwise_count(packed[found[:, 0]] ^ packed[found[:, 1]]).astype(np.float64)
        found = found[_thinned(found, distance, count, _FOLLOWING)]
    return found


def _thinned(pairs: Ints, distance: Floats, count: int, most: int) -> Ints:
    """Positions of (m, 2) ascending pairs to keep: the ``most`` nearest of each first image, and a spanning tree."""
    first = pairs[:, 0]
    order = np.lexsort((distance, first))
    rank = np.empty(len(pairs), dtype=np.int64)
    rank[order] = np.arange(len(pairs)) - np.searchsorted(first, first)
    kept = rank < most
    if not kept.all():
        # A pair of weight 0 would be none.
        graph = csr_array((distance + 1, (first, pairs[:, 1])), shape=(count, count))
        tree = minimum_spanning_tree(graph).tocoo()
        kept[np.searchsorted(pairs @ [count, 1], tree.row.astype(np.int64) * count + tree.col)] = True
    return np.flatnonzero(kept)


def _within_buckets(bucket: Ints, packed: npt.NDArray[np.uint64]) -> Ints:
    """Pairs of one bucket that differ in at most ``MOST_BITS``, as first * n + second."""
    order = np.lexsort((packed, bucket))
    ordered, hashes = bucket[order], packed[order]
    found = [np.empty(0, dtype=np.int64)]
    for step in range(1, min(_FOLLOWING, len(order) - 1) + 1):
        together = ordered[step:] == ordered[:-step]
        if not together.any():
            break  # no bucket holds more
        near_enough = np.bitwise_count(hashes[step:] ^ hashes[:-step]) <= MOST_BITS
        places = np.flatnonzero(together & near_enough)
        first, second = order[places], order[places + step]
        found.append(np.minimum(first, second) * len(order) + np.maximum(first, second))
    return np.concatenate(found)


def _correlation(small: npt.NDArray[np.uint8], pairs: Ints) -> Floats:
    correlation = np.empty(len(pairs))
    for start in range(0, len(pairs), _AT_ONCE):
        part = pairs[start : start + _AT_ONCE]
        squares = small[part].reshape(len(part), 2, -1).astype(np.float64)
        squares -= squares.mean(axis=2, keepdims=True)
        squares /= np.linalg.norm(squares, axis=2, keepdims=True)
        correlation[start : start + len(part)] = np.einsum("ij,ij->i", squares[:, 0], squares[:, 1])
    return correlation


def duplicate_section(
    dataset: ImageDataset, stats: ImageStats, *, key: Key
) -> tuple[CheckSection, list[tuple[Rows, float]]]:
    """Issues of exact and near duplicates by the harm that they do, and the pairs of near duplicates."""
    exact = exact_duplicates(stats)
    pairs = near_duplicates(stats, key=key)
    file_pairs = _file_pairs(dataset, exact, pairs)
    captions = {
        rows: f"correlation {alike:.2f}" for (_, alike), files in zip(pairs, file_pairs, strict=True) for rows in files
    }
    facts = {
        "same_files": [[dataset.paths[row] for row in group] for group in exact],
        "near_duplicates": [
            {
                "paths": [dataset.paths[row] for row in pair],
                "correlation": alike,
                "across_splits": any(crosses_splits(dataset, rows) for rows in files),
                "labels_differ": any(labels_differ(dataset, rows) for rows in files),
            }
            for (pair, alike), files in zip(pairs, file_pairs, strict=True)
        ],
    }
    same = _issues(dataset, [[group] for group in exact], "same", "the same file", {})
    near = _issues(dataset, file_pairs, "near", "nearly the same image", captions)
    return CheckSection(facts, [*same, *near]), pairs


def _file_pairs(dataset: ImageDataset, exact: Sequence[Rows], pairs: Sequence[tuple[Rows, float]]) -> list[list[Rows]]:
    """For each near pair the pairs of files that it stands for, with exact duplicates of another split or label."""
    copies = {row: group for group in exact for row in group}

    def distinct(row: int) -> list[int]:
        by_split_and_label = {
            (dataset.split[copy], str(dataset.targets[copy])): copy for copy in reversed(copies.get(row, (row,)))
        }
        return [row, *sorted(set(by_split_and_label.values()) - {row})]

    return [
        [(min(first, second), max(first, second)) for first in distinct(one) for second in distinct(other)]
        for (one, other), _ in pairs
    ]


def _issues(
    dataset: ImageDataset,
    duplicates: Sequence[Sequence[Rows]],
    prefix: Literal["same", "near"],
    what: str,
    captions: Mapping[Rows, str],
) -> Iterator[Issue]:
    """Duplicates across splits, those with different labels, and harmless ones."""
    across, unlike, harmless = [], [], []
    family = copy_groups(dataset)
    for groups in duplicates:  # all groups that a duplicate stands for; the first that does harm is reported
        crossing = next((group for group in groups if crosses_splits(dataset, group)), None)
        differing = next((group for group in groups if labels_differ(dataset, group)), None)
        across += [crossing] if crossing else []
        unlike += [differing] if differing else []
        is_family = family is not None and len({family[row] for row in groups[0]}) == 1  # an image and its copies
        harmless += [] if crossing or differing or is_family else [groups[0]]
    # Pairs share images: five alike images are ten pairs, but only four images are redundant.
    redundant = len(dataset) - len(np.unique(connected_groups(len(dataset), harmless)))
    share = share_text(redundant, len(dataset))
    for kind, found, text in (
        ("across_splits", across, f"in two splits: {what} is in both."),
        ("other_label", unlike, f"with different labels: {what}, but two labels."),
        ("image", harmless, f"of {what}, with equal labels and splits: {share} are redundant."),
    ):
        if found:
            shown = [captions.get(group, "") for group in found]
            yield issue(f"{prefix}_{kind}", f"{count_groups(found)} {text}", found, shown)


def lookalike_section(
    dataset: ImageDataset, embeddings: Embeddings, copies: Sequence[Sequence[int]]
) -> tuple[CheckSection, list[Rows]]:
    """Images far more alike than any other: one scene again, shifted, rotated, or in other light; and their groups.

    A group counts if each of its images is much closer to the rest of the group than to any other image. Pixel
    duplicates, rows of two or more each in ``copies``, count as one image. All pairs are compared, in n² short steps:
    less work than the embedding, up to a million images.
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
            captions = [f"distance ratio {ratio:.2f}" for _, ratio in found]
            issues.append(issue(kind, sentence, groups, captions))
    facts = {"lookalikes": [{"paths": [dataset.paths[row] for row in group], "ratio": r} for group, r in scenes]}
    return CheckSection(facts, issues), [group for group, _ in scenes]


def find_lookalikes(vectors: npt.NDArray[np.float32]) -> list[tuple[Rows, float]]:
    """Groups of (n, d) vectors that are close to each other and far from all others, the clearest first.

    Only directions count. Each group has two to ``LARGEST_SCENE`` ascending positions, and the largest ratio of the
    distance to its farthest member over that to the nearest other vector. Groups are disjoint; of nested ones the
    larger counts.
    """
    largest = min(LARGEST_SCENE, len(vectors) - 1)  # one at least is outside
    with progress("comparing", len(vectors)) as update:
        nearest, distances = _nearest_neighbors(vectors, max(0, largest), update)
    found: list[tuple[Rows, float]] = []
    grouped = np.zeros(len(vectors), dtype=bool)
    for size in range(largest, 1, -1):
        ratio = np.maximum(distances[:, size - 2], _EQUAL) / np.maximum(distances[:, size - 1], _EQUAL)
        clear = np.flatnonzero((ratio <= _MAX_RATIO) & ~grouped)
        balls = np.sort(np.column_stack([clear, nearest[clear, : size - 1]]), axis=1)  # each with its nearest
        groups, agreeing = np.unique(balls, axis=0, return_counts=True)
        for group in groups[agreeing == size]:
            found.append((tuple(group.tolist()), round(float(ratio[group].max()), 3)))
            grouped[group] = True
    return sorted(found, key=lambda each: each[1])


def _nearest_neighbors(
    vectors: npt.NDArray[np.float32], count: int, update: Callable[[int], object]
) -> tuple[Ints, npt.NDArray[np.float64]]:
    """(n, count) nearest other vectors and their chord distances."""
    total = len(vectors)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    nearest, distances = np.empty((total, count), dtype=np.int64), np.empty((total, count))
    rows = max(1, _DISTANCES_AT_ONCE // max(1, total))
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
