"""Which images a run evaluates: val, or test where the recipe sets ``eval_split``; then val is trained on too."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from tests.command_line import TINY, run_ok
from tests.conftest import COLORS, paint
from tests.messages import mentioning, mentions
from tests.standard_sets import write_cifar, write_flowers

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import PreparedData, prepare_data
from efficientnetv2.models import model_file
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.utils.errors import InputError


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EFFNETV2_DATA", raising=False)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def prepared(data: object, recipe_name: str) -> PreparedData:
    recipe = get_recipe(recipe_name)
    fields = {name: getattr(recipe, name) for name in ("val_fraction", "eval_split", "minival", "seed")}
    return prepare_data(DataConfig(str(data)), **fields, strict=False)


def table(folder: Path, **splits: int) -> Path:
    """An image table of three classes with this many images in each split."""
    rows = []
    for split, count in splits.items():
        for number in range(count):
            color = list(COLORS)[number % 3]
            file = paint(folder / "pictures" / f"{split}_{number}.jpg", COLORS[color], 1000 * len(rows))
            rows.append({"path": file.relative_to(folder).as_posix(), "label": color, "split": split})
    pd.DataFrame(rows).to_csv(folder / "pictures.csv", index=False)
    return folder / "pictures.csv"


def parts(data: PreparedData) -> tuple[int, int, set[str]]:
    """The number of training images, the number of evaluation images, and the splits of the latter."""
    return len(data.train), len(data.val), set(data.val.split)


@pytest.mark.parametrize("recipe", ["transfer_paper", "transfer_released"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_transfer_trains_on_train_and_evaluates_test(recipe, name, data_root):
    """Table 9: 50,000 and 10,000 images; here a thousandth."""
    write_cifar(data_root / f"{name}-images", train=50, test=10)
    found = prepared(name, recipe)
    assert parts(found) == (50, 10, {"test"})
    assert mentions(found.split_note, "10", "test", "50")
    assert not found.holdout_drawn
    assert set(prepared(name, "finetune").val.split) == {"val"}


def test_flowers_transfer_trains_on_train_and_val(data_root, monkeypatch):
    """Table 9: 2,040 and 6,149 images; train and val have 1,020 each."""
    write_flowers(data_root, monkeypatch, [1, 2] * 10, trnid=[1, 2], valid=[3, 4], tstid=list(range(5, 21)))
    found = prepared("flowers102", "transfer_paper")
    assert parts(found) == (4, 16, {"test"})
    assert mentions(found.split_note, "4", "2", "val")
    assert parts(prepared("flowers102", "finetune")) == (2, 2, {"val"})


def test_table_with_train_and_test_evaluates_test(tmp_path):
    """Table 9, Stanford Cars: 8,144 and 8,041 images."""
    assert parts(prepared(table(tmp_path, train=8, test=8), "transfer_paper")) == (8, 8, {"test"})


def test_without_test_images_val_is_evaluated(tmp_path):
    found = prepared(table(tmp_path, train=9, val=6), "transfer_paper")
    assert parts(found) == (9, 6, {"val"})
    assert mentions(found.split_note, "test", "6", "val")


def test_unreadable_test_split_is_refused(tmp_path):
    data = table(tmp_path, train=30, test=1)
    (tmp_path / "pictures/test_0.jpg").write_bytes(b"not an image")
    with pytest.raises(InputError, match=mentioning("none", "test", "read")):
        prepared(data, "transfer_paper")


def test_evaluation_on_test_is_reported(data_root):
    write_cifar(data_root / "cifar10-images", train=50, test=10)
    args = ("--recipe", "transfer_paper", *TINY, "--set", "schedule.warmup_epochs=0", "--set", "eval_image_size=32")
    run = data_root.parent / "run"
    done = run_ok("train", "cifar10", *args, "--output", run, cwd=data_root.parent)
    shown = " ".join(done.stdout.split())
    assert mentions(shown, "10", "test", "50")
    assert mentions(shown, "10", "test")
    report = json.loads((run / "report.json").read_text())
    assert (report["evaluated_on"], report["selected_on"], report["optimistic"]) == ("test", None, False)
    assert (report["num_train_images"], report["num_images"]) == (50, 10)
    assert model_file.load(run / "model.safetensors").metrics["test_images"] == 10
    splits = pd.read_csv(run / "dataset.csv")["split"]
    assert splits.value_counts().to_dict() == {"train": 50, "test": 10}
