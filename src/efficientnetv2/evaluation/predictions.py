"""Files of predictions and of skipped images, and the paired difference between two sets of predictions."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.csv_dialect import write_table
from efficientnetv2.data.records import Ints
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.classification import top_classes
from efficientnetv2.metrics.confidence_intervals import Difference
from efficientnetv2.metrics.metric_intervals import paired_difference
from efficientnetv2.metrics.multilabel import assigned_labels
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import hint_for_os_error
from efficientnetv2.utils.legacy import COLUMNS
from efficientnetv2.utils.probability import Activation
from efficientnetv2.utils.random_key import Key

PREDICTIONS_CSV = "predictions.csv"
# Column of cluster ids.
CLUSTER_COLUMN = "cluster"
UNKNOWN_COLUMNS = ["unknown_score", "is_unknown"]
_READ = ("path", "predicted_label", "true_label", CLUSTER_COLUMN)
# Number of clusters from which no note is needed. Ours.
_ENOUGH_CLUSTERS = 10
# With more classes, only the most probable are written: 100,000 images of ImageNet-21k would take 20 GB. Ours.
MOST_CLASSES, _BEST = 1_000, 5
# Names that a column of a class never has. A class of such a name has the column "probability of NAME".
_RESERVED = {*_READ, "probability", *UNKNOWN_COLUMNS, *(f"predicted_label_{place}" for place in range(2, _BEST + 1))}
_PREFIX = "probability of "
SKIPPED = "skipped.csv"
_SKIPPED_COLUMNS = ["path", "reason"]


@dataclass(frozen=True)
class PairedDifference:
    """Difference of metrics between two sets of predictions on the same images, first minus second."""

    num_images: int
    top1: Difference
    macro_f1: Difference
    balanced_accuracy: Difference
    f1: Mapping[str, Difference]  # of the classes with images
    num_clusters: int | None = None  # clusters that the bootstrap drew; None for single images
    by_name: str = ""  # note that images were matched by name only
    optimistic: str = ""  # ``optimistic_warning`` of the compared runs

    @property
    def verdict(self) -> str:
        """Whether the first is better, as far as the intervals allow: ``Yes.``, ``Not clearly.``."""
        certain = [each.value > 0 for each in (self.top1, self.macro_f1) if each.certain]
        if not certain:
            return "Not clearly."
        if all(certain):
            return "Yes."
        return "In one metric yes, in the other no." if any(certain) else "No, worse."

    @property
    def text(self) -> str:
        """``On the same 100 images: top-1 +5.0 points (+1.0 to +9.0), ...``, and what limits that."""
        clusters = "" if self.num_clusters is None else f", drawn in {self.num_clusters:,} clusters"
        few = ""
        if self.num_clusters is not None and self.num_clusters < _ENOUGH_CLUSTERS:
            few = f"With only {self.num_clusters} clusters, nothing is certain unless six or more differ."
        notes = [f" {note}" for note in (few, self.by_name, self.optimistic) if note]
        return (
            f"On the same {self.num_images:,} images{clusters}: top-1 {self.top1.points}, macro-F1 "
            f"{self.macro_f1.points}; 95 % intervals.{''.join(notes)}"
        )


def load_predictions(folder: Path) -> pd.DataFrame:
    """The predictions in a folder, by path: ``predicted_label``, ``true_label``, maybe ``cluster``; all text.

    Raises InputError if there is no ``predictions.csv``, it cannot be read, or it has no true labels.
    """
    file = folder / PREDICTIONS_CSV
    if not file.is_file():
        raise InputError(f"{folder} has no {PREDICTIONS_CSV}. Give the folder of a finished run or of an evaluation.")
    try:  # the columns of the classes are not read
        table = pd.read_csv(file, dtype=str, keep_default_na=False, usecols=lambda name: name in (*_READ, *COLUMNS))
    except ValueError as error:  # also pandas' own errors and bytes that are not UTF-8
        raise InputError(f"{file} cannot be read ({error}). Leave the run out, or evaluate again.") from error
    if "predicted_label" not in table:  # of version 0.1
        table = table.rename(columns=COLUMNS)
    if not {"path", "predicted_label", "true_label"} <= set(table.columns):
        raise InputError(f"{file} has no column true_label. Leave the run out, or evaluate labeled images.")
    return table[[name for name in _READ if name in table]].drop_duplicates("path").set_index("path")


def saved_clusters(predictions: pd.DataFrame) -> pd.Series[int] | None:
    """(N,) cluster ids that the report used, by path; None for single images."""
    if CLUSTER_COLUMN not in predictions:
        return None
    ids: npt.NDArray[np.int64] = pd.factorize(predictions[CLUSTER_COLUMN])[0].astype(np.int64)
    return pd.Series(ids, index=predictions.index)


def save_predictions(folder: Path, predictions: pd.DataFrame) -> None:
    """Write a table with columns ``path``, ``predicted_label`` and ``true_label`` for ``load_predictions``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / PREDICTIONS_CSV, predictions)


def per_class_f1(predictions: pd.DataFrame) -> dict[str, float]:
    """F1 of each class with images."""
    from sklearn.metrics import f1_score  # takes a second to load

    true, names = predictions["true_label"], sorted(predictions["true_label"].unique())
    scores = f1_score(true, predictions["predicted_label"], labels=names, average=None, zero_division=0.0)
    return dict(zip(names, scores.tolist(), strict=True))


def common_images(first: pd.DataFrame, second: pd.DataFrame) -> pd.Index[str]:
    """Paths in both tables, in the order of the first; raises InputError if true labels differ."""
    both = first.index.intersection(second.index, sort=False)
    labels = [table.loc[both, "true_label"] for table in (first, second)]
    differ = np.flatnonzero((labels[0] != labels[1]).to_numpy())
    if len(differ):
        one, other = (each.iloc[differ[0]] for each in labels)
        raise InputError(
            f"{both[differ[0]]!s} is '{one}' in one table and '{other}' in the other ({len(differ)} of {len(both)} "
            "images differ). Evaluate both again with the same labels."
        )
    return both


def optimistic_warning(names: Sequence[str]) -> str:
    """A warning about runs whose reports are optimistic; '' for none."""
    if not names:
        return ""
    return (
        f"Warning: metrics of {' and '.join(names)} are optimistic, since some of these images trained or selected "
        "the model. Compare on other images."
    )


def compare_predictions(
    first: pd.DataFrame, second: pd.DataFrame, *, clusters: pd.Series[int] | None = None
) -> PairedDifference | None:
    """The difference of two tables of ``load_predictions`` on their common images; None if there are none.

    The tables' own clusters and ``clusters``, by path, are candidates; the one with the fewest clusters counts. The
    result depends neither on the order of the tables (except for the sign) nor on that of their rows.
    Raises InputError if an image has different true labels.
    """
    both = common_images(first, second).sort_values()
    if not len(both):
        return None
    columns = [
        table.loc[both, name]
        for table, name in ((first, "true_label"), (first, "predicted_label"), (second, "predicted_label"))
    ]
    names = sorted(set[str]().union(*columns))
    ids = {name: number for number, name in enumerate(names)}
    labels, one, other = (column.map(ids).to_numpy(dtype=np.int64) for column in columns)
    num_clusters, units = None, np.arange(len(both), dtype=np.int64)
    candidates = (clusters, saved_clusters(first), saved_clusters(second))
    known = [each.loc[both] for each in candidates if each is not None]
    # A single cluster has no spread to estimate from; clusters of single images are the images.
    if usable := [each for each in known if 1 < each.nunique() < len(both)]:
        fewest = min(usable, key=lambda each: each.nunique())
        num_clusters, units = fewest.nunique(), pd.factorize(fewest)[0].astype(np.int64)
    # In a fixed order, so that both directions have the same draws.
    differing = np.flatnonzero(one != other)
    swapped = bool(len(differing)) and bool(one[differing[0]] > other[differing[0]])
    if swapped:
        one, other = other, one
    found = paired_difference(labels, one, other, units, len(names), key=Key.of(0).fold("paired"))
    if swapped:
        found = {name: Difference(0.0 - each.value, 0.0 - each.high, 0.0 - each.low) for name, each in found.items()}
    f1 = {names[k]: found[f"f1:{k}"] for k in np.unique(labels).tolist()}
    return PairedDifference(len(both), found["top1"], found["macro_f1"], found["balanced_accuracy"], f1, num_clusters)


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
    ``predicted_label_2``, ... Below the probability ``abstain_below`` the label is empty. ``separator`` joins the
    assigned labels of an image, the most probable first; None gives one label. (n,) cluster ids are the last column.
    """
    probabilities = predictions.probabilities
    table = _table(probabilities, paths, class_names, true_labels)
    if separator is not None:
        cells = []
        assigned = assigned_labels(probabilities, predictions.activation)
        for row, mask in zip(probabilities, assigned, strict=True):
            labels = np.flatnonzero(mask)
            labels = labels[np.argsort(-row[labels], kind="stable")]
            cells.append(separator.join(class_names[label] for label in labels.tolist()))
        table["predicted_label"] = cells
    if abstain_below is not None:
        table.loc[probabilities.max(axis=1) < abstain_below, "predicted_label"] = ""
    return table if clusters is None else table.assign(**{CLUSTER_COLUMN: clusters})


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
    by_class = [_class_column(name) for name in class_names]
    # At once: pandas warns of tables that grow by a hundred columns.
    return pd.concat([pd.DataFrame(columns | truth), pd.DataFrame(probabilities.round(6), columns=by_class)], axis=1)


def _class_column(name: str) -> str:
    """Column of the probability of a class; classes of different names have different columns."""
    return f"{_PREFIX}{name}" if name in _RESERVED or name.startswith(_PREFIX) else name


def write_predictions(out: Path, table: pd.DataFrame) -> None:
    """Write a table that took long to compute; under another name if the file is locked, and then refuse."""
    try:
        write_table(out, table)
    except OSError as error:
        reason = error.strerror or error
        names = (out.with_stem(f"{out.stem}_{number}") for number in count(2))
        other = next(name for name in names if not name.exists())
        try:
            write_table(other, table)
        except OSError:
            fix = f"{hint_for_os_error(error)}, and repeat the command; a training run continues with `resume`"
            raise InputError(f"{out}: {reason}. {fix}.") from error
        raise InputError(
            f"{out} cannot be replaced ({reason}). Close it in other programs; the table is in {other}."
        ) from error


def is_predictions_csv(file: Path, class_names: Sequence[str]) -> bool:
    """Whether the header of a file is that of ``predictions_table`` with these classes."""
    header = list(_table(np.zeros((0, len(class_names)), np.float32), [], class_names, None).columns)
    found = [name for name in csv_columns(file) if name not in UNKNOWN_COLUMNS]
    return found == header


def read_predictions(
    file: Path, class_names: Sequence[str], activation: Activation = "softmax"
) -> tuple[list[str], npt.NDArray[np.float64]]:
    """(n,) paths and (n, K) probabilities of a table with true labels, of at most 1,000 classes.

    A class without a column has probability 0. With ``softmax`` rows sum to 1.
    """
    places = {_class_column(name): k for k, name in enumerate(class_names)}
    try:
        table = pd.read_csv(file, dtype={"path": str}, keep_default_na=False)
        columns = [column for column in table.columns if column in places]
        probabilities = np.zeros((len(table), len(class_names)))
        probabilities[:, [places[column] for column in columns]] = table[columns].to_numpy(dtype=np.float64)
        paths = table["path"].tolist()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{file} is not a table of a run's predictions: {error}. Remove the run's folder, and it is trained again."
        ) from error
    if activation == "sigmoid":
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
            f"{file}: {error.strerror or error}. Close it in other programs, or give a writable `output`."
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
