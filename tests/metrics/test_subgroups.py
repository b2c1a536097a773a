"""Metrics of slices: which slices a column gives, their metrics, and which are significantly lower."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from efficientnetv2.metrics.confidence_intervals import wilson_interval
from efficientnetv2.metrics.subgroups import slice_metrics, slice_values


def test_years_are_values_and_areas_are_quarters():
    table = pd.DataFrame(
        {
            "path": [f"{k}.jpg" for k in range(100)],
            "year": [2010 + k % 4 for k in range(100)],
            "area": np.linspace(0, 99, 100),
            "always": ["same"] * 100,
            "note": [f"text {k}" for k in range(100)],
        }
    )
    found = slice_metrics(table, np.zeros(100), np.zeros(100), np.ones(100))
    assert {one.column for one in found} == {"year", "area"}
    assert sorted(slice_values(table["year"]).unique()) == ["2010", "2011", "2012", "2013"]
    assert slice_values(table["area"]).value_counts().tolist() == [25] * 4


def test_empty_cell_is_a_slice_and_years_stay_integers():
    column = pd.Series([2014.0, np.nan, 2015.0])
    assert slice_values(column).tolist() == ["2014", "(empty)", "2015"]


def test_empty_cell_of_a_categorical_column_is_a_slice():
    """Parquet keeps text as categories, and "(empty)" is not one of them."""
    assert slice_values(pd.Series(pd.Categorical(["a", "b", None]))).tolist() == ["a", "b", "(empty)"]


def test_dates_of_eight_digits_stay_distinct():
    few = pd.Series([20230115.0, np.nan, 20230116.0])
    assert slice_values(few).tolist() == ["20230115", "(empty)", "20230116"]
    month = slice_values(pd.Series(range(20230101, 20230131)))
    assert sorted(month.unique()) == [
        "20230101 to 20230108", "20230108 to 20230116", "20230116 to 20230123", "20230123 to 20230130",
    ]  # fmt: skip


def test_coordinates_of_a_small_site_are_quarters():
    """All of a city block is -122.419 in six digits. Also a small range of a projected coordinate."""
    block = slice_values(pd.Series(np.linspace(-122.4191, -122.4187, 41)))
    assert block.value_counts().to_dict() == {
        "-122.4191 to -122.419": 11, "-122.419 to -122.4189": 10, "-122.4189 to -122.4188": 10,
        "-122.4188 to -122.4187": 10,
    }  # fmt: skip
    meters = slice_values(pd.Series(np.linspace(500_000.0, 500_001.0, 41)))
    assert meters.iloc[[0, -1]].tolist() == ["500000 to 500000.2", "500000.8 to 500001"]
    assert slice_values(pd.Series(1e-9 * np.arange(30) - 122.4)) is not None


@pytest.mark.parametrize(
    ("step", "ends"),
    [
        ("1h", ["2023-05-01 08:00 to 2023-05-01 18:00", "2023-05-02 14:00 to 2023-05-03 00:00"]),
        ("1s", ["2023-05-01 08:00:00 to 2023-05-01 08:00:10", "2023-05-01 08:00:30 to 2023-05-01 08:00:40"]),
    ],
)
def test_images_of_one_day_are_divided_by_time(step, ends):
    taken = slice_values(pd.Series(pd.date_range("2023-05-01 08:00", periods=41, freq=step)))
    assert taken.iloc[[0, -1]].tolist() == ends
    assert taken.nunique() == 4


@pytest.mark.parametrize("zone", ["", "+00:00"])
def test_dates_in_csv_and_parquet_give_equal_slices(zone):
    taken = pd.Series(pd.date_range("2023-05-01 08:00", periods=41, freq="7h"))
    written = taken.map(lambda one: one.isoformat() + zone)
    assert slice_values(written).tolist() == slice_values(taken).tolist()
    assert slice_values(written).nunique() == 4
    days = taken.dt.strftime("%Y-%m-%d")
    assert slice_values(pd.concat([days, pd.Series([f"2024-01-{day:02d}" for day in range(1, 20)])])).nunique() == 4
    assert slice_values(written.where(written.index != 7, "in spring")) is None, "not all of them are dates"


@pytest.mark.parametrize("word", ["NA", "nan", "NULL"])
def test_word_for_a_missing_number_is_an_empty_cell(word):
    cut = slice_values(pd.Series([*map(str, range(30, 70)), word, word]))
    assert cut.iloc[[0, -1]].tolist() == ["30 to 39.75", "(empty)"]
    assert cut.value_counts().tolist() == [10, 10, 10, 10, 2]


def test_parquet_lists_give_no_slices_and_dates_give_quarters(tmp_path):
    table = pd.DataFrame(
        {
            "embedding": [np.arange(3.0) + k for k in range(40)],
            "box": [{"x": k} for k in range(40)],
            "taken": pd.date_range("2023-01-01", periods=40),
        }
    )
    table.to_parquet(tmp_path / "all.parquet")
    read = pd.read_parquet(tmp_path / "all.parquet", dtype_backend="numpy_nullable")
    assert [name for name in read if slice_values(read[name]) is not None] == ["taken"]
    assert slice_values(read["taken"]).iloc[[0, -1]].tolist() == [
        "2023-01-01 to 2023-01-10",
        "2023-01-30 to 2023-02-09",
    ]


def test_mostly_equal_numbers_give_no_slices():
    """All quarters except the last end at 0, so there is only one slice."""
    column = pd.Series([0.0] * 100 + [float(k) for k in range(1, 26)])
    assert slice_values(column) is None
    with_gaps = pd.concat([column, pd.Series([np.nan] * 10)], ignore_index=True)
    assert slice_values(with_gaps).value_counts().to_dict() == {"0 to 25": 125, "(empty)": 10}
    hits = np.arange(125) % 2 == 0
    assert slice_metrics(pd.DataFrame({"clouds": column}), np.zeros(125), np.where(hits, 0, 1), hits) == ()


@pytest.mark.parametrize("column", [[*range(30), np.inf], [10**18 + place for place in range(40)]])
def test_numbers_without_quarters_give_no_slices(column):
    assert slice_values(pd.Series(column)) is None


def test_worst_slices_come_first_by_hand():
    """North 40 of 50, south 20 of 50, west 0 of 5."""
    region = ["north"] * 50 + ["south"] * 50 + ["west"] * 5
    true = np.arange(105) % 3
    hits = np.array([True] * 40 + [False] * 10 + [True] * 20 + [False] * 30 + [False] * 5)
    predicted = np.where(hits, true, (true + 1) % 3)
    found = slice_metrics(pd.DataFrame({"region": region}), true, predicted, hits)
    assert [(one.value, one.num_images, one.small) for one in found] == [
        ("south", 50, False), ("west", 5, True), ("north", 50, False),
    ]  # fmt: skip
    south = found[0]
    assert (south.top1, south.low, south.high) == (0.4, *wilson_interval(0.4, 50))
    assert south.macro_f1 == pytest.approx(f1_score(true[50:100], predicted[50:100], average="macro"))
    # With three slices p is at most 0.0167: 0.0007 for 20 of 50 against 40 of 55, 0.0127 for 0 of 5 against 60 of 100.
    assert [one.below for one in found] == [True, True, False]


def test_equal_slices_are_rarely_called_worse():
    """Twenty slices of 60 images with equal accuracy: at most about one in twenty of 200 tables."""
    generator, called = np.random.default_rng(0), 0
    names = np.repeat([f"r{k:02d}" for k in range(20)], 60)
    for _ in range(200):
        hits = generator.random(len(names)) < 0.7
        labels = np.zeros((len(names), 2), dtype=int)  # multi-label, because F1 is not tested here
        found = slice_metrics(pd.DataFrame({"region": names}), labels, np.where(hits, 0, 1), hits)
        called += any(one.below for one in found)
    assert called <= 20, called


def fraction_called_worse(tables, column, share=0.7):
    """The fraction of tables with a slice called worse, although all images have equal accuracy."""
    generator, called = np.random.default_rng(0), 0
    for _ in range(tables):
        hits = generator.random(len(column)) < share
        labels = np.zeros((len(column), 2), dtype=int)
        found = slice_metrics(pd.DataFrame({"region": column}), labels, np.where(hits, 0, 1), hits)
        called += any(one.below for one in found)
    return called / tables


@pytest.mark.parametrize("parts", [(200, 200), (390, 10), (60,) * 12])
def test_variation_of_the_other_images_is_included(parts):
    """Two halves, a large slice against few images, a dozen slices: at most one in twenty of 400 tables."""
    column = np.repeat([f"r{place}" for place in range(len(parts))], parts)
    assert fraction_called_worse(400, column) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_few_correct_images_do_not_make_other_slices_worse():
    """950 of 997 against 3 of 3. With 95 % accuracy, this is the result in six of seven draws."""
    hits = np.arange(1000) >= 47
    column = ["most"] * 997 + ["few"] * 3
    found = slice_metrics(pd.DataFrame({"region": column}), np.zeros(1000), np.where(hits, 0, 1), hits)
    assert [(one.value, one.below) for one in found] == [("most", False), ("few", False)]


def test_worse_slice_is_found():
    """60 % against 80 %, with 200 images each, among five random columns."""
    generator = np.random.default_rng(0)
    table = pd.DataFrame({f"chance{number}": generator.integers(0, 4, 400) for number in range(5)})
    table["region"] = np.repeat(["dim", "bright"], 200)
    hits = generator.random(400) < np.repeat([0.6, 0.8], 200)
    found = slice_metrics(table, np.zeros(400), np.where(hits, 0, 1), hits)
    assert [(one.column, one.value) for one in found if one.below] == [("region", "dim")]


def test_columns_without_slices_give_no_metrics():
    assert slice_metrics(pd.DataFrame({"a": ["x", "x"]}), [0, 1], [0, 1], [True, True]) == ()
    assert slice_metrics(pd.DataFrame(index=range(2)), [0, 1], [0, 1], [True, True]) == ()
