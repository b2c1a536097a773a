"""What each stage of a run cost, and how good the run was after so much training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efficientnetv2.evaluation.curve import Row
from efficientnetv2.evaluation.drawing import COLOURS, INK, WIDTH_IN, called, plain, strokes

# A run with more of them has no stages that a page could list: its setting changes all the time. Ours.
_MOST_STAGES = 12
# What sets one stage apart from the next, of a training row.
_SETTING = (
    "image_px", "randaugment", "mixup_alpha", "cutmix_alpha", "cutout", "dropout", "drop_path", "label_smoothing",
)  # fmt: skip


@dataclass(frozen=True)
class StageCost:
    """A stage of a run that has taken place. Validation and saving count in none of its figures.

    Args:
        image_px: side of its pictures.
        epochs: that it lasted.
        seconds: of training.
        images_per_s: on average.
        input_wait_share: of these seconds, the share in which the loop waited for pictures.
        top1: of the last validation within it; None if there was none.
    """

    image_px: int
    epochs: float
    seconds: float
    images_per_s: float
    input_wait_share: float
    top1: float | None


def stage_costs(history: Sequence[Row]) -> tuple[StageCost, ...]:
    """The stages of a run, in order; none if its setting changes all the time.

    Args:
        history: rows of ``metrics.jsonl``. Rows that do not say how long they took are left out.
    """
    rows = [row for row in history if row.get("kind") == "train" and row.get("train_s")]
    stages = [
        list(part) for _, part in itertools.groupby(rows, key=lambda row: [row.get(n) for n in _SETTING])
    ]
    if len(stages) > _MOST_STAGES:
        return ()
    scores = [(row["step"], row["top1"]) for row in _validations(history)] if rows else []
    costs, begun_step, begun_epoch = [], 0, 0.0
    for part in stages:
        seconds = sum(row["train_s"] for row in part)
        within = [top1 for step, top1 in scores if begun_step < step <= part[-1]["step"]]
        costs.append(
            StageCost(
                image_px=part[-1]["image_px"],
                epochs=part[-1]["epoch"] - begun_epoch,
                seconds=seconds,
                images_per_s=sum(row["images_per_s"] * row["train_s"] for row in part) / seconds,
                input_wait_share=sum(row["waited_s"] for row in part) / seconds,
                top1=within[-1] if within else None,
            )
        )
        begun_step, begun_epoch = part[-1]["step"], part[-1]["epoch"]
    return tuple(costs)


def top1_over_time(history: Sequence[Row]) -> list[tuple[float, float]]:
    """Points of the validation curve by the time spent on training: (seconds, top-1).

    Args:
        history: rows of ``metrics.jsonl``.
    """
    trained = [
        (row["step"], row["train_s"]) for row in history if row.get("kind") == "train" and row.get("train_s")
    ]
    if not trained:
        return []
    return [
        (sum(seconds for step, seconds in trained if step <= row["step"]), row["top1"])
        for row in _validations(history)
    ]


def _validations(history: Sequence[Row]) -> list[Row]:
    """Those on minival where there is one, else those on ``val``: points of one curve are of one split."""
    rows = [row for row in history if row.get("kind") in ("val", "minival") and row.get("top1") is not None]
    chose = [row for row in rows if row["kind"] == "minival"]
    return chose or rows


def draw_costs(runs: Mapping[str, Sequence[StageCost]]) -> Figure | None:
    """A bar for each stage, the time spent waiting for pictures apart; None without stages.

    Args:
        runs: a run's name → its stages, in order. The name of a single run is left out.
    """
    named = [
        (f"{called(name, letters=24)}, " * (len(runs) > 1) + f"{number}: {stage.image_px} px", stage)
        for name, stages in runs.items()
        for number, stage in enumerate(stages, start=1)
    ]
    if not named:
        return None
    names, stages = zip(*named, strict=True)
    height = sum(0.15 + 0.15 * (1 + name.count("\n")) for name in names)
    figure = Figure(figsize=(WIDTH_IN, 0.9 + height), layout="constrained")
    ax = figure.subplots()
    scale, unit = _unit(max(stage.seconds for stage in stages))
    waits = [stage.seconds * stage.input_wait_share / scale for stage in stages]
    works = [stage.seconds / scale - wait for stage, wait in zip(stages, waits, strict=True)]
    places = range(len(names))  # of their own each: two names may be cut to the same
    ax.barh(places, works, height=0.6, color=COLOURS[0], label="training")
    bars = ax.barh(places, waits, left=works, height=0.6, color=COLOURS[1], label="waiting for pictures")
    speeds = [f" {stage.images_per_s:,.0f} images/s" for stage in stages]
    ax.bar_label(bars, speeds, fontsize=9, color=INK)
    ax.set_yticks(places, names)
    ax.invert_yaxis()
    ax.margins(x=0.3)  # room for the speeds
    ax.set_xlim(left=0)
    ax.set_xlabel(unit, color=INK)
    figure.legend(frameon=False, labelcolor=INK, fontsize=9, ncols=2, loc="outside upper right")
    plain(ax, "")
    ax.grid(visible=False, axis="y")
    return figure


def draw_top1_over_time(histories: Mapping[str, Sequence[Row]]) -> Figure | None:
    """Validation top-1 against the time spent on training, a line per run; None without a point.

    Args:
        histories: a run's name → rows of its ``metrics.jsonl``; at most twenty runs have lines of their own.
    """
    lines = {name: points for name, rows in histories.items() if (points := top1_over_time(rows))}
    if not lines:
        return None
    figure = Figure(figsize=(WIDTH_IN, 2.6), layout="constrained")
    ax = figure.subplots()
    scale, unit = _unit(max(points[-1][0] for points in lines.values()))
    for (name, points), (colour, stroke) in zip(lines.items(), strokes(), strict=False):
        ax.plot(
            [seconds / scale for seconds, _ in points],
            [100 * top1 for _, top1 in points],
            label=called(name),
            color=colour,
            linestyle=stroke,
            linewidth=1.5,
            marker="o",
            markersize=3,
        )
    ax.margins(y=0.18)  # room for the sizes, above the curve
    _mark_stages(ax, histories, scale)
    if len(lines) > 1:
        ax.legend(frameon=False, labelcolor=INK, fontsize=9, loc="lower right")
    ax.set_xlim(left=0)
    ax.set_xlabel(f"{unit} of training", color=INK)
    plain(ax, "validation top-1, %")
    return figure


def _mark_stages(ax: Axes, histories: Mapping[str, Sequence[Row]], scale: float) -> None:
    """Of a single run: where a stage begins, and its size."""
    if len(histories) != 1:
        return
    (history,) = histories.values()
    stages, begun = stage_costs(history), 0.0
    for stage in stages if len(stages) > 1 else ():
        ax.axvline(begun, color=INK, linewidth=0.6, linestyle=":")
        ax.annotate(
            f"{stage.image_px} px", (begun, 1), xycoords=("data", "axes fraction"), xytext=(3, -9),
            textcoords="offset points", fontsize=8, color=INK,
        )  # fmt: skip
        begun += stage.seconds / scale


def _unit(seconds: float) -> tuple[float, str]:
    """In which unit so many seconds are best read: how many of them it is, and its name."""
    for scale, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * scale:
            return scale, name
    return 1.0, "seconds"
