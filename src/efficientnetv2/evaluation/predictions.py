"""Answers that were written down, read again: ``predictions.csv`` of a run or of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.csv_dialect import write_table
from efficientnetv2.metrics.bootstrap import Difference
from efficientnetv2.metrics.paired_tests import paired_difference
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.rng import Key

PREDICTIONS_CSV = "predictions.csv"
CLUSTER_COLUMN = "drawn_whole"  # its column of numbers that are equal where chance drew pictures as one
_READ = ("path", "label", "true_label", CLUSTER_COLUMN)
# Clusters from which a difference is told as any other. Ours.
_MANY = 10


@dataclass(frozen=True)
class PairedDifference:
    """What one network's answers have over another's, on the same pictures.

    Args:
        pictures: that both answered.
        top1: share labelled right.
        macro_f1: mean F1 over the classes that have a picture.
        balanced_accuracy: mean recall over them.
        f1: of each of them.
        together: clusters of pictures that hang together, as of a place or group, or a picture and its copies, that
            chance drew as a whole; None where it drew single pictures.
        by_name: words on pictures that may be others, since only their names are the same; see ``evaluation.clusters``.
        optimistic: words on another whose figures are; see ``optimistic_warning``.
    """

    pictures: int
    top1: Difference
    macro_f1: Difference
    balanced_accuracy: Difference
    f1: Mapping[str, Difference]
    together: int | None = None
    by_name: str = ""
    optimistic: str = ""


def load_predictions(folder: Path) -> pd.DataFrame:
    """The answers of a run or of an evaluation, by picture.

    Args:
        folder: that holds ``predictions.csv``.

    Returns:
        Columns ``label`` and ``true_label``, and ``drawn_whole`` if there is one, all text, indexed by
        the path of the picture.

    Raises:
        InputError: there is no such file, or it says no true labels.
    """
    file = folder / PREDICTIONS_CSV
    if not file.is_file():
        raise InputError(
            f"{folder} has no {PREDICTIONS_CSV}. Give the folder of a finished run or of an evaluation "
            "(effnetv2 evaluate MODEL DATA --out FOLDER)."
        )
    try:
        # Beside these there is a column for each class.
        table = pd.read_csv(file, dtype=str, keep_default_na=False, usecols=lambda name: name in _READ)
    except ValueError as error:  # pandas' own errors, and bytes that are no UTF-8, are such
        raise InputError(f"{file} can't be read ({error}). Leave the run out, or evaluate again.") from error
    if not {"path", "label", "true_label"} <= set(table.columns):
        raise InputError(
            f"{file} has no column true_label: it is of pictures without labels, or another version wrote it. "
            "Leave the run out, or evaluate again."
        )
    return table[[name for name in _READ if name in table]].drop_duplicates("path").set_index("path")


def saved_clusters(answers: pd.DataFrame) -> pd.Series[int] | None:
    """Numbers that are equal where pictures hang together, by path; None where the report knew of nothing that does.

    Args:
        answers: as ``load_predictions`` gives them.
    """
    if CLUSTER_COLUMN not in answers:
        return None
    numbers: npt.NDArray[np.int64] = pd.factorize(answers[CLUSTER_COLUMN])[0].astype(np.int64)
    return pd.Series(numbers, index=answers.index)


def save_predictions(folder: Path, answers: pd.DataFrame) -> None:
    """Write answers down for ``load_predictions``.

    Args:
        folder: made if need be.
        answers: columns ``path``, ``label`` and ``true_label``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / PREDICTIONS_CSV, answers)


def per_class_f1(answers: pd.DataFrame) -> dict[str, float]:
    """F1 of each class that has a picture.

    Args:
        answers: as ``load_predictions`` gives them.
    """
    from sklearn.metrics import f1_score  # takes a second to load

    names = sorted(answers["true_label"].unique())
    scores = f1_score(answers["true_label"], answers["label"], labels=names, average=None, zero_division=0.0)
    return dict(zip(names, scores.tolist(), strict=True))


def common_images(one: pd.DataFrame, other: pd.DataFrame) -> pd.Index[str]:
    """The pictures that are in both, in the order of the one.

    Args:
        one: column ``true_label``, indexed by the path of the picture.
        other: likewise.

    Raises:
        InputError: a picture has another true label in one than in the other.
    """
    both = one.index.intersection(other.index, sort=False)
    mine, theirs = one.loc[both, "true_label"], other.loc[both, "true_label"]
    unlike = (mine != theirs).to_numpy()
    if unlike.any():
        first = int(unlike.argmax())
        raise InputError(
            f"{both[first]!s} is '{mine.iloc[first]}' on one side and '{theirs.iloc[first]}' on the other "
            f"({int(unlike.sum())} of {len(both)} pictures differ so). Evaluate both again with the same labels."
        )
    return both


def optimistic_warning(names: Sequence[str]) -> str:
    """A warning for a difference to, or of, runs whose figures are optimistic by their own reports; '' where none are.

    Args:
        names: what those are called.
    """
    if not names:
        return ""
    by, them = ("its report", "it") if len(names) == 1 else ("their reports", "them")
    return (
        f"Warning: the figures of {' and '.join(names)} are optimistic, by {by}: some of these pictures trained or "
        f"chose {them}, so the difference does not say which is better on new ones. Compare on others."
    )


def few_clusters_note(together: int | None) -> str:
    """What few clusters, drawn as a whole, leave open: a sentence to follow another; '' of more.

    Args:
        together: how many there are; None where single pictures were drawn.
    """
    if together is None or together >= _MANY:
        return ""
    return f" Of only {together} clusters nothing is certain unless six or more differ."


def compare_predictions(
    one: pd.DataFrame, other: pd.DataFrame, *, clusters: pd.Series[int] | None = None
) -> PairedDifference | None:
    """What the one's answers have over the other's, on the pictures that both answered; None if there is none.

    Where pictures hang together an interval reaches as far as the wider of two: chance drew pictures, or all of a place
    at once. Of few places the second alone would be too narrow. Where both sides say what hangs together, that counts
    by which fewer are left to be drawn. Two tables have one interval between them, whichever way round, in whichever
    order they list pictures, and wherever it is told.

    Args:
        one: as ``load_predictions`` gives them.
        other: likewise.
        clusters: by the path of the picture, equal where pictures hang together, beside what the tables say of it; None
            where nothing else is known.

    Raises:
        InputError: a picture has another true label in one than in the other.
    """
    both = common_images(one, other).sort_values()
    if not len(both):
        return None
    mine, theirs = one.loc[both], other.loc[both]
    names = sorted({*mine["true_label"], *mine["label"], *theirs["label"]})
    ids = {name: number for number, name in enumerate(names)}
    columns = [mine["true_label"], mine["label"], theirs["label"]]
    labels, answers, others = (column.map(ids).to_numpy(dtype=np.int64) for column in columns)
    together, drawn = None, np.arange(len(both), dtype=np.int64)
    known = [
        each.loc[both] for each in (clusters, saved_clusters(one), saved_clusters(other)) if each is not None
    ]
    if known:
        fewest = min(known, key=lambda each: each.nunique())
        if 1 < (count := fewest.nunique()) < len(both):
            together, drawn = count, pd.factorize(fewest)[0].astype(np.int64)
    differing = np.flatnonzero(answers != others)
    turned = bool(len(differing)) and bool(answers[differing[0]] > others[differing[0]])
    pair = (others, answers) if turned else (answers, others)
    found = paired_difference(labels, *pair, drawn, len(names), key=Key.of(0).fold("paired"))
    if turned:
        found = {
            name: Difference(0.0 - each.value, 0.0 - each.high, 0.0 - each.low)
            for name, each in found.items()
        }
    f1 = {names[k]: found[f"f1:{k}"] for k in np.unique(labels).tolist()}
    return PairedDifference(
        len(both), found["top1"], found["macro_f1"], found["balanced_accuracy"], f1, together
    )
