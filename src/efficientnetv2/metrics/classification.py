"""What a classifier reached, from true labels and probabilities. scikit-learn computes, we arrange."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array

from efficientnetv2.metrics.calibration import expected_calibration_error
from efficientnetv2.utils.errors import InputError, count_of, no_answers

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

TOP = 5  # classes that top-5 looks at
_SORTED_AT_ONCE = 4_000_000  # answers ranked in memory together (32 MB of indices): ours


@dataclass(frozen=True)
class ClassMetrics:
    """One class's figures. A class without a true picture was not measured: all three are None.

    Args:
        precision: share of the pictures called so that are so; 0 if none was called so.
        recall: share of the pictures that are so which were called so.
        f1: harmonic mean of both.
        support: how many pictures are so.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True, eq=False)
class ClassificationMetrics:
    """The figures of one network on one set of pictures; shares are fractions, 0 to 1.

    ``macro_f1`` and ``balanced_accuracy`` average over the classes that have a true picture here. A
    picture wrongly given to another class still costs the class it belongs to its recall.

    Args:
        top1: share of pictures whose most probable class is the true one.
        top5: share whose true class is among the five most probable; None with five classes or fewer.
        macro_f1: mean of the classes' F1.
        balanced_accuracy: mean of the classes' recall.
        per_class: name → figures, in the classes' order.
        majority_top1: top1 of always answering the most frequent class of these labels.
        majority_class: that class (the first of several).
        ece: expected calibration error, 15 bins.
        confusion: (K, K) counts; rows are the true class, columns the predicted one. Sparse, its cells row by row:
            ImageNet-21k's whole matrix would be 3.8 GB, and N pictures fill N of its cells at most.
    """

    top1: float
    top5: float | None
    macro_f1: float
    balanced_accuracy: float
    per_class: dict[str, ClassMetrics]
    majority_top1: float
    majority_class: str
    ece: float
    confusion: coo_array

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K classes, in order."""
        return tuple(self.per_class)

    @property
    def pictures(self) -> int:
        """How many pictures the figures are of."""
        return int(self.confusion.sum())


def classification_metrics(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, class_names: Sequence[str]
) -> ClassificationMetrics:
    """All figures of one set of pictures.

    Args:
        labels: (N,) integers, 0 to K - 1; N ≥ 1.
        probabilities: (N, K), rows sum to 1.
        class_names: K different names.

    Raises:
        InputError: no picture, a label that is no class, or a network that answers NaN.

    Source: scikit-learn's definitions, over the classes present.
    """
    from sklearn.metrics import precision_recall_fscore_support  # takes a second to load

    true, shares = _checked(labels, probabilities, class_names)
    predicted = shares.argmax(axis=1)
    k = len(class_names)
    classes = np.arange(k)
    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=classes, zero_division=0.0
    )
    present = support > 0
    per_class = {
        name: ClassMetrics(float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
        if present[i]
        else ClassMetrics(None, None, None, 0)
        for i, name in enumerate(class_names)
    }
    return ClassificationMetrics(
        top1=float((predicted == true).mean()),
        top5=float(top5_correct(true, shares).mean()) if k > TOP else None,
        macro_f1=float(f1[present].mean()),
        balanced_accuracy=float(recall[present].mean()),
        per_class=per_class,
        majority_top1=float(support.max() / len(true)),
        majority_class=class_names[int(support.argmax())],
        ece=expected_calibration_error(true, shares),
        confusion=csr_array((np.ones_like(true), (true, predicted)), shape=(k, k)).tocoo(),
    )


def row_chunks(pictures: int, classes: int) -> Iterator[slice]:
    """Parts of pictures whose answers are ranked together: the order of a row takes twice its memory."""
    rows = max(1, _SORTED_AT_ONCE // classes)
    for start in range(0, pictures, rows):
        yield slice(start, start + rows)


def top_classes(probabilities: Floats, count: int) -> Integers:
    """The classes that pictures are taken for, the most probable first; of equal ones the first.

    Args:
        probabilities: (N, K); never put in order as a whole.
        count: how many of each picture; all where there are fewer.

    Returns:
        (N, count).
    """
    ranked = [
        # Without the copy each part's order would stay in memory whole.
        np.argsort(-probabilities[part], axis=1, kind="stable")[:, :count].copy()
        for part in row_chunks(*probabilities.shape)
    ]
    return np.concatenate([np.empty((0, min(count, probabilities.shape[1])), np.int64), *ranked])


def top5_correct(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which pictures have a true class among the five most probable; of classes as probable the first come first.

    Args:
        labels: (N,) class ids, or (N, M), -1 behind the last of a picture.
        probabilities: (N, K), K > 5.

    Returns:
        (N,).
    """
    true, shares = np.asarray(labels), np.asarray(probabilities)
    true, classes = true.reshape(len(true), -1), np.arange(shares.shape[1])
    hits = np.zeros(len(true), dtype=bool)
    for part in row_chunks(*shares.shape):
        for own in true[part].T[:, :, None]:  # one label of each picture
            share = np.take_along_axis(shares[part], own, axis=1)
            before = (shares[part] > share) | ((shares[part] == share) & (classes < own))
            hits[part] |= (own[:, 0] >= 0) & (before.sum(axis=1) < TOP)
    return hits


def _checked(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, class_names: Sequence[str]
) -> tuple[Integers, Floats]:
    true, shares = np.asarray(labels), np.asarray(probabilities)
    assert shares.shape == (len(true), len(class_names)), (true.shape, shares.shape, len(class_names))
    assert len(set(class_names)) == len(class_names), class_names
    if len(true) == 0:
        raise InputError("there is no labelled picture to compute figures on. Give a split that has some.")
    stray = np.flatnonzero((true < 0) | (true >= len(class_names)))
    if len(stray):
        raise InputError(
            f"picture {stray[0]} has label {true[stray[0]]}, but {count_of(len(class_names), 'class')} count from 0. "
            "Leave pictures without a label out."
        )
    totals = shares.sum(axis=1)
    broken = np.flatnonzero(~np.isfinite(totals))
    if len(broken):
        raise no_answers(len(broken), len(true), int(broken[0]))
    assert np.allclose(totals, 1, atol=1e-3), "probabilities are softmax's, rows sum to 1"
    return true.astype(np.int64), shares
