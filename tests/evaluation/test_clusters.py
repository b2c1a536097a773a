"""Images that a split, or folds, kept together are known again from what a run has written down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.folds import assign_folds
from efficientnetv2.evaluation.clusters import evaluation_clusters, relative_prefix, split_clusters


@pytest.fixture
def written(tmp_path):
    """A run's dataset of 12 images in 6 places of a degree, two each, that lie elsewhere than the run."""

    def write(**columns):
        data, run = tmp_path / "data", tmp_path / "runs" / "one"
        (data / "pictures").mkdir(parents=True)
        run.mkdir(parents=True)
        table = pd.DataFrame({"path": [f"pictures/{row:02d}.jpg" for row in range(12)], "label": list("aabb") * 3})
        for path in table["path"]:
            (data / path).touch()
        place = np.arange(12) // 2
        table = table.assign(latitude=place + 0.5 + 0.1 * (np.arange(12) % 2), longitude=100.5)
        table.assign(**columns).dropna(axis=1).to_csv(data / "pictures.csv", index=False)
        dataset = load_dataset(data / "pictures.csv")
        dataset.to_csv(run / "dataset.csv")
        return run, dataset

    return write


def parts(run, paths):
    """How many places or groups these images are of."""
    return len(np.unique(split_clusters(run, paths).clusters))


def test_places_that_the_split_kept_whole_hang_together(written):
    run, dataset = written(split=["train"] * 8 + ["val"] * 4)
    val = dataset.subset("val").paths
    found = split_clusters(run, val).clusters
    assert found[0] == found[1] != found[2] == found[3]
    assert list(split_clusters(run, val[::-1]).clusters) == list(found[::-1]), "by path, in whichever order"


@pytest.mark.parametrize("root", ["", "../set/", "https://far.example/set/"])
def test_pictures_called_by_numbers_are_not_taken_for_others(root):
    """Listed before them, and next to them in a folder of their own."""
    names = ["25.jpg", "27.jpg", "more/5.jpg", "more/7.jpg", "5.jpg", "7.jpg"]
    assert relative_prefix([root + name for name in names], ["5.jpg", "7.jpg"]) == root
    assert relative_prefix([root + name for name in names], ["more/7.jpg"]) == root
    assert relative_prefix([root + name for name in names[:2]], ["5.jpg", "7.jpg"]) is None, "those are others"


def test_folds_count_where_there_are_any_and_test_pictures_do_not(written):
    run, dataset = written(split=["train"] * 10 + ["test"] * 2, fold=[1, 1, 2, 2, 3, 3, 1, 1, 2, 2, 0, 0])
    assert parts(run, dataset.paths[:10]) == 5


def test_what_was_dealt_into_folds_hangs_together_whatever_its_size(written):
    """Blocks of 0.3°, side by side: larger ones of other sides lie across their borders, smaller ones part them."""
    row = np.arange(12)
    run, dataset = written(latitude=0.01 + 0.3 * (row // 2) + 0.2 * (row % 2), longitude=100.05)
    dealt = assign_folds(dataset, k=3, seed=0, by="place", blocks=(0.3,))
    dealt.with_folds(dataset).to_csv(run / "dataset.csv")
    assert parts(run, dataset.paths) == len(np.unique(dealt.clusters)) == 6
    again = load_dataset(run / "dataset.csv")
    assert "kept_whole" not in assign_folds(again, k=3, seed=0, by="class").with_folds(again).table


def test_what_a_fold_was_dealt_in_hangs_together_in_its_own_run_too(written):
    """Blocks of 0.3°, as above; and of 2°, within which those of a degree are whole as well, and are more."""
    row, split = np.arange(12), ["val"] * 8 + ["train"] * 4
    latitude = 0.01 + 0.3 * (row // 2) + 0.2 * (row % 2)
    run, dataset = written(latitude=latitude, longitude=100.05, split=split, kept_whole=row // 2)
    assert list(split_clusters(run, dataset.subset("val").paths).clusters) == [0, 0, 1, 1, 2, 2, 3, 3]
    table = dataset.table.assign(latitude=row // 2 + 0.5, kept_whole=row // 4)
    replace(dataset, table=table).to_csv(run / "dataset.csv")
    assert list(split_clusters(run, dataset.subset("val").paths).clusters) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_what_other_folds_were_dealt_in_does_not_part_what_the_split_kept_whole(written):
    """A run whose DATA is the table of a cross-validation by small blocks: it held out larger ones."""
    split = ["train"] * 6 + ["val"] * 6
    run, dataset = written(split=split, latitude=[*np.arange(6) + 0.5, *[20.1, 20.9, 21.1, 21.9, 22.1, 22.9]])
    table = dataset.table.assign(kept_whole=np.arange(12), fold=1)
    replace(dataset, table=table).to_csv(run / "dataset.csv")
    assert parts(run, dataset.subset("val").paths) == 3


def test_pictures_of_a_fold_that_taught_nobody_hang_together_too(written):
    """As by time those of the last period."""
    run, dataset = written(split=["train"] * 8 + [""] * 4, fold=[1, 1, 2, 2, 3, 3, 1, 1, 2, 2, 3, 3])
    assert parts(run, dataset.paths) == 6


def test_minival_is_a_part_of_training(written):
    run, dataset = written(split=["train", "minival"] * 4 + ["val"] * 4)
    assert parts(run, dataset.subset("val").paths) == 2


def test_what_the_split_parted_does_not_count(written):
    run, dataset = written(split=["train", "val"] * 6, latitude=0.5)
    assert split_clusters(run, dataset.subset("val").paths) is None


def test_pictures_all_of_one_place_hang_together_by_smaller_ones(written):
    """The two of val lie in one place of a degree, but in two of an eighth."""
    run, dataset = written(split=["train"] * 10 + ["val"] * 2, latitude=[*np.arange(10) + 0.5, 20.05, 20.95])
    assert parts(run, dataset.subset("val").paths) == 2


def test_a_column_called_fold_is_none_where_there_is_val(written):
    run, dataset = written(split=["train"] * 8 + ["val"] * 4, fold=[1, 2] * 6)
    assert parts(run, dataset.subset("val").paths) == 2


def test_pictures_of_test_count_where_the_run_answered_those(written):
    run, dataset = written(split=["train"] * 8 + ["test"] * 4, fold=[1, 2] * 6)
    assert parts(run, dataset.subset("test").paths) == 2


def test_groups_without_places(written):
    group = list("ppqqrrssttuu")
    run, dataset = written(split=["train"] * 6 + ["val"] * 6, latitude=np.nan, longitude=np.nan, group=group)
    assert parts(run, dataset.subset("val").paths) == 3


def test_other_pictures_and_no_manifest_give_nothing(written, tmp_path):
    run, _ = written(split=["train"] * 8 + ["val"] * 4)
    assert split_clusters(run, ["elsewhere.jpg"]) is None
    assert split_clusters(run, []) is None
    assert split_clusters(tmp_path, ["pictures/08.jpg"]) is None


GROUPS = {"group": list("ppqqrrssttuu")}
NOWHERE = {"latitude": np.nan, "longitude": np.nan}
HELD_OUT = ["train"] * 6 + ["val"] * 6


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({}, "places"),
        (GROUPS, "places and groups"),
        (GROUPS | NOWHERE, "groups"),
        ({"kept_whole": np.arange(12) // 2}, "places"),
        (GROUPS | {"kept_whole": np.repeat([0, 1, 2], [6, 2, 4])}, "places and groups"),
        # Folds by group, though places are known: these lie all over, so that none was held out.
        (GROUPS | {"kept_whole": np.arange(12) // 2, "latitude": 0.5}, "groups"),
        (NOWHERE | {"kept_whole": np.arange(12) // 3}, "places or groups"),
    ],
)
def test_what_was_kept_whole_has_a_name(columns, what, written):
    run, dataset = written(split=HELD_OUT, **columns)
    assert split_clusters(run, dataset.subset("val").paths).unit == what


def clusters_of(found) -> int:
    return len(np.unique(found.clusters))


def test_what_a_run_held_out_hangs_together_in_an_evaluation_as_in_its_report(written):
    """Wherever the table lies that names the files: here it is the user's own, and that of the run."""
    run, dataset = written(split=HELD_OUT)
    own = split_clusters(run, dataset.subset("val").paths)
    for table in (dataset, load_dataset(run / "dataset.csv")):
        found = evaluation_clusters(run, table.subset("val"))
        assert list(found.clusters) == list(own.clusters)
        assert found.unit == own.unit == "places"
    # Blocks of a degree; of other images nothing says that so much hangs together.
    assert clusters_of(own) == 3
    assert clusters_of(evaluation_clusters(None, dataset.subset("val"))) == 6


def test_what_the_runs_split_has_parted_does_not_hang_together_in_an_evaluation_of_it_either(written):
    """But images that gave no figure of the run go by what is known of them."""
    run, dataset = written(split=["train", "val", "test"] * 4, **GROUPS, **NOWHERE)
    assert evaluation_clusters(run, dataset.subset("val")) is None
    assert clusters_of(evaluation_clusters(run, dataset.subset("test"))) == 4
    assert clusters_of(evaluation_clusters(run, dataset)) == 6


def test_groups_that_the_run_did_not_know_of_count(written):
    run, dataset = written(split=HELD_OUT, **NOWHERE)
    val = dataset.subset("val")
    assert evaluation_clusters(run, val) is None
    found = evaluation_clusters(run, replace(val, table=val.table.assign(group=list("xxxyyy"))))
    assert list(found.clusters) == [0, 0, 0, 1, 1, 1]
    assert found.unit == "groups"


def test_pictures_of_another_folder_with_the_same_names_are_others(written, tmp_path):
    run, dataset = written(split=HELD_OUT)
    elsewhere = replace(dataset, root=tmp_path / "elsewhere")
    assert clusters_of(evaluation_clusters(run, elsewhere.subset("val"))) == 6


def test_a_cross_validations_own_pictures_hang_together_as_its_folds_were_dealt(written):
    run, dataset = written(fold=np.arange(12) // 4, kept_whole=np.arange(12) // 4)
    assert clusters_of(evaluation_clusters(run, dataset)) == 3


@pytest.mark.parametrize(
    ("columns", "clusters", "what"),
    [
        (GROUPS | NOWHERE, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], "groups"),
        # A group that is not known is one of its own.
        (NOWHERE | {"group": [*"ppqqrr", *[""] * 6]}, [0, 0, 1, 1, 2, 2, *range(3, 9)], "groups"),
        # Four within 1/32 of a degree, the others each farther away.
        ({"latitude": [0.01, 0.011, 0.02, 0.03, *range(1, 9)]}, [0, 0, 0, 0, *range(1, 9)], "places"),
        # Groups of two, of which one lies near another.
        (
            GROUPS | {"latitude": [0.01, 0.5, 0.02, *range(1, 10)]},
            [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
            "places and groups",
        ),
        # All in one place: groups are what is left.
        (GROUPS | {"latitude": 0.01}, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], "groups"),
    ],
)
def test_of_other_pictures_the_smallest_blocks_and_groups_hang_together(columns, clusters, what, written):
    _, dataset = written(**columns)
    found = evaluation_clusters(None, dataset)
    assert list(found.clusters) == clusters
    assert found.unit == what


@pytest.mark.parametrize("columns", [NOWHERE, {"latitude": 0.01}, NOWHERE | {"group": "one"}])
def test_of_pictures_of_one_place_or_of_none_nothing_is_known(columns, written):
    _, dataset = written(**columns)
    assert evaluation_clusters(None, dataset) is None


def test_copies_that_augmentation_made_are_drawn_with_what_they_were_made_from(written):
    """Ten copies of a rare image say no more than it does."""
    made_from = ["", "pictures/00.jpg", "pictures/01.jpg", *[""] * 8, "pictures/10.jpg"]
    _, dataset = written(**NOWHERE, augmented_from=made_from)
    found = evaluation_clusters(None, dataset)
    assert list(found.clusters) == [0, 0, 0, *range(1, 9), 8]
    assert found.unit == "images with their copies"
