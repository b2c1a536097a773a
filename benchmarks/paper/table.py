"""A table of the paper with ours next to it: as rows for a screen, as JSON, as Markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from efficientnetv2.utils.io import write_text_atomically

#: Stands for a value that is missing.
MISSING = "–"
#: Precedes the columns that only the paper has.
NOT_OURS = "Not ours"
#: Units of what is timed in rounds. Their median is shown: one disturbed round moves the mean, not the median.
TIMED = ("ms", "images/s")
# Units of whole numbers; "pictures" is that of older records.
_COUNTS = ("images", "pictures", "classes")


@dataclass(frozen=True)
class Measurement:
    """A value of a table with its single measurements, one per seed or round; none where it is missing.

    ``why`` says why it is missing. ``spread`` is the published standard deviation; None takes that of the values.
    ``word`` is what was published instead of a number, such as "OOM".
    """

    values: tuple[float, ...] = ()
    unit: str = ""
    why: str = ""
    spread: float | None = None
    word: str = ""

    @property
    def mean(self) -> float | None:
        """None where the value is missing."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def middle(self) -> float | None:
        """What is shown: the median of timed values, otherwise the mean; None where the value is missing."""
        return statistics.median(self.values) if self.values and self.unit in TIMED else self.mean

    @property
    def deviation(self) -> float | None:
        """Standard deviation, published or of the values; None for a single value."""
        if self.spread is None and len(self.values) > 1:
            return statistics.stdev(self.values)
        return self.spread

    def __str__(self) -> str:
        if self.middle is None:
            return self.word or MISSING
        shown = f"{self.middle:,.0f}" if self.unit in _COUNTS else _three_digits(self.middle)
        return shown if self.deviation is None else f"{shown} ± {float(f'{self.deviation:.2g}'):,g}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``from_json`` reads them."""
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
        """The inverse of ``to_json``."""
        values = tuple(plain["values"])
        published = plain["spread"] if len(values) == 1 else None
        return cls(values, plain["unit"], plain.get("missing", ""), published, plain.get("word", ""))


@dataclass(frozen=True)
class Row:
    """A row: column -> measurement, of the paper and of ours. Each row of a table has the same columns of ours."""

    name: str
    paper: dict[str, Measurement] = field(default_factory=dict)
    ours: dict[str, Measurement] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A reproduced table; the notes say what each side was measured on. ``seeds`` is None where nothing is trained."""

    name: str
    title: str
    rows: tuple[Row, ...]
    paper_note: str
    ours_note: str
    scale: str = ""
    seeds: int | None = None

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(column, "paper" or "ours") in the order shown: the two of a column side by side."""
        both = [(name, side) for name in self._names for side in ("paper", "ours")]
        return [(name, side) for name, side in both if any(name in getattr(row, side) for row in self.rows)]

    @property
    def _names(self) -> list[str]:
        """Columns in the paper's order; our minutes follow the paper's hours."""
        names = list(dict.fromkeys(name for row in self.rows for name in (*row.paper, *row.ours)))
        minutes = {minutes_of(name) for name in names} & set(names)
        pairs = [(name, minutes_of(name)) for name in names if name not in minutes]
        return [one for pair in pairs for one in pair if one in names]

    @property
    def paper_only(self) -> list[str]:
        """Columns that have no value of ours."""
        ours = {name for row in self.rows for name in row.ours}
        return [name for name in self._names if not {name, minutes_of(name)} & ours]

    @property
    def missing(self) -> list[str]:
        """Our cells without a value and why, a line each."""
        return [
            f"{row.name}, {name}: {one.why}" for row in self.rows for name, one in row.ours.items() if not one.values
        ]

    def headings(self) -> list[str]:
        """Headings of ``cells``."""
        return ["", *(f"{name}, {side}" for name, side in self.columns)]

    def cells(self) -> list[list[str]]:
        """Texts, a list per row, its name first."""
        return [
            [row.name, *(str(getattr(row, side).get(name, Measurement())) for name, side in self.columns)]
            for row in self.rows
        ]

    def markdown(self) -> str:
        """The table with its title and notes."""
        lines = [f"### {self.title}", "", f"Paper: {self.paper_note} Ours: {self.ours_note}", ""]
        headings = self.headings()
        lines += [markdown_row(row) for row in (headings, ["---"] * len(headings), *self.cells())]
        if self.paper_only:
            lines += ["", f"{NOT_OURS}: {'; '.join(self.paper_only)}."]
        if self.missing:
            lines += ["", "Missing: " + "; ".join(self.missing) + "."]
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, every single measurement included."""

        def plain(side: Mapping[str, Measurement]) -> dict[str, Any]:
            return {name: one.to_json() for name, one in side.items()}

        return {
            "table": self.name,
            "scale": self.scale,
            "seeds": self.seeds,
            "title": self.title,
            "paper": self.paper_note,
            "ours": self.ours_note,
            "rows": [{"name": row.name, "paper": plain(row.paper), "ours": plain(row.ours)} for row in self.rows],
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``; further keys are ignored."""

        def side(given: Mapping[str, Any]) -> dict[str, Measurement]:
            return {name: Measurement.from_json(one) for name, one in given.items()}

        rows = tuple(Row(row["name"], side(row["paper"]), side(row["ours"])) for row in plain["rows"])
        scale, seeds = plain.get("scale", ""), plain.get("seeds")  # older records have none
        return cls(plain["table"], plain["title"], rows, plain["paper"], plain["ours"], scale, seeds)

    def write(self, folder: Path) -> None:
        """Write ``table.json`` and ``table.md``."""
        write_text_atomically(folder / "table.json", json.dumps(self.to_json(), indent=2) + "\n")
        write_text_atomically(folder / "table.md", self.markdown())


def untrained(scale: str) -> str:
    """The beginning of ``ours_note`` where nothing is trained."""
    return f"scale {scale}, nothing is trained, so no seeds; "


def minutes_of(name: str) -> str:
    """Our column of minutes for the paper's column of hours; empty for any other column."""
    return f"{name.removesuffix('hours')}minutes" if name.endswith("hours") else ""


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def _three_digits(value: float) -> str:
    """Three significant digits, but the whole integer part."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}"
