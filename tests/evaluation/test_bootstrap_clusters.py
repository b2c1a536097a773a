"""Clusters of images for the bootstrap, found from the split or folds that a run has written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.folds import assign_folds
from efficientnetv2.evaluation.bootstrap_clusters import evaluation_clusters, relative_prefix, split_clusters

GROUPS = {"group": list("ppqqrrssttuu")}
NOWHERE = {"latitude": np.nan, "longitude": np.nan}
HELD_OUT = ["train"] * 6 + ["val"] * 6


@pytest.fixture
def make_run(tmp_path):
    """A run and its dataset: 12 images in 6 one-degree blocks, two each, in another folder than the run."""

    def make(**columns):
        data, run = tmp_path / "data", tmp_path / "runs" / "one"
        (data / "images").mkdir(parents=True)
        run.mkdir(parents=True)
        table = pd.DataFrame({"path": [f"images/{row:02d}.jpg" for row in range(12)], "label": list("aabb") * 3})
        for path in table["path"]:
            (data / path).touch()
        place = np.arange(12) // 2
        table = table.assign(latitude=place + 0.5 + 0.1 * (np.arange(12) % 2), longitude=100.5)
        table.assign(**columns).dropna(axis=1).to_csv(data / "images.csv", index=False)
        dataset = load_dataset(data / "images.csv")
        dataset.to_csv(run / "dataset.csv")
        return run, dataset

    return make


def cluster_count(run, paths):
    """Number of clusters of these images."""
    return len(np.unique(split_clusters(run, paths).clusters))


def test_places_inside_one_split_are_clusters(make_run):
    run, dataset = make_run(split=["train"] * 8 + ["val"] * 4)
    val = dataset.subset("val").paths
    found = split_clusters(run, val).clusters
    assert found[0] == found[1] != found[2] == found[3]
    assert list(split_clusters(run, val[::-1]).clusters) == list(found[::-1]), "the order of the paths does not matter"


def test_relative_and_absolute_paths_of_one_table_have_clusters(make_run):
    run, dataset = make_run(split=["train"] * 8 + ["val"] * 4)
    paths = [*dataset.paths[:9], *(f"/elsewhere/{number}.jpg" for number in range(3))]
    mixed = replace(dataset, table=dataset.table.assign(path=paths))
    mixed.to_csv(run / "dataset.csv")
    assert cluster_count(run, mixed.subset("val").paths) == 2


@pytest.mark.parametrize("root", ["", "../set/", "https://far.example/set/"])
def test_relative_prefix_of_numbered_file_names(root):
    """Files of the same name are in the folder and in a subfolder."""
    names = ["25.jpg", "27.jpg", "more/5.jpg", "more/7.jpg", "5.jpg", "7.jpg"]
    assert relative_prefix([root + name for name in names], ["5.jpg", "7.jpg"]) == root
    assert relative_prefix([root + name for name in names], ["more/7.jpg"]) == root
    assert relative_prefix([root + name for name in names[:2]], ["5.jpg", "7.jpg"]) is None, "other images"


def test_folds_cluster_by_their_own_block_size(make_run):
    """Adjacent blocks of 0.3°: larger blocks cross their borders, smaller blocks divide them."""
    row = np.arange(12)
    run, dataset = make_run(latitude=0.01 + 0.3 * (row // 2) + 0.2 * (row % 2), longitude=100.05)
    assignment = assign_folds(dataset, k=3, seed=0, by="place", blocks=(0.3,))
    assignment.with_folds(dataset).to_csv(run / "dataset.csv")
    assert cluster_count(run, dataset.paths) == len(np.unique(assignment.clusters)) == 6
    reloaded = load_dataset(run / "dataset.csv")
    assert "kept_whole" not in assign_folds(reloaded, k=3, seed=0, by="class").with_folds(reloaded).table


def test_run_of_a_fold_uses_the_saved_blocks(make_run):
    """Blocks of 0.3°, as above. Then blocks of 2°, although the blocks of 1° are not split either."""
    row, split = np.arange(12), ["val"] * 8 + ["train"] * 4
    latitude = 0.01 + 0.3 * (row // 2) + 0.2 * (row % 2)
    run, dataset = make_run(latitude=latitude, longitude=100.05, split=split, kept_whole=row // 2)
    assert list(split_clusters(run, dataset.subset("val").paths).clusters) == [0, 0, 1, 1, 2, 2, 3, 3]
    table = dataset.table.assign(latitude=row // 2 + 0.5, kept_whole=row // 4)
    replace(dataset, table=table).to_csv(run / "dataset.csv")
    assert list(split_clusters(run, dataset.subset("val").paths).clusters) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_saved_folds_do_not_divide_the_blocks_of_the_split(make_run):
    """The dataset of the run is the table of a cross-validation by smaller blocks."""
    split = ["train"] * 6 + ["val"] * 6
    run, dataset = make_run(split=split, latitude=[*np.arange(6) + 0.5, *[20.1, 20.9, 21.1, 21.9, 22.1, 22.9]])
    table = dataset.table.assign(kept_whole=np.arange(12), fold=1)
    replace(dataset, table=table).to_csv(run / "dataset.csv")
    assert cluster_count(run, dataset.subset("val").paths) == 3


@pytest.mark.parametrize(
    ("columns", "evaluated", "clusters"),
    [
        # Folds define clusters; test images have none.
        ({"split": ["train"] * 10 + ["test"] * 2, "fold": [1, 1, 2, 2, 3, 3, 1, 1, 2, 2, 0, 0]}, range(10), 5),
        # Folds by time: the last period trains no model.
        ({"split": ["train"] * 8 + [""] * 4, "fold": [1, 1, 2, 2, 3, 3] * 2}, range(12), 6),
        # A column called fold is ignored if there is val or if test was evaluated.
        ({"split": ["train"] * 8 + ["val"] * 4, "fold": [1, 2] * 6}, "val", 2),
        ({"split": ["train"] * 8 + ["test"] * 4, "fold": [1, 2] * 6}, "test", 2),
        # Minival is part of the training images.
        ({"split": ["train", "minival"] * 4 + ["val"] * 4}, "val", 2),
        # Both val images are in one block of 1°, and in two blocks of 1/8°.
        ({"split": ["train"] * 10 + ["val"] * 2, "latitude": [*np.arange(10) + 0.5, 20.05, 20.95]}, "val", 2),
        # Groups without locations.
        ({"split": HELD_OUT} | GROUPS | NOWHERE, "val", 3),
    ],
)
def test_number_of_clusters(columns, evaluated, clusters, make_run):
    run, dataset = make_run(**columns)
    evaluated = dataset.select(evaluated) if isinstance(evaluated, range) else dataset.subset(evaluated)
    assert cluster_count(run, evaluated.paths) == clusters


def test_blocks_divided_by_the_split_are_not_clusters(make_run):
    run, dataset = make_run(split=["train", "val"] * 6, latitude=0.5)
    assert split_clusters(run, dataset.subset("val").paths) is None


def test_unknown_images_or_no_dataset_file_have_no_clusters(make_run, tmp_path):
    run, _ = make_run(split=["train"] * 8 + ["val"] * 4)
    assert split_clusters(run, ["elsewhere.jpg"]) is None
    assert split_clusters(run, []) is None
    assert split_clusters(tmp_path, ["images/08.jpg"]) is None


@pytest.mark.parametrize(
    ("columns", "unit"),
    [
        ({}, "places"),
        (GROUPS, "places and groups"),
        (GROUPS | NOWHERE, "groups"),
        ({"kept_whole": np.arange(12) // 2}, "places"),
        (GROUPS | {"kept_whole": np.repeat([0, 1, 2], [6, 2, 4])}, "places and groups"),
        # Folds by group: the blocks of the locations are in several folds.
        (GROUPS | {"kept_whole": np.arange(12) // 2, "latitude": 0.5}, "groups"),
        (NOWHERE | {"kept_whole": np.arange(12) // 3}, "places or groups"),
    ],
)
def test_unit_names_the_clusters(columns, unit, make_run):
    run, dataset = make_run(split=HELD_OUT, **columns)
    assert split_clusters(run, dataset.subset("val").paths).unit == unit


def num_clusters(found) -> int:
    return len(np.unique(found.clusters))


def test_evaluation_and_report_use_the_same_clusters(make_run):
    """The dataset may be the table of the user or the table that the run saved."""
    run, dataset = make_run(split=HELD_OUT)
    in_report = split_clusters(run, dataset.subset("val").paths)
    for table in (dataset, load_dataset(run / "dataset.csv")):
        found = evaluation_clusters(run, table.subset("val"))
        assert list(found.clusters) == list(in_report.clusters)
        assert found.unit == in_report.unit == "places"
    # Blocks of 1°. Without the run, blocks are smaller.
    assert num_clusters(in_report) == 3
    assert num_clusters(evaluation_clusters(None, dataset.subset("val"))) == 6


def test_blocks_divided_by_the_split_are_not_clusters_in_evaluation(make_run):
    """Images that the run did not evaluate are clustered by their own columns."""
    run, dataset = make_run(split=["train", "val", "test"] * 4, **GROUPS, **NOWHERE)
    assert evaluation_clusters(run, dataset.subset("val")) is None
    assert num_clusters(evaluation_clusters(run, dataset.subset("test"))) == 4
    assert num_clusters(evaluation_clusters(run, dataset)) == 6


def test_evaluation_uses_groups_unknown_to_the_run(make_run):
    run, dataset = make_run(split=HELD_OUT, **NOWHERE)
    val = dataset.subset("val")
    assert evaluation_clusters(run, val) is None
    grouped = replace(dataset, table=dataset.table.assign(**GROUPS))
    grouped.to_csv(run / "dataset.csv")
    assert num_clusters(evaluation_clusters(run, grouped.subset("val"))) == 3
    found = evaluation_clusters(run, replace(val, table=val.table.assign(group=list("xxxyyy"))))
    assert list(found.clusters) == [0, 0, 0, 1, 1, 1]
    assert found.unit == "groups"


def test_same_file_names_in_another_folder_are_other_images(make_run, tmp_path):
    run, dataset = make_run(split=HELD_OUT)
    elsewhere = replace(dataset, root=tmp_path / "elsewhere")
    assert num_clusters(evaluation_clusters(run, elsewhere.subset("val"))) == 6


def test_out_of_fold_images_use_the_blocks_of_the_folds(make_run):
    run, dataset = make_run(fold=np.arange(12) // 4, kept_whole=np.arange(12) // 4)
    assert num_clusters(evaluation_clusters(run, dataset)) == 3


@pytest.mark.parametrize(
    ("columns", "clusters", "unit"),
    [
        (GROUPS | NOWHERE, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], "groups"),
        # An image without a group is a cluster.
        (NOWHERE | {"group": [*"ppqqrr", *[""] * 6]}, [0, 0, 1, 1, 2, 2, *range(3, 9)], "groups"),
        # Four images within 1/32°, the other images far apart.
        ({"latitude": [0.01, 0.011, 0.02, 0.03, *range(1, 9)]}, [0, 0, 0, 0, *range(1, 9)], "places"),
        # Groups of two images; two groups are close to each other.
        (
            GROUPS | {"latitude": [0.01, 0.5, 0.02, *range(1, 10)]},
            [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
            "places and groups",
        ),
        # All images in one location: only groups remain.
        (GROUPS | {"latitude": 0.01}, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], "groups"),
    ],
)
def test_new_images_use_the_smallest_blocks_and_groups(columns, clusters, unit, make_run):
    _, dataset = make_run(**columns)
    found = evaluation_clusters(None, dataset)
    assert list(found.clusters) == clusters
    assert found.unit == unit


@pytest.mark.parametrize("columns", [NOWHERE, {"latitude": 0.01}, NOWHERE | {"group": "one"}])
def test_no_clusters_in_one_location_or_without_locations(columns, make_run):
    _, dataset = make_run(**columns)
    assert evaluation_clusters(None, dataset) is None


def test_augmented_copies_are_in_the_cluster_of_their_source(make_run):
    """Ten copies of a rare image are one observation."""
    made_from = ["", "images/00.jpg", "images/01.jpg", *[""] * 8, "images/10.jpg"]
    _, dataset = make_run(**NOWHERE, augmented_from=made_from)
    found = evaluation_clusters(None, dataset)
    assert list(found.clusters) == [0, 0, 0, *range(1, 9), 8]
    assert found.unit == "images with their copies"
