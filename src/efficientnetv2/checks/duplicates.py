"""Exact and near duplicates.

Exact duplicates have equal hashes of their bytes. Near duplicates are found in two steps: candidates by a perceptual
hash of 64 bits, then correlation of small squares. Candidates are found by bit sampling (Indyk and Motwani,
"Approximate nearest neighbors", STOC 1998): images that agree in randomly drawn bits share a bucket, in many draws. The
number of bits leaves about one random image per bucket, so the work grows with n^1.2; the number of draws finds a pair
at the largest distance with 99 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree

from efficientnetv2.checks.findings import (
    CheckSection,
    Finding,
    Severity,
    connected_groups,
    count_groups,
    crosses_splits,
    labels_differ,
    share_text,
)
from efficientnetv2.checks.thumbnail_index import HASH_BITS, ImageStats
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints
from efficientnetv2.utils.rng import Key

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
_NAMED = 8
# Pairs of squares in memory together, 12 kB each. Ours.
_AT_ONCE = 1024

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DuplicatePair:
    """Rows of two near duplicates, the smaller first, and the correlation of their small squares."""

    first: int
    second: int
    alike: float


def exact_duplicates(looked: ImageStats) -> list[list[int]]:
    """Rows of files with equal bytes, by group, in their order."""
    rows = pd.Series(looked.readable)
    contents = looked.table["content"].to_numpy()[looked.readable]
    groups = [group.tolist() for _, group in rows.groupby(contents, sort=False) if len(group) > 1]
    return sorted(groups)


def is_blank(looked: ImageStats) -> npt.NDArray[np.bool_]:
    """(N,) whether a readable image has a single color."""
    spread = looked.small.max(axis=(1, 2)) - looked.small.min(axis=(1, 2))  # (N, 3), never below 0
    empty: npt.NDArray[np.bool_] = spread.max(axis=1, initial=0) <= FLAT_GREYS
    return empty & (looked.table["reason"] == "").to_numpy()


def near_duplicates(looked: ImageStats, *, key: Key) -> list[DuplicatePair]:
    """Pairs of different files that look the same, the most alike first.

    Of exact duplicates one is compared. Of long series of similar images only the closest pairs are reported, and those
    that connect the series.
    """
    usable = np.zeros(len(looked.table), dtype=bool)
    usable[looked.readable] = True
    usable &= ~looked.table["content"].duplicated().to_numpy() & ~is_blank(looked)
    rows = np.flatnonzero(usable).astype(np.int64)
    pairs = rows[candidate_pairs(looked.hashes[rows], key=key)]
    alike = _correlation(looked.small, pairs)
    kept = np.flatnonzero(alike >= LEAST_ALIKE)
    kept = kept[_thinned(pairs[kept], 1 - alike[kept], len(looked.table), _NAMED)]
    order = kept[np.lexsort((pairs[kept, 1], pairs[kept, 0], -alike[kept]))]
    return [DuplicatePair(int(pairs[at, 0]), int(pairs[at, 1]), round(float(alike[at]), 4)) for at in order]


def candidate_pairs(hashes: npt.NDArray[np.bool_], *, key: Key, most_bits: int = MOST_BITS) -> Ints:
    """(m, 2) positions of pairs of (n, HASH_BITS) hashes that differ in few bits, ascending, each once.

    At ``most_bits`` 99 % are found, closer pairs nearly always. Of long series only the nearest pairs, and those that
    connect them.
    """
    count = len(hashes)
    found = np.empty((0, 2), dtype=np.int64)
    if count < 2:
        return found
    bits = min(48, max(8, math.ceil(math.log2(count))))
    meet = math.comb(HASH_BITS - most_bits, bits) / math.comb(
        HASH_BITS, bits
    )  # all drawn bits are equal ones
    draws = math.ceil(math.log(_MISSED) / math.log(1 - meet))
    # As one sortable number each.
    whole = np.packbits(hashes, axis=1).view(">u8")[:, 0].astype(np.uint64)
    for draw in range(draws):
        chosen = key.fold("bits", draw).generator().choice(HASH_BITS, bits, replace=False)
        bucket = hashes[:, chosen] @ (1 << np.arange(bits, dtype=np.int64))
        # Repeated pairs would fill the memory; sorting finds them faster than numpy's hashing.
        met = np.sort(np.concatenate([found @ [count, 1], _within_buckets(bucket, whole, most_bits)]))
        found = np.stack(np.divmod(met[np.diff(met, prepend=-1) > 0], count), axis=1)
        apart = np.bitwise_count(whole[found[:, 0]] ^ whole[found[:, 1]]).astype(np.float64)
        found = found[_thinned(found, apart, count, _FOLLOWING)]
    return found


def _thinned(pairs: Ints, apart: Floats, count: int, most: int) -> Ints:
    """Positions of (m, 2) ascending pairs to keep: the ``most`` nearest of each first image, and a spanning tree.

    All are kept if no image has more. What all pairs connect, the kept ones connect too.
    """
    first = pairs[:, 0]
    order = np.lexsort((apart, first))
    rank = np.empty(len(pairs), dtype=np.int64)
    rank[order] = np.arange(len(pairs)) - np.searchsorted(first, first)
    kept = rank < most
    if not kept.all():
        # A pair of weight 0 would be none.
        graph = csr_array((apart + 1, (first, pairs[:, 1])), shape=(count, count))
        tree = minimum_spanning_tree(graph).tocoo()
        kept[np.searchsorted(pairs @ [count, 1], tree.row.astype(np.int64) * count + tree.col)] = True
    return np.flatnonzero(kept)


def _within_buckets(bucket: Ints, whole: npt.NDArray[np.uint64], most_bits: int) -> Ints:
    """Pairs of one bucket that differ in at most ``most_bits``, as first * n + second."""
    order = np.lexsort((whole, bucket))
    ordered, hashes = bucket[order], whole[order]
    found = [np.empty(0, dtype=np.int64)]
    for step in range(1, min(_FOLLOWING, len(order) - 1) + 1):
        together = ordered[step:] == ordered[:-step]
        if not together.any():
            break  # no bucket holds more
        near_enough = np.bitwise_count(hashes[step:] ^ hashes[:-step]) <= most_bits
        places = np.flatnonzero(together & near_enough)
        first, second = order[places], order[places + step]
        found.append(np.minimum(first, second) * len(order) + np.maximum(first, second))
    return np.concatenate(found)


def _correlation(small: npt.NDArray[np.uint8], pairs: Ints) -> Floats:
    """(m,) correlation of two squares, in all channels."""
    alike = np.empty(len(pairs))
    for start in range(0, len(pairs), _AT_ONCE):
        part = pairs[start : start + _AT_ONCE]
        squares = small[part].reshape(len(part), 2, -1).astype(np.float64)
        squares -= squares.mean(axis=2, keepdims=True)
        squares /= np.linalg.norm(squares, axis=2, keepdims=True)
        alike[start : start + len(part)] = np.einsum("ij,ij->i", squares[:, 0], squares[:, 1])
    return alike


_KIND = {"same": "the same file", "near": "nearly the same image"}


def duplicate_section(
    dataset: ImageDataset, looked: ImageStats, *, key: Key
) -> tuple[CheckSection, list[DuplicatePair]]:
    """Findings on exact and near duplicates by the harm that they do, and the pairs of near duplicates."""
    same = [tuple(group) for group in exact_duplicates(looked)]
    pairs = near_duplicates(looked, key=key)
    alike = _between(dataset, same, pairs)
    likeness = {
        way: f"correlation {each.alike:.2f}" for each, ways in zip(pairs, alike, strict=True) for way in ways
    }
    findings = [
        *_harms(dataset, [[group] for group in same], "same", {}),
        *_harms(dataset, alike, "near", likeness),
    ]
    facts = {
        "same_files": [[dataset.paths[row] for row in group] for group in same],
        "near_duplicates": [
            {
                "paths": [dataset.paths[each.first], dataset.paths[each.second]],
                "correlation": each.alike,
                "across_splits": any(crosses_splits(dataset, way) for way in ways),
                "labels_differ": any(labels_differ(dataset, way) for way in ways),
            }
            for each, ways in zip(pairs, alike, strict=True)
        ],
    }
    return CheckSection(facts, findings), pairs


def _between(
    dataset: ImageDataset, same: Sequence[tuple[int, ...]], pairs: Sequence[DuplicatePair]
) -> list[list[tuple[int, ...]]]:
    """For each near pair the pairs of files that it stands for, with exact duplicates of another split or label."""
    files = {row: group for group in same for row in group}

    def each_kind(row: int) -> list[int]:
        kinds = {
            (dataset.split[each], str(dataset.targets[each])): each
            for each in reversed(files.get(row, (row,)))
        }
        return [row, *sorted(set(kinds.values()) - {row})]

    return [
        [
            (min(first, second), max(first, second))
            for first in each_kind(each.first)
            for second in each_kind(each.second)
        ]
        for each in pairs
    ]


def _harms(
    dataset: ImageDataset,
    found: Sequence[Sequence[tuple[int, ...]]],
    how: str,
    likeness: Mapping[tuple[int, ...], str],
) -> list[Finding]:
    """A finding for duplicates across splits, one for different labels, and one for the rest.

    Args:
        found: For each duplicate all groups that it stands for; the first that does harm is reported.
        how: A key of ``_KIND``.
        likeness: Caption of each group.
    """
    each_across = [next((group for group in ways if crosses_splits(dataset, group)), None) for ways in found]
    each_unlike = [next((group for group in ways if labels_differ(dataset, group)), None) for ways in found]
    across = [group for group in each_across if group is not None]
    unlike = [group for group in each_unlike if group is not None]
    told = zip(found, each_across, each_unlike, strict=True)
    rest = [ways[0] for ways, crosses, differs in told if crosses is None and differs is None]
    # Pairs share images: five alike images are ten pairs, but only four images are redundant.
    repeated = len(dataset) - len(np.unique(connected_groups(len(dataset), rest)))
    what = _KIND[how]
    grave: Severity = "wrong" if how == "same" else "doubtful"
    kinds: tuple[tuple[str, Severity, list[tuple[int, ...]], str, str], ...] = (
        (
            f"{how}_across_splits",
            grave,
            across,
            f"{count_groups(across)} in two splits: {what} is trained on and evaluated",
            "Remove them from one of the splits: metrics of the other are too high.",
        ),
        (
            f"{how}_other_label",
            grave,
            unlike,
            f"{count_groups(unlike)} with different labels: {what}, but two labels",
            "At least one label is wrong, or the image shows several things. Look at them.",
        ),
        (
            f"{how}_picture",
            "note",
            rest,
            f"{count_groups(rest)} of {what}, labels and splits agreeing: "
            + share_text(repeated, len(dataset)) + " are redundant",
            "Automatic splits keep equal files together."
            if how == "same"
            else "Give them one value in a column group and name it with --group-column, so that no split parts them.",
        ),
    )  # fmt: skip
    return [
        Finding(
            kind,
            severity,
            f"{sentence}.",
            advice,
            tuple(groups),
            tuple(likeness.get(each, "") for each in groups),
        )
        for kind, severity, groups, sentence, advice in kinds
        if groups
    ]
