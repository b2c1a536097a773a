"""Pictures that hang together, drawn as a whole when a probe chooses its strength or learns from fewer labels.

With a copy, or a neighbour, on the other side, a probe would be asked for what it knows by heart, and take the weakest
penalty for the best.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

from efficientnetv2.base.keys import Key
from efficientnetv2.data.copies import families, is_copy
from efficientnetv2.data.deal import deal
from efficientnetv2.data.levels import Level, levels_of
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.manifest import Manifest

# Share of the pictures to learn from that chooses the strength. Ours.
_CHOOSING = 0.25
# Where pictures hang together: pictures asked, over so many draws at most. Ours: a quarter of 400 satellite pictures
# is some twenty places, and which strength wins on these is chance.
_ASKED, _MOST_DRAWS = 500, 4
# As many parts as the strength is chosen by one of; each has to leave every class to learn from. Ours.
_PARTS = 4


@dataclass(frozen=True, eq=False)
class Together:
    """What hangs together among some pictures.

    Args:
        clusters: (n,) numbers, equal where pictures must not part.
        family: (n,) numbers, equal for a picture and what was made from it (``data.copies``); none has two clusters.
        made: (n,) whether it was made from another.
    """

    clusters: Ints
    family: Ints
    made: npt.NDArray[np.bool_]

    @classmethod
    def nothing(cls, count: int) -> Self:
        """So many pictures, each by itself."""
        return cls(np.arange(count), np.arange(count), np.zeros(count, dtype=bool))

    @classmethod
    def by(cls, clusters: Ints, pictures: Manifest) -> Self:
        """By clusters that are known.

        Args:
            clusters: (n,) as above.
            pictures: n of them.
        """
        family = families(pictures)
        return cls(clusters, np.arange(len(pictures)) if family is None else family, is_copy(pictures))

    @classmethod
    def of(cls, pictures: Manifest, contents: Ints | None, *, key: Key) -> Self:
        """By the strictest level that leaves enough clusters to choose by.

        Args:
            pictures: labelled, of one label each.
            contents: (n,) ids, equal for identical files; None if not known.
            key: of the draw that shows whether there are enough.
        """
        levels = levels_of(pictures, contents)
        level = levels[-1]
        # Where no class has a picture for each part nothing is chosen by parts.
        if len(levels) > 1 and np.bincount(pictures.labels).max() >= _PARTS:
            level, _ = strictest(levels, pictures.labels, parts=_PARTS, key=key)
        return cls.by(level.clusters, pictures)

    def select(self, which: npt.NDArray[np.generic]) -> Self:
        """Of some of the pictures: positions, or (n,) whether a picture is one of them."""
        return type(self)(self.clusters[which], self.family[which], self.made[which])

    @property
    def lone(self) -> bool:
        """Whether of the originals each is by itself."""
        return len(np.unique(self.clusters[self.originals])) == len(self.originals)

    @property
    def originals(self) -> Ints:
        """Positions of one picture of each family, ascending: the one that was taken, where it is there."""
        order = np.lexsort((self.made, self.family))
        first = np.unique(self.family[order], return_index=True)[1]
        return np.sort(order[first])

    def drawn(
        self, labels: Ints, *, key: Key, draws: int = 1, teach: int | None = None, ask: float | None = None
    ) -> list[tuple[Ints, Ints]]:
        """Parts to teach and to ask, stratified by class; nothing that hangs together is on both sides.

        Args:
            labels: (n,) class ids, of each two originals or more.
            key: of the draws.
            draws: how many.
            teach: number of originals to teach, met as nearly as whole clusters allow; or else
            ask: share of them to ask.

        Returns:
            Positions, of each draw: to teach, originals first and then their copies; and to ask, originals alone.
        """
        originals = self.originals
        asked, clusters = labels[originals], np.unique(self.clusters[originals], return_inverse=True)[1]
        if self.lone:
            seed = key.torch_seed() % 2**32
            split = StratifiedShuffleSplit(draws, train_size=teach, test_size=ask, random_state=seed)
            parts = list(split.split(asked, asked))
        else:
            share = 1 - ask if ask is not None else (teach or 0) / len(originals)
            classes = np.unique(asked, return_inverse=True)[1]
            target = np.outer([share, 1 - share], np.bincount(classes).astype(np.float64))
            # Of many draws each may be as it comes: to deal thousands of clusters well takes a second.
            attempts = {} if draws == 1 else {"attempts": 1}
            sides = [
                deal(clusters, classes, target=target, key=key.fold("draw", one), **attempts)
                for one in range(draws)
            ]
            parts = [(np.flatnonzero(side == 0), np.flatnonzero(side == 1)) for side in sides]
        copies = np.setdiff1d(np.arange(len(labels)), originals)
        return [
            (
                np.append(
                    originals[taught],
                    copies[np.isin(self.family[copies], self.family[originals[taught]])],
                ),
                originals[others],
            )
            for taught, others in parts
        ]


def distinct(pictures: Manifest, contents: Ints | None) -> npt.NDArray[np.bool_]:
    """(N,) whether a picture is the one that stands for its copies, and for files with the same bytes.

    Args:
        pictures: N of them.
        contents: (N,) ids, equal for identical files; None if not known.
    """
    originals = Together.by(np.arange(len(pictures)), pictures).originals
    if contents is not None:
        originals = originals[np.unique(contents[originals], return_index=True)[1]]
    found = np.zeros(len(pictures), dtype=bool)
    found[originals] = True
    return found


def choosing(together: Together, labels: Ints, *, key: Key) -> list[tuple[Ints, Ints]]:
    """Parts of some pictures by which the strength of a classifier's penalty is chosen.

    Args:
        together: what hangs together among them.
        labels: (n,) class ids.
        key: of the draws.

    Returns:
        Positions to teach and to ask, of each draw, as ``Together.drawn`` gives them; none where there are too few
        pictures to put some of each class aside, or what hangs together is too large.
    """
    _, counts = np.unique(labels[together.originals], return_counts=True)
    if counts.min() < 2 or _CHOOSING * counts.sum() < len(counts):
        return []
    # One draw of lone pictures; of whole clusters, which are few, as many as ask enough pictures.
    draws = 1 if together.lone else max(1, min(_MOST_DRAWS, math.ceil(_ASKED / (_CHOOSING * counts.sum()))))
    parts = together.drawn(labels, key=key, ask=_CHOOSING, draws=draws)
    if any(not len(asked) or len(np.unique(labels[taught])) < 2 for taught, asked in parts):
        return []
    return parts


def strictest(
    levels: Sequence[Level], labels: Ints, *, parts: int, key: Key
) -> tuple[Level, list[tuple[Ints, Ints]]]:
    """The strictest level by whose folds every class can be learnt; the last where there is none.

    Args:
        levels: as ``data.levels.levels_of`` gives them.
        labels: (n,) class ids.
        parts: number of folds.
        key: of the folds.

    Returns:
        The level, and positions to learn from and to answer, of each fold.
    """
    for level in levels:
        if len(np.unique(level.clusters)) < parts and level is not levels[-1]:
            continue
        seed = key.fold("folds").torch_seed() % 2**32
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # A class may have fewer pictures than there are folds.
            warnings.simplefilter("ignore", UserWarning)
            folds = list(splitter.split(labels, labels, level.clusters))
        if all(len(np.unique(labels[learning])) == len(np.unique(labels)) for learning, _ in folds):
            break
    return level, folds
