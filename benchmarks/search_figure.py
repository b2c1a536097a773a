"""Plot docs/images/search_record.png from the recorded study and the comparison of samplers.

Run: python -m benchmarks.search_figure

Left: architectures of benchmarks/results/search_record.csv, top-1 of the proxy against the time of a training step. A
line joins the Pareto front; a star is the largest reward. Right: best reward of each sampler after each trial, the mean
over the seeds of ``benchmarks.samplers_replay``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from benchmarks.record import IMAGES, RESULTS
from benchmarks.surrogate import Table, read
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_BELOW = 4.5  # points of accuracy that leave room for the legend
FILE = IMAGES / "search_record.png"


def draw(table: Table, incumbents: Mapping[str, Sequence[float]]) -> Figure:
    """Draw both panels.

    Args:
        table: Recorded study.
        incumbents: Sampler -> mean of its best reward after each trial.
    """
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _networks(left, table)
    for name, rewards in incumbents.items():
        right.plot(range(1, len(rewards) + 1), rewards, label=name.replace("_", " "))
    right.set_xlabel("trials")
    right.set_ylabel("best reward so far, foretold")
    right.legend()
    return figure


def front(cost: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """Return (M) indices of the Pareto front, lowest cost first; of equal points the first.

    Args:
        cost: (N) values, lower is better.
        worth: (N) values, higher is better.
    """
    order = np.lexsort((-worth, cost))
    best_before = np.maximum.accumulate(np.concatenate([[-np.inf], worth[order][:-1]]))
    return order[worth[order] > best_before]


def _networks(axes: Axes, table: Table) -> None:
    ms, percent = 1000 * table.step_seconds, 100 * table.top1
    edge, leader = front(ms, percent), int(table.rewards.argmax())
    axes.scatter(ms, percent, s=12, alpha=0.5, linewidths=0, label=f"{len(ms)} networks, drawn at random")
    axes.plot(
        ms[edge], percent[edge], color="tab:orange", marker="o", markersize=4, drawstyle="steps-post",
        label="none better and faster",
    )  # fmt: skip
    axes.scatter(ms[leader], percent[leader], s=120, marker="*", color="tab:green", zorder=3, label="largest reward")
    axes.set_xlabel("training step, ms")
    axes.set_ylabel("top-1 of the proxy, %")
    axes.set_ylim(bottom=percent.min() - _BELOW)
    axes.legend(loc="lower right")


def main() -> None:
    replay = json.loads((RESULTS / "samplers_replay.json").read_text(encoding="utf-8"))
    figure = draw(read(RESULTS / "search_record.csv"), replay["mean_incumbents"])
    figure.savefig(FILE, dpi=144, metadata={"Software": None})
    print(FILE)


if __name__ == "__main__":
    main()
