"""Figures 1 and 5: accuracy against what it costs; and what a measured table looks like."""

from __future__ import annotations

from matplotlib.figure import Figure as Drawing

from efficientnetv2.commands.reproduction import table
from efficientnetv2.commands.reproduction.settings import as_png
from efficientnetv2.commands.reproduction.table import Table

_COSTS = {
    "train_hours": "training hours, 32 TPUv3 cores",
    "params_m": "parameters, M",
    "flops_b": "multiply-adds, B",
    "infer_ms_v100_fp16_batch16": "ms, V100, fp16, batch 16",
}


def draw_published(columns: tuple[str, ...]) -> bytes:
    """Top-1 of the paper's Table 7 against some of its costs, as a PNG: its Figures 1 and 5.

    Args:
        columns: keys of ``paper.json``, a panel each.
    """
    figures = table.paper()["table7_imagenet"]
    drawing = Drawing(figsize=(4.2 * len(columns), 3.4), layout="constrained")
    panels = drawing.subplots(1, len(columns), squeeze=False)[0]
    families = {
        "EfficientNet": "efficientnet_",
        "EfficientNetV2": "efficientnetv2_",
        "EfficientNetV2, ImageNet-21k": "_21k",
    }
    for panel, column in zip(panels, columns, strict=True):
        position = figures["columns"].index(column)
        for family, mark in families.items():
            points = sorted(
                (
                    values[position],
                    values[0],
                    name.removeprefix("efficientnetv2_").removeprefix("efficientnet_"),
                )
                for name, values in figures.items()
                if name != "columns" and _family(name) == mark and values[position] is not None
            )
            panel.plot([x for x, _, _ in points], [y for _, y, _ in points], marker="o", label=family)
            for x, y, name in points:
                panel.annotate(
                    name.removesuffix("_21k").upper(), (x, y), xytext=(4, -9), textcoords="offset points"
                )
        panel.set_xlabel(_COSTS[column])
        panel.set_ylabel("ImageNet top-1, %")
    panels[0].legend()
    return as_png(drawing)


def _family(name: str) -> str:
    if name.endswith("_21k"):
        return "_21k"
    return "efficientnetv2_" if name.startswith("efficientnetv2_") else "efficientnet_"


def draw_rows(made: Table) -> bytes:
    """Our figures of a table, a group of bars per row, as a PNG."""
    names = list(dict.fromkeys(name for row in made.rows for name in row.ours))
    drawing = Drawing(
        figsize=(max(5.0, 1.1 * len(made.rows)), 2.2 * max(1, len(names))), layout="constrained"
    )
    panels = drawing.subplots(len(names), 1, squeeze=False)[:, 0]
    for panel, name in zip(panels, names, strict=True):
        rows = [row for row in made.rows if name in row.ours and row.ours[name].mean is not None]
        panel.bar([row.name for row in rows], [row.ours[name].mean or 0 for row in rows])
        panel.set_title(name)
        panel.tick_params(axis="x", labelrotation=30)
    return as_png(drawing)
