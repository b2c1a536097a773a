"""Pictures that a split, or folds, kept together are known again from what a run has written down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from efficientnetv2.data.folds import folds
from efficientnetv2.data.manifest import read
from efficientnetv2.evaluation.hanging import hanging_together


@pytest.fixture
def written(tmp_path):
    """A run's manifest of 12 pictures in 6 places of a degree, two each, that lie elsewhere than the run."""

    def write(**columns):
        data, run = tmp_path / "data", tmp_path / "runs" / "one"
        (data / "pictures").mkdir(parents=True)
        run.mkdir(parents=True)
        table = pd.DataFrame(
            {"path": [f"pictures/{row:02d}.jpg" for row in range(12)], "label": list("aabb") * 3}
        )
        for path in table["path"]:
            (data / path).touch()
        place = np.arange(12) // 2
        table = table.assign(latitude=place + 0.5 + 0.1 * (np.arange(12) % 2), longitude=100.5)
        table.assign(**columns).dropna(axis=1).to_csv(data / "pictures.csv", index=False)
        manifest = read(data / "pictures.csv")
        manifest.to_csv(run / "manifest.csv")
        return run, manifest

    return write


def test_places_that_the_split_kept_whole_hang_together(written):
    run, manifest = written(split=["train"] * 8 + ["val"] * 4)
    val = manifest.subset("val").paths
    found = hanging_together(run, val)
    assert list(found.index) == list(val)
    assert found.iloc[0] == found.iloc[1] != found.iloc[2] == found.iloc[3]


def test_folds_count_where_there_are_any_and_test_pictures_do_not(written):
    run, manifest = written(split=["train"] * 10 + ["test"] * 2, fold=[1, 1, 2, 2, 3, 3, 1, 1, 2, 2, 0, 0])
    found = hanging_together(run, manifest.paths[:10])
    assert found.nunique() == 5


def test_what_was_dealt_into_folds_hangs_together_whatever_its_size(written):
    """Blocks of 0.3°, side by side: larger ones of other sides lie across their borders, smaller ones part them."""
    row = np.arange(12)
    run, manifest = written(latitude=0.01 + 0.3 * (row // 2) + 0.2 * (row % 2), longitude=100.05)
    dealt = folds(manifest, k=3, seed=0, by="place", blocks=(0.3,))
    dealt.told(manifest).to_csv(run / "manifest.csv")
    found = hanging_together(run, manifest.paths)
    assert found.nunique() == len(np.unique(dealt.clusters)) == 6
    again = read(run / "manifest.csv")
    assert "kept_whole" not in folds(again, k=3, seed=0, by="class").told(again).table


def test_what_a_fold_was_dealt_in_hangs_together_in_its_own_run_too(written):
    """Blocks of 0.3°, as above; and of 2°, within which those of a degree are whole as well, and are more."""
    row, split = np.arange(12), ["val"] * 8 + ["train"] * 4
    latitude = 0.01 + 0.3 * (row // 2) + 0.2 * (row % 2)
    run, manifest = written(latitude=latitude, longitude=100.05, split=split, kept_whole=row // 2)
    assert list(hanging_together(run, manifest.subset("val").paths)) == [0, 0, 1, 1, 2, 2, 3, 3]
    table = manifest.table.assign(latitude=row // 2 + 0.5, kept_whole=row // 4)
    replace(manifest, table=table).to_csv(run / "manifest.csv")
    assert list(hanging_together(run, manifest.subset("val").paths)) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_what_other_folds_were_dealt_in_does_not_part_what_the_split_kept_whole(written):
    """A run whose DATA is the table of a cross-validation by small blocks: it held out larger ones."""
    split = ["train"] * 6 + ["val"] * 6
    run, manifest = written(
        split=split, latitude=[*np.arange(6) + 0.5, *[20.1, 20.9, 21.1, 21.9, 22.1, 22.9]]
    )
    table = manifest.table.assign(kept_whole=np.arange(12), fold=1)
    replace(manifest, table=table).to_csv(run / "manifest.csv")
    assert hanging_together(run, manifest.subset("val").paths).nunique() == 3


def test_pictures_of_a_fold_that_taught_nobody_hang_together_too(written):
    """As by time those of the last period."""
    run, manifest = written(split=["train"] * 8 + [""] * 4, fold=[1, 1, 2, 2, 3, 3, 1, 1, 2, 2, 3, 3])
    assert hanging_together(run, manifest.paths).nunique() == 6


def test_minival_is_a_part_of_training(written):
    run, manifest = written(split=["train", "minival"] * 4 + ["val"] * 4)
    assert hanging_together(run, manifest.subset("val").paths).nunique() == 2


def test_what_the_split_parted_does_not_count(written):
    run, manifest = written(split=["train", "val"] * 6, latitude=0.5)
    assert hanging_together(run, manifest.subset("val").paths) is None


def test_pictures_all_of_one_place_hang_together_by_smaller_ones(written):
    """The two of val lie in one place of a degree, but in two of an eighth."""
    run, manifest = written(split=["train"] * 10 + ["val"] * 2, latitude=[*np.arange(10) + 0.5, 20.05, 20.95])
    assert hanging_together(run, manifest.subset("val").paths).nunique() == 2


def test_a_column_called_fold_is_none_where_there_is_val(written):
    run, manifest = written(split=["train"] * 8 + ["val"] * 4, fold=[1, 2] * 6)
    assert hanging_together(run, manifest.subset("val").paths).nunique() == 2


def test_pictures_of_test_count_where_the_run_answered_those(written):
    run, manifest = written(split=["train"] * 8 + ["test"] * 4, fold=[1, 2] * 6)
    assert hanging_together(run, manifest.subset("test").paths).nunique() == 2


def test_groups_without_places(written):
    group = list("ppqqrrssttuu")
    run, manifest = written(split=["train"] * 6 + ["val"] * 6, latitude=np.nan, longitude=np.nan, group=group)
    assert hanging_together(run, manifest.subset("val").paths).nunique() == 3


def test_other_pictures_and_no_manifest_give_nothing(written, tmp_path):
    run, _ = written(split=["train"] * 8 + ["val"] * 4)
    assert hanging_together(run, ["elsewhere.jpg"]) is None
    assert hanging_together(run, []) is None
    assert hanging_together(tmp_path, ["pictures/08.jpg"]) is None
