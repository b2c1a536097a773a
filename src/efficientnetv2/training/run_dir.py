"""The run folder: everything a run leaves, in one place that explains itself."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.checkpoint import saved_steps
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import (
    hint_for_os_error,
    read_object,
    remove_partial,
    write_atomically,
    write_text_atomically,
)
from efficientnetv2.utils.logs import Recorder
from efficientnetv2.utils.memory import first_line
from efficientnetv2.utils.shell import shell_join

if TYPE_CHECKING:
    from efficientnetv2.training.tensorboard import SummaryWriter

_logger = logging.getLogger(__name__)


# What a run that has come to its end writes beside its model file, in this order.
REPORT_FILES = ("report.json", "report.html", "predictions.csv")
# What a run holds while it begins (``training.run_lock``); only one that was killed then leaves it.
LOCK = "beginning.lock"
# Likewise while it is under way.
RUNNING = "running.lock"
# All that a run leaves, by their names in its folder.
RUN_FILES = (
    "recipe.yaml", "beginning.json", "manifest.csv", "skipped.csv", "metrics.jsonl", "log.txt", "tensorboard",
    "checkpoints", "model.safetensors", "probe", "against", LOCK, RUNNING, *REPORT_FILES,
)  # fmt: skip

# What a run needs of its beginning to go on.
_NEEDED = ("command", "chosen", "preprocessing", "groups_at_a_time")
_DAMAGED = ".damaged"  # behind the name of a file that was set aside


class RunDir:
    """A folder under ``runs/`` and what lies in it, ``RUN_FILES``; the report is written beside them.

    Args:
        path: of the folder; made if need be.

    Raises:
        InputError: the folder can't be made.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {path}: {error.strerror or error}. Give another folder.") from error
        self.path = path
        self._board: SummaryWriter | None = None
        self._skipped = self._skipped_before()

    @property
    def recipe_file(self) -> Path:
        """The settled recipe."""
        return self.path / "recipe.yaml"

    @property
    def manifest_file(self) -> Path:
        """Every picture, its label, its split."""
        return self.path / "manifest.csv"

    @property
    def skipped_file(self) -> Path:
        """Pictures that could not be read, and why."""
        return self.path / "skipped.csv"

    @property
    def metrics_file(self) -> Path:
        """A JSON object per line: the training rows and the validation rows."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What a run needs to go on."""
        return self.path / "checkpoints"

    @property
    def model_file(self) -> Path:
        """The shareable result."""
        return self.path / "model.safetensors"

    @property
    def beginning_file(self) -> Path:
        """How the run was begun: command, and what was chosen for the user."""
        return self.path / "beginning.json"

    @property
    def reported(self) -> bool:
        """Whether the report is whole."""
        return all((self.path / name).exists() for name in REPORT_FILES)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: there is a model file, and a report or nothing to make one from.

        A run that was killed between the two still has its checkpoints, from which it goes on.
        """
        return self.model_file.exists() and (self.reported or not saved_steps(self.checkpoints))

    def begin(self, recipe: Recipe, dataset: ImageDataset, beginning: dict[str, Any]) -> None:
        """Write down what was decided, before the first step.

        The beginning first, for beside it the rest is known for a run's; the recipe last, for with it the run is there.

        Args:
            recipe: settled.
            dataset: of the pictures.
            beginning: how the run was begun, as plain values.
        """
        remove_partial(self.path)
        for old in (self.checkpoints, self.path / "tensorboard"):
            shutil.rmtree(old, ignore_errors=True)
        self.metrics_file.unlink(missing_ok=True)
        write_text_atomically(self.beginning_file, json.dumps(beginning, indent=2))
        write_atomically(self.manifest_file, dataset.to_csv)
        write_text_atomically(self.recipe_file, recipe.to_yaml())

    def beginning(self) -> dict[str, Any]:
        """What ``begin`` was given.

        Raises:
            InputError: The file is missing or damaged.
        """
        again = shell_join(
            ["effnetv2", "train", str(self.manifest_file), "--recipe", str(self.recipe_file), "--out", "NEW"]
        )
        fix = f"The run can't be resumed. Start a new run with the same recipe and split: {again}"
        plain = read_object(self.beginning_file, *_NEEDED, fix=fix)
        try:
            Preprocessing.from_json(plain["preprocessing"])
            MicrobatchPlan.from_json(plain["groups_at_a_time"])
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{self.beginning_file} is damaged ({first_line(error)}). {fix}") from error
        return plain

    def amend_beginning(self, **changed: Any) -> None:
        """Write down what turned out otherwise than the run was begun with.

        Raises:
            InputError: it can't be written, as on a full disk.
        """
        with _writing(self.beginning_file):
            write_text_atomically(self.beginning_file, json.dumps(self.beginning() | changed, indent=2))

    def record(self, row: dict[str, Any]) -> None:
        """A row for ``metrics.jsonl`` and TensorBoard.

        Raises:
            InputError: it can't be written, as on a full disk.
        """
        with _writing(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        with _writing(self.path / "tensorboard"):
            if self._board is None:
                self._board = _board(self.path / "tensorboard", row["step"])
            for name, value in row.items():
                if name not in {"step", "epoch", "kind"} and isinstance(value, int | float):
                    self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def skip(self, path: str, reason: str) -> bool:
        """Count a picture that could not be read and list it in ``skipped.csv``, once.

        Returns:
            Whether it is new there.

        Raises:
            InputError: it can't be written, as on a full disk.
        """
        if path in self._skipped:
            return False
        with _writing(self.skipped_file), self.skipped_file.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if file.tell() == 0:  # a disk that was full may have left it empty
                writer.writerow(["path", "reason"])
            writer.writerow([path, reason])
        self._skipped.add(path)
        return True

    def _skipped_before(self) -> set[str]:
        return {path for path, _ in read_skipped(self.skipped_file) or ()}

    def set_aside_damaged(self) -> None:
        """Rename a log and a list of skipped images that are damaged, before the run goes on; whole rows stay.

        Raises:
            InputError: A file can't be renamed or written.
        """
        if read_skipped(self.skipped_file) is None:
            _logger.info(quarantine(self.skipped_file, "The list of skipped images starts again."))
        rows, damaged = self._rows()
        if damaged:
            note = quarantine(self.metrics_file, f"The run keeps its {pluralize(len(rows), 'whole row')}.")
            with _writing(self.metrics_file):
                write_text_atomically(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
            _logger.info(note)

    @property
    def skipped(self) -> frozenset[str]:
        """Paths of the pictures skipped so far."""
        return frozenset(self._skipped)

    @property
    def skipped_count(self) -> int:
        """Pictures skipped so far."""
        return len(self._skipped)

    def history(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``, whole ones only."""
        return self._rows()[0]

    def _rows(self) -> tuple[list[dict[str, Any]], bool]:
        """The whole rows of ``metrics.jsonl``, and whether it is damaged."""
        if not self.metrics_file.exists():
            return [], False
        *lines, cut = self.metrics_file.read_bytes().split(b"\n")
        found = [_row(line) for line in lines]
        last = _row(cut)  # a kill or a full disk may cut it off: the resumed run writes it again
        return [row for row in (*found, last) if row is not None], None in found

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps that a resumed run will do again."""
        kept = [json.dumps(row) + "\n" for row in self.history() if row["step"] <= step]
        with _writing(self.metrics_file):
            write_text_atomically(self.metrics_file, "".join(kept))

    def close(self) -> None:
        """Flush TensorBoard's file."""
        board, self._board = self._board, None
        if board is not None:
            with _writing(self.path / "tensorboard"):
                board.close()


class RunLog(Recorder):
    """The lines of a run with their time: in memory until its folder is there, from then on in ``log.txt``.

    A line that can't be written, as on a full disk, raises InputError where it is logged.
    """

    def __init__(self) -> None:
        super().__init__()
        self._file: Path | None = None
        self._waiting: list[logging.LogRecord] = []

    def write_to(self, folder: Path) -> None:
        """Write what was logged so far, and from now on each line, into ``log.txt`` of a folder."""
        self._file = folder / "log.txt"
        waiting, self._waiting = self._waiting, []
        for record in waiting:
            self.emit(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or keep it until there is a file."""
        if self._file is None:
            self._waiting.append(record)
            return
        with _writing(self._file), self._file.open("a", encoding="utf-8", errors="backslashreplace") as file:
            when = datetime.fromtimestamp(record.created)
            file.write(f"{when:%Y-%m-%d %H:%M:%S}  {record.getMessage()}\n")


class NullRunDir(RunDir):
    """The run folder as all processes but the first have it: what they would write is left to the first.

    Args:
        path: of the folder, which may lie on another machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._skipped: set[str] = set()

    def record(self, row: dict[str, Any]) -> None:
        """Written by the first process."""

    def amend_beginning(self, **changed: Any) -> None:
        """Written by the first process."""

    def skip(self, path: str, reason: str) -> bool:
        """Listed by the first process; counted here too."""
        new = path not in self._skipped
        self._skipped.add(path)
        return new

    def history(self) -> list[dict[str, Any]]:
        """Known to the first process."""
        return []

    def forget_after(self, step: int) -> None:
        """Done by the first process."""

    def close(self) -> None:
        """Nothing is open."""


def read_skipped(file: Path) -> list[tuple[str, str]] | None:
    """Path and reason of each image that a list names; none where there is no such file. None if it is damaged.

    Args:
        file: ``skipped.csv``. A full disk may have cut it off, even within its first line.
    """
    if not file.exists():
        return []
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (UnicodeDecodeError, csv.Error):
        return None
    return [(path, row.get("reason") or "") for row in rows if (path := row.get("path"))]


def quarantine(file: Path, then: str) -> str:
    """Rename a damaged file of a run, and say so in a line.

    Args:
        file: To rename.
        then: What happens without it, as a sentence.

    Raises:
        InputError: It can't be renamed.
    """
    aside = file.with_name(file.name + _DAMAGED)
    with _writing(file):
        file.replace(aside)
    return f"{file} is damaged. It was renamed to {aside.name}. {then}"


def _row(line: bytes) -> dict[str, Any] | None:
    """A row of ``metrics.jsonl``; None of a line that is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        return None
    return row if isinstance(row.get("step"), int) and isinstance(row.get("epoch"), int | float) else None


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Within, the file of a run is written.

    Raises:
        InputError: it can't be; the run is told how it goes on.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{file} can't be written ({error.strerror or error}). "
            f"{hint_for_os_error(error)}, then go on with --resume."
        ) from error


def _board(folder: Path, step: int) -> SummaryWriter:
    """A TensorBoard log that continues at a step."""
    from efficientnetv2.training.tensorboard import SummaryWriter  # takes half a second

    return SummaryWriter(str(folder), purge_step=step)
