"""``effnetv2 data balance``: its output is balanced and trainable, and copies are never evaluated on."""

from __future__ import annotations

import json
import re
import shlex

import pandas as pd
import pytest
from PIL import Image
from tests.command_line import TINY, effnetv2, run_json, run_ok, run_refused
from tests.messages import mentioning, mentions

import efficientnetv2
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.utils.errors import InputError

ONE_STAGE = ("--weights", "none", "--set", "progressive.stages=1", "--set", "progressive.image_size=32")


@pytest.fixture
def imbalanced(class_folders):
    """16 red, 16 green, 6 blue."""
    for path in sorted((class_folders / "blue").glob("*"))[6:]:
        path.unlink()
    return class_folders


def test_copies_are_trained_on_but_not_evaluated_on(imbalanced, tmp_path):
    result = run_json("data", "balance", imbalanced, "even", "--set", "augment.flip=d4", cwd=tmp_path)
    table = pd.read_csv(tmp_path / "even/dataset.csv")
    is_copy = table["augmented_from"].notna()
    assert result["copies"] == is_copy.sum() == len(list((tmp_path / "even/augmented").iterdir()))
    train = table[table["split"] == "train"]
    assert train["label"].value_counts().nunique() == 1
    assert set(table[is_copy]["augmented_from"]) <= set(train["path"])
    assert (table[is_copy]["label"] == "blue").all()
    assert all((tmp_path / "even" / path).is_file() for path in table["path"])
    val = table[table["split"] == "val"]
    # In cross-validation, only original images are predicted.
    run_ok("crossval", "even/dataset.csv", *TINY, *ONE_STAGE, "--folds", "2", "--output", "folds", cwd=tmp_path)
    predicted = pd.read_csv(tmp_path / "folds/predictions.csv")
    assert len(predicted) == (~is_copy).sum() == 38
    assert not predicted["path"].str.contains("augmented").any()
    assert len(val) + len(train) == len(table)


def test_damaged_training_image_is_skipped(imbalanced, tmp_path):
    """Its file ends as a JPEG does, so its damage shows only when it is decoded."""
    run_ok("data", "balance", imbalanced, "all", cwd=tmp_path)
    table = pd.read_csv(tmp_path / "all/dataset.csv")
    lost = table[table["augmented_from"].notna()].iloc[0]["augmented_from"]
    file = (tmp_path / "all" / lost).resolve()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] + b"\xff\xd9")
    done = run_ok("data", "balance", imbalanced, "rest", cwd=tmp_path)
    assert mentions(done.stdout, "Skipped 1 image", file.name)
    assert file.name not in (tmp_path / "rest/dataset.csv").read_text()
    run_refused("data", "balance", imbalanced, "none", "--strict", cwd=tmp_path, names=(file.name,))


def test_copies_that_are_only_flipped_are_named(imbalanced, tmp_path):
    flipped = run_ok("data", "balance", imbalanced, "flipped", cwd=tmp_path)
    assert mentions(flipped.stderr, "finetune", "progressive.randaugment=5")
    other = run_ok("data", "balance", imbalanced, "other", "--set", "progressive.randaugment=5", cwd=tmp_path)
    assert "mirror" not in other.stderr
    check = json.loads(run_ok("check", "other/dataset.csv", "--json", cwd=tmp_path).stdout)
    assert not [one for one in check["findings"] if one["kind"] in ("near_image", "same_image")]


def test_fewer_drops_images_of_frequent_classes(imbalanced, tmp_path):
    done = run_ok("data", "balance", imbalanced, "fewer.csv", "--fewer", cwd=tmp_path)
    table = pd.read_csv(tmp_path / "fewer.csv")
    counts = table[table["split"] == "train"]["label"].value_counts()
    assert counts.nunique() == 1
    assert "augmented_from" not in table
    assert "blue" in done.stdout
    assert mentions(done.stdout, 38 - len(table), "left out")
    run_ok("data", "balance", "fewer.csv", "again.csv", "--fewer", cwd=tmp_path)  # reads its own output


def test_balance_of_python_writes_the_same_files(imbalanced, tmp_path):
    result = run_json("data", "balance", imbalanced, "even", "--set", "progressive.randaugment=5", cwd=tmp_path)
    made = efficientnetv2.balance(imbalanced, tmp_path / "python", settings={"progressive.randaugment": 5})
    assert made.to_json() == result | {"table": str(tmp_path / "python/dataset.csv")}
    files = [path.relative_to(tmp_path / "even") for path in sorted((tmp_path / "even").rglob("*")) if path.is_file()]
    assert len(files) == 1 + result["copies"]
    assert all((tmp_path / "python" / file).read_bytes() == (tmp_path / "even" / file).read_bytes() for file in files)
    with pytest.raises(InputError, match=mentioning("output", "python", "exists")):
        efficientnetv2.balance(imbalanced, tmp_path / "python")
    with pytest.raises(InputError, match=mentioning("to", "even")):
        efficientnetv2.balance(imbalanced, tmp_path / "other", to="even")


@pytest.mark.parametrize(
    ("args", "facts"),
    [
        (("x.csv",), ("OUT", "x.csv")),
        (("x", "--fewer"), ("OUT", "--fewer")),
        (("pictures",), ("OUT", "empty")),
        (("x", "--label-separator", ";"), ("--label-separator", "';'")),
        (("x", "--to", "even"), ("--to", "even")),
        (("x", "--set", "seed=3"), ("seed=3", "--seed")),
        (("x", "--set", "minority_randaugment_scale=2"), ("minority_randaugment_scale", "progressive.randaugment")),
        (("x", "--set", "augment.flop=none"), ("augment.flop", "did you mean", "flip")),
    ],
)
def test_wrong_options_are_refused(imbalanced, args, facts):
    run_refused("data", "balance", imbalanced, *args, cwd=imbalanced.parent, names=facts)
    assert not (imbalanced.parent / "x").exists()


def test_multilabel_is_refused_with_a_command_that_accepts_it(imbalanced, tmp_path):
    table = load_dataset(imbalanced).table.assign(path=lambda rows: "pictures/" + rows["path"]).drop(columns="split")
    table.assign(label=table["label"] + ";all").to_csv(tmp_path / "multilabel.csv", index=False)
    done = run_refused("data", "balance", "multilabel.csv", "x", "--label-separator", ";", cwd=tmp_path)
    (command,) = re.findall(r"effnetv2 (train .*)$", done.stderr, re.MULTILINE)
    assert command == "train multilabel.csv --label-separator ';' --set class_sampling=sqrt"
    run_ok("train", "--dry-run", *shlex.split(command)[1:], *TINY, cwd=tmp_path)


@pytest.mark.parametrize("command", [("data", "balance"), ("search", "run")])
def test_help_does_not_offer_a_refused_option(command, tmp_path):
    help_text = effnetv2(*command, "--help-all", cwd=tmp_path).stdout
    assert "--label-column" in help_text
    assert "--label-separator" not in help_text


def test_d4_flips_of_non_square_images_are_refused(tmp_path):
    for name, count in (("a", 6), ("b", 3)):
        (tmp_path / "wide" / name).mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((48, 32), 20 + 9 * number + 50 * (name == "b")).save(
                tmp_path / "wide" / name / f"{number}.png"
            )
    done = run_refused("data", "balance", "wide", "out", "--set", "augment.flip=d4", cwd=tmp_path)
    assert mentions(done.stderr, "48", "32", "--set augment.flip=horizontal")


def test_copies_of_images_in_shards_are_refused(imbalanced, tmp_path):
    """A table of shards and files cannot be trained on; dropping images works."""
    write_shards(load_dataset(imbalanced), tmp_path / "packed", PackOptions(shard_bytes=10**9))
    done = run_refused("data", "balance", "packed", "even", cwd=tmp_path)
    assert mentions(done.stderr, "packed", "shards")
    assert mentions(done.stderr, "--fewer", "--set class_sampling=equal")
    assert not (tmp_path / "even").exists()
    run_ok("data", "balance", "packed", "fewer.csv", "--fewer", cwd=tmp_path)
    assert len(load_dataset(tmp_path / "fewer.csv")) < 38


def test_copies_are_not_written_into_the_class_folders(imbalanced, tmp_path):
    run_refused("data", "balance", "pictures", "pictures/even", cwd=tmp_path, names=("OUT", "DATA"))
    assert not (imbalanced / "even").exists()
    run_ok("data", "balance", "pictures", "pictures/fewer.csv", "--fewer", cwd=tmp_path)  # a table is not a class


def test_copies_are_not_written_next_to_a_single_split(imbalanced, tmp_path):
    """`train/` and another folder with images could be two classes."""
    (tmp_path / "photos").mkdir()
    imbalanced.rename(tmp_path / "photos/train")
    run_refused("data", "balance", "photos", "photos/even", cwd=tmp_path, names=("OUT", "DATA"))
    assert load_dataset(tmp_path / "photos").class_names == ("blue", "green", "red")


def test_empty_augmented_from_column_means_no_copies(imbalanced, tmp_path):
    table = load_dataset(imbalanced).table.assign(augmented_from="", path=lambda rows: "pictures/" + rows["path"])
    table.drop(columns="split").to_csv(tmp_path / "all.csv", index=False)
    done = run_ok("data", "balance", "all.csv", "fewer.csv", "--fewer", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["copies"] == 0


def test_balanced_classes_need_no_copies(class_folders, tmp_path):
    made = efficientnetv2.balance(class_folders, tmp_path / "even")
    assert made.copies == 0
    assert [path.name for path in (tmp_path / "even").iterdir()] == ["dataset.csv"]
