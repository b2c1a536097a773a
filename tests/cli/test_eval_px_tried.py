"""Sizes at evaluation among which minival chooses: kept in the model file, told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tests.command_line import TINY, effnetv2
from tests.messages import mentions

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.inference.predict import predict_dataset
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.models import model_file
from efficientnetv2.training.image_sizes import default_eval_sizes

WORDS = (*TINY, "--set", "val_fraction=0.25", "--set", "minival=9", "--set", "eval_image_size_candidates=[48,32]")


def test_minival_chooses_the_size_of_the_model_file(painted_folders, tmp_path):
    """Chosen as one would by hand: the kept weights on minival's images at each size, the best, then val at it."""
    done = effnetv2("train", painted_folders, *WORDS, "--output", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run/report.json").read_text())
    network = model_file.load(tmp_path / "run/model.safetensors")
    source = DataConfig(str(tmp_path / "run/dataset.csv"))
    parts = prepare_data(source, val_fraction=0.25, minival=9, seed=0, strict=False)

    def top1(part, px):
        answers = predict_dataset(network, part, preprocessing=replace(network.preprocessing, image_size=px))
        return classification_metrics(answers.labels, answers.probabilities, network.class_names).top1

    by_hand = {px: top1(parts.minival, px) for px in (32, 48, 64)}
    assert {point["image_size"]: point["top1"] for point in report["sizes"]} == by_hand
    best = max(by_hand, key=lambda px: (by_hand[px], -px))
    assert network.preprocessing.image_size == report["image_size"] == best
    assert report["top1"] == top1(parts.val, best)
    assert mentions(" ".join(done.stdout.split()), best, "minival")
    assert mentions((tmp_path / "run/report.html").read_text(), "minival", "chose", f"{best} px")


@pytest.mark.parametrize(
    ("trained", "tried"),
    [(48, (48,)), (128, (128, 160, 192)), (224, (224, 256, 288, 320)), (384, (384, 448, 512, 576)), (1, (1,))],
)
def test_the_sizes_above_training_go_half_as_far_again(trained, tried):
    assert default_eval_sizes(trained) == tried


def test_a_run_tries_the_sizes_above_its_training_by_itself(painted_folders, tmp_path):
    """64 px in the end, so 64 and 96; the recipe that it keeps names them."""
    words = (*WORDS[:-1], "eval_image_size_candidates=auto", "--output", tmp_path / "run")
    done = effnetv2("train", painted_folders, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join((tmp_path / "run/log.txt").read_text().split())
    assert mentions(said, "64", "minival", "96")
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert [point["image_size"] for point in report["sizes"]] == [64, 96]
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["eval_image_size_candidates"] == [64, 96]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["eval_image_size_candidates=auto", "minival=null"], ("eval_image_size_candidates", "minival")),
        (["eval_image_size_candidates=[64]", "minival=null"], ("minival",)),
        (["eval_image_size_candidates=[8]"], ("eval_image_size_candidates", "8")),
        (["eval_image_size_candidates=[]"], ("eval_image_size_candidates",)),
        (["eval_image_size_candidates=[99999]"], ("eval_image_size_candidates",)),
    ],
)
def test_bad_sizes_are_refused_before_the_run(settings, told, painted_folders, tmp_path):
    words = [word for setting in settings for word in ("--set", setting)]
    done = effnetv2("train", painted_folders, *WORDS, *words, "--output", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(" ".join(done.stderr.split()), *told)
    assert not Path(tmp_path / "run/recipe.yaml").exists()


def test_the_plan_counts_their_time(painted_folders, tmp_path):
    with_sizes = json.loads(effnetv2("train", "--dry-run", painted_folders, *WORDS, "--json", cwd=tmp_path).stdout)
    assert with_sizes["others_s"]["evaluation sizes"] > 0
