"""Plots of a run: training curves, cost of its stages, validation over time, and image sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.figure import Figure

from efficientnetv2.evaluation.plot_style import (
    COLORS,
    INK,
    WIDTH_IN,
    draw_band,
    label_text,
    line_styles,
    mark_vertical,
    single_plot,
    style_axes,
)
from efficientnetv2.metrics.classification import SizeMetrics, best_size
from efficientnetv2.metrics.multilabel import METRIC_NAMES

MetricsRow = Mapping[str, Any]

# Hyperparameters of a training row that get a panel if they change: name -> title.
HYPERPARAMETERS = {
    "image_size": "image px",
    "randaugment": "RandAugment",
    "mixup_alpha": "mixup",
    "cutmix_alpha": "CutMix",
    "cutout": "cutout",
    "dropout": "dropout",
    "drop_path": "drop path",
    "label_smoothing": "label smoothing",
    "lr": "learning rate",
    "images_per_s": "images/s",
}
# Those that change at every step. The others define a stage.
_CONTINUOUS = ("lr", "images_per_s")
_STAGE_KEYS = [name for name in HYPERPARAMETERS if name not in _CONTINUOUS]
# More stages mean that hyperparameters change all the time. Ours.
_MOST_STAGES = 12


@dataclass(frozen=True)
class _Panel:
    title: str
    lines: Mapping[str, list[tuple[float, float]]]
    height_in: float
    stepwise: bool = False
    legend: bool = True


def constant_hyperparameters(history: Sequence[MetricsRow]) -> dict[str, float]:
    """Hyperparameters with one value in all training rows, by title; without those that are off."""
    constant = {}
    for name, title in HYPERPARAMETERS.items():
        values = {value for _, value in _points(history, "train", name)}
        if len(values) == 1 and (value := values.pop()):
            constant[title] = value
    return constant


def draw_training_curves(history: Sequence[MetricsRow]) -> Figure | None:
    """Loss, validation metrics and each changing hyperparameter over the epochs; None if there is nothing to draw.

    Rows are those of ``metrics.jsonl``: ``kind`` is ``train``, ``val`` or ``minival``.
    """
    scores = {
        f"{title}{'' if kind == 'val' else ' (minival)'}": points
        for kind in ("val", "minival")
        for name, title in METRIC_NAMES.items()
        if (points := _points(history, kind, name))
    }
    rows = [row for row in history if row.get("kind") in ("val", "minival") and row.get("num_images")]
    counts = "; ".join(dict.fromkeys(f"{row['kind']}, {row['num_images']:,} images" for row in rows))
    validation = f"validation ({counts})" if counts else "validation"
    panels = [_Panel("loss", {"loss": _points(history, "train", "loss")}, 1.4), _Panel(validation, scores, 1.6)]
    for name, title in HYPERPARAMETERS.items():
        points = _points(history, "train", name)
        if len({value for _, value in points}) > 1:
            panels.append(_Panel(title, {title: points}, 0.7, stepwise=name not in _CONTINUOUS))
    return _draw_panels([panel for panel in panels if any(panel.lines.values())])


def draw_hyperparameters(histories: Mapping[str, Sequence[MetricsRow]]) -> Figure | None:
    """Each hyperparameter that changes in a run or differs between runs, over the epochs; None if none does.

    The paper's Figure 4 from real runs: run name -> rows of ``metrics.jsonl``.
    """
    panels: list[_Panel] = []
    for name in _STAGE_KEYS:
        lines = {run: _points(rows, "train", name) for run, rows in histories.items()}
        if len({value for points in lines.values() for _, value in points}) > 1:
            panels.append(_Panel(HYPERPARAMETERS[name], lines, 1.2, stepwise=True, legend=not panels))
    return _draw_panels(panels)


def _draw_panels(panels: Sequence[_Panel]) -> Figure | None:
    if not panels:
        return None
    heights = [panel.height_in for panel in panels]
    figure = Figure(figsize=(WIDTH_IN, sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        several = len(panel.lines) > 1
        for (name, points), (color, stroke) in zip(panel.lines.items(), line_styles(), strict=False):
            dots = len(points) == 1 or (several and len(points) < 30)
            ax.plot(
                [epoch for epoch, _ in points], [value for _, value in points], label=label_text(name), color=color,
                linestyle=stroke, linewidth=1.5, drawstyle="steps-post" if panel.stepwise else "default",
                marker="o" if dots else None, markersize=3,
            )  # fmt: skip
        if several and panel.legend:
            ax.legend(frameon=False, labelcolor=INK, fontsize=9)
        ax.margins(x=0.01, y=0.15)
        style_axes(ax, panel.title)
        ax.locator_params(axis="y", nbins=3 if not several and panel.stepwise else 5)
    axes[-1].set_xlabel("epoch", color=INK)
    figure.align_ylabels(list(axes))
    return figure


def _points(history: Sequence[MetricsRow], kind: str, name: str) -> list[tuple[float, float]]:
    """(epoch, value) of the rows of a kind with a finite value."""
    return [
        (float(row["epoch"]), float(value))
        for row in history
        if row.get("kind") == kind and (value := row.get(name)) is not None and math.isfinite(value)
    ]


@dataclass(frozen=True)
class StageCost:
    """A finished stage of a run, without validation and saving. The fields are keys of ``report.json``."""

    image_size: int
    epochs: float
    seconds: float
    images_per_s: float
    data_wait_fraction: float
    top1: float | None  # of the last validation in the stage


def stage_costs(history: Sequence[MetricsRow]) -> tuple[StageCost, ...]:
    """The stages of a run from rows of ``metrics.jsonl``; none if its hyperparameters change all the time."""
    rows = _timed_rows(history)
    stages = [list(part) for _, part in itertools.groupby(rows, lambda row: [row.get(n) for n in _STAGE_KEYS])]
    if len(stages) > _MOST_STAGES:
        return ()
    scores = [(row["step"], row["top1"]) for row in _validations(history)] if rows else []
    costs, start_step, start_epoch = [], 0, 0.0
    for part in stages:
        seconds = sum(row["train_s"] for row in part)
        within = [top1 for step, top1 in scores if start_step < step <= part[-1]["step"]]
        costs.append(
            StageCost(
                image_size=part[-1]["image_size"],
                epochs=part[-1]["epoch"] - start_epoch,
                seconds=seconds,
                images_per_s=sum(row["images_per_s"] * row["train_s"] for row in part) / seconds,
                data_wait_fraction=sum(row["data_wait_s"] for row in part) / seconds,
                top1=within[-1] if within else None,
            )
        )
        start_step, start_epoch = part[-1]["step"], part[-1]["epoch"]
    return tuple(costs)


def top1_over_time(history: Sequence[MetricsRow]) -> list[tuple[float, float]]:
    """Points of the validation curve: (seconds of training, top-1)."""
    rows = _timed_rows(history)
    return [
        (sum(row["train_s"] for row in rows if row["step"] <= validation["step"]), validation["top1"])
        for validation in (_validations(history) if rows else ())
    ]


def _timed_rows(history: Sequence[MetricsRow]) -> list[MetricsRow]:
    return [row for row in history if row.get("kind") == "train" and row.get("train_s")]


def _validations(history: Sequence[MetricsRow]) -> list[MetricsRow]:
    """Validations of one split: of minival if there is one, otherwise of val."""
    rows = [row for row in history if row.get("kind") in ("val", "minival") and row.get("top1") is not None]
    return [row for row in rows if row["kind"] == "minival"] or rows


def draw_costs(runs: Mapping[str, Sequence[StageCost]]) -> Figure | None:
    """A bar for each stage of each run, with the time spent waiting for images; None without stages."""
    named = [
        (f"{label_text(name, letters=24)}, " * (len(runs) > 1) + f"{number}: {stage.image_size} px", stage)
        for name, stages in runs.items()
        for number, stage in enumerate(stages, start=1)
    ]
    if not named:
        return None
    names, stages = zip(*named, strict=True)
    figure, ax = single_plot(0.9 + sum(0.15 + 0.15 * (1 + name.count("\n")) for name in names))
    scale, unit = _unit(max(stage.seconds for stage in stages))
    waits = [stage.seconds * stage.data_wait_fraction / scale for stage in stages]
    works = [stage.seconds / scale - wait for stage, wait in zip(stages, waits, strict=True)]
    places = range(len(names))  # two names may be cut to the same text
    ax.barh(places, works, height=0.6, color=COLORS[0], label="training")
    bars = ax.barh(places, waits, left=works, height=0.6, color=COLORS[1], label="waiting for images")
    speeds = [f" {stage.images_per_s:,.0f} images/s" for stage in stages]
    ax.bar_label(bars, speeds, fontsize=9, color=INK)
    ax.set_yticks(places, names)
    ax.invert_yaxis()
    ax.margins(x=0.3)  # room for the speeds
    ax.set_xlim(left=0)
    ax.set_xlabel(unit, color=INK)
    figure.legend(frameon=False, labelcolor=INK, fontsize=9, ncols=2, loc="outside upper right")
    style_axes(ax, "")
    ax.grid(visible=False, axis="y")
    return figure


def draw_top1_over_time(histories: Mapping[str, Sequence[MetricsRow]]) -> Figure | None:
    """Validation top-1 against training time, a line per run; None without points."""
    lines = {name: points for name, rows in histories.items() if (points := top1_over_time(rows))}
    if not lines:
        return None
    figure, ax = single_plot(2.6)
    scale, unit = _unit(max(points[-1][0] for points in lines.values()))
    for (name, points), (color, stroke) in zip(lines.items(), line_styles(), strict=False):
        ax.plot(
            [seconds / scale for seconds, _ in points], [100 * top1 for _, top1 in points], label=label_text(name),
            color=color, linestyle=stroke, linewidth=1.5, marker="o", markersize=3,
        )  # fmt: skip
    ax.margins(y=0.18)  # room for the sizes, above the curve
    if len(histories) == 1:
        (history,) = histories.values()
        stages, start = stage_costs(history), 0.0
        for stage in stages if len(stages) > 1 else ():
            mark_vertical(ax, start, f"{stage.image_size} px", top=True)
            start += stage.seconds / scale
    if len(lines) > 1:
        ax.legend(frameon=False, labelcolor=INK, fontsize=9, loc="lower right")
    ax.set_xlim(left=0)
    ax.set_xlabel(f"{unit} of training", color=INK)
    style_axes(ax, "validation top-1, %")
    return figure


def _unit(seconds: float) -> tuple[float, str]:
    """The unit for so many seconds: its length in seconds, and its name."""
    for scale, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * scale:
            return scale, name
    return 1.0, "seconds"


@dataclass(frozen=True)
class SizeCurve:
    """Metrics at several image sizes, increasing.

    ``role``: ``selected`` is the selection set, which chose the size of the model file; ``may select`` training images;
    ``shown`` evaluated images, which may not choose.
    """

    points: tuple[SizeMetrics, ...]
    own_px: int  # of the model file
    trained_px: int | None  # of the last training step, if known
    role: Literal["selected", "may select", "shown"]
    is_ensemble: bool = False  # has no model file to convert

    @property
    def advice(self) -> str:
        """What may be concluded, in a sentence or two."""
        if self.role == "selected":
            return f"The selection set (minival) chose {self.own_px} px among these."
        if self.role == "may select":
            px = best_size(self.points).image_size
            keep = f" To keep it in a model file: effnetv2 convert MODEL OUT --image-size {px}."
            return f"Best at {px} px.{'' if self.is_ensemble else keep}"
        return (
            "A size chosen by this curve makes these metrics optimistic. Choose it on training images: dataset.csv "
            "of the run, split train."
        )


def draw_sizes(curve: SizeCurve) -> Figure:
    """Top-1 with its interval against the image size; the sizes of model file and training are marked."""
    figure, ax = single_plot(2.6)
    sizes = [point.image_size for point in curve.points]
    draw_band(ax, sizes, [(point.top1, point.low, point.high) for point in curve.points], marker="o", markersize=3)
    marks = {curve.own_px: "model file"}
    if curve.trained_px is not None:
        same = curve.trained_px == curve.own_px
        marks[curve.trained_px] = "model file, training" if same else "training"
    for px, text in marks.items():
        mark_vertical(ax, px, text)
    ax.set_xlabel("px at evaluation", color=INK)
    style_axes(ax, "top-1, %, with its 95 % interval")
    return figure
