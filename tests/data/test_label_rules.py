"""Multi-label datasets: reading, order of labels, holdout and shards, compared with Python sets."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.messages import mentioning, mentions

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.data.label_rules import pad_labels, unseparated_hint
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.data.splits import with_holdout, with_minival
from efficientnetv2.utils.errors import InputError

ROWS = {  # cat 2, dog 2, animal 4, tree 2
    "0.png": "animal; cat",
    "1.png": "dog;animal",
    "2.png": "tree",
    "3.png": "animal;cat;tree",
    "4.png": "dog;animal",
}


def write_csv(folder, rows=ROWS):
    for number, path in enumerate(rows):
        Image.new("RGB", (8, 8), (number * 7 % 256, number // 37, 0)).save(folder / path)
    lines = ["path,label", *(f"{path},{labels}" for path, labels in rows.items())]
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    return folder / "images.csv"


def label_names(dataset):
    return [{dataset.class_names[label] for label in row if label >= 0} for row in dataset.targets]


def test_each_image_has_its_labels_with_the_rarest_first(tmp_path):
    dataset = load_dataset(write_csv(tmp_path), label_separator=";")
    assert dataset.class_names == ("animal", "cat", "dog", "tree")
    assert dataset.table["label"].tolist() == ["cat;animal", "dog;animal", "tree", "cat;tree;animal", "dog;animal"]
    assert dataset.targets.tolist() == [[1, 0, -1], [2, 0, -1], [3, -1, -1], [1, 3, 0], [2, 0, -1]]
    assert dataset.labels.tolist() == [1, 2, 3, 1, 2]
    single_label = load_dataset(write_csv(tmp_path))
    assert single_label.class_names == tuple(sorted(set(ROWS.values()))), "without a separator a cell is one label"
    assert mentions(single_label.notes[-1], "animal; cat", "label_separator=;")


@pytest.mark.parametrize(("strict_labels", "hinted"), [(None, False), (True, True)])
def test_unused_labels_give_no_hint(strict_labels, hinted, tmp_path):
    """In prediction, --label-separator is for the output."""
    found = load_dataset(write_csv(tmp_path), require_labels=False, strict_labels=strict_labels)
    assert any("looks like several labels" in note for note in found.notes) == hinted


@pytest.mark.parametrize(
    ("labels", "separator"),
    [
        (["church|golf ball", "church", "golf ball"], "|"),
        (["a,b", "b,c", "c,a"], ","),
        (["York, New", "London"], None),  # no other cell is a part of it
        (["oak;elm", "oak"], None),  # 'elm' is never the only label
        (["road;built", "lake;wet", "oak"], ";"),  # most contain it
        (["road;built", "lake|wet", "oak"], None),
        (["oak;", "oak"], None),
        (["oak", "elm"], None),
    ],
)
def test_hint_if_labels_look_like_several(labels, separator):
    hint = unseparated_hint(labels)
    assert hint is None if separator is None else f"label_separator={separator}" in hint


def test_label_unseen_in_training_may_lack_a_separator(tmp_path):
    table = tmp_path / "all.csv"
    table.write_text("path,label,split\n0.png,a;b,train\n1.png,b;c,train\n2.png,a;c,val\n")
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=mentioning("unseen in training", "a;c", "label_separator=;")):
        load_dataset(table)


def test_wrong_separator_is_noted(tmp_path):
    rows = {"0.png": "road;built", "1.png": "lake;wet", "2.png": "oak"}
    notes = load_dataset(write_csv(tmp_path, rows), label_separator="|").notes
    assert mentions(notes[0], "no label", "label_separator=|", "one label")
    assert mentions(notes[1], "2 of 3 classes", "';'", "label_separator=;")
    assert not load_dataset(write_csv(tmp_path, rows), label_separator=";").notes


def test_selection_and_dataset_csv_have_the_same_ids(tmp_path):
    dataset = load_dataset(write_csv(tmp_path), label_separator=";")
    assert dataset.select([2, 0]).targets.tolist() == [[3, -1], [1, 0]]
    dataset.to_csv(tmp_path / "dataset.csv")
    reloaded = ImageDataset.from_csv(tmp_path / "dataset.csv", root=tmp_path, source="x", separator=";")
    assert reloaded.class_names == dataset.class_names
    assert np.array_equal(reloaded.targets, dataset.targets)
    assert reloaded.digest() == dataset.digest()


def test_one_label_per_image_gives_the_same_classes(tmp_path):
    rows = {f"{number}.png": "ab"[number % 2] for number in range(6)}
    single, multi = (
        load_dataset(write_csv(tmp_path, rows)),
        load_dataset(write_csv(tmp_path, rows), label_separator=";"),
    )
    assert single.targets is single.labels
    assert multi.targets.tolist() == [[label] for label in single.labels]
    assert multi.class_names == single.class_names


def test_spelling_is_checked_per_label(tmp_path):
    file = write_csv(tmp_path, {"0.png": "cat;Animal", "1.png": "animal", "2.png": "animal;dog", "3.png": "dog; cat"})
    with pytest.raises(InputError, match=mentioning("images.csv", "2", "Animal", "animal")):
        load_dataset(file, label_separator=";")
    merged = load_dataset(file, label_separator=";", labels="casefold")
    assert merged.class_names == ("animal", "cat", "dog")
    assert label_names(merged) == [{"cat", "animal"}, {"animal"}, {"animal", "dog"}, {"dog", "cat"}]


def test_equal_labels_of_an_image_count_once(tmp_path):
    rows = {"0.png": "cat;cat", "1.png": "Dog;dog", "2.png": "dog"}
    assert label_names(load_dataset(write_csv(tmp_path, rows), label_separator=";", labels="casefold")) == [
        {"cat"},
        {"dog"},
        {"dog"},
    ]


def test_label_unseen_in_training_is_rejected_by_name(tmp_path):
    rows = {"0.png": "a;b,train", "1.png": "b,train", "2.png": "a;b,train", "3.png": "b;c,val"}
    file = write_csv(tmp_path, rows)
    file.write_text(file.read_text().replace("path,label", "path,label,split"))
    with pytest.raises(InputError, match=mentioning("'c'", "val", "images.csv", "5")):
        load_dataset(file, label_separator=";")


@pytest.mark.parametrize(
    ("labels", "separator", "message"),
    [
        ("a;;b", ";", ("images.csv", "2", "a;;b", "';'")),
        (";a", ";", ("';a'", "label")),
        ("a; ", ";", ("lacks a label",)),
        ("a", "", ("label_separator", "empty")),
        ("a|a", "|", ("'a'", "class")),
    ],
)
def test_invalid_cells_are_rejected(labels, separator, message, tmp_path):
    with pytest.raises(InputError, match=mentioning(*message)):
        load_dataset(write_csv(tmp_path, {"0.png": labels, "1.png": "a"}), label_separator=separator)


def test_class_folders_have_one_label(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    with pytest.raises(InputError, match=mentioning("one label")):
        load_dataset(tmp_path, label_separator=";")


def test_holdout_has_every_class_in_both_splits(tmp_path):
    """``animal`` is never the rarest label of an image."""
    rows = {f"{n}.png": ("cat;animal", "dog;animal", "tree", "dog;tree;animal")[n % 4] for n in range(40)}
    dataset = load_dataset(write_csv(tmp_path, rows), label_separator=";")
    assert "animal" not in {dataset.class_names[label] for label in dataset.labels}
    for seed in range(5):
        held, note = with_holdout(dataset, seed=seed)
        for part in ("train", "val"):
            assert set.union(*label_names(held.subset(part))) == {"cat", "dog", "animal", "tree"}
        assert len(held.subset("val")) == 8, note


def test_class_of_one_image_cannot_be_held_out(tmp_path):
    rows = {f"{n}.png": "a" if n % 2 else "b" for n in range(12)} | {"12.png": "a;once;b"}
    with pytest.raises(InputError, match=mentioning("14", "once")):
        with_holdout(load_dataset(write_csv(tmp_path, rows), label_separator=";"), seed=0)


def test_rare_labels_are_removed_from_their_cells(tmp_path):
    rows = {f"{n}.png": "a;b" if n % 2 else "b" for n in range(12)} | {"12.png": "a;once;b", "13.png": "once2"}
    dataset = load_dataset(write_csv(tmp_path, rows), label_separator=";", min_images_per_class=2)
    assert dataset.class_names == ("a", "b")
    assert dataset.paths[-1] == "12.png"
    assert label_names(dataset)[-1] == {"a", "b"}
    assert mentions(dataset.notes[-1], "2", "1", "once2")
    assert with_holdout(dataset, seed=0)[0].class_names == ("a", "b")


def test_minival_of_a_fixed_size_is_for_one_label_per_image(tmp_path):
    with pytest.raises(InputError, match=mentioning("minival", "2")):
        with_minival(load_dataset(write_csv(tmp_path), label_separator=";"), size=2)


@pytest.mark.parametrize("minival", ["auto", None])
def test_multilabel_images_given_as_minival_are_named(minival, tmp_path):
    rows = {f"{n}.png": "a;b" if n % 2 else "b" for n in range(12)}
    file = write_csv(tmp_path, rows)
    table = pd.read_csv(file)
    table.assign(split=["train"] * 6 + ["val"] * 4 + ["minival"] * 2).to_csv(file, index=False)
    source = DataConfig(str(file), label_separator=";")
    prepared = prepare_data(source, val_fraction=0.2, seed=0, strict=False, minival=minival)
    assert mentions(prepared.split_note, "2 images given as minival are not used", "split train")
    assert prepared.minival is None


def test_duplicates_with_other_labels_are_reported(tmp_path):
    file = write_csv(tmp_path)
    (tmp_path / "4.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "3.png").write_bytes((tmp_path / "1.png").read_bytes())
    notes = " ".join(validate_images(load_dataset(file, label_separator=";")).notes)
    assert mentions(notes, "0.png", "2", "cat;animal", "4.png", "6", "dog;animal")


def test_shards_preserve_multiple_labels(tmp_path):
    dataset = load_dataset(write_csv(tmp_path), label_separator=";")
    write_shards(dataset, tmp_path / "shards", PackOptions(1_000_000))
    reloaded = load_dataset(tmp_path / "shards", label_separator=";")
    assert label_names(reloaded) == label_names(dataset)
    notes = load_dataset(tmp_path / "shards").notes
    assert [note for note in notes if mentions(note, "label_separator=;")], "combinations are classes"
    with tarfile.open(next((tmp_path / "shards").glob("*.tar"))) as tar:
        classes = {member.name: tar.extractfile(member).read() for member in tar if member.name.endswith(".cls")}
    assert classes["000000003.cls"] == b"1;3;0"


def test_label_lists_in_shards_of_other_tools(tmp_path):
    samples = {"a": ["cat", "animal"], "b": ["dog"], "c": "dog", "d": ["animal", "dog"]}
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")

    def write_tar(samples):
        with tarfile.open(tmp_path / "theirs.tar", "w") as tar:
            for key, labels in samples.items():
                record = json.dumps({"label": labels}).encode()
                for name, data in ((f"{key}.png", image.getvalue()), (f"{key}.json", record)):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        return str(tmp_path / "theirs*.tar")

    dataset = load_dataset(write_tar(samples), label_separator=";")
    assert label_names(dataset) == [{"cat", "animal"}, {"dog"}, {"dog"}, {"animal", "dog"}]
    assert label_names(load_dataset(write_tar(samples), label_separator="|")) == label_names(dataset), (
        "from the saved scan"
    )
    assert len(load_dataset(write_tar(samples), require_labels=False)) == len(samples), "labels are not required"
    message = r"theirs.tar#a.png: the label is a list, \['cat', 'animal'\], .*label_separator=;"
    with pytest.raises(InputError, match=message):
        load_dataset(write_tar(samples))
    with pytest.raises(InputError, match=mentioning("theirs.tar#a.png", "label")):
        load_dataset(write_tar({"a": ["cat"], "b": ["dog"]}))
    with pytest.raises(InputError, match=mentioning("cat;dog", "';'")):
        load_dataset(write_tar(samples | {"e": ["cat;dog", "dog"]}), label_separator=";")


def test_label_lists_in_parquet(tmp_path):
    csv = load_dataset(write_csv(tmp_path), label_separator=";")
    lists = pd.DataFrame(
        {"path": list(ROWS), "label": [[label.strip() for label in cell.split(";")] for cell in ROWS.values()]}
    )
    lists.to_parquet(tmp_path / "lists.parquet")
    assert load_dataset(tmp_path / "lists.parquet", label_separator=";").digest() == csv.digest()
    assert label_names(load_dataset(tmp_path / "lists.parquet", label_separator="|")) == label_names(csv)
    assert len(load_dataset(tmp_path / "lists.parquet", require_labels=False)) == len(ROWS), "labels are not required"
    with pytest.raises(InputError, match=mentioning("2", "label_separator=;")):
        load_dataset(tmp_path / "lists.parquet")
    for invalid, message in (("do;g", "row 3: the label 'do;g' holds the separator"), ([], "row 3: the label")):
        labels = [["cat"], [invalid] if invalid else [], ["cat"], ["tree"], ["tree"]]
        lists.assign(label=labels).to_parquet(tmp_path / "wrong.parquet")
        with pytest.raises(InputError, match=message):
            load_dataset(tmp_path / "wrong.parquet", label_separator=";")


@given(st.lists(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=3), max_size=3))
def test_label_arrays_of_any_width_are_stacked(parts):
    def padded(rows):
        width = max(map(len, rows))
        return np.array([row + [-1] * (width - len(row)) for row in rows], dtype=np.int64)

    stacked = pad_labels([padded(rows) for rows in parts])
    assert [[label for label in row if label >= 0] for row in stacked.tolist()] == [
        row for rows in parts for row in rows
    ]


@pytest.mark.parametrize("unlabeled", [["1.png"], list(ROWS)])
def test_cells_without_labels_have_none(unlabeled, tmp_path):
    rows = ROWS | dict.fromkeys(unlabeled, "")
    dataset = load_dataset(write_csv(tmp_path, rows), label_separator=";", require_labels=False)
    assert label_names(dataset) == [{part.strip() for part in cell.split(";") if part} for cell in rows.values()]
    assert [path for path, label in zip(dataset.paths, dataset.labels, strict=True) if label < 0] == unlabeled


def test_rare_labels_that_no_split_keeps_are_named_as_the_cause(tmp_path):
    draw = np.random.default_rng(0)
    rows = {f"{n}.png": ";".join(sorted({f"l{label}" for label in draw.integers(0, 150, 4)})) for n in range(200)}
    data = load_dataset(write_csv(tmp_path, rows), label_separator=";", min_images_per_class=2)
    with pytest.raises(InputError, match=mentioning("3 images", "min_images_per_class=4", "seed")):
        with_holdout(data, seed=0)


@pytest.mark.parametrize("seed", range(6))
def test_label_that_is_never_the_rarest_is_in_both_parts_and_groups_stay_whole(seed, tmp_path):
    """`z` is only beside rarer labels. A division by those can leave it in one part; g1 or g3 in val do not."""
    cells = ["r1;z", "r1;z", "r1", "r1", "r2;z", "r2;z", "r2", "r2", "x", "x", "x", "x"]
    groups = [f"g{number // 2}" for number in range(12)]
    paths = [f"{number}.png" for number in range(12)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(tmp_path / path)
    table = pd.DataFrame({"path": paths, "label": cells, "group": groups})
    table.to_csv(tmp_path / "images.csv", index=False)
    data = load_dataset(tmp_path / "images.csv", label_separator=";")
    held, _ = with_holdout(data, fraction=0.4, seed=seed, contents=np.arange(12))
    is_val = held.split == "val"
    assert not set(held.table["group"][is_val]) & set(held.table["group"][~is_val])
    z = np.array(["z" in cell for cell in cells])
    assert 0 < (is_val & z).sum() < z.sum()


def test_words_for_missing_values_among_several_labels_are_noted(tmp_path):
    data = load_dataset(
        write_csv(tmp_path, {"a.png": "dog;nan", "b.png": "dog;cat", "c.png": "cat"}), label_separator=";"
    )
    assert any("'nan' (1 row)" in note for note in data.notes)
