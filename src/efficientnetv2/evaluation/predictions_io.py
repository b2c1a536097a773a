"""CSV files of predictions, and of images that were skipped."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.csv_dialect import write_table
from efficientnetv2.data.records import Ints
from efficientnetv2.evaluation.predictions import CLUSTER_COLUMN
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.classification import top_classes
from efficientnetv2.metrics.multilabel import assigned_labels
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.probability import Answer

# With more classes, only the most probable are written: 100,000 images of ImageNet-21k would take 20 GB. Ours.
MOST_CLASSES, _BEST = 1_000, 5

SKIPPED = "skipped.csv"
_SKIPPED_COLUMNS = ["path", "reason"]


def predictions_table(
    predictions: Predictions,
    paths: Sequence[str],
    class_names: Sequence[str],
    *,
    true_labels: Sequence[str] | None = None,
    clusters: Ints | None = None,
    abstain_below: float | None = None,
    separator: str | None = None,
) -> pd.DataFrame:
    """A row per image: path, predicted_label, probability, true_label if known, and the probability of each class.

    With more than 1,000 classes the five most probable instead: ``predicted_label``, ``probability``,
    ``predicted_label_2``, ...

    Args:
        predictions: n predictions of K classes.
        paths: (n,) paths of the images.
        class_names: K names.
        true_labels: (n,) labels.
        clusters: (n,) cluster ids, written in a last column (``evaluation.predictions.saved_clusters``).
        abstain_below: Below this probability the label is empty.
        separator: Text between several labels of an image, the most probable first. None gives one label.
    """
    probabilities = predictions.probabilities
    table = _table(probabilities, paths, class_names, true_labels)
    if separator is not None:
        cells = []
        for row, assigned in zip(
            probabilities, assigned_labels(probabilities, predictions.answer), strict=True
        ):
            labels = np.flatnonzero(assigned)
            labels = labels[np.argsort(-row[labels], kind="stable")]
            cells.append(separator.join(class_names[label] for label in labels.tolist()))
        table["predicted_label"] = cells
    if abstain_below is not None:
        table.loc[probabilities.max(axis=1) < abstain_below, "predicted_label"] = ""
    if clusters is not None:
        table = table.assign(**{CLUSTER_COLUMN: clusters})
    return table


def _table(
    probabilities: npt.NDArray[np.float32],
    paths: Sequence[str],
    class_names: Sequence[str],
    true_labels: Sequence[str] | None,
) -> pd.DataFrame:
    names: npt.NDArray[np.object_] = np.array(class_names, dtype=object)
    columns: dict[str, object] = {"path": list(paths)}
    truth = {} if true_labels is None else {"true_label": list(true_labels)}
    if len(names) > MOST_CLASSES:
        for place, column in enumerate(top_classes(probabilities, _BEST).T, start=1):
            suffix = f"_{place}" if place > 1 else ""
            columns[f"predicted_label{suffix}"] = names[column]
            columns[f"probability{suffix}"] = probabilities[np.arange(len(column)), column].round(6)
        return pd.DataFrame(columns | truth)
    columns["predicted_label"] = names[probabilities.argmax(axis=1)]
    columns["probability"] = probabilities.max(axis=1, initial=0.0).round(6)
    by_class = [_column_of(name, truth=bool(truth)) for name in class_names]
    # At once: pandas warns of tables that grow by a hundred columns.
    return pd.concat(
        [pd.DataFrame(columns | truth), pd.DataFrame(probabilities.round(6), columns=by_class)], axis=1
    )


def _column_of(name: str, *, truth: bool) -> str:
    """Column of the probability of a class; a class may be called "path" or "probability"."""
    taken = {"path", "predicted_label", "probability", *(("true_label", CLUSTER_COLUMN) if truth else ())}
    return f"probability of {name}" if name in taken else name


def write_predictions(out: Path, table: pd.DataFrame) -> None:
    """Write a table of ``predictions_table``; under another name if the file is locked, and then refuse."""
    try:
        write_table(out, table)
    except OSError as error:
        reason = error.strerror or error
        names = (out.with_stem(f"{out.stem}_{number}") for number in count(2))
        other = next(name for name in names if not name.exists())
        try:
            write_table(other, table)
        except OSError:
            raise InputError(
                f"{out}: {reason}. Is the disk full? Give a file elsewhere, by --output."
            ) from error
        raise InputError(
            f"{out} can't be replaced ({reason}): is it open in another program? The predictions are in {other}."
        ) from error


def is_predictions_csv(file: Path, class_names: Sequence[str]) -> bool:
    """Whether the header of a file is that of ``predictions_table`` with these classes."""
    header = list(_table(np.zeros((0, len(class_names)), np.float32), [], class_names, None).columns)
    # Version 0.1 wrote the same without the probability of the predicted class.
    return csv_columns(file) in (header, [name for name in header if name != "probability"])


def read_predictions(
    file: Path, class_names: Sequence[str], answer: Answer = "softmax"
) -> tuple[list[str], npt.NDArray[np.float64]]:
    """(n,) paths and (n, K) probabilities of a table with true labels, of at most 1,000 classes.

    A class without a column has probability 0. With ``softmax`` rows sum to 1.
    """
    names = {_column_of(name, truth=True): place for place, name in enumerate(class_names)}
    try:
        table = pd.read_csv(file, dtype={"path": str}, keep_default_na=False)
        if "probability" in class_names and _column_of("probability", truth=True) not in table.columns:
            names["probability"] = class_names.index("probability")  # of version 0.1
        columns = [column for column in table.columns if column in names]
        probabilities = np.zeros((len(table), len(class_names)))
        probabilities[:, [names[column] for column in columns]] = table[columns].to_numpy(dtype=np.float64)
        paths = table["path"].tolist()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{file} is no table of a run's predictions: {error}. Remove the run's folder, and it is trained again."
        ) from error
    if answer == "sigmoid":
        return paths, probabilities
    return paths, probabilities / np.maximum(probabilities.sum(axis=1, keepdims=True), 1e-9)


def write_skipped(file: Path, skipped: Sequence[tuple[str, str]]) -> None:
    """Write path and reason of each skipped image; without any, remove the list of earlier predictions."""
    try:
        if skipped:
            write_table(file, pd.DataFrame(skipped, columns=_SKIPPED_COLUMNS))
        else:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{file}: {error.strerror or error}. Give a place that can be written to by --output."
        ) from error


def skipped_csv_for(table: Path) -> Path:
    """``labels_skipped.csv`` of ``labels.csv``."""
    return table.with_name(f"{table.stem}_{SKIPPED}")


def is_skipped_csv(file: Path) -> bool:
    """Whether a file is what ``write_skipped`` writes, by its header."""
    return csv_columns(file) == _SKIPPED_COLUMNS


def csv_columns(file: Path) -> list[str]:
    """The first row of a comma-separated file; empty if it is none."""
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            return next(csv.reader(opened), [])
    except (OSError, ValueError, csv.Error):
        return []
