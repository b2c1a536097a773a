"""The table of a recorded study: a row for each network, and next to it what all rows have in common."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import begun
from benchmarks.search_trials import GONE_ON_WITH, drawn

from efficientnetv2.nas.space import Space
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.utils.io import write_text_atomically

MEASURED = (
    "top1", "step_seconds", "step_spread", "step_foretold", "step_first_seconds", "step_first_spread", "parameters",
    "multiply_adds", "peak_memory_bytes", "epochs", "seconds", "curve", "failure",
)  # fmt: skip
STEP = ("step_seconds", "step_spread", "step_foretold", "step_first_seconds", "step_first_spread")


@dataclass
class Record:
    """The table on disk.

    Args:
        table: CSV; what its rows have in common lies next to it as JSON.
        space: of the networks.
    """

    table: Path
    space: Space

    @property
    def columns(self) -> list[str]:
        """Of the table."""
        return ["number", *(name for name, _ in self.space.decisions), *MEASURED]

    def rows(self) -> list[dict[str, str]]:
        """Those that are there."""
        if not self.table.exists():
            return []
        with self.table.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def points(self) -> list[Point]:
        """The networks as they were drawn, as far as there are rows: a row's number is a place here."""
        return drawn(self.space, 1 + max((int(row["number"]) for row in self.rows()), default=-1))

    @property
    def about(self) -> Path:
        """What all rows have in common."""
        return self.table.with_suffix(".json")

    @property
    def common(self) -> dict[str, Any]:
        """What stands there."""
        found: dict[str, Any] = json.loads(self.about.read_text(encoding="utf-8"))
        return found

    @property
    def twice(self) -> Path:
        """The second measurements of some steps."""
        return self.table.with_name(f"{self.table.stem}_twice.json")

    def timed_twice(self) -> list[dict[str, Any]]:
        """Those that are there."""
        return json.loads(self.twice.read_text(encoding="utf-8")) if self.twice.exists() else []

    @property
    def longer(self) -> Path:
        """What became of those that were trained longer."""
        return self.table.with_name(f"{self.table.stem}_longer.json")

    def trained_longer(self) -> list[dict[str, Any]]:
        """Those that are there."""
        return json.loads(self.longer.read_text(encoding="utf-8")) if self.longer.exists() else []

    def begin(self, common: dict[str, Any]) -> dict[str, Any]:
        """Write down what all rows have in common, or refuse to mix a table with rows of another kind."""
        for file in (self.table, self.longer):
            if file.exists() and not self.about.exists():
                raise SystemExit(f"{file} is there without {self.about.name}; give another --table.")
        return begun(self.about, common, GONE_ON_WITH, "give another --table")

    def add(self, number: int, point: Point, found: dict[str, Any]) -> None:
        """Append a row; the file is whole at every moment."""
        row = {"number": number, **self.space.choices(point), **found}
        self._write([*self.rows(), {name: "" if row[name] is None else row[name] for name in self.columns}])

    def change(self, number: int, **found: Any) -> None:
        """Let other values stand in some columns of a row."""
        self._write([row | (found if int(row["number"]) == number else {}) for row in self.rows()])

    def forget_steps(self) -> None:
        """Let no step be timed: what is measured again is of another machine or another version of the code."""
        self.twice.unlink(missing_ok=True)
        self._write([row | dict.fromkeys(STEP, "") for row in self.rows()])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda one: int(one["number"])))
        write_text_atomically(self.table, text.getvalue())


def short(value: Any) -> Any:
    """As a table holds it."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
