"""The run folder: everything a run leaves, in one place that explains itself."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.files import write_text_atomically
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.training.recipe import Recipe


class RunFolder:
    """A folder under ``runs/`` and what lies in it.

    ``recipe.yaml``, ``manifest.csv``, ``skipped.csv``, ``metrics.jsonl``, ``log.txt``, ``tensorboard/``,
    ``checkpoints/``, ``model.safetensors``; the report is written beside them.

    Args:
        path: of the folder; made if need be.
        say: also gets each line of the log, for the screen.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path, self._say = path, say
        self._board: SummaryWriter | None = None
        self._skipped: set[str] = set()

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

    def begin(self, recipe: Recipe, manifest: Manifest) -> None:
        """Write down what was decided, before the first step."""
        write_text_atomically(self.recipe_file, recipe.to_yaml())
        manifest.to_csv(self.manifest_file)

    def log(self, line: str) -> None:
        """A line for the screen and, with the time, for ``log.txt``."""
        self._say(line)
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {line}\n")

    def record(self, row: dict[str, Any]) -> None:
        """A row for ``metrics.jsonl`` and TensorBoard."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is None:
            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=row["step"])
        for name, value in row.items():
            if name not in {"step", "epoch", "kind"} and isinstance(value, int | float):
                self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def skip(self, path: str, reason: str) -> None:
        """Count a picture that could not be read and list it in ``skipped.csv``, once."""
        if path in self._skipped:
            return
        self._skipped.add(path)
        new = not self.skipped_file.exists()
        with self.skipped_file.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["path", "reason"])
            writer.writerow([path, reason])

    @property
    def skipped_count(self) -> int:
        """Pictures skipped so far."""
        return len(self._skipped)

    def history(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``, whole ones only."""
        if not self.metrics_file.exists():
            return []
        rows = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:  # cut off by a kill: the resumed run writes it again
                continue
        return rows

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps that a resumed run will do again."""
        kept = [json.dumps(row) + "\n" for row in self.history() if row["step"] <= step]
        write_text_atomically(self.metrics_file, "".join(kept))

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._board is not None:
            self._board.close()
            self._board = None


def new_folder(runs: Path, name: str) -> Path:
    """A folder under ``runs`` that is not there yet: name, date and a number if need be."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}_{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}"
    for number in range(1000):
        path = runs / (stem if number == 0 else f"{stem}_{number}")
        if not path.exists():
            return path
    raise InputError(f"{runs} holds a thousand runs of this second; give --out.")


def newest(runs: Path) -> Path:
    """The run that was begun or changed last.

    Raises:
        InputError: there is none.
    """
    recipes = sorted(runs.glob("*/recipe.yaml"), key=lambda path: path.stat().st_mtime)
    if not recipes:
        raise InputError(f"--resume: there is no run under {runs}/. Name its folder with --out.")
    return recipes[-1].parent
