"""An incomplete ImageNet is reported before training; other datasets are not checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.command_line import TINY, effnetv2
from tests.conftest import paint
from tests.log_lines import logged_lines
from tests.messages import each_mentions, mentioning, mentions

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.data.imagenet_check import compare
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.training.recipes import get_recipe, named_recipes
from efficientnetv2.utils.errors import InputError


def ids() -> list[str]:
    """The 1,000 class ids of ILSVRC 2012 from timm; tests that need them are skipped without timm."""
    timm_data = pytest.importorskip("timm.data")
    return sorted(timm_data.ImageNetInfo("imagenet-1k").label_names())


def imagenet(train: dict[str, int], val: dict[str, int] | None = None) -> ImageDataset:
    val = val or {}
    labels = np.repeat([*train, *val], [*train.values(), *val.values()])
    splits = np.repeat(["train", "val"], [sum(train.values()), sum(val.values())])
    table = pd.DataFrame({"path": "x.JPEG", "label": labels, "split": splits})
    return ImageDataset(root=Path("/in"), source="/in", table=table, class_names=tuple(sorted({*train, *val})))


@pytest.fixture(scope="module")
def complete() -> dict[str, int]:
    """1,281,167 images, 732 to 1,300 per class."""
    counts = np.full(1000, 1300)
    counts[:3] = 732
    incomplete = int(counts.sum()) - 1_281_167
    counts[3:] -= incomplete // 997
    counts[3 : 3 + incomplete % 997] -= 1
    assert counts.sum() == 1_281_167
    return dict(zip(ids(), counts.tolist(), strict=True))


def test_complete_dataset_has_no_note(complete):
    assert compare(imagenet(complete, dict.fromkeys(complete, 50)), "imagenet1k", strict=True) == ()


def test_minival_images_are_counted(complete):
    data = imagenet(complete)
    split = data.split.copy()
    split[::50] = "minival"
    assert compare(data.with_split(split), "imagenet1k", strict=True) == ()


def test_missing_classes_are_named():
    incomplete = dict.fromkeys(ids()[2:], 2)
    message = (
        r"/in: 2 of ImageNet-1k's 1,000 classes are missing \('n01440764', 'n01443537'\)\. Complete it.*"
        r"`expected_dataset=null`"
    )
    with pytest.raises(InputError, match=message):
        compare(imagenet(incomplete), "imagenet1k", strict=False)


def test_extra_folder_is_named():
    more = dict.fromkeys([*ids(), "lost+found"], 2)
    with pytest.raises(InputError, match=mentioning("1", "lost+found")):
        compare(imagenet(more), "imagenet1k", strict=False)


def test_wrong_counts_are_reported_and_rejected_by_strict(complete):
    """A class with 600 images, and a class of val with one image missing."""
    incomplete = complete | {"n01440764": 600}
    val = dict.fromkeys(complete, 50) | {"n15075141": 49}
    assert each_mentions(
        compare(imagenet(incomplete, val), "imagenet1k", strict=False),
        ("1,281,035", "ImageNet-1k", "1,281,167"),
        ("ImageNet-1k", "732", "1,300", "n01440764: 600"),
        ("ImageNet-1k", "50", "n15075141: 49"),
    )
    with pytest.raises(InputError, match=mentioning("1,281,035", "n15075141: 49", "expected_dataset=null")):
        compare(imagenet(incomplete, val), "imagenet1k", strict=True)


def test_misplaced_images_are_named(complete):
    """Images are in the folder of another class: the sum is right, but two counts are wrong."""
    full, few = max(complete, key=lambda name: complete[name]), min(complete, key=lambda name: complete[name])
    misplaced = 1301 - complete[full]
    moved = complete | {full: 1301, few: complete[few] - misplaced}
    (note,) = compare(imagenet(moved), "imagenet1k", strict=False)
    assert mentions(note, "ImageNet-1k", "732", "1,300")
    assert f"'{full}: 1,301'" in note
    assert f"'{few}: {732 - misplaced}'" in note


def test_missing_class_of_val_is_named(complete):
    val = dict.fromkeys(list(complete)[1:], 50)
    (note,) = compare(imagenet(complete, val), "imagenet1k", strict=False)
    assert mentions(note, "n01440764: 0")


def test_another_dataset_gets_a_note():
    (note,) = compare(imagenet({"cat": 2, "dog": 2}), "imagenet1k", strict=True)
    assert mentions(note, "ImageNet-1k", "1,000")
    assert "another dataset, of 2" in note


def imagenet21k(classes: int, *others: str) -> ImageDataset:
    """A dataset with this number of WordNet classes and further classes, one image each."""
    return imagenet(dict.fromkeys([*(f"n{number:08d}" for number in range(classes)), *others], 1))


@pytest.mark.parametrize("classes", [21_841, 21_843])
def test_imagenet21k_has_the_classes_of_the_paper_or_of_the_release(classes):
    assert compare(imagenet21k(classes), "imagenet21k", strict=True) == ()


@pytest.mark.parametrize(
    ("classes", "others", "facts"),
    [
        (21_840, (), ("21,840", "ImageNet-21k", "21,841", "21,843")),
        (20_000, (), ("20,000", "ImageNet-21k", "21,841", "21,843")),
        (21_842, (), ("21,842", "ImageNet-21k", "21,841", "21,843")),
        (21_841, ("lost+found",), ("1 class", "WordNet", "'lost+found'")),
    ],
)
def test_incomplete_imagenet21k_is_reported_and_rejected_by_strict(classes, others, facts):
    data = imagenet21k(classes, *others)
    (note,) = compare(data, "imagenet21k", strict=False)
    assert mentions(note, *facts)
    with pytest.raises(InputError) as error:
        compare(data, "imagenet21k", strict=True)
    assert mentions(str(error.value), *facts)
    assert mentions(str(error.value), "expected_dataset=null")


def test_duplicates_across_published_splits_are_accepted(tmp_path):
    """ImageNet-21k has over 100,000, and published metrics include them."""
    for name in ("train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "val/b/4.jpg"):
        paint(tmp_path / name, (90, 40, 160), int(name[-5]) % 3)  # the first and the last are identical
    small = load_dataset(tmp_path)
    with pytest.raises(InputError, match=mentioning("val/b/4.jpg")):
        validate_images(small)
    for classes, title in ((tuple(ids()), "ImageNet-1k"), (imagenet21k(20_000).class_names, "ImageNet-21k")):
        notes = validate_images(replace(small, class_names=classes)).notes
        assert f"the published splits of {title} are kept as they are" in notes[0]
    for classes in (tuple(ids()[1:]), (*ids(), "lost+found"), imagenet21k(19_000).class_names):
        with pytest.raises(InputError, match="are the same image"):
            validate_images(replace(small, class_names=classes))


def test_other_wordnet_datasets_are_not_imagenet21k():
    (note,) = compare(imagenet21k(1000), "imagenet21k", strict=True)
    assert mentions(note, "1,000")


def test_imagenet_recipes_expect_imagenet():
    """Recipes for custom datasets expect none."""
    imagenet_recipes = {name for name in named_recipes() if get_recipe(name).expected_dataset == "imagenet1k"}
    others = {name for name in named_recipes() if get_recipe(name).expected_dataset is None}
    assert {"efficientnetv2_s_paper", "efficientnetv2_b3_released", "imagenet_from_21k_s_paper"} <= imagenet_recipes
    assert {"resnet50_224_progressive"} <= imagenet_recipes
    assert {"quick", "finetune", "transfer_paper", "transfer_released"} <= others


def test_incomplete_imagenet_is_rejected_before_images_are_checked(tmp_path):
    for name in ids()[:2]:
        paint(tmp_path / "in" / name / "1.jpg", (200, 60, 60))
        (tmp_path / "in" / name / "2.jpg").write_bytes(b"not an image")
    args = ("train", tmp_path / "in", "--recipe", "efficientnetv2_s_paper", *TINY[2:])
    result = effnetv2(*args, "--output", tmp_path / "run", cwd=tmp_path)
    assert result.returncode == 2
    assert mentions(" ".join(result.stderr.split()), "998", "ImageNet-1k", "1,000")


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory):
    """Folders of all 1,000 classes with one image each in train, and one image in val."""
    folder = tmp_path_factory.mktemp("short")
    for number, name in enumerate(ids()):
        for split in ("train", "val")[: 2 if number == 0 else 1]:
            (folder / split / name).mkdir(parents=True)
            color = (number % 256, number // 256, 255 * (split == "val"))
            Image.new("RGB", (8, 8), color).save(folder / split / name / "1.png")
    return folder


def test_wrong_counts_are_logged_before_images_are_checked(incomplete):
    lines = logged_lines()
    options = {"val_fraction": 0.2, "seed": 0, "expected_dataset": "imagenet1k"}
    assert len(prepare_data(DataConfig(str(incomplete)), strict=False, **options).train) == 1000
    assert mentions(lines[0], "1,000", "ImageNet-1k", "1,281,167")
    assert mentions(lines[1], "ImageNet-1k", "732", "1,300")
    assert mentions(lines[2], "ImageNet-1k", "50", "n01440764: 1")
    lines.clear()
    with pytest.raises(InputError, match=mentioning("1,000", "expected_dataset=null")):
        prepare_data(DataConfig(str(incomplete)), strict=True, **options)
    assert lines == []


def test_wrong_counts_are_ignored_without_an_expected_dataset(incomplete):
    lines = logged_lines()
    prepare_data(DataConfig(str(incomplete)), val_fraction=0.2, seed=0, strict=False)
    assert not [line for line in lines if "ImageNet" in line]
