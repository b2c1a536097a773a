"""Paths of run directories, and their locks: one process starts or resumes a run in a directory at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from efficientnetv2.training.run_dir import LOCK, RUNNING, RunDir
from efficientnetv2.utils.errors import InputError, shorten
from efficientnetv2.utils.io import locked, output_dir
from efficientnetv2.utils.legacy import FILES, run_file
from efficientnetv2.utils.shell import shell_join

# Where runs without an output folder go.
RUNS = Path("runs")
# Processes that read images for a run were forked with its lock. Where it is killed, they outlive it by up to five
# seconds (PyTorch's MP_STATUS_CHECK_INTERVAL).
_PATIENCE_S = 10.0


def validate_new_run_dir(path: Path) -> None:
    """Check that a directory is new, empty, or what is left of a run that never began; an inspection may be in it.

    ``dataset.csv`` may be a user's table: only with the beginning of a run it is a run's.

    Raises InputError if it holds a run, or something else.
    """
    if (path / "recipe.yaml").exists():
        if RunDir(path).finished:
            raise InputError(f"`output` {path} holds a run already, which has finished. Give another folder.")
        command = shell_join(["effnetv2", "train", "DATA", "--output", str(path), "--resume"])
        raise InputError(f"`output` {path} holds a run already. Resume it ({command}), or give another folder.")
    ours = {"probe", "against", "inspection", LOCK}
    if _is_beginning(run_file(path, "run.json")):
        ours |= {"run.json", "log.txt", "dataset.csv", "skipped.csv", *FILES.values()}
    names = [file.name for file in path.iterdir()] if path.is_dir() else []
    others = [name for name in names if name not in ours and not name.endswith(".partial")]
    if others:
        raise InputError(f"`output` {path} holds files that are not a run ({shorten(others, 3)}). Give another folder.")


def _is_beginning(file: Path) -> bool:
    """Whether a run has written it."""
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(plain, dict) and {"command", "preprocessing"} <= plain.keys()


def new_run_path(runs: Path, name: str) -> Path:
    """A new path under ``runs``: date, name, and a number if need be."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}_{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}"
    for number in range(1000):
        path = runs / (stem if number == 0 else f"{stem}_{number}")
        if not path.exists():
            return path
    raise InputError(f"{runs} holds a thousand runs of this second. Set `output`.")


def newest_run(runs: Path) -> Path | None:
    """The run that was started or resumed last; None if there is none."""
    return next((recipe.parent for recipe in runs_newest_first(runs)), None)


def runs_newest_first(runs: Path) -> list[Path]:
    """The ``recipe.yaml`` of every run, the one started or resumed last first."""

    def touched(recipe: Path) -> float:
        metrics = recipe.with_name("metrics.jsonl")
        return max(path.stat().st_mtime for path in (recipe, metrics) if path.exists())

    return sorted(runs.glob("*/recipe.yaml"), key=touched, reverse=True)


@contextmanager
def create_run_dir(
    path: Path, *, name: str | None = None, refuse: Callable[[Path], None] = validate_new_run_dir
) -> Iterator[Path]:
    """A run directory in which no other run begins meanwhile; removed after an error or Ctrl-C if it is empty.

    It is claimed by a lock of the operating system, which ends with the process. With a ``name``, as nobody has chosen
    the directory, one that another run has by now is replaced by the next free one.

    Raises InputError if another run begins there, ``refuse`` raises it, or the directory can't be made.
    """
    fix = "Give another folder."
    with ExitStack() as stack:
        while True:
            try:
                with ExitStack() as attempt:
                    attempt.enter_context(output_dir(path, "`output`"))
                    taken = f"another run is starting there. {fix}"
                    attempt.enter_context(locked(path / LOCK, f"`output` {path}", taken=taken, fix=fix))
                    refuse(path)
                    stack.enter_context(attempt.pop_all())
                break
            except InputError:
                if name is None or not path.exists():  # it can't be made, nor could another
                    raise
                path = new_run_path(path.parent, name)
        yield path


@contextmanager
def lock_run_dir(path: Path) -> Iterator[None]:
    """Within, no other process resumes the run, as two would write the same checkpoints.

    Raises InputError if another process is at work there, or the directory can't be written to.
    """
    file = path / RUNNING
    taken = f"another process uses this folder. Wait until it ends, or stop it ('lsof {file}' names it)."
    fix = "Make the folder writable, or resume a copy of it."
    with locked(file, str(path), taken=taken, fix=fix, patience_s=_PATIENCE_S):
        yield


def is_running(path: Path) -> bool:
    """Whether a process on this machine is at work in a run directory (``lock_run_dir``).

    False also where that can't be known: if the directory is not writable, or the file system does not pass on locks.
    """
    file = path / RUNNING
    if not file.is_file():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False
