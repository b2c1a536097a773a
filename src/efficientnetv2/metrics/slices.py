"""The same figures on parts of the pictures: is it as good for every year, every region, every size?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import f1_score

from efficientnetv2.metrics.intervals import wilson

#: Pictures below which a slice's figure says little: its interval is wider than 0.3. Ours.
SMALL = 30
#: Different values that a column may have to be cut into slices by them; numbers of more are cut into quarters. Ours.
MOST_VALUES = 20
_QUARTERS = 4


@dataclass(frozen=True)
class Slice:
    """Pictures that have something in common.

    Args:
        column: of the table.
        value: that they have there.
        pictures: how many.
        top1: share of them that is labelled right.
        low, high: its 95 % interval, Wilson's.
        macro_f1: mean F1 over the classes that they have; None of pictures with several labels.
        small: whether they are too few to say much (``SMALL``).
        below: whether they are answered worse than the others beyond chance: the interval of the slice, widened
            so that of all slices looked at together one in twenty such findings is wrong, lies below the others' top1.
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


def values_of(column: pd.Series[str]) -> pd.Series[str] | None:
    """What the pictures are cut by, as text; None where the column cuts them into nothing of use.

    Args:
        column: of the table: of at most ``MOST_VALUES`` different values, or of numbers, which are then cut into
            quarters of about as many pictures, and so are dates. An empty cell is a value of its own, "(empty)".
    """
    filled = column.dropna()
    try:
        distinct = filled.nunique()
    except TypeError:  # lists and the like, as Parquet has them: embeddings, boxes
        return None
    if distinct + (len(filled) < len(column)) < 2:
        return None
    if distinct > MOST_VALUES:
        dates = pd.api.types.is_datetime64_any_dtype(filled)
        numbers = filled if dates else pd.to_numeric(filled, errors="coerce")
        if numbers.isna().any():
            return None
        bins = pd.qcut(numbers, _QUARTERS, duplicates="drop")
        least = numbers.min()  # a little above where pandas lets the first of them begin
        words = {one: f"{_short(max(one.left, least))} to {_short(one.right)}" for one in bins.cat.categories}
        named = bins.astype(object).map(words)
    else:
        named = filled.map(_plain)
    cut = named.reindex(column.index, fill_value="(empty)").astype(object)
    return cut if cut.nunique() > 1 else None  # of numbers most of which are equal the quarters are one


def _plain(value: object) -> str:
    """A year that pandas reads as 2014.0, because another cell is empty, is 2014."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def _short(value: float | pd.Timestamp) -> str:
    """Six digits, or of larger numbers all before the point: dates such as 20230115 differ in the last ones."""
    if isinstance(value, pd.Timestamp):
        return value.date().isoformat()
    return f"{value:.0f}" if abs(value) >= 1e5 else f"{value:.6g}"


def slices(
    columns: pd.DataFrame, labels: npt.ArrayLike, predicted: npt.ArrayLike, right: npt.ArrayLike
) -> tuple[Slice, ...]:
    """The figures of every slice, the worst first: those below the others beyond chance, the rest, then small ones.

    Args:
        columns: a row per picture, cut by each column on its own; see ``values_of``.
        labels: (N,) true classes; of several labels each (N, M).
        predicted: (N,) answers.
        right: (N,) whether they are right.

    Source: the widening is Bonferroni's: 5 % over the number of slices.
    """
    true, answers, hits = np.asarray(labels), np.asarray(predicted), np.asarray(right, dtype=bool)
    cuts = {name: cut for name in columns if (cut := values_of(columns[name])) is not None}
    parts = [(str(name), str(value)) for name, cut in cuts.items() for value in cut.unique()]
    found = []
    for name, value in parts:
        inside = (cuts[name] == value).to_numpy()
        count, share = int(inside.sum()), float(hits[inside].mean())
        low, high = wilson(share, count)
        widened = wilson(share, count, level=1 - 0.05 / len(parts))
        others = float(hits[~inside].mean())
        macro = None if true.ndim > 1 else _macro_f1(true[inside], answers[inside])
        found.append(
            Slice(name, value, count, share, low, high, macro, count < SMALL, below=widened[1] < others)
        )
    return tuple(sorted(found, key=lambda one: (not one.below, one.small, one.top1)))


def usable(table: pd.DataFrame, *, without: Sequence[str]) -> list[str]:
    """The columns of a table by which pictures can be cut.

    Args:
        table: a row per picture.
        without: names of those that say something else: path, label, split.
    """
    names = [name for name in table.columns if name not in without]
    return [name for name in names if values_of(table[name]) is not None]


def _macro_f1(true: npt.NDArray[np.int64], answers: npt.NDArray[np.int64]) -> float:
    return float(f1_score(true, answers, labels=np.unique(true), average="macro", zero_division=0))
