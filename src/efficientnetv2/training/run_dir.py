"""The run directory: its path, its locks, and everything that a run leaves.

One process starts or resumes a run in a directory at a time.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.checkpoints import checkpoint_steps
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError, error_summary, shorten
from efficientnetv2.utils.io import (
    entry_names,
    locked,
    output_dir,
    read_object,
    read_object_or_empty,
    remove_partial,
    write_atomically,
    write_text_atomically,
    writing,
)
from efficientnetv2.utils.shell import shell_join

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# What a finished run writes next to its model file, in this order.
REPORT_FILES = ("report.json", "report.html", "predictions.csv")
# Where runs without an output folder go.
RUNS = Path("runs")
# Locks of a run that begins and of one under way; only a killed run leaves them.
LOCK, RUNNING = "beginning.lock", "running.lock"
# All that a run leaves, by their names in its folder.
RUN_FILES = (
    "recipe.yaml", "run.json", "dataset.csv", "skipped.csv", "metrics.jsonl", "log.txt", "tensorboard",
    "checkpoints", "model.safetensors", "probe", "against", LOCK, RUNNING, *REPORT_FILES,
)  # fmt: skip
# By which a run directory, and that of a cross-validation, is recognized.
RUN_MARKERS = ("run.json", "crossval.json")
# What a run needs of its beginning to resume.
_NEEDED = ("command", "auto_choices", "preprocessing", "microbatches")
# Processes that read images for a run were forked with its lock. Where it is killed, they outlive it by up to five
# seconds (PyTorch's MP_STATUS_CHECK_INTERVAL).
_PATIENCE_S = 10.0


class RunDir:
    """A run directory and the files in it (``RUN_FILES``). It is made if need be.

    Raises InputError if it can't be made.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"`output` {path}: {error.strerror or error}. Give another folder.") from error
        self._set_paths(path)
        self.skipped.update(name for name, _ in read_skipped(self.skipped_file))

    def _set_paths(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"  # Resolved recipe
        self.dataset_file = path / "dataset.csv"  # Every image with its label and split
        self.skipped_file = path / "skipped.csv"  # Unreadable images, and why
        self.metrics_file = path / "metrics.jsonl"  # A training or validation row per line
        self.checkpoints = path / "checkpoints"
        self.model_file = path / "model.safetensors"
        self.beginning_file = path / "run.json"  # Command, and what was resolved
        self.skipped: set[str] = set()  # Paths of the images skipped so far
        self._board: SummaryWriter | None = None

    @property
    def reported(self) -> bool:
        """Whether the report is complete."""
        return all((self.path / name).exists() for name in REPORT_FILES)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: there is a model file, and a report or nothing to make one from.

        A run that was killed between the two still has its checkpoints, from which it resumes.
        """
        return self.model_file.exists() and (self.reported or not checkpoint_steps(self.checkpoints))

    def begin(self, recipe: Recipe, dataset: ImageDataset, beginning: dict[str, Any]) -> None:
        """Write what was resolved, before the first step.

        ``beginning`` comes first, as it marks the other files as a run's; the recipe comes last, as with it the run
        exists.
        """
        remove_partial(self.path)
        for old in (self.checkpoints, self.path / "tensorboard"):
            shutil.rmtree(old, ignore_errors=True)
        self.metrics_file.unlink(missing_ok=True)
        write_text_atomically(self.beginning_file, json.dumps(beginning | {"recipe": recipe.to_json()}, indent=2))
        write_atomically(self.dataset_file, dataset.to_csv)
        write_text_atomically(self.recipe_file, recipe.to_yaml())

    def beginning(self) -> dict[str, Any]:
        """What ``begin`` was given, with the recipe. Raises InputError if the file is missing or damaged."""
        recipe = ["--recipe", str(self.recipe_file), "--output", "NEW"]
        again = shell_join(["effnetv2", "train", str(self.dataset_file), *recipe])
        fix = f"The run can't be resumed. Start a new run with the same recipe and split: {again}"
        plain = read_object(self.beginning_file, *_NEEDED, fix=fix)
        try:
            Preprocessing.from_json(plain["preprocessing"])
            MicrobatchPlan.from_json(plain["microbatches"])
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{self.beginning_file} is damaged ({error_summary(error)}). {fix}") from error
        return plain

    def amend_beginning(self, **changed: Any) -> None:
        """Change values of ``beginning``."""
        with writing(self.beginning_file):
            write_text_atomically(self.beginning_file, json.dumps(self.beginning() | changed, indent=2))

    def record(self, row: dict[str, Any]) -> None:
        """Write a row to ``metrics.jsonl`` and TensorBoard."""
        with writing(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        with writing(self.path / "tensorboard"):
            if self._board is None:  # one that continues at this step
                # TensorBoard would import TensorFlow if there is one: slow, and it may clash with PyTorch.
                sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
                from torch.utils.tensorboard import SummaryWriter  # takes half a second

                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=row["step"])
            for name, value in row.items():
                if name not in {"step", "epoch", "kind"} and isinstance(value, int | float):
                    self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def skip(self, path: str, reason: str) -> bool:
        """List an unreadable image in ``skipped.csv``, once; returns whether it is new there."""
        if path in self.skipped:
            return False
        mode = "a" if self.skipped else "w"  # the first image starts the list, in place of a damaged or empty one
        with writing(self.skipped_file), self.skipped_file.open(mode, encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if not self.skipped:
                writer.writerow(["path", "reason"])
            writer.writerow([path, reason])
        self.skipped.add(path)
        return True

    def history(self) -> list[dict[str, Any]]:
        """The whole rows of ``metrics.jsonl``: a kill or a full disk may cut off a line."""
        if not self.metrics_file.exists():
            return []
        rows = map(_row, self.metrics_file.read_bytes().split(b"\n"))
        return [row for row in rows if row is not None]

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps that a resumed run will repeat, and damaged ones."""
        rows = [json.dumps(row) + "\n" for row in self.history() if row["step"] <= step]
        with writing(self.metrics_file):
            write_text_atomically(self.metrics_file, "".join(rows))

    def close(self) -> None:
        """Flush TensorBoard's file."""
        board, self._board = self._board, None
        if board is not None:
            with writing(self.path / "tensorboard"):
                board.close()


class NullRunDir(RunDir):
    """The run directory for all processes but the first, which writes for them."""

    def __init__(self, path: Path) -> None:
        self._set_paths(path)

    def record(self, row: dict[str, Any]) -> None:
        """Written by the first process."""

    def amend_beginning(self, **changed: Any) -> None:
        """Written by the first process."""

    def skip(self, path: str, reason: str) -> bool:
        """Listed by the first process; counted here too."""
        new = path not in self.skipped
        self.skipped.add(path)
        return new

    def history(self) -> list[dict[str, Any]]:
        """Known to the first process."""
        return []

    def forget_after(self, step: int) -> None:
        """Done by the first process."""


def read_skipped(file: Path) -> list[tuple[str, str]]:
    """Path and reason of each image in ``skipped.csv``; none if the file is missing or damaged."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (FileNotFoundError, UnicodeDecodeError, csv.Error):
        return []
    return [(path, row.get("reason") or "") for row in rows if (path := row.get("path"))]


def _row(line: bytes) -> dict[str, Any] | None:
    """A row of ``metrics.jsonl``; None if the line is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        return None
    return row if isinstance(row.get("step"), int) and isinstance(row.get("epoch"), int | float) else None


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
    if {"command", "preprocessing"} <= read_object_or_empty(path / "run.json").keys():  # a run has written it
        ours |= {"run.json", "log.txt", "dataset.csv", "skipped.csv"}
    others = [name for name in entry_names(path) if name not in ours and not name.endswith(".partial")]
    if others:
        raise InputError(f"`output` {path} holds files that are not a run ({shorten(others, 3)}). Give another folder.")


def new_run_path(runs: Path, name: str) -> Path:
    """A new path under ``runs``: date, name, and a number if need be."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}_{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}"
    for number in range(1000):
        path = runs / (stem if number == 0 else f"{stem}_{number}")
        if not path.exists():
            return path
    raise InputError(f"{runs} holds a thousand runs of this second. Set `output`.")


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
    taken = f"another process uses this folder. Wait until it ends, or stop it ('lsof {file}' names it). "
    taken += f"If no machine has such a process, remove {file}."  # it stays on a file system without locks
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
