"""Folds to cross-validate by: each picture is answered by a network that has learnt from others.

By class, group or place the folds are parts of which one answers and the others teach; by time see ``data.folds``.

scikit-learn's ``StratifiedGroupKFold`` serves the same end, but may leave a class out of what teaches (see
``data.stratified_split``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.augmented_copies import copy_groups, is_copy
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import BLOCKS, Grouping, SplitBy, grouping_names, groupings, select_groupings
from efficientnetv2.data.records import Ints
from efficientnetv2.data.splits import (
    class_targets,
    describe_split,
    split_by_groupings,
    validate_two_per_class,
)
from efficientnetv2.utils.errors import InputError, count_of, did_you_mean, some
from efficientnetv2.utils.rng import Key

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
    by: SplitBy | Literal["time"]
    block: float | None = None
    groups: bool = False

    @property
    def rule(self) -> str:
        """What the folds came to: ``place`` also where ``auto`` has kept blocks whole, else ``by``."""
        return self.by if self.block is None else "place"

    @property
    def kept(self) -> tuple[str, ...]:
        """What ``clusters`` keep whole beside identical files, in words: ``places``, ``groups``, both or neither."""
        return grouping_names(block=self.block, groups=self.groups)

    def of_picture(self, count: int) -> Ints:
        """(N,) the fold that answers each of ``count`` pictures; -1 for those that none does."""
        numbers = np.full(count, -1, dtype=np.int64)
        for number, part in enumerate(self.parts):
            numbers[part.answering] = number
        return numbers

    def told(self, dataset: ImageDataset) -> ImageDataset:
        """The same pictures with the columns ``fold``, from 1, and those of ``marked``."""
        return self.marked(
            replace(dataset, table=dataset.table.assign(fold=self.of_picture(len(dataset)) + 1))
        )

    def marked(self, dataset: ImageDataset) -> ImageDataset:
        """The same pictures with the column ``KEPT_WHOLE``, if places or groups were; never with that of others."""
        table = dataset.table.drop(columns=KEPT_WHOLE, errors="ignore")
        if self.kept:
            table = table.assign(**{KEPT_WHOLE: self.clusters})
        return replace(dataset, table=table)


def assign_folds(
    dataset: ImageDataset,
    *,
    k: int,
    seed: int,
    contents: Ints | None = None,
    by: SplitBy = "auto",
    blocks: Sequence[float] = BLOCKS,
) -> Folds:
    """Deal the pictures that are not in test into k folds, under the rules of ``splits.with_holdout``.

    A class with fewer (distinct) pictures than folds is missing from some of them, but never from what
    the others make up together; the sentence names it.

    Args:
        dataset: labelled.
        k: 2 or more.
        seed: the same seed gives the same folds.
        contents: as for ``with_holdout``.
        by: what is kept whole.
        blocks: sides of spatial blocks in degrees, tried in this order.

    Raises:
        InputError: a class has no or one (distinct) picture, k is out of range, or what ``by`` names is not known or
            can't be kept whole.
    """
    chosen = np.flatnonzero(dataset.split != "test")
    if not 2 <= k <= len(chosen):
        mend = _so_many(len(chosen)) if len(chosen) > 1 else "Give more pictures"
        raise InputError(
            f"{dataset.source}: {count_of(len(chosen), 'picture')} cannot be dealt into {count_of(k, 'fold')}. {mend}."
        )
    part = dataset.select(chosen)
    levels = groupings(part, None if contents is None else np.asarray(contents)[chosen], blocks)
    validate_two_per_class(part, levels[-1].clusters, instead="merge it with another")
    levels = select_groupings(part, levels, by)
    _refuse_too_few(part, levels, k)
    target, key = class_targets(part, np.full(k, 1 / k)), Key.of(seed).fold("folds", k)
    both, instead = "in two folds or more", "leave a class of theirs out"
    level, dealt = split_by_groupings(part, levels, target, key, both=both, instead=instead)
    clusters = np.full(len(dataset), -1, dtype=np.int64)
    clusters[chosen] = level.clusters
    own = ~is_copy(part)
    parts = tuple(Fold(chosen[dealt != number], chosen[(dealt == number) & own]) for number in range(k))
    how = describe_split(levels, level, None, folds=k)
    note = f"Dealt {len(chosen)} pictures into {k} folds, {how}, seed {seed}."
    return Folds(
        parts,
        f"{note}{_scarce(part, dealt, k)}{outside_folds(dataset)}",
        clusters,
        by,
        level.block,
        level.groups,
    )


def _refuse_too_few(part: ImageDataset, levels: list[Grouping], k: int) -> None:
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


def _scarce(part: ImageDataset, dealt: Ints, k: int) -> str:
    """A sentence on classes that some fold has none of."""
    there = pd.crosstab(part.labels, dealt) > 0
    absent = [part.class_names[int(label)] for label in there.index[there.sum(axis=1) < k]]
    if not absent:
        return ""
    return f" Not every fold has a picture of class {some(absent)}: there are too few, or they lie too close."


def outside_folds(dataset: ImageDataset) -> str:
    """A sentence on the pictures given as test, if there are any; to follow another."""
    tests = int((dataset.split == "test").sum())
    return f" The {count_of(tests, 'picture')} given as test are left aside." if tests else ""


# Columns that are taken for the time unasked, in any case; the first that there is. Ours.
TIMES = ("year", "date", "datetime", "timestamp", "time")


def time_column(dataset: ImageDataset, column: str | None) -> str | None:
    """The column of the time: as asked for, else the first that is called so; None if there is none.

    Raises:
        InputError: it was asked for and is not there.
    """
    columns = [str(name) for name in dataset.table.columns]
    if column is not None:
        if column not in columns:
            raise InputError(
                f"{dataset.source} has no column '{column}'{did_you_mean(column, columns)} Its columns are "
                f"{some(columns, 20)}. Name the one that holds the time with --time-column."
            )
        return column
    spelled = {name.strip().casefold(): name for name in reversed(columns)}
    return next((spelled[name] for name in TIMES if name in spelled), None)


def times_of(dataset: ImageDataset, column: str) -> pd.Series[Any]:
    """(N,) numbers, such as years, or dates; missing where a cell is neither.

    Args:
        dataset: of the pictures.
        column: of its table: timestamps, or dates as ISO 8601 has them. Those with an offset from UTC become UTC, those
            without one count as such; where as many cells are numbers as are dates, they are numbers.
    """
    given = dataset.table[column]
    if pd.api.types.is_datetime64_any_dtype(
        given
    ):  # as Parquet keeps them; as numbers they would be nanoseconds
        return pd.to_datetime(given, utc=True)
    numbers = pd.to_numeric(given, errors="coerce")
    if numbers.notna().sum() == given.notna().sum():
        return numbers
    dates = pd.to_datetime(given, errors="coerce", format="ISO8601", utc=True)
    return dates if dates.notna().sum() > numbers.notna().sum() else numbers


def format_time(moment: object) -> str:
    """A number or date of ``times_of`` as people write it: 2016, 20160531, 2016-05-31, 2016-05-31T12:00:00.

    Args:
        moment: one of them.
    """
    if isinstance(moment, pd.Timestamp):
        return moment.date().isoformat() if moment == moment.normalize() else moment.isoformat()
    return f"{moment:.15g}" if isinstance(moment, float) else str(moment)


def time_folds(dataset: ImageDataset, *, k: int, column: str, contents: Ints | None = None) -> Folds:
    """The past answers for the future: k folds of k + 1 periods with about as many pictures each.

    Fold i learns from all periods before period i + 1, and answers that. Pictures of one moment never part; a picture
    that is answered is not learnt from under another name.

    Args:
        dataset: labelled; its splits, ``test`` aside, do not count.
        k: 1 or more.
        column: of numbers (a year), or of dates.
        contents: as for ``splits.with_holdout``.

    Raises:
        InputError: there is no such column, a row has no time, there are fewer moments than periods, or a class appears
            only after the first period.
    """
    chosen = np.flatnonzero(dataset.split != "test")
    times = _times(dataset, column)[chosen]
    period = _periods(times, k, column)
    parts = []
    for number in range(1, k + 1):
        span = f"{column} {_span(times[period < number])}, then {_span(times[period == number])}"
        part = _of_period(dataset, chosen, period, number, contents, span)
        if unlearnt := _unlearnt(dataset, part):
            raise InputError(
                f"{dataset.source}: by {column}, {unlearnt} the pictures that fold {number} answers, so that nothing "
                "can be learnt of it. Take fewer folds (--folds), or leave the class out."
            )
        parts.append(part)
    same = np.arange(len(dataset)) if contents is None else np.asarray(contents)
    clusters = np.full(len(dataset), -1, dtype=np.int64)
    clusters[chosen] = pd.factorize(same[chosen])[0]
    note = (
        f"By time, column '{column}': {count_of(k, 'fold')} of {len(chosen)} pictures, each learns from the past and "
        f"answers what comes next; the first {int((period == 0).sum())} only teach."
    )
    return Folds(tuple(parts), f"{note}{outside_folds(dataset)}", clusters, "time")


def time_holdout(dataset: ImageDataset, *, share: float, column: str, contents: Ints | None = None) -> Fold:
    """The latest pictures answer, all before them teach: one cut, where this share is met most closely.

    As by ``time_folds`` pictures of one moment never part, and what is answered is not learnt from under another name.

    Args:
        dataset: labelled; its splits, ``test`` aside, do not count.
        share: of the pictures that are to answer, between 0 and 1.
        column: as for ``time_folds``.
        contents: as for ``splits.with_holdout``.

    Raises:
        InputError: there is no such column, a row has no time, all have one, or a class appears only after the cut.
            What to do about it depends on what the pictures are, so whoever asks says it.
    """
    chosen = np.flatnonzero(dataset.split != "test")
    times = _times(dataset, column)[chosen]
    moments, counts = np.unique(times, return_counts=True)
    if len(moments) < 2:
        raise InputError(
            f"{dataset.source}: column '{column}' says the same of all of them, so none is later."
        )
    cut = int(np.argmin(np.abs(np.cumsum(counts)[:-1] - (1 - share) * len(chosen))))
    period = (np.searchsorted(moments, times) > cut).astype(np.int64)
    part = _of_period(dataset, chosen, period, 1, contents, f"{column} from {format_time(moments[cut + 1])}")
    if unlearnt := _unlearnt(dataset, part):
        raise InputError(
            f"{dataset.source}: by {column}, {unlearnt} the latest {count_of(len(part.answering), 'picture')}, so "
            "that nothing can be learnt of it."
        )
    return part


def _of_period(
    dataset: ImageDataset, chosen: Ints, period: Ints, number: int, contents: Ints | None, note: str
) -> Fold:
    """A period answers, those before it teach, but not what is answered under another name."""
    same = np.arange(len(dataset)) if contents is None else np.asarray(contents)
    family, made = copy_groups(dataset), is_copy(dataset)[chosen]
    answering = chosen[(period == number) & ~made]
    past = chosen[period < number]
    learning = past[~np.isin(same[past], same[answering])]
    if family is not None:
        learning = learning[~np.isin(family[learning], family[answering])]
    return Fold(learning, answering, note)


def _times(dataset: ImageDataset, column: str) -> npt.NDArray[np.object_]:
    """(N,) numbers or dates, which can be put in order."""
    time_column(dataset, column)
    given = dataset.table[column]
    times = times_of(dataset, column)
    wrong = np.flatnonzero(times.isna())
    if len(wrong):
        row = int(wrong[0])
        what = "is empty" if pd.isna(given.iloc[row]) else f"is '{given.iloc[row]}'"
        raise InputError(
            f"{dataset.where(row)}: {column} {what} ({len(wrong)} of {len(dataset)} rows are so), but to split "
            "by time every row needs a number, such as a year, or a date such as 2016-05-31. Fill it in, or leave the "
            "rows out."
        )
    values: npt.NDArray[np.object_] = times.to_numpy(dtype=object)
    return values


def _periods(times: npt.NDArray[np.object_], k: int, column: str) -> Ints:
    """(N,) 0 to k, about as many pictures in each, moments whole."""
    moments, counts = np.unique(times, return_counts=True)
    if k < 1 or len(moments) < k + 1:
        most = len(moments) - 1
        fix = {0: "Take another rule (--by)", 1: "Take 1 fold (--folds)"}.get(
            most, f"Take 1 to {most} folds (--folds)"
        )
        raise InputError(
            f"{count_of(k, 'fold')} by time need {k + 1} periods, but column '{column}' has "
            f"{count_of(len(moments), 'different value')}. {fix}."
        )
    ends = np.cumsum(counts)
    cuts: list[int] = []
    for number in range(1, k + 1):
        first = cuts[-1] + 1 if cuts else 1
        last = len(moments) - (k + 1 - number)  # the later periods need a moment each
        aim = number * ends[-1] / (k + 1)
        cuts.append(min(range(first, last + 1), key=lambda cut: abs(ends[cut - 1] - aim)))
    of_moment = np.searchsorted(cuts, np.arange(len(moments)), side="right")
    period: Ints = of_moment[np.searchsorted(moments, times)].astype(np.int64)
    return period


def _unlearnt(dataset: ImageDataset, part: Fold) -> str:
    """What keeps a period from being answered, to go on with its name; empty if two classes at least are learnt."""
    unlearnt = np.setdiff1d(dataset.targets[part.answering], [*np.unique(dataset.targets[part.learning]), -1])
    if len(unlearnt):
        return f"class '{dataset.class_names[int(unlearnt[0])]}' does not appear before"
    learnt = np.setdiff1d(dataset.targets[part.learning], [-1])
    return "there is one class only before" if len(learnt) < 2 else ""


def _span(times: npt.NDArray[np.object_]) -> str:
    first, last = (format_time(end) for end in (min(times), max(times)))
    return first if first == last else f"{first} to {last}"
