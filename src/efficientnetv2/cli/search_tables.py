"""What the commands of ``effnetv2 search`` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.nas.results import (
    TrialRow,
    architecture_table,
    best,
    count_states,
    load_rows,
    millions,
    pareto_front,
)
from efficientnetv2.nas.storage import redact_password
from efficientnetv2.utils.errors import format_bytes, format_duration, pluralize
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.search_report import LEADERS, StudyReport
from efficientnetv2.workflows.search_run import SearchResult, StudyCost


def print_cost(cost: StudyCost, screen: Screen, *, as_json: bool) -> None:
    """Print what a study would take."""
    if as_json:
        print_json(cost.to_json())
        return
    screen.say(cost.space.describe())
    screen.table(
        f"A trial: {pluralize(float(cost.recipe.epochs), 'epoch')} of {pluralize(cost.images, 'image')}",
        ["model", "parameters, M", "time", "memory"],
        [
            [
                name, f"{cost.parameters[name] / 1e6:.3g}", format_duration(seconds),
                format_bytes(cost.memory_bytes[name]),
            ]
            for name, seconds in cost.trial_s.items()
        ],
    )  # fmt: skip
    screen.say(
        f"In total about {format_duration(cost.seconds)} for {pluralize(cost.trials, 'trial')} by one worker, less "
        f"by several; {format_bytes(cost.most_memory_bytes)} of memory. Trials that are stopped early take less."
    )


def print_end(worked: SearchResult, screen: Screen, *, as_json: bool) -> None:
    """Print how far a study has come, and which trial is the best."""
    study, rows = worked.study, load_rows(worked.study)
    ends = count_states(rows)
    leader = best(rows)[0] if any(row.end == "finished" for row in rows) else None
    if as_json:
        print_json(
            {
                "study": study.name, "trials": study.target, **ends, "complete": worked.finished,
                "best": None if leader is None else leader.to_json(),
            }
        )  # fmt: skip
    path = shell_join([str(worked.folder.path)])
    state = "All trials have ended" if worked.finished else "Time is up"
    screen.say(f"{state}: {_counted(ends)}, of {study.target}.")
    if leader is not None:
        screen.say(f"The best is trial {leader.number}: {leader.measurement}; reward {leader.reward:.4f}.")
        screen.say(f"See all: effnetv2 search show {path}")
    if not worked.finished:
        screen.say(f"Continue with: {worked.command}")


def print_study(drawn: StudyReport, path: Path, screen: Screen, *, top: int, as_json: bool) -> None:
    """Print the best architecture as a table, the next ones in a line each, and which decisions matter."""
    read, rows = drawn.read, drawn.read.rows
    leaders = best(rows, most=top) if any(row.end == "finished" for row in rows) else []
    architectures = [read.study.config.space.decode(row.point) for row in leaders]
    if as_json:
        found = [
            row.to_json() | {"architecture": table.to_json()} for row, table in zip(leaders, architectures, strict=True)
        ]
        print_json(drawn.to_json() | {"best": found})
        return
    screen.say(f"{len(rows)} of {read.study.target} trials have ended: {_counted(count_states(rows))}.")
    if leaders:
        first = leaders[0]
        title = f"Trial {first.number}: {first.measurement}; reward {first.reward:.4f}"
        screen.table(title, *architecture_table(architectures[0]))
        if len(leaders) > 1:
            _table("Next best", leaders[1:], screen)
        _table("Most accurate for their step time", pareto_front(rows, lambda one: one.step_seconds), screen)
        _table("Most accurate for their size", pareto_front(rows, millions), screen)
        if drawn.shares:
            screen.table(
                "Importance of decisions",
                ["decision", "fraction of the variance of rewards"],
                [[name, f"{share:.2f}"] for name, share in list(drawn.shares.items())[:LEADERS]],
            )
        words = ["effnetv2", "search", "export", str(path)]
        if not read.folder.file.exists():  # which would state the database
            words += ["--storage", redact_password(read.study.storage.url)]
        screen.say(f"Write the best for training: {shell_join(words)}")
    screen.say(f"Page: {drawn.page}")


def _counted(ends: Mapping[Any, int]) -> str:
    return f"{ends['finished']} finished, {ends['stopped']} stopped early, {ends['failed']} failed"


def _table(title: str, rows: Sequence[TrialRow], screen: Screen) -> None:
    cells = []
    for row in rows:
        found = row.measurement
        step = "" if found.step_seconds is None else f"{1000 * found.step_seconds:.3g}"
        parameters, adds = (f"{count / 1e6:.3g}" for count in (found.parameters, found.multiply_adds))
        top1 = f"{100 * (found.top1 or 0):.1f}"
        cells.append([str(row.number), f"{row.reward:.4f}", top1, step, parameters, adds])
    columns = ["trial", "reward", "top-1, %", "step, ms", "parameters, M", "multiply-adds, M"]
    screen.table(title, columns, cells)
