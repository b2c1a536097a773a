"""Figures 1 and 5, accuracy against cost, and a plot of any measured table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.paper import published
from benchmarks.paper.published import HEADINGS
from benchmarks.paper.table import Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efficientnetv2.evaluation.plot_style import INK

_COSTS = {
    "train_hours": "training hours, 32 TPUv3 cores",
    "params_m": "parameters, M",
    "flops_b": "multiply-adds, B",
    "infer_ms_v100_fp16_batch16": "ms, V100, fp16, batch 16",
}
# Costs that are the same wherever they are counted, so that ours are drawn in the paper's panels.
_COUNTED = ("params_m", "flops_b")
_FAMILIES = ("EfficientNet", "EfficientNetV2", "EfficientNetV2, ImageNet-21k")


def draw_published(
    columns: tuple[str, ...], ours: Mapping[str, Mapping[str, float]] | None = None, *, timed: str = ""
) -> Figure:
    """Top-1 of the paper's Table 7 against some of its costs, a panel per column of ``paper.json``.

    ``ours`` is heading -> network -> value: parameters and multiply-adds become rings in the paper's panels,
    milliseconds a further panel, which ``timed`` describes. All are drawn at the paper's accuracy.
    """
    keys, networks = published.TABLES["7"]["columns"], published.rows("7")
    top1 = {name: values[0] for name, values in networks.items()}
    ours = ours or {}
    costs: dict[str, dict[str, float | None]] = {
        _COSTS[column]: {name: values[keys.index(column)] for name, values in networks.items()} for column in columns
    }
    counted = {_COSTS[column]: ours.get(HEADINGS[column][0], {}) for column in columns if column in _COUNTED}
    if times := ours.get(HEADINGS["infer_ms"][0]):
        costs[f"ms here, {timed}"] = {name: times.get(name) for name in networks}
    figure = Figure(figsize=(4.2 * len(costs), 3.4), layout="constrained")
    panels = figure.subplots(1, len(costs), squeeze=False)[0]
    for panel, (label, cost) in zip(panels, costs.items(), strict=True):
        _draw_families(panel, top1, cost)
        if rings := [(x, top1[name]) for name, x in counted.get(label, {}).items()]:
            look: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 9, "fillstyle": "none"}
            panel.plot(*zip(*rings, strict=True), **look, color=INK, label="counted here")
            panel.legend(handles=panel.lines[-1:], loc="lower right")
        panel.margins(x=0.12)  # so that names stay inside
        panel.set_xlabel(label)
        panel.set_ylabel("ImageNet top-1 of the paper, %")
    panels[0].legend()
    return figure


def _draw_families(panel: Axes, top1: Mapping[str, float], costs: Mapping[str, float | None]) -> None:
    """A line per family, a point per network whose cost is known."""
    for family in _FAMILIES:
        points = sorted(
            (cost, top1[name], name) for name, cost in costs.items() if cost is not None and _family(name) == family
        )
        if not points:
            continue
        panel.plot([x for x, _, _ in points], [y for _, y, _ in points], marker="o", label=family)
        for x, y, name in points:
            short = name.partition("_")[2].removesuffix("_21k").upper()
            panel.annotate(short, (x, y), xytext=(4, -9), textcoords="offset points")


def _family(name: str) -> str:
    plain, v2, pretrained = _FAMILIES
    return pretrained if name.endswith("_21k") else v2 if name.startswith("efficientnetv2_") else plain


def draw_rows(table: Table) -> Figure:
    """Our values of a table, a panel per column, a bar per row."""
    names = list(dict.fromkeys(name for row in table.rows for name in row.ours))
    figsize = max(5.0, 1.1 * len(table.rows)), 2.2 * max(1, len(names))
    figure = Figure(figsize=figsize, layout="constrained")
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for panel, name in zip(panels, names, strict=True):
        bars = {
            row.name: one.middle
            for row in table.rows
            if (one := row.ours.get(name)) is not None and one.middle is not None
        }
        panel.bar(list(bars), list(bars.values()))
        panel.set_title(name)
        panel.tick_params(axis="x", labelrotation=30)
    return figure
