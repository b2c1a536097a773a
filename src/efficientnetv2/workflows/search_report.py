"""What ``search show`` and ``best`` do: read a study, tell of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten

import yaml
from matplotlib.figure import Figure
from rich.progress import MofNCompleteColumn

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.cli.console import Screen, StandingBar, answer, duration
from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.plot_style import png
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.results import (
    Row,
    best,
    draw_fronts,
    draw_importances,
    draw_rewards,
    ended,
    exponents,
    front,
    importances,
    millions,
    rows_of,
    table_of,
)
from efficientnetv2.nas.storage import hidden
from efficientnetv2.nas.study import Opened, opened
from efficientnetv2.nas.trial import EpochTold, StepTold
from efficientnetv2.nas.worker import Standing
from efficientnetv2.utils.errors import count_of
from efficientnetv2.utils.io import write_atomically, write_text_atomically
from efficientnetv2.utils.shell import typed
from efficientnetv2.workflows.study_dir import DRAWN, StudyFolder

_REASON = 160  # letters of why a trial failed; the rest stands in the log


class StudyBar(StandingBar):
    """A progress bar of a study: trials done, the largest reward, time left; and a line for each trial.

    Args:
        screen: to write on.
        note: takes each line too, for the log.
    """

    def __init__(self, screen: Screen, note: Callable[[str], None]) -> None:
        super().__init__(screen, MofNCompleteColumn())
        self._note = note

    def say(self, line: str) -> None:
        """A sentence."""
        self.screen.say(line)
        self._note(line)

    def stands(self, standing: Standing) -> None:
        """After every trial."""
        left = "" if standing.seconds_left is None else f"about {duration(standing.seconds_left)} left"
        self._bar.update(
            self._task,
            completed=standing.done,
            total=standing.target,
            beside="" if standing.best is None else f"best {standing.best:.4f}",
            left=left,
        )

    def began(self, number: int, architecture: Architecture) -> None:
        """A trial is being tried."""
        layers = sum(stage.layers for stage in architecture.stages)
        self._bar.update(self._task, what=f"trial {number}, {count_of(layers, 'layer')}: measuring")

    def told(self, number: int, one: StepTold | EpochTold) -> None:
        """Something is known of it."""
        if isinstance(one, StepTold):
            what = f"trial {number}: {1000 * one.time.median:.3g} ms a step"
        else:
            what = f"trial {number}: epoch {one.epoch:.3g}, top-1 {one.top1:.1%}"
        self._bar.update(self._task, what=what)

    def ended(self, number: int, found: Measurement, reward: float, *, stopped: bool) -> None:
        """It has ended."""
        if found.failure is not None:
            self._note(f"Trial {number} failed: {found.failure}")
            reason = shorten(found.failed_because, _REASON, placeholder=" ... (log.txt)")
            self.screen.say(f"Trial {number} failed: {reason}")
            return
        self.say(f"Trial {number}: {figures(found)}; reward {reward:.4f}{', stopped early' * stopped}.")


def figures(found: Measurement) -> str:
    """What was measured of a network, in a line."""
    step = "" if found.step_seconds is None else f", {1000 * found.step_seconds:.3g} ms a step"
    seen_s = found.inference_seconds
    seen = "" if seen_s is None else f", {1000 * seen_s:.3g} ms a picture at inference"
    top1 = "top-1 unknown" if found.top1 is None else f"top-1 {found.top1:.1%}"
    return f"{top1}{step}{seen}, {found.parameters / 1e6:.3g} M parameters"


_LEADERS = 10


@dataclass(frozen=True, eq=False)
class Read:
    """A study that is looked at.

    Args:
        folder: its.
        study: its, with the database open.
        rows: its trials that have ended.
    """

    folder: StudyFolder
    study: Opened
    rows: Sequence[Row]

    @classmethod
    def of(cls, path: Path, storage: str | None, wait: float, screen: Screen) -> Read:
        """Open it.

        Raises:
            InputError: there is none.
        """
        folder = StudyFolder(path)
        url = folder.storage(storage)
        study = opened(folder.database(url, patience_s=60 * wait, say=screen.say), folder.name)
        return cls(folder, study, rows_of(study))


def show_study(
    path: Path, storage: str | None, wait: float, *, as_json: bool, screen: Screen | None = None
) -> Path:
    """Draw a study.

    Returns:
        The page.

    Raises:
        InputError: there is none, its folder here holds something else, or the page can't be written.
    """
    screen = screen or Screen(quiet=as_json)
    read = Read.of(path, storage, wait, screen)
    read.folder.check()
    study, rows = read.study, read.rows
    shares = importances(study)
    drawings = {
        "fronts": draw_fronts(rows),
        "rewards": draw_rewards(rows),
        "importances": draw_importances(shares),
    }
    read.folder.path.mkdir(parents=True, exist_ok=True)
    page = read.folder.path / DRAWN[0]
    write_text_atomically(page, _page(read, drawings))  # by which the drawings are known for the study's
    for name, figure in drawings.items():
        if figure is not None:
            write_atomically(read.folder.path / f"{name}.png", partial(_write, png(figure)))
    if as_json:
        answer(_as_json(read, shares))
        return page
    _tell(read, shares, screen)
    screen.say(f"Drawn: {page}")
    return page


def _write(contents: bytes, file: Path) -> None:
    file.write_bytes(contents)


def _page(read: Read, drawn: dict[str, Figure | None]) -> str:
    study, rows = read.study, read.rows
    plan = study.plan
    leaders = best(rows, most=_LEADERS) if _any_finished(rows) else []
    columns, table = table_of(plan.space.decode(leaders[0].point)) if leaders else ([], [])
    failures = [row for row in rows if row.end == "failed"]
    ends = ended(rows)
    return render(
        "search.html.j2",
        name=study.name,
        done=len(rows),
        target=study.target,
        networks=plan.space.count,
        formula=exponents(plan.reward),
        failed=len(failures),
        failures=failures[:_LEADERS],
        leaders=leaders,
        reference=plan.reference,
        columns=columns,
        table=table,
        fronts=drawn["fronts"],
        rewards=drawn["rewards"],
        weights=drawn["importances"],
        facts={
            "sampler": f"{plan.sampler}, seed {plan.seed}",
            "trials": f"{ends['finished']} finished, {ends['stopped']} stopped early, {ends['failed']} failed",
            "step time": f"{plan.step_time}, on {plan.hardware}",
            "classes": f"{len(plan.class_names)}",
            "seeds of a trial": ", ".join(map(str, plan.seeds)),
            "database": hidden(study.storage.url) if study.storage.file is None else study.storage.file.name,
        },
        space=plan.space.describe(),
        recipe=yaml.safe_dump(plan.recipe.to_json(), sort_keys=False),
    )


def _as_json(read: Read, shares: object) -> dict[str, object]:
    rows = read.rows
    return {
        "study": read.study.name,
        "trials": read.study.target,
        "rows": [row.to_json() for row in rows],
        "fronts": {
            "step_seconds": [row.number for row in front(rows, lambda one: one.step_seconds)],
            "parameters": [row.number for row in front(rows, lambda one: float(one.parameters))],
        },
        "importances": shares,
        "reference": read.study.plan.reference.to_json(),
    }


def _tell(read: Read, shares: object, screen: Screen) -> None:
    rows = read.rows
    ends = ended(rows)
    screen.say(
        f"{len(rows)} of {read.study.target} trials have ended: {ends['finished']} finished, {ends['stopped']} stopped "
        f"early, {ends['failed']} failed."
    )
    if not _any_finished(rows):
        return
    edge = front(rows, millions)
    by_time = front(rows, lambda one: one.step_seconds)
    for title, these in (
        ("Most accurate for their step time", by_time),
        ("Most accurate for their size", edge),
    ):
        _table(title, these, screen)
    if isinstance(shares, dict) and shares:
        screen.table(
            "Which decisions matter",
            ["decision", "share of the rewards' spread"],
            [[name, f"{share:.2f}"] for name, share in list(shares.items())[:_LEADERS]],
        )


def tell_best(path: Path, storage: str | None, wait: float, *, most: int, as_json: bool) -> None:
    """Name the best networks.

    Raises:
        InputError: there is no study, or nothing has been finished.
    """
    screen = Screen(quiet=as_json)
    read = Read.of(path, storage, wait, screen)
    leaders = best(read.rows, most=most)
    space = read.study.plan.space
    if as_json:
        answer([row.to_json() | {"architecture": space.decode(row.point).to_json()} for row in leaders])
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
    screen.say(f"Train it fully: {typed(words)}")


def _any_finished(rows: Sequence[Row]) -> bool:
    return any(row.end == "finished" for row in rows)


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
