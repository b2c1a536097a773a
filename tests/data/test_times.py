"""What a column says of the time: numbers, or dates."""

from __future__ import annotations

import datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.messages import mentioning

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.folds import format_time, time_column, time_folds, time_holdout, times_of
from efficientnetv2.utils.errors import InputError


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
    assert format_time(moment) == words


@pytest.mark.parametrize("last", ["2017-03-01T06:00", None])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_timestamps_of_a_parquet_file_are_dates(last, zone, tmp_path):
    """A missing one is missing, not the earliest of all."""
    taken = pd.to_datetime(pd.Series(["2016-07-01T12:00", "2015-07-01T12:00", last])).dt.tz_localize(zone)
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    table = pd.DataFrame({"path": [f"{n}.png" for n in range(3)], "label": list("aba"), "date": taken})
    table.to_parquet(tmp_path / "t.parquet")
    data = load_dataset(tmp_path / "t.parquet")
    found = times_of(data, "date")
    hour = 10 if zone else 12
    assert list(found[:2]) == [pd.Timestamp(f"{year}-07-01T{hour}:00", tz="UTC") for year in (2016, 2015)]
    assert pd.isna(found.iloc[2]) == (last is None)
    if last is None:
        with pytest.raises(InputError, match=mentioning("t.parquet", "4", "1", "3")):
            time_folds(data, k=1, column="date")
    else:
        note = time_holdout(data, share=0.3, column="date").note
        assert note.startswith("date from 2017-03-01T0")


def test_days_of_a_parquet_file_are_dates(tmp_path):
    days = [datetime.date(2016, 5, 31), datetime.date(2015, 5, 31), None]
    pd.DataFrame({"taken": days}).to_parquet(tmp_path / "t.parquet")
    table = pd.read_parquet(tmp_path / "t.parquet", dtype_backend="numpy_nullable")
    found = times_of(SimpleNamespace(table=table), "taken")
    assert [format_time(moment) for moment in found[:2]] == ["2016-05-31", "2015-05-31"]
    assert pd.isna(found.iloc[2])
