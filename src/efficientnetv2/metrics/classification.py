"""Metrics of single-label classification. scikit-learn computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array

from efficientnetv2.metrics.calibration import expected_calibration_error
from efficientnetv2.metrics.confidence_intervals import Ints, wilson_interval
from efficientnetv2.utils.errors import InputError, non_finite_error

Floats = npt.NDArray[np.floating[Any]]

TOP = 5
# Probabilities sorted in memory together (32 MB of indices). Ours.
_SORTED_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class; None for a class without images. Precision is 0 for a class that was never predicted."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True, eq=False)
class ClassificationMetrics:
    """Metrics of one model on one dataset, as fractions; means are over the classes with an image."""

    top1: float
    top5: float | None  # None with five classes or fewer
    macro_f1: float
    balanced_accuracy: float
    per_class: dict[str, ClassMetrics]
    majority_top1: float  # of always predicting the most frequent class
    majority_class: str
    ece: float  # expected calibration error, 15 bins
    confusion: coo_array  # (K, K) counts, rows true, sorted by row; dense, that of ImageNet-21k has 3.8 GB

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K classes, in order."""
        return tuple(self.per_class)

    @property
    def num_images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())


def classification_metrics(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, class_names: Sequence[str]
) -> ClassificationMetrics:
    """Metrics of (N, K) probabilities for (N,) class ids, as scikit-learn defines them for classes with images."""
    from sklearn.metrics import precision_recall_fscore_support  # takes a second to load

    true, scores = _checked(labels, probabilities, class_names)
    predicted = scores.argmax(axis=1)
    k = len(class_names)
    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=np.arange(k), zero_division=0.0
    )
    present = support > 0
    per_class = {name: ClassMetrics(None, None, None, 0) for name in class_names}
    for i in np.flatnonzero(present).tolist():
        per_class[class_names[i]] = ClassMetrics(float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
    return ClassificationMetrics(
        top1=float((predicted == true).mean()),
        top5=float(top5_correct(true, scores).mean()) if k > TOP else None,
        macro_f1=float(f1[present].mean()),
        balanced_accuracy=float(recall[present].mean()),
        per_class=per_class,
        majority_top1=float(support.max() / len(true)),
        majority_class=class_names[int(support.argmax())],
        ece=expected_calibration_error(true, scores),
        confusion=csr_array((np.ones_like(true), (true, predicted)), shape=(k, k)).tocoo(),
    )


@dataclass(frozen=True)
class SizeMetrics:
    """Metrics at one image size, as fractions. The fields are keys of ``report.json``."""

    image_size: int  # height and width in pixels
    top1: float
    low: float  # with ``high``, the 95 % interval of top-1 (Wilson, independent images)
    high: float
    macro_f1: float  # over the classes with images
    images_per_s: float  # reading included


def size_metrics(
    image_size: int, labels: npt.ArrayLike, probabilities: npt.ArrayLike, class_names: Sequence[str], seconds: float
) -> SizeMetrics:
    """Metrics at an image size, from (N, K) probabilities for (N,) class ids and their wall time."""
    score = classification_metrics(labels, probabilities, class_names)
    low, high = wilson_interval(score.top1, score.num_images)
    throughput = round(score.num_images / max(1e-9, seconds), 1)
    return SizeMetrics(image_size, score.top1, low, high, score.macro_f1, throughput)


def best_size(points: Sequence[SizeMetrics], by: Literal["top1", "macro_f1"] = "top1") -> SizeMetrics:
    """The point with the highest metric; of equal points the smallest size, which is the fastest."""
    return max(points, key=lambda point: (getattr(point, by), -point.image_size))


def macro_f1(labels: Ints, predicted: Ints) -> float:
    """Mean F1 over the classes in ``labels``."""
    from sklearn.metrics import f1_score  # takes a second to load

    return float(f1_score(labels, predicted, labels=np.unique(labels), average="macro"))


def row_chunks(images: int, classes: int) -> Iterator[slice]:
    """Slices of images to rank at once: sorting a row takes twice its memory."""
    rows = max(1, _SORTED_AT_ONCE // classes)
    for start in range(0, images, rows):
        yield slice(start, start + rows)


def top_classes(probabilities: Floats, count: int) -> Ints:
    """The (N, count) most probable classes, best first; of equal probabilities the first class."""
    ranked = [
        # A copy, because a view would keep the whole order in memory.
        np.argsort(-probabilities[part], axis=1, kind="stable")[:, :count].copy()
        for part in row_chunks(*probabilities.shape)
    ]
    return np.concatenate([np.empty((0, min(count, probabilities.shape[1])), np.int64), *ranked])


def top5_correct(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """(N,) whether a label, (N,) or (N, M) padded with -1, is among the five most probable; ties go to the first."""
    true, scores = np.asarray(labels), np.asarray(probabilities)
    true, classes = true.reshape(len(true), -1), np.arange(scores.shape[1])
    hits = np.zeros(len(true), dtype=bool)
    for part in row_chunks(*scores.shape):
        for label in true[part].T[:, :, None]:  # a label of each image
            score = np.take_along_axis(scores[part], label, axis=1)
            before = (scores[part] > score) | ((scores[part] == score) & (classes < label))
            hits[part] |= (label[:, 0] >= 0) & (before.sum(axis=1) < TOP)
    return hits


def _checked(labels: npt.ArrayLike, probabilities: npt.ArrayLike, class_names: Sequence[str]) -> tuple[Ints, Floats]:
    true, scores = np.asarray(labels), np.asarray(probabilities)
    assert scores.shape == (len(true), len(class_names)), (true.shape, scores.shape, len(class_names))
    assert len(set(class_names)) == len(class_names), class_names
    if len(true) == 0:
        raise InputError("no labeled image to compute metrics on. Choose a split with labeled images.")
    stray = np.flatnonzero((true < 0) | (true >= len(class_names)))
    if len(stray):
        raise InputError(
            f"image {stray[0]} has label {true[stray[0]]}, which must be 0 to {len(class_names) - 1}. "
            "Remove images without a label."
        )
    totals = scores.sum(axis=1)
    broken = np.flatnonzero(~np.isfinite(totals))
    if len(broken):
        raise non_finite_error(len(broken), len(true), int(broken[0]))
    assert np.allclose(totals, 1, atol=1e-3), "probabilities are softmax's, rows sum to 1"
    return true.astype(np.int64), scores
