"""A run's folder while the run begins, and while it is under way: nobody else begins one there, or goes on with it."""

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
from efficientnetv2.utils.shell import shell_join


def validate_new_run_dir(path: Path) -> None:
    """A new run's folder is new, empty, or what is left of a run that never began; an inspection may lie in it.

    A table called ``manifest.csv`` may be anybody's: only beside the beginning of a run is it a run's.

    Raises:
        InputError: it holds a run, or something else.
    """
    if (path / "recipe.yaml").exists():
        if RunDir(path).finished:
            raise InputError(f"--out {path} holds a run already, which has finished. Give another folder.")
        go_on = shell_join(
            ["effnetv2", "train", "DATA", "--out", str(path), "--resume"]
        )  # whatever verb asks
        raise InputError(
            f"--out {path} holds a run already. Go on with it by --resume ({go_on}), or give another folder."
        )
    ours = {"probe", "against", "inspection", LOCK}
    if _is_beginning(path / "beginning.json"):
        ours |= {"beginning.json", "log.txt", "manifest.csv", "skipped.csv"}
    there = [file.name for file in path.iterdir()] if path.is_dir() else []
    others = [name for name in there if name not in ours and not name.endswith(".partial")]
    if others:
        raise InputError(
            f"--out {path} holds something that is no run ({shorten(others, 3)}). Give another folder."
        )


def _is_beginning(file: Path) -> bool:
    """Whether a run has written it."""
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(plain, dict) and {"command", "preprocessing"} <= plain.keys()


def new_run_path(runs: Path, name: str) -> Path:
    """A folder under ``runs`` that is not there yet: name, date and a number if need be."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}_{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}"
    for number in range(1000):
        path = runs / (stem if number == 0 else f"{stem}_{number}")
        if not path.exists():
            return path
    raise InputError(f"{runs} holds a thousand runs of this second; give --out.")


def newest_run(runs: Path) -> Path | None:
    """The run that was begun or went on last; None if there is none."""
    recipes = runs_newest_first(runs)
    return recipes[0].parent if recipes else None


def runs_newest_first(runs: Path) -> list[Path]:
    """The ``recipe.yaml`` of every run; first that of the run that was begun or went on last."""

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
    """A folder in which, within, no other run begins; ended by an error or Ctrl-C, it goes if it is empty.

    Between the choice of a folder and the first file in it every picture is looked at, and meanwhile another run may
    have chosen the same. The claim is a lock of the operating system, which ends with the process that holds it: a
    beginning that was killed bars nobody.

    Args:
        path: of the folder, which may be there.
        name: what the folder is called after, where nobody has named it: then the next free one under the same folder
            is taken instead of one that another run has by now. None refuses that one.
        refuse: raises an InputError for a folder in which nothing may be begun.

    Yields:
        The folder, made.

    Raises:
        InputError: another run begins there, or ``refuse`` raises it; or the folder can't be made.
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
    """Within, nobody else goes on with what was begun in a folder: two would write the same checkpoints.

    Like a claim it is a lock of the operating system: a run that was killed bars nobody. Of many processes of one run
    the first holds it for all.

    Args:
        path: of the folder, which is there.

    Raises:
        InputError: another process is at work there; or the folder can't be written into.
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
    """Whether a process is at work in a folder at this moment, ``lock_run_dir`` by it.

    A file that a killed run has left says nothing; its lock has ended with the process.

    Args:
        path: of the folder.

    Returns:
        False too where it can't be known: of a folder that may not be written into, or of a process on another machine
        whose locks the file system does not pass on.
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
    with output_dir(path, "--out"), locked(path / LOCK, f"--out {path}", taken=taken, fix=fix):
        refuse(path)
        yield
