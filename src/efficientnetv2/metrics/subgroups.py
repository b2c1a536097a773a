"""The same figures on parts of the pictures: is it as good for every year, every region, every size?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import fisher_exact

from efficientnetv2.metrics.confidence_intervals import wilson_interval

#: Pictures below which a slice's figure says little: its interval is wider than 0.3. Ours.
SMALL_SLICE = 30
#: Different values that a column may have to be cut into slices by them; numbers of more are cut into quarters. Ours.
MOST_VALUES = 20
_QUARTERS = 4
# Digits by which ends of quarters are told apart, at least six of them: with 17 no two numbers read alike.
_DIGITS = range(6, 18)
_TIMES = (
    "minutes",
    "seconds",
    "milliseconds",
    "microseconds",
    "nanoseconds",
)  # likewise of dates, after the day


@dataclass(frozen=True)
class SliceMetrics:
    """Pictures that have something in common.

    Args:
        column: of the table.
        value: that they have there.
        pictures: how many.
        top1: share of them that is labelled right.
        low, high: its 95 % interval, Wilson's.
        macro_f1: mean F1 over the classes that they have; None of pictures with several labels.
        small: whether they are too few to say much (``SMALL_SLICE``).
        below: whether they are answered worse than the others beyond chance, which has a part in both shares. With all
            slices looked at together, at most one in twenty tables whose slices are alike has one called so.
    """

    column: str
    value: str
    pictures: int
    top1: float
    low: float
    high: float
    macro_f1: float | None
    small: bool
    below: bool


def slice_values(column: pd.Series[str]) -> pd.Series[str] | None:
    """What the pictures are cut by, as text; None where the column cuts them into nothing of use.

    Args:
        column: of the table: of at most ``MOST_VALUES`` different values, or of numbers, which are then cut into
            quarters of about as many pictures, and so are dates: each named by its ends, as exactly as tells them
            apart. An empty cell is a value of its own, "(empty)".
    """
    filled = column.dropna()
    try:
        distinct = filled.nunique()
    except TypeError:  # lists and the like, as Parquet has them: embeddings, boxes
        return None
    if distinct + (len(filled) < len(column)) < 2:
        return None
    if distinct > MOST_VALUES:
        numbers = _ordered(filled)
        if numbers is None:
            return None
        quarters, edges = pd.qcut(numbers, _QUARTERS, labels=False, retbins=True, duplicates="drop")
        if len(edges) < 2:  # whole numbers so long that they are one as floating point
            return None
        ends = _told_apart(list(edges))
        named = quarters.map(lambda quarter: f"{ends[int(quarter)]} to {ends[int(quarter) + 1]}")
    else:
        named = filled.map(_plain)
    # As objects first: a text column of Parquet may be categorical, which takes no value that is not a category of its.
    cut = named.astype(object).reindex(column.index, fill_value="(empty)")
    return cut if cut.nunique() > 1 else None  # of numbers most of which are equal the quarters are one


def _ordered(filled: pd.Series[Any]) -> pd.Series[Any] | None:
    """Numbers, or dates as a table has them or as ISO 8601 writes them; None of anything else."""
    if pd.api.types.is_datetime64_any_dtype(filled):
        return filled
    numbers = pd.to_numeric(filled, errors="coerce").astype(float)
    if np.isfinite(numbers).all():
        return numbers
    if pd.api.types.is_numeric_dtype(filled):
        return None
    # As ``data.folds`` reads them: those with an offset become UTC.
    dates = pd.to_datetime(filled, errors="coerce", format="ISO8601", utc=True)
    return dates.dt.tz_localize(None) if dates.notna().all() else None


def _plain(value: object) -> str:
    """A year that pandas reads as 2014.0, because another cell is empty, is 2014."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def _told_apart(ends: Sequence[Any]) -> list[str]:
    """Where quarters end, in as few words as tell all apart: places of a small site differ behind the sixth digit."""
    tried: Iterator[list[str]]
    if isinstance(ends[0], pd.Timestamp):
        days = [one.date().isoformat() for one in ends]
        tried = chain([days], ([one.isoformat(" ", to) for one in ends] for to in _TIMES))
    else:
        tried = ([_short(one, digits) for one in ends] for digits in _DIGITS)
    return next(texts for texts in tried if len(set(texts)) == len(texts))


def _short(value: float, digits: int) -> str:
    """So many digits, or all before the point where these are more: dates such as 20230115 differ in the last ones."""
    before = len(f"{abs(value):.0f}")
    return f"{value:.{max(digits, before)}g}"


def slice_metrics(
    columns: pd.DataFrame, labels: npt.ArrayLike, predicted: npt.ArrayLike, right: npt.ArrayLike
) -> tuple[SliceMetrics, ...]:
    """The figures of every slice, the worst first: those below the others beyond chance, the rest, then small ones.

    Args:
        columns: a row per picture, cut by each column on its own; see ``slice_values``.
        labels: (N,) true classes; of several labels each (N, M).
        predicted: (N,) answers.
        right: (N,) whether they are right.

    Source: Fisher's exact test of each slice against the rest, one-sided, at 5 % over the number of slices
    (Bonferroni).
    """
    true, answers, hits = np.asarray(labels), np.asarray(predicted), np.asarray(right, dtype=bool)
    cuts = {name: cut for name in columns if (cut := slice_values(columns[name])) is not None}
    parts = [(str(name), str(value)) for name, cut in cuts.items() for value in cut.unique()]
    found = []
    for name, value in parts:
        inside = (cuts[name] == value).to_numpy()
        count, share = int(inside.sum()), float(hits[inside].mean())
        low, high = wilson_interval(share, count)
        below = _worse(hits[inside], hits[~inside], level=0.05 / len(parts))
        macro = None if true.ndim > 1 else _macro_f1(true[inside], answers[inside])
        found.append(SliceMetrics(name, value, count, share, low, high, macro, count < SMALL_SLICE, below))
    return tuple(sorted(found, key=lambda one: (not one.below, one.small, one.top1)))


def _worse(inside: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_], *, level: float) -> bool:
    """Whether pictures are less often answered right than others, beyond chance in both."""
    table = [[int(part.sum()), int((~part).sum())] for part in (inside, others)]
    return bool(fisher_exact(table, alternative="less").pvalue <= level)


def sliceable_columns(table: pd.DataFrame, *, without: Sequence[str]) -> list[str]:
    """The columns of a table by which pictures can be cut.

    Args:
        table: a row per picture.
        without: names of those that say something else: path, label, split.
    """
    names = [name for name in table.columns if name not in without]
    return [name for name in names if slice_values(table[name]) is not None]


def _macro_f1(true: npt.NDArray[np.int64], answers: npt.NDArray[np.int64]) -> float:
    from sklearn.metrics import f1_score  # takes a second to load

    return float(f1_score(true, answers, labels=np.unique(true), average="macro", zero_division=0))
