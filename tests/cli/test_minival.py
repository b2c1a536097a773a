"""Minival from a user's view: in the printed lines, the run folder and the report; and what is refused."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
import yaml
from tests.command_line import TINY, effnetv2, killed_at, run_json, run_ok, run_refused
from tests.messages import mentions
from tests.processes import effnetv2_together

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.models import model_file

ARGS = (*TINY, "--set", "val_fraction=0.25")


@pytest.fixture(scope="module")
def early_stopped(tmp_path_factory, painted_folders):
    """A run that stops early: images this plain are learned at once, and the metric soon stops improving."""
    folder = tmp_path_factory.mktemp("ended")
    args = (*ARGS, "--epochs", "40", "--set", "minival=0.25", "--set", "patience=2", "--set", "monitor=macro_f1")
    done = run_ok(
        "train", painted_folders, *args, "--set", "optimizer.lr=0.004", "--output", folder / "run", cwd=folder
    )
    (folder / "stdout.txt").write_text(done.stdout)
    return folder / "run"


def minival_points(run):
    """The validations on minival, by their steps."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row for row in rows if row["kind"] == "minival"}


def test_minival_and_the_selected_step_are_printed(early_stopped):
    output = " ".join((early_stopped.parent / "stdout.txt").read_text().split())
    assert mentions(output, "9", "36", "minival")
    assert mentions(output, "9", "minival")
    assert mentions(output, "early", "after step")
    assert mentions(output, "weights", "after step")


def test_report_and_model_file_have_the_selection(early_stopped):
    report = json.loads((early_stopped / "report.json").read_text())
    assert (report["evaluated_on"], report["selected_on"], report["optimistic"]) == ("val", "minival", False)
    assert report["selected_by"] == "macro_f1"
    assert report["stopped_early"] is True
    assert report["epochs"] < 40
    assert report["num_train_images"] == 27
    metrics = model_file.load(early_stopped / "model.safetensors").metrics
    assert metrics["selected_step"] == report["selected_step"]
    curve = minival_points(early_stopped)
    assert curve[report["selected_step"]]["macro_f1"] == report["selected_score"]
    assert mentions((early_stopped / "report.html").read_text(), "minival")


def test_resume_of_an_early_stopped_run_is_finished(early_stopped, painted_folders, tmp_path):
    epochs = json.loads((early_stopped / "report.json").read_text())["epochs"]
    done = run_ok("train", painted_folders, "--output", early_stopped, "--resume", "--device", "cpu", cwd=tmp_path)
    assert mentions(" ".join(done.stdout.split()), f"{round(epochs, 2):g} epochs", "finished")


def test_saved_dataset_has_the_minival_split(early_stopped, tmp_path):
    """A second run on it has the same minival; with ``minival=null`` these images are unused."""
    parts = pd.read_csv(early_stopped / "dataset.csv")["split"].value_counts().to_dict()
    assert parts == {"train": 27, "val": 12, "minival": 9}
    data = (early_stopped / "dataset.csv", *TINY)
    again = run_ok("train", *data, "--set", "minival=5", "--output", tmp_path / "again", cwd=tmp_path)
    assert mentions(" ".join(again.stdout.split()), "9", "minival")
    run_ok("train", *data, "--output", tmp_path / "default", cwd=tmp_path)
    assert json.loads((tmp_path / "default/report.json").read_text())["selected_on"] == "minival"
    off = (*data, "--set", "minival=null")
    without = run_ok("train", *off, "--output", tmp_path / "without", cwd=tmp_path)
    assert mentions(" ".join(without.stdout.split()), "9", "minival")
    report = json.loads((tmp_path / "without/report.json").read_text())
    assert (report["num_train_images"], report["selected_on"]) == (27, None)


def test_training_images_of_the_weights_do_not_select(early_stopped, tmp_path):
    """With minival auto the run trains without selection, also when resumed; an explicit minival is refused."""
    shutil.copytree(early_stopped, tmp_path / "before", ignore=shutil.ignore_patterns("dataset.csv"))
    table = pd.read_csv(early_stopped / "dataset.csv")
    table["path"] = [str((early_stopped / path).resolve()) for path in table["path"]]
    swapped = table["split"].map({"train": "train", "minival": "train", "val": "val"})
    swapped[table.index[table["split"] == "train"][::3]] = "minival"
    table.assign(split=swapped).to_csv(tmp_path / "table.csv", index=False)
    args = ("train", "table.csv", *TINY[2:-2], "--weights", "before", "--output", "again")
    run_refused(*args, "--set", "minival=9", cwd=tmp_path)
    killed_at("efficientnetv2.training.trainer:Trainer._train", *args, cwd=tmp_path)
    run_ok("train", "table.csv", "--output", "again", "--resume", "--device", "cpu", cwd=tmp_path)
    report = json.loads((tmp_path / "again/report.json").read_text())
    assert (report["kept_model"], report["selected_on"]) == (None, None)
    assert "temperature" not in report["calibration"]
    assert mentions(report["auto_choices"], "before", "9", "minival", "select nothing", "temperature")


def test_evaluation_on_minival_is_optimistic(early_stopped, tmp_path):
    result = run_json("evaluate", early_stopped, early_stopped / "dataset.csv", "--split", "minival", cwd=tmp_path)
    assert (result["num_images"], result["evaluated_on"], result["optimistic"]) == (9, "minival", True)


def test_two_processes_select_and_stop_together(painted_folders, tmp_path):
    """The first process decides for both: neither waits for steps that the other does not compute."""
    args = (*ARGS, "--epochs", "40", "--set", "ghost_batch_size=4", "--set", "minival=9", "--set", "patience=1")
    args = (*args, "--set", "precision=fp32", "--set", "optimizer.lr=0.004", "--output", tmp_path / "run")
    args = (*args, "--set", "eval_image_size_candidates=[48]")
    first, second = effnetv2_together(2, "train", painted_folders, *args, cwd=tmp_path)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout == second.stderr == ""
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["stopped_early"] is True
    curve = minival_points(tmp_path / "run")
    best = max(row["top1"] for row in curve.values())
    assert curve[report["selected_step"]]["top1"] == report["selected_score"] == best
    assert [point["image_size"] for point in report["sizes"]] == [48, 64]
    assert model_file.load(tmp_path / "run/model.safetensors").preprocessing.image_size == report["image_size"]


def test_ineffective_patience_is_reported_before_training(painted_folders, tmp_path, early_stopped):
    """Two stages with few steps: all validations but the last are in the first stage."""
    args = (*ARGS, "--set", "minival=0.25", "--set", "patience=2")
    for more in ((), ("--dry-run",)):
        done = run_ok("train", painted_folders, *args, *more, "--output", tmp_path / "run", cwd=tmp_path)
        assert mentions(" ".join(done.stdout.split()), "early", "epochs")
        assert more or (tmp_path / "run/report.json").is_file()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert "can't end" not in (early_stopped.parent / "stdout.txt").read_text()


def test_recipes_prints_minival(tmp_path):
    text = effnetv2("recipes", "efficientnetv2_s_paper", cwd=tmp_path).stdout
    assert "minival: 25000" in text
    result = json.loads(effnetv2("recipes", "efficientnetv2_b0_released", "--json", cwd=tmp_path).stdout)
    assert result["minival"] == 25_021


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        (["minival=25000"], ("minival", "25000", "36")),
        (["minival=2"], ("3", "minival", "class")),
        (["patience=3"], ("3", "minival", "patience")),
    ],
)
def test_invalid_minival_is_refused_before_training(settings, facts, painted_folders, tmp_path):
    args = [arg for setting in settings for arg in ("--set", setting)]
    done = run_refused("train", painted_folders, *ARGS, *args, "--output", tmp_path / "run", cwd=tmp_path)
    assert mentions(" ".join(done.stderr.split()), *facts)
    assert not (tmp_path / "run/recipe.yaml").exists()


def test_images_to_cache_include_minival_and_val(painted_folders):
    """Without minival, or with another seed, another run trains on other images of the same 48."""
    data = prepare_data(DataConfig(str(painted_folders)), val_fraction=0.25, minival=9, seed=0, strict=False)
    assert (len(data.train), len(data.minival), len(data.val)) == (27, 9, 12)
    assert len(data.trainable) == 48
    assert set(data.minival.paths).isdisjoint([*data.train.paths, *data.val.paths])


def test_saved_recipe_has_minival_and_patience(early_stopped):
    recipe = yaml.safe_load((early_stopped / "recipe.yaml").read_text())
    assert (recipe["minival"], recipe["patience"], recipe["monitor"]) == (0.25, 2, "macro_f1")
