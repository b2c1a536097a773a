"""Read a study, and draw it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.plot_style import png
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
    rows_of,
    table_of,
)
from efficientnetv2.nas.storage import hidden
from efficientnetv2.nas.study import Opened, opened
from efficientnetv2.utils.io import write_atomically, write_text_atomically
from efficientnetv2.workflows.study_dir import DRAWN, StudyFolder

_logger = logging.getLogger(__name__)

LEADERS = 10  # Networks of a list. Ours.


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
    def of(cls, path: Path, storage: str | None, wait: float) -> Read:
        """Open it.

        Raises:
            InputError: there is none.
        """
        folder = StudyFolder(path)
        url = folder.storage(storage)
        study = opened(folder.database(url, patience_s=60 * wait), folder.name)
        return cls(folder, study, rows_of(study))


@dataclass(frozen=True, eq=False)
class Drawn:
    """A study that has been drawn.

    Args:
        read: the study.
        shares: of each decision in the spread of the rewards.
        page: with the drawings.
    """

    read: Read
    shares: Mapping[str, float]
    page: Path

    def to_json(self) -> dict[str, object]:
        """The trials, and which of them are best, as plain values."""
        rows = self.read.rows
        return {
            "study": self.read.study.name,
            "trials": self.read.study.target,
            "rows": [row.to_json() for row in rows],
            "fronts": {
                "step_seconds": [row.number for row in front(rows, lambda one: one.step_seconds)],
                "parameters": [row.number for row in front(rows, lambda one: float(one.parameters))],
            },
            "importances": self.shares,
            "reference": self.read.study.plan.reference.to_json(),
        }


def show_study(path: Path, storage: str | None, wait: float) -> Drawn:
    """Draw a study.

    Raises:
        InputError: there is none, its folder here holds something else, or the page can't be written.
    """
    read = Read.of(path, storage, wait)
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
    return Drawn(read, shares, page)


def _write(contents: bytes, file: Path) -> None:
    file.write_bytes(contents)


def _page(read: Read, drawn: dict[str, Figure | None]) -> str:
    study, rows = read.study, read.rows
    plan = study.plan
    leaders = best(rows, most=LEADERS) if any_finished(rows) else []
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
        failures=failures[:LEADERS],
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


def any_finished(rows: Sequence[Row]) -> bool:
    """Whether a trial has finished."""
    return any(row.end == "finished" for row in rows)
