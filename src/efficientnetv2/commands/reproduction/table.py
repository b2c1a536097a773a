"""A table of the paper with ours beside it: as rows for a screen, as JSON, as Markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from efficientnetv2.base.files import write_text_atomically

#: In the place of a figure that is not there.
MISSING = "–"


@dataclass(frozen=True)
class Figure:
    """A figure, as the mean over what it was measured on.

    Args:
        values: one per seed or round; none is a missing cell.
        unit: "%", "M", "B", "ms", "images/s", "s" or "h".
        why: it is missing.
    """

    values: tuple[float, ...] = ()
    unit: str = ""
    why: str = ""

    @property
    def mean(self) -> float | None:
        """None where there is none."""
        return statistics.fmean(self.values) if self.values else None

    def __str__(self) -> str:
        if not self.values:
            return MISSING
        mean = statistics.fmean(self.values)
        spread = f" ± {statistics.stdev(self.values):.2g}" if len(self.values) > 1 else ""
        return f"{_short(mean)}{spread}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        spread = statistics.stdev(self.values) if len(self.values) > 1 else None
        return {
            "mean": self.mean,
            "spread": spread,
            "n": len(self.values),
            "values": list(self.values),
            "unit": self.unit,
        } | ({"missing": self.why} if not self.values else {})

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave."""
        return cls(tuple(plain["values"]), plain["unit"], plain.get("missing", ""))


@dataclass(frozen=True)
class Row:
    """A row: what the paper says, and what we found, by column.

    Args:
        name: of the row.
        paper: column -> figure; what the paper does not have is left out.
        ours: column -> figure.
    """

    name: str
    paper: dict[str, Figure] = field(default_factory=dict)
    ours: dict[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """One table of the paper, reproduced.

    Args:
        name: as on the command line.
        title: what it shows.
        rows: in the paper's order.
        paper_says: what the paper's figures are measured on.
        ours_says: what ours are measured on: data, scale, seeds, machine.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    paper_says: str
    ours_says: str

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Headings in order: (column, "paper" or "ours"), the two of a column side by side."""
        names: dict[str, None] = {}
        for row in self.rows:
            names |= dict.fromkeys([*row.paper, *row.ours])
        both = [(name, side) for name in names for side in ("paper", "ours")]
        return [(name, side) for name, side in both if any(name in getattr(row, side) for row in self.rows)]

    @property
    def missing(self) -> list[str]:
        """Our cells that have no figure, and why, a line each."""
        return [
            f"{row.name}, {name}: {figure.why}"
            for row in self.rows
            for name, figure in row.ours.items()
            if not figure.values
        ]

    def cells(self) -> list[list[str]]:
        """As text, a list per row, its name first."""
        return [
            [row.name, *(str(getattr(row, side).get(name, Figure())) for name, side in self.columns)]
            for row in self.rows
        ]

    def headings(self) -> list[str]:
        """Of the columns of ``cells``."""
        return ["", *(f"{name}, {side}" for name, side in self.columns)]

    def markdown(self) -> str:
        """For docs."""
        lines = [f"### {self.title}", "", f"Paper: {self.paper_says} Ours: {self.ours_says}", ""]
        lines += [_markdown_row(self.headings()), _markdown_row(["---"] * len(self.headings()))]
        lines += [_markdown_row(row) for row in self.cells()]
        if self.missing:
            lines += ["", "Missing: " + "; ".join(self.missing) + "."]
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Plain values, every single measurement included."""
        return {
            "table": self.name,
            "title": self.title,
            "paper": self.paper_says,
            "ours": self.ours_says,
            "rows": [
                {
                    "name": row.name,
                    "paper": {name: figure.to_json() for name, figure in row.paper.items()},
                    "ours": {name: figure.to_json() for name, figure in row.ours.items()},
                }
                for row in self.rows
            ],
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave; further keys are passed over."""
        sides = [
            {
                side: {name: Figure.from_json(figure) for name, figure in row[side].items()}
                for side in ("paper", "ours")
            }
            for row in plain["rows"]
        ]
        rows = tuple(Row(row["name"], **two) for row, two in zip(plain["rows"], sides, strict=True))
        return cls(plain["table"], plain["title"], rows, plain["paper"], plain["ours"])

    def write(self, folder: Path) -> None:
        """``table.json`` and ``table.md``."""
        write_text_atomically(folder / "table.json", json.dumps(self.to_json(), indent=2) + "\n")
        write_text_atomically(folder / "table.md", self.markdown())


def paper() -> dict[str, Any]:
    """The paper's figures, by table."""
    text = (files(__package__) / "paper.json").read_text(encoding="utf-8")
    figures: dict[str, Any] = json.loads(text)
    return figures


def published(value: Any, unit: str) -> Figure:
    """A figure as the paper prints it: a number, [mean, spread], "19B", "43M", or None and "OOM" for none."""
    if isinstance(value, list):
        value = value[0]
    if isinstance(value, str) and value[-1:] in "MB" and value != "OOM":
        value = float(value[:-1])
    return (
        Figure((float(value),), unit)
        if isinstance(value, int | float)
        else Figure(unit=unit, why="not given")
    )


def _short(value: float) -> str:
    """Three significant digits; all of a whole part."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
