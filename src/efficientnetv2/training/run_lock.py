"""Names of new run directories, and locks: one process starts or resumes a run in a directory at a time."""

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

# Where runs without --output go.
RUNS = Path("runs")


def validate_new_run_dir(path: Path) -> None:
    """Check that a directory is new, empty, or what is left of a run that never began; an inspection may be in it.

    ``dataset.csv`` may be a user's table: only with the beginning of a run it is a run's.

    Raises:
        InputError: It holds a run, or something else.
    """
    if (path / "recipe.yaml").exists():
        if RunDir(path).finished:
            raise InputError(f"--output {path} holds a run already, which has finished. Give another folder.")
        go_on = shell_join(
            ["effnetv2", "train", "DATA", "--output", str(path), "--resume"]
        )  # whatever verb asks
        raise InputError(
            f"--output {path} holds a run already. Go on with it by --resume ({go_on}), or give another folder."
        )
    ours = {"probe", "against", "inspection", LOCK}
    if _is_beginning(run_file(path, "run.json")):
        ours |= {"run.json", "log.txt", "dataset.csv", "skipped.csv", *FILES.values()}
    there = [file.name for file in path.iterdir()] if path.is_dir() else []
    others = [name for name in there if name not in ours and not name.endswith(".partial")]
    if others:
        raise InputError(
            f"--output {path} holds something that is no run ({shorten(others, 3)}). Give another folder."
        )


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
    raise InputError(f"{runs} holds a thousand runs of this second; give --output.")


def newest_run(runs: Path) -> Path | None:
    """The run that was started or resumed last; None if there is none."""
    recipes = runs_newest_first(runs)
    return recipes[0].parent if recipes else None


def runs_newest_first(runs: Path) -> list[Path]:
    """The ``recipe.yaml`` of every run, the one started or resumed last first."""

    def touched(recipe: Path) -> float:
        metrics = recipe.with_name("metrics.jsonl")
        return max(path.stat().st_mtime for path in (recipe, metrics) if path.exists())

    return sorted(runs.glob("*/recipe.yaml"), key=touched, reverse=True)


# The processes that read pictures for a run outlive it by up to five seconds where it is killed (PyTorch's
# MP_STATUS_CHECK_INTERVAL), and were forked with its lock.
_PATIENCE_S = 10.0


@contextmanager
def create_run_dir(
    path: Path, *, name: str | None = None, refuse: Callable[[Path], None] = validate_new_run_dir
) -> Iterator[Path]:
    """A run directory in which no other run begins meanwhile; removed after an error or Ctrl-C if it is empty.

    It is claimed by a lock of the operating system, which ends with the process.

    Args:
        path: The directory, which may exist.
        name: Name of the run if nobody has chosen the directory: then the next free one is taken instead of one that
            another run has by now. None refuses that one.
        refuse: Raises an InputError for a directory in which nothing may begin.

    Yields:
        The directory.

    Raises:
        InputError: Another run begins there, ``refuse`` raises it, or the directory can't be made.
    """
    with ExitStack() as kept:
        while True:
            try:
                kept.enter_context(_alone_in(path, refuse))
                break
            except InputError:
                if name is None or not path.exists():  # it can't be made, nor could another
                    raise
                path = new_run_path(path.parent, name)
        yield path


@contextmanager
def lock_run_dir(path: Path) -> Iterator[None]:
    """Within, no other process resumes the run, as two would write the same checkpoints.

    Raises:
        InputError: Another process is at work there, or the directory can't be written to.
    """
    file = path / RUNNING
    taken = (
        "another process is at work in this folder at this moment. Wait for its end, or stop it: 'lsof "
        f"{file}' names it, on the machine that it runs on."
    )
    fix = "Let the folder be written into, or go on with a copy of it elsewhere."
    with locked(file, str(path), taken=taken, fix=fix, patience_s=_PATIENCE_S):
        yield


def is_running(path: Path) -> bool:
    """Whether a process on this machine is at work in a run directory (``lock_run_dir``).

    False also where that can't be known: if the directory is not writable, or the file system does not pass on locks.
    """
    file = path / RUNNING
    if not file.is_file():
        return False
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


@contextmanager
def _alone_in(path: Path, refuse: Callable[[Path], None]) -> Iterator[None]:
    fix = "Give another folder."
    taken = f"another run is beginning there at this moment. {fix}"
    with output_dir(path, "--output"), locked(path / LOCK, f"--output {path}", taken=taken, fix=fix):
        refuse(path)
        yield
