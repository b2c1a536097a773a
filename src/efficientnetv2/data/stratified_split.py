"""Divide clusters of images into parts so that each part gets its share of every class.

scikit-learn's ``StratifiedGroupKFold`` makes only equal folds, may leave a class out of one, and is slow for a million
clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from efficientnetv2.utils.rng import Key

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Random orders of assigning, of which the best is taken, and clusters above which one order is enough. Ours.
_ATTEMPTS, _FEW_CLUSTERS = 16, 10_000


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
        parts = _assign_singles(
            _assign_bundles(bundles, target, generator), bundles, labels, target, generator
        )
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
    whole = np.floor(ideal + 1e-9).astype(np.int64)
    order = rank[np.argsort(np.round(whole - ideal, 9)[rank], kind="stable")]  # largest remainders first
    whole[order[: left - int(whole.sum())]] += 1
    dealt: Ints = amounts + whole
    return dealt
