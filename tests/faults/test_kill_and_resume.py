"""A killed and resumed run ends with the same bits as an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.command_line import NETWORK, Running, effnetv2, killed_at, started
from tests.messages import mentions

# Dropout, stochastic depth, RandAugment, mixup, groups and class sampling draw random numbers. With a checkpoint after
# each step, many kills interrupt a save.
ARGS = (
    "--model", NETWORK, "--weights", "none", "--device", "cpu", "--epochs", "24", "--set", "batch_size=8",
    "--set", "ghost_batch_size=4", "--set", "checkpoint_minutes=0", "--set", "class_sampling=equal",
    "--set", "progressive={stages: 2, image_size: {start: 32, end: 48}, dropout: {start: 0.1, end: 0.4}, "
    "drop_path: 0.2, randaugment: {start: 5, end: 15}, mixup_alpha: {start: 0, end: 0.4}}",
)  # fmt: skip

# For tests that do not depend on the moment of a kill.
QUICK = (*ARGS, "--workers", "0")


def bits(run: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(run / "model.safetensors").items()}


def start(data: Path, run: Path, workers: int, *more: str) -> Running:
    args = ("train", data, *ARGS, "--workers", workers, "--output", run, *more)
    return started(*args, cwd=data.parent)


def steps_done(run: Path) -> int:
    rows = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    return len(rows)


def kill_before_the_first_step(data: Path, run: Path, workers: int, *more: str) -> None:
    """Send SIGKILL as soon as the folder exists, while the files of the run are written."""
    process = start(data, run, workers, *more)
    while not run.exists() and process.is_running():
        time.sleep(0.001)
    process.kill()


def kill_in_the_middle(data: Path, run: Path, workers: int, moment: random.Random, *more: str) -> None:
    """Send SIGKILL after a random number of further rows and a random part of a step."""
    process = start(data, run, workers, *(["--resume"] if run.exists() else []), *more)
    enough = steps_done(run) + moment.randint(1, 3)
    while steps_done(run) < enough and process.is_running():
        time.sleep(0.01)
    time.sleep(moment.random() * 0.1)
    assert process.is_running(), process.end()
    process.kill()


def losses(run: Path) -> list[tuple[object, object]]:
    """Return the steps and losses of all training rows, including repeated rows."""
    return [(row["step"], row["loss"]) for row in rows(run) if row["kind"] == "train"]


@pytest.mark.slow
def test_run_killed_at_five_random_moments_ends_with_the_same_bits(class_folders, tmp_path):
    """The killed run has two workers, the uninterrupted run none."""
    alone = effnetv2("train", class_folders, *ARGS, "--workers", "0", "--output", tmp_path / "alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    moment = random.Random(2)
    kill_before_the_first_step(class_folders, tmp_path / "killed", 2)
    for _ in range(5):
        kill_in_the_middle(class_folders, tmp_path / "killed", 2, moment)
        assert not (tmp_path / "killed/model.safetensors").exists(), "it was killed too late to mean anything"
    args = ("train", class_folders, *ARGS, "--workers", "2", "--output", tmp_path / "killed", "--resume")
    done = effnetv2(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert bits(tmp_path / "killed") == bits(tmp_path / "alone")
    assert losses(tmp_path / "killed") == losses(tmp_path / "alone"), "every row once, with the same loss"


@pytest.mark.slow
def test_killed_run_selects_the_same_weights(class_folders, tmp_path):
    """Without workers. The best validation on minival may be before or after a kill."""
    minival = ("--set", "minival=9", "--set", "optimizer.lr=0.02", "--set", "ema_decay=0.3")
    args = ("train", class_folders, *ARGS, *minival, "--workers", "0", "--output")
    alone = effnetv2(*args, tmp_path / "alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    kill_before_the_first_step(class_folders, tmp_path / "killed", 0, *minival)
    for number in range(3):
        kill_in_the_middle(class_folders, tmp_path / "killed", 0, random.Random(number), *minival)
    done = effnetv2(*args, tmp_path / "killed", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert bits(tmp_path / "killed") == bits(tmp_path / "alone")
    chosen = [
        {name: value for name, value in report(tmp_path / name).items() if name.startswith("selected")}
        for name in ("alone", "killed")
    ]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 5
    assert losses(tmp_path / "killed") == losses(tmp_path / "alone")


def report(run: Path) -> dict[str, object]:
    return json.loads((run / "report.json").read_text())


def rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_run_without_checkpoints_resumes_at_step_0(class_folders, tmp_path):
    args = ("train", class_folders, *QUICK, "--epochs", "0.5", "--output", tmp_path / "run")
    done = effnetv2(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = bits(tmp_path / "run")
    (tmp_path / "run/model.safetensors").unlink()  # a finished run has no checkpoints
    done = effnetv2(*args, "--resume", cwd=tmp_path)
    assert mentions(done.stdout, "from step 0")
    assert bits(tmp_path / "run") == first


def test_mistyped_run_is_not_resumed_as_a_new_run(class_folders, tmp_path):
    """The message has the command that resumes the newest unfinished run."""
    (tmp_path / "runs").mkdir()
    args = ("train", class_folders, *QUICK, "--resume")
    none = effnetv2(*args, cwd=tmp_path)
    assert none.returncode == 2
    assert mentions(none.stderr, "no run", "runs")
    for number, name in enumerate(("old", "newer", "finished")):
        (tmp_path / "runs" / name).mkdir()
        recipe = tmp_path / "runs" / name / "recipe.yaml"
        recipe.write_text("")
        os.utime(recipe, (1e9 + number, 1e9 + number))
    for name in ("report.json", "model.safetensors"):
        (tmp_path / "runs/finished" / name).write_text("{}")
    for typo in ("runs/newr", "elsewhere", "runs"):
        done = effnetv2(*args, "--output", typo, cwd=tmp_path)
        assert done.returncode == 2, done.stdout
        assert mentions(done.stderr, typo, "no run")
        assert mentions(done.stderr, "--output", "--resume")
        assert "runs/newer" in done.stderr
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "made").mkdir()  # as by a job script or an interrupted start
    assert effnetv2(*args, "--epochs", "0.5", "--output", "made", cwd=tmp_path).returncode == 0


def test_resume_accepts_the_same_number_of_steps(class_folders, tmp_path):
    """A launcher restarts the run with the same options."""
    epochs = QUICK.index("--epochs")
    without = (*QUICK[:epochs], *QUICK[epochs + 2 :])
    args = ("train", class_folders, "--output", tmp_path / "run", *without)
    assert effnetv2(*args, "--set", "steps=2", cwd=tmp_path).returncode == 0
    again = effnetv2(*args, "--set", "steps=2", "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "has finished" in again.stdout
    more = effnetv2(*args, "--set", "steps=3", "--resume", cwd=tmp_path)
    assert more.returncode == 2
    assert "steps=3 here" in more.stderr


def test_full_disk_during_a_save_keeps_the_previous_checkpoint(class_folders, tmp_path):
    """A full disk is simulated by a limit on the file size."""
    args = ["train", str(class_folders), *QUICK, "--epochs", "1", "--output", str(tmp_path / "run")]
    script = (
        "import resource, sys\n"
        "from efficientnetv2.cli import main as cli\n"
        "from efficientnetv2.training import trainer\n"
        "real = trainer.save_checkpoint\n"
        "def save(folder, kept, step):\n"
        "    if step == 3:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        "    return real(folder, kept, step)\n"
        "trainer.save_checkpoint = save\n"
        f"sys.argv = ['effnetv2', *{args!r}]\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert mentions(done.stderr, "step_00000003.pt", "can't be written")
    assert "--resume" in done.stderr
    left = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert left == {"step_00000001.pt", "step_00000002.pt"}
    resumed = effnetv2(*args, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert mentions(resumed.stdout, "from step 2")


def test_damaged_checkpoint_is_replaced_by_the_previous_one(class_folders, tmp_path):
    args = ("train", class_folders, *QUICK, "--epochs", "0.5", "--output", tmp_path / "run")
    killed_at("efficientnetv2.evaluation.report:Report.write", *args, cwd=tmp_path)
    first = bits(tmp_path / "run")
    files = sorted((tmp_path / "run/checkpoints").iterdir())
    contents = {file: file.read_bytes() for file in files}
    for file in files:
        file.write_bytes(b"nothing left")
    done = effnetv2(*args, "--resume", cwd=tmp_path)
    assert done.returncode == 2
    assert "is damaged" in done.stderr
    files[0].write_bytes(contents[files[0]])
    files[1].write_bytes(contents[files[1]][:100_000])
    done = effnetv2(*args, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{files[1].name} is damaged" in done.stdout
    assert mentions(done.stdout, "from step 1 of 2")
    assert bits(tmp_path / "run") == first
    assert list((tmp_path / "run/checkpoints").iterdir()) == [], "damaged ones have gone with the others"


def test_ctrl_c_saves_the_step_and_prints_the_command_to_resume(class_folders, tmp_path):
    """Checkpoints are an hour apart, so the signal has caused the save. test_signals covers SIGTERM."""
    rarely = ("--set", "checkpoint_minutes=60", "--set", "progressive.stages=1")
    rarely = (*rarely, "--epochs", "20")
    process = start(class_folders, tmp_path / "run", 0, *rarely)
    while steps_done(tmp_path / "run") < 4 and process.is_running():
        time.sleep(0.01)
    os.kill(process.process.pid, signal.SIGINT)
    ended = process.end()
    assert ended.returncode == 130, ended
    assert "--resume" in ended.stderr
    assert "Traceback" not in ended.stderr
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    args = ("train", class_folders, *QUICK, *rarely, "--output", tmp_path / "run", "--resume")
    done = effnetv2(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, int(checkpoint.stem.removeprefix("step_")), "from step")
