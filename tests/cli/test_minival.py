"""Minival as a user meets it: on the screen, in the run folder, in the report; and what is refused."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
import yaml
from tests.command_line import TINY, effnetv2, killed_at
from tests.messages import mentions
from tests.processes import effnetv2_together

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.models import model_file

WORDS = (*TINY, "--set", "val_fraction=0.25")


@pytest.fixture(scope="module")
def ended(tmp_path_factory, painted_folders):
    """A run that stops early: images this plain are learnt at once, and nothing is better than all."""
    place = tmp_path_factory.mktemp("ended")
    words = (*WORDS, "--epochs", "40", "--set", "minival=0.25", "--set", "patience=2", "--set", "monitor=macro_f1")
    done = effnetv2(
        "train", painted_folders, *words, "--set", "optimizer.lr=0.004", "--output", place / "run", cwd=place
    )
    assert done.returncode == 0, done.stderr
    return place / "run", done.stdout


def points(run):
    """The validations on minival, by their steps."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row for row in rows if row["kind"] == "minival"}


def test_it_is_said_what_was_set_aside_and_chosen(ended):
    _, shown = ended
    shown = " ".join(shown.split())
    assert mentions(shown, "9", "36", "minival")
    assert mentions(shown, "9", "minival")
    assert mentions(shown, "early", "after step")
    assert mentions(shown, "weights", "after step")


def test_report_and_model_file_say_what_chose(ended):
    run, _ = ended
    report = json.loads((run / "report.json").read_text())
    assert (report["evaluated_on"], report["selected_on"], report["optimistic"]) == ("val", "minival", False)
    assert report["selected_by"] == "macro_f1"
    assert report["stopped_early"] is True
    assert report["epochs"] < 40
    assert report["num_train_images"] == 27
    metrics = model_file.load(run / "model.safetensors").metrics
    assert metrics["selected_step"] == report["selected_step"]
    curve = points(run)
    assert curve[report["selected_step"]]["macro_f1"] == report["selected_score"]
    assert mentions((run / "report.html").read_text(), "minival")


def test_asked_to_go_on_it_has_finished_after_the_epochs_it_had(ended, painted_folders, tmp_path):
    run, _ = ended
    epochs = json.loads((run / "report.json").read_text())["epochs"]
    done = effnetv2("train", painted_folders, "--output", run, "--resume", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(" ".join(done.stdout.split()), f"{epochs:g}", "finished", "epochs")


def test_the_manifest_lists_them_and_is_data_itself(ended, tmp_path):
    """A second run on it has the same minival; one without leaves those images aside, and says so."""
    run, _ = ended
    parts = pd.read_csv(run / "dataset.csv")["split"].value_counts().to_dict()
    assert parts == {"train": 27, "val": 12, "minival": 9}
    data = (run / "dataset.csv", *TINY)
    again = effnetv2("train", *data, "--set", "minival=5", "--output", tmp_path / "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert mentions(" ".join(again.stdout.split()), "9", "minival")
    unasked = effnetv2("train", *data, "--output", tmp_path / "unasked", cwd=tmp_path)
    assert unasked.returncode == 0, unasked.stderr
    assert json.loads((tmp_path / "unasked/report.json").read_text())["selected_on"] == "minival"
    off = (*data, "--set", "minival=null")
    without = effnetv2("train", *off, "--output", tmp_path / "without", cwd=tmp_path)
    assert without.returncode == 0, without.stderr
    assert mentions(" ".join(without.stdout.split()), "9", "minival")
    report = json.loads((tmp_path / "without/report.json").read_text())
    assert (report["num_train_images"], report["selected_on"]) == (27, None)


def test_pictures_that_trained_the_given_weights_choose_nothing_unasked(ended, tmp_path):
    """With auto the run goes its way without choosing, also when it was killed; asked for, they are refused."""
    run, _ = ended
    shutil.copytree(run, tmp_path / "before", ignore=shutil.ignore_patterns("dataset.csv"))
    table = pd.read_csv(run / "dataset.csv")
    table["path"] = [str((run / path).resolve()) for path in table["path"]]
    swapped = table["split"].map({"train": "train", "minival": "train", "val": "val"})
    swapped[table.index[table["split"] == "train"][::3]] = "minival"
    table.assign(split=swapped).to_csv(tmp_path / "table.csv", index=False)
    words = ("train", "table.csv", *TINY[2:-2], "--weights", "before", "--output", "again")
    refused = effnetv2(*words, "--set", "minival=9", cwd=tmp_path)
    assert refused.returncode == 2
    killed_at("efficientnetv2.training.trainer:Trainer._train", *words, cwd=tmp_path)
    done = effnetv2("train", "table.csv", "--output", "again", "--resume", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "again/report.json").read_text())
    assert (report["kept_model"], report["selected_on"]) == (None, None)
    assert "temperature" not in report["calibration"]
    assert mentions(report["auto_choices"], "before", "9", "minival", "select nothing", "temperature")


def test_evaluating_on_minival_is_optimistic(ended, tmp_path):
    run, _ = ended
    done = effnetv2("evaluate", run, run / "dataset.csv", "--split", "minival", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["num_images"], told["evaluated_on"], told["optimistic"]) == (9, "minival", True)


def test_two_processes_choose_alike_and_end_together(painted_folders, tmp_path):
    """The first has the answers and tells the other: neither waits for steps that the other does not do."""
    words = (*WORDS, "--epochs", "40", "--set", "ghost_batch_size=4", "--set", "minival=9", "--set", "patience=1")
    words = (*words, "--set", "precision=fp32", "--set", "optimizer.lr=0.004", "--output", tmp_path / "run")
    words = (*words, "--set", "eval_image_size_candidates=[48]")
    first, second = effnetv2_together(2, "train", painted_folders, *words, cwd=tmp_path)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout == second.stderr == ""
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["stopped_early"] is True
    curve = points(tmp_path / "run")
    assert (
        curve[report["selected_step"]]["top1"] == report["selected_score"] == max(row["top1"] for row in curve.values())
    )
    assert [point["image_size"] for point in report["sizes"]] == [48, 64]
    assert model_file.load(tmp_path / "run/model.safetensors").preprocessing.image_size == report["image_size"]


def test_patience_that_cannot_end_the_run_is_said_before_it(painted_folders, tmp_path, ended):
    """Two stages, and of the few steps of an epoch all validations but the end's in the first."""
    words = (*WORDS, "--set", "minival=0.25", "--set", "patience=2")
    for more in ((), ("--dry-run",)):
        done = effnetv2("train", painted_folders, *words, *more, "--output", tmp_path / "run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert mentions(" ".join(done.stdout.split()), "early", "epochs")
        assert more or (tmp_path / "run/report.json").is_file()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert "cannot end this run" not in " ".join(ended[1].split())


def test_the_recipes_show_it(tmp_path):
    shown = effnetv2("recipes", "efficientnetv2_s_paper", cwd=tmp_path).stdout
    assert "minival: 25000" in shown
    told = json.loads(effnetv2("recipes", "efficientnetv2_b0_released", "--json", cwd=tmp_path).stdout)
    assert told["minival"] == 25_021


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["minival=25000"], ("minival", "25000", "36")),
        (["minival=2"], ("3", "minival", "class")),
        (["patience=3"], ("3", "minival", "patience")),
    ],
)
def test_bad_input_is_refused_before_the_run(settings, told, painted_folders, tmp_path):
    words = [word for setting in settings for word in ("--set", setting)]
    done = effnetv2("train", painted_folders, *WORDS, *words, "--output", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(" ".join(done.stderr.split()), *told)
    assert not (tmp_path / "run/recipe.yaml").exists()


def test_a_cache_on_disk_holds_what_another_run_would_train_on(painted_folders):
    """Without minival, or with another seed's hold-out, a run trains on other images of the same 48."""
    ready = prepare_data(DataConfig(str(painted_folders)), val_fraction=0.25, minival=9, seed=0, strict=False)
    assert (len(ready.train), len(ready.minival), len(ready.val)) == (27, 9, 12)
    assert len(ready.trainable) == 48
    assert set(ready.minival.paths).isdisjoint([*ready.train.paths, *ready.val.paths])


def test_the_settled_recipe_keeps_it(ended):
    run, _ = ended
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (recipe["minival"], recipe["patience"], recipe["monitor"]) == (0.25, 2, "macro_f1")
