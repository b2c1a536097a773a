"""Folds by class, group, place and time: no group is in two folds, and invalid input is rejected."""

from __future__ import annotations

import datetime
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import StratifiedKFold
from tests.data.test_splits import dataset
from tests.messages import each_mentions, mentioning, mentions

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.folds import assign_folds, format_time, time_column, time_folds, time_holdout, times_of
from efficientnetv2.data.splits import with_holdout
from efficientnetv2.utils.errors import InputError


def places(count: int) -> dict[str, np.ndarray]:
    """Pairs of images, each pair in a separate degree."""
    pair = np.arange(count) // 2
    return {"latitude": pair % 80 + 0.5, "longitude": pair * 3 % 170 + 0.5}


def test_folds_by_class_are_as_even_as_in_scikit_learn():
    labels = np.repeat([0, 1, 2], [53, 31, 12])
    folds = assign_folds(dataset(labels), k=5, seed=0, by="class").fold_of_image(len(labels))
    sklearn_folds = np.zeros(len(labels), dtype=int)
    for number, (_, test_rows) in enumerate(StratifiedKFold(5).split(labels, labels)):
        sklearn_folds[test_rows] = number
    for fold in (folds, sklearn_folds):
        counts = pd.crosstab(labels, fold).to_numpy()
        assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1


def test_folds_by_place_keep_neighbors_together():
    labels = np.tile([0, 1, 0, 1], 20)
    data = dataset(labels, **places(80))
    by_class, by_place = (assign_folds(data, k=4, seed=0, by=by).fold_of_image(80) for by in ("class", "place"))
    assert (by_place[::2] == by_place[1::2]).all()
    assert not (by_class[::2] == by_class[1::2]).all()


def test_folds_by_place_or_group_need_their_columns():
    data = dataset([0, 1] * 10)
    with pytest.raises(InputError, match=mentioning("by=", "all.csv")):
        assign_folds(data, k=2, seed=0, by="place")
    with pytest.raises(InputError, match=mentioning("by=", "all.csv", "group_column")):
        assign_folds(data, k=2, seed=0, by="group")


def test_classes_missing_from_a_fold_are_named_by_all_labels_of_the_images():
    """b is never alone, but in all folds. d is never the rarest class of an image, and in at most four folds."""
    labels = ["a;b"] * 6 + ["b;c"] * 2 + ["c"] * 10 + ["e;d"] * 2 + ["f;d"] * 2
    data = dataset(range(22), label=labels)
    data = replace(data, class_names=tuple("abcdef"), separator=";")
    note = assign_folds(data, k=5, seed=0, by="class").note
    assert "class 'd', 'e', 'f':" in note


def test_class_in_one_group_is_named():
    """The automatic rule ignores groups with a note; rules chosen by name fail."""
    data = dataset([0, 0, 1, 1, 1, 1], group=["a", "b", "c", "c", "c", "c"])
    assert mentions(assign_folds(data, k=2, seed=0).note, "groups not kept", "class")
    with pytest.raises(InputError, match=mentioning("'c1'", "by=")):
        assign_folds(data, k=2, seed=0, by="group")
    with pytest.raises(InputError, match=mentioning("'c1'", "class")):
        with_holdout(data, seed=0, by="group")


def test_groups_of_two_classes_are_not_divided():
    labels = np.tile([0, 1, 1, 2, 2, 0], 6)
    group = [f"g{number}" for number in np.arange(36) // 2]
    assignment = assign_folds(dataset(labels, group=group), k=3, seed=0, by="group")
    fold = assignment.fold_of_image(36)
    assert pd.Series(fold).groupby(group).nunique().max() == 1
    assert all(set(labels[part.train_rows]) == {0, 1, 2} for part in assignment.parts)


def test_fewer_images_than_folds_are_rejected():
    with pytest.raises(InputError, match=mentioning("4", "9", "2", "folds")):
        assign_folds(dataset([0, 0, 1, 1]), k=9, seed=0)


def test_class_with_fewer_images_than_folds_is_named():
    assignment = assign_folds(dataset([0] * 20 + [1] * 3), k=5, seed=0)
    assert mentions(assignment.note, "'c1'", "fold")
    assert sum((assignment.fold_of_image(23)[20:] == number).any() for number in range(5)) == 3
    with pytest.raises(InputError, match=mentioning("'c1'", "class")):
        assign_folds(dataset([0] * 20 + [1]), k=5, seed=0)


@given(st.lists(st.tuples(st.integers(1990, 2016), st.integers(0, 1)), min_size=8, max_size=60), st.integers(1, 5))
def test_folds_by_time_train_on_the_past(rows, k):
    years, labels = (np.array(column) for column in zip(*rows, strict=True))
    assume(len(set(labels)) == 2)
    data = dataset(labels, year=years)
    try:
        assignment = time_folds(data, k=k, column="year")
    except InputError:  # too few times, or a new class; see below
        return
    evaluated = np.concatenate([part.val_rows for part in assignment.parts])
    assert len(set(evaluated)) == len(evaluated)
    first = years[np.setdiff1d(np.arange(len(years)), evaluated)]
    for part in assignment.parts:
        assert years[part.train_rows].max() < years[part.val_rows].min()
        assert set(labels[part.train_rows]) == {0, 1}
        # All of the past, and all images of each time.
        assert (years[part.train_rows].min(), len(part.train_rows)) == (
            years.min(),
            (years < years[part.val_rows].min()).sum(),
        )
    assert first.max() < min(years[evaluated])


def test_periods_have_similar_numbers_of_images():
    years = np.repeat(np.arange(2000, 2016), 5)
    assignment = time_folds(dataset(np.tile([0, 1], 40), year=years), k=3, column="year")
    assert [len(part.val_rows) for part in assignment.parts] == [20, 20, 20]
    assert each_mentions(
        [part.note for part in assignment.parts],
        ("2000", "2003", "2004", "2007"),
        ("2000", "2007", "2008", "2011"),
        ("2000", "2011", "2012", "2015"),
    )


def test_class_without_an_image_is_refused_by_time_too():
    """Its only file was unreadable."""
    data = dataset([0, 1, 2] * 4 + [3], year=[*range(12), 0])
    kept = data.select(np.arange(12))
    for fold in (lambda: time_folds(kept, k=2, column="year"), lambda: assign_folds(kept, k=2, seed=0, by="class")):
        with pytest.raises(InputError, match=mentioning(data.class_names[3], "no readable image")):
            fold()


def test_dates_are_sorted():
    dates = [f"20{year:02d}-0{month}-01" for year in (16, 15, 17) for month in (3, 9, 6, 1)]
    assignment = time_folds(dataset([0, 1] * 6, date=dates), k=2, column="date")
    assert mentions(assignment.parts[0].note, "2015-01-01", "2015-09-01", "2016-01-01", "2016-09-01")
    assert sorted(assignment.parts[1].val_rows) == [8, 9, 10, 11]


def test_time_zones_are_compared_in_utc():
    """00:30 in summer time is 22:30 UTC of the day before, earlier than 23:00 UTC."""
    times = ["2016-07-02T00:30+02:00", "2016-07-01T23:00+00:00"] + [f"2016-12-0{day}T00:00+01:00" for day in "1234"]
    assignment = time_folds(dataset([0, 1, 0, 1, 0, 1], date=times), k=1, column="date")
    assert assignment.parts[0].note.startswith("date 2016-07-01T22:30:00+00:00 to ")
    assert list(assignment.parts[0].val_rows) == [3, 4, 5]


def test_duplicates_of_evaluated_images_are_not_trained_on():
    contents = np.arange(12)
    contents[11] = 0  # the newest image is a copy of the oldest
    data = dataset([0, 1] * 6, year=np.arange(12))
    assignment = time_folds(data, k=2, column="year", contents=contents)
    assert 0 in assignment.parts[0].train_rows
    assert 0 not in assignment.parts[1].train_rows


def test_invalid_times_are_rejected_by_row():
    with pytest.raises(InputError, match=mentioning("yaer", "did you mean", "year")):
        time_folds(dataset([0, 1] * 3, year=range(6)), k=2, column="yaer")
    with pytest.raises(InputError, match=mentioning("all.csv", "4", "1", "6")):
        time_folds(dataset([0, 1] * 3, year=[1, 2, None, 4, 5, 6]), k=2, column="year")
    with pytest.raises(InputError, match=mentioning("3", "spring")):
        time_folds(dataset([0, 1] * 3, year=["1999", "spring", "3", "4", "5", "6"]), k=2, column="year")
    with pytest.raises(InputError, match=mentioning("4", "5", "3", "1", "2")):
        time_folds(dataset([0, 1] * 3, year=[1, 2, 3] * 2), k=4, column="year")
    with pytest.raises(InputError, match=mentioning("2", "1", "folds")):
        time_folds(dataset([0, 1] * 3, year=[1, 2] * 3), k=4, column="year")
    with pytest.raises(InputError, match=mentioning("1", "by")):
        time_folds(dataset([0, 1] * 3, year=[1] * 6), k=1, column="year")
    with pytest.raises(InputError, match=mentioning("'c1'", "1")):
        time_folds(dataset([0, 0, 0, 1, 1, 1, 0, 0], year=range(8)), k=2, column="year")


def test_rule_names_whether_places_are_kept_together():
    labels = np.tile([0, 1, 0, 1], 20)
    data = dataset(labels, **places(80))
    assert [assign_folds(data, k=4, seed=0, by=by).rule for by in ("auto", "place", "class")] == [
        "place",
        "place",
        "class",
    ]
    assert assign_folds(dataset(labels), k=4, seed=0).rule == "auto"


@pytest.mark.parametrize("by", ["auto", "group"])
def test_fewer_groups_than_folds_are_rejected(by):
    data = dataset([0, 1] * 10, group=list("abcd") * 5)
    with pytest.raises(InputError) as error:
        assign_folds(data, k=5, seed=0, by=by)
    assert mentions(str(error.value), "all.csv", "4", "5", "2", "folds", "by=")
    assert len(assign_folds(data, k=5, seed=0, by="class").parts) == 5
    single_group = dataset([0, 1] * 10, group=["a"] * 20)
    with pytest.raises(InputError, match=mentioning("1", "2", "group")):
        assign_folds(single_group, k=2, seed=0, by=by)


def test_as_many_groups_as_folds_give_one_group_per_fold():
    """Ten patients with one label each: no fold is empty because two patients share a fold."""
    patient = np.repeat(np.arange(10), 3)
    for seed in range(5):
        assignment = assign_folds(dataset(patient % 2, group=patient.astype(str)), k=10, seed=seed, by="group")
        assert [len(set(patient[part.val_rows])) for part in assignment.parts] == [1] * 10


def test_too_few_places_are_ignored_with_a_reason():
    place = np.arange(30) % 3
    data = dataset([0, 1] * 15, latitude=place * 10 + 0.5, longitude=place * 10 + 0.5)
    assert mentions(assign_folds(data, k=5, seed=0).note, "places not kept", "empty")
    with pytest.raises(InputError, match=mentioning("all.csv", "3", "5", "2")):
        assign_folds(data, k=5, seed=0, by="place")
    with pytest.raises(InputError, match="or take smaller blocks"):
        assign_folds(data, k=5, seed=0, by="place", blocks=(1.0,))
    grouped = dataset([0, 1] * 15, group=list("abc") * 10, **data.table[["latitude", "longitude"]])
    with pytest.raises(InputError, match=mentioning("3", "place", "group")):
        assign_folds(grouped, k=5, seed=0, by="place")


def test_identical_files_count_once_for_folds():
    contents = np.arange(20)
    contents[2] = 0
    with pytest.raises(InputError, match=mentioning("19", "20", "2")):
        assign_folds(dataset([0, 1] * 10), k=20, seed=0, contents=contents)


def test_class_joined_by_groups_across_places_is_explained():
    """Class c1 is in two places, and one group is in both."""
    labels, group = [0, 0, 0, 0, 1, 1], ["a", "b", "c", "d", "e", "e"]
    data = dataset(labels, group=group, latitude=[1, 11, 21, 31, 41, 51], longitude=[0] * 6)
    with pytest.raises(InputError) as error:
        assign_folds(data, k=2, seed=0, by="place")
    assert "with places and groups kept together" in str(error.value)
    assert mentions(str(error.value), "'c1'", "class", "place")
    assert "lie in one place" not in str(error.value)


def test_requested_blocks_are_not_called_smaller():
    data = dataset(np.tile([0, 1, 0, 1], 20), **places(80))
    note = assign_folds(data, k=4, seed=0, by="place", blocks=(0.25,)).note
    assert mentions(note, "0.25", "40")


def test_holdout_by_time_is_the_latest_quarter():
    """Of 10, 10, 60 and 20 images, 20 % is closer to 25 % than 80 %."""
    years = np.repeat([2001, 2002, 2003, 2004], [10, 10, 60, 20])
    data = dataset(np.tile([0, 1], 50), year=years)
    held = time_holdout(data, share=0.25, column="year")
    assert set(years[held.val_rows]) == {2004}
    assert len(held.train_rows) == 80
    two = time_holdout(data.select(range(20)), share=0.25, column="year")
    assert (len(two.train_rows), len(two.val_rows)) == (10, 10)
    with pytest.raises(InputError, match=mentioning("year", "column")):
        time_holdout(data.select(range(10)), share=0.25, column="year")
    late = dataset([0, 1] * 4 + [2, 2], year=[1] * 8 + [2] * 2)
    with pytest.raises(InputError, match=mentioning("'c2'", "2")):
        time_holdout(late, share=0.25, column="year")


def test_time_folds_leave_out_copies_of_an_image_that_is_identical_to_a_predicted_one():
    """Image 4 (2019) is image 6 (2020), and image 5 (2019) is an augmented copy of image 4."""
    data = dataset([0, 1, 0, 1, 0, 0, 0, 1], year=[2019] * 6 + [2020] * 2)
    copies = [np.nan] * 8
    copies[5] = data.paths[4]
    data = replace(data, table=data.table.assign(augmented_from=copies))
    (fold,) = time_folds(data, k=1, column="year", contents=np.array([0, 1, 2, 3, 4, 5, 4, 7])).parts
    assert fold.train_rows.tolist() == [0, 1, 2, 3]
    assert fold.val_rows.tolist() == [6, 7]


def test_conflicting_labels_of_identical_files_are_named_as_the_cause():
    """Three classes and three files, each file in two classes."""
    data, contents = dataset([0, 1, 1, 2, 2, 0]), np.array([0, 0, 1, 1, 2, 2])
    with pytest.raises(InputError, match=mentioning("class", "two parts")) as error:
        assign_folds(data, k=2, seed=0, contents=contents)
    assert mentions(str(error.value), "label", "class")


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
def test_times_are_numbers_or_dates_by_majority(cells, first, known):
    found = times_of(SimpleNamespace(table=pd.DataFrame({"date": cells})), "date")
    assert found.notna().sum() == known
    assert found.iloc[0] == first or (pd.isna(first) and pd.isna(found.iloc[0]))


@pytest.mark.parametrize(
    ("columns", "found"),
    [(["path", "Date", "Year "], "Year "), (["path", "timestamp"], "timestamp"), (["path", "yearly"], None)],
)
def test_time_column_is_found_by_name(columns, found):
    table = pd.DataFrame(columns=columns)
    assert time_column(SimpleNamespace(table=table, source="all.csv"), None) == found


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (20160531.0, "20160531"),
        (2016.5, "2016.5"),
        (np.int64(2016), "2016"),
        (pd.Timestamp("2016-05-31"), "2016-05-31"),
        (pd.Timestamp("2016-05-31T12:00"), "2016-05-31T12:00:00"),
    ],
)
def test_times_are_formatted_in_full(time, text):
    assert format_time(time) == text


@pytest.mark.parametrize("last", ["2017-03-01T06:00", None])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_parquet_timestamps_are_dates(last, zone, tmp_path):
    """A missing timestamp is missing, not the earliest."""
    dates = pd.to_datetime(pd.Series(["2016-07-01T12:00", "2015-07-01T12:00", last])).dt.tz_localize(zone)
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    table = pd.DataFrame({"path": [f"{n}.png" for n in range(3)], "label": list("aba"), "date": dates})
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


def test_images_of_test_need_no_time():
    split = np.array(["test", *("train",) * 8, "test"])
    year = pd.Series([np.nan, *np.arange(8) // 2 + 2014.0, np.nan])
    data = dataset([0, 1] * 5, year=year).with_split(split)
    assert len(time_folds(data, k=3, column="year").parts) == 3
    assert time_holdout(data, share=0.25, column="year").val_rows.tolist() == [7, 8]
    with pytest.raises(InputError, match=mentioning("year", "empty")):
        time_folds(dataset([0, 1] * 5, year=year), k=3, column="year")


def test_parquet_days_are_dates(tmp_path):
    days = [datetime.date(2016, 5, 31), datetime.date(2015, 5, 31), None]
    pd.DataFrame({"date": days}).to_parquet(tmp_path / "t.parquet")
    table = pd.read_parquet(tmp_path / "t.parquet", dtype_backend="numpy_nullable")
    found = times_of(SimpleNamespace(table=table), "date")
    assert [format_time(moment) for moment in found[:2]] == ["2016-05-31", "2015-05-31"]
    assert pd.isna(found.iloc[2])


def test_duplicates_of_the_latest_images_are_not_trained_on():
    contents = np.arange(12)
    contents[11] = 0  # the newest image is a copy of the oldest
    held = time_holdout(dataset([0, 1] * 6, year=np.arange(12)), share=0.25, column="year", contents=contents)
    assert held.val_rows.tolist() == [9, 10, 11]
    assert held.train_rows.tolist() == list(range(1, 9))
