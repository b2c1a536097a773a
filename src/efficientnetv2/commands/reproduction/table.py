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
#: Before the columns that are the paper's alone.
NOT_OURS = "Not ours"
#: Units of what is timed round by round; a round that something disturbed pulls their mean, but not their median.
TIMED = ("ms", "images/s")
_COUNTS = ("pictures", "classes")  # whole numbers


@dataclass(frozen=True)
class Figure:
    """A figure, as the middle of what it was measured on.

    Args:
        values: one per seed or round; none is a missing cell.
        unit: "%", "M", "B", "ms", "images/s", "minutes", "h", "pictures" or "classes".
        why: it is missing.
        spread: standard deviation that was published with the figure; None takes that of several values.
        word: that was published in the place of a figure, such as "OOM".
    """

    values: tuple[float, ...] = ()
    unit: str = ""
    why: str = ""
    spread: float | None = None
    word: str = ""

    @property
    def mean(self) -> float | None:
        """None where there is none."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def middle(self) -> float | None:
        """What is printed and drawn: the median of what is timed, else the mean; None where there is none."""
        return statistics.median(self.values) if self.values and self.unit in TIMED else self.mean

    @property
    def deviation(self) -> float | None:
        """Standard deviation, published or of the values; None where there is none."""
        if self.spread is None and len(self.values) > 1:
            return statistics.stdev(self.values)
        return self.spread

    def __str__(self) -> str:
        if self.middle is None:
            return self.word or MISSING
        shown = f"{self.middle:,.0f}" if self.unit in _COUNTS else _short(self.middle)
        return shown if self.deviation is None else f"{shown} ± {float(f'{self.deviation:.2g}'):,g}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``median`` where that is what is printed."""
        plain: dict[str, Any] = {
            "mean": self.mean,
            "spread": self.deviation,
            "n": len(self.values),
            "values": list(self.values),
            "unit": self.unit,
        }
        if self.unit in TIMED:
            plain["median"] = self.middle
        if not self.values:
            plain["missing"] = self.why
        return plain | ({"word": self.word} if self.word else {})

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave."""
        values = tuple(plain["values"])
        published = plain["spread"] if len(values) == 1 else None
        return cls(values, plain["unit"], plain.get("missing", ""), published, plain.get("word", ""))


@dataclass(frozen=True)
class Row:
    """A row: what the paper says, and what we found, by column.

    Args:
        name: of the row.
        paper: column -> figure; what the paper does not have is left out.
        ours: column -> figure, in every row of the table or in none; a missing one says why.
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
        ours_says: what ours are measured on: scale, data, seeds, machine.
        scale: by its name.
        seeds: that an accuracy is the mean of; None where nothing is trained.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    paper_says: str
    ours_says: str
    scale: str = ""
    seeds: int | None = None

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Headings in order: (column, "paper" or "ours"), the two of a column side by side."""
        names = self._names
        both = [(name, side) for name in names for side in ("paper", "ours")]
        return [(name, side) for name, side in both if any(name in getattr(row, side) for row in self.rows)]

    @property
    def _names(self) -> list[str]:
        """Of the columns, in the paper's order; our minutes follow the paper's hours."""
        names: dict[str, None] = {}
        for row in self.rows:
            names |= dict.fromkeys([*row.paper, *row.ours])
        beside = [minutes for name in names if (minutes := minutes_of(name)) in names]
        return [
            one
            for name in names
            if name not in beside
            for one in (name, *([minutes_of(name)] if minutes_of(name) in beside else []))
        ]

    @property
    def paper_only(self) -> list[str]:
        """Columns of the paper's that we have nothing beside."""
        ours = {name for row in self.rows for name in row.ours}
        return [name for name in self._names if name not in ours and minutes_of(name) not in ours]

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
        if self.paper_only:
            lines += ["", f"{NOT_OURS}: {'; '.join(self.paper_only)}."]
        if self.missing:
            lines += ["", "Missing: " + "; ".join(self.missing) + "."]
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Plain values, every single measurement included."""
        return {
            "table": self.name,
            "scale": self.scale,
            "seeds": self.seeds,
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
        scale, seeds = plain.get("scale", ""), plain.get("seeds")  # records made before had none
        return cls(plain["table"], plain["title"], rows, plain["paper"], plain["ours"], scale, seeds)

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
    """A figure as the paper prints it: a number, [mean, spread], "19B", "43M", a word ("OOM"), or None for none."""
    spread = None
    if isinstance(value, list):
        value, spread = value
    if isinstance(value, str) and value[:-1].replace(".", "").isdigit():
        value = float(value[:-1])
    if isinstance(value, str):
        return Figure(unit=unit, why=value, word=value)
    return (
        Figure(unit=unit, why="not given") if value is None else Figure((float(value),), unit, spread=spread)
    )


def row_of(
    figures: Mapping[str, Any], row: str, headings: Mapping[str, tuple[str, str]]
) -> dict[str, Figure]:
    """A row of one of the paper's tables: heading -> figure.

    Args:
        figures: of the table, as ``paper`` gives it, its keys under "columns".
        row: its key there.
        headings: key of a column -> what it is called here, and the unit.
    """
    given = dict(zip(figures["columns"], figures[row], strict=True))
    return {heading: published(given[key], unit) for key, (heading, unit) in headings.items()}


def untrained(scale: str) -> str:
    """The beginning of ``ours_says`` where nothing is trained."""
    return f"scale {scale}, nothing is trained, so no seeds; "


def minutes_of(name: str) -> str:
    """Of a column of hours, what ours are called where they are minutes; empty of any other."""
    return f"{name.removesuffix('hours')}minutes" if name.endswith("hours") else ""


def _short(value: float) -> str:
    """Three significant digits; all of a whole part."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
