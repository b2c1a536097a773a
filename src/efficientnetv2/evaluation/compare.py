"""Runs beside each other: what each reached in which time, and how sure the difference is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from efficientnetv2.evaluation.clusters import data_root, different_root_note
from efficientnetv2.evaluation.plots import MetricsRow
from efficientnetv2.evaluation.predictions import (
    PairedDifference,
    compare_predictions,
    load_predictions,
    optimistic_warning,
)
from efficientnetv2.metrics.bootstrap import Difference
from efficientnetv2.metrics.paired_tests import unpaired_difference
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_lock import is_running
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import read_object
from efficientnetv2.utils.shell import typed


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run that has come to its end, a cross-validation, or an evaluation.

    Args:
        name: to call it by.
        report: its ``report.json``.
        history: rows of its ``metrics.jsonl``.
        answers: to the pictures that it was evaluated on, as ``evaluation.predictions.load_predictions`` gives them.
        root: what their paths start from, as of ``evaluation.clusters.data_root``.
    """

    name: str
    report: Mapping[str, Any]
    history: tuple[MetricsRow, ...]
    answers: pd.DataFrame
    root: str | None = None

    @property
    def train_s(self) -> float | None:
        """Seconds of training, without validation and saving; of a run without such rows, of all.

        None of an evaluation, whose report does not name the run: it trained nothing.
        """
        seconds = sum(row.get("train_s", 0.0) for row in self.history if row["kind"] == "train")
        if seconds or "run" in self.report:
            return float(seconds or self.report["wall_s"])
        return None

    @property
    def optimistic(self) -> bool:
        """Whether its report says so: pictures that it was evaluated on trained or chose it."""
        return bool(self.report.get("optimistic"))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of the training pictures, growing."""
        return tuple(sorted({row["image_px"] for row in self.history if row["kind"] == "train"}))

    @classmethod
    def read(cls, folder: Path, name: str) -> FinishedRun:
        """What a run folder says.

        Args:
            folder: of a run.
            name: to call it by.

        Raises:
            InputError: it is none, the run is under way or was stopped before its end, or its pictures have several
                labels.
        """
        missing = [file for file in ("report.json", "predictions.csv") if not (folder / file).is_file()]
        if missing and is_running(folder):
            raise InputError(
                f"{folder}: the run there is under way at this moment, so it has no {missing[0]} yet. Compare it when "
                "it has come to its end."
            )
        if missing:
            raise InputError(
                f"{folder} is no run that has come to its end: it has no {missing[0]}. Give the folder of one; "
                "one that was stopped goes on with effnetv2 train (or crossval) DATA "
                f"{typed(['--out', str(folder), '--resume'])}."
            )
        report = read_object(folder / "report.json", fix="Leave that run out.")
        if "macro_f1" not in report:
            raise InputError(
                f"{folder}: its pictures have several labels each, but compare takes runs with one. Leave it out."
            )
        history = RunDir(folder, lambda line: None).history()
        answers = load_predictions(folder)
        root = data_root(folder, list(answers.index))
        return cls(name, report, tuple(history), answers, root)


@dataclass(frozen=True)
class RunComparison:
    """How much better one run labels the same pictures than another, and in which time.

    Args:
        over: what its answers have over the other's.
        time_ratio: training time of the one over that of the other; None where one of them is an evaluation.
    """

    over: PairedDifference
    time_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; differences as fractions."""
        return asdict(self.over) | {"time_ratio": self.time_ratio}


@dataclass(frozen=True)
class UnpairedComparison:
    """How much higher the metrics of one run are than those of another, on different images.

    Args:
        images: Numbers of images of the one and of the other.
        shared: Number of images that are in both.
        metrics: Differences, by the metric's name in ``report.json``.
        optimistic: Warning on runs whose metrics are optimistic; see ``optimistic_warning``.
    """

    images: tuple[int, int]
    shared: int
    metrics: Mapping[str, Difference]
    optimistic: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; differences as fractions."""
        return asdict(self)


def compare_unpaired(one: FinishedRun, other: FinishedRun) -> UnpairedComparison | None:
    """One run against another as two independent samples; None if their classes differ, or one has no image.

    Images that are in both make the interval wider than it need be.

    Args:
        one: The run that is compared.
        other: The run that it is compared with.
    """
    classes = [set(each.answers.get("true_label", ())) for each in (one, other)]
    if not classes[0] or classes[0] != classes[1]:
        return None
    both = [each.report["intervals"] for each in (one, other)]
    metrics = {
        name: unpaired_difference((one.report[name], *both[0][name]), (other.report[name], *both[1][name]))
        for name in ("top1", "macro_f1")
        if all(name in intervals for intervals in both)
    }
    return UnpairedComparison(
        (len(one.answers), len(other.answers)),
        len(one.answers.index.intersection(other.answers.index)),
        metrics,
        optimistic_warning([each.name for each in (one, other) if each.optimistic]),
    )


def compare_runs(one: FinishedRun, other: FinishedRun) -> RunComparison | None:
    """One run against another, picture by picture; None if they were evaluated on different pictures.

    A paired bootstrap over pictures, or over places and groups where either run kept them whole; see
    ``metrics.paired_tests.paired_difference``.

    Args:
        one: that is compared.
        other: what it is compared with.

    Raises:
        InputError: a picture has another true label in one run than in the other.
    """
    if not one.answers.index.symmetric_difference(other.answers.index).empty:
        return None
    found = compare_predictions(one.answers, other.answers)
    if found is None:
        return None
    found = replace(
        found,
        by_name=different_root_note(one.root, other.root),
        optimistic=optimistic_warning([each.name for each in (one, other) if each.optimistic]),
    )
    times = (one.train_s, other.train_s)
    return RunComparison(
        found, None if times[0] is None or times[1] is None else times[0] / max(1e-9, times[1])
    )
