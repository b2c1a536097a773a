"""Studies of ``benchmarks.search_found``: real studies with several workers, and the study that a table replaces."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import torch
from benchmarks.record import begun
from benchmarks.search_table import Record
from benchmarks.search_trials import SAME, SEED, drawn
from benchmarks.surrogate import worth

from efficientnetv2.architectures.registry import read_architecture
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.cli.main import app
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.results import TrialRow, load_rows
from efficientnetv2.nas.space import Space
from efficientnetv2.nas.storage import Storage, sqlite_url
from efficientnetv2.nas.study import load_config, open_study
from efficientnetv2.nas.trial_process import exit_with_parent
from efficientnetv2.utils.processes import keep_freed_memory

ENDLESS = 1_000_000  # trials of a study that only its minutes limit


def searched(
    sampler: str,
    images: Path,
    folder: Path,
    minutes: float,
    overrides: list[str],
    trials: int = ENDLESS,
    workers: int = 1,
) -> Architecture:
    """Return the best architecture of a study with limits of minutes and trials; start, resume or read the study."""
    study, file = folder / sampler, folder / f"{sampler}.yaml"
    if not file.exists():
        left = minutes - sum(row.seconds for row in trials_of(study)) / 60 / workers
        # On the CPU, as the table and the final training.
        arguments = ["run", str(study), "--data", str(images), "--sampler", sampler, "--device", "cpu"]
        arguments += ["--trials", str(trials)]
        if workers > 1:
            arguments += ["--threads", str(max(1, torch.get_num_threads() // workers))]
        if left > 0:
            together(workers, [*arguments, "--seeds", str(SEED), "--minutes", str(left), *overrides])
        effnetv2_search("export", str(study), "--output", str(file))
    return read_architecture(file)


def trials_of(study: Path) -> list[TrialRow]:
    """Return the finished trials of a study, or none before its start."""
    file = study / "study.db"
    if not file.exists():
        return []
    storage = Storage(sqlite_url(file), timeout_s=60)
    return [] if load_config(storage, study.name) is None else load_rows(open_study(storage, study.name))


def rows_recorded(table: Path, common: dict[str, Any]) -> list[dict[str, str]]:
    """Return the rows of a table, in the order of drawing.

    Args:
        table: Table of ``benchmarks.search_record``.
        common: Conditions that the table and the studies must share.

    Raises:
        SystemExit: The table is missing, or from another search.
    """
    for file in (table, table.with_suffix(".json")):
        if not file.exists():
            raise SystemExit(f"{file} is not there.")
    recorded = Record(table, Space.from_json(common["space"]))
    if "backbone" not in recorded.common:
        raise SystemExit(f"{table} is not at its end: its steps have not been timed.")
    begun(recorded.about, common, SAME, "leave --recorded out, or time its steps anew (search_record --retime)")
    rows = recorded.rows()
    return sorted(rows, key=lambda row: int(row["number"]))


def best_recorded(table: Path, count: int, common: dict[str, Any]) -> Architecture:
    """Return the architecture with the largest reward among the first rows of a table.

    Args:
        table: Table of ``benchmarks.search_record``.
        count: Number of rows that random search may choose from.
        common: Conditions that the table and the studies must share.

    Raises:
        SystemExit: As in ``rows_recorded``, or the table is too short.
    """
    rows, space = rows_recorded(table, common)[:count], Space.from_json(common["space"])
    if len(rows) < count:
        raise SystemExit(f"{table} has {len(rows)} networks, but the study has tried {count}.")
    about = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))
    backbone = Measurement.from_json(about["backbone"])

    def reward(row: dict[str, str]) -> float:
        cost = float(row["step_seconds"]), float(row["parameters"])
        return worth(backbone, float(row["top1"]), *cost)

    best = max((row for row in rows if row["top1"]), key=reward)
    return space.decode(drawn(space, int(best["number"]) + 1)[-1])


def effnetv2_search(*arguments: str) -> None:
    """Run ``effnetv2 search`` in this process: killing this process ends the study too."""
    try:
        app(["search", *arguments])
    except SystemExit as end:
        if end.code:
            raise


def together(workers: int, arguments: list[str]) -> None:
    """Run several workers of a study; the last worker is this process.

    Raises:
        SystemExit: A worker ended with an error.
    """
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_join, args=(arguments,)) for _ in range(workers - 1)]
    for one in others:
        one.start()
    try:
        effnetv2_search(*arguments)
    finally:
        for one in others:
            one.join()
    if codes := [one.exitcode for one in others if one.exitcode]:
        raise SystemExit(codes[0])


def _join(arguments: list[str]) -> None:
    """Main function of another worker."""
    exit_with_parent()
    keep_freed_memory()
    effnetv2_search(*arguments)
