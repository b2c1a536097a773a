"""Predictions in ``predictions.csv``, and the paired difference between two sets of predictions."""

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
from efficientnetv2.utils.legacy import COLUMNS
from efficientnetv2.utils.rng import Key

PREDICTIONS_CSV = "predictions.csv"
# Column of cluster ids.
CLUSTER_COLUMN = "cluster"
_READ = ("path", "predicted_label", "true_label", CLUSTER_COLUMN)
# Number of clusters from which no note is needed. Ours.
_MANY = 10


@dataclass(frozen=True)
class PairedDifference:
    """Difference of metrics between two sets of predictions on the same images, first minus second.

    Attributes:
        f1: Per class with images.
        together: Number of clusters that the bootstrap drew. None for single images.
        by_name: Note that images were matched by name only.
        optimistic: ``optimistic_warning`` of the compared runs.
    """

    num_images: int
    top1: Difference
    macro_f1: Difference
    balanced_accuracy: Difference
    f1: Mapping[str, Difference]
    together: int | None = None
    by_name: str = ""
    optimistic: str = ""


def load_predictions(folder: Path) -> pd.DataFrame:
    """The predictions in a folder, indexed by path: ``predicted_label``, ``true_label`` maybe ``cluster``; all text.

    Raises:
        InputError: There is no ``predictions.csv``, it cannot be read, or it has no true labels.
    """
    file = folder / PREDICTIONS_CSV
    if not file.is_file():
        raise InputError(
            f"{folder} has no {PREDICTIONS_CSV}. Give the folder of a finished run or of an evaluation "
            "(effnetv2 evaluate MODEL DATA --output FOLDER)."
        )
    try:
        # There is also a column for each class.
        table = pd.read_csv(
            file, dtype=str, keep_default_na=False, usecols=lambda name: name in (*_READ, *COLUMNS)
        )
    except ValueError as error:  # also pandas' own errors and bytes that are not UTF-8
        raise InputError(f"{file} cannot be read ({error}). Leave the run out, or evaluate again.") from error
    if "predicted_label" not in table:  # of version 0.1
        table = table.rename(columns=COLUMNS)
    if not {"path", "predicted_label", "true_label"} <= set(table.columns):
        raise InputError(
            f"{file} has no column true_label: its images have no labels, or another version wrote it. "
            "Leave the run out, or evaluate again."
        )
    return table[[name for name in _READ if name in table]].drop_duplicates("path").set_index("path")


def saved_clusters(predictions: pd.DataFrame) -> pd.Series[int] | None:
    """(N,) cluster ids that the report used, by path; None for single images."""
    if CLUSTER_COLUMN not in predictions:
        return None
    numbers: npt.NDArray[np.int64] = pd.factorize(predictions[CLUSTER_COLUMN])[0].astype(np.int64)
    return pd.Series(numbers, index=predictions.index)


def save_predictions(folder: Path, predictions: pd.DataFrame) -> None:
    """Write a table with columns ``path``, ``predicted_label`` and ``true_label`` for ``load_predictions``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / PREDICTIONS_CSV, predictions)


def per_class_f1(predictions: pd.DataFrame) -> dict[str, float]:
    """F1 of each class with images."""
    from sklearn.metrics import f1_score  # takes a second to load

    names = sorted(predictions["true_label"].unique())
    scores = f1_score(
        predictions["true_label"],
        predictions["predicted_label"],
        labels=names,
        average=None,
        zero_division=0.0,
    )
    return dict(zip(names, scores.tolist(), strict=True))


def common_images(first: pd.DataFrame, second: pd.DataFrame) -> pd.Index[str]:
    """Paths in both tables, in the order of the first.

    Raises:
        InputError: An image has different true labels.
    """
    both = first.index.intersection(second.index, sort=False)
    labels = [table.loc[both, "true_label"] for table in (first, second)]
    differ = np.flatnonzero((labels[0] != labels[1]).to_numpy())
    if len(differ):
        one, other = (each.iloc[differ[0]] for each in labels)
        raise InputError(
            f"{both[differ[0]]!s} is '{one}' in one table and '{other}' in the other ({len(differ)} of {len(both)} "
            "images have such a difference). Evaluate both again with the same labels."
        )
    return both


def optimistic_warning(names: Sequence[str]) -> str:
    """A warning about runs whose reports are optimistic; '' for none."""
    if not names:
        return ""
    return (
        f"Warning: metrics of {' and '.join(names)} are optimistic by their report: some of these images trained or "
        "selected the model. So the difference does not say which is better on new images. Compare on other images."
    )


def few_clusters_note(together: int | None) -> str:
    """A sentence on what few clusters leave open; '' for enough, or for single images."""
    if together is None or together >= _MANY:
        return ""
    return f"With only {together} clusters, nothing is certain unless six or more differ."


def compare_predictions(
    first: pd.DataFrame, second: pd.DataFrame, *, clusters: pd.Series[int] | None = None
) -> PairedDifference | None:
    """The difference of two tables of ``load_predictions`` on their common images; None if there are none.

    The tables' own clusters and ``clusters``, by path, are candidates; the one with the fewest clusters counts. The
    result depends neither on the order of the tables (except for the sign) nor on that of their rows.

    Raises:
        InputError: An image has different true labels.
    """
    both = common_images(first, second).sort_values()
    if not len(both):
        return None
    names = sorted(
        {
            *first.loc[both, "true_label"],
            *first.loc[both, "predicted_label"],
            *second.loc[both, "predicted_label"],
        }
    )
    ids = {name: number for number, name in enumerate(names)}
    labels, one, other = (
        table.loc[both, column].map(ids).to_numpy(dtype=np.int64)
        for table, column in ((first, "true_label"), (first, "predicted_label"), (second, "predicted_label"))
    )
    count, units = None, np.arange(len(both), dtype=np.int64)
    known = [
        each.loc[both]
        for each in (clusters, saved_clusters(first), saved_clusters(second))
        if each is not None
    ]
    if known:
        fewest = min(known, key=lambda each: each.nunique())
        if 1 < fewest.nunique() < len(both):
            count, units = fewest.nunique(), pd.factorize(fewest)[0].astype(np.int64)
    # In a fixed order, so that both directions have the same draws.
    differing = np.flatnonzero(one != other)
    swapped = bool(len(differing)) and bool(one[differing[0]] > other[differing[0]])
    if swapped:
        one, other = other, one
    found = paired_difference(labels, one, other, units, len(names), key=Key.of(0).fold("paired"))
    if swapped:
        found = {
            name: Difference(0.0 - each.value, 0.0 - each.high, 0.0 - each.low)
            for name, each in found.items()
        }
    f1 = {names[k]: found[f"f1:{k}"] for k in np.unique(labels).tolist()}
    return PairedDifference(
        len(both), found["top1"], found["macro_f1"], found["balanced_accuracy"], f1, count
    )
