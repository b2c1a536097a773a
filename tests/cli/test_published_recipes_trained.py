"""Published recipes with ``effnetv2 train``: from images on disk through each stage to the report.

Image sizes, regularization and all other fields are those of the recipe; model, batch size and length are small.
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
from tests.command_line import NETWORK, run_ok
from tests.conftest import COLORS, paint

from efficientnetv2.models import model_file
from efficientnetv2.training.recipes import get_recipe

pytestmark = pytest.mark.slow  # half a minute in all

BATCH, STEPS, MINIVAL = 8, 8, 6
ARGS = (
    "--batch-size", BATCH, "--set", "epochs=auto", "--set", "expected_dataset=null", "--workers", "0", "--device",
    "cpu",
)  # fmt: skip
SMALL = ("--model", NETWORK)
# Fields that these arguments change, and fields that are resolved before the first step.
CHANGED_FIELDS = {"model", "weights", "batch_size", "optimizer", "epochs", "steps", "expected_dataset"} | {
    "ghost_batch_size", "precision", "compile",
}  # fmt: skip
METRICS = {"top1", "macro_f1", "balanced_accuracy", "per_class", "confusion"}
MULTILABEL_METRICS = {"top1", "mean_average_precision", "f1_micro", "f1_macro", "per_class"}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The folders of ImageNet, train/ and val/ with a folder for each class: 39 and 6 images, none square."""
    folder = tmp_path_factory.mktemp("imagenet")
    for name, color in COLORS.items():
        for number in range(15):
            split = "train" if number < 13 else "val"
            path = paint(folder / split / name / f"{number}.jpg", color, number, 72)
            with Image.open(path) as image:
                cropped = image.crop((0, 0, 72, 48) if number % 2 else (0, 0, 48, 72))
            cropped.save(path)
    return folder


@pytest.fixture(scope="module")
def imagenet21k(tmp_path_factory, imagenet):
    """The training images in a table with two or three labels each, and a run of the paper's recipe on them."""
    folder = tmp_path_factory.mktemp("imagenet21k")
    further = {"red": "warm;bright", "green": "cold", "blue": "bright"}
    images = sorted((imagenet / "train").rglob("*.jpg"))
    labels = [f"{further[one.parent.name]};{one.parent.name}" for one in images]
    pd.DataFrame({"path": images, "label": labels}).to_csv(folder / "imagenet21k.csv", index=False)
    args = (
        "--recipe", "imagenet21k_s_paper", *SMALL, *ARGS, "--set", f"steps={STEPS}", "--set", "val_fraction=9",
    )  # fmt: skip
    return trained(folder / "imagenet21k.csv", "--label-separator", ";", *args, cwd=folder)


def trained(*args: object, cwd: Path) -> Path:
    """The folder of a run."""
    run_ok("train", *args, "--output", cwd / "run", cwd=cwd)
    return cwd / "run"


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    every = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in every if row["kind"] == kind]


def report_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def saved_recipe(run: Path, name: str, *, changed: set[str], px: int | None = None) -> dict[str, Any]:
    """The saved recipe of a run: the named recipe except ``CHANGED_FIELDS``, ``changed``, and sizes for ``px``."""
    saved, recipe = yaml.safe_load((run / "recipe.yaml").read_text()), get_recipe(name)
    plan = recipe.progressive if px is None else recipe.progressive.with_image_size(px)
    plain = recipe.to_json() | {"progressive": plan.to_json()}
    rate = recipe.optimizer.lr * BATCH / recipe.batch_size
    assert saved["optimizer"] == plain.pop("optimizer") | {"lr": pytest.approx(rate, rel=1e-3)}
    assert {field for field in plain if saved[field] != plain[field]} <= CHANGED_FIELDS | changed
    return saved


def sizes_of(run: Path, name: str, *, px: int | None = None) -> list[int]:
    """The image sizes of the steps in order; checks that each step had the regularization of its stage."""
    plan, steps = get_recipe(name).progressive, rows(run, "train")
    plan = plan if px is None else plan.with_image_size(px)
    for row in steps:
        setting = plan.at(row["step"] - 1, total_steps=len(steps)).to_json()
        assert {field: row.get(field, {}) for field in setting} == setting
    assert [row["step"] for row in steps] == [1 + step for step in range(len(steps))]
    return [row["image_size"] for row in steps]


@pytest.mark.parametrize(
    ("name", "args", "px", "sizes", "expected"),
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
        # The torchvision model of table 12; from 128 to 224 px, scaled to end at 96, and evaluated at 96.
        ("resnet50_224_progressive", ("--image-size", 96), 96, [55, 69, 82, 96], {
            "model": "torchvision:resnet50", "crop_mode": "center", "crop_pct": 0.875, "eval_image_size": 96,
        }),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_each_stage_is_trained_and_minival_selects(name, args, px, sizes, expected, imagenet, tmp_path):
    args = (*args, *ARGS, "--set", f"steps={STEPS}", "--set", f"minival={MINIVAL}")
    run = trained(imagenet, "--recipe", name, *args, cwd=tmp_path)
    assert sizes_of(run, name, px=px) == [size for size in sizes for _ in range(STEPS // len(sizes))]
    recipe = saved_recipe(run, name, changed={"minival", "eval_image_size"} if px else {"minival"}, px=px)
    assert recipe | expected == recipe
    assert (recipe["schedule"]["name"], recipe["schedule"]["step_epochs"]) == ("staircase", 2.4)
    assert recipe["augment"]["autoaugment"] == (name == "efficientnetv2_b0_released")
    report, curve = report_of(run), rows(run, "minival")
    assert report.keys() >= METRICS
    assert (report["num_images"], report["num_train_images"], report["evaluated_on"]) == (6, 33, "val")
    assert [stage["image_size"] for stage in report["stages"]] == sizes
    # Minival is evaluated after each stage, and the best weights are saved.
    assert {row["step"] for row in curve} >= {2, 4, 6, STEPS}
    assert {row["num_images"] for row in curve} == {MINIVAL}
    assert (report["selected_on"], report["stopped_early"]) == ("minival", False)
    assert report["selected_score"] == max(row["top1"] for row in curve)
    preprocessing = model_file.load(run / "model.safetensors").preprocessing
    assert (preprocessing.image_size, preprocessing.crop_mode) == (expected["eval_image_size"], expected["crop_mode"])


def test_imagenet21k_recipe_is_multilabel_without_minival(imagenet21k):
    """Section 5.2 of arXiv:2104.00298: as for ImageNet-1k, but with a cosine schedule and a random validation split."""
    run, name = imagenet21k, "imagenet21k_s_paper"
    assert sizes_of(run, name) == [128, 128, 185, 185, 243, 243, 300, 300]
    recipe = saved_recipe(run, name, changed={"val_fraction"})
    assert (recipe["schedule"]["name"], recipe["multilabel"]) == ("cosine", "softmax")
    assert (recipe["train_crop_mode"], recipe["eval_image_size"], recipe["minival"]) == ("center", 384, None)
    report = report_of(run)
    assert report.keys() >= MULTILABEL_METRICS
    assert set(report["class_names"]) == {"red", "green", "blue", "warm", "cold", "bright"}
    assert (report["evaluated_on"], report["selected_on"]) == ("val", None)
    assert (report["num_train_images"], report["num_images"]) == (30, 9)
    assert model_file.load(run / "model.safetensors").preprocessing.image_size == 384


def test_imagenet21k_run_is_fine_tuned_on_imagenet1k(imagenet21k, imagenet, tmp_path):
    """One image size, uncropped images with a cutout of noise, a constant learning rate."""
    name = "imagenet_from_21k_s_released"
    args = ("--weights", imagenet21k, "--model", "auto", *ARGS, "--set", "steps=2")
    run = trained(imagenet, "--recipe", name, *args, cwd=tmp_path)
    assert sizes_of(run, name) == [384, 384]
    recipe = saved_recipe(run, name, changed={"global_pool"})
    assert recipe["weights"] == str(imagenet21k)
    assert (recipe["schedule"]["name"], recipe["crop_scale_min"]) == ("constant", 1.0)
    assert (recipe["progressive"]["cutout"], recipe["augment"]["cutout_fill"]) == (0.5, "noise")
    report = report_of(run)
    assert report.keys() >= METRICS | {"linear_probe_top1"}
    assert (report["num_train_images"], report["num_images"], report["selected_on"]) == (39, 6, None)
    before, after = (model_file.load(one / "model.safetensors") for one in (imagenet21k, run))
    assert (before.num_classes, after.num_classes) == (6, 3)
    # Two steps with a small learning rate change the stem only slightly.
    stems = [torch.cat([one.flatten() for one in net.stem.parameters()]) for net in (before, after)]
    assert 0 < (stems[1] - stems[0]).norm() < 0.05 * stems[0].norm()
