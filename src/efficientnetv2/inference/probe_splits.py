"""Which images a linear probe is fitted on, and splits of them that keep clusters whole."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import Grouping, groupings, stratified_group_split
from efficientnetv2.data.records import Ints, copy_groups, is_copy
from efficientnetv2.utils.random_key import Key

# Fraction of the training images that choose the penalty. With clusters: the number of images and draws at most, since
# a quarter of 400 satellite images is some twenty places, and the best penalty on these is chance. Ours.
TUNING_FRACTION = 0.25
_TUNING_IMAGES, _TUNING_DRAWS = 500, 4
# Folds that must leave every class in training for a grouping to be used. Ours.
_FOLDS = 4
# Images of each class at least: of the others if a draw has a single class, and on average in a sample. Ours.
MIN_CLASS_IMAGES = 5


@dataclass(frozen=True, eq=False)
class GroupedData:
    """Which images must stay on one side of a split."""

    clusters: Ints  # (n,) ids; images of a cluster are not separated
    family: Ints  # (n,) ids, equal for an image and its augmented copies (``data.records``)
    made: npt.NDArray[np.bool_]  # (n,) whether an image is an augmented copy

    @classmethod
    def independent(cls, count: int) -> Self:
        """Images without groups and copies."""
        return cls(np.arange(count), np.arange(count), np.zeros(count, dtype=bool))

    @classmethod
    def from_clusters(cls, clusters: Ints, dataset: ImageDataset) -> Self:
        """Known cluster ids, and the copies of the dataset."""
        family = copy_groups(dataset)
        return cls(clusters, np.arange(len(dataset)) if family is None else family, is_copy(dataset))

    @classmethod
    def from_dataset(cls, dataset: ImageDataset, contents: Ints | None, *, key: Key) -> Self:
        """The strictest grouping whose folds leave every class in training. ``contents``: see ``deduplicate``."""
        levels = groupings(dataset, contents)
        level = levels[-1]
        if len(levels) > 1 and np.bincount(dataset.labels).max() >= _FOLDS:
            level, _ = strictest_grouping(levels, dataset.labels, parts=_FOLDS, key=key)
        return cls.from_clusters(level.clusters, dataset)

    def select(self, rows: npt.NDArray[np.generic]) -> Self:
        """Some of the images, by position or mask."""
        return type(self)(self.clusters[rows], self.family[rows], self.made[rows])

    @property
    def originals(self) -> Ints:
        """Ascending positions of one image per family: the original if it is there."""
        order = np.lexsort((self.made, self.family))
        first = np.unique(self.family[order], return_index=True)[1]
        return np.sort(order[first])

    @property
    def has_clusters(self) -> bool:
        """Whether two originals share a cluster."""
        return len(np.unique(self.clusters[self.originals])) < len(self.originals)

    def draw_splits(
        self,
        labels: Ints,
        *,
        key: Key,
        draws: int = 1,
        train_size: int | None = None,
        test_fraction: float | None = None,
    ) -> list[tuple[Ints, Ints]]:
        """Random splits, stratified by (n,) class ids with two originals or more each, that keep clusters whole.

        Either ``train_size`` is the number of originals to train on, as nearly as clusters allow, or ``test_fraction``
        the fraction to test on. Returns the positions to train on, copies last, and to test on, originals only.
        """
        originals = self.originals
        classes = np.unique(labels[originals], return_inverse=True)[1]
        splits: list[tuple[Ints, Ints]] = []
        if self.has_clusters:
            clusters = np.unique(self.clusters[originals], return_inverse=True)[1]
            train = 1 - test_fraction if test_fraction is not None else (train_size or 0) / len(originals)
            target = np.outer([train, 1 - train], np.bincount(classes).astype(np.float64))
            # Of many draws each may be uneven: to balance thousands of clusters takes a second.
            attempts = {} if draws == 1 else {"attempts": 1}
            for draw in range(draws):
                own_key = key.fold("draw", draw)
                side = stratified_group_split(clusters, classes, target=target, key=own_key, **attempts)
                splits.append((np.flatnonzero(side == 0), np.flatnonzero(side == 1)))
        else:
            split = StratifiedShuffleSplit(
                draws, train_size=train_size, test_size=test_fraction, random_state=key.torch_seed() % 2**32
            )
            splits = list(split.split(classes, classes))
        copies = np.setdiff1d(np.arange(len(labels)), originals)
        with_copies = []
        for train_rows, test_rows in splits:
            train_copies = copies[np.isin(self.family[copies], self.family[originals[train_rows]])]
            with_copies.append((np.append(originals[train_rows], train_copies), originals[test_rows]))
        return with_copies


def tuning_splits(groups: GroupedData, labels: Ints, *, key: Key) -> list[tuple[Ints, Ints]]:
    """Splits that choose a penalty; none if there are too few images of a class, or a cluster is too large."""
    _, counts = np.unique(labels[groups.originals], return_counts=True)
    num_tuning = TUNING_FRACTION * counts.sum()
    if counts.min() < 2 or num_tuning < len(counts):
        return []
    draws = max(1, min(_TUNING_DRAWS, math.ceil(_TUNING_IMAGES / num_tuning))) if groups.has_clusters else 1
    splits = groups.draw_splits(labels, key=key, test_fraction=TUNING_FRACTION, draws=draws)
    usable = all(len(test) and len(np.unique(labels[train])) > 1 for train, test in splits)
    return splits if usable else []


def strictest_grouping(
    levels: Sequence[Grouping], labels: Ints, *, parts: int, key: Key
) -> tuple[Grouping, list[tuple[Ints, Ints]]]:
    """The first of ``levels``, strictest first, whose folds leave every class in training, else the last."""
    for level in levels:
        if len(np.unique(level.clusters)) < parts and level is not levels[-1]:
            continue
        seed = key.fold("folds").torch_seed() % 2**32
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class with fewer images than folds
            folds = list(splitter.split(labels, labels, level.clusters))
        if all(len(np.unique(labels[train])) == len(np.unique(labels)) for train, _ in folds):
            break
    return level, folds


def deduplicate(dataset: ImageDataset, contents: Ints | None) -> npt.NDArray[np.bool_]:
    """(N,) whether an image stands for its augmented copies and for files with equal bytes, (N,) ``contents`` ids."""
    originals = GroupedData.from_clusters(np.arange(len(dataset)), dataset).originals
    if contents is not None:
        originals = originals[np.unique(contents[originals], return_index=True)[1]]
    distinct = np.zeros(len(dataset), dtype=bool)
    distinct[originals] = True
    return distinct


def sample_training_rows(labels: Ints, most: int, key: Key, distinct: npt.NDArray[np.bool_] | None = None) -> Ints:
    """About ``most`` ascending rows of (N,) labels to train on, drawn uniformly.

    Of images that are not ``distinct`` (N,), as of ``deduplicate``, some are drawn only where a class has no others
    left. If the draw has a single class, a few images of others are added.
    """
    drawn = sample_rows(len(labels), most, key)
    if len(drawn) < len(labels) and distinct is not None and not distinct.all():
        order = key.generator().permutation(len(labels))
        order = order[np.lexsort((~distinct[order], labels[order]))]  # by class; copies last
        counts = np.bincount(labels[drawn], minlength=int(labels.max()) + 1)
        first = np.searchsorted(labels[order], np.arange(len(counts)))
        drawn = np.sort(order[np.arange(len(order)) - first[labels[order]] < counts[labels[order]]])
    same_class = labels == labels[drawn[0]]
    if same_class[drawn].all():
        drawn = np.union1d(drawn, np.flatnonzero(~same_class)[:MIN_CLASS_IMAGES])
    return drawn


def sample_rows(count: int, most: int, key: Key) -> Ints:
    """Ascending rows, ``most`` at most, drawn uniformly."""
    return np.arange(count) if count <= most else np.sort(key.generator().permutation(count)[:most])
