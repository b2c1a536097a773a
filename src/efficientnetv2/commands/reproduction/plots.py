"""Figures 1 and 5: accuracy against what it costs; and what a measured table looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from efficientnetv2.commands.reproduction import table
from efficientnetv2.commands.reproduction.columns import HEADINGS
from efficientnetv2.commands.reproduction.table import Table
from efficientnetv2.evaluation.drawing import INK

_COSTS = {
    "train_hours": "training hours, 32 TPUv3 cores",
    "params_m": "parameters, M",
    "flops_b": "multiply-adds, B",
    "infer_ms_v100_fp16_batch16": "ms, V100, fp16, batch 16",
}
_FAMILIES = {
    "EfficientNet": "efficientnet_",
    "EfficientNetV2": "efficientnetv2_",
    "EfficientNetV2, ImageNet-21k": "_21k",
}


# What is the same wherever it is counted, so that ours stands beside the paper's.
_COUNTED = ("params_m", "flops_b")


def draw_published(
    columns: tuple[str, ...],
    ours: Mapping[str, Mapping[str, float]] | None = None,
    *,
    timed: str = "",
) -> Drawing:
    """Top-1 of the paper's Table 7 against some of its costs: its Figures 1 and 5.

    Args:
        columns: keys of ``paper.json``, a panel each.
        ours: heading -> network -> what was counted or measured here, at the paper's accuracy: parameters and
            multiply-adds as rings beside the paper's points, milliseconds of an answer in a further panel. None draws
            none.
        timed: how that panel's times were measured: device, precision, batch, size.
    """
    figures = table.paper()["table7_imagenet"]
    networks = {name: values for name, values in figures.items() if name != "columns"}
    ours = ours or {}
    costs = {
        _COSTS[column]: {name: values[figures["columns"].index(column)] for name, values in networks.items()}
        for column in columns
    }
    counted = {_COSTS[column]: ours.get(HEADINGS[column][0], {}) for column in columns if column in _COUNTED}
    if times := ours.get(HEADINGS["infer_ms"][0]):
        costs[f"ms here, {timed}"] = {name: times.get(name) for name in networks}
    drawing = Drawing(figsize=(4.2 * len(costs), 3.4), layout="constrained")
    panels = drawing.subplots(1, len(costs), squeeze=False)[0]
    for panel, (label, spent) in zip(panels, costs.items(), strict=True):
        top1 = {name: values[0] for name, values in networks.items()}
        _draw_families(panel, top1, spent)
        if rings := [(cost, top1[name]) for name, cost in counted.get(label, {}).items()]:
            look: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 9, "fillstyle": "none"}
            panel.plot(*zip(*rings, strict=True), **look, color=INK, label="counted here")
            panel.legend(handles=panel.lines[-1:], loc="lower right")
        panel.margins(x=0.12)  # so that names stand inside
        panel.set_xlabel(label)
        panel.set_ylabel("ImageNet top-1 of the paper, %")
    panels[0].legend()
    return drawing


def _draw_families(panel: Axes, top1: Mapping[str, float], spent: Mapping[str, float | None]) -> None:
    """A line per family, a point per network whose cost is known."""
    for family, mark in _FAMILIES.items():
        points = sorted(
            (cost, top1[name], name.removeprefix("efficientnetv2_").removeprefix("efficientnet_"))
            for name, cost in spent.items()
            if cost is not None and _family(name) == mark
        )
        if not points:
            continue
        panel.plot([x for x, _, _ in points], [y for _, y, _ in points], marker="o", label=family)
        for x, y, name in points:
            panel.annotate(
                name.removesuffix("_21k").upper(), (x, y), xytext=(4, -9), textcoords="offset points"
            )


def _family(name: str) -> str:
    if name.endswith("_21k"):
        return "_21k"
    return "efficientnetv2_" if name.startswith("efficientnetv2_") else "efficientnet_"


def draw_rows(made: Table) -> Drawing:
    """Our figures of a table, a group of bars per row."""
    names = list(dict.fromkeys(name for row in made.rows for name in row.ours))
    drawing = Drawing(
        figsize=(max(5.0, 1.1 * len(made.rows)), 2.2 * max(1, len(names))), layout="constrained"
    )
    panels = drawing.subplots(len(names), 1, squeeze=False)[:, 0]
    for panel, name in zip(panels, names, strict=True):
        rows = [row for row in made.rows if name in row.ours and row.ours[name].middle is not None]
        panel.bar([row.name for row in rows], [row.ours[name].middle or 0 for row in rows])
        panel.set_title(name)
        panel.tick_params(axis="x", labelrotation=30)
    return drawing
