"""The paper's published values (paper.json): tables, columns, headings and units."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.paper.table import Measurement

#: Table of the paper -> its key in paper.json.
TABLES = {
    "1": "table1_efficiency",
    "2": "table2_train_size_and_batch_efficientnet_b6",
    "3": "table3_fused_mbconv_in_efficientnet_b4",
    "5": "table5_size_vs_randaugment",
    "6": "table6_progressive_settings",
    "7": "table7_imagenet",
    "8": "table8_transfer",
    "9": "table9_datasets",
    "10": "table10_same_training",
    "11": "table11_scaling_down",
    "12": "table12_progressive_for_other_networks",
    "13": "table13_adaptive_regularization",
}
#: Figure of the paper drawn from its Table 7 -> column keys of its x axes.
FIGURES = {
    "figure1": ("train_hours", "params_m"),
    "figure5": ("params_m", "flops_b", "infer_ms_v100_fp16_batch16"),
}
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


@cache
def load() -> dict[str, Any]:
    """The content of ``paper.json``, by table."""
    published: dict[str, Any] = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
    return published


def values(name: str) -> dict[str, Any]:
    """The published values of a table; for a figure, those of the table that it is drawn from."""
    name = "7" if name in FIGURES else name
    found: dict[str, Any] = load()[TABLES[name]] if name in TABLES else {"columns": []}
    return found


def headings(name: str) -> dict[str, tuple[str, str]]:
    """Column key -> (heading, unit) in the paper's order; for a figure, of the columns that it draws."""
    columns = values(name)["columns"]
    return {key: HEADINGS[key] for key in columns if name not in FIGURES or key in ("top1", *FIGURES[name])}


def row(name: str, key: str) -> dict[str, Measurement]:
    """A row of a table: heading -> published value."""
    given = dict(zip(values(name)["columns"], values(name)[key], strict=True))
    return {heading: measurement(given[column], unit) for column, (heading, unit) in headings(name).items()}


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
