"""Runs of two programs that take turns, seed by seed, with the pace of the machine before and after each run."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.arms import SAME_PACE, measured, refuse_incomparable_times
from benchmarks.paper.runs import CONFIG, Cell, Runs
from benchmarks.peers_training import once
from benchmarks.record import hardware
from benchmarks.time_to_accuracy import Rows, mean_top1, our_cell
from torch import nn

from efficientnetv2.evaluation.evaluation_result import library_versions


@dataclass(frozen=True)
class Side:
    """One program at several lengths.

    Args:
        name: Key of its results.
        run: Row of a run, from epochs and seed. A run that is done is only read.
        lengths: Epochs to try, shortest first.
    """

    name: str
    run: Callable[[float, int], dict[str, Any]]
    lengths: Sequence[float]

    def first_length(self, top1: float) -> float:
        """The shortest length whose first seed reaches this top-1, or the longest length."""
        return next((epochs for epochs in self.lengths if self.run(epochs, 0)["top1"] >= top1), self.lengths[-1])

    def reaching(self, top1: float, start: float, seeds: int) -> tuple[float, Rows] | None:
        """The first length from ``start`` on whose mean reaches this top-1, with its rows; None if no length does."""
        for epochs in self.lengths:
            if epochs >= start:
                rows = [self.run(epochs, seed) for seed in range(seeds)]
                if mean_top1(rows) >= top1:
                    return epochs, rows
        return None


def our_side(runs: Runs, image_size: int, lengths: Sequence[float], model: str = "efficientnetv2_b0") -> Side:
    """``effnetv2 train --recipe quick`` with its own schedule and no tuning; ``runs.out`` is OUT."""
    within = replace(runs, out=runs.out / model)

    def whole(cell: Cell, seed: int) -> dict[str, Any]:
        # The pace before and after would say nothing of a run that was stopped and resumed.
        shutil.rmtree(within.folder(cell, seed), ignore_errors=True)
        return measured(within, cell, seed)

    def run(epochs: float, seed: int) -> dict[str, Any]:
        cell = our_cell(epochs, image_size, model)
        file = runs.out / "sides" / f"{model}_{epochs:g}_{seed}.json"
        return paced(file, partial(whole, cell, seed), {CONFIG: within.config(cell), "seed": seed})

    return Side(model, run, lengths)


def pace(seconds: float = 3.0) -> float:
    """Steps per second of one fixed convolution, forward and backward: the median over these seconds."""
    layer = nn.Conv2d(64, 64, 3, padding=1)
    images = torch.randn(16, 64, 56, 56)
    times = []
    began = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - began < seconds:
        before = time.perf_counter()
        layer(images).sum().backward()
        times.append(time.perf_counter() - before)
    return 1 / statistics.median(times)


def paced(file: Path, make: Callable[[], dict[str, Any]], asked: Mapping[str, Any]) -> dict[str, Any]:
    """A run as ``once`` keeps it, with the ``pace`` before and after it and the ``file`` that keeps it."""

    def run() -> dict[str, Any]:
        before = pace()
        row = {"hardware": hardware(), "versions": library_versions(), **make(), "file": file.name}
        print(f"{file.stem}: {row['top1']:.1%} in {row['train_s'] / 60:.1f} minutes", flush=True)
        return row | {"pace": [round(one, 2) for one in (before, pace())]}

    return once(file, run, asked)


def refuse_drift(rows: Sequence[Mapping[str, Any]], limit: float) -> None:
    """Refuse runs during which, or between which, the machine changed its pace.

    Args:
        rows: Runs of one seed, with ``pace`` and ``file``.
        limit: Largest ratio of two paces.

    Raises:
        SystemExit: The paces differ.
    """
    paces = [one for row in rows for one in row["pace"]]
    if max(paces) > limit * min(paces):
        files = ", ".join(f"{row['file']} ({' to '.join(map(str, row['pace']))} steps/s)" for row in rows)
        raise SystemExit(f"The machine changed its pace during {files}. Delete these files in OUT, then start again.")


def take_turns(sides: Sequence[tuple[Side, float]], seeds: int, limit: float = SAME_PACE) -> list[Rows]:
    """One run of each side and its epochs per seed, in the reverse order with every second seed.

    Args:
        sides: Each with its epochs.
        seeds: Number of seeds.
        limit: Largest ratio of two paces within a seed.

    Returns:
        The rows of each side, one per seed.

    Raises:
        SystemExit: Runs of one seed were made on different machines, with different versions of torch, or at different
            paces of the machine.
    """
    found: list[Rows] = []
    for seed in range(seeds):
        order = -1 if seed % 2 else 1
        rows = [side.run(epochs, seed) for side, epochs in sides[::order]][::order]
        refuse_incomparable_times(rows)
        refuse_drift(rows, limit)
        found.append(rows)
    return [list(rows) for rows in zip(*found, strict=True)]
