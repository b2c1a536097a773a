"""When pictures were taken, as a column of their table says it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from efficientnetv2.base.errors import InputError, did_you_mean, some
from efficientnetv2.data.manifest import Manifest

# Columns that are taken for the time unasked, in any case; the first that there is. Ours.
TIMES = ("year", "date", "datetime", "timestamp", "time")


def time_column(manifest: Manifest, column: str | None) -> str | None:
    """The column of the time: as asked for, else the first that is called so; None if there is none.

    Raises:
        InputError: it was asked for and is not there.
    """
    columns = [str(name) for name in manifest.table.columns]
    if column is not None:
        if column not in columns:
            raise InputError(
                f"{manifest.source} has no column '{column}'{did_you_mean(column, columns)} Its columns are "
                f"{some(columns, 20)}. Name the one that holds the time with --time-column."
            )
        return column
    spelled = {name.strip().casefold(): name for name in reversed(columns)}
    return next((spelled[name] for name in TIMES if name in spelled), None)


def times_of(manifest: Manifest, column: str) -> pd.Series[Any]:
    """(N,) numbers, such as years, or dates; missing where a cell is neither.

    Args:
        manifest: of the pictures.
        column: of its table: timestamps, or dates as ISO 8601 has them. Those with an offset from UTC become UTC, those
            without one count as such; where as many cells are numbers as are dates, they are numbers.
    """
    given = manifest.table[column]
    if pd.api.types.is_datetime64_any_dtype(
        given
    ):  # as Parquet keeps them; as numbers they would be nanoseconds
        return pd.to_datetime(given, utc=True)
    numbers = pd.to_numeric(given, errors="coerce")
    if numbers.notna().sum() == given.notna().sum():
        return numbers
    dates = pd.to_datetime(given, errors="coerce", format="ISO8601", utc=True)
    return dates if dates.notna().sum() > numbers.notna().sum() else numbers


def said(moment: object) -> str:
    """A number or date of ``times_of`` as people write it: 2016, 20160531, 2016-05-31, 2016-05-31T12:00:00.

    Args:
        moment: one of them.
    """
    if isinstance(moment, pd.Timestamp):
        return moment.date().isoformat() if moment == moment.normalize() else moment.isoformat()
    return f"{moment:.15g}" if isinstance(moment, float) else str(moment)
