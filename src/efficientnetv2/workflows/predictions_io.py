"""Tables that commands write."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.csv_dialect import write_table
from efficientnetv2.evaluation.predictions import CLUSTER_COLUMN
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.classification import top_classes
from efficientnetv2.metrics.multilabel import assigned_labels
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.probability import Answer

# Of more classes only the most probable are written: all of 100,000 pictures of ImageNet-21k would take 20 GB. Ours.
MOST_CLASSES, _BEST = 1_000, 5


def predictions_table(
    predictions: Predictions,
    paths: Sequence[str],
    class_names: Sequence[str],
    *,
    true_labels: Sequence[str] | None = None,
    drawn_whole: npt.NDArray[np.int64] | None = None,
    abstain_below: float | None = None,
    separator: str | None = None,
) -> pd.DataFrame:
    """A table: path, predicted label, its probability, the true label if known, and the probability of each class.

    Where pictures hang together a last column says which, for comparisons (``evaluation.predictions.saved_clusters``).

    Of more than 1,000 classes the five most probable instead: ``label``, ``probability``, ``label_2``,
    ``probability_2``, and so on.

    Args:
        predictions: n of them.
        paths: (n,) of the pictures.
        class_names: K names.
        true_labels: (n,) as DATA gives them; None where they are not asked for.
        drawn_whole: (n,) numbers, equal where pictures are of one place or group; None where none are known to be.
        abstain_below: a picture whose most probable class has less gets an empty label; None gives each one.
        separator: a picture may have several labels, the most probable first, with this between two, or none where
            its classes are answered each by itself; None gives one.
    """
    probabilities = predictions.probabilities
    table = _table(probabilities, paths, class_names, true_labels)
    if separator is not None:
        given = assigned_labels(probabilities, predictions.answer)
        table["label"] = _several(given, probabilities, class_names, separator)
    if abstain_below is not None:
        table.loc[probabilities.max(axis=1) < abstain_below, "label"] = ""
    if drawn_whole is not None:
        table = table.assign(**{CLUSTER_COLUMN: drawn_whole})
    return table


def write_predictions(out: Path, table: pd.DataFrame) -> None:
    """Write what ``predictions_table`` made as CSV.

    Raises:
        InputError: it can't be written.
    """
    try:
        write_table(out, table)
    except OSError as error:
        reason = error.strerror or error
        if (beside := _kept_beside(out, table)) is not None:
            raise InputError(
                f"{out} can't be replaced ({reason}): is it open in another program? The answers are in {beside}."
            ) from error
        raise InputError(f"{out}: {reason}. Is the disk full? Give a file elsewhere, by --out.") from error


def _kept_beside(out: Path, table: pd.DataFrame) -> Path | None:
    """Another file of the same folder that has been given the table instead; None if that can't be written either."""
    names = (out.with_stem(f"{out.stem}_{number}") for number in count(2))
    beside = next(name for name in names if not name.exists())
    try:
        write_table(beside, table)
    except OSError:
        return None
    return beside


def is_predictions_csv(file: Path, class_names: Sequence[str]) -> bool:
    """Whether a file is a table of predictions of these classes, by its header.

    Args:
        file: any.
        class_names: K names.
    """
    nothing = np.zeros((0, len(class_names)), np.float32)
    header = [str(name) for name in _table(nothing, [], class_names, None).columns]
    # Version 0.1 wrote the same without the probability of the predicted class.
    return read_header(file) in (header, [name for name in header if name != "probability"])


def read_header(file: Path) -> list[str]:
    """The first row of a CSV; empty of what is none."""
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            return next(csv.reader(opened), [])
    except (OSError, ValueError, csv.Error):
        return []


def _table(
    probabilities: npt.NDArray[np.float32],
    paths: Sequence[str],
    class_names: Sequence[str],
    true_labels: Sequence[str] | None,
) -> pd.DataFrame:
    table = pd.DataFrame({"path": list(paths)})
    truth = {} if true_labels is None else {"true_label": list(true_labels)}
    if len(class_names) > MOST_CLASSES:
        for place, column in enumerate(top_classes(probabilities, _BEST).T, start=1):
            end = f"_{place}" if place > 1 else ""
            table[f"label{end}"] = [class_names[one] for one in column]
            table[f"probability{end}"] = probabilities[np.arange(len(column)), column].round(6)
        table = table.assign(**truth)
    else:
        table["label"] = [class_names[best] for best in probabilities.argmax(axis=1)]
        table["probability"] = probabilities.max(axis=1, initial=0.0).round(6)
        table = table.assign(**truth)
        columns = [_column_of(name, truth=bool(truth)) for name in class_names]
        # At once: pandas warns of a table that grows by a hundred columns one by one.
        table = pd.concat([table, pd.DataFrame(probabilities.round(6), columns=columns)], axis=1)
    return table


def _several(
    given: npt.NDArray[np.bool_],
    probabilities: npt.NDArray[np.float32],
    class_names: Sequence[str],
    separator: str,
) -> list[str]:
    """All labels that a picture is given, as a cell of a table says them; empty where it is given none."""
    cells = []
    for shares, mine in zip(probabilities, given, strict=True):
        classes = np.flatnonzero(mine)
        order = classes[np.argsort(-shares[classes], kind="stable")]
        cells.append(separator.join(class_names[one] for one in order))
    return cells


def read_predictions(
    file: Path, class_names: Sequence[str], answer: Answer = "softmax"
) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Paths and probabilities of what ``write_predictions`` wrote with true labels, of at most 1,000 classes.

    Args:
        file: the CSV.
        class_names: K names; one that the network did not know has probability 0.
        answer: what the probabilities are.

    Returns:
        (n,) paths, and (n, K) probabilities, whose rows sum to 1 with ``softmax``.

    Raises:
        InputError: it can't be read, or is no such table.
    """
    names = {_column_of(name, truth=True): place for place, name in enumerate(class_names)}
    try:
        table = pd.read_csv(file, dtype={"path": str}, keep_default_na=False)
        if "probability" in class_names and _column_of("probability", truth=True) not in table.columns:
            names["probability"] = class_names.index("probability")  # a table without the predicted class's
        there = [column for column in table.columns if column in names]
        shares = np.zeros((len(table), len(class_names)))
        shares[:, [names[column] for column in there]] = table[there].to_numpy(dtype=np.float64)
        paths = table["path"].tolist()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{file} is no table of a run's answers: {error}. Remove the run's folder, and it is trained again."
        ) from error
    if answer == "sigmoid":
        return paths, shares
    return paths, shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-9)


def _column_of(name: str, *, truth: bool) -> str:
    """The column of a class's probability: a class may be called "path" or "label" itself."""
    taken = {"path", "label", "probability", *(("true_label", CLUSTER_COLUMN) if truth else ())}
    return f"probability of {name}" if name in taken else name
