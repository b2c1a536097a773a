"""Metrics of subgroups: images with the same value in a column of the dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import fisher_exact

from efficientnetv2.metrics.classification import macro_f1
from efficientnetv2.metrics.confidence_intervals import wilson_interval
from efficientnetv2.utils.io import MISSING_WORDS

#: Images below which the interval of a subgroup is wider than 0.3. Ours.
SMALL_SLICE = 30
#: Distinct values up to which each is a subgroup; more numbers or dates become quartiles. Ours.
MOST_VALUES = 20
_QUARTERS = 4
# Digits of the ends of quartiles: with 17 no two floats look alike.
_DIGITS = range(6, 18)
# Precision of the ends of date quartiles, after the day.
_TIMES = ("minutes", "seconds", "milliseconds", "microseconds", "nanoseconds")


@dataclass(frozen=True)
class SliceMetrics:
    """Metrics of one subgroup. The fields are keys of ``report.json``."""

    column: str
    value: str
    num_images: int
    top1: float
    low: float
    high: float
    macro_f1: float | None  # over the classes of the subgroup; None for multi-label data
    small: bool  # fewer than ``SMALL_SLICE`` images
    below: bool  # top-1 significantly lower than that of all other images, tested over all subgroups


def slice_values(column: pd.Series[str]) -> pd.Series[str] | None:
    """The value of each image as text, or None for a column that gives no useful subgroups.

    More than ``MOST_VALUES`` numbers or dates become quartiles, named by their ends. An empty cell is "(empty)", and
    among these also a word such as NA.
    """
    filled = column.dropna()
    try:
        distinct = filled.nunique()
    except TypeError:  # lists in Parquet: embeddings, boxes
        return None
    if distinct + (len(filled) < len(column)) < 2:
        return None
    if distinct > MOST_VALUES:
        if not pd.api.types.is_numeric_dtype(filled):
            filled = filled[~filled.astype(str).str.strip().str.casefold().isin(MISSING_WORDS)]
        numbers = _ordered(filled)
        if numbers is None:
            return None
        quarters, edges = pd.qcut(numbers, _QUARTERS, labels=False, retbins=True, duplicates="drop")
        if len(edges) < 2:  # integers that are equal as floats
            return None
        ends = _distinct_texts(list(edges))
        named = quarters.map(lambda quarter: f"{ends[int(quarter)]} to {ends[int(quarter) + 1]}")
    else:
        named = filled.map(_plain)
    # As objects: a categorical column takes no value outside its categories.
    cut = named.astype(object).reindex(column.index, fill_value="(empty)")
    return cut if cut.nunique() > 1 else None  # mostly equal numbers give one quartile


def _ordered(filled: pd.Series[Any]) -> pd.Series[Any] | None:
    """Numbers, or dates (also as ISO 8601 text); None for anything else."""
    if pd.api.types.is_datetime64_any_dtype(filled):
        return filled
    numbers = pd.to_numeric(filled, errors="coerce").astype(float)
    if np.isfinite(numbers).all():
        return numbers
    if pd.api.types.is_numeric_dtype(filled):
        return None
    # As ``data.folds`` reads dates: those with an offset become UTC.
    dates = pd.to_datetime(filled, errors="coerce", format="ISO8601", utc=True)
    return dates.dt.tz_localize(None) if dates.notna().all() else None


def _plain(value: object) -> str:
    """Text of a value; pandas reads the year 2014 as 2014.0 if another cell is empty."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def _distinct_texts(ends: Sequence[Any]) -> list[str]:
    """The ends of quartiles, as short as keeps them distinct."""
    if isinstance(ends[0], pd.Timestamp):
        candidates = [[each.date().isoformat() for each in ends]]
        candidates += [[each.isoformat(" ", to) for each in ends] for to in _TIMES]
    else:
        candidates = [[_short(each, digits) for each in ends] for digits in _DIGITS]
    return next(texts for texts in candidates if len(set(texts)) == len(texts))


def _short(value: float, digits: int) -> str:
    """A number with so many digits, but with all before the point: dates such as 20230115 differ in the last ones."""
    before = len(f"{abs(value):.0f}")
    return f"{value:.{max(digits, before)}g}"


def slice_metrics(
    columns: pd.DataFrame, labels: npt.ArrayLike, predicted: npt.ArrayLike, right: npt.ArrayLike
) -> tuple[SliceMetrics, ...]:
    """Metrics of each subgroup: first those significantly below the rest, then the others by top-1, small ones last.

    Source: Fisher's exact test of each subgroup against the rest, one-sided, at 5 % over the number of subgroups.
    """
    true, predictions, hits = np.asarray(labels), np.asarray(predicted), np.asarray(right, dtype=bool)
    cuts = {name: cut for name in columns if (cut := slice_values(columns[name])) is not None}
    parts = [(str(name), str(value)) for name, cut in cuts.items() for value in cut.unique()]
    found = []
    for name, value in parts:
        inside = (cuts[name] == value).to_numpy()
        count, share = int(inside.sum()), float(hits[inside].mean())
        low, high = wilson_interval(share, count)
        table = [[int(part.sum()), int((~part).sum())] for part in (hits[inside], hits[~inside])]
        below = bool(fisher_exact(table, alternative="less").pvalue <= 0.05 / len(parts))
        macro = macro_f1(true[inside], predictions[inside]) if true.ndim == 1 else None
        found.append(SliceMetrics(name, value, count, share, low, high, macro, count < SMALL_SLICE, below))
    return tuple(sorted(found, key=lambda each: (not each.below, each.small, each.top1)))
