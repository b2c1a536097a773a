"""Candidates for the image size at evaluation: minival selects one, the model file has it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tests.command_line import TINY, effnetv2, run_ok, run_refused
from tests.messages import mentions

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.inference.predict import predict_dataset
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.models import model_file
from efficientnetv2.training.image_sizes import default_eval_sizes

ARGS = (*TINY, "--set", "val_fraction=0.25", "--set", "minival=9", "--set", "eval_image_size_candidates=[48,32]")


def test_minival_selects_the_image_size_of_the_model(painted_folders, tmp_path):
    """Compared with an explicit selection: top-1 on minival at each size, then val at the best size."""
    done = run_ok("train", painted_folders, *ARGS, "--output", tmp_path / "run", cwd=tmp_path)
    report = json.loads((tmp_path / "run/report.json").read_text())
    model = model_file.load(tmp_path / "run/model.safetensors")
    source = DataConfig(str(tmp_path / "run/dataset.csv"))
    parts = prepare_data(source, val_fraction=0.25, minival=9, seed=0, strict=False)

    def top1(part, px):
        predictions = predict_dataset(model, part, preprocessing=replace(model.preprocessing, image_size=px))
        return classification_metrics(predictions.labels, predictions.probabilities, model.class_names).top1

    expected = {px: top1(parts.minival, px) for px in (32, 48, 64)}
    assert {point["image_size"]: point["top1"] for point in report["sizes"]} == expected
    best = max(expected, key=lambda px: (expected[px], -px))
    assert model.preprocessing.image_size == report["image_size"] == best
    assert report["top1"] == top1(parts.val, best)
    assert mentions(" ".join(done.stdout.split()), best, "minival")
    assert mentions((tmp_path / "run/report.html").read_text(), "minival", "chose", f"{best} px")


@pytest.mark.parametrize(
    ("trained", "expected"),
    [(48, (48,)), (128, (128, 160, 192)), (224, (224, 256, 288, 320)), (384, (384, 448, 512, 576)), (1, (1,))],
)
def test_default_sizes_go_up_to_half_above_training(trained, expected):
    assert default_eval_sizes(trained) == expected


def test_auto_tries_sizes_above_training(painted_folders, tmp_path):
    """Training ends at 64 px, so the candidates are 64 and 96, and the saved recipe lists them."""
    run_ok(
        "train", painted_folders, *ARGS[:-1], "eval_image_size_candidates=auto", "--output", tmp_path / "run",
        cwd=tmp_path,
    )  # fmt: skip
    output = " ".join((tmp_path / "run/log.txt").read_text().split())
    assert mentions(output, "64", "minival", "96")
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert [point["image_size"] for point in report["sizes"]] == [64, 96]
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["eval_image_size_candidates"] == [64, 96]


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        (["eval_image_size_candidates=auto", "minival=null"], ("eval_image_size_candidates", "minival")),
        (["eval_image_size_candidates=[64]", "minival=null"], ("minival",)),
        (["eval_image_size_candidates=[8]"], ("eval_image_size_candidates", "8")),
        (["eval_image_size_candidates=[]"], ("eval_image_size_candidates",)),
        (["eval_image_size_candidates=[99999]"], ("eval_image_size_candidates",)),
    ],
)
def test_invalid_sizes_are_refused_before_training(settings, facts, painted_folders, tmp_path):
    args = [arg for setting in settings for arg in ("--set", setting)]
    done = run_refused("train", painted_folders, *ARGS, *args, "--output", tmp_path / "run", cwd=tmp_path)
    assert mentions(" ".join(done.stderr.split()), *facts)
    assert not Path(tmp_path / "run/recipe.yaml").exists()


def test_dry_run_includes_the_time_of_the_candidates(painted_folders, tmp_path):
    with_sizes = json.loads(effnetv2("train", "--dry-run", painted_folders, *ARGS, "--json", cwd=tmp_path).stdout)
    assert with_sizes["others_s"]["evaluation sizes"] > 0
