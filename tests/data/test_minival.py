"""What is set aside to choose by: how many of which class, the same ones whenever and wherever, never out of val."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.messages import mentioning, mentions

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.minival import with_auto_minival, with_minival
from efficientnetv2.data.splits import with_holdout
from efficientnetv2.utils.errors import InputError


def dataset(labels, paths=None, split="train", **columns) -> ImageDataset:
    names = [f"c{label:03d}" for label in labels]
    paths = [f"{name}/{number}.jpg" for number, name in enumerate(names)] if paths is None else paths
    table = pd.DataFrame({"path": paths, "label": names, "split": split}).assign(**columns)
    rows = np.arange(2, len(names) + 2)
    return ImageDataset(
        root=Path("/data"), source="all.csv", table=table, class_names=tuple(sorted(set(names))), rows=rows
    )


def chosen(dataset: ImageDataset) -> set[str]:
    return {path for path, split in zip(dataset.paths, dataset.split, strict=True) if split == "minival"}


def of_class(dataset: ImageDataset) -> list[int]:
    return np.bincount(dataset.labels[dataset.split == "minival"]).tolist()


def test_each_class_gives_its_share_to_the_image():
    """100 images of 50, 30, 20: of 10 they give 5, 3, 2. Of 7 it would be 3.5, 2.1, 1.4: the half is rounded up."""
    labels = [0] * 50 + [1] * 30 + [2] * 20
    assert of_class(with_minival(dataset(labels), size=10)[0]) == [5, 3, 2]
    assert of_class(with_minival(dataset(labels), size=7)[0]) == [4, 2, 1]
    assert of_class(with_minival(dataset(labels), size=0.1)[0]) == [5, 3, 2]


def test_a_rare_class_gives_one_and_keeps_one():
    """Of 20 in 100, a class of 2 would give 0.4 and gives 1; of 90, it would give 1.8 and keeps 1."""
    labels = [0] * 98 + [1] * 2
    assert of_class(with_minival(dataset(labels), size=20)[0]) == [19, 1]
    assert of_class(with_minival(dataset(labels), size=90)[0]) == [89, 1]


def test_imagenets_twenty_five_thousand():
    """1,000 classes of 732 to 1,300 images, as many as ImageNet's train: 25,000 in all, each class within one."""
    sizes = np.array([732 + 568 * number // 999 for number in range(1000)])
    held, note = with_minival(dataset(np.repeat(np.arange(1000), sizes).tolist()), size=25_000)
    counts = np.array(of_class(held))
    assert counts.sum() == 25_000
    assert np.abs(counts - 25_000 * sizes / sizes.sum()).max() < 1
    assert mentions(note, sizes.sum(), "25000")


def test_val_and_test_are_left_alone():
    """Images without a split are training images, as everywhere."""
    split = ["train", "", "val", "test"] * 20
    held, _ = with_minival(dataset([0, 1] * 40, split=split), size=10)
    now = pd.crosstab(pd.Series(split), pd.Series(held.split))
    assert now.loc["val", "val"] == now.loc["test", "test"] == 20
    assert now["minival"].sum() == 10


def test_the_same_images_in_any_order_and_in_shards():
    labels = np.random.default_rng(0).integers(0, 3, 90)
    paths = [f"c{label}/{number}.jpg" for number, label in enumerate(labels)]
    there = chosen(with_minival(dataset(labels, paths), size=12)[0])
    order = np.random.default_rng(1).permutation(90)
    assert chosen(with_minival(dataset(labels[order], [paths[i] for i in order]), size=12)[0]) == there
    packed = [f"train-{number % 4:06d}.tar#{path}" for number, path in enumerate(paths)]
    in_shards = chosen(with_minival(dataset(labels, packed), size=12)[0])
    assert {path.partition("#")[2] for path in in_shards} == there


def test_given_ones_are_taken():
    split = ["minival"] * 3 + ["train"] * 20 + ["val"] * 5
    data = dataset([0, 1] * 14, split=split)
    held, note = with_minival(data, size=7)
    assert held.digest() == data.digest()
    assert mentions(note, "3", "minival")


@st.composite
def data_sets(draw):
    count = draw(st.integers(12, 60))
    labels = draw(st.lists(st.integers(0, draw(st.integers(1, 4))), min_size=count, max_size=count))
    groups = draw(st.none() | st.lists(st.integers(0, 20), min_size=count, max_size=count))
    contents = draw(st.none() | st.lists(st.integers(0, 40), min_size=count, max_size=count).map(np.array))
    if contents is not None:  # a file has one label
        labels = [labels[list(contents).index(content)] for content in contents]
    columns = {} if groups is None else {"group": [f"g{group}" for group in groups]}
    labels = pd.factorize(np.array(labels), sort=True)[0]
    return dataset(labels.tolist(), split="", **columns), contents


@given(data_sets(), st.integers(0, 3), st.floats(0.05, 0.5))
def test_the_laws_of_three_parts(data, seed, share):
    """Every class in train and in minival; identical files, and groups if the sentence says so, in one part."""
    whole, contents = data
    try:
        before, _ = with_holdout(whole, seed=seed, contents=contents)
        held, note = with_minival(before, size=share, contents=contents)
    except InputError:
        return
    assert (held.split == "val").tolist() == (before.split == "val").tolist()
    for part in ("train", "minival"):
        assert set(held.labels[held.split == part]) == set(range(len(held.class_names)))
    parts = pd.DataFrame({"split": held.split, "content": range(len(held)) if contents is None else contents})
    assert parts.groupby("content")["split"].nunique().max() == 1
    if "groups whole" in note:
        of_train = held.table[held.split != "val"]
        assert of_train.groupby("group")["split"].nunique().max() == 1
    else:
        assert abs((held.split == "minival").sum() - share * (before.split == "train").sum()) < len(held) / 2
    again, _ = with_minival(before, size=share, contents=contents)
    assert again.digest() == held.digest()


@pytest.mark.parametrize("size", [1, 2, 28, 30, 25_000, 0.01, 0.99])
def test_fewer_than_classes_or_more_than_train_can_spare_is_refused(size):
    count = round(size * 30) if isinstance(size, float) else size
    told = rf"all.csv: minival would be {count} of 30 training images.*from 3 to 27 .*--set minival=0.1"
    with pytest.raises(InputError, match=told):
        with_minival(dataset([0, 1, 2] * 10), size=size)


def test_a_class_that_would_stand_in_minival_alone_is_refused():
    """A class of one image, and one of two that are the same file."""
    with pytest.raises(InputError, match=mentioning("12", "c001", "--set", "minival=null")):
        with_minival(dataset([0] * 10 + [1]), size=3)
    contents = np.array([*range(10), 10, 10])
    with pytest.raises(InputError, match=mentioning("c001", "2")):
        with_minival(dataset([0] * 10 + [1] * 2), size=3, contents=contents)


def test_identical_files_with_other_labels_leave_no_minival():
    """Three classes, three files, each file in two of the classes."""
    with pytest.raises(InputError, match=mentioning("minival", "class")) as error:
        with_minival(dataset([0, 1, 1, 2, 2, 0]), size=3, contents=np.array([0, 0, 1, 1, 2, 2]))
    assert mentions(str(error.value), "--set", "minival=null")


def test_auto_sets_a_twentieth_aside_but_at_least_a_hundred_and_at_most_a_thousand():
    for images, held in ((799, 0), (800, 100), (1_200, 100), (4_000, 200), (40_000, 1_000)):
        labels = np.arange(images) % 3
        parted, note, chooses = with_auto_minival(dataset(labels.tolist()))
        assert (sum(of_class(parted)), chooses) == (held, held > 0), images
        assert ("choose the weights to keep" in note) == chooses


def test_auto_takes_nothing_from_a_rare_class_nor_from_its_groups():
    """A class of 9 images stays in train, with the two others of its group; all other classes choose."""
    labels = [0] * 500 + [1] * 500 + [2] * 9
    group = [f"g{number}" for number in range(1_009)]
    group[498] = group[499] = group[1_000] = "shared"
    parted, note, chooses = with_auto_minival(dataset(labels, group=group))
    held = np.array(parted.split) == "minival"
    assert chooses
    assert "'c002'" in note
    assert of_class(parted)[:2] == [50, 50]
    assert not held[[498, 499]].any()
    assert not held[1_000:].any()


def test_auto_takes_what_is_given_and_sets_nothing_aside_of_multilabel():
    """Given images choose however few they are; of several labels a share of each class can't be counted out."""
    split = ["train"] * 90 + ["minival"] * 10
    parted, note, chooses = with_auto_minival(dataset([0, 1] * 50, split=split))
    assert (chooses, list(parted.split)) == (True, split)
    assert mentions(note, "10", "minival")
    several = replace(dataset([0, 1] * 500), separator=";")
    parted, note, chooses = with_auto_minival(several)
    assert not chooses
    assert "several labels" in note
    assert (np.array(parted.split) == "train").all()


def test_auto_gives_up_where_the_groups_are_too_large():
    """Two groups with all three classes each: a third of the images is more than training can spare."""
    group = ["a"] * 300 + ["b"] * 600
    parted, note, chooses = with_auto_minival(dataset([0, 1, 2] * 300, group=group))
    assert not chooses
    assert "groups" in note
    assert (np.array(parted.split) == "train").all()
