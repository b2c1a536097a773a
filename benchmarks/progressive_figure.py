"""Plot docs/images/progressive_REGIME.png from the record of ``benchmarks.progressive``.

Run: python -m benchmarks.progressive_figure paper|short|resnet50

Left: top-1 of each run against its minutes, with a line between fixed and progressive of the same seed. Right: minutes
of a run by image size.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import IMAGES, RESULTS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Arms = Mapping[str, Sequence[Mapping[str, Any]]]


def draw(arms: Arms) -> Figure:
    """Draw both panels.

    Args:
        arms: Name -> results of ``benchmarks.arms.measured``, one per seed.
    """
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _accuracy(left, arms)
    _cost(right, arms)
    return figure


def _accuracy(axes: Axes, arms: Arms) -> None:
    points = {arm: [(row["train_s"] / 60, 100 * row["top1"]) for row in rows] for arm, rows in arms.items()}
    first, second = list(points.values())[:2]
    for pair in zip(first, second, strict=True):
        axes.plot(*zip(*pair, strict=True), color="#bbbbbb", linewidth=1, zorder=0)
    for (arm, found), marker in zip(points.items(), "os^", strict=False):
        axes.scatter(*zip(*found, strict=True), marker=marker, label=arm)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("top-1, %")
    axes.set_xlim(left=0)
    axes.legend()


def _cost(axes: Axes, arms: Arms) -> None:
    sizes = sorted({size["image_size"] for rows in arms.values() for row in rows for size in row["sizes"]})
    bottom = [0.0] * len(arms)
    for px in sizes:
        minutes = [statistics.fmean(_minutes(row, px) for row in rows) for rows in arms.values()]
        axes.bar(list(arms), minutes, bottom=bottom, label=f"{px} px")
        bottom = [below + one for below, one in zip(bottom, minutes, strict=True)]
    axes.set_ylabel("minutes of training, mean")
    axes.legend()


def _minutes(row: Mapping[str, Any], px: int) -> float:
    return sum(size["train_s"] for size in row["sizes"] if size["image_size"] == px) / 60


def write(regime: str) -> Path:
    """Draw the record of a regime; return the file."""
    recorded = json.loads((RESULTS / f"progressive_{regime}.json").read_text(encoding="utf-8"))
    file = IMAGES / f"progressive_{regime}.png"
    draw(recorded["arms"]).savefig(file, dpi=144, metadata={"Software": None})
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("regime")
    print(write(parser.parse_args().regime))
