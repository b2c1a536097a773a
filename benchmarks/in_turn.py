"""Run programs in turn, seed by seed, and measure the pace of the machine before and after each run."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from benchmarks.arms import HARDLY_VALIDATED, SAME_PACE, Paired, machines, measured, refuse_incomparable_times
from benchmarks.paper.runs import CONFIG, Cell, Runs
from benchmarks.peers_training import Program, Timm, once
from benchmarks.record import forget, hardware, record, versions_of

from efficientnetv2.evaluation.evaluation_result import library_versions

Rows = list[dict[str, Any]]  # one per seed
Found = TypeVar("Found")


def mean_top1(rows: Iterable[Mapping[str, Any]]) -> float:
    """Mean top-1 over the seeds."""
    return statistics.fmean(row["top1"] for row in rows)


def seconds(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Seconds of training, one value per seed."""
    return [row["train_s"] for row in rows]


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


def peer_side(name: str, peer: Timm | Program, lengths: Sequence[float], pictures: Path, out: Path) -> Side:
    """Another program on these images. Its runs are in ``out``/sides."""

    def run(epochs: float, seed: int) -> dict[str, Any]:
        arguments = {"epochs": int(epochs), "seed": seed}
        file = out / "sides" / f"{name}_{epochs:g}_{seed}.json"
        return paced(
            file, partial(peer.trained, pictures, **arguments), {**peer.asked(pictures, **arguments), "seed": seed}
        )

    return Side(name, run, lengths)


def our_side(runs: Runs, image_size: int, lengths: Sequence[float], model: str = "efficientnetv2_b0") -> Side:
    """Recipe ``quick`` with sizes from half of ``image_size`` on, validated at the end. ``runs.out`` is OUT."""
    within = replace(runs, out=runs.out / model)

    def whole(cell: Cell, seed: int) -> dict[str, Any]:
        # The pace before and after is meaningless for a resumed run.
        shutil.rmtree(within.folder(cell, seed), ignore_errors=True)
        return measured(within, cell, seed)

    def run(epochs: float, seed: int) -> dict[str, Any]:
        overrides = (
            f"epochs={epochs:g}", *HARDLY_VALIDATED,
            f"progressive.image_size={{start: {image_size / 2:g}, end: {image_size}}}",
        )  # fmt: skip
        cell = Cell(f"ours {epochs:g} epochs", "run", "quick", model, overrides)
        file = runs.out / "sides" / f"{model}_{epochs:g}_{seed}.json"
        return paced(file, partial(whole, cell, seed), {CONFIG: within.config(cell), "seed": seed})

    return Side(model, run, lengths)


def pace(seconds: float = 3.0) -> float:
    """Products of two matrices of 512 x 512 per second: the median over these seconds.

    They allocate little: how fast large blocks are allocated depends on what the process has done before.
    """
    matrix = torch.randn(512, 512)
    times = []
    began = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - began < seconds:
        before = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - before)
    return 1 / statistics.median(times)


def at_steady_pace(measure: Callable[[], Found]) -> tuple[Found, bool]:
    """The result of a measurement, and whether the pace before and after it is the same. Prints a change of pace."""
    before = pace()
    found = measure()
    after = pace()
    is_steady = max(before, after) <= SAME_PACE * min(before, after)
    if not is_steady:
        print(
            f"The machine changed its pace from {before:.1f} to {after:.1f} products/s: measure this again.", flush=True
        )
    return found, is_steady


def paced(file: Path, make: Callable[[], dict[str, Any]], asked: Mapping[str, Any]) -> dict[str, Any]:
    """A run saved by ``once``, with the ``pace`` before and after it and its ``file``."""

    def run() -> dict[str, Any]:
        before = pace()
        row = {"hardware": hardware(), **make(), "file": file.name}
        row["versions"] = library_versions() | row.get("versions", {})
        results = ", ".join(f"{name} {row[name]:g}" for name in ("top1", "train_s", "wall_s") if name in row)
        print(f"{file.stem}: {results}", flush=True)
        return row | {"pace": [round(one, 2) for one in (before, pace())]}

    return once(file, run, asked)


def refuse_drift(rows: Sequence[Mapping[str, Any]], limit: float) -> None:
    """Refuse runs of one seed between which the machine, its pace or the version of torch changed.

    Args:
        rows: Runs of one seed, with ``hardware``, ``pace`` and ``file``. Rows without ``versions`` may differ in torch.
        limit: Largest ratio of two paces.

    Raises:
        SystemExit: The runs differ.
    """
    refuse_incomparable_times(rows)
    paces = [one for row in rows for one in row["pace"]]
    if max(paces) > limit * min(paces):
        files = ", ".join(f"{row['file']} ({' to '.join(map(str, row['pace']))} products/s)" for row in rows)
        raise SystemExit(f"The machine changed its pace during {files}. Delete these files in OUT/sides and repeat.")


def take_turns(sides: Sequence[tuple[Side, float]], seeds: int, limit: float = SAME_PACE) -> list[Rows]:
    """Run each side once per seed, in reverse order for every second seed.

    Args:
        sides: Each with its epochs.
        seeds: Number of seeds.
        limit: Largest ratio of two paces within a seed.

    Returns:
        The rows of each side, one per seed.

    Raises:
        SystemExit: ``refuse_drift`` refuses the runs of a seed.
    """
    found: list[Rows] = []
    for seed in range(seeds):
        order = -1 if seed % 2 else 1
        rows = [side.run(epochs, seed) for side, epochs in sides[::order]][::order]
        refuse_drift(rows, limit)
        found.append(rows)
    return [list(rows) for rows in zip(*found, strict=True)]


@dataclass(frozen=True)
class Claim:
    """A result to record.

    Args:
        figure: Value and interval.
        unit: Unit of the value.
        rows: Runs that the value is computed from.
    """

    figure: Paired
    unit: str
    rows: Rows


def record_claims(found: Mapping[str, Claim], names: Iterable[str], command: str) -> None:
    """Record the claims with these names. Delete names without a claim."""
    for name in names:
        if name in found:
            claim = found[name]
            on, versions = machines(claim.rows), versions_of(claim.rows)
            record(name, unit=claim.unit, command=command, on=on, versions=versions, **asdict(claim.figure))
        else:
            forget(name)
