"""Published recipes go the whole way of ``effnetv2 train``: from images on disk over each stage to the report.

Sizes, regularization and all else that a recipe says is its own; network, batch and length are small.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from tests.command_line import NETWORK, effnetv2
from tests.conftest import COLORS, paint

from efficientnetv2.models import model_file
from efficientnetv2.training.recipes import get_recipe

pytestmark = pytest.mark.slow  # half a minute in all

BATCH, STEPS, MINIVAL = 8, 8, 6
WORDS = (
    "--batch-size", BATCH, "--set", "epochs=auto", "--set", "expected_dataset=null", "--workers", "0", "--device",
    "cpu",
)  # fmt: skip
SMALL = ("--model", NETWORK)
# What those words say otherwise, and what is settled before the first step.
GIVEN = {"model", "weights", "batch_size", "optimizer", "epochs", "steps", "expected_dataset"} | {
    "ghost_batch_size", "precision", "compile",
}  # fmt: skip
FIGURES = {"top1", "macro_f1", "balanced_accuracy", "per_class", "confusion"}
FIGURES_OF_SEVERAL = {"top1", "mean_average_precision", "f1_micro", "f1_macro", "per_class"}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """As ImageNet lies on a disk, train/ and val/ with a folder for each class: 39 and 6 images, none square."""
    folder = tmp_path_factory.mktemp("imagenet")
    for name, color in COLORS.items():
        for number in range(15):
            split = "train" if number < 13 else "val"
            path = paint(folder / split / name / f"{number}.jpg", color, number, 72)
            with Image.open(path) as picture:
                cut = picture.crop((0, 0, 72, 48) if number % 2 else (0, 0, 48, 72))
            cut.save(path)
    return folder


@pytest.fixture(scope="module")
def imagenet21k(tmp_path_factory, imagenet):
    """The training images in a table, of two or three labels each; and a run of the paper's recipe on them."""
    folder = tmp_path_factory.mktemp("imagenet21k")
    more = {"red": "warm;bright", "green": "cold", "blue": "bright"}
    pictures = sorted((imagenet / "train").rglob("*.jpg"))
    labels = [f"{more[one.parent.name]};{one.parent.name}" for one in pictures]
    pd.DataFrame({"path": pictures, "label": labels}).to_csv(folder / "imagenet21k.csv", index=False)
    words = (
        "--recipe", "imagenet21k_s_paper", *SMALL, *WORDS, "--set", f"steps={STEPS}", "--set", "val_fraction=9",
    )  # fmt: skip
    return trained(folder / "imagenet21k.csv", "--label-separator", ";", *words, cwd=folder)


def trained(*words: object, cwd: Path) -> Path:
    """The folder of a run."""
    done = effnetv2("train", *words, "--output", cwd / "run", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "run"


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    every = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in every if row["kind"] == kind]


def report_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def kept(run: Path, name: str, *, given: set[str], px: int | None = None) -> dict[str, Any]:
    """The recipe that a run keeps: the one so named but for ``GIVEN``, ``given``, and sizes scaled to ``px``."""
    there, own = yaml.safe_load((run / "recipe.yaml").read_text()), get_recipe(name)
    plan = own.progressive if px is None else own.progressive.with_image_size(px)
    plain = own.to_json() | {"progressive": plan.to_json()}
    rate = own.optimizer.lr * BATCH / own.batch_size
    assert there["optimizer"] == plain.pop("optimizer") | {"lr": pytest.approx(rate, rel=1e-3)}
    assert {field for field in plain if there[field] != plain[field]} <= GIVEN | given
    return there


def sizes_of(run: Path, name: str, *, px: int | None = None) -> list[int]:
    """The sizes of the steps, one after the other; each step had the regularization of its stage."""
    plan, steps = get_recipe(name).progressive, rows(run, "train")
    plan = plan if px is None else plan.with_image_size(px)
    for row in steps:
        setting = plan.at(row["step"] - 1, total_steps=len(steps)).to_json()
        assert {field: row.get(field, {}) for field in setting} == setting
    assert [row["step"] for row in steps] == [1 + step for step in range(len(steps))]
    return [row["image_size"] for row in steps]


@pytest.mark.parametrize(
    ("name", "words", "px", "sizes", "itself"),
    [
        # Table 6 of arXiv:2104.00298, section 5.1; evaluated as released.
        ("efficientnetv2_s_paper", SMALL, None, [128, 185, 243, 300], {
            "train_crop_mode": "center", "crop_mode": "squash", "eval_image_size": 384, "batch_norm_momentum": 0.99,
        }),
        # google/automl, efficientnetv2; the center of an image evaluated, 224 of 256 px.
        ("efficientnetv2_b0_released", SMALL, None, [144, 160, 176, 192], {
            "train_crop_mode": "center", "crop_mode": "center", "crop_pct": 0.875, "eval_image_size": 224,
            "crop_scale_min": 0.1,
        }),
        # Table 12's own network, torchvision's; from 128 to 224 px, scaled to end at 96, and evaluated there.
        ("resnet50_224_progressive", ("--image-size", 96), 96, [55, 69, 82, 96], {
            "model": "torchvision:resnet50", "crop_mode": "center", "crop_pct": 0.875, "eval_image_size": 96,
        }),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_from_scratch_each_stage_is_trained_and_minival_chooses(name, words, px, sizes, itself, imagenet, tmp_path):
    words = (*words, *WORDS, "--set", f"steps={STEPS}", "--set", f"minival={MINIVAL}")
    run = trained(imagenet, "--recipe", name, *words, cwd=tmp_path)
    assert sizes_of(run, name, px=px) == [size for size in sizes for _ in range(STEPS // len(sizes))]
    recipe = kept(run, name, given={"minival", "eval_image_size"} if px else {"minival"}, px=px)
    assert recipe | itself == recipe
    assert (recipe["schedule"]["name"], recipe["schedule"]["step_epochs"]) == ("staircase", 2.4)
    assert recipe["augment"]["autoaugment"] == (name == "efficientnetv2_b0_released")
    report, curve = report_of(run), rows(run, "minival")
    assert report.keys() >= FIGURES
    assert (report["num_images"], report["num_train_images"], report["evaluated_on"]) == (6, 33, "val")
    assert [stage["image_size"] for stage in report["stages"]] == sizes
    # Minival is looked at after each stage, and what was best on it is kept.
    assert {row["step"] for row in curve} >= {2, 4, 6, STEPS}
    assert {row["num_images"] for row in curve} == {MINIVAL}
    assert (report["selected_on"], report["stopped_early"]) == ("minival", False)
    assert report["selected_score"] == max(row["top1"] for row in curve)
    seen = model_file.load(run / "model.safetensors").preprocessing
    assert (seen.image_size, seen.crop_mode) == (itself["eval_image_size"], itself["crop_mode"])


def test_imagenet21k_has_multilabel_of_a_picture_and_no_minival(imagenet21k):
    """Section 5.2 of arXiv:2104.00298: the settings of ImageNet-1k, but a cosine, and images held out."""
    run, name = imagenet21k, "imagenet21k_s_paper"
    assert sizes_of(run, name) == [128, 128, 185, 185, 243, 243, 300, 300]
    recipe = kept(run, name, given={"val_fraction"})
    assert (recipe["schedule"]["name"], recipe["multilabel"]) == ("cosine", "softmax")
    assert (recipe["train_crop_mode"], recipe["eval_image_size"], recipe["minival"]) == ("center", 384, None)
    report = report_of(run)
    assert report.keys() >= FIGURES_OF_SEVERAL
    assert set(report["class_names"]) == {"red", "green", "blue", "warm", "cold", "bright"}
    assert (report["evaluated_on"], report["selected_on"]) == ("val", None)
    assert (report["num_train_images"], report["num_images"]) == (30, 9)
    assert model_file.load(run / "model.safetensors").preprocessing.image_size == 384


def test_from_weights_of_ones_own_imagenet21k_to_imagenet1k(imagenet21k, imagenet, tmp_path):
    """As the recipe's label has it. One size, whole images with a hole of noise in them, a constant rate."""
    name = "imagenet_from_21k_s_released"
    words = ("--weights", imagenet21k, "--model", "auto", *WORDS, "--set", "steps=2")
    run = trained(imagenet, "--recipe", name, *words, cwd=tmp_path)
    assert sizes_of(run, name) == [384, 384]
    recipe = kept(run, name, given={"global_pool"})
    assert recipe["weights"] == str(imagenet21k)
    assert (recipe["schedule"]["name"], recipe["crop_scale_min"]) == ("constant", 1.0)
    assert (recipe["progressive"]["cutout"], recipe["augment"]["cutout_fill"]) == (0.5, "noise")
    report = report_of(run)
    assert report.keys() >= FIGURES | {"linear_probe_top1"}
    assert (report["num_train_images"], report["num_images"], report["selected_on"]) == (39, 6, None)
    before, after = (model_file.load(one / "model.safetensors") for one in (imagenet21k, run))
    assert (before.num_classes, after.num_classes) == (6, 3)
    # After two steps of a small rate the stem is nearly, but not quite, the one that was given.
    stems = [torch.cat([one.flatten() for one in net.stem.parameters()]) for net in (before, after)]
    assert 0 < (stems[1] - stems[0]).norm() < 0.05 * stems[0].norm()
