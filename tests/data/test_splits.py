"""Hold-out and minival splits: properties for any dataset, and their notes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold
from tests.messages import mentioning, mentions

from efficientnetv2.data import groups
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import assign_folds
from efficientnetv2.data.records import copy_groups, is_copy
from efficientnetv2.data.splits import split_groups_warning, with_auto_minival, with_holdout, with_minival
from efficientnetv2.utils.errors import InputError


def dataset(labels, **columns) -> ImageDataset:
    names = [f"c{label}" for label in labels]
    table = pd.DataFrame({"path": [f"{i}.jpg" for i in range(len(names))], "label": names, "split": ""})
    return ImageDataset(
        root=Path("/data"),
        source="all.csv",
        table=table.assign(**columns),
        class_names=tuple(sorted(set(names))),
        rows=np.arange(2, len(names) + 2),
    )


def max_num_splits(values, split) -> int:
    """The largest number of splits with images of one value."""
    return int(pd.DataFrame({"value": values, "split": split}).groupby("value")["split"].nunique().max())


@st.composite
def data_sets(draw):
    count = draw(st.integers(12, 80))
    some_of = st.integers(0, draw(st.integers(1, 30)))
    labels = draw(st.lists(st.integers(0, draw(st.integers(1, 4))), min_size=count, max_size=count))
    columns = {}
    if draw(st.booleans()):
        columns["group"] = [f"g{g}" for g in draw(st.lists(some_of, min_size=count, max_size=count))]
    if draw(st.booleans()):
        degrees = st.integers(-300, 300).map(lambda hundredths: hundredths / 100)
        columns["latitude"] = draw(st.lists(degrees, min_size=count, max_size=count))
        columns["longitude"] = draw(st.lists(degrees, min_size=count, max_size=count))
    contents = draw(st.none() | st.lists(st.integers(0, 60), min_size=count, max_size=count).map(np.array))
    if contents is not None:  # a file has one label
        labels = [labels[list(contents).index(content)] for content in contents]
    labels = pd.factorize(np.array(labels), sort=True)[0]
    return dataset(labels, **columns), contents


@settings(max_examples=40, deadline=None)
@given(data_sets(), st.integers(0, 5), st.sampled_from([0.1, 0.2, 0.35]))
def test_identical_files_and_groups_are_in_one_split(data, seed, fraction):
    """Every class is in both splits; groups and blocks are not divided if the note states it."""
    full, contents = data
    try:
        held, note = with_holdout(full, fraction=fraction, seed=seed, contents=contents)
    except InputError:
        distinct = pd.Series(full.table["path"] if contents is None else contents).groupby(full.labels).nunique()
        assert distinct.min() < 2
        return
    assert set(held.split) == {"train", "val"}
    assert pd.DataFrame({"label": held.labels, "split": held.split}).groupby("label")["split"].nunique().min() == 2
    if contents is not None:
        assert max_num_splits(contents, held.split) == 1
    assert ("group" in held.table) == ("groups" in note)
    if "group" in held.table and "groups whole" in note:
        assert max_num_splits(held.table["group"], held.split) == 1
    if "spatial blocks" in note:
        degrees = float(note.split("blocks of ")[1].split("°")[0])
        squares = list(zip(*(held.table[c] // degrees for c in ("latitude", "longitude")), strict=True))
        assert max_num_splits([str(square) for square in squares], held.split) == 1
    repeated, _ = with_holdout(full, fraction=fraction, seed=seed, contents=contents)
    assert repeated.digest() == held.digest()


@settings(max_examples=30, deadline=None)
@given(data_sets(), st.integers(2, 5))
def test_folds_keep_identical_files_and_groups_together(data, k):
    full, contents = data
    try:
        assignment = assign_folds(full, k=k, seed=0, contents=contents)
    except InputError:
        return
    fold, note = assignment.fold_of_image(len(full)), assignment.note
    assert set(fold) == set(range(k))
    if contents is not None:
        assert max_num_splits(contents, fold) == 1
    if "group" in full.table and "groups whole" in note:
        assert max_num_splits(full.table["group"], fold) == 1
    for held_out in range(k):
        assert set(full.labels[fold != held_out]) == set(range(len(full.class_names)))


def test_no_fold_is_empty_with_few_images_per_class():
    data = dataset([0, 0, 0, 1, 1, 1])
    for seed in range(10):
        fold = assign_folds(data, k=5, seed=seed).fold_of_image(6)
        assert sorted(np.bincount(fold, minlength=5)) == [1, 1, 1, 1, 2]


def test_single_images_are_stratified_exactly():
    """20 % of 50, 30 and 10; one of two, because each class is in val."""
    labels = np.repeat([0, 1, 2, 3], [50, 30, 10, 2])
    held, note = with_holdout(dataset(labels), seed=0)
    assert np.bincount(held.labels[held.split == "val"]).tolist() == [10, 6, 2, 1]
    assert mentions(note, "19", "92", "21", "val", "0")


def test_another_seed_holds_out_other_images():
    data = dataset(np.repeat([0, 1], 100))
    chosen = [np.flatnonzero(with_holdout(data, seed=seed)[0].split == "val") for seed in range(2)]
    assert len(chosen[0]) == len(chosen[1]) == 40
    assert len(np.intersect1d(*chosen)) < 20  # 8 of 40 expected


def test_every_image_is_held_out_equally_often():
    data = dataset(np.repeat([0, 1], [20, 10]))
    held = sum((with_holdout(data, seed=seed)[0].split == "val").astype(int) for seed in range(300))
    assert held.sum() == 300 * 6
    assert 30 < held.min() <= held.max() < 95  # 60 expected, standard deviation 7


def test_holdout_is_as_even_as_in_scikit_learn_for_mixed_groups():
    """Groups of 1 to 30: mean distance from 20 % per class, compared with StratifiedGroupKFold."""
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(80), rng.integers(1, 30, 80))
    labels = np.where(rng.random(len(group)) < 0.6, group % 4, rng.integers(0, 4, len(group)))
    data = dataset(labels, group=group.astype(str))
    totals = np.bincount(labels)

    def distance(val):
        return np.abs(np.bincount(labels[val], minlength=4) / totals - 0.2).mean()

    distances = [distance(with_holdout(data, seed=seed)[0].split == "val") for seed in range(8)]
    expected = []
    for seed in range(8):
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        expected.append(distance(next(splitter.split(labels, labels, group))[1]))
    assert np.mean(distances) <= np.mean(expected)


def test_places_are_held_out_by_blocks_of_one_degree():
    rng = np.random.default_rng(0)
    count = 600
    data = dataset(
        rng.integers(0, 3, count), latitude=rng.uniform(-5, 5, count), longitude=rng.uniform(100, 110, count)
    )
    held, note = with_holdout(data, seed=4)
    blocks = pd.Series([f"{a:.0f} {b:.0f}" for a, b in np.floor(data.table[["latitude", "longitude"]]).to_numpy()])
    val = held.split == "val"
    assert note == (
        f"Held out {val.sum()} of 600 images ({val.mean():.0%}) as val, by spatial blocks of 1° "
        f"({blocks[val].nunique()} of {blocks.nunique()} blocks), stratified by class, seed 4."
    ).replace("%)", " %)")
    assert 110 <= val.sum() <= 130


@pytest.mark.parametrize("degrees", [7.0, 1.0, 0.7])
def test_blocks_on_both_sides_of_the_date_line_have_different_ids(degrees):
    """Fiji on one side of the date line, the Aleutians 7 degrees further north on the other."""
    table = pd.DataFrame({"latitude": [0.1, 0.1 + degrees], "longitude": [179.9, -179.9]})
    first, second = groups._block_ids(SimpleNamespace(table=table), degrees)
    assert first != second


def test_blocks_shrink_until_every_class_is_in_both_splits():
    """Two classes, each within one square degree: only smaller blocks divide them."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    offset = np.where(labels == 0, 10.0, 20.0)
    data = dataset(labels, latitude=offset + rng.random(200), longitude=offset + rng.random(200))
    note = with_holdout(data, seed=0)[1]
    degrees = float(note.split("blocks of ")[1].split("°")[0])
    assert degrees in (0.5, 0.25)
    assert "with larger ones a class would vanish" in note


def test_one_place_is_stratified_with_a_note():
    data = dataset(np.repeat([0, 1], 50), latitude=[1.0] * 100, longitude=[2.0] * 100)
    held, note = with_holdout(data, seed=0)
    assert np.bincount(held.labels[held.split == "val"]).tolist() == [10, 10]
    assert mentions(note, "places not kept", "class")


def test_date_line_does_not_divide_a_place():
    labels = np.tile([0, 1], 40)
    longitude = np.where(np.arange(80) < 40, 180.0, -180.0)
    data = dataset(labels, latitude=np.repeat(np.arange(40.0), 2)[np.r_[0:40, 0:40]], longitude=longitude)
    held, _ = with_holdout(data, seed=0)
    assert (held.split[:40] == held.split[40:]).all()


def test_class_in_one_group_divides_groups_with_a_note():
    data = dataset(np.repeat([0, 1], 20), group=["a"] * 20 + list("bcdefbcdefbcdefbcdef"))
    held, note = with_holdout(data, seed=0)
    assert "groups not kept whole" in note
    assert set(held.labels[held.split == "val"]) == {0, 1}


def test_images_without_a_group_are_separate():
    data = dataset(np.repeat([0, 1], 20), group=[None] * 38 + ["x", "x"])
    held, note = with_holdout(data, seed=0)
    assert (held.split == "val").sum() == 8
    assert "groups whole" in note


def test_pairs_of_duplicates_are_in_both_splits():
    """A class of two images with one duplicate each: one pair is for training, the other for validation."""
    data = dataset([0, 0, 0, 0] + [1] * 40)
    for seed in range(5):
        held, _ = with_holdout(data, seed=seed, contents=np.r_[0, 0, 1, 1, 2:42])
        assert sorted(held.split[:4]) == ["train", "train", "val", "val"]
        assert held.split[0] == held.split[1]


def test_existing_val_and_test_are_unchanged():
    split = ["train"] * 6 + ["val"] * 2 + ["test"] * 2 + [""] * 2
    data = dataset([0, 1] * 6, split=split)
    held, note = with_holdout(data, seed=0)
    assert held.split.tolist() == split[:10] + ["train"] * 2
    assert mentions(note, "2", "val")
    data = dataset([0, 1] * 6, split=["train"] * 8 + ["test"] * 4)
    held, note = with_holdout(data, seed=0)
    assert held.split.tolist()[8:] == ["test"] * 4
    assert set(held.split[:8]) == {"train", "val"}
    fold = assign_folds(data, k=2, seed=0).fold_of_image(12)
    assert (fold[8:] == -1).all()
    assert sorted(fold[:8]) == [0] * 4 + [1] * 4


def test_class_with_one_image_is_rejected_by_name():
    with pytest.raises(InputError, match=mentioning("all.csv", "8", "'c2'", "6.jpg")):
        with_holdout(dataset([0, 0, 0, 1, 1, 1, 2]), seed=0)
    with pytest.raises(InputError, match=mentioning("'c1'", "3")):
        with_holdout(dataset([0, 0, 0, 1, 1, 1]), seed=0, contents=np.array([0, 1, 2, 3, 3, 3]))
    made_from = ["", "", "", "6.jpg", "6.jpg", "6.jpg", ""]
    for copies in (4, 3):
        part = dataset([0, 0, 0, 1, 1, 1, 1], augmented_from=made_from).select(np.arange(3 + copies))
        file = "6.jpg" if copies == 4 else "3.jpg"
        with pytest.raises(InputError, match=rf"class 'c1' .*one .* {copies} .*, 3 .* copies \('{file}'\)"):
            with_holdout(part, seed=0)
    with pytest.raises(InputError, match=mentioning("2", "1")):
        with_holdout(
            dataset([0, 0, 1, 1, 1], augmented_from=["", "", "", "", "2.jpg"]),
            seed=0,
            contents=np.array([0, 1, 2, 2, 3]),
        )
    with pytest.raises(InputError, match=mentioning("'c1'", "class")):
        with_holdout(dataset([0, 0, 0, 1]).select([0, 1, 2]), seed=0)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_fraction_must_be_between_0_and_1(fraction):
    with pytest.raises(InputError, match=mentioning("0", "1")):
        with_holdout(dataset([0, 0, 1, 1]), fraction=fraction, seed=0)
    with pytest.raises(InputError, match=mentioning("1", "fold")):
        assign_folds(dataset([0, 0, 1, 1]), k=1, seed=0)


def test_number_of_images_can_be_held_out():
    """40 of 400 in two classes of 200: 20 of each."""
    held, note = with_holdout(dataset([0] * 200 + [1] * 200), fraction=40, seed=0)
    assert [(held.split[part] == "val").sum() for part in (slice(200), slice(200, 400))] == [20, 20]
    assert mentions(note, "40", "400", "10")


def test_more_images_than_exist_cannot_be_held_out():
    with pytest.raises(InputError, match=mentioning("100,000", "4")):
        with_holdout(dataset([0, 0, 1, 1]), fraction=100_000, seed=0)


def test_conflicting_labels_of_identical_files_are_rejected():
    """Three classes and three files, each file in two classes: no split has all classes on both sides."""
    data = dataset([0, 1, 1, 2, 2, 0])
    with pytest.raises(InputError, match=mentioning("identical", "label")):
        with_holdout(data, seed=0, contents=np.array([0, 0, 1, 1, 2, 2]))


def test_groups_in_several_splits_are_counted_and_the_first_named():
    split = ["train", "", "val", "val", "test", "train", "minival"]
    group = ["p", "q", "q", "r", "r", "s", "s"]
    warning = split_groups_warning(dataset([0, 1, 0, 1, 0, 1, 0], split=split, group=group))
    assert mentions(warning, "3", "4", "'q'", "val")


def test_groups_in_one_split_give_no_warning():
    """ "" and "train" are the same split, and images without a group have no group."""
    data = dataset([0, 1] * 3, split=["train", "", "val"] * 2, group=["p", "p", "q", "p", None, None])
    assert split_groups_warning(data) == ""
    assert split_groups_warning(dataset([0, 1], split=["train", "val"], group=[None, None])) == ""
    assert split_groups_warning(dataset([0, 1], split=["train", "val"])) == ""


def train_dataset(labels, paths=None, split="train", **columns) -> ImageDataset:
    names = [f"c{label:03d}" for label in labels]
    paths = [f"{name}/{number}.jpg" for number, name in enumerate(names)] if paths is None else paths
    table = pd.DataFrame({"path": paths, "label": names, "split": split}).assign(**columns)
    rows = np.arange(2, len(names) + 2)
    return ImageDataset(
        root=Path("/data"), source="all.csv", table=table, class_names=tuple(sorted(set(names))), rows=rows
    )


def minival_paths(train_dataset: ImageDataset) -> set[str]:
    return {path for path, split in zip(train_dataset.paths, train_dataset.split, strict=True) if split == "minival"}


def minival_counts(train_dataset: ImageDataset) -> list[int]:
    return np.bincount(train_dataset.labels[train_dataset.split == "minival"]).tolist()


def test_minival_is_stratified_exactly():
    """Of 50, 30, 20 images, 10 are 5, 3, 2. Of 7 the exact values are 3.5, 2.1, 1.4: the half is rounded up."""
    labels = [0] * 50 + [1] * 30 + [2] * 20
    assert minival_counts(with_minival(train_dataset(labels), size=10)[0]) == [5, 3, 2]
    assert minival_counts(with_minival(train_dataset(labels), size=7)[0]) == [4, 2, 1]
    assert minival_counts(with_minival(train_dataset(labels), size=0.1)[0]) == [5, 3, 2]


def test_rare_class_has_an_image_in_both_splits():
    """20 of 100 would be 0.4 of a class of 2, which gives 1; 90 would be 1.8, and 1 remains."""
    labels = [0] * 98 + [1] * 2
    assert minival_counts(with_minival(train_dataset(labels), size=20)[0]) == [19, 1]
    assert minival_counts(with_minival(train_dataset(labels), size=90)[0]) == [89, 1]


def test_minival_of_25000_imagenet_images():
    """1,000 classes of 732 to 1,300 images, as in ImageNet: each class is within one image of its fraction."""
    sizes = np.array([732 + 568 * number // 999 for number in range(1000)])
    held, note = with_minival(train_dataset(np.repeat(np.arange(1000), sizes).tolist()), size=25_000)
    counts = np.array(minival_counts(held))
    assert counts.sum() == 25_000
    assert np.abs(counts - 25_000 * sizes / sizes.sum()).max() < 1
    assert mentions(note, sizes.sum(), "25000")


def test_minival_is_from_training_images_only():
    """Images without a split are training images."""
    split = ["train", "", "val", "test"] * 20
    held, _ = with_minival(train_dataset([0, 1] * 40, split=split), size=10)
    counts = pd.crosstab(pd.Series(split), pd.Series(held.split))
    assert counts.loc["val", "val"] == counts.loc["test", "test"] == 20
    assert counts["minival"].sum() == 10


def test_minival_does_not_depend_on_the_order_or_on_shards():
    labels = np.random.default_rng(0).integers(0, 3, 90)
    paths = [f"c{label}/{number}.jpg" for number, label in enumerate(labels)]
    expected = minival_paths(with_minival(train_dataset(labels, paths), size=12)[0])
    permutation = np.random.default_rng(1).permutation(90)
    assert (
        minival_paths(with_minival(train_dataset(labels[permutation], [paths[i] for i in permutation]), size=12)[0])
        == expected
    )
    shard_paths = [f"train-{number % 4:06d}.tar#{path}" for number, path in enumerate(paths)]
    in_shards = minival_paths(with_minival(train_dataset(labels, shard_paths), size=12)[0])
    assert {path.partition("#")[2] for path in in_shards} == expected


def test_existing_minival_is_used():
    split = ["minival"] * 3 + ["train"] * 20 + ["val"] * 5
    data = train_dataset([0, 1] * 14, split=split)
    held, note = with_minival(data, size=7)
    assert held.digest() == data.digest()
    assert mentions(note, "3", "minival")


@st.composite
def train_sets(draw):
    count = draw(st.integers(12, 60))
    labels = draw(st.lists(st.integers(0, draw(st.integers(1, 4))), min_size=count, max_size=count))
    groups = draw(st.none() | st.lists(st.integers(0, 20), min_size=count, max_size=count))
    contents = draw(st.none() | st.lists(st.integers(0, 40), min_size=count, max_size=count).map(np.array))
    if contents is not None:  # a file has one label
        labels = [labels[list(contents).index(content)] for content in contents]
    columns = {} if groups is None else {"group": [f"g{group}" for group in groups]}
    labels = pd.factorize(np.array(labels), sort=True)[0]
    return train_dataset(labels.tolist(), split="", **columns), contents


@given(train_sets(), st.integers(0, 3), st.floats(0.05, 0.5))
def test_train_val_and_minival_are_disjoint_by_files_and_groups(data, seed, fraction):
    """Every class is in train and minival; groups are in one split if the note states it."""
    full, contents = data
    try:
        before, _ = with_holdout(full, seed=seed, contents=contents)
        held, note = with_minival(before, size=fraction, contents=contents)
    except InputError:
        return
    assert (held.split == "val").tolist() == (before.split == "val").tolist()
    for part in ("train", "minival"):
        assert set(held.labels[held.split == part]) == set(range(len(held.class_names)))
    parts = pd.DataFrame({"split": held.split, "content": range(len(held)) if contents is None else contents})
    assert parts.groupby("content")["split"].nunique().max() == 1
    if "groups whole" in note:
        not_val = held.table[held.split != "val"]
        assert not_val.groupby("group")["split"].nunique().max() == 1
    else:
        assert abs((held.split == "minival").sum() - fraction * (before.split == "train").sum()) < len(held) / 2
    repeated, _ = with_minival(before, size=fraction, contents=contents)
    assert repeated.digest() == held.digest()


@pytest.mark.parametrize("size", [1, 2, 28, 30, 25_000, 0.01, 0.99])
def test_too_small_and_too_large_minival_is_rejected(size):
    count = round(size * 30) if isinstance(size, float) else size
    message = rf"all.csv: minival would be {count} of 30 training images.*3 to 27.*`minival=0.1`"
    with pytest.raises(InputError, match=message):
        with_minival(train_dataset([0, 1, 2] * 10), size=size)


def test_only_a_possible_minival_is_suggested():
    """A tenth of 30 images has no image of each of 15 classes."""
    with pytest.raises(InputError, match=mentioning("minival would be 3", "15 to 15")) as error:
        with_minival(train_dataset([*range(15)] * 2), size=0.1)
    assert "minival=0.1" not in str(error.value)


def test_class_of_one_image_has_no_minival():
    """Also a class of two identical files."""
    with pytest.raises(InputError, match=mentioning("12", "c001", "minival=null")):
        with_minival(train_dataset([0] * 10 + [1]), size=3)
    contents = np.array([*range(10), 10, 10])
    with pytest.raises(InputError, match=mentioning("c001", "2")):
        with_minival(train_dataset([0] * 10 + [1] * 2), size=3, contents=contents)


def test_conflicting_labels_of_identical_files_give_no_minival():
    """Three classes and three files, each file in two classes."""
    with pytest.raises(InputError, match=mentioning("minival", "class")) as error:
        with_minival(train_dataset([0, 1, 1, 2, 2, 0]), size=3, contents=np.array([0, 0, 1, 1, 2, 2]))
    assert mentions(str(error.value), "minival=null")


def test_auto_minival_is_5_percent_between_100_and_1000_images():
    for images, expected in ((799, 0), (800, 100), (1_200, 100), (4_000, 200), (40_000, 1_000)):
        labels = np.arange(images) % 3
        split_dataset, note, selects = with_auto_minival(train_dataset(labels.tolist()))
        assert (sum(minival_counts(split_dataset)), selects) == (expected, expected > 0), images
        assert ("select the weights" in note) == selects


def test_minival_counts_originals_and_copies_follow_them():
    """720 originals are too few for an automatic minival, with however many copies."""

    def balanced(common: int, rare: int) -> ImageDataset:
        labels = [0] * common + [1] * rare
        origin = [np.nan] * len(labels)
        for copy in range(common - rare):
            labels.append(1)
            origin.append(f"c001/{common + copy % rare}.jpg")
        return train_dataset(labels, augmented_from=origin)

    assert not with_auto_minival(balanced(660, 60))[2]
    for split_dataset, expected in (
        (with_auto_minival(balanced(900, 100))[0], [90, 10]),
        (with_minival(balanced(660, 60), size=0.1)[0], [66, 6]),
    ):
        held, copies = split_dataset.split == "minival", is_copy(split_dataset)
        assert np.bincount(split_dataset.labels[held & ~copies]).tolist() == expected
        families = copy_groups(split_dataset)
        assert not set(families[held]) & set(families[~held])
        assert (held & copies).any()


def test_auto_minival_skips_rare_classes_and_their_groups():
    """A class of 9 images and two images of its group remain in train."""
    labels = [0] * 500 + [1] * 500 + [2] * 9
    group = [f"g{number}" for number in range(1_009)]
    group[498] = group[499] = group[1_000] = "shared"
    split_dataset, note, selects = with_auto_minival(train_dataset(labels, group=group))
    held = np.array(split_dataset.split) == "minival"
    assert selects
    assert "'c002'" in note
    assert minival_counts(split_dataset)[:2] == [50, 50]
    assert not held[[498, 499]].any()
    assert not held[1_000:].any()


@pytest.mark.parametrize(("classes", "each"), [(10, 5), (30, 1), (100, 6), (3, 20)])
def test_only_a_possible_minival_is_proposed_instead(classes, each):
    """It needs one image of each class, and leaves one of each in train."""
    few = train_dataset(np.repeat(np.arange(classes), each).tolist())
    _, note, selects = with_auto_minival(few)
    assert not selects
    proposed = re.findall(r"`minival=([\d.]+)`", note)
    assert len(proposed) == (each > 1)
    for size in proposed:
        with_minival(few, size=float(size) if "." in size else int(size))


def test_auto_minival_states_that_groups_are_divided():
    """Each group has an image of a rare class, which stays in train."""
    labels = [number % 30 % 2 if number % 30 else 2 + number // 30 % 8 for number in range(1_200)]
    group = [f"g{number // 30}" for number in range(1_200)]
    split_dataset, note, selects = with_auto_minival(train_dataset(labels, group=group))
    held = np.array(split_dataset.split) == "minival"
    assert selects
    assert set(np.array(group)[held]) <= set(np.array(group)[~held])
    assert "groups not kept whole" in note


def test_auto_minival_uses_existing_images_and_skips_multilabel():
    """Existing images select the model, even if few. Multi-label classes cannot be stratified exactly."""
    split = ["train"] * 90 + ["minival"] * 10
    split_dataset, note, selects = with_auto_minival(train_dataset([0, 1] * 50, split=split))
    assert (selects, list(split_dataset.split)) == (True, split)
    assert mentions(note, "10", "minival")
    multilabel = replace(train_dataset([0, 1] * 500), separator=";")
    split_dataset, note, selects = with_auto_minival(multilabel)
    assert not selects
    assert "several labels" in note
    assert (np.array(split_dataset.split) == "train").all()


def test_auto_minival_is_skipped_if_groups_are_too_large():
    """Two groups with all three classes: a third of the images is too much."""
    group = ["a"] * 300 + ["b"] * 600
    split_dataset, note, selects = with_auto_minival(train_dataset([0, 1, 2] * 300, group=group))
    assert not selects
    assert "groups" in note
    assert (np.array(split_dataset.split) == "train").all()


def test_blocks_shrink_until_val_has_about_its_share():
    """Two square degrees with both classes: one of them would be half of the images, not a fifth."""
    rng, base = np.random.default_rng(0), np.repeat([10.0, 20.0], 100)
    data = dataset(np.tile([0, 1], 100), latitude=base + rng.random(200), longitude=base + rng.random(200))
    held, note = with_holdout(data, seed=0)
    assert not mentions(note, "blocks of 1°")
    assert 20 <= (held.split == "val").sum() <= 60
