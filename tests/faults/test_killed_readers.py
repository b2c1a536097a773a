"""Processes that read images, when the run or such a process is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from tests.command_line import started
from tests.faults.test_kill_and_resume import QUICK, start, steps_done
from tests.messages import mentions

from efficientnetv2.utils import processes
from efficientnetv2.utils.processes import remove_leftovers

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


IN_A_FOLDER = """
import os, signal, sys, multiprocessing.util
from efficientnetv2.utils.processes import own_folder
folder = own_folder()
print(folder, multiprocessing.util.get_temp_dir(), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "alive":
    sys.stdin.readline()
"""


@pytest.fixture
def short():
    """A folder with a path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


@pytest.mark.parametrize("end", ["alive", "killed", "ended"])
def test_temporary_folder_of_an_ended_process_is_removed_by_the_next_process(end, short, monkeypatch):
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_FOLDER, end], env={**os.environ, "TMPDIR": str(short)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        folder, sockets = map(Path, process.stdout.readline().split())
        assert folder.parent == short
        assert sockets.parent == folder, "what multiprocessing puts aside goes with it"
        if end != "alive":
            process.communicate()
            assert folder.exists() == (end == "killed")
        remove_leftovers(short)
        assert folder.exists() == (end != "ended"), "it is young, and may not be locked yet"
        monkeypatch.setattr(processes, "_MIN_AGE_S", -1.0)
        others = short / "effnetv2-of-somebody-else"
        others.mkdir()
        remove_leftovers(short)
        assert folder.exists() == (end == "alive")
        assert others.exists()
        if end == "alive":
            process.communicate("\n")
            assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has a temporary folder for each user")
def test_temporary_folder_of_another_user_is_not_changed(short, monkeypatch):
    """Its lock may be a link to a file of this user, which locking would empty."""
    monkeypatch.setattr(processes, "_MIN_AGE_S", -1.0)
    mine, theirs = short / "mine.txt", short / "effnetv2-theirs"
    mine.write_text("kept")
    theirs.mkdir()
    (theirs / "owner.lock").symlink_to(mine)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    remove_leftovers(short)
    assert theirs.exists()
    assert mine.read_text() == "kept"
    monkeypatch.undo()
    monkeypatch.setattr(processes, "_MIN_AGE_S", -1.0)
    (theirs / "owner.lock").unlink()
    (theirs / "owner.lock").touch()
    remove_leftovers(short)
    assert not theirs.exists(), "of this user it is"
