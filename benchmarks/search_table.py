"""Table of a recorded study: a row for each architecture, and a file with the values that all rows share."""

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
    """Table on disk.

    Args:
        table: CSV file. A JSON file next to it has the values that all rows share.
        space: Search space.
    """

    table: Path
    space: Space

    @property
    def columns(self) -> list[str]:
        """Columns of the table."""
        return ["number", *(name for name, _ in self.space.decisions), *MEASURED]

    def rows(self) -> list[dict[str, str]]:
        """Read the rows."""
        if not self.table.exists():
            return []
        with self.table.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def points(self) -> list[Point]:
        """Return the architectures in the order of drawing, up to the last row. A row number is an index here."""
        return drawn(self.space, 1 + max((int(row["number"]) for row in self.rows()), default=-1))

    @property
    def about(self) -> Path:
        """JSON file with the values that all rows share."""
        return self.table.with_suffix(".json")

    @property
    def common(self) -> dict[str, Any]:
        """Values that all rows share."""
        found: dict[str, Any] = json.loads(self.about.read_text(encoding="utf-8"))
        return found

    @property
    def twice(self) -> Path:
        """File of the second measurements of some steps."""
        return self.table.with_name(f"{self.table.stem}_twice.json")

    def timed_twice(self) -> list[dict[str, Any]]:
        """Read the second measurements."""
        return json.loads(self.twice.read_text(encoding="utf-8")) if self.twice.exists() else []

    @property
    def longer(self) -> Path:
        """File of the results of longer training."""
        return self.table.with_name(f"{self.table.stem}_longer.json")

    def trained_longer(self) -> list[dict[str, Any]]:
        """Read the results of longer training."""
        return json.loads(self.longer.read_text(encoding="utf-8")) if self.longer.exists() else []

    def begin(self, common: dict[str, Any]) -> dict[str, Any]:
        """Store the values that all rows share, or refuse to continue a table with other values."""
        for file in (self.table, self.longer):
            if file.exists() and not self.about.exists():
                raise SystemExit(f"{file} is there without {self.about.name}; give another --table.")
        return begun(self.about, common, GONE_ON_WITH, "give another --table")

    def add(self, number: int, point: Point, found: dict[str, Any]) -> None:
        """Append a row. The file is complete at every moment."""
        row = {"number": number, **self.space.choices(point), **found}
        self._write([*self.rows(), {name: "" if row[name] is None else row[name] for name in self.columns}])

    def change(self, number: int, **found: Any) -> None:
        """Change some columns of a row."""
        self._write([row | (found if int(row["number"]) == number else {}) for row in self.rows()])

    def forget_steps(self) -> None:
        """Delete all step times: new measurements are from another machine or another version of the code."""
        self.twice.unlink(missing_ok=True)
        self._write([row | dict.fromkeys(STEP, "") for row in self.rows()])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda one: int(one["number"])))
        write_text_atomically(self.table, text.getvalue())


def short(value: Any) -> Any:
    """Round a float for the table."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
