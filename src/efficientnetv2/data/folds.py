"""Folds to cross-validate by: each picture is answered by a network that has learnt from others.

By class, group or place the folds are parts of which one answers and the others teach; by time see ``data.time_folds``.

scikit-learn's ``StratifiedGroupKFold`` serves the same end, but may leave a class out of what teaches (see
``data.deal``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from efficientnetv2.base.errors import InputError, count_of, some
from efficientnetv2.base.keys import Key
from efficientnetv2.data.copies import is_copy
from efficientnetv2.data.levels import BLOCKS, By, Level, kept, kept_by, levels_of
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.splits import deal_by_level, how_dealt, refuse_single, shared

#: In the tables of a cross-validation and of its runs, numbers equal where its folds kept pictures together by place
#: or group.
KEPT_WHOLE = "kept_whole"


@dataclass(frozen=True, eq=False)
class Fold:
    """One network's task.

    Args:
        learning: (n,) rows that it may learn from, ascending.
        answering: (m,) rows that it answers, none of them among those.
        note: what sets it apart from the others, where that has a name: its period.
    """

    learning: Ints
    answering: Ints
    note: str = ""


@dataclass(frozen=True, eq=False)
class Folds:
    """All of them.

    Args:
        parts: the folds, in order; no picture is answered twice.
        note: a sentence that says how they were made.
        clusters: (N,) numbers from 0, equal where pictures were kept together: what chance draws as one.
        by: the rule: ``auto``, ``class``, ``group``, ``place`` or ``time``.
        block: side of the spatial blocks in degrees, None without.
        groups: whether those of the group column are kept whole.
    """

    parts: tuple[Fold, ...]
    note: str
    clusters: Ints
    by: By | Literal["time"]
    block: float | None = None
    groups: bool = False

    @property
    def rule(self) -> str:
        """What the folds came to: ``place`` also where ``auto`` has kept blocks whole, else ``by``."""
        return self.by if self.block is None else "place"

    @property
    def kept(self) -> tuple[str, ...]:
        """What ``clusters`` keep whole beside identical files, in words: ``places``, ``groups``, both or neither."""
        return kept(block=self.block, groups=self.groups)

    def of_picture(self, count: int) -> Ints:
        """(N,) the fold that answers each of ``count`` pictures; -1 for those that none does."""
        numbers = np.full(count, -1, dtype=np.int64)
        for number, part in enumerate(self.parts):
            numbers[part.answering] = number
        return numbers

    def told(self, manifest: Manifest) -> Manifest:
        """The same pictures with the columns ``fold``, from 1, and those of ``marked``."""
        return self.marked(
            replace(manifest, table=manifest.table.assign(fold=self.of_picture(len(manifest)) + 1))
        )

    def marked(self, manifest: Manifest) -> Manifest:
        """The same pictures with the column ``KEPT_WHOLE``, if places or groups were; never with that of others."""
        table = manifest.table.drop(columns=KEPT_WHOLE, errors="ignore")
        if self.kept:
            table = table.assign(**{KEPT_WHOLE: self.clusters})
        return replace(manifest, table=table)


def folds(
    manifest: Manifest,
    *,
    k: int,
    seed: int,
    contents: Ints | None = None,
    by: By = "auto",
    blocks: Sequence[float] = BLOCKS,
) -> Folds:
    """Deal the pictures that are not in test into k folds, under the rules of ``splits.with_holdout``.

    A class with fewer (distinct) pictures than folds is missing from some of them, but never from what
    the others make up together; the sentence names it.

    Args:
        manifest: labelled.
        k: 2 or more.
        seed: the same seed gives the same folds.
        contents: as for ``with_holdout``.
        by: what is kept whole.
        blocks: sides of spatial blocks in degrees, tried in this order.

    Raises:
        InputError: a class has no or one (distinct) picture, k is out of range, or what ``by`` names is not known or
            can't be kept whole.
    """
    chosen = np.flatnonzero(manifest.split != "test")
    if not 2 <= k <= len(chosen):
        mend = _so_many(len(chosen)) if len(chosen) > 1 else "Give more pictures"
        raise InputError(
            f"{manifest.source}: {count_of(len(chosen), 'picture')} cannot be dealt into {count_of(k, 'fold')}. {mend}."
        )
    part = manifest.select(chosen)
    levels = levels_of(part, None if contents is None else np.asarray(contents)[chosen], blocks)
    refuse_single(part, levels[-1].clusters, instead="merge it with another")
    levels = kept_by(part, levels, by)
    _refuse_too_few(part, levels, k)
    target, key = shared(part, np.full(k, 1 / k)), Key.of(seed).fold("folds", k)
    both, instead = "in two folds or more", "leave a class of theirs out"
    level, dealt = deal_by_level(part, levels, target, key, both=both, instead=instead)
    clusters = np.full(len(manifest), -1, dtype=np.int64)
    clusters[chosen] = level.clusters
    own = ~is_copy(part)
    parts = tuple(Fold(chosen[dealt != number], chosen[(dealt == number) & own]) for number in range(k))
    how = how_dealt(levels, level, None, folds=k)
    note = f"Dealt {len(chosen)} pictures into {k} folds, {how}, seed {seed}."
    return Folds(
        parts, f"{note}{_scarce(part, dealt, k)}{aside(manifest)}", clusters, by, level.block, level.groups
    )


def _refuse_too_few(part: Manifest, levels: list[Level], k: int) -> None:
    """Each fold gets something, with all kept whole that the rule does not give up.

    Raises:
        InputError: there is less of it than folds.
    """
    # By ``auto`` places give way where they are too few, but whoever names groups wants none on both sides.
    loosest = next((level for level in reversed(levels) if level.groups), levels[-1])
    if loosest.count >= k:
        return
    fewer = _so_many(loosest.count)
    if not loosest.groups and loosest.block is None:
        raise InputError(
            f"{part.source}: {count_of(loosest.count, 'distinct picture')} cannot be dealt into {k} folds: identical "
            f"files, and a picture and its copies, count as one. {fewer}."
        )
    what = "group" if loosest.block is None else "place"
    too = ", with their groups," if loosest.block is not None and loosest.groups else ""
    ways = [
        *([fewer] if loosest.count > 1 else []),
        *(["take smaller blocks (--block-degrees)"] if (loosest.block or 0) > BLOCKS[-1] else []),
        f"do not keep {what}s whole (--by class)",
    ]
    said = ", or ".join(ways)
    raise InputError(
        f"{part.source}: {count_of(loosest.count, what)}{too} cannot be dealt whole into {k} folds. "
        f"{said[0].upper()}{said[1:]}."
    )


def _so_many(most: int) -> str:
    """The number of folds that so many pieces, two or more, can be dealt into."""
    return f"Take 2{f' to {most}' if most > 2 else ''} folds (--folds)"


def _scarce(part: Manifest, dealt: Ints, k: int) -> str:
    """A sentence on classes that some fold has none of."""
    there = pd.crosstab(part.labels, dealt) > 0
    absent = [part.class_names[int(label)] for label in there.index[there.sum(axis=1) < k]]
    if not absent:
        return ""
    return f" Not every fold has a picture of class {some(absent)}: there are too few, or they lie too close."


def aside(manifest: Manifest) -> str:
    """A sentence on the pictures given as test, if there are any; to follow another."""
    tests = int((manifest.split == "test").sum())
    return f" The {count_of(tests, 'picture')} given as test are left aside." if tests else ""
