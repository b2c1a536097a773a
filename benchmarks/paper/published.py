"""The paper's published values (paper.json): tables, columns, headings and units."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.paper.table import Measurement, Row, Table

#: Figure of the paper drawn from its Table 7 -> column keys of its x axes.
FIGURES = {"figure1": ("train_hours", "params_m"), "figure5": ("params_m", "flops_b", "infer_ms_v100_fp16_batch16")}
#: Column key in paper.json -> (heading, unit). Our speeds are compared with the V100's.
HEADINGS = {
    "top1": ("top-1 %", "%"),
    "params_m": ("parameters, M", "M"),
    "flops_b": ("multiply-adds, B", "B"),
    "infer_ms": ("ms", "ms"),
    "infer_ms_v100_fp16_batch16": ("ms", "ms"),
    "v100_fp16_batch128_img_s": ("images/s", "images/s"),
    "train_hours": ("hours", "h"),
    "tpu_img_s_core_batch32": ("images/s per TPU core, batch 32", "images/s"),
    "tpu_img_s_core_batch128": ("images/s per TPU core, batch 128", "images/s"),
    "v100_img_s_batch12": ("images/s, batch 12", "images/s"),
    "v100_img_s_batch24": ("images/s, batch 24", "images/s"),
    "tpu_img_s_core": ("images/s per TPU core", "images/s"),
    "v100_img_s": ("images/s", "images/s"),
    "px128": ("128 px", "%"),
    "px192": ("192 px", "%"),
    "px300": ("300 px", "%"),
    "min": ("first stage", ""),
    "max": ("last stage", ""),
    "cifar10": ("cifar10", "%"),
    "cifar100": ("cifar100", "%"),
    "flowers102": ("flowers102", "%"),
    "cars": ("cars", "%"),
    "train": ("train", "images"),
    "eval": ("eval", "images"),
    "classes": ("classes", "classes"),
    "baseline_top1": ("baseline, top-1 %", "%"),
    "baseline_hours": ("baseline, hours", "h"),
    "progressive_top1": ("progressive, top-1 %", "%"),
    "progressive_hours": ("progressive, hours", "h"),
    "vanilla": ("vanilla", "%"),
    "adaptive": ("adaptive", "%"),
}


#: The content of ``paper.json``, and its tables by name: title, note, columns, rows by key.
PAPER: dict[str, Any] = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
TABLES: dict[str, dict[str, Any]] = PAPER["tables"]


def rows(name: str) -> dict[str, list[Any]]:
    """Row key -> values of a table; for a figure, those of the table that it is drawn from."""
    found: dict[str, list[Any]] = TABLES["7" if name in FIGURES else name]["rows"]
    return found


def headings(name: str) -> dict[str, tuple[str, str]]:
    """Column key -> (heading, unit) in the paper's order; for a figure, of the columns that it draws."""
    drawn = ("top1", *FIGURES[name]) if name in FIGURES else TABLES[name].get("columns", ())
    columns = TABLES["7"]["columns"] if name in FIGURES else drawn
    return {key: HEADINGS[key] for key in columns if key in drawn}


def row(name: str, key: str) -> dict[str, Measurement]:
    """A row of a table: heading -> published value."""
    columns = TABLES["7" if name in FIGURES else name]["columns"]
    given = dict(zip(columns, rows(name)[key], strict=True))
    return {heading: measurement(given[column], unit) for column, (heading, unit) in headings(name).items()}


def table(name: str, rows: Iterable[Row], ours_note: str, scale: str, seeds: int | None = None) -> Table:
    """A table of these rows with the title and note of the paper."""
    return Table(name, TABLES[name]["title"], tuple(rows), TABLES[name]["note"], ours_note, scale, seeds)


def measurement(value: Any, unit: str) -> Measurement:
    """A value as the paper prints it: a number, [mean, spread], "19B", "43M", a word ("OOM"), or None."""
    spread = None
    if isinstance(value, list):
        value, spread = value
    if isinstance(value, str) and value[:-1].replace(".", "").isdigit():
        value = float(value[:-1])
    if isinstance(value, str):
        return Measurement(unit=unit, why=value, word=value)
    if value is None:
        return Measurement(unit=unit, why="not given")
    return Measurement((float(value),), unit, spread=spread)
