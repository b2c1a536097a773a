"""``train`` with several processes: one run, one log and one folder, with the same result for any number."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from tests.command_line import NETWORK, effnetv2, run_ok
from tests.conftest import paint
from tests.messages import mentioning, mentions
from tests.processes import effnetv2_together, started_together

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.prepared_data import require_images_here
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError

# 39 training images, 5 steps; two groups per step, which one process computes in one pass: equal except for rounding,
# which would be visible in 16 bits.
ARGS = (
    "--model", NETWORK, "--weights", "none", "--workers", "0", "--device", "cpu", "--epochs", "1",
    "--set", "batch_size=8", "--set", "ghost_batch_size=4", "--set", "checkpoint_minutes=0",
    "--set", "precision=fp32", "--set", "progressive={stages: 2, image_size: {start: 32, end: 48}, dropout: 0.2}",
)  # fmt: skip

# With small feature maps, batch norm divides by the deviation of few values and amplifies rounding, with any optimizer.
# 64 px and eight images give enough values. AdamW divides by the size of the gradients and amplifies rounding of small
# gradients; SGD does not. 30 steps of 39 images.
STEADY = (
    "--epochs", "12.3", "--set", "batch_size=16", "--set", "ghost_batch_size=8",
    "--set", "checkpoint_minutes=60", "--set", "val_interval_epochs=100",
    "--set", "optimizer.name=sgd", "--set", "optimizer.lr=0.02",
    "--set", "progressive={stages: 2, image_size: {start: 64, end: 80}, dropout: 0.2, drop_path: 0.2}",
)  # fmt: skip


def losses(run):
    return {row["step"]: row["loss"] for row in rows(run) if row["kind"] == "train"}


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps_done(run):
    return len(rows(run)) if (run / "metrics.jsonl").exists() else 0


def wait_until(condition, *processes):
    while not condition():
        time.sleep(0.01)
        assert all(one.is_running() for one in processes), "a process ended too early"


def test_two_processes_equal_one_process(class_folders, tmp_path):
    args = ("train", class_folders, *ARGS, *STEADY)
    run_ok(*args, "--output", tmp_path / "alone", cwd=tmp_path)
    first, second = effnetv2_together(2, *args, "--output", tmp_path / "both", cwd=tmp_path)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert mentions((tmp_path / "both/log.txt").read_text(), "2 × cpu")
    assert second.stdout == second.stderr == ""
    assert len(losses(tmp_path / "alone")) == 30
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "alone"), rel=0, abs=1e-5)
    names = [
        sorted(file.name for file in (tmp_path / run).rglob("*") if "events" not in file.name)
        for run in ("alone", "both")
    ]
    assert names[0] == names[1]
    assert json.loads((tmp_path / "both/report.json").read_text())["processes"] == 2
    one, both = (pd.read_csv(tmp_path / run / "predictions.csv") for run in ("alone", "both"))
    assert len(one) == 9, "nine images in two processes: one process has five"
    # Adam moves a weight whose gradient is only rounding as far as any other. In training the next norm removes such a
    # shift; in the moving average, whose statistics lag behind, presumably not fully (not proved).
    pd.testing.assert_frame_equal(both, one, rtol=0, atol=1e-3)


def test_common_error_is_printed_once(class_folders, tmp_path):
    ended = effnetv2_together(3, "train", class_folders, *ARGS, "--output", tmp_path / "run", cwd=tmp_path)
    (message,) = (one.stderr for one in ended if "error:" in one.stderr)
    assert not any("Traceback" in one.stderr for one in ended)
    assert mentions(message, "3", "2", "group")
    assert mentions(message, "--set", "ghost_batch_size=2")
    assert sorted(one.returncode for one in ended) == [1, 1, 2]
    assert not (tmp_path / "run").exists()


def test_default_ghost_batch_size_suits_the_number_of_processes(class_folders, tmp_path):
    """A batch of 8 in 3 processes: no number of groups divides evenly, so the fewest that suffice."""
    args = [arg for arg in ARGS if arg != "ghost_batch_size=4"]
    del args[args.index("--set", args.index("batch_size=8"))]
    ended = effnetv2_together(
        3, "train", class_folders, *args, "--epochs", "0.4", "--output", tmp_path / "run", cwd=tmp_path
    )
    assert ended[0].returncode == 0, ended[0].stderr
    assert "ghost_batch_size: 2\n" in (tmp_path / "run/recipe.yaml").read_text()


def test_signal_stops_all_processes_after_the_same_step(class_folders, tmp_path):
    """Only one process, any of them, receives it."""
    args = ("train", class_folders, *ARGS, "--epochs", "40", "--output", tmp_path / "run", "--workers", "1")
    rarely = ("--set", "checkpoint_minutes=60")
    running = started_together(2, *args, *rarely, cwd=tmp_path)
    wait_until(lambda: steps_done(tmp_path / "run") >= 3, *running)
    for reader in psutil.Process(running[1].process.pid).children():
        reader.terminate()  # torchrun signals the whole process group
    running[1].process.terminate()
    first, second = (one.end() for one in running)
    assert first.returncode == 130, first.stderr
    assert "--resume" in first.stderr
    assert second.stderr == ""
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    step = int(checkpoint.stem.removeprefix("step_"))
    assert step >= 3
    assert len(losses(tmp_path / "run")) == step


def test_restarted_launch_resumes_its_run(class_folders, tmp_path):
    """As with torchrun: it resumes its own run, not another in the same folder."""
    args = ("train", class_folders, *ARGS, "--epochs", "16")
    other = effnetv2_together(2, *args, "--epochs", "0.4", cwd=tmp_path, launch="another")
    assert other[0].returncode == 0, other[0].stderr
    (older,) = (tmp_path / "runs").iterdir()
    running = started_together(2, *args, cwd=tmp_path)
    wait_until(lambda: len(list((tmp_path / "runs").iterdir())) == 2, *running)
    (run,) = set((tmp_path / "runs").iterdir()) - {older}
    wait_until(lambda: steps_done(run) >= 4, *running)
    running[1].process.kill()
    survivor, _ = (one.end() for one in running)
    assert survivor.returncode == 2
    assert "lost another one" in survivor.stderr
    again = effnetv2_together(2, *args, cwd=tmp_path, restarts=1)
    assert again[0].returncode == 0, again[0].stderr
    assert mentions(again[0].stdout, "restart 1")
    assert mentions(again[0].stdout, "from step")
    assert (run / "model.safetensors").exists()
    assert len(list((tmp_path / "runs").iterdir())) == 2
    steps = [row["step"] for row in rows(run) if row["kind"] == "train"]
    assert steps == sorted(set(steps)), "each row once"


def test_folder_of_another_run_is_refused_at_each_restart(class_folders, tmp_path):
    args = ("train", class_folders, *ARGS, "--epochs", "0.4", "--output", tmp_path / "run")
    assert effnetv2(*args, cwd=tmp_path).returncode == 0
    for restarts in (0, 1):
        first, _ = effnetv2_together(2, *args, cwd=tmp_path, restarts=restarts)
        assert first.returncode == 2
        assert mentions(first.stderr, "run", "already")


def test_images_missing_on_another_machine_are_refused(tmp_path):
    paint(tmp_path / "a/1.jpg", (200, 0, 0))
    table = pd.DataFrame({"path": ["a/1.jpg"], "label": ["a"], "split": ["train"], "group": [np.nan]})
    dataset = ImageDataset(root=tmp_path, source="a", table=table, class_names=("a",))
    require_images_here(dataset, World(rank=8, size=16, local_rank=0, local_size=8))
    (tmp_path / "a/1.jpg").unlink()
    with pytest.raises(InputError, match=mentioning("a/1.jpg", "8")):
        require_images_here(dataset, World(rank=8, size=16, local_rank=0, local_size=8))
    paint(tmp_path / "a/2.jpg", (200, 0, 0))
    damaged = pd.concat([table, table.assign(path="a/2.jpg")], ignore_index=True)
    require_images_here(replace(dataset, table=damaged), World(rank=8, size=16, local_rank=0, local_size=8))
    require_images_here(
        dataset, World(rank=9, size=16, local_rank=1, local_size=8)
    )  # one process per machine reports it


def test_unreadable_images_of_all_processes_are_counted(class_folders, tmp_path):
    """5 % of 39 training images are less than two."""
    args = ("train", class_folders, *ARGS, "--epochs", "100", "--output", tmp_path / "run")
    running = started_together(2, *args, cwd=tmp_path)
    wait_until(lambda: steps_done(tmp_path / "run") >= 1, *running)
    images = pd.read_csv(tmp_path / "run/dataset.csv").query("split == 'train'").groupby("label").head(1)
    lost = {Path(path).name for path in images["path"]}
    assert len(lost) == 3
    for file in class_folders.rglob("*.jpg"):
        if file.name in lost:
            file.write_bytes(b"unreadable")
    ended = [one.end() for one in running]
    # One or both processes fail: each counts the images of all.
    messages = [one.stderr for one in ended if one.returncode == 2]
    assert messages
    assert all(mentions(message, "2", "39", "unreadable") for message in messages)
    assert {Path(path).name for path in pd.read_csv(tmp_path / "run/skipped.csv")["path"]} < lost


def test_outage_in_validation_is_reported_once_and_keeps_the_step(class_folders, tmp_path):
    """The images of val are removed after the first rows; the first process has all predictions and reports it."""
    args = ("train", class_folders, *ARGS, "--epochs", "100", "--output", tmp_path / "run")
    running = started_together(2, *args, "--set", "checkpoint_minutes=60", cwd=tmp_path)
    wait_until(lambda: steps_done(tmp_path / "run") >= 1, *running)
    held_out = {Path(path).name for path in pd.read_csv(tmp_path / "run/dataset.csv").query("split == 'val'")["path"]}
    for file in class_folders.rglob("*.jpg"):
        if file.name in held_out:
            file.unlink()
    first, second = (one.end() for one in running)
    assert first.returncode == 2
    assert re.search(r"[5-9] of the 9 images to be evaluated can't be read any more", first.stderr)
    assert first.stderr.count("can't be read any more") == 1
    assert second.returncode == 1
    assert not any(word in second.stderr for word in ("effnetv2:", "Traceback"))  # PyTorch may report a lost connection
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    saved_step = int(checkpoint.stem.removeprefix("step_"))
    assert 0 <= saved_step - rows(tmp_path / "run")[-1]["step"] < 2, "there is a row for every other step"
