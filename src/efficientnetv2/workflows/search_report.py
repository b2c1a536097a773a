"""Read a study, and write its report with plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.plot_style import COLORS, INK, WIDTH_IN, default_style, png, style_axes
from efficientnetv2.nas import results
from efficientnetv2.nas.results import Cost, TrialRow, best, pareto_front
from efficientnetv2.nas.storage import redact_password
from efficientnetv2.nas.study import OpenStudy, open_study
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import write_atomically, write_text_atomically
from efficientnetv2.workflows.study_dir import REPORT_FILES, StudyDir

LEADERS = 10  # Architectures of a list. Ours.
_MAX_BARS = 12  # Ours.


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
        study = open_study(folder.open_storage(folder.storage_url(storage), wait=wait), folder.name)
        return cls(folder, study, results.load_rows(study))

    def row(self, trial: int | None) -> TrialRow:
        """A trial that has ended; None is the best one. Raises InputError."""
        if trial is None:
            return best(self.rows)[0]
        rows = {row.number: row for row in self.rows}
        if trial not in rows:
            ended = f"trials 0 to {max(rows)}" if rows else "no trials"
            raise InputError(f"`trial` {trial} has not ended: the study in {self.folder.path} has {ended}.")
        return rows[trial]


@dataclass(frozen=True, eq=False)
class StudyReport:
    """The report of a study: the share of each decision in the variance of the rewards, and the HTML page."""

    read: LoadedStudy
    shares: Mapping[str, float]
    page: Path

    def to_json(self) -> dict[str, object]:
        """Plain JSON values: the trials, and which of them are best."""
        rows, costs = self.read.rows, ("step_seconds", "parameters")
        return {
            "study": self.read.study.name,
            "trials": self.read.study.target,
            "rows": [row.to_json() for row in rows],
            "fronts": {name: [row.number for row in pareto_front(rows, attrgetter(name))] for name in costs},
            "importances": self.shares,
            "reference": self.read.study.config.reference.to_json(),
        }


@default_style()
def show_study(path: Path, storage: str | None, wait: float) -> StudyReport:
    """Write the page and the plots of a study into its folder; ``wait`` is in minutes. Raises InputError."""
    read = LoadedStudy.of(path, storage, wait)
    read.folder.check()
    shares = results.importances(read.study)
    plots = {
        "fronts": draw_fronts(read.rows),
        "rewards": draw_rewards(read.rows),
        "importances": draw_importances(shares),
    }
    path.mkdir(parents=True, exist_ok=True)
    # The page first: with it, the plots are known to be the study's.
    write_text_atomically(path / REPORT_FILES[0], _page(read, plots))
    for name, figure in plots.items():
        if figure is not None:
            write_atomically(path / f"{name}.png", partial(Path.write_bytes, data=png(figure)))
    return StudyReport(read, shares, path / REPORT_FILES[0])


def _page(read: LoadedStudy, plots: Mapping[str, Figure | None]) -> str:
    study, rows = read.study, read.rows
    config, states = study.config, results.count_states(rows)
    leaders = best(rows, most=LEADERS) if states["finished"] else []
    columns, table = results.architecture_table(config.space.decode(leaders[0].point)) if leaders else ([], [])
    failures = [row for row in rows if row.end == "failed"]
    return render(
        "search.html.j2",
        name=study.name,
        done=len(rows),
        target=study.target,
        networks=config.space.count,
        formula=str(config.reward),
        costs=config.reward.costs,
        failures=failures,
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
            "database": study.storage.file.name if study.storage.file else redact_password(study.storage.url),
        },
        space=config.space.describe(),
        recipe=yaml.safe_dump(config.recipe.to_json(), sort_keys=False),
    )


def draw_fronts(rows: Sequence[TrialRow]) -> Figure | None:
    """Accuracy against step time and against parameters, with the Pareto fronts. None without a finished trial."""
    if not any(row.end == "finished" for row in rows):
        return None
    figure = Figure(figsize=(WIDTH_IN, 5.4), layout="constrained")
    step_axes, size_axes = figure.subplots(2)
    _draw_front(step_axes, rows, results.step_ms, "training step, ms")
    _draw_front(size_axes, rows, results.millions, "parameters, millions")
    _legend(step_axes, columns=3)
    return figure


def _draw_front(ax: Axes, rows: Sequence[TrialRow], cost: Cost, unit: str) -> None:
    finished = [(cost(row.measurement), 100 * row.top1) for row in rows if row.end == "finished"]
    points = [(value, top1) for value, top1 in finished if value is not None]
    x, y = zip(*points, strict=True)
    ax.scatter(x, y, s=14, color=COLORS[0], alpha=0.5, linewidths=0, label="trials")
    edge = [(cost(row.measurement), 100 * row.top1) for row in pareto_front(rows, cost)]
    ax.plot(
        *zip(*edge, strict=True), color=COLORS[1], linewidth=1.5, marker="o", markersize=4,
        drawstyle="steps-post", label="none better and cheaper",
    )  # fmt: skip
    (leader,) = best(rows)
    ax.scatter(
        [cost(leader.measurement) or 0.0], [100 * leader.top1], s=110, marker="*", color=COLORS[2], zorder=3,
        label="largest reward",
    )  # fmt: skip
    ax.set_xlabel(unit, color=INK)
    style_axes(ax, "top-1 of a trial, %")


def draw_rewards(rows: Sequence[TrialRow]) -> Figure | None:
    """The reward of every trial, and the largest so far. None without a finished trial."""
    if not any(row.end == "finished" for row in rows):
        return None
    figure = Figure(figsize=(WIDTH_IN, 2.8), layout="constrained")
    ax = figure.subplots()
    for end, marker, color in (("finished", "o", 0), ("stopped", "v", 3), ("failed", "x", 4)):
        if ended := [row for row in rows if row.end == end]:
            ax.scatter(
                [row.number for row in ended], [row.reward for row in ended], s=16, marker=marker,
                color=COLORS[color], alpha=0.6, linewidths=1 if marker == "x" else 0, label=end,
            )  # fmt: skip
    numbers = [row.number for row in rows]
    ax.step(numbers, results.best_so_far(rows), where="post", color=COLORS[1], linewidth=1.5, label="largest so far")
    _legend(ax, columns=4)
    ax.set_xlabel("trial", color=INK)
    style_axes(ax, "reward")
    return figure


def draw_importances(importances: Mapping[str, float]) -> Figure | None:
    """The share of each decision in the variance of the rewards, as bars. None where there are none."""
    if not importances:
        return None
    shown = list(importances.items())[:_MAX_BARS]
    figure = Figure(figsize=(WIDTH_IN, 0.5 + 0.26 * len(shown)), layout="constrained")
    ax = figure.subplots()
    ax.barh([name for name, _ in shown], [100 * share for _, share in shown], height=0.6, color=COLORS[0])
    ax.invert_yaxis()
    style_axes(ax, "share of the rewards' spread, %")
    ax.grid(visible=False, axis="y")
    return figure


def _legend(ax: Axes, *, columns: int) -> None:
    ax.legend(frameon=False, labelcolor=INK, fontsize=9, ncols=columns, loc="lower right", bbox_to_anchor=(1, 1))
