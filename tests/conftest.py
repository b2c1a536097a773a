"""What tests share: small pictures on disk, and the command line as a subprocess."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from efficientnetv2 import cli
from efficientnetv2.commands import evaluate_job, train_job  # noqa: F401 - imported once, for every command to come

# How long an example takes says more about the machine than about the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# Tests run beside each other and beside data workers: a thread each is fastest, and exact.
torch.set_num_threads(1)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def paint(path: Path, colour: tuple[int, int, int], number: int = 0, px: int = 48) -> Path:
    """A noisy picture of one colour: easy to learn, different for every number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(abs(hash((colour, number))) % 2**32).integers(-40, 40, (px, px, 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


COLOURS = {"red": (200, 60, 60), "green": (60, 190, 60), "blue": (50, 70, 200)}


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Three classes of 16 pictures each, a folder per class."""
    for name, colour in COLOURS.items():
        for number in range(16):
            paint(tmp_path / "pictures" / name / f"{name}_{number:02d}.jpg", colour, number)
    return tmp_path / "pictures"


def effnetv2(*arguments: object, cwd: Path, timeout: float = 300, **environment: str) -> Done:
    """Run the command line as a user does: a process of its own, with its own streams and exit code.

    The process is forked off this one, which has imported everything already: a fresh interpreter would spend
    most of a test's time on importing torch. ``effnetv2_fresh`` starts one.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = multiprocessing.get_context("fork").Process(
            target=_command,
            args=([str(word) for word in arguments], cwd, environment, out.fileno(), err.fileno()),
        )
        with warnings.catch_warnings():
            # Python 3.12 and later warn of forking with threads about; none of ours runs between two tests.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"effnetv2 {arguments} has not ended after {timeout} s")
        out.seek(0)
        err.seek(0)
        return Done(process.exitcode, out.read(), err.read())


def _command(words: list[str], cwd: Path, environment: dict[str, str], out: int, err: int) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.update({"COLUMNS": "200", "NO_COLOR": "1", **environment})
    sys.argv = ["effnetv2", *words]
    code = 1
    try:
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def effnetv2_fresh(*arguments: object, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-m", "efficientnetv2.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


# The smallest run that goes the whole way: V2-B0 at 32 px, a few steps, two stages.
TINY = (
    "--model", "efficientnetv2_b0", "--epochs", "1", "--batch-images", "8", "--workers", "0", "--device", "cpu",
    "--set", "progressive.stages=2", "--set", "progressive.image_px={start: 32, end: 64}",
)  # fmt: skip
