"""Clusters of images that a split keeps together (groups, places, copies, identical files), and their division.

scikit-learn's ``StratifiedGroupKFold`` makes only equal folds, may leave a class out, and is slow for many clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints, copy_groups
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Floats, Key

# Sides of spatial blocks in degrees, in the order of trying. 1° of latitude is 111 km. The last is about 3.5 km, below
# which neighboring images may overlap. Ours.
BLOCKS = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)

#: What a split keeps together, besides identical files and copies. ``auto``: places and groups, as far as no class
#: vanishes. ``place``: both, groups where known. ``group``: groups only. ``class``: neither.
SplitBy = Literal["auto", "class", "group", "place"]

# Random orders of assigning, of which the best is taken, and clusters above which one order is enough. Ours.
_ATTEMPTS, _FEW_CLUSTERS = 16, 10_000


@dataclass(frozen=True)
class Grouping:
    """One way to keep images together, by (N,) ``clusters``. ``block`` is the side of spatial blocks in degrees."""

    clusters: Ints
    groups: bool
    block: float | None = None
    blocks: Ints | None = None

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.clusters.max(initial=-1)) + 1

    @property
    def names(self) -> tuple[str, ...]:
        """Nouns for what stays together: ``places`` (where there is a block size), ``groups``, both or neither."""
        return tuple(name for name, holds in (("places", self.block is not None), ("groups", self.groups)) if holds)


def has_groups(part: ImageDataset) -> bool:
    """Whether the group of some image is known."""
    return "group" in part.table and bool(part.table["group"].notna().any())


def has_places(part: ImageDataset) -> bool:
    """Whether latitude and longitude of every image are known."""
    columns = ["latitude", "longitude"]
    return set(columns) <= set(part.table.columns) and not part.table[columns].isna().to_numpy().any()


def groupings(part: ImageDataset, contents: Ints | None, blocks: Sequence[float] = BLOCKS) -> list[Grouping]:
    """All groupings of a dataset, the strictest first. The last keeps only copies and identical files together."""
    identical = None if contents is None else _codes(contents)
    same = [ids for ids in (identical, copy_groups(part)) if ids is not None]
    group = _codes(part.table["group"]) if has_groups(part) else None
    by_group = [*same, group] if group is not None else same
    found = []
    for degrees in blocks if has_places(part) else ():
        places = _block_ids(part, degrees)
        found.append(Grouping(_join(len(part), [*by_group, places]), group is not None, degrees, places))
    if group is not None:
        found.append(Grouping(_join(len(part), by_group), groups=True))
    return [*found, Grouping(_join(len(part), same), groups=False)]


def select_groupings(part: ImageDataset, available: list[Grouping], by: SplitBy) -> list[Grouping]:
    """Groupings that a rule allows. Raises InputError if groups or places are unknown."""
    if by == "auto":
        return available
    if by == "class":
        return available[-1:]
    if by == "group":
        found = [grouping for grouping in available if grouping.names == ("groups",)]
        fix = "Name the column of groups with `group_column`"
    else:
        found = [grouping for grouping in available if grouping.block is not None]
        fix = "Fill columns latitude and longitude, in degrees, in every row"
    if not found:
        raise InputError(f"`by={by}`: {part.source} has no {by}s. {fix}, or use `by=class`.")
    return found


def _block_ids(part: ImageDataset, degrees: float) -> Ints:
    latitude, longitude = (part.table[name].to_numpy(dtype=np.float64) for name in ("latitude", "longitude"))
    row = np.floor((latitude + 90) / degrees).astype(np.int64)
    column = np.floor(np.mod(longitude + 180, 360) / degrees).astype(np.int64)  # 180° is -180°
    return _codes(row * math.ceil(360 / degrees) + column)


def _join(count: int, constraints: list[Ints]) -> Ints:
    """Connected components of images that share a value of any constraint. -1 is shared by none."""
    rows, columns, width = [np.empty(0, np.int64)], [np.empty(0, np.int64)], count
    for values in constraints:
        known = np.flatnonzero(values >= 0)
        rows.append(known)
        columns.append(values[known] + width)
        width += int(values.max(initial=-1)) + 1
    edges = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_array((np.ones(len(edges[0]), dtype=np.int8), edges), shape=(width, width))
    return _codes(connected_components(graph, directed=False)[1][:count])


def _codes(values: Any) -> Ints:
    """Numbers from 0 in the order of appearance, -1 for missing values."""
    codes: Ints = pd.factorize(values)[0].astype(np.int64)
    return codes


def stratified_group_split(
    clusters: Ints, labels: Ints, *, target: Floats, key: Key, attempts: int = _ATTEMPTS
) -> Ints:
    """(N,) parts 0 to P-1 of images whose clusters stay together, towards a (P, K) target number of images by class.

    The best of several random orders: first it keeps every class where possible, then its squared distance is smallest.
    """
    num_parts, num_classes = target.shape
    bundles = _bundles(clusters, labels, num_classes)
    best: tuple[bool, float] | None = None
    chosen = np.zeros(len(labels), dtype=np.int64)
    for attempt in range(attempts if 0 < bundles.counts.shape[0] <= _FEW_CLUSTERS else 1):
        generator = key.fold("attempt", attempt).generator()
        parts = _assign_singles(_assign_bundles(bundles, target, generator), bundles, labels, target, generator)
        counts = class_counts(parts, labels, num_parts, num_classes)
        distance = float((((counts - target) / np.maximum(target, 1)) ** 2).sum())
        score = (not keeps_every_class(counts), distance)
        if best is None or score < best:
            best, chosen = score, parts
    return chosen


def class_counts(parts: Ints, labels: Ints, num_parts: int, num_classes: int) -> Ints:
    """(P, K) images of each class in each part."""
    flat = np.bincount(parts * num_classes + labels, minlength=num_parts * num_classes)
    return flat.reshape(num_parts, num_classes).astype(np.int64)


def keeps_every_class(counts: Ints) -> bool:
    """Whether every class is in at least two parts, so that it stays in the others if any part is held out."""
    return bool((counts.sum(axis=1) > 0).all() and ((counts > 0).sum(axis=0) >= 2).all())


class _Bundles(NamedTuple):
    """Clusters of two or more images: (N,) bundle of each image, -1 for single images, and what the bundles hold."""

    of_image: Ints
    counts: csr_array  # (B, K) images of each class
    singles: Ints  # (K,) single images of each class

    def held(self, bundle: int) -> tuple[Ints, Ints]:
        """Classes of a bundle, and images of each."""
        here = slice(*self.counts.indptr[bundle : bundle + 2])
        return self.counts.indices[here], self.counts.data[here]


def _bundles(clusters: Ints, labels: Ints, num_classes: int) -> _Bundles:
    large = np.bincount(clusters) > 1
    of_image = np.where(large, np.cumsum(large) - 1, -1)[clusters]
    bundled = of_image >= 0
    ones = np.ones(bundled.sum(), dtype=np.int64)
    counts = csr_array((ones, (of_image[bundled], labels[bundled])), shape=(large.sum(), num_classes))
    counts.sum_duplicates()
    return _Bundles(of_image, counts, np.bincount(labels[~bundled], minlength=num_classes))


def _assign_bundles(bundles: _Bundles, target: Floats, generator: np.random.Generator) -> Ints:
    """(B,) part of each bundle, in random order, where it lowers ``Σ (filled - target)² / target²`` most."""
    parts = np.zeros(bundles.counts.shape[0], dtype=np.int64)
    filled = np.zeros_like(target)
    weight = 1 / np.maximum(target, 0.5) ** 2
    for bundle in generator.permutation(len(parts)):
        classes, counts = bundles.held(bundle)
        change = counts * (counts + 2 * (filled[:, classes] - target[:, classes])) * weight[:, classes]
        costs = change.sum(axis=1)
        ties = np.flatnonzero(costs <= costs.min() + 1e-12)
        part = int(ties[0] if len(ties) == 1 else generator.choice(ties))
        parts[bundle] = part
        filled[part, classes] += counts
    _restore_classes(bundles, parts, filled, target, generator)
    _fill_empty(bundles, parts, filled, target)
    return parts


def _restore_classes(
    bundles: _Bundles, parts: Ints, filled: Floats, target: Floats, generator: np.random.Generator
) -> None:
    """Move a bundle, in place, for each class that is in one part only and has no single image for another."""
    narrow = ((filled > 0).sum(axis=0) < 2) & (bundles.singles == 0) & (target.sum(axis=0) > 0)
    if not narrow.any():
        return
    owner = np.repeat(np.arange(len(parts)), np.diff(bundles.counts.indptr))
    size = bundles.counts.sum(axis=1)
    for label in np.flatnonzero(narrow):
        if (filled[:, label] > 0).sum() >= 2:
            continue  # moved with an earlier class
        home = int(np.argmax(filled[:, label]))
        missing = np.where(np.arange(len(target)) == home, -np.inf, target[:, label] - filled[:, label])
        goal = int(np.argmax(missing))
        able = generator.permutation(owner[bundles.counts.indices == label])
        for bundle in able[np.argsort(size[able], kind="stable")]:
            classes, counts = bundles.held(bundle)
            left = filled[:, classes].copy()
            left[home] -= counts
            left[goal] += counts
            if (((left > 0).sum(axis=0) >= 2) | (bundles.singles[classes] > 0)).all():
                parts[bundle] = goal
                filled[:, classes] = left
                break


def _fill_empty(bundles: _Bundles, parts: Ints, filled: Floats, target: Floats) -> None:
    """Move the smallest bundle of the fullest part, in place, into each part without images."""
    size = bundles.counts.sum(axis=1)
    empty = np.flatnonzero(filled.sum(axis=1) == 0)
    for goal in empty[int(bundles.singles.sum()) :]:
        able = np.flatnonzero(np.bincount(parts, minlength=len(target))[parts] > 1)
        if not len(able):
            return
        surplus = (filled - target).sum(axis=1)[parts[able]]
        bundle = able[np.lexsort((size[able], -surplus))[0]]
        classes, counts = bundles.held(bundle)
        filled[parts[bundle], classes] -= counts
        filled[goal, classes] += counts
        parts[bundle] = goal


def _assign_singles(
    dealt: Ints, bundles: _Bundles, labels: Ints, target: Floats, generator: np.random.Generator
) -> Ints:
    """(N,) parts of all images: bundles as assigned, single images so that each class reaches its target."""
    num_parts, num_classes = target.shape
    parts = np.append(dealt, -1)[bundles.of_image]
    bundled = parts >= 0
    filled = class_counts(parts[bundled], labels[bundled], num_parts, num_classes)
    lone = np.flatnonzero(~bundled)
    lone = lone[np.argsort(labels[lone], kind="stable")]
    bounds = np.searchsorted(labels[lone], np.arange(num_classes + 1))
    load = filled.sum(axis=1)
    for label in np.flatnonzero(np.diff(bounds)):
        rows = generator.permutation(lone[bounds[label] : bounds[label + 1]])
        rank = np.lexsort((generator.random(num_parts), load / target.sum(axis=1)))  # least laden first
        amounts = _amounts(len(rows), target[:, label], filled[:, label], rank)
        parts[rows] = np.repeat(np.arange(num_parts), amounts)
        load += amounts
    return parts


def _amounts(count: int, target: Floats, filled: Ints, rank: Ints) -> Ints:
    """(P,) of ``count`` single images: one for empty parts, then by what is missing, in order of ``rank``."""
    amounts = np.zeros(len(target), dtype=np.int64)
    amounts[rank[filled[rank] == 0][:count]] = 1
    left = count - int(amounts.sum())
    missing = np.maximum(target - filled - amounts, 0)
    if missing.sum() == 0:
        missing = target
    ideal = left * missing / missing.sum()
    floors = np.floor(ideal + 1e-9).astype(np.int64)
    order = rank[np.argsort(np.round(floors - ideal, 9)[rank], kind="stable")]  # largest remainders first
    floors[order[: left - int(floors.sum())]] += 1
    dealt: Ints = amounts + floors
    return dealt
