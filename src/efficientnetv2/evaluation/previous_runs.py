"""The run to compare a run with: one that is named, or the newest finished one beside it on the same images."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.clusters import data_root, different_root_note
from efficientnetv2.evaluation.predictions import (
    PairedDifference,
    common_images,
    load_predictions,
    optimistic_warning,
    save_predictions,
)
from efficientnetv2.training.run_dir import RUN_MARKERS
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.legacy import run_file, upgrade

# Number of the newest runs beside this one to look at. Ours.
_MAX_RUNS = 20
# Where a run keeps the predictions of the one that it is to be compared with, which may be gone when it ends.
_SAVED = "against"


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
