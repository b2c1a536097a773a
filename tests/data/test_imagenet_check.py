"""An ImageNet that is not whole is named before a run of days; other images are left in peace."""

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
from efficientnetv2.training.recipes import RECIPES, get_recipe
from efficientnetv2.utils.errors import InputError


def ids() -> list[str]:
    """The 1,000 of ILSVRC 2012, as timm has them; without it only the tests that ask for them are skipped."""
    timm_data = pytest.importorskip("timm.data")
    return sorted(timm_data.ImageNetInfo("imagenet-1k").label_names())


def imagenet(train: dict[str, int], val: dict[str, int] | None = None) -> ImageDataset:
    val = val or {}
    labels = np.repeat([*train, *val], [*train.values(), *val.values()])
    splits = np.repeat(["train", "val"], [sum(train.values()), sum(val.values())])
    table = pd.DataFrame({"path": "x.JPEG", "label": labels, "split": splits})
    return ImageDataset(root=Path("/in"), source="/in", table=table, class_names=tuple(sorted({*train, *val})))


@pytest.fixture(scope="module")
def whole() -> dict[str, int]:
    """1,281,167 images, 732 to 1,300 of a class."""
    counts = np.full(1000, 1300)
    counts[:3] = 732
    short = int(counts.sum()) - 1_281_167
    counts[3:] -= short // 997
    counts[3 : 3 + short % 997] -= 1
    assert counts.sum() == 1_281_167
    return dict(zip(ids(), counts.tolist(), strict=True))


def test_the_whole_set_is_not_remarked_on(whole):
    assert compare(imagenet(whole, dict.fromkeys(whole, 50)), "imagenet1k", strict=True) == ()


def test_images_held_out_as_minival_are_counted(whole):
    data = imagenet(whole)
    split = data.split.copy()
    split[::50] = "minival"
    assert compare(data.with_split(split), "imagenet1k", strict=True) == ()


def test_missing_classes_are_named():
    some = dict.fromkeys(ids()[2:], 2)
    told = (
        r"/in: 2 of ImageNet-1k's 1,000 classes are missing \('n01440764', 'n01443537'\)\. Complete it.*"
        r"`expected_dataset=null`"
    )
    with pytest.raises(InputError, match=told):
        compare(imagenet(some), "imagenet1k", strict=False)


def test_a_folder_too_many_is_named():
    more = dict.fromkeys([*ids(), "lost+found"], 2)
    with pytest.raises(InputError, match=mentioning("1", "lost+found")):
        compare(imagenet(more), "imagenet1k", strict=False)


def test_wrong_counts_are_named_and_refused_with_strict(whole):
    """A class of which 600 images arrived, and one of val that lacks one."""
    short = whole | {"n01440764": 600}
    val = dict.fromkeys(whole, 50) | {"n15075141": 49}
    assert each_mentions(
        compare(imagenet(short, val), "imagenet1k", strict=False),
        ("1,281,035", "ImageNet-1k", "1,281,167"),
        ("ImageNet-1k", "732", "1,300", "n01440764: 600"),
        ("ImageNet-1k", "50", "n15075141: 49"),
    )
    with pytest.raises(InputError, match=mentioning("1,281,035", "n15075141: 49", "expected_dataset=null")):
        compare(imagenet(short, val), "imagenet1k", strict=True)


def test_classes_that_make_up_for_each_other_are_named(whole):
    """Images lie in another class's folder: the sum is right, one has too many and the other too few."""
    full, few = max(whole, key=lambda name: whole[name]), min(whole, key=lambda name: whole[name])
    strays = 1301 - whole[full]
    moved = whole | {full: 1301, few: whole[few] - strays}
    (note,) = compare(imagenet(moved), "imagenet1k", strict=False)
    assert mentions(note, "ImageNet-1k", "732", "1,300")
    assert f"'{full}: 1,301'" in note
    assert f"'{few}: {732 - strays}'" in note


def test_a_class_of_val_that_is_gone_is_named(whole):
    val = dict.fromkeys(list(whole)[1:], 50)
    (note,) = compare(imagenet(whole, val), "imagenet1k", strict=False)
    assert mentions(note, "n01440764: 0")


def test_other_images_are_told_what_the_recipe_is_for():
    (note,) = compare(imagenet({"cat": 2, "dog": 2}), "imagenet1k", strict=True)
    assert mentions(note, "ImageNet-1k", "1,000")
    assert "another dataset, of 2" in note


def imagenet21k(classes: int, *others: str) -> ImageDataset:
    """So many classes by their WordNet ids, and others, a image each."""
    return imagenet(dict.fromkeys([*(f"n{number:08d}" for number in range(classes)), *others], 1))


@pytest.mark.parametrize("classes", [21_841, 21_843])
def test_imagenet21k_has_as_many_classes_as_the_paper_says_or_as_were_released(classes):
    assert compare(imagenet21k(classes), "imagenet21k", strict=True) == ()


@pytest.mark.parametrize(
    ("classes", "others", "said"),
    [
        (21_840, (), ("21,840", "ImageNet-21k", "21,841", "21,843")),
        (20_000, (), ("20,000", "ImageNet-21k", "21,841", "21,843")),
        (21_842, (), ("21,842", "ImageNet-21k", "21,841", "21,843")),
        (21_841, ("lost+found",), ("1 class", "WordNet", "'lost+found'")),
    ],
)
def test_an_imagenet21k_that_is_not_whole_is_named_and_refused_with_strict(classes, others, said):
    data = imagenet21k(classes, *others)
    (note,) = compare(data, "imagenet21k", strict=False)
    assert mentions(note, *said)
    with pytest.raises(InputError) as error:
        compare(data, "imagenet21k", strict=True)
    assert mentions(str(error.value), *said)
    assert mentions(str(error.value), "expected_dataset=null")


def test_a_image_in_train_and_val_is_left_there_in_the_published_sets(tmp_path):
    """Of ImageNet-21k over 100,000 are known; its figures are of the set as it is, whatever recipe it trains."""
    for name in ("train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "val/b/4.jpg"):
        paint(tmp_path / name, (90, 40, 160), int(name[-5]) % 3)  # the first and the last are the same
    small = load_dataset(tmp_path)
    with pytest.raises(InputError, match=mentioning("val/b/4.jpg")):
        validate_images(small)
    for classes, title in ((tuple(ids()), "ImageNet-1k"), (imagenet21k(20_000).class_names, "ImageNet-21k")):
        notes = validate_images(replace(small, class_names=classes)).notes
        assert f"the published splits of {title} are kept as they are" in notes[0]
    for classes in (tuple(ids()[1:]), (*ids(), "lost+found"), imagenet21k(19_000).class_names):
        with pytest.raises(InputError, match="are the same image"):
            validate_images(replace(small, class_names=classes))


def test_other_sets_of_wordnets_are_no_imagenet21k():
    (note,) = compare(imagenet21k(1000), "imagenet21k", strict=True)
    assert mentions(note, "1,000")


def test_the_recipes_for_imagenet_say_so():
    """Those for images of one's own, and for other sets, take any."""
    named_so = {name for name in RECIPES if get_recipe(name).expected_dataset == "imagenet1k"}
    others = {name for name in RECIPES if get_recipe(name).expected_dataset is None}
    assert {"efficientnetv2_s_paper", "efficientnetv2_b3_released", "imagenet_from_21k_s_paper"} <= named_so
    assert {"resnet50_224_progressive"} <= named_so
    assert {"quick", "finetune", "transfer_paper", "transfer_released"} <= others


def test_it_is_refused_before_any_image_is_looked_at(tmp_path):
    for name in ids()[:2]:
        paint(tmp_path / "in" / name / "1.jpg", (200, 60, 60))
        (tmp_path / "in" / name / "2.jpg").write_bytes(b"not a picture")
    words = ("train", tmp_path / "in", "--recipe", "efficientnetv2_s_paper", *TINY[2:])
    done = effnetv2(*words, "--output", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(" ".join(done.stderr.split()), "998", "ImageNet-1k", "1,000")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Folders of each of the 1,000 classes, far from whole: a image of each in train, and of one of them in val."""
    folder = tmp_path_factory.mktemp("short")
    for number, name in enumerate(ids()):
        for split in ("train", "val")[: 2 if number == 0 else 1]:
            (folder / split / name).mkdir(parents=True)
            color = (number % 256, number // 256, 255 * (split == "val"))
            Image.new("RGB", (8, 8), color).save(folder / split / name / "1.png")
    return folder


def test_wrong_counts_are_said_before_any_image_is_looked_at(short):
    said = logged_lines()
    words = {"val_fraction": 0.2, "seed": 0, "expected_dataset": "imagenet1k"}
    assert len(prepare_data(DataConfig(str(short)), strict=False, **words).train) == 1000
    assert mentions(said[0], "1,000", "ImageNet-1k", "1,281,167")
    assert mentions(said[1], "ImageNet-1k", "732", "1,300")
    assert mentions(said[2], "ImageNet-1k", "50", "n01440764: 1")
    said.clear()
    with pytest.raises(InputError, match=mentioning("1,000", "expected_dataset=null")):
        prepare_data(DataConfig(str(short)), strict=True, **words)
    assert said == []


def test_wrong_counts_of_a_set_that_may_be_any_are_not_remarked_on(short):
    said = logged_lines()
    prepare_data(DataConfig(str(short)), val_fraction=0.2, seed=0, strict=False)
    assert not [line for line in said if "ImageNet" in line]
