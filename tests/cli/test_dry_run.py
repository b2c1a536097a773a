"""``effnetv2 train --dry-run``: it estimates a run and writes no files."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from tests.command_line import TINY, killed_at, run_ok, run_refused
from tests.messages import mentions

from efficientnetv2.training.image_cache import CacheEstimate
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_estimate import RunEstimate, StageEstimate
from efficientnetv2.training.run_setup import RunLength
from efficientnetv2.workflows import estimate

SCRATCH = (*TINY, "--weights", "none")


@pytest.fixture(scope="module")
def earlier_run(painted_folders, tmp_path_factory):
    """A run on images such as ``class_folders``."""
    folder = tmp_path_factory.mktemp("first")
    shutil.copytree(painted_folders, folder / "pictures")
    run_ok("train", folder / "pictures", *SCRATCH, "--output", "run", cwd=folder)
    return folder / "run"


def files_in(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def test_estimate_agrees_with_the_run(class_folders, tmp_path):
    """Steps and bytes are estimated exactly; durations are not compared, because the machine may be busy."""
    before = files_in(tmp_path)
    args = (*SCRATCH, "--model", "efficientnetv2_b0")  # large enough for the weights to dominate
    done = run_ok("train", "--dry-run", class_folders, *args, "--json", cwd=tmp_path)
    assert files_in(tmp_path) == before
    result = json.loads(done.stdout)
    # The folder is largest before the checkpoints are removed.
    function = "efficientnetv2.workflows.run_report:remove_checkpoints"
    killed_at(function, "train", class_folders, *args, "--output", "run", cwd=tmp_path)
    run = RunDir(tmp_path / "run")
    rows = run.history()
    assert result["steps"] == rows[-1]["step"]
    assert [stage["image_size"] for stage in result["stages"]] == [32, 64]
    assert [stage["steps"] for stage in result["stages"]] == [
        len({row["step"] for row in rows if row["kind"] == "train" and row["image_size"] == px}) for px in (32, 64)
    ]  # fmt: skip
    saved = sum(path.stat().st_size for path in run.checkpoints.iterdir())
    assert result["disk_bytes"]["checkpoints"] == pytest.approx(saved, rel=0.01)
    assert result["disk_bytes"]["model file"] == pytest.approx(run.model_file.stat().st_size, rel=0.02)
    lists = [run.dataset_file, *(run.path / name for name in ("report.json", "report.html", "predictions.csv"))]
    written = sum(path.stat().st_size for path in lists)
    assert result["disk_bytes"]["lists and report"] == pytest.approx(
        written, rel=0.3
    )  # including the images in the report
    assert set(result["others_s"]) == {
        "start-up", "validation", "checkpoints", "final evaluation", "model file", "report",
    }  # fmt: skip
    assert all(seconds > 0 for seconds in result["others_s"].values())
    assert result["memory_bytes"] > saved
    assert any(note.startswith("Evaluation at 64 px") for note in result["auto_choices"])


def test_dry_run_prints_the_notes_of_the_run(earlier_run, class_folders, tmp_path):
    """Equal notes for equal options, except for the cache, which only the run fills."""
    args = (*TINY[:-2], "--weights", earlier_run, "--cache", "ram", "--set", "eval_image_size=48")
    plan = run_ok("train", "--dry-run", class_folders, *args, "--json", cwd=tmp_path)
    run_ok("train", class_folders, *args, "--output", "second", cwd=tmp_path)
    chosen = json.loads((tmp_path / "second/run.json").read_text())["auto_choices"]
    assert any(note.startswith("Cache: ") for note in chosen)
    data_note, split_note, *notes = json.loads(plan.stdout)["auto_choices"]
    assert data_note.removesuffix(".") in (tmp_path / "second/log.txt").read_text()
    assert notes == [note for note in chosen if not note.startswith("Cache: ")]
    spelled = split_note[1:].replace("`minival=0.1`", "--set minival=0.1")  # as printed
    assert spelled in (tmp_path / "second/log.txt").read_text(), "in lower case after 'Split:'"
    assert mentions(notes[-1], "48", "64")


def test_dry_run_with_weights_a_cache_and_minutes(earlier_run, class_folders, tmp_path):
    before = files_in(tmp_path)
    args = [arg for arg in TINY if arg not in ("--epochs", "1")]
    args += ["--weights", earlier_run, "--cache", "ram", "--minutes", "1"]
    done = run_ok("train", "--dry-run", class_folders, *args, cwd=tmp_path)
    assert files_in(tmp_path) == before
    for what in ("linear probe", "filling the cache", "cache (in memory)", "what fits into 1 minute by"):
        assert what in done.stdout
    assert done.stdout.count("Epochs: ") == 1, "not also the epochs of the recipe"
    assert "measuring" in done.stdout, "as in train"
    chosen = re.search(r"Epochs: (\S+), what fits", done.stdout)
    assert re.search(rf"In total about .* for {re.escape(chosen[1])} epochs?,", done.stdout), done.stdout
    stages = done.stdout.partition("By stage\n")[2].splitlines()[:3]
    assert stages[0].split() == ["stage", "px", "steps", "images/s", "groups", "at", "a", "time", "memory", "time"]
    assert [line.split()[:2] for line in stages[1:]] == [["1", "32"], ["2", "64"]]


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_too_few_minutes_are_refused_before_measuring_all_sizes(more, class_folders, tmp_path):
    args = [arg for arg in SCRATCH if arg not in ("--epochs", "1")]
    done = run_refused("train", class_folders, *args, "--minutes", "0.0001", "--verbose", *more, cwd=tmp_path)
    assert re.search(r"--minutes 0\.0001: the shortest run has 2 steps.*takes about \S+ minutes", done.stderr)
    assert mentions(done.stdout, "32", "1", "2", "step")
    assert "64 px (2 of 2" not in done.stdout


def test_dry_run_refuses_what_train_refuses(class_folders, tmp_path):
    done = run_refused("train", "--dry-run", class_folders, *SCRATCH, "--set", "optimizer.learning=1", cwd=tmp_path)
    assert "optimizer.learning" in done.stderr


@pytest.mark.parametrize(("device", "counted"), [("cpu", 9_000), ("cuda", 2_000)])
def test_cache_in_memory_counts_for_the_cpu_only(device, counted):
    run_estimate = RunEstimate(RunLength(1, 1.0), (StageEstimate(32, 1, 1.0, 1.0, 1, 2_000),), {})
    cache = CacheEstimate("ram", None, None, 7_000, 0.0)
    assert estimate.Estimate(run_estimate, cache, torch.device(device), (), 1.0).memory_bytes == counted
