"""Folds for cross-validation: by class, group or place, or by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import BLOCKS, Grouping, SplitBy, groupings, select_groupings
from efficientnetv2.data.records import Ints, is_copy, missing_column
from efficientnetv2.data.splits import (
    class_targets,
    describe_split,
    image_labels,
    split_by_groupings,
    validate_two_per_class,
)
from efficientnetv2.utils.errors import InputError, pluralize, shorten
from efficientnetv2.utils.random_key import Key

#: Column of a cross-validation's tables: numbers, equal for images that the folds kept together by place or group.
KEPT_WHOLE = "kept_whole"
# Default names of the column of time, in any case. The first match counts. Ours.
TIMES = ("year", "date", "datetime", "timestamp", "time")


@dataclass(frozen=True, eq=False)
class Fold:
    """Ascending rows to train on, other rows to predict, and the name of the fold, if any: its period."""

    train_rows: Ints
    val_rows: Ints
    note: str = ""


@dataclass(frozen=True, eq=False)
class Folds:
    """The folds of a cross-validation. No image is predicted twice.

    ``clusters`` are (N,) numbers from 0, equal for images that were kept together: units of the bootstrap. ``block`` is
    the side of the spatial blocks in degrees. ``names`` are those of the ``Grouping``.
    """

    parts: tuple[Fold, ...]
    note: str
    clusters: Ints
    by: SplitBy | Literal["time"]
    block: float | None = None
    names: tuple[str, ...] = ()

    @property
    def rule(self) -> str:
        """``place`` where spatial blocks were kept together, also by ``auto``. Otherwise ``by``."""
        return self.by if self.block is None else "place"

    def fold_of_image(self, count: int) -> Ints:
        """(N,) fold that predicts each of ``count`` images, or -1."""
        numbers = np.full(count, -1, dtype=np.int64)
        for number, part in enumerate(self.parts):
            numbers[part.val_rows] = number
        return numbers

    def with_folds(self, dataset: ImageDataset) -> ImageDataset:
        """The dataset with the column ``fold``, from 1, and that of ``with_clusters``."""
        table = dataset.table.assign(fold=self.fold_of_image(len(dataset)) + 1)
        return self.with_clusters(replace(dataset, table=table))

    def with_clusters(self, dataset: ImageDataset) -> ImageDataset:
        """The dataset with the column ``KEPT_WHOLE`` if places or groups were kept together, else without it."""
        table = dataset.table.drop(columns=KEPT_WHOLE, errors="ignore")
        if self.names:
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
    """Assign the images that are not in test to k folds, by the rules of ``splits.with_holdout``.

    A class with fewer distinct images than folds is missing from some folds, but never from a training part. The note
    names it. Arguments as ``splits.with_holdout``.
    Raises InputError where a class is too small, k is out of range, or groups or places cannot stay together.
    """
    rows = np.flatnonzero(dataset.split != "test")
    part = dataset.select(rows)
    if not 2 <= k <= len(rows):
        raise InputError(
            f"{dataset.source}: {pluralize(len(rows), 'image')} cannot be divided into {pluralize(k, 'fold')}. "
            "`folds` must be from 2 to the number of images."
        )
    levels = groupings(part, None if contents is None else np.asarray(contents)[rows], blocks)
    validate_two_per_class(part, levels[-1].clusters)
    levels = select_groupings(part, levels, by)
    _refuse_too_few(part, levels, k)
    target, key = class_targets(part, np.full(k, 1 / k)), Key.of(seed).fold("folds", k)
    level, fold = split_by_groupings(part, levels, target, key)
    clusters = np.full(len(dataset), -1, dtype=np.int64)
    clusters[rows] = level.clusters
    is_original = ~is_copy(part)
    parts = tuple(Fold(rows[fold != number], rows[(fold == number) & is_original]) for number in range(k))
    how = describe_split(levels, level)
    note = f"Divided {len(rows)} images into {k} folds, {how}, seed {seed}."
    images, classes = image_labels(part)
    present = pd.crosstab(classes, fold[images]) > 0
    absent = [part.class_names[int(label)] for label in present.index[present.sum(axis=1) < k]]
    if absent:
        note += f" Not every fold has an image of class {shorten(absent)}: there are too few, or they are too close."
    return Folds(parts, note + _test_note(dataset), clusters, by, level.block, level.names)


def _refuse_too_few(part: ImageDataset, levels: list[Grouping], k: int) -> None:
    """Refuse more folds than clusters, with everything kept together that the rule requires."""
    # ``auto`` divides places where they are too few, but never given groups.
    loosest = next((level for level in reversed(levels) if level.groups), levels[-1])
    if loosest.count >= k:
        return
    fixes = [f"take 2 to {loosest.count} folds (`folds`)"] if loosest.count > 1 else []
    if (loosest.block or 0) > BLOCKS[-1]:
        fixes.append("take smaller blocks (`block_degrees`)")
    if loosest.names:
        fixes.append("use `by=class`")
    units = [name.removesuffix("s") for name in loosest.names] or ["distinct image"]
    raise InputError(
        f"{part.source}: {pluralize(loosest.count, units[0])}{f' with its {units[1]}' if len(units) > 1 else ''} "
        f"cannot be divided into {k} folds. Instead {', or '.join(fixes)}."
    )


def _test_note(dataset: ImageDataset) -> str:
    tests = int((dataset.split == "test").sum())
    return f" The {pluralize(tests, 'image')} given as test are not used." if tests else ""


def time_column(dataset: ImageDataset, column: str | None) -> str | None:
    """The given column of time, else the first of ``TIMES``, else None. Raises InputError if the given is missing."""
    columns = [str(name) for name in dataset.table.columns]
    if column is None:
        spelled = {name.strip().casefold(): name for name in reversed(columns)}
        return next((spelled[name] for name in TIMES if name in spelled), None)
    if column not in columns:
        raise missing_column(dataset.source, column, columns, "time")
    return column


def times_of(dataset: ImageDataset, column: str) -> pd.Series[Any]:
    """(N,) numbers, such as years, or dates in UTC. Missing where a cell is neither.

    Dates are timestamps or ISO 8601; without an offset they are UTC. With as many numbers as dates, cells are numbers.
    """
    given = dataset.table[column]
    if pd.api.types.is_datetime64_any_dtype(given):  # of Parquet; as numbers these would be nanoseconds
        return pd.to_datetime(given, utc=True)
    numbers = pd.to_numeric(given, errors="coerce")
    if numbers.notna().sum() == given.notna().sum():
        return numbers
    dates = pd.to_datetime(given, errors="coerce", format="ISO8601", utc=True)
    return dates if dates.notna().sum() > numbers.notna().sum() else numbers


def format_time(moment: object) -> str:
    """A number or date of ``times_of`` as text: 2016, 20160531, 2016-05-31, 2016-05-31T12:00:00."""
    if isinstance(moment, pd.Timestamp):
        return moment.date().isoformat() if moment == moment.normalize() else moment.isoformat()
    return f"{moment:.15g}" if isinstance(moment, float) else str(moment)


def time_folds(dataset: ImageDataset, *, k: int, column: str, contents: Ints | None = None) -> Folds:
    """Forward-chaining folds: k + 1 periods of about equal size; fold i trains on periods before period i + 1.

    Images of one time stay together. Copies of predicted images are not trained on. Given splits but ``test`` do not
    count. ``column`` holds numbers (a year) or dates. ``contents`` are (N,) ids, equal for identical files.
    Raises InputError where times are missing, there are fewer than periods, or a class has no image or first appears
    too late.
    """
    rows = np.flatnonzero(dataset.split != "test")
    part = dataset.select(rows)
    if len(gone := np.setdiff1d(np.arange(len(part.class_names)), image_labels(part)[1])):
        raise InputError(
            f"{dataset.source}: class '{part.class_names[gone[0]]}' has no readable image in train. Add images, or "
            "leave it out."
        )
    times = _times(part, column)
    period = _periods(times, k, column)
    parts = []
    for number in range(1, k + 1):
        past, now = period < number, period == number
        note = f"{column} {_span(times[past])}, then {_span(times[now])}"
        images = f"the images of fold {number}. Take fewer `folds`, or leave the class out"
        parts.append(_fold_by_time(dataset, rows[past], rows[now], contents, column, note, images))
    same = np.arange(len(dataset)) if contents is None else np.asarray(contents)
    clusters = np.full(len(dataset), -1, dtype=np.int64)
    clusters[rows] = pd.factorize(same[rows])[0]
    note = (
        f"By time, column '{column}': {pluralize(k, 'fold')} of {len(rows)} images, each trains on the past and "
        f"predicts the next period; the first {int((period == 0).sum())} images are only trained on."
    )
    return Folds(tuple(parts), note + _test_note(dataset), clusters, "time")


def time_holdout(dataset: ImageDataset, *, share: float, column: str, contents: Ints | None = None) -> Fold:
    """One split by time: the latest images are for validation, about ``share`` of all. Else as ``time_folds``.

    The caller adds a fix to errors, which depends on the images.
    """
    rows = np.flatnonzero(dataset.split != "test")
    times = _times(dataset.select(rows), column)
    moments, counts = np.unique(times, return_counts=True)
    if len(moments) < 2:
        raise InputError(f"{dataset.source}: column '{column}' has one value only, so no image is later.")
    cut = int(np.argmin(np.abs(np.cumsum(counts)[:-1] - (1 - share) * len(rows))))
    late = np.searchsorted(moments, times) > cut
    note = f"{column} from {format_time(moments[cut + 1])}"
    images = f"the latest {pluralize(int(late.sum()), 'image')}"
    return _fold_by_time(dataset, rows[~late], rows[late], contents, column, note, images)


def _fold_by_time(
    dataset: ImageDataset, past: Ints, now: Ints, contents: Ints | None, column: str, note: str, images: str
) -> Fold:
    """A fold without copies among the predicted images, or of them in the past. The past must have their classes."""
    val = now[~is_copy(dataset)[now]]
    # Joined: also a copy of an image that is identical to a predicted one.
    same = groupings(dataset, contents, blocks=())[-1].clusters
    past = past[~np.isin(same[past], same[val])]
    trained = np.setdiff1d(dataset.targets[past], [-1])
    unseen = np.setdiff1d(dataset.targets[val], [*trained, -1])
    if len(unseen) or len(trained) < 2:
        missing = f"class '{dataset.class_names[int(unseen[0])]}' does" if len(unseen) else "two classes do"
        raise InputError(f"{dataset.source}: by {column}, {missing} not appear before {images}.")
    return Fold(past, val, note)


def _times(dataset: ImageDataset, column: str) -> npt.NDArray[np.object_]:
    time_column(dataset, column)
    given = dataset.table[column]
    times = times_of(dataset, column)
    wrong = np.flatnonzero(times.isna())
    if len(wrong):
        row = int(wrong[0])
        what = "is empty" if pd.isna(given.iloc[row]) else f"is '{given.iloc[row]}'"
        raise InputError(
            f"{dataset.where(row)}: {column} {what} ({len(wrong)} of {pluralize(len(dataset), 'row')}), but must be a "
            "number, such as a year, or a date, such as 2016-05-31."
        )
    values: npt.NDArray[np.object_] = times.to_numpy(dtype=object)
    return values


def _periods(times: npt.NDArray[np.object_], k: int, column: str) -> Ints:
    """(N,) period of each image, 0 to k. Periods have about equal sizes and do not divide a time."""
    moments, counts = np.unique(times, return_counts=True)
    if not 1 <= k < len(moments):
        fix = f"`folds` must be from 1 to {len(moments) - 1}." if len(moments) > 1 else "Use another `by`."
        raise InputError(
            f"{pluralize(k, 'fold')} by time need {k + 1} periods, but column '{column}' has "
            f"{pluralize(len(moments), 'different value')}. {fix}"
        )
    ends = np.cumsum(counts)
    cuts = [0]
    for number in range(1, k + 1):
        last = len(moments) - (k + 1 - number)  # the later periods need a moment each
        aim = number * ends[-1] / (k + 1)
        cuts.append(min(range(cuts[-1] + 1, last + 1), key=lambda cut: abs(ends[cut - 1] - aim)))
    of_moment = np.searchsorted(cuts[1:], np.arange(len(moments)), side="right")
    period: Ints = of_moment[np.searchsorted(moments, times)].astype(np.int64)
    return period


def _span(times: npt.NDArray[np.object_]) -> str:
    first, last = (format_time(end) for end in (min(times), max(times)))
    return first if first == last else f"{first} to {last}"
