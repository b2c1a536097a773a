"""What a column says of the time: numbers, or dates."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from efficientnetv2.data.times import said, time_column, times_of


@pytest.mark.parametrize(
    ("cells", "first", "known"),
    [
        ([2014, 2015, None], 2014.0, 2),
        (["2014", "2015", "unknown"], 2014.0, 2),
        (["2016-05-31", "unknown", None], pd.Timestamp("2016-05-31", tz="UTC"), 1),
        (["2016-05-31", "2016-06-01", "3"], pd.Timestamp("2016-05-31", tz="UTC"), 2),
        (["2016-05-31T01:00+02:00", "2016-12-31T01:00+01:00"], pd.Timestamp("2016-05-30T23:00Z"), 2),
        (["spring", "autumn"], np.nan, 0),
    ],
)
def test_numbers_or_dates_whichever_more_cells_are(cells, first, known):
    found = times_of(SimpleNamespace(table=pd.DataFrame({"taken": cells})), "taken")
    assert found.notna().sum() == known
    assert found.iloc[0] == first or (pd.isna(first) and pd.isna(found.iloc[0]))


@pytest.mark.parametrize(
    ("columns", "found"),
    [(["path", "Date", "Year "], "Year "), (["path", "timestamp"], "timestamp"), (["path", "yearly"], None)],
)
def test_a_likely_column_is_taken_however_it_is_spelled(columns, found):
    table = pd.DataFrame(columns=columns)
    assert time_column(SimpleNamespace(table=table, source="all.csv"), None) == found


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        (20160531.0, "20160531"),
        (2016.5, "2016.5"),
        (np.int64(2016), "2016"),
        (pd.Timestamp("2016-05-31"), "2016-05-31"),
        (pd.Timestamp("2016-05-31T12:00"), "2016-05-31T12:00:00"),
    ],
)
def test_a_moment_is_said_whole(moment, words):
    assert said(moment) == words
