"""Comparison of finished runs, and the previous run that a report compares with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.bootstrap_clusters import data_root, different_root_note, located, root_of
from efficientnetv2.evaluation.predictions import (
    PairedDifference,
    common_images,
    compare_predictions,
    load_predictions,
    optimistic_warning,
    save_predictions,
)
from efficientnetv2.evaluation.training_plots import MetricsRow
from efficientnetv2.metrics.confidence_intervals import Difference
from efficientnetv2.metrics.metric_intervals import unpaired_difference
from efficientnetv2.metrics.multilabel import METRIC_NAMES
from efficientnetv2.training.run_dir import RUN_MARKERS, RunDir, is_running
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.io import read_object, read_object_or_empty
from efficientnetv2.utils.shell import shell_join

# Number of the newest runs that are considered as the previous one. Ours.
_MAX_RUNS = 20
# Folder of a run for the baseline's predictions, since the baseline may be gone when the run ends.
_SAVED = "against"


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run, cross-validation or evaluation."""

    name: str
    report: Mapping[str, Any]  # report.json
    history: tuple[MetricsRow, ...]  # metrics.jsonl
    predictions: pd.DataFrame  # of ``load_predictions``
    root: str | None = None  # ``data_root`` of their paths

    @property
    def train_s(self) -> float | None:
        """Seconds of training without validation and saving, if the rows have it. None for an evaluation."""
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
        rows = [row for row in self.history if row["kind"] == "train" and "image_size" in row]
        return tuple(sorted({row["image_size"] for row in rows}))

    @classmethod
    def read(cls, folder: Path, name: str) -> FinishedRun:
        """Read a run directory; raises InputError if it is unfinished, no run, or multi-label."""
        if not folder.exists():
            neighbors = os.listdir(folder.parent) if folder.parent.is_dir() else []
            near = did_you_mean(folder.name, neighbors, str(folder.parent))
            raise InputError(f"{folder} does not exist{near} Give the folder of a finished run.")
        for file in ("report.json", "predictions.csv"):
            if not (folder / file).is_file():
                resume = shell_join(["--output", str(folder), "--resume"])
                fix = f"To resume a stopped run: effnetv2 train (or crossval) DATA {resume}."
                raise InputError(
                    f"{folder} is not the folder of a finished run: it has no {file}. "
                    f"{'Another process writes it: wait until it ends.' if is_running(folder) else fix}"
                )
        report = read_object(folder / "report.json", fix="Leave that run out.")
        if "macro_f1" not in report:
            raise InputError(f"{folder}: compare needs one label per image, not several. Leave this run out.")
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
    """Differences of metrics between two runs on different images."""

    images: tuple[int, int]
    shared: int  # images in both
    metrics: Mapping[str, Difference]  # by the metric's name in report.json
    by_name: bool = False  # whether images in both are those of the same name in two folders
    optimistic: str = ""  # ``optimistic_warning`` of the runs

    def describe(self, name: str, first: str) -> str:
        """The difference of two runs by their names, in sentences."""
        points = ", ".join(f"{METRIC_NAMES[metric]} {one.points}" for metric, one in self.metrics.items())
        shared = f" {self.shared:,} images are in both, so the intervals are too wide." if self.shared else ""
        if shared and self.by_name:
            shared = f" {self.shared:,} images have the same name. If they are the same, the intervals are too wide."
        return (
            f"{name} and {first} were evaluated on different images ({self.images[0]:,} and {self.images[1]:,}), and "
            f"are compared as independent samples of one population. {name} - {first}: {points}; 95 % intervals."
            f"{shared} Evaluate both on the same images for narrower intervals. {self.optimistic}"
        ).rstrip()

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
    intervals = [each.report["intervals"] for each in (first, second)]
    metrics = {
        name: unpaired_difference((first.report[name], *intervals[0][name]), (second.report[name], *intervals[1][name]))
        for name in ("top1", "macro_f1")
        if all(name in each for each in intervals)
    }
    tables = _tables(first, second)
    return UnpairedComparison(
        (len(tables[0]), len(tables[1])),
        len(tables[0].index.intersection(tables[1].index)),
        metrics,
        tables[0] is first.predictions and bool(different_root_note(first.root, second.root)),
        optimistic_warning([each.name for each in (first, second) if each.optimistic]),
    )


def _tables(first: FinishedRun, second: FinishedRun) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The predictions of both, by file where that finds the same images, else by path."""
    by_path = first.predictions, second.predictions
    if first.root is None or second.root is None:
        return by_path
    one, other = (located(run.predictions, run.root) for run in (first, second))
    return (one, other) if one.index.intersection(other.index).size else by_path


def compare_runs(first: FinishedRun, second: FinishedRun) -> RunComparison | None:
    """First minus second run, image by image; None if they were evaluated on different images.

    Raises InputError if an image has different true labels.
    """
    tables = _tables(first, second)
    if not tables[0].index.symmetric_difference(tables[1].index).empty:
        return None
    found = compare_predictions(*tables)
    if found is None:
        return None
    found = replace(
        found,
        by_name=different_root_note(first.root, second.root) if tables[0] is first.predictions else "",
        optimistic=optimistic_warning([each.name for each in (first, second) if each.optimistic]),
    )
    seconds = (first.train_s, second.train_s)
    ratio = None if seconds[0] is None or seconds[1] is None else seconds[0] / max(1e-9, seconds[1])
    return RunComparison(found, ratio)


@dataclass(frozen=True, eq=False)
class PreviousRun:
    """A run or evaluation to compare with."""

    name: str
    predictions: pd.DataFrame  # of ``load_predictions``
    by_name: str = ""  # note that the images lie elsewhere and are compared by name
    optimistic: str = ""  # warning that its metrics are optimistic

    @classmethod
    def for_images(cls, folder: Path, predictions: pd.DataFrame, images: ImageDataset) -> PreviousRun:
        """The run or evaluation of a folder, to compare on images that are to be predicted.

        Raises InputError if the images have several or other labels, or none of them was predicted there.
        """
        if images.separator is not None:
            raise InputError("`baseline` needs one label per image, but these images have several. Leave it out.")
        report = read_object_or_empty(folder / "report.json")
        if "mean_average_precision" in report:
            raise InputError(f"`baseline` {folder} is multi-label, but these images have one label each. Leave it out.")
        labels = {"true_label": list(images.table["label"])}
        table = pd.DataFrame(labels, index=pd.Index(images.paths, name="path"))
        root, there = root_of(images), data_root(folder, list(predictions.index))
        ours, theirs, note = located(table, root), located(predictions, there), ""
        both = ours.index[:0] if there is None else common_images(ours, theirs)
        if not len(both):
            ours, theirs, note = table, predictions, different_root_note(root, there)
            both = common_images(ours, theirs)
        if not len(both):
            raise InputError(
                f"`baseline` {folder} has no prediction of these images. Evaluate that model on the same data, and "
                "give the folder of that evaluation."
            )
        name = folder.resolve().name
        found = theirs.loc[both].set_axis(table.index[ours.index.get_indexer(both)])
        return cls(name, found, note, optimistic_warning([name] if report.get("optimistic") else []))

    def qualified(self, difference: PairedDifference) -> PairedDifference:
        """A difference from this run, with its notes."""
        return replace(difference, by_name=self.by_name, optimistic=self.optimistic)

    def save(self, folder: Path) -> dict[str, str]:
        """Save it in a run directory; returns plain values for ``load``."""
        save_predictions(folder / _SAVED, self.predictions.reset_index(names="path"))
        return {"against": self.name, "against_by_name": self.by_name, "against_optimistic": self.optimistic}

    @classmethod
    def load(cls, folder: Path, saved: Mapping[str, Any]) -> PreviousRun | None:
        """What ``save`` saved; None if nothing was, or it has been removed."""
        try:
            notes = (str(saved.get(f"against_{name}", "")) for name in ("by_name", "optimistic"))
            return cls(str(saved["against"]), load_predictions(folder / _SAVED), *notes)
        except (KeyError, InputError):
            return None


def find_previous_run(
    folder: Path, predictions: pd.DataFrame, *, split_by: str | None = None
) -> tuple[str, pd.DataFrame] | None:
    """Name and predictions of the newest finished run next to a run, on the same image files.

    Runs with optimistic metrics and multi-label runs are left out: without ``label_separator``, the joined labels of an
    image are one class. A cross-validation is compared with one of the same fold rule, ``split_by`` (None for a run).
    """
    kind = next((name for name in RUN_MARKERS if (folder / name).exists()), None)
    if kind is None:
        return None
    this, root = folder.resolve(), data_root(folder, list(predictions.index))
    if root is None:
        return None
    ours = located(predictions, root)
    reports = sorted(this.parent.glob("*/report.json"), key=lambda file: (file.stat().st_mtime_ns, file), reverse=True)
    others = [file for file in reports if file.parent != this and (file.parent / kind).exists()]
    for file in others[:_MAX_RUNS]:
        report = read_object_or_empty(file)
        same_images = report.get("num_images") == len(predictions) and report.get("split_by") == split_by
        if not same_images or report.get("optimistic") or "macro_f1" not in report:
            continue
        try:
            theirs = load_predictions(file.parent)
        except (InputError, OSError):  # unfinished, or of another user
            continue
        if (there := data_root(file.parent, list(theirs.index))) is None:
            continue
        moved = located(theirs, there)
        if ours.index.symmetric_difference(moved.index).empty:
            found = moved.loc[ours.index].set_axis(predictions.index)
            if (found["true_label"] == predictions["true_label"]).all():
                return file.parent.name, found
    return None
