"""The plots of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efficientnetv2.evaluation.plot_style import COLORS, INK, WIDTH_IN, style_axes
from efficientnetv2.nas.results import Cost, TrialRow, best, best_so_far, millions, pareto_front, step_ms

_MAX_BARS = 12  # Ours.


def draw_fronts(rows: Sequence[TrialRow]) -> Figure | None:
    """Accuracy against step time and against parameters, with the Pareto fronts. None without a finished trial."""
    if not any(row.end == "finished" for row in rows):
        return None
    figure = Figure(figsize=(WIDTH_IN, 5.4), layout="constrained")
    costs: tuple[tuple[str, Cost], ...] = (("training step, ms", step_ms), ("parameters, millions", millions))
    for ax, (unit, cost) in zip(figure.subplots(2), costs, strict=True):
        _draw_front(ax, rows, cost)
        ax.set_xlabel(unit, color=INK)
        style_axes(ax, "top-1 of a trial, %")
    _legend(figure.axes[0], columns=3)
    return figure


def _draw_front(ax: Axes, rows: Sequence[TrialRow], cost: Cost) -> None:
    points = [
        (value, 100 * row.top1)
        for row in rows
        if row.end == "finished" and (value := cost(row.measurement)) is not None
    ]
    x, y = zip(*points, strict=True)
    ax.scatter(x, y, s=14, color=COLORS[0], alpha=0.5, linewidths=0, label="trials")
    edge = [(cost(row.measurement), 100 * row.top1) for row in pareto_front(rows, cost)]
    ax.plot(
        *zip(*edge, strict=True), color=COLORS[1], linewidth=1.5, marker="o", markersize=4,
        drawstyle="steps-post", label="none better and cheaper",
    )  # fmt: skip
    (leader,) = best(rows)
    ax.scatter(
        [cost(leader.measurement) or 0.0], [100 * leader.top1], s=110, marker="*", color=COLORS[2], zorder=3,
        label="largest reward",
    )  # fmt: skip


def draw_rewards(rows: Sequence[TrialRow]) -> Figure | None:
    """The reward of every trial, and the largest so far. None without a finished trial."""
    if not any(row.end == "finished" for row in rows):
        return None
    figure = Figure(figsize=(WIDTH_IN, 2.8), layout="constrained")
    ax = figure.subplots()
    for end, marker, color in (("finished", "o", 0), ("stopped", "v", 3), ("failed", "x", 4)):
        if chosen := [row for row in rows if row.end == end]:
            ax.scatter(
                [row.number for row in chosen], [row.reward for row in chosen], s=16, marker=marker,
                color=COLORS[color], alpha=0.6, linewidths=1 if marker == "x" else 0, label=end,
            )  # fmt: skip
    numbers = [row.number for row in rows]
    ax.step(numbers, best_so_far(rows), where="post", color=COLORS[1], linewidth=1.5, label="largest so far")
    _legend(ax, columns=4)
    ax.set_xlabel("trial", color=INK)
    style_axes(ax, "reward")
    return figure


def draw_importances(importances: Mapping[str, float]) -> Figure | None:
    """The share of each decision in the variance of the rewards, as bars. None where there are none."""
    if not importances:
        return None
    shown = list(importances.items())[:_MAX_BARS]
    figure = Figure(figsize=(WIDTH_IN, 0.5 + 0.26 * len(shown)), layout="constrained")
    ax = figure.subplots()
    ax.barh([name for name, _ in shown], [100 * share for _, share in shown], height=0.6, color=COLORS[0])
    ax.invert_yaxis()
    style_axes(ax, "share of the rewards' spread, %")
    ax.grid(visible=False, axis="y")
    return figure


def _legend(ax: Axes, *, columns: int) -> None:
    ax.legend(
        frameon=False, labelcolor=INK, fontsize=9, ncols=columns, loc="lower right", bbox_to_anchor=(1, 1)
    )
