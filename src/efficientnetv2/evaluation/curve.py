"""The learning curve: what a run reached, above the settings that it had at that time."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
_WIDTH_IN = 5.8  # narrow, so that its letters stay legible on a phone
_INK = {False: "#333333", True: "#d0d0d0"}
_GRID = {False: "#dddddd", True: "#444444"}


def constants(history: Sequence[Row]) -> dict[str, float]:
    """The settings that were the same in every training row, by their words; without those that are off."""
    still = {}
    for name, words in QUANTITIES.items():
        values = {value for _, value in _points(history, "train", name)}
        if len(values) == 1 and (value := values.pop()):
            still[words] = value
    return still


def learning_curve(history: Sequence[Row], *, dark: bool) -> bytes | None:
    """Loss, validation figures and every setting that changed, over the epochs.

    Args:
        history: rows of ``metrics.jsonl``: ``kind`` is ``train`` (``epoch``, ``loss``, ``lr``, the setting,
            ``images_per_s``) or ``val`` (``epoch``, ``top1``, ``macro_f1``). What a row lacks is left out.
        dark: light lines, for a dark page; the background is transparent.

    Returns:
        An SVG, or None if there is nothing to draw.
    """
    scores = {"top-1": _points(history, "val", "top1"), "macro-F1": _points(history, "val", "macro_f1")}
    panels = [
        ("loss", {"loss": _points(history, "train", "loss")}, 1.4, False),
        ("validation", {name: points for name, points in scores.items() if points}, 1.6, False),
    ]
    for name, words in QUANTITIES.items():
        points = _points(history, "train", name)
        if len({value for _, value in points}) > 1:
            panels.append((words, {words: points}, 0.7, name not in ("lr", "images_per_s")))
    panels = [panel for panel in panels if any(panel[1].values())]
    if not panels:
        return None
    heights = [height for *_, height, _ in panels]
    figure = Figure(figsize=(_WIDTH_IN, sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (words, lines, _, stepwise) in zip(axes, panels, strict=True):
        _draw(ax, words, lines, stepwise=stepwise, dark=dark)
    axes[-1].set_xlabel("epoch", color=_INK[dark])
    figure.align_ylabels(list(axes))
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return svg.getvalue()


def _draw(
    ax: Axes, words: str, lines: Mapping[str, list[tuple[float, float]]], *, stepwise: bool, dark: bool
) -> None:
    # Okabe and Ito's colours, told apart by all eyes, on light and dark alike.
    colours = ("#0072b2", "#d55e00") if not dark else ("#56b4e9", "#e69f00")
    for (name, points), colour in zip(lines.items(), colours, strict=False):
        ax.plot(
            [epoch for epoch, _ in points],
            [value for _, value in points],
            label=name,
            color=colour,
            linewidth=1.5,
            drawstyle="steps-post" if stepwise else "default",
            marker="o" if len(points) == 1 or (len(lines) > 1 and len(points) < 30) else None,
            markersize=3,
        )
    # Small panels say their name above the axis: beside it there is no room.
    ax.set_title(words, loc="left", fontsize=9, color=_INK[dark], pad=3)
    if len(lines) > 1:
        ax.legend(frameon=False, labelcolor=_INK[dark], fontsize=9)
    ax.margins(x=0.01, y=0.15)
    ax.tick_params(colors=_INK[dark], labelsize=9)
    ax.locator_params(axis="y", nbins=3 if len(lines) == 1 and stepwise else 5)
    ax.grid(color=_GRID[dark], linewidth=0.6)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _points(history: Sequence[Row], kind: str, name: str) -> list[tuple[float, float]]:
    """(epoch, value) of the rows of a kind that have the value, and have it finite."""
    return [
        (float(row["epoch"]), float(value))
        for row in history
        if row.get("kind") == kind and (value := row.get(name)) is not None and math.isfinite(value)
    ]
