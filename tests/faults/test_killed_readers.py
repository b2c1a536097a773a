"""Processes that read images, when the run or such a process is killed."""

from __future__ import annotations

import sys
import time

import psutil
import pytest
from tests.command_line import started
from tests.faults.test_kill_and_resume import QUICK, start, steps_done
from tests.messages import mentions

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
LONG = ("--set", "checkpoint_minutes=60", "--set", "progressive.stages=1", "--epochs", "60")


def readers_of(process):
    """Return the processes that read images for a running training."""
    return psutil.Process(process.process.pid).children(recursive=True)


def training(class_folders, run, workers):
    process = start(class_folders, run, workers, *LONG)
    until = time.monotonic() + 240
    while not (steps_done(run) >= 3 and readers_of(process)):
        assert process.is_running(), process.end()
        assert time.monotonic() < until
        time.sleep(0.02)
    return process


@linux
def test_readers_end_with_a_killed_run(class_folders, tmp_path):
    process = training(class_folders, tmp_path / "run", 2)
    readers = readers_of(process)
    process.kill()
    _, alive = psutil.wait_procs(readers, timeout=2)
    assert not alive, "PyTorch's own look at the parent comes after 5 s"


@linux
def test_killed_reader_loses_no_step_and_the_error_has_the_command_to_resume(class_folders, tmp_path):
    process = training(class_folders, tmp_path / "run", 1)
    readers_of(process)[0].kill()
    done = process.end()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "A process that reads images was killed" in done.stderr
    assert f"--output {tmp_path / 'run'} --resume" in " ".join(done.stderr.split())
    (checkpoint,) = (tmp_path / "run/checkpoints").glob("step_*.pt")
    step = int(checkpoint.stem.removeprefix("step_"))
    assert step >= 3
    args = ("train", class_folders, *QUICK, *LONG[:-1], "60", "--output", tmp_path / "run", "--resume")
    running = start_again(args, tmp_path)
    assert mentions(running, step, "from step")


def start_again(args, tmp_path):
    """Return the output of a resumed run before its first step."""
    process = started(*args, cwd=tmp_path)
    until = time.monotonic() + 240
    text, output = "", process.folder / "out"
    while "from step" not in text:
        assert process.is_running(), process.end()
        assert time.monotonic() < until
        time.sleep(0.05)
        text = output.read_text() if output.exists() else ""
    process.kill()
    return text
