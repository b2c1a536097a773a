"""The studies of ``benchmarks.search_found``: real ones, by several workers, and the one that a table stands for."""

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

ENDLESS = 1_000_000  # trials of a study that its minutes end


def searched(
    sampler: str, pictures: Path, folder: Path, minutes: float, more: list[str], trials: int = ENDLESS, workers: int = 1
) -> Architecture:
    """The best network of a study of so many minutes or trials; the study is begun, gone on with, or as it was."""
    study, network = folder / sampler, folder / f"{sampler}.yaml"
    if not network.exists():
        left = minutes - sum(row.seconds for row in trials_of(study)) / 60 / workers
        # On the processor, as the table and those that judge.
        words = ["run", str(study), "--data", str(pictures), "--sampler", sampler, "--device", "cpu"]
        words += ["--trials", str(trials)]
        if workers > 1:
            words += ["--threads", str(max(1, torch.get_num_threads() // workers))]
        if left > 0:
            together(workers, [*words, "--seeds", str(SEED), "--minutes", str(left), *more])
        effnetv2_search("export", str(study), "--output", str(network))
    return read_architecture(network)


def trials_of(study: Path) -> list[TrialRow]:
    """The trials of a study that have ended; none where it has not begun."""
    file = study / "study.db"
    if not file.exists():
        return []
    storage = Storage(sqlite_url(file), timeout_s=60)
    return [] if load_config(storage, study.name) is None else load_rows(open_study(storage, study.name))


def rows_recorded(table: Path, common: dict[str, Any]) -> list[dict[str, str]]:
    """The networks of a table, in the order in which they were drawn.

    Args:
        table: of ``benchmarks.search_record``.
        common: what it has to have in common with the studies.

    Raises:
        SystemExit: the table is not there, or of another search.
    """
    for file in (table, table.with_suffix(".json")):
        if not file.exists():
            raise SystemExit(f"{file} is not there.")
    kept = Record(table, Space.from_json(common["space"]))
    if "backbone" not in kept.common:
        raise SystemExit(f"{table} is not at its end: its steps have not been timed.")
    begun(kept.about, common, SAME, "leave --recorded out, or time its steps anew (search_record --retime)")
    rows = kept.rows()
    return sorted(rows, key=lambda row: int(row["number"]))


def best_recorded(table: Path, count: int, common: dict[str, Any]) -> Architecture:
    """The network with the largest reward of the first ones that were recorded.

    Args:
        table: of ``benchmarks.search_record``.
        count: how many of them random search may choose from.
        common: what it has to have in common with the studies.

    Raises:
        SystemExit: what ``rows_recorded`` refuses, or the table is too short.
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


def effnetv2_search(*words: str) -> None:
    """``effnetv2 search``, in this process: whoever kills it ends the study too, and no second one begins."""
    if code := app(["search", *words], standalone_mode=False):
        raise SystemExit(code)


def together(workers: int, words: list[str]) -> None:
    """So many workers of a study; the last of them is this process.

    Raises:
        SystemExit: one of them has ended with an error.
    """
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_join, args=(words,)) for _ in range(workers - 1)]
    for one in others:
        one.start()
    try:
        effnetv2_search(*words)
    finally:
        for one in others:
            one.join()
    if codes := [one.exitcode for one in others if one.exitcode]:
        raise SystemExit(codes[0])


def _join(words: list[str]) -> None:
    """The main function of a further worker."""
    exit_with_parent()
    keep_freed_memory()
    effnetv2_search(*words)
