"""Compare programs seed by seed, at the same pace of the machine."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.arms import HARDLY_VALIDATED, SAME_PACE, Paired, machines, refuse_incomparable_times
from benchmarks.paper.runs import CONFIG, Cell, Runs
from benchmarks.peers_training import Program, Timm, once
from benchmarks.record import forget, hardware, record, versions_of
from benchmarks.slices import Run, pace, run_in_slices

from efficientnetv2.evaluation.evaluation_result import library_versions
from efficientnetv2.training.callbacks import Callback

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
        run: Training run, from epochs and seed.
        lengths: Epochs of its runs.
    """

    name: str
    run: Callable[[float, int], Run]
    lengths: Sequence[float]


def peer_side(
    name: str, peer: Timm | Program, lengths: Sequence[float], pictures: Path, out: Path, epoch_s: float
) -> Side:
    """Another program on these images. Its rows are in ``out``/sides. An epoch takes about ``epoch_s`` seconds."""

    def run(epochs: float, seed: int) -> Run:
        arguments = {"epochs": int(epochs), "seed": seed}
        file = out / "sides" / f"{name}_{epochs:g}_{seed}.json"
        conditions = {**peer.asked(pictures, **arguments), "seed": seed}
        return Run(file, partial(peer.trained, pictures, **arguments), conditions, epochs * epoch_s)

    return Side(name, run, lengths)


def our_side(
    runs: Runs, image_size: int, lengths: Sequence[float], epoch_s: float, model: str = "efficientnetv2_b0"
) -> Side:
    """Recipe ``quick`` with sizes from half of ``image_size`` on. ``runs.out`` is OUT. See ``peer_side``."""
    within = replace(runs, out=runs.out / model)

    def run(epochs: float, seed: int) -> Run:
        overrides = (
            f"epochs={epochs:g}", *HARDLY_VALIDATED,
            f"progressive.image_size={{start: {image_size / 2:g}, end: {image_size}}}",
        )  # fmt: skip
        cell = Cell(f"ours {epochs:g} epochs", "run", "quick", model, overrides)
        file = runs.out / "sides" / f"{model}_{epochs:g}_{seed}.json"
        conditions = {CONFIG: within.config(cell), "seed": seed}
        return Run(file, partial(_train_anew, within, cell, seed), conditions, epochs * epoch_s)

    return Side(model, run, lengths)


class _Span(Callback):
    """When the first step of a run begins and the last step ends. Validations of its stages are between them."""

    def on_train_start(self, step: int, num_steps: int) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, step: int) -> None:
        self.ended = time.perf_counter()


def _train_anew(runs: Runs, cell: Cell, seed: int) -> dict[str, Any]:
    """Delete an unfinished run and train from the first step: its earlier slices are unknown."""
    shutil.rmtree(runs.folder(cell, seed), ignore_errors=True)
    span = _Span()
    report = replace(runs, callbacks=[span]).report(cell, seed)
    return {"top1": report["top1"], "epochs": report["epochs"], "spans": [(span.began, span.ended)]}


def rows_of_sides(sides: Sequence[Side], seeds: int, limit: float = SAME_PACE) -> dict[str, dict[float, Rows]]:
    """Train what is missing: the missing runs of a seed at the same time, in slices.

    Args:
        sides: Programs.
        seeds: Number of seeds.
        limit: Largest ratio of two paces within a seed.

    Returns:
        Rows by name of the side and by epochs, one per seed.

    Raises:
        SystemExit: A run failed, a row is of another run, or ``refuse_drift`` refuses the rows of a seed.
    """
    found: dict[str, dict[float, Rows]] = {side.name: {epochs: [] for epochs in side.lengths} for side in sides}
    for seed in range(seeds):
        runs = {(side.name, epochs): side.run(epochs, seed) for side in sides for epochs in side.lengths}
        done = [run for run in runs.values() if run.file.exists()]
        for run in done:  # refused before others train
            once(run.file, run.make, run.conditions)
        run_in_slices([run for run in runs.values() if run not in done])
        rows = {key: once(run.file, run.make, run.conditions) for key, run in runs.items()}
        refuse_drift(list(rows.values()), limit)
        for (name, epochs), row in rows.items():
            found[name][epochs].append(row)
    return found


def first_reaching(lengths: Mapping[float, Rows], top1: float) -> tuple[float, Rows] | None:
    """The shortest length whose mean reaches this top-1, with its rows; None if no length does."""
    return next(((epochs, rows) for epochs, rows in sorted(lengths.items()) if mean_top1(rows) >= top1), None)


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
    """Refuse runs of one seed that differ in machine, pace or version of torch.

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
