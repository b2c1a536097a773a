"""Which images a run answers: val, or, where its recipe says so, test, and then all others are learnt from."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from tests.command_line import TINY, effnetv2
from tests.conftest import COLORS, paint
from tests.messages import mentioning, mentions
from tests.standard_sets import write_cifar, write_flowers

from efficientnetv2.data import builtin_datasets
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import PreparedData, prepare_data
from efficientnetv2.models import model_file
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.utils.errors import InputError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EFFNETV2_DATA", raising=False)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def prepared(data: object, recipe: str) -> PreparedData:
    of = get_recipe(recipe)
    return prepare_data(
        DataConfig(str(data)),
        val_fraction=of.val_fraction,
        eval_split=of.eval_split,
        minival=of.minival,
        seed=of.seed,
        strict=False,
    )


def table(folder: Path, **splits: int) -> Path:
    """So many images of each split, of three classes in turn."""
    rows = []
    for split, count in splits.items():
        for number in range(count):
            color = list(COLORS)[number % 3]
            file = paint(folder / "pictures" / f"{split}_{number}.jpg", COLORS[color], 1000 * len(rows))
            rows.append({"path": file.relative_to(folder).as_posix(), "label": color, "split": split})
    pd.DataFrame(rows).to_csv(folder / "pictures.csv", index=False)
    return folder / "pictures.csv"


def parts(of: PreparedData) -> tuple[int, int, set[str]]:
    """How many are trained on, how many answered, and what these are called."""
    return len(of.train), len(of.val), set(of.val.split)


@pytest.mark.parametrize("recipe", ["transfer_paper", "transfer_released"])
@pytest.mark.parametrize(
    ("name", "folder", "layout"),
    [
        ("cifar10", "cifar-10-batches-bin", builtin_datasets.CIFAR10),
        ("cifar100", "cifar-100-binary", builtin_datasets.CIFAR100),
    ],
)
def test_transfer_to_cifar_trains_on_all_of_train_and_answers_test(recipe, name, folder, layout, place):
    """Table 9: 50,000 and 10,000; here a thousandth of it."""
    write_cifar(place / folder, layout, train=50, test=10)
    found = prepared(name, recipe)
    assert parts(found) == (50, 10, {"test"})
    assert mentions(found.split_note, "10", "test", "50")
    assert not found.holdout_drawn
    assert set(prepared(name, "finetune").val.split) == {"val"}


def test_transfer_to_flowers_trains_on_val_too(place, monkeypatch):
    """Table 9: 2,040 and 6,149; the set comes as 1,020 of train, 1,020 of val and those of test."""
    write_flowers(place, monkeypatch, [1, 2] * 10, trnid=[1, 2], valid=[3, 4], tstid=list(range(5, 21)))
    found = prepared("flowers102", "transfer_paper")
    assert parts(found) == (4, 16, {"test"})
    assert mentions(found.split_note, "4", "2", "val")
    assert parts(prepared("flowers102", "finetune")) == (2, 2, {"val"})


def test_transfer_to_a_table_of_train_and_test_like_that_of_cars(tmp_path):
    """Table 9: 8,144 and 8,041."""
    assert parts(prepared(table(tmp_path, train=8, test=8), "transfer_paper")) == (8, 8, {"test"})


def test_without_test_pictures_val_is_answered_and_it_is_said(tmp_path):
    found = prepared(table(tmp_path, train=9, val=6), "transfer_paper")
    assert parts(found) == (9, 6, {"val"})
    assert mentions(found.split_note, "test", "6", "val")


def test_test_pictures_of_which_none_can_be_read_are_refused(tmp_path):
    data = table(tmp_path, train=30, test=1)
    (tmp_path / "pictures/test_0.jpg").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=mentioning("none", "test", "read")):
        prepared(data, "transfer_paper")


def test_a_run_that_answers_test_says_so_everywhere(place):
    write_cifar(place / "cifar-10-batches-bin", builtin_datasets.CIFAR10, train=50, test=10)
    words = ("--recipe", "transfer_paper", *TINY, "--set", "schedule.warmup_epochs=0", "--set", "eval_image_size=32")
    run = place.parent / "run"
    done = effnetv2("train", "cifar10", *words, "--output", run, cwd=place.parent)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert mentions(shown, "10", "test", "50")
    assert mentions(shown, "10", "test")
    report = json.loads((run / "report.json").read_text())
    assert (report["evaluated_on"], report["selected_on"], report["optimistic"]) == ("test", None, False)
    assert (report["num_train_images"], report["num_images"]) == (50, 10)
    assert model_file.load(run / "model.safetensors").metrics["test_images"] == 10
    splits = pd.read_csv(run / "dataset.csv")["split"]
    assert splits.value_counts().to_dict() == {"train": 50, "test": 10}
