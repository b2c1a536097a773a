"""Drawings of a study: what accuracy costs, how the reward grew, which decisions matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efficientnetv2.evaluation.drawing import COLOURS, INK, WIDTH_IN, plain
from efficientnetv2.nas.measurement import Measurement
from efficientnetv2.nas.results import Row, best, front, incumbents

# Of decisions, so many bars; the others matter less. Ours.
_BARS = 12


def step_ms(found: Measurement) -> float | None:
    """The time of a training step in milliseconds."""
    return None if found.step_seconds is None else 1000 * found.step_seconds


def millions(found: Measurement) -> float:
    """Parameters in millions."""
    return found.parameters / 1e6


def draw_fronts(rows: Sequence[Row]) -> Figure | None:
    """Accuracy against the time of a step and against parameters; what nothing beats is joined. None without a trial.

    Args:
        rows: of a study.
    """
    if not any(row.end == "finished" for row in rows):
        return None
    figure = Figure(figsize=(WIDTH_IN, 5.4), layout="constrained")
    costs: tuple[tuple[str, Callable[[Measurement], float | None]], ...] = (
        ("training step, ms", step_ms),
        ("parameters, millions", millions),
    )
    for ax, (unit, cost) in zip(figure.subplots(2), costs, strict=True):
        _front(ax, rows, cost)
        ax.set_xlabel(unit, color=INK)
        plain(ax, "top-1 of a trial, %")
    figure.axes[0].legend(
        frameon=False, labelcolor=INK, fontsize=9, ncols=3, loc="lower right", bbox_to_anchor=(1, 1)
    )
    return figure


def _front(ax: Axes, rows: Sequence[Row], cost: Callable[[Measurement], float | None]) -> None:
    soft, strong, leading = COLOURS[0], COLOURS[1], COLOURS[2]
    points = [
        (value, 100 * (row.measurement.top1 or 0.0))
        for row in rows
        if row.end == "finished" and (value := cost(row.measurement)) is not None
    ]
    across, up = zip(*points, strict=True)
    ax.scatter(across, up, s=14, color=soft, alpha=0.5, linewidths=0, label="trials")
    edge = [(cost(row.measurement), 100 * (row.measurement.top1 or 0.0)) for row in front(rows, cost)]
    ax.plot(
        *zip(*edge, strict=True), color=strong, linewidth=1.5, marker="o", markersize=4,
        drawstyle="steps-post", label="none better and cheaper",
    )  # fmt: skip
    (leader,) = best(rows)
    ax.scatter(
        [cost(leader.measurement) or 0.0], [100 * (leader.measurement.top1 or 0.0)], s=110, marker="*",
        color=leading, zorder=3, label="largest reward",
    )  # fmt: skip


def draw_rewards(rows: Sequence[Row]) -> Figure | None:
    """The reward of every trial, and the largest so far; None without a trial.

    Args:
        rows: of a study.
    """
    if not any(row.end == "finished" for row in rows):
        return None
    figure = Figure(figsize=(WIDTH_IN, 2.8), layout="constrained")
    ax = figure.subplots()
    for end, marker, colour in (("finished", "o", 0), ("stopped", "v", 3), ("failed", "x", 4)):
        these = [row for row in rows if row.end == end]
        if these:
            ax.scatter(
                [row.number for row in these], [row.reward for row in these], s=16, marker=marker,
                color=COLOURS[colour], alpha=0.6, linewidths=1 if marker == "x" else 0, label=end,
            )  # fmt: skip
    ax.step(
        [row.number for row in rows], incumbents(rows), where="post", color=COLOURS[1], linewidth=1.5,
        label="largest so far",
    )  # fmt: skip
    ax.legend(frameon=False, labelcolor=INK, fontsize=9, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
    ax.set_xlabel("trial", color=INK)
    plain(ax, "reward")
    return figure


def draw_importances(importances: Mapping[str, float]) -> Figure | None:
    """Which decisions matter, as bars; None where nothing is known.

    Args:
        importances: decision → its share, the most first.
    """
    if not importances:
        return None
    shown = list(importances.items())[:_BARS]
    figure = Figure(figsize=(WIDTH_IN, 0.5 + 0.26 * len(shown)), layout="constrained")
    ax = figure.subplots()
    ax.barh([name for name, _ in shown], [100 * share for _, share in shown], height=0.6, color=COLOURS[0])
    ax.invert_yaxis()
    plain(ax, "share of the rewards' spread, %")
    ax.grid(visible=False, axis="y")
    return figure
