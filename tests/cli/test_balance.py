"""``effnetv2 data balance``: what it writes is balanced, trains as it is, and says no figure of copies."""

from __future__ import annotations

import json
import re
import shlex

import pandas as pd
import pytest
from tests.command_line import TINY, effnetv2
from tests.messages import mentions

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.shards.writer import PackOptions, write_shards

ONE_STAGE = ("--weights", "none", "--set", "progressive.stages=1", "--set", "progressive.image_size=32")


@pytest.fixture
def imbalanced(class_folders):
    """16 red, 16 green, 6 blue."""
    for path in sorted((class_folders / "blue").glob("*"))[6:]:
        path.unlink()
    return class_folders


def test_copies_are_written_and_trained_on_but_not_evaluated_on(imbalanced, tmp_path):
    done = effnetv2("data", "balance", imbalanced, "even", "--set", "augment.flip=d4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    table = pd.read_csv(tmp_path / "even/pictures.csv")
    made = table["augmented_from"].notna()
    assert told["copies"] == made.sum() == len(list((tmp_path / "even/augmented").iterdir()))
    train = table[table["split"] == "train"]
    assert train["label"].value_counts().nunique() == 1
    assert set(table[made]["augmented_from"]) <= set(train["path"])
    assert (table[made]["label"] == "blue").all()
    assert all((tmp_path / "even" / path).is_file() for path in table["path"])
    held = table[table["split"] == "val"]
    # The same again into folds: whose figures are of taken images alone.
    done = effnetv2(
        "crossval", "even/pictures.csv", *TINY, *ONE_STAGE, "--folds", "2", "--output", "folds", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    answered = pd.read_csv(tmp_path / "folds/predictions.csv")
    assert len(answered) == (~made).sum() == 38
    assert not answered["path"].str.contains("augmented").any()
    assert len(held) + len(train) == len(table)


def test_fewer_leaves_frequent_ones_out(imbalanced, tmp_path):
    done = effnetv2("data", "balance", imbalanced, "fewer.csv", "--fewer", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "fewer.csv")
    counts = table[table["split"] == "train"]["label"].value_counts()
    assert counts.nunique() == 1
    assert "augmented_from" not in table
    assert "blue" in done.stdout
    assert mentions(done.stdout, 38 - len(table), "left out")
    plan = effnetv2("data", "balance", "fewer.csv", "again.csv", "--fewer", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr  # what was written is read


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("x.csv",), ("OUT", "x.csv")),
        (("x", "--fewer"), ("OUT", "--fewer")),
        (("pictures",), ("OUT", "empty")),
        (("x", "--label-separator", ";"), ("--label-separator", "';'")),
        (("x", "--to", "even"), ("--to", "even")),
        (("x", "--set", "augment.flop=none"), ("augment.flop", "did you mean", "flip")),
    ],
)
def test_wrong_words_are_refused(imbalanced, words, said):
    done = effnetv2("data", "balance", imbalanced, *words, cwd=imbalanced.parent)
    assert done.returncode == 2, done.stdout
    assert mentions(done.stderr, *said)
    assert not (imbalanced.parent / "x").exists()


def test_several_labels_are_refused_with_a_command_that_takes_them(imbalanced, tmp_path):
    table = load_dataset(imbalanced).table.assign(path=lambda rows: "pictures/" + rows["path"]).drop(columns="split")
    table.assign(label=table["label"] + ";all").to_csv(tmp_path / "several.csv", index=False)
    done = effnetv2("data", "balance", "several.csv", "x", "--label-separator", ";", cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    (words,) = re.findall(r"effnetv2 (train .*)$", done.stderr, re.MULTILINE)
    assert words == "train several.csv --label-separator ';' --set class_sampling=sqrt"
    begun = effnetv2("train", "--dry-run", *shlex.split(words)[1:], *TINY, cwd=tmp_path)
    assert begun.returncode == 0, begun.stderr


@pytest.mark.parametrize("verb", [("data", "balance"), ("search", "run")])
def test_what_is_refused_is_not_offered(verb, tmp_path):
    shown = effnetv2(*verb, "--help-all", cwd=tmp_path).stdout
    assert "--label-column" in shown
    assert "--label-separator" not in shown


def test_symmetries_of_pictures_that_are_not_square_are_refused(tmp_path):
    from PIL import Image

    for name, count in (("a", 6), ("b", 3)):
        (tmp_path / "wide" / name).mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((48, 32), 20 + 9 * number + 50 * (name == "b")).save(
                tmp_path / "wide" / name / f"{number}.png"
            )
    done = effnetv2("data", "balance", "wide", "out", "--set", "augment.flip=d4", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "48", "32", "--set augment.flip=horizontal")


def test_copies_of_pictures_in_shards_are_refused_before_any_is_written(imbalanced, tmp_path):
    """A table of both could not be trained on; images can be left out of it all the same."""
    write_shards(load_dataset(imbalanced), tmp_path / "packed", PackOptions(shard_bytes=10**9))
    done = effnetv2("data", "balance", "packed", "even", cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert mentions(done.stderr, "packed", "shards")
    assert mentions(done.stderr, "--fewer", "--set class_sampling=equal")
    assert not (tmp_path / "even").exists()
    done = effnetv2("data", "balance", "packed", "fewer.csv", "--fewer", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(load_dataset(tmp_path / "fewer.csv")) < 38


def test_copies_do_not_become_a_class_of_what_they_are_made_from(imbalanced, tmp_path):
    done = effnetv2("data", "balance", "pictures", "pictures/even", cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert mentions(done.stderr, "OUT", "DATA")
    assert not (imbalanced / "even").exists()
    done = effnetv2("data", "balance", "pictures", "pictures/fewer.csv", "--fewer", cwd=tmp_path)
    assert done.returncode == 0, done.stderr  # a table is no class


def test_pictures_that_no_other_was_made_from_are_no_copies(imbalanced, tmp_path):
    """A column of origins may be there with nothing in it."""
    table = load_dataset(imbalanced).table.assign(augmented_from="", path=lambda rows: "pictures/" + rows["path"])
    table.drop(columns="split").to_csv(tmp_path / "all.csv", index=False)
    done = effnetv2("data", "balance", "all.csv", "fewer.csv", "--fewer", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["copies"] == 0
