"""The learning curve: what a run reached, above the settings that it had at that time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efficientnetv2.evaluation.drawing import INK, WIDTH_IN, called, plain, strokes
from efficientnetv2.metrics.several import MEANS_OVER_CLASSES

Row = Mapping[str, Any]

# Of a training row, what is worth a panel where it changes: name → words.
QUANTITIES = {
    "image_px": "image px",
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


def constants(history: Sequence[Row]) -> dict[str, float]:
    """The settings that were the same in every training row, by their words; without those that are off."""
    still = {}
    for name, words in QUANTITIES.items():
        values = {value for _, value in _points(history, "train", name)}
        if len(values) == 1 and (value := values.pop()):
            still[words] = value
    return still


def learning_curve(history: Sequence[Row]) -> Figure | None:
    """Loss, validation figures and every setting that changed, over the epochs.

    Args:
        history: rows of ``metrics.jsonl``: ``kind`` is ``train`` (``epoch``, ``loss``, ``lr``, the setting,
            ``images_per_s``), ``val`` or ``minival`` (``epoch``, ``top1``, ``macro_f1`` or
            ``mean_average_precision``). What a row lacks is left out.

    Returns:
        A panel for each, or None if there is nothing to draw.
    """
    keys = {"top1": "top-1", **MEANS_OVER_CLASSES}
    scores = {
        words + on: _points(history, kind, name)
        for kind, on in {"val": "", "minival": " (minival)"}.items()
        for name, words in keys.items()
    }
    panels = [
        ("loss", {"loss": _points(history, "train", "loss")}, 1.4, False),
        (_validated(history), {name: points for name, points in scores.items() if points}, 1.6, False),
    ]
    for name, words in QUANTITIES.items():
        points = _points(history, "train", name)
        if len({value for _, value in points}) > 1:
            panels.append((words, {words: points}, 0.7, name not in ("lr", "images_per_s")))
    panels = [panel for panel in panels if any(panel[1].values())]
    if not panels:
        return None
    heights = [height for *_, height, _ in panels]
    figure = Figure(figsize=(WIDTH_IN, sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (words, lines, _, stepwise) in zip(axes, panels, strict=True):
        _draw(ax, words, lines, stepwise=stepwise)
    axes[-1].set_xlabel("epoch", color=INK)
    figure.align_ylabels(list(axes))
    return figure


def _validated(history: Sequence[Row]) -> str:
    """What the validation panel is of: how many images of which split, and that its last point is of all of val."""
    points = {
        kind: [row for row in history if row.get("kind") == kind and row.get("images")]
        for kind in ("val", "minival")
    }
    last = points["val"][-1:]
    before = points["minival"] or points["val"][:-1]
    if not last and not before:
        return "validation"
    all_of_val = "".join(f"{row['images']:,} images" for row in last)
    if not before or (not points["minival"] and before[-1]["images"] == last[0]["images"]):
        return f"validation ({all_of_val})"
    # Short enough for the width of the panel.
    if points["minival"]:
        last_point = f"; last point: val, {all_of_val}" if last else ""
        return f"validation (minival, {before[-1]['images']:,} images{last_point})"
    return f"validation ({before[-1]['images']:,} images; last point: all {all_of_val} of val)"


def draw_settings(histories: Mapping[str, Sequence[Row]]) -> Figure | None:
    """Every setting that changed in a run, or is another in one, over the epochs: the paper's Figure 4 of real runs.

    Args:
        histories: a run's name → rows of its ``metrics.jsonl``.

    Returns:
        A line for each run in a panel for each setting, on white; None if nothing changed.
    """
    panels = {}
    for name, words in QUANTITIES.items():
        lines = {run: _points(rows, "train", name) for run, rows in histories.items()}
        values = {value for points in lines.values() for _, value in points}
        if name not in ("lr", "images_per_s") and len(values) > 1:
            panels[words] = lines
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH_IN, 1.2 * len(panels) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (words, lines) in zip(axes, panels.items(), strict=True):
        _draw(ax, words, lines, stepwise=True)
    for ax in axes[1:]:
        if (legend := ax.get_legend()) is not None:
            legend.remove()  # the first one's holds for all
    axes[-1].set_xlabel("epoch", color=INK)
    return figure


def _draw(ax: Axes, words: str, lines: Mapping[str, list[tuple[float, float]]], *, stepwise: bool) -> None:
    for (name, points), (colour, stroke) in zip(lines.items(), strokes(), strict=False):
        ax.plot(
            [epoch for epoch, _ in points],
            [value for _, value in points],
            label=called(name),
            color=colour,
            linestyle=stroke,
            linewidth=1.5,
            drawstyle="steps-post" if stepwise else "default",
            marker="o" if len(points) == 1 or (len(lines) > 1 and len(points) < 30) else None,
            markersize=3,
        )
    if len(lines) > 1:
        ax.legend(frameon=False, labelcolor=INK, fontsize=9)
    ax.margins(x=0.01, y=0.15)
    plain(ax, words)
    ax.locator_params(axis="y", nbins=3 if len(lines) == 1 and stepwise else 5)


def _points(history: Sequence[Row], kind: str, name: str) -> list[tuple[float, float]]:
    """(epoch, value) of the rows of a kind that have the value, and have it finite."""
    return [
        (float(row["epoch"]), float(value))
        for row in history
        if row.get("kind") == kind and (value := row.get(name)) is not None and math.isfinite(value)
    ]
