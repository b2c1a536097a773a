"""Comparison of finished runs: training time and paired differences of metrics."""

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
from efficientnetv2.utils.shell import shell_join


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run, cross-validation or evaluation.

    Attributes:
        report: Its ``report.json``.
        history: Rows of its ``metrics.jsonl``.
        predictions: As of ``load_predictions``.
        root: What their paths are relative to, as of ``data_root``.
    """

    name: str
    report: Mapping[str, Any]
    history: tuple[MetricsRow, ...]
    predictions: pd.DataFrame
    root: str | None = None

    @property
    def train_s(self) -> float | None:
        """Seconds of training without validation and saving, if the rows say it. None for an evaluation."""
        seconds = sum(row.get("train_s", 0.0) for row in self.history if row["kind"] == "train")
        if seconds or "run" in self.report:
            return float(seconds or self.report["wall_s"])
        return None

    @property
    def optimistic(self) -> bool:
        """Whether evaluated images trained or selected it, by its report."""
        return bool(self.report.get("optimistic"))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Image sizes of the training, increasing."""
        return tuple(sorted({row["image_size"] for row in self.history if row["kind"] == "train"}))

    @classmethod
    def read(cls, folder: Path, name: str) -> FinishedRun:
        """Read a run directory.

        Raises:
            InputError: It is not a run, the run is not finished, or its images have several labels.
        """
        for file in ("report.json", "predictions.csv"):
            if not (folder / file).is_file():
                resume = shell_join(["--output", str(folder), "--resume"])
                fix = f"To resume a stopped run: effnetv2 train (or crossval) DATA {resume}."
                raise InputError(
                    f"{folder} is not the folder of a finished run: it has no {file}. "
                    f"{'Another process is at work there: wait for its end.' if is_running(folder) else fix}"
                )
        report = read_object(folder / "report.json", fix="Leave that run out.")
        if "macro_f1" not in report:
            raise InputError(
                f"{folder}: its images have several labels; compare takes runs with one label per image. Leave it out."
            )
        predictions = load_predictions(folder)
        root = data_root(folder, list(predictions.index))
        return cls(name, report, tuple(RunDir(folder).history()), predictions, root)


@dataclass(frozen=True)
class RunComparison:
    """Paired difference between two runs, and the ratio of their training times (None with an evaluation)."""

    over: PairedDifference
    time_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; differences as fractions."""
        return asdict(self.over) | {"time_ratio": self.time_ratio}


@dataclass(frozen=True)
class UnpairedComparison:
    """Differences of metrics between two runs on different images.

    Attributes:
        images: Numbers of images of the two runs.
        shared: Number of images in both.
        metrics: Differences by the metric's name in ``report.json``.
        optimistic: ``optimistic_warning`` of the runs.
    """

    images: tuple[int, int]
    shared: int
    metrics: Mapping[str, Difference]
    optimistic: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; differences as fractions."""
        return asdict(self)


def compare_unpaired(first: FinishedRun, second: FinishedRun) -> UnpairedComparison | None:
    """First minus second run as independent samples; None if the classes differ, or a run has no image.

    Images in both make the interval wider than necessary.
    """
    classes = [set(each.predictions.get("true_label", ())) for each in (first, second)]
    if not classes[0] or classes[0] != classes[1]:
        return None
    both = [each.report["intervals"] for each in (first, second)]
    metrics = {
        name: unpaired_difference((first.report[name], *both[0][name]), (second.report[name], *both[1][name]))
        for name in ("top1", "macro_f1")
        if all(name in intervals for intervals in both)
    }
    return UnpairedComparison(
        (len(first.predictions), len(second.predictions)),
        len(first.predictions.index.intersection(second.predictions.index)),
        metrics,
        optimistic_warning([each.name for each in (first, second) if each.optimistic]),
    )


def compare_runs(first: FinishedRun, second: FinishedRun) -> RunComparison | None:
    """First minus second run, image by image; None if they were evaluated on different images.

    Raises:
        InputError: An image has different true labels.
    """
    if not first.predictions.index.symmetric_difference(second.predictions.index).empty:
        return None
    found = compare_predictions(first.predictions, second.predictions)
    if found is None:
        return None
    found = replace(
        found,
        by_name=different_root_note(first.root, second.root),
        optimistic=optimistic_warning([each.name for each in (first, second) if each.optimistic]),
    )
    times = (first.train_s, second.train_s)
    return RunComparison(
        found, None if times[0] is None or times[1] is None else times[0] / max(1e-9, times[1])
    )
