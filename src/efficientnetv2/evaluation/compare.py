"""Comparison of finished runs, and the previous run that a report compares with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.clusters import data_root, different_root_note
from efficientnetv2.evaluation.plots import MetricsRow
from efficientnetv2.evaluation.predictions import (
    PairedDifference,
    common_images,
    compare_predictions,
    load_predictions,
    optimistic_warning,
    save_predictions,
)
from efficientnetv2.metrics.confidence_intervals import Difference
from efficientnetv2.metrics.paired_tests import unpaired_difference
from efficientnetv2.training.run_dir import RUN_MARKERS, RunDir
from efficientnetv2.training.run_lock import is_running
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import read_object
from efficientnetv2.utils.legacy import run_file, upgrade
from efficientnetv2.utils.shell import shell_join

# Number of the newest runs beside this one to look at. Ours.
_MAX_RUNS = 20
# Where a run keeps the predictions of the one that it is to be compared with, which may be gone when it ends.
_SAVED = "against"


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


@dataclass(frozen=True, eq=False)
class PreviousRun:
    """A run or evaluation to compare with."""

    name: str  # Name for users
    predictions: pd.DataFrame  # See ``evaluation.predictions.load_predictions``
    by_name: str = ""  # Note that the images lie elsewhere and are compared by name; '' if they do not
    optimistic: str = ""  # Warning that its metrics are optimistic, by its report; '' if they are not

    @classmethod
    def named(cls, folder: Path, predictions: pd.DataFrame, images: ImageDataset) -> PreviousRun:
        """The run or evaluation of a folder, with its predictions, to compare on images to be predicted.

        Raises:
            InputError: The images have several labels or other labels, or none of them was predicted there.
        """
        labels = {"true_label": list(images.table["label"])}
        own = pd.DataFrame(labels, index=pd.Index(images.paths, name="path"))
        root = images.root.rstrip("/") if isinstance(images.root, str) else os.path.realpath(images.root)
        return cls.beside(folder, predictions, own, root=root, separator=images.separator)

    @classmethod
    def beside(
        cls,
        folder: Path,
        predictions: pd.DataFrame,
        own: pd.DataFrame,
        *,
        root: str | None,
        separator: str | None,
    ) -> PreviousRun:
        """The same, to compare with other predictions.

        Args:
            folder: Folder of the run or evaluation.
            predictions: Its predictions.
            own: Those to compare, with a column ``true_label``, by path.
            root: What their paths start from (``evaluation.clusters.data_root``).
            separator: Separator of their labels, if an image may have several.

        Raises:
            InputError: See ``named``.
        """
        if separator is not None:
            raise InputError("--baseline is for pictures of one label, but these have several. Leave it out.")
        both = common_images(own, predictions)
        if not len(both):
            raise InputError(
                f"--baseline {folder}: it answered none of these pictures, so nothing can be compared. Evaluate that "
                "model on the same DATA, and give the folder of that evaluation."
            )
        name = folder.resolve().name
        note = different_root_note(root, data_root(folder, list(predictions.index)))
        warning = optimistic_warning([name] if _is_optimistic(folder) else [])
        return cls(name, predictions.loc[both], note, warning)

    def qualified(self, difference: PairedDifference) -> PairedDifference:
        """A difference from this run, with its notes."""
        return replace(difference, by_name=self.by_name, optimistic=self.optimistic)

    def save(self, folder: Path) -> dict[str, str]:
        """Save it in a run directory; returns plain values for ``load``."""
        save_predictions(folder / _SAVED, self.predictions.reset_index(names="path"))
        notes = {"against_by_name": self.by_name, "against_optimistic": self.optimistic}
        return {"against": self.name, **notes}

    @classmethod
    def load(cls, folder: Path, saved: Mapping[str, Any]) -> PreviousRun | None:
        """What ``save`` saved; None if nothing was, or it has been removed."""
        try:
            notes = (str(saved.get(f"against_{name}", "")) for name in ("by_name", "optimistic"))
            return cls(str(saved["against"]), load_predictions(folder / _SAVED), *notes)
        except (KeyError, InputError):
            return None


def _is_optimistic(folder: Path) -> bool:
    """Whether the report of a run or an evaluation calls its metrics optimistic."""
    try:
        return bool(json.loads((folder / "report.json").read_text(encoding="utf-8"))["optimistic"])
    except (OSError, ValueError, KeyError, TypeError):  # without a report, the predictions count alone
        return False


def find_previous_run(
    folder: Path, predictions: pd.DataFrame, *, split_by: str | None = None
) -> tuple[str, pd.DataFrame] | None:
    """Name and predictions of the newest finished run beside a run, on the same images in the same place.

    Runs with optimistic metrics are passed over: what is better may look worse. A cross-validation is compared with
    another one whose folds have the same rule, ``split_by`` (None for a run).
    """
    kind = next((name for name in RUN_MARKERS if run_file(folder, name).exists()), None)
    if kind is None:
        return None
    own, root = folder.resolve(), data_root(folder, list(predictions.index))
    reports = sorted(
        own.parent.glob("*/report.json"), key=lambda file: (file.stat().st_mtime_ns, file), reverse=True
    )
    others = [file for file in reports if file.parent != own and run_file(file.parent, kind).exists()]
    for file in others[:_MAX_RUNS]:
        try:
            report = upgrade(json.loads(file.read_text(encoding="utf-8")))
            same_images = report["num_images"] == len(predictions) and report.get("split_by") == split_by
            if not same_images or report.get("optimistic"):
                continue
            theirs = load_predictions(file.parent)
        except (InputError, OSError, ValueError, KeyError):  # unfinished, or of another version
            continue
        if theirs.index.symmetric_difference(predictions.index).empty:
            labels = theirs.loc[predictions.index, "true_label"]
            same_labels = bool((labels == predictions["true_label"]).all())
            if same_labels and root is not None and root == data_root(file.parent, list(theirs.index)):
                return file.parent.name, theirs
    return None
