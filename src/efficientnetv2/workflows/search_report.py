"""Read a study, and write its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.plot_style import png
from efficientnetv2.nas.plots import draw_fronts, draw_importances, draw_rewards
from efficientnetv2.nas.results import (
    TrialRow,
    architecture_table,
    best,
    count_states,
    importances,
    load_rows,
    pareto_front,
)
from efficientnetv2.nas.storage import redact_password
from efficientnetv2.nas.study import OpenStudy, open_study
from efficientnetv2.utils.io import write_atomically, write_text_atomically
from efficientnetv2.workflows.study_dir import REPORT_FILES, StudyDir

LEADERS = 10  # Architectures of a list. Ours.


@dataclass(frozen=True, eq=False)
class LoadedStudy:
    """A study, its folder, and its ended trials."""

    folder: StudyDir
    study: OpenStudy
    rows: Sequence[TrialRow]

    @classmethod
    def of(cls, path: Path, storage: str | None, wait: float) -> LoadedStudy:
        """Open a study; ``wait`` is in minutes. Raises InputError."""
        folder = StudyDir(path)
        url = folder.storage_url(storage)
        study = open_study(folder.open_storage(url, timeout_s=60 * wait), folder.name)
        return cls(folder, study, load_rows(study))


@dataclass(frozen=True, eq=False)
class StudyReport:
    """The report of a study: the share of each decision in the variance of the rewards, and the HTML page."""

    read: LoadedStudy
    shares: Mapping[str, float]
    page: Path

    def to_json(self) -> dict[str, object]:
        """Plain JSON values: the trials, and which of them are best."""
        rows = self.read.rows
        return {
            "study": self.read.study.name,
            "trials": self.read.study.target,
            "rows": [row.to_json() for row in rows],
            "fronts": {
                "step_seconds": [row.number for row in pareto_front(rows, lambda one: one.step_seconds)],
                "parameters": [row.number for row in pareto_front(rows, lambda one: float(one.parameters))],
            },
            "importances": self.shares,
            "reference": self.read.study.config.reference.to_json(),
        }


def show_study(path: Path, storage: str | None, wait: float) -> StudyReport:
    """Write the page and the plots of a study into its folder; ``wait`` is in minutes. Raises InputError."""
    read = LoadedStudy.of(path, storage, wait)
    read.folder.check()
    shares = importances(read.study)
    plots = {
        "fronts": draw_fronts(read.rows),
        "rewards": draw_rewards(read.rows),
        "importances": draw_importances(shares),
    }
    folder = read.folder.path
    folder.mkdir(parents=True, exist_ok=True)
    # The page first: beside it, the plots are known to be the study's.
    write_text_atomically(folder / REPORT_FILES[0], _page(read, plots))
    for name, figure in plots.items():
        if figure is not None:
            write_atomically(folder / f"{name}.png", partial(_write_png, figure))
    return StudyReport(read, shares, folder / REPORT_FILES[0])


def _write_png(figure: Figure, file: Path) -> None:
    file.write_bytes(png(figure))


def _page(read: LoadedStudy, plots: Mapping[str, Figure | None]) -> str:
    study, rows = read.study, read.rows
    config, states = study.config, count_states(rows)
    leaders = best(rows, most=LEADERS) if states["finished"] else []
    columns, table = architecture_table(config.space.decode(leaders[0].point)) if leaders else ([], [])
    failures = [row for row in rows if row.end == "failed"]
    return render(
        "search.html.j2",
        name=study.name,
        done=len(rows),
        target=study.target,
        networks=config.space.count,
        formula=str(config.reward),
        failed=len(failures),
        failures=failures[:LEADERS],
        leaders=leaders,
        reference=config.reference,
        columns=columns,
        table=table,
        fronts=plots["fronts"],
        rewards=plots["rewards"],
        weights=plots["importances"],
        facts={
            "sampler": f"{config.sampler}, seed {config.seed}",
            "trials": f"{states['finished']} finished, {states['stopped']} stopped early, {states['failed']} failed",
            "step time": f"{config.step_time}, on {config.hardware}",
            "classes": f"{len(config.class_names)}",
            "seeds of a trial": ", ".join(map(str, config.seeds)),
            "database": redact_password(study.storage.url)
            if study.storage.file is None
            else study.storage.file.name,
        },
        space=config.space.describe(),
        recipe=yaml.safe_dump(config.recipe.to_json(), sort_keys=False),
    )
