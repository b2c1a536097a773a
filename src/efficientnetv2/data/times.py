"""When pictures were taken, as a column of their table says it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from efficientnetv2.data.manifest import Manifest


def times_of(manifest: Manifest, column: str) -> pd.Series[Any]:
    """(N,) numbers, such as years, or dates; missing where a cell is neither.

    Args:
        manifest: of the pictures.
        column: of its table: dates as ISO 8601 has them. Those with an offset from UTC become UTC, those without one
            count as such; where as many cells are numbers as are dates, they are numbers.
    """
    given = manifest.table[column]
    numbers = pd.to_numeric(given, errors="coerce")
    if numbers.notna().sum() == given.notna().sum():
        return numbers
    dates = pd.to_datetime(given, errors="coerce", format="ISO8601", utc=True)
    return dates if dates.notna().sum() > numbers.notna().sum() else numbers
