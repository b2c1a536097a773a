"""What a classifier reached on pictures that have several labels each. scikit-learn computes, we arrange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficientnetv2.metrics.calibration import expected_calibration_error
from efficientnetv2.metrics.classification import (
    TOP,
    ClassificationMetrics,
    Floats,
    Integers,
    classification_metrics,
    top5_correct,
)
from efficientnetv2.utils.errors import InputError, no_answers
from efficientnetv2.utils.probability import Answer

#: The figures in which every class counts alike, by their keys in files; of a set of pictures there is one of them.
MACRO_METRICS = {"macro_f1": "macro-F1", "mean_average_precision": "mean average precision"}

# From there on a class is given to a picture. With softmax of the largest share: the m labels of a picture are learnt
# as 1 / m each, all others as 0, so half is as far from the one as from the other. Ours. With sigmoid of the class's
# own probability: it is likelier there than not.
_GIVEN_FROM = 0.5
#: Which classes a picture is given, in words that follow "every class".
ASSIGNMENT_RULES: dict[Answer, str] = {
    "softmax": "with at least half of its largest share",
    "sigmoid": "with a probability of at least 0.5",
}


@dataclass(frozen=True)
class MultilabelClassMetrics:
    """One class's figures.

    Args:
        average_precision: of the pictures in the order of the class's probability, the mean precision at those that
            are of the class; None without such a picture.
        f1: harmonic mean of precision and recall where classes are given by the rule of the answer (``assigned_labels``); None
            likewise.
        support: how many are.
    """

    average_precision: float | None
    f1: float | None
    support: int


@dataclass(frozen=True, eq=False)
class MultilabelMetrics:
    """The figures of one network on one set of pictures with several labels; shares are fractions, 0 to 1.

    With softmax, probabilities sum to 1 over the classes, so that a picture's labels have shares of it; with sigmoid
    each class has its own. Which classes are given to a picture follows by one rule for all (``assigned_labels``). There is no
    confusion matrix.

    Args:
        top1: share of pictures whose most probable class is one of the true ones.
        top5: share with a true one among the five most probable; None with five classes or fewer.
        mean_average_precision: over the classes that have a picture here.
        f1_micro: F1 of all labels together, each given one right or wrong.
        f1_macro: mean of the classes' F1, over those that have a picture here.
        per_class: name → figures, in the classes' order.
        majority_top1: top1 of always answering the most frequent class.
        majority_class: that class (the first of several).
        ece: expected calibration error of the most probable class, 15 bins. With softmax a share says nothing of how
            often it is right; with sigmoid it does.
        pictures: how many the figures are of.
        answer: what the network's probabilities are.
        without: pictures that are given no label; with softmax there are none.
    """

    top1: float
    top5: float | None
    mean_average_precision: float
    f1_micro: float
    f1_macro: float
    per_class: dict[str, MultilabelClassMetrics]
    majority_top1: float
    majority_class: str
    ece: float
    pictures: int
    answer: Answer = "softmax"
    without: int = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K classes, in order."""
        return tuple(self.per_class)


def is_correct(labels: npt.ArrayLike, predicted: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which answers are a true label of their picture.

    Args:
        labels: (N,) class ids, or (N, M) with -1 behind the last of a picture.
        predicted: (N,) class ids.
    """
    true, answers = np.asarray(labels), np.asarray(predicted)
    of_each = true if true.ndim == 2 else true[:, None]
    hits: npt.NDArray[np.bool_] = (of_each == answers[:, None]).any(axis=1)
    return hits


def compute_metrics(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    class_names: Sequence[str],
    answer: Answer = "softmax",
) -> ClassificationMetrics | MultilabelMetrics:
    """The figures of pictures with one label each, (N,) class ids, or with several, (N, M)."""
    if np.ndim(labels) == 1:
        return classification_metrics(labels, probabilities, class_names)
    return multilabel_metrics(labels, probabilities, class_names, answer)


def macro_metric(found: ClassificationMetrics | MultilabelMetrics) -> tuple[str, float]:
    """The figure in which every class counts alike: its key, one of ``MACRO_METRICS``, and its value."""
    if isinstance(found, MultilabelMetrics):
        return "mean_average_precision", found.mean_average_precision
    return "macro_f1", found.macro_f1


def multilabel_metrics(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    class_names: Sequence[str],
    answer: Answer = "softmax",
) -> MultilabelMetrics:
    """All figures of one set of pictures.

    Args:
        labels: (N, M) class ids, each once, -1 behind the last of a picture; N ≥ 1.
        probabilities: (N, K).
        class_names: K different names.
        answer: what the probabilities are: with ``softmax`` rows sum to 1.

    Raises:
        InputError: no picture, one without a label, or a network that answers NaN.

    Source: scikit-learn's average precision and F1, class by class, as the field reports pictures of several labels;
        top1 is the precision at 1 of google/automl, efficientnetv2/main.py.
    """
    true, shares = np.asarray(labels), np.asarray(probabilities)
    if len(true) == 0:
        raise InputError("there is no labelled picture to compute figures on. Give a split that has some.")
    bare = np.flatnonzero((true < 0).all(axis=1))
    if len(bare):
        raise InputError(f"picture {bare[0]} has no label. Leave pictures without one out.")
    broken = np.flatnonzero(~np.isfinite(shares).all(axis=1))
    if len(broken):
        raise no_answers(len(broken), len(true), int(broken[0]))
    predicted = shares.argmax(axis=1)
    hits = is_correct(true, predicted)
    pictures, classes = np.nonzero(true >= 0)[0], true[true >= 0]
    support = np.bincount(classes, minlength=len(class_names))
    # As scikit-learn has F1, but without lists of what is given: an untrained network gives every picture every class.
    cells = assigned_labels(shares, answer)
    found = np.bincount(classes[cells[pictures, classes]], minlength=len(class_names))
    of_both = support + cells.sum(axis=0)
    f1 = 2 * found / np.maximum(of_both, 1)
    per_class = _per_class(pictures, classes, support, shares, f1, class_names)
    averages = [one.average_precision for one in per_class.values() if one.average_precision is not None]
    return MultilabelMetrics(
        top1=float(hits.mean()),
        top5=float(top5_correct(true, shares).mean()) if len(class_names) > TOP else None,
        mean_average_precision=float(np.mean(averages)),
        f1_micro=float(2 * found.sum() / of_both.sum()),
        f1_macro=float(f1[support > 0].mean()),
        per_class=per_class,
        majority_top1=float(support.max() / len(true)),
        majority_class=class_names[int(support.argmax())],
        ece=expected_calibration_error(np.where(hits, predicted, -1), shares),
        pictures=len(true),
        answer=answer,
        without=int((~cells.any(axis=1)).sum()),
    )


def assigned_labels(shares: npt.ArrayLike, answer: Answer = "softmax") -> npt.NDArray[np.bool_]:
    """Which classes are given to a picture: ``ASSIGNMENT_RULES``.

    Args:
        shares: (N, K) probabilities.
        answer: what they are.

    Returns:
        (N, K); with ``softmax`` at least one in each row, with ``sigmoid`` maybe none.
    """
    values = np.asarray(shares)
    whole = values.max(axis=1, keepdims=True) if answer == "softmax" else 1.0
    enough: npt.NDArray[np.bool_] = values >= _GIVEN_FROM * whole
    return enough


def _per_class(
    pictures: npt.NDArray[np.intp],
    classes: Integers,
    support: npt.NDArray[np.intp],
    shares: Floats,
    f1: Floats,
    class_names: Sequence[str],
) -> dict[str, MultilabelClassMetrics]:
    from sklearn.metrics import average_precision_score  # takes a second to load

    by_class = np.split(pictures[np.argsort(classes, kind="stable")], np.cumsum(support)[:-1])
    found = {}
    for number, (name, rows) in enumerate(zip(class_names, by_class, strict=True)):
        average = None
        if len(rows):
            is_so = np.zeros(len(shares), dtype=bool)
            is_so[rows] = True
            average = float(average_precision_score(is_so, shares[:, number]))
        found[name] = MultilabelClassMetrics(average, float(f1[number]) if len(rows) else None, len(rows))
    return found
