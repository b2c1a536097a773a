"""The run before this one, or another that is named: whether it is better than that."""

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
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.crossval_config import CROSSVAL_JSON

# Of the newest runs beside this one, how many are looked at: ours.
_LOOKED_AT = 20
#: What a folder of a run, or of a cross-validation, begins with.
KINDS = ("beginning.json", CROSSVAL_JSON)
# Where a run keeps the answers of the one that it was told to compare with, which may be gone when it ends.
_KEPT = "against"


@dataclass(frozen=True, eq=False)
class Other:
    """A run or evaluation that was named to compare with.

    Args:
        name: what it is called.
        answers: as ``evaluation.predictions.load_predictions`` gives them.
        by_name: words on pictures that lie elsewhere than those to compare with; '' if they do not.
        optimistic: a warning where its report calls its figures so; '' where it does not, or there is none.
    """

    name: str
    answers: pd.DataFrame
    by_name: str = ""
    optimistic: str = ""

    @classmethod
    def named(cls, folder: Path, answers: pd.DataFrame, pictures: ImageDataset) -> Other:
        """One that answered some of the pictures that are to be answered.

        Args:
            folder: of it, as the user says.
            answers: read from there.
            pictures: to be answered.

        Raises:
            InputError: there is nothing to compare: several labels each, no picture of both, or other labels.
        """
        asked = pd.DataFrame(
            {"true_label": list(pictures.table["label"])}, index=pd.Index(pictures.paths, name="path")
        )
        root = (
            pictures.root.rstrip("/") if isinstance(pictures.root, str) else os.path.realpath(pictures.root)
        )
        return cls.beside(folder, answers, asked, root=root, separator=pictures.separator)

    @classmethod
    def beside(
        cls,
        folder: Path,
        answers: pd.DataFrame,
        own: pd.DataFrame,
        *,
        root: str | None,
        separator: str | None,
    ) -> Other:
        """One that answered some of the pictures that others have answered.

        Args:
            folder: of it, as the user says.
            answers: read from there.
            own: column ``true_label`` of those to compare with, indexed by the path of the picture.
            root: what their paths start from, as of ``evaluation.clusters.data_root``.
            separator: of their labels, if a picture may have several.

        Raises:
            InputError: as of ``named``.
        """
        if separator is not None:
            raise InputError("--baseline is for pictures of one label, but these have several. Leave it out.")
        both = common_images(own, answers)
        if not len(both):
            raise InputError(
                f"--baseline {folder}: it answered none of these pictures, so nothing can be compared. Evaluate that "
                "model on the same DATA, and give the folder of that evaluation."
            )
        theirs = data_root(folder, list(answers.index))
        name = folder.resolve().name
        warning = optimistic_warning([name] if _optimistic(folder) else [])
        return cls(name, answers.loc[both], different_root_note(root, theirs), warning)

    def qualified(self, found: PairedDifference) -> PairedDifference:
        """What a network's answers have over this one's, with the words on this one."""
        return replace(found, by_name=self.by_name, optimistic=self.optimistic)

    def keep(self, folder: Path) -> dict[str, str]:
        """Write its answers into the folder of a run.

        Returns:
            Plain values for the run's beginning.
        """
        save_predictions(folder / _KEPT, self.answers.reset_index(names="path"))
        words = {"against_by_name": self.by_name, "against_optimistic": self.optimistic}
        return {"against": self.name, **words}

    @classmethod
    def kept(cls, folder: Path, beginning: Mapping[str, Any]) -> Other | None:
        """What ``keep`` kept; None where nothing was named, or somebody has removed it."""
        try:
            words = (str(beginning.get(f"against_{one}", "")) for one in ("by_name", "optimistic"))
            return cls(str(beginning["against"]), load_predictions(folder / _KEPT), *words)
        except (KeyError, InputError):
            return None


def _optimistic(folder: Path) -> bool:
    """Whether the report of a run or an evaluation calls its figures so."""
    try:
        return bool(json.loads((folder / "report.json").read_text(encoding="utf-8"))["optimistic"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or of others: the answers count alone
        return False


def last_before(
    folder: Path, answers: pd.DataFrame, *, split_by: str | None = None
) -> tuple[str, pd.DataFrame] | None:
    """The newest finished run beside a run that answered the same pictures, with its answers; None without one.

    The same are those that lie in the same place: other sets may call other pictures so (``evaluation.clusters``).

    One whose figures are optimistic, by its report, is passed over: it began with weights that some of these pictures
    have trained, so what is better than it may look worse.

    Of a cross-validation it is another cross-validation with folds of the same rule: by class it looks better than by
    place, for neighbours teach it.

    Args:
        folder: of the run.
        answers: its own, as ``evaluation.predictions.load_predictions`` gives them.
        split_by: the rule of its folds, as its report has it; None of a run.
    """
    kind = next((name for name in KINDS if (folder / name).exists()), None)
    if kind is None:
        return None
    own, root = folder.resolve(), data_root(folder, list(answers.index))
    reports = sorted(
        own.parent.glob("*/report.json"), key=lambda file: (file.stat().st_mtime_ns, file), reverse=True
    )
    for report in [one for one in reports if one.parent != own and (one.parent / kind).exists()][:_LOOKED_AT]:
        try:
            told = json.loads(report.read_text(encoding="utf-8"))
            if told["pictures"] != len(answers) or told.get("split_by") != split_by or told.get("optimistic"):
                continue
            theirs = load_predictions(report.parent)
        except (InputError, OSError, ValueError, KeyError):  # unfinished, or of another version
            continue
        if theirs.index.symmetric_difference(answers.index).empty:
            labels = theirs.loc[answers.index, "true_label"]
            same_labels = bool((labels == answers["true_label"]).all())
            if same_labels and root is not None and root == data_root(report.parent, list(theirs.index)):
                return report.parent.name, theirs
    return None
