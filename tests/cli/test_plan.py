"""``effnetv2 train --dry-run``: it says what ``train`` will take, and leaves nothing behind."""

from __future__ import annotations

import json
import re

import pytest
import torch
from tests.command_line import TINY, effnetv2, killed_at
from tests.conftest import COLORS, paint
from tests.messages import mentions
from tests.recipes import with_overrides

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.evaluation.plots import draw_training_curves
from efficientnetv2.training.image_cache import CacheEstimate
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_estimate import RunEstimate, StageEstimate
from efficientnetv2.training.run_length import RunLength
from efficientnetv2.training.run_setup import RunSetup
from efficientnetv2.workflows import estimate

SCRATCH = (*TINY, "--weights", "none")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run on images such as ``class_folders``."""
    place = tmp_path_factory.mktemp("first")
    for name, color in COLORS.items():
        for number in range(16):
            paint(place / "pictures" / name / f"{name}_{number:02d}.jpg", color, number)
    done = effnetv2("train", place / "pictures", *SCRATCH, "--output", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "run"


def left(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def test_the_plan_of_a_run_and_the_run(class_folders, tmp_path):
    """Steps and bytes can be foretold exactly; how long it takes is another matter on a busy machine."""
    before = left(tmp_path)
    words = (*SCRATCH, "--model", "efficientnetv2_b0")  # large enough for what surrounds its weights to be little
    done = effnetv2("train", "--dry-run", class_folders, *words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert left(tmp_path) == before
    told = json.loads(done.stdout)
    # At its fullest: the checkpoints go when the report is there.
    place = "efficientnetv2.workflows.run_report:remove_checkpoints"
    killed_at(place, "train", class_folders, *words, "--output", "run", cwd=tmp_path)
    run = RunDir(tmp_path / "run")
    rows = run.history()
    assert told["steps"] == rows[-1]["step"]
    assert [stage["image_size"] for stage in told["stages"]] == [32, 64]
    assert [stage["steps"] for stage in told["stages"]] == [
        len({row["step"] for row in rows if row["kind"] == "train" and row["image_size"] == px}) for px in (32, 64)
    ]  # fmt: skip
    saved = sum(path.stat().st_size for path in run.checkpoints.iterdir())
    assert told["disk_bytes"]["checkpoints"] == pytest.approx(saved, rel=0.01)
    assert told["disk_bytes"]["model file"] == pytest.approx(run.model_file.stat().st_size, rel=0.02)
    lists = [run.dataset_file, *(run.path / name for name in ("report.json", "report.html", "predictions.csv"))]
    written = sum(path.stat().st_size for path in lists)
    assert told["disk_bytes"]["lists and report"] == pytest.approx(written, rel=0.3)  # galleries and all
    assert set(told["others_s"]) == {
        "start-up", "validation", "checkpoints", "final evaluation", "model file", "report",
    }  # fmt: skip
    assert all(seconds > 0 for seconds in told["others_s"].values())
    assert told["memory_bytes"] > saved
    assert any(note.startswith("Evaluation at 64 px") for note in told["auto_choices"])


def test_the_plan_says_what_the_run_says(first, class_folders, tmp_path):
    """Of the same words the same sentences, but for the cache, which only the run fills."""
    words = (*TINY[:-2], "--weights", first, "--cache", "ram", "--set", "eval_image_size=48")
    plan = effnetv2("train", "--dry-run", class_folders, *words, "--json", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    done = effnetv2("train", class_folders, *words, "--output", "second", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    chosen = json.loads((tmp_path / "second/run.json").read_text())["auto_choices"]
    assert any(note.startswith("Cache: ") for note in chosen)
    split_note, *notes = json.loads(plan.stdout)["auto_choices"]
    assert notes == [note for note in chosen if not note.startswith("Cache: ")]
    spelled = split_note[1:].replace("`minival=0.1`", "--set minival=0.1")  # as on the screen
    assert spelled in (tmp_path / "second/log.txt").read_text(), "after Split: in small letters"
    assert mentions(notes[-1], "48", "64")


def test_with_weights_a_cache_and_minutes(first, class_folders, tmp_path):
    before = left(tmp_path)
    words = [word for word in TINY if word not in ("--epochs", "1")]
    words += ["--weights", first, "--cache", "ram", "--minutes", "1"]
    done = effnetv2("train", "--dry-run", class_folders, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert left(tmp_path) == before
    for what in ("linear probe", "filling the cache", "cache (in memory)", "what fits into 1 minute by"):
        assert what in done.stdout
    assert done.stdout.count("Epochs: ") == 1, "not also what the recipe would have chosen without --minutes"
    assert "measuring" in done.stdout, "train does so too"
    chosen = re.search(r"Epochs: (\S+), what fits", done.stdout)
    assert re.search(rf"In total about .* for {re.escape(chosen[1])} epochs?,", done.stdout), done.stdout
    stages = done.stdout.partition("By stage\n")[2].splitlines()[:3]
    assert stages[0].split() == ["stage", "px", "steps", "images/s", "groups", "at", "a", "time", "memory", "time"]
    assert [line.split()[:2] for line in stages[1:]] == [["1", "32"], ["2", "64"]]


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_minutes_that_no_run_fits_into_are_refused_before_all_sizes_are_measured(more, class_folders, tmp_path):
    words = [word for word in SCRATCH if word not in ("--epochs", "1")]
    done = effnetv2("train", class_folders, *words, "--minutes", "0.0001", "--verbose", *more, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert re.search(r"--minutes 0\.0001: the shortest run has 2 steps.*takes about \S+ minutes", done.stderr)
    assert mentions(done.stdout, "32", "1", "2", "step")
    assert "64 px (2 of 2" not in done.stdout


def test_what_train_refuses_is_refused(class_folders, tmp_path):
    done = effnetv2("train", "--dry-run", class_folders, *SCRATCH, "--set", "optimizer.learning=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "optimizer.learning" in done.stderr


@pytest.mark.parametrize(("device", "counted"), [("cpu", 9_000), ("cuda", 2_000)])
def test_a_cache_in_memory_is_in_the_processors(device, counted):
    foretold = RunEstimate(RunLength(1, 1.0), (StageEstimate(32, 1, 1.0, 1.0, 1, 2_000),), {})
    kept = CacheEstimate("ram", None, None, 7_000, 0.0)
    assert estimate.Estimate(foretold, kept, torch.device(device), (), 1.0).memory_bytes == counted


def test_the_rows_rehearsed_are_those_of_the_run(class_folders):
    """48 images in steps of 8, twice: 12 rows, half of them of 32 px, and a point of the curve after each half."""
    changes = ["progressive={stages: 2, image_size: {start: 32, end: 64}}", "batch_size=8", "epochs=2"]
    pictures = load_dataset(class_folders)
    recipe = with_overrides(get_recipe("quick"), changes)
    rows = estimate._rows(RunSetup(recipe, None, pictures, pictures, None, None, torch.device("cpu"), workers=0))
    trained, answered = ([row for row in rows if row["kind"] == kind] for kind in ("train", "val"))
    assert [(row["step"], row["image_size"]) for row in trained] == [
        (step, 32 if step <= 6 else 64) for step in range(1, 13)
    ]
    assert [(row["step"], row["epoch"]) for row in answered] == [(6, 1.0), (12, 2.0)]
    assert draw_training_curves(rows) is not None
    assert len({row["loss"] for row in trained}) == 12, "a line that is drawn, not a point"
