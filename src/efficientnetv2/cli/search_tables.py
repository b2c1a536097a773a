"""What the commands of ``effnetv2 search`` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.data.cache_writer import format_bytes
from efficientnetv2.nas.objective import figures
from efficientnetv2.nas.results import Row, best, ended, front, millions, rows_of, table_of
from efficientnetv2.nas.storage import hidden
from efficientnetv2.utils.errors import format_duration, pluralize
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.search_plan import StudyCost
from efficientnetv2.workflows.search_report import LEADERS, Drawn, Read, any_finished
from efficientnetv2.workflows.search_run import Worked


def print_cost(cost: StudyCost, screen: Screen, *, as_json: bool) -> None:
    """Print what a study would take."""
    if as_json:
        print_json(cost.to_json())
        return
    screen.say(cost.space.describe())
    screen.table(
        f"A trial: {pluralize(float(cost.recipe.epochs), 'epoch')} of {pluralize(cost.images, 'picture')}",
        ["network", "parameters, M", "time", "memory"],
        [
            [
                name,
                f"{cost.parameters[name] / 1e6:.3g}",
                format_duration(seconds),
                format_bytes(cost.memory_bytes[name]),
            ]
            for name, seconds in cost.trial_s.items()
        ],
    )
    screen.say(
        f"In all about {format_duration(cost.seconds)} for {pluralize(cost.trials, 'trial')} by one worker like "
        "this one, and "
        f"its share of that by several; {format_bytes(cost.most_memory_bytes)} of memory. Trials that are stopped "
        "early take less."
    )


def print_end(worked: Worked, screen: Screen, *, as_json: bool) -> None:
    """Print how far a study has come, and which trial is the best."""
    study, rows = worked.study, rows_of(worked.study)
    ends = ended(rows)
    leader = best(rows)[0] if any_finished(rows) else None
    if as_json:
        print_json(
            {
                "study": study.name,
                "trials": study.target,
                **ends,
                "complete": worked.finished,
                "best": None if leader is None else leader.to_json(),
            }
        )
    path = shell_join([str(worked.folder.path)])
    state = "All trials have ended" if worked.finished else "Time is up"
    screen.say(f"{state}: {_counted(ends)}, of {study.target}.")
    if leader is not None:
        screen.say(
            f"The best is trial {leader.number}: {figures(leader.measurement)}; reward {leader.reward:.4f}."
        )
        screen.say(f"See it: effnetv2 search best {path}; draw all: effnetv2 search show {path}")
    if not worked.finished:
        screen.say(f"Go on with: {worked.again}")


def print_drawn(drawn: Drawn, screen: Screen, *, as_json: bool) -> None:
    """Print the leaders of a study and which decisions matter."""
    if as_json:
        print_json(drawn.to_json())
        return
    rows = drawn.read.rows
    screen.say(f"{len(rows)} of {drawn.read.study.target} trials have ended: {_counted(ended(rows))}.")
    if any_finished(rows):
        _table("Most accurate for their step time", front(rows, lambda one: one.step_seconds), screen)
        _table("Most accurate for their size", front(rows, millions), screen)
        if drawn.shares:
            screen.table(
                "Which decisions matter",
                ["decision", "share of the rewards' spread"],
                [[name, f"{share:.2f}"] for name, share in list(drawn.shares.items())[:LEADERS]],
            )
    screen.say(f"Drawn: {drawn.page}")


def print_best(read: Read, path: Path, screen: Screen, *, most: int, as_json: bool) -> None:
    """Print the best network as a table, and the next ones in a line each.

    Raises:
        InputError: nothing has been finished.
    """
    leaders = best(read.rows, most=most)
    space = read.study.plan.space
    if as_json:
        print_json([row.to_json() | {"architecture": space.decode(row.point).to_json()} for row in leaders])
        return
    first = leaders[0]
    columns, rows = table_of(space.decode(first.point))
    screen.table(
        f"Trial {first.number}: {figures(first.measurement)}; reward {first.reward:.4f}", columns, rows
    )
    if len(leaders) > 1:
        _table("And the next ones", leaders[1:], screen)
    words = ["effnetv2", "search", "export", str(path)]
    if not read.folder.file.exists():  # which would say where the trials lie
        words += ["--storage", hidden(read.study.storage.url)]
    screen.say(f"Train it fully: {shell_join(words)}")


def _counted(ends: Mapping[Any, int]) -> str:
    return f"{ends['finished']} finished, {ends['stopped']} stopped early, {ends['failed']} failed"


def _table(title: str, rows: Sequence[Row], screen: Screen) -> None:
    screen.table(
        title,
        ["trial", "reward", "top-1, %", "step, ms", "parameters, M", "multiply-adds, M"],
        [
            [
                str(row.number),
                f"{row.reward:.4f}",
                f"{100 * (row.measurement.top1 or 0):.1f}",
                "" if row.measurement.step_seconds is None else f"{1000 * row.measurement.step_seconds:.3g}",
                f"{row.measurement.parameters / 1e6:.3g}",
                f"{row.measurement.multiply_adds / 1e6:.3g}",
            ]
            for row in rows
        ],
    )
