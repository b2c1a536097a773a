"""Images, labels and splits of a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image
from tests.messages import each_mentions, mentioning, mentions
from torchvision.datasets import ImageFolder

from efficientnetv2.checks.dataset_statistics import class_count_section
from efficientnetv2.data import image_folder as folders
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.data.records import ReadOptions
from efficientnetv2.data.shards.records import is_shards
from efficientnetv2.utils.errors import InputError


def write_images(*files: Path) -> None:
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(file)


def test_class_folders_equal_torchvision(tmp_path):
    """The same files, classes and ids as ImageFolder, including nested images."""
    write_images(
        *(tmp_path / name for name in ("dog/1.jpg", "dog/2.PNG", "cat/a.jpeg", "cat/deep/er/b.webp", "eel/3.bmp"))
    )
    dataset, expected = load_dataset(tmp_path), ImageFolder(tmp_path)
    assert list(dataset.class_names) == expected.classes
    actual = {(dataset.file(i), int(dataset.labels[i])) for i in range(len(dataset))}
    assert actual == {(os.path.abspath(path), label) for path, label in expected.samples}


def test_hidden_files_and_other_files_are_skipped(tmp_path):
    write_images(tmp_path / "a/1.jpg", tmp_path / "b/2.jpg")
    for name in ("a/.hidden.jpg", "a/readme.txt", "a/paper.pdf", ".git/x.jpg", "__MACOSX/a/._1.jpg", "a/Thumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert load_dataset(tmp_path).paths == ["a/1.jpg", "b/2.jpg"]


def write_other_files(*files: Path) -> None:
    """Files that are not opened here."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def test_unsupported_image_formats_are_counted_in_a_note(tmp_path):
    write_images(*(tmp_path / name for name in ("a/1.jpg", "b/2.jpg")))
    write_other_files(
        *(tmp_path / name for name in ("a/3.HEIC", "b/deep/4.heic", "b/5.mov", "b/6.json", "b/Thumbs.db"))
    )
    options = {"require_labels": False, "for_training": False}
    for found in (
        load_dataset(tmp_path),
        load_dataset(tmp_path, **options),
        load_dataset(tmp_path, **options, strict_labels=True),
    ):
        assert found.paths == ["a/1.jpg", "b/2.jpg"]
        assert each_mentions(found.notes, (tmp_path, "2", ".heic", "1", ".mov", "JPEG"))
        assert found.unsupported_files == {".heic": {"a": 1, "b": 1}, ".mov": {"b": 1}}


@pytest.mark.parametrize("name", ["clip.mpg", "clip.mpeg", "grid.h5", "weather.grib", "drawing.wmf"])
def test_formats_that_pillow_cannot_decode_are_skipped(name, tmp_path):
    write_images(*(tmp_path / name for name in ("a/1.jpg", "b/2.jpg")))
    write_other_files(tmp_path / "a" / name)
    found = load_dataset(tmp_path)
    assert found.paths == ["a/1.jpg", "b/2.jpg"]
    assert f"1 file {Path(name).suffix}" in found.notes[0]


def test_unsupported_files_are_counted_in_splits_and_in_predictions(tmp_path):
    write_images(*(tmp_path / name for name in ("train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "val/b/4.jpg")))
    write_images(tmp_path / "test/5.jpg")
    write_other_files(tmp_path / "train/a/6.heic", tmp_path / "val/b/7.heic", tmp_path / "test/8.heic")
    prediction = load_dataset(tmp_path, require_labels=False, for_training=False, strict_labels=True)
    assert "3 files .heic" in prediction.notes[-1]
    flat = load_dataset(tmp_path / "test", require_labels=False)
    assert "1 file .heic" in flat.notes[0]


@pytest.mark.parametrize(
    ("files", "labels", "message"),
    [
        (["1.HEIC", "2.heic"], True, ("2", ".heic")),
        (["1.HEIC", "2.heic"], False, ("2", ".heic")),
        (["val/a/1.heic"], False, ("1", ".heic")),
        (["a/1.heic", "b/2"], True, ("'a'", "'b'", "1", ".heic")),
        (["b/2"], True, ("'b'", "1")),
    ],
)
def test_unsupported_files_are_named_if_there_is_no_image(tmp_path, files, labels, message):
    write_other_files(*(tmp_path / name for name in files))
    with pytest.raises(InputError, match=mentioning(*message)):
        load_dataset(tmp_path, require_labels=labels)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_train_and_val_folders_are_splits(tmp_path, val):
    write_images(*(tmp_path / f"{split}/{name}/1.jpg" for split in ("train", val, "test") for name in ("x", "y")))
    dataset = load_dataset(tmp_path)
    assert sorted(zip(dataset.split, dataset.table["label"], strict=True)) == [
        (split, label) for split in ("test", "train", "val") for label in ("x", "y")
    ]
    assert dataset.subset("val").paths == [f"{val}/x/1.jpg", f"{val}/y/1.jpg"]


def test_class_called_train_is_not_a_split(tmp_path):
    write_images(*(tmp_path / f"{name}/1.jpg" for name in ("bus", "car", "train")))
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("bus", "car", "train")
    assert set(dataset.split) == {""}
    assert mentions(" ".join(dataset.notes), "'train'", "as a class")
    assert load_dataset(tmp_path, layout="classes").notes == ()


def test_folders_next_to_train_and_val_are_not_classes(tmp_path):
    write_images(*(tmp_path / name for name in ("train/x/1.jpg", "train/y/1.jpg", "val/x/2.jpg", "unlabeled/3.jpg")))
    assert load_dataset(tmp_path).paths == ["train/x/1.jpg", "train/y/1.jpg", "val/x/2.jpg"]


def test_prediction_uses_images_outside_split_folders(tmp_path):
    """With labels, the skipped images are reported."""
    write_images(tmp_path / "test/s1/1.png", tmp_path / "siteB/2.png", tmp_path / "3.png")
    prediction = load_dataset(tmp_path, require_labels=False, for_training=False)
    assert prediction.paths == ["3.png", "siteB/2.png", "test/s1/1.png"]
    options = {"require_labels": False, "for_training": False, "strict_labels": True}
    check = load_dataset(tmp_path, **options, layout="splits")
    assert check.paths == ["test/s1/1.png"]
    assert mentions(check.notes[0], tmp_path, "siteB", "3.png")
    write_images(*(tmp_path / f"train/{name}/4.png" for name in ("s1", "s2")))
    assert "'3.png'" in load_dataset(tmp_path).notes[0]


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("training_set", "test_set", "test"),
        ("seg_train", "seg_test", "test"),
        ("train_images", "val_images", "val"),
        ("train2017", "val2017", "val"),
        ("Trainset", "test", "test"),
    ],
)
@pytest.mark.parametrize("labels", [True, False])
def test_names_containing_a_split_are_splits_with_the_same_classes(tmp_path, train, other, split, labels):
    write_images(*(tmp_path / f"{folder}/{name}/1.jpg" for folder in (train, other) for name in ("x", "y")))
    write_images(tmp_path / "single_prediction/2.jpg")
    dataset = load_dataset(tmp_path, require_labels=labels, for_training=labels, strict_labels=True)
    assert dataset.class_names == ("x", "y")
    assert dataset.subset(split).paths == [f"{other}/x/1.jpg", f"{other}/y/1.jpg"]
    notes = " ".join(dataset.notes)
    assert all(f"'{name}'" in notes for name in (train, "single_prediction"))
    assert load_dataset(tmp_path, layout="classes").class_names == tuple(sorted((train, other, "single_prediction")))


def test_names_containing_a_split_are_classes_with_other_folders(tmp_path):
    write_images(*(tmp_path / name for name in ("train_station/1.jpg", "test_track/2.jpg", "test_track/old/3.jpg")))
    assert load_dataset(tmp_path).class_names == ("test_track", "train_station")


@pytest.mark.parametrize(
    "outer", [("2019", "2020"), ("train_a", "train_b"), ("train_images", "train_masks", "val_images")]
)
def test_same_subfolders_are_ambiguous_without_a_layout(tmp_path, outer):
    write_images(*(tmp_path / f"{folder}/{name}/1.jpg" for folder in outer for name in ("x", "y")))
    with pytest.raises(InputError, match=mentioning("'x'", "'y'", "layout=")):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, layout="classes").class_names == tuple(sorted(outer))


def test_unknown_options_are_rejected(tmp_path):
    for options, choice in (({"layout": "class"}, "classes"), ({"labels": "merge"}, "casefold")):
        with pytest.raises(InputError, match=mentioning(*options, choice)):
            load_dataset(tmp_path, **options)


def test_class_called_train_with_subfolders_is_ambiguous(tmp_path):
    write_images(*(tmp_path / f"{name}/{age}/1.jpg" for name in ("bus", "train", "truck") for age in ("old", "new")))
    for options in ({}, {"require_labels": False, "for_training": False, "strict_labels": True}):
        with pytest.raises(InputError, match=mentioning("train", "bus", "truck", "layout=")):
            load_dataset(tmp_path, **options)
    assert load_dataset(tmp_path, layout="classes").class_names == ("bus", "train", "truck")
    split = load_dataset(tmp_path, layout="splits")
    assert (split.class_names, set(split.split)) == (("new", "old"), {"train"})


def test_splits_inside_class_folders_are_used(tmp_path):
    write_images(*(tmp_path / f"{name}/{split}/1.jpg" for name in ("cat", "dog") for split in ("train", "test")))
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.subset("test").paths == ["cat/test/1.jpg", "dog/test/1.jpg"]
    assert "'test', 'train'" in dataset.notes[0]
    write_images(tmp_path / "cat/2.jpg")
    with pytest.raises(InputError, match=mentioning("'test', 'train'", "cat/2.jpg", "1 such image", "layout=classes")):
        load_dataset(tmp_path)
    assert set(load_dataset(tmp_path, layout="classes").split) == {""}
    write_images(tmp_path / "rare/train/1.jpg")  # a class without test images
    with pytest.raises(InputError, match=mentioning("cat/2.jpg", "layout=classes")):
        load_dataset(tmp_path)


def test_a_single_folder_called_test_in_a_class_is_no_split(tmp_path):
    write_images(tmp_path / "cat/test/1.jpg", tmp_path / "cat/2.jpg", tmp_path / "dog/3.jpg")
    assert set(load_dataset(tmp_path).split) == {""}


@pytest.mark.parametrize("test", ["test/1.jpg", "test/unknown/1.jpg", "test_images/1.jpg"])
def test_test_folder_without_classes_is_skipped_and_named(test, tmp_path):
    write_images(*(tmp_path / f"train/{name}/1.jpg" for name in ("x", "y")), tmp_path / test)
    dataset = load_dataset(tmp_path)
    assert dataset.paths == ["train/x/1.jpg", "train/y/1.jpg"]
    folder = tmp_path / test.split("/")[0]
    assert f"1 image of {folder}" in " ".join(dataset.notes)
    check = load_dataset(tmp_path, require_labels=False, for_training=False, strict_labels=True)
    assert check.paths == [test, "train/x/1.jpg", "train/y/1.jpg"]
    assert check.labels.tolist() == [-1, 0, 1]
    found = [one.kind for one in class_count_section(check).issues]
    assert "unlabeled" not in found, "training does not refuse them"
    write_images(tmp_path / "val/2.jpg")
    with pytest.raises(InputError, match=mentioning("val", "1")):
        load_dataset(tmp_path)


@pytest.mark.parametrize("labels", [True, False])
def test_system_folders_are_skipped(tmp_path, labels):
    write_images(tmp_path / "a/1.jpg", tmp_path / "b/2.jpg")
    folders = ("a/@eaDir/1.jpg", "b/@eaDir/2.jpg", "#recycle", "$RECYCLE.BIN", "lost+found", "b/deep/@Recycle")
    write_images(*(tmp_path / folder / "thumb.jpg" for folder in folders))
    dataset = load_dataset(tmp_path, require_labels=labels, for_training=labels)
    assert dataset.paths == ["a/1.jpg", "b/2.jpg"]
    assert dataset.class_names == ("a", "b")


def test_leaving_out_empty_class_folders_is_only_suggested_where_classes_remain(tmp_path):
    write_images(tmp_path / "a/1.jpg")
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=r"'b' hold no image\. Add images\.$"):
        load_dataset(tmp_path)


def test_all_empty_class_folders_are_named(tmp_path):
    write_images(tmp_path / "a/1.jpg", tmp_path / "b/1.jpg")
    for name in ("c", "d"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=mentioning("'c'", "'d'")):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, min_images_per_class=1).class_names == ("a", "b")


def test_small_classes_are_skipped_on_request_and_named(tmp_path):
    write_images(*(tmp_path / f"{name}/{number}.jpg" for name in "ab" for number in range(3)), tmp_path / "c/1.jpg")
    dataset = load_dataset(tmp_path, min_images_per_class=2)
    assert dataset.class_names == ("a", "b")
    assert len(dataset) == 6
    assert mentions(dataset.notes[-1], "1", "2", "'c'")
    (tmp_path / "b/1.jpg").unlink()
    with pytest.raises(InputError, match="one class"):
        load_dataset(tmp_path, min_images_per_class=3)


def test_folder_one_level_too_high_is_noted(tmp_path):
    """All images of both class folders are in sub-folders. An image directly in a class folder shows that it is one."""
    folders = ("birds/owl", "flowers/oak", "flowers/elm")
    write_images(*(tmp_path / f"{name}/{number}.jpg" for name in folders for number in range(2)))
    notes = load_dataset(tmp_path).notes
    assert mentions(notes[-1], "flowers", "oak", "elm", f"give {tmp_path / 'flowers'}", "`layout=classes`")
    assert load_dataset(tmp_path, layout="classes").notes == ()
    write_images(tmp_path / "birds/1.jpg")
    assert load_dataset(tmp_path).notes == ()


@pytest.mark.parametrize("inner", ["images", "train"])
def test_single_folder_within_each_class_is_not_noted(inner, tmp_path):
    write_images(*(tmp_path / f"{name}/{inner}/1.jpg" for name in ("n01", "n02")))
    assert load_dataset(tmp_path).notes == ()


def test_layout_is_for_folders_only(tmp_path):
    write_images(tmp_path / "a/1.jpg")
    (tmp_path / "t.csv").write_text("path,label\na/1.jpg,a\n")
    with pytest.raises(InputError, match="`layout=classes`"):
        load_dataset(tmp_path / "t.csv", layout="classes")
    with pytest.raises(InputError, match="`layout=splits`"):
        load_dataset(tmp_path, layout="splits")


def test_links_to_parent_folders_end(tmp_path):
    write_images(tmp_path / "a/1.jpg", tmp_path / "b/2.jpg")
    (tmp_path / "a/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a/linked").symlink_to(tmp_path / "b", target_is_directory=True)
    assert load_dataset(tmp_path).paths == ["a/1.jpg", "a/linked/2.jpg", "b/2.jpg"]


def test_folders_that_link_to_each_other_end(tmp_path):
    write_images(tmp_path / "a/in/1.jpg", tmp_path / "b/2.jpg")
    (tmp_path / "a/in/tob").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "b/toa").symlink_to(tmp_path / "a", target_is_directory=True)
    assert load_dataset(tmp_path).paths == ["a/in/1.jpg", "a/in/tob/2.jpg", "b/2.jpg", "b/toa/in/1.jpg"]


def test_link_to_itself_is_an_unreadable_image(tmp_path):
    write_images(tmp_path / "a/1.jpg", tmp_path / "b/2.jpg")
    (tmp_path / "a/loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "b/loop").symlink_to("loop")
    dataset = load_dataset(tmp_path)
    assert dataset.paths == ["a/1.jpg", "a/loop.jpg", "b/2.jpg"]
    with pytest.raises(InputError, match=mentioning("1", "3", "loop.jpg")):
        validate_images(dataset)


def test_link_to_itself_next_to_tars_or_a_table_is_no_folder(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "images.tar").touch()
    assert is_shards(str(tmp_path))
    (tmp_path / "images.csv").write_text("path,label\n1.jpg,a\n2.jpg,b\n")
    with pytest.raises(InputError, match=mentioning("1.jpg", "does not exist")):
        load_dataset(tmp_path / "images.csv")


def test_images_next_to_class_folders_are_skipped_and_reported(tmp_path):
    write_images(tmp_path / "a/1.jpg", tmp_path / "b/2.jpg", tmp_path / "preview.jpg")
    dataset = load_dataset(tmp_path)
    assert len(dataset) == 2
    assert "'preview.jpg'" in dataset.notes[0]


def test_prediction_accepts_a_flat_folder_or_one_image(tmp_path):
    write_images(tmp_path / "1.jpg", tmp_path / "2/3.jpg")
    folder = load_dataset(tmp_path, require_labels=False)
    assert folder.paths == ["1.jpg", "2/3.jpg"]
    assert folder.labels.tolist() == [-1, -1]
    single = load_dataset(tmp_path / "1.jpg", require_labels=False)
    assert (single.file(0), single.labels.tolist()) == (str(tmp_path / "1.jpg"), [-1])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no images. Give a folder with one sub-folder per class"),
        (["a.jpg", "b.jpg"], "holds 2 images but no class folders"),
        (["cat/1.jpg", "cat/2.jpg"], r"has one class only, 'cat' \(2 images\).* Add images of another class\.$"),
        (["pets/cat/1.jpg", "pets/dog/2.jpg"], r"one class only, .* give .*/pets\b"),
        (["val/a/1.jpg", "val/b/1.jpg"], "val without train: there is nothing to train on.*train"),
        (["train/1.jpg", "val/2.jpg"], "train holds 1 image but no class folders"),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "val/c/9.jpg"],
            r"label unseen in training: 'c' occurs only in val \(val/c/9.jpg\)",
        ),
        (
            ["plant/1.jpg", "plant/2.jpg", "Plant/3.jpg"],
            r"Plant/3.jpg: label 'Plant' .*differs from 'plant' \(2 images\) only by case.*Rename",
        ),
    ],
)
def test_invalid_folders_are_rejected(tmp_path, files, message):
    write_images(*(tmp_path / name for name in files))
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path)


@pytest.mark.parametrize("folders", ["training_set test_set", "seg_train seg_test", "train val"])
def test_nested_folders_of_the_same_name_are_splits(tmp_path, folders):
    names = folders.split()
    write_images(*(tmp_path / name / name / label / f"{name}.png" for name in names for label in ("cat", "dog")))
    write_images(tmp_path / "seg_pred/seg_pred/1.png")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert f"{names[0]}/{names[0]}/cat/{names[0]}.png" in dataset.paths
    assert set(dataset.split) == {"train", "val" if "val" in names else "test"}


def test_classes_named_like_splits_can_be_read(tmp_path):
    write_images(*(tmp_path / name / f"{number}.png" for name in ("test-tube", "train-engine") for number in "12"))
    with pytest.raises(InputError, match="`layout=classes`"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, layout="classes").class_names == ("test-tube", "train-engine")


def test_too_large_minimum_is_rejected(tmp_path):
    write_images(*(tmp_path / name for name in ("a/1.png", "b/1.png", "b/2.png")))
    with pytest.raises(InputError, match=mentioning("min_images_per_class", "3", "2")):
        load_dataset(tmp_path, min_images_per_class=3)


def test_mpo_file_is_an_image(tmp_path):
    write_images(tmp_path / "a/1.mpo", tmp_path / "b/1.mpo")
    found = load_dataset(tmp_path)
    assert found.paths == ["a/1.mpo", "b/1.mpo"]
    assert not len(validate_images(found).unreadable)


def test_empty_class_folder_is_skipped_without_training(tmp_path):
    """Evaluation and shards have no option to skip a class."""
    write_images(tmp_path / "a/1.jpg", tmp_path / "b/1.jpg")
    (tmp_path / "c").mkdir()
    found = load_dataset(tmp_path, for_training=False)
    assert found.class_names == ("a", "b")
    assert any("'c'" in note for note in found.notes)


def test_data_check_names_empty_class_folders(tmp_path):
    """Training would reject them."""
    write_images(tmp_path / "a/1.png", tmp_path / "b/1.png")
    (tmp_path / "c").mkdir()
    notes = folders.read_folder(tmp_path, "here", ReadOptions(require_labels=False)).notes
    assert len(notes) == 1
    assert "'c'" in notes[0]
    assert folders.read_folder(tmp_path, "here", ReadOptions(require_labels=False, strict=False)).notes == ()


def test_flat_train_folder_points_to_its_table(tmp_path):
    write_images(tmp_path / "train/1.jpg", tmp_path / "unlabeled/2.jpg")
    (tmp_path / "train.csv").write_text("path,label\ntrain/1.jpg,a\n")
    with pytest.raises(InputError, match=mentioning("train.csv")):
        load_dataset(tmp_path)


def test_class_called_train_next_to_a_table_can_be_read(tmp_path):
    write_images(tmp_path / "bus/1.jpg", tmp_path / "car/1.jpg", tmp_path / "train/1.jpg")
    (tmp_path / "sources.csv").write_text("path,source\ntrain/1.jpg,web\n")
    with pytest.raises(InputError, match="`layout=classes`"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, layout="classes").class_names == ("bus", "car", "train")


@pytest.mark.parametrize("folder", ["images", "train_images"])
def test_flat_folders_point_to_the_table_of_train(folder, tmp_path):
    write_images(tmp_path / folder / "1.jpg")
    for name in ("sample_submission.csv", "train.csv"):
        (tmp_path / name).write_text(f"path,label\n{folder}/1.jpg,a\n")
    with pytest.raises(InputError, match=mentioning("train.csv")):
        load_dataset(tmp_path)
    write_images(tmp_path / "test_images/2.jpg")
    if folder != "images":
        with pytest.raises(InputError, match=mentioning("train.csv")):
            load_dataset(tmp_path)
        assert load_dataset(tmp_path, layout="classes").class_names == ("test_images", "train_images")


def test_flat_split_folders_are_not_classes(tmp_path):
    write_images(tmp_path / "train_images/1.jpg", tmp_path / "test_images/2.jpg")
    with pytest.raises(InputError, match=mentioning("test_images", "1")):
        load_dataset(tmp_path)


def test_missing_path_suggests_the_nearest(tmp_path):
    write_images(tmp_path / "images/a/1.jpg")
    with pytest.raises(InputError, match=mentioning("did you mean", str(tmp_path / "images"))):
        load_dataset(tmp_path / "imagse")


def test_non_utf8_names_are_rejected(tmp_path):
    write_images(tmp_path / "a/1.jpg", tmp_path / "b/2.jpg")
    os.rename(tmp_path / "a/1.jpg", os.fsencode(tmp_path / "a") + b"/caf\xe9.jpg")
    with pytest.raises(InputError, match=mentioning("UTF-8")):
        load_dataset(tmp_path)


def test_class_folders_have_priority_over_images_next_to_them(tmp_path):
    """In a check of the data; a prediction uses every image."""
    write_images(tmp_path / "a/1.jpg", tmp_path / "b/2.jpg", tmp_path / "preview.jpg")
    options = {"require_labels": False, "for_training": False}
    check = load_dataset(tmp_path, **options, strict_labels=True)
    assert check.table["label"].tolist() == ["a", "b"]
    assert check.notes == load_dataset(tmp_path).notes
    assert "'preview.jpg'" in check.notes[0]
    prediction = load_dataset(tmp_path, **options)
    assert prediction.paths == ["a/1.jpg", "b/2.jpg", "preview.jpg"]
    assert prediction.labels.tolist() == [-1] * 3


def test_images_next_to_one_folder_are_checked(tmp_path):
    write_images(tmp_path / "1.jpg", tmp_path / "2.jpg", tmp_path / "old/3.jpg")
    (tmp_path / "inspection").mkdir()
    found = load_dataset(tmp_path, require_labels=False, for_training=False, strict_labels=True)
    assert found.paths == ["1.jpg", "2.jpg", "old/3.jpg"]


def test_class_folders_have_priority_inside_a_split(tmp_path):
    write_images(*(tmp_path / name for name in ("train/x/1.jpg", "train/y/2.jpg", "train/all.jpg", "test/3.jpg")))
    found = load_dataset(tmp_path, require_labels=False, for_training=False, strict_labels=True)
    assert found.paths == ["test/3.jpg", "train/x/1.jpg", "train/y/2.jpg"]
    assert "'all.jpg'" in found.notes[0]


@pytest.mark.parametrize(("train", "test"), [("Training", "Testing"), ("Training", "test"), ("train", "testing")])
def test_training_and_testing_are_splits(tmp_path, train, test):
    write_images(*(tmp_path / f"{split}/{name}/1.jpg" for split in (train, test) for name in ("x", "y")))
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("x", "y")
    assert dataset.subset("train").paths == [f"{train}/x/1.jpg", f"{train}/y/1.jpg"]
    assert dataset.subset("test").paths == [f"{test}/x/1.jpg", f"{test}/y/1.jpg"]


def test_dataset_without_training_images_is_rejected(tmp_path):
    write_images(*(tmp_path / f"{split}/{name}/1.jpg" for split in ("learn", "test") for name in ("x", "y")))
    (tmp_path / "notes").mkdir()
    with pytest.raises(InputError) as error:
        load_dataset(tmp_path, layout="splits")
    assert mentions(str(error.value), "test", "train")
    assert mentions(str(error.value), tmp_path, "learn")
    assert len(load_dataset(tmp_path, for_training=False, layout="splits")) == 2  # for evaluation


def test_unreadable_folder_next_to_splits_is_ignored(tmp_path, monkeypatch):
    write_images(*(tmp_path / name for name in ("train/x/1.jpg", "train/y/2.jpg", "locked/3.jpg")))
    scandir = os.scandir

    def deny(folder):
        if str(folder).endswith("locked"):
            raise PermissionError
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", deny)
    assert load_dataset(tmp_path).notes == ()


def test_paths_that_a_dataset_folder_includes(tmp_path):
    write_images(
        *(tmp_path / name for name in ("classes/x/1.jpg", "classes/y/1.jpg", "splits/train/x/1.jpg", "flat/1.jpg"))
    )
    (tmp_path / "link").symlink_to(tmp_path / "classes", target_is_directory=True)
    included = ["classes", "classes/runs/1", "classes/x/even", "splits/train/even", "link/runs"]
    excluded = ["runs", "classes2", "classes/.runs", "splits/runs", "flat/runs", "classes/../runs"]
    for path in (*included, *excluded):
        root = "classes" if path == "link/runs" else path.split("/")[0]
        within = (tmp_path / root).is_dir() and folders.lists_images(tmp_path / root, tmp_path / path)
        assert within == (path in included), path


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_non_utf8_folder_can_be_predicted_but_not_trained_on(tmp_path):
    """dataset.csv contains the path of the folder; predictions have paths inside it."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    write_images(Path(folder) / "a/1.jpg", Path(folder) / "b/2.jpg")
    with pytest.raises(InputError, match=mentioning("udce9", "UTF-8")):
        load_dataset(folder)
    found = load_dataset(folder, require_labels=False, for_training=False)
    assert found.paths == ["a/1.jpg", "b/2.jpg"]
    with pytest.raises(InputError, match=mentioning("udce9", "UTF-8")):
        found.to_csv(tmp_path / "list.csv")
    found.to_csv(Path(folder) / "list.csv")
    with pytest.raises(InputError, match=mentioning("udce9/list.csv", "UTF-8")):
        load_dataset(Path(folder) / "list.csv", for_training=False)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"group_column": "patient"}, "group_column"),
        ({"label_column": "species", "path_column": "file"}, "path_column"),
    ],
)
def test_columns_are_for_tables_only(options, option, class_folders):
    """Groups of a folder would be ignored, so the option is an error."""
    with pytest.raises(InputError, match=mentioning(option, "column")):
        load_dataset(class_folders, **options)
    image = next(class_folders.rglob("*.jpg"))
    with pytest.raises(InputError, match="jpg has no columns"):
        load_dataset(image, require_labels=False, **options)
    with pytest.raises(InputError, match=mentioning("cifar10", "column")):
        load_dataset("cifar10", **options)


@pytest.mark.parametrize("name", ["nan", "NaN", "NA", "None", "true", "01"])
def test_class_may_have_the_name_of_a_missing_value(name, tmp_path):
    """Folds and dataset.csv list the images in a table."""
    write_images(tmp_path / name / "1.jpg", tmp_path / "b/2.jpg")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == tuple(sorted((name, "b")))
    assert dataset.notes == ()
    dataset.to_csv(tmp_path / "list.csv")
    assert load_dataset(tmp_path / "list.csv").table["label"].tolist() == dataset.table["label"].tolist()
    assert ImageDataset.from_csv(tmp_path / "list.csv", root=tmp_path, source="x").digest() == dataset.digest()


def test_blank_class_name_is_rejected(tmp_path):
    write_images(tmp_path / " /1.jpg", tmp_path / "b/2.jpg")
    with pytest.raises(InputError, match=mentioning("1.jpg", "class")):
        load_dataset(tmp_path)


def test_folder_of_zip_files_gets_advice_for_them(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=mentioning("1 file .zip", "unpack archives")) as refused:
        load_dataset(tmp_path)
    assert "JPEG" not in str(refused.value)
    (tmp_path / "photo.foo").write_bytes(b"?")
    with pytest.raises(InputError, match=mentioning("JPEG", "unpack archives")):
        load_dataset(tmp_path)
