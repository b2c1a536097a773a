"""Learning curve of the linear probe: macro-F1 with fewer labels, extrapolated to twice as many.

It needs no further embeddings, so it takes seconds. It tells how the features of the pretrained weights use labels;
training reaches more, and mostly needs more labels for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.pipeline import Pipeline

from efficientnetv2.data.records import Ints
from efficientnetv2.inference.predict import Embeddings
from efficientnetv2.inference.probe_splits import GroupedData
from efficientnetv2.utils.random_key import Floats, Key

# Fractions of the training images that probes are fitted on, and draws of each. Ours.
_FRACTIONS, _DRAWS = (1 / 16, 1 / 8, 1 / 4, 1 / 2), 5
# Minimum mean number of images per class. Ours.
_MIN_CLASS_IMAGES = 4
# Multiply-adds of all fits, at most: about 10 s on a core. Larger fractions are left out. Ours.
MOST_WORK = 4e10
_ITERATIONS = 100
# Bootstrap resamples of images and draws. Ours.
_RESAMPLES = 300
# Factors of the exponent beyond a sample, since curves flatten. On five datasets with known truth, of 2 to 16 times the
# sample, the measured exponent promised 1 to 7 points too much on average, and its interval held the truth in 54 of 100
# cases; the interval of these three did in 98. Ours.
_EXPONENT_FACTORS = (1.0, 0.5, 0.0)


@dataclass(frozen=True)
class LearningCurvePoint:
    """Mean macro-F1 of probes with a number of training images, and its 95 % interval over images and draws."""

    num_images: int
    macro_f1: float
    low: float
    high: float
    draws: int


@dataclass(frozen=True)
class LearningCurve:
    """Macro-F1 of the probe against the number of labels."""

    points: tuple[LearningCurvePoint, ...]  # ascending; the last is of all training images, or their sample
    forecast: LearningCurvePoint  # extrapolated to twice as many labels as there are
    gain: float  # forecast minus all labels, with its 95 % interval
    gain_low: float
    gain_high: float
    carried: LearningCurvePoint | None = None  # extrapolated to all labels, if the points are of a sample


def learning_curve(
    train: Embeddings,
    val: Embeddings,
    predicted: Ints,
    *,
    fit: Callable[[npt.NDArray[np.float32], Ints], Pipeline],
    num_labeled: int,
    key: Key,
    groups: GroupedData | None = None,
) -> LearningCurve | None:
    """Fit probes on parts of the labels, and a power law through their errors; None with too few images.

    The exponent is read twice, from all points and from the last two, since curves bend; the forecast is the mean of
    both, and its interval covers both over resampled images and draws. Beyond a sample, the errors fall with each
    exponent, with half of it, and not at all.

    ``predicted`` are the classes of ``val`` by the probe of all of ``train``; ``fit`` fits it to vectors and labels.
    ``num_labeled`` training images are in the dataset, without copies.

    Source: power laws, arXiv:1712.00409; fitting and extrapolating them, Figueroa et al., BMC Medical Informatics and
        Decision Making 12:8 (2012); the two readings are ours.
    """
    labels = train.labels
    num_classes = int(max(labels.max(), val.labels.max())) + 1
    groups = GroupedData.independent(len(labels)) if groups is None else groups
    num_originals = len(groups.originals)
    predicted_by_size: dict[int, list[Ints]] = {}
    for size in _sizes(labels, groups, train.vectors.shape[1], num_classes):
        splits = groups.draw_splits(labels, key=key.fold("labels", size), draws=_DRAWS, train_size=size)
        parts = [part for part, _ in splits if len(np.unique(labels[part])) > 1]
        if not parts:  # a small part may lack a rare class
            continue
        # Whole clusters may be far from the size.
        actual = round(float(np.mean([num_originals - len(rest) for _, rest in splits])))
        if max(predicted_by_size, default=0) < actual < num_originals:
            probes = [fit(train.vectors[part], labels[part]) for part in parts]
            predicted_by_size[actual] = [probe.predict(val.vectors) for probe in probes]
    if len(predicted_by_size) < 2:
        return None
    predicted_by_size[num_originals] = [predicted]
    return _extrapolate(predicted_by_size, val.labels, num_classes, num_labeled, key.fold("resampled"))


def _sizes(labels: Ints, groups: GroupedData, width: int, num_classes: int) -> list[int]:
    """Ascending sizes of parts, as many as the work allows."""
    originals = groups.originals
    _, counts = np.unique(labels[originals], return_counts=True)
    if counts.min() < 2:
        return []
    num_clusters = len(np.unique(groups.clusters[originals]))
    fractions = [fraction for fraction in _FRACTIONS if fraction * num_clusters >= len(counts)]
    sizes = [int(fraction * len(originals)) for fraction in fractions]
    sizes = [size for size in sizes if size >= _MIN_CLASS_IMAGES * len(counts)]
    outputs = 1 if num_classes == 2 else num_classes
    copies = len(labels) / len(originals)
    while sizes and _DRAWS * sum(sizes) * copies * width * outputs * 2 * _ITERATIONS > MOST_WORK:
        sizes.pop()
    return sizes


def _extrapolate(
    predicted_by_size: dict[int, list[Ints]], truth: Ints, num_classes: int, num_labeled: int, key: Key
) -> LearningCurve:
    generator = key.generator()
    uniform = np.full(len(truth), 1 / len(truth))
    weights = generator.multinomial(len(truth), uniform, size=_RESAMPLES).astype(float)
    points, measured_by_size, resampled_by_size = [], [], []
    for size, draws in predicted_by_size.items():
        once = np.ones((1, len(truth)))
        scores = [_macro_f1(once, truth, predicted, num_classes)[0] for predicted in draws]
        by_draw = np.stack([_macro_f1(weights, truth, predicted, num_classes) for predicted in draws])
        picks = generator.integers(0, len(draws), (len(draws), _RESAMPLES))
        resampled = np.take_along_axis(by_draw, picks, axis=0).mean(axis=0)
        points.append(_point(size, np.array(scores), resampled, len(draws)))
        measured_by_size.append(np.mean(scores))
        resampled_by_size.append(resampled)
    sizes = np.array(list(predicted_by_size), dtype=float)
    measured, drawn = np.array(measured_by_size)[:, None], np.stack(resampled_by_size)
    now, now_drawn, carried = measured[-1], drawn[-1], None
    if num_labeled > sizes[-1]:
        now, now_drawn = (_carried(scores, sizes, num_labeled, num_labeled) for scores in (measured, drawn))
        carried = _point(num_labeled, now, now_drawn)
    then, then_drawn = (_carried(scores, sizes, num_labeled, 2 * num_labeled) for scores in (measured, drawn))
    low, high = np.quantile(then_drawn - now_drawn, [0.025, 0.975])
    forecast, gain = _point(2 * num_labeled, then, then_drawn), float((then - now).mean())
    return LearningCurve(tuple(points), forecast, gain, float(low), float(high), carried)


def _point(images: int, scores: Floats, resampled: Floats, draws: int = 0) -> LearningCurvePoint:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return LearningCurvePoint(images, float(scores.mean()), float(low), float(high), draws)


def _carried(scores: Floats, sizes: Floats, num_labeled: int, images: int) -> Floats:
    """(n, R) macro-F1 extrapolated to ``images`` by each of n readings of (S, R) scores at (S,) sizes."""
    errors = np.log(np.maximum(1 - scores, 1e-4))
    steps = np.log2(sizes)
    centered = steps - steps.mean()
    by_all = (centered[:, None] * errors).sum(axis=0) / (centered**2).sum()
    by_last = (errors[-1] - errors[-2]) / (steps[-1] - steps[-2])
    exponents = np.stack([by_all, by_last])
    if num_labeled > sizes[-1]:  # over many doublings a rise by chance would become large
        exponents = np.concatenate([factor * np.minimum(exponents, 0) for factor in _EXPONENT_FACTORS])
    carried: Floats = 1 - np.exp(errors[-1] + (np.log2(images) - steps[-1]) * exponents)
    return carried


def _macro_f1(weights: Floats, truth: Ints, predicted: Ints, num_classes: int) -> Floats:
    """(R,) macro-F1 over the classes in ``truth``, for (R, N) weights of the images."""
    one_hot = np.eye(num_classes)
    hits = weights @ (one_hot[truth] * (truth == predicted)[:, None])
    of_class, of_prediction = weights @ one_hot[truth], weights @ one_hot[predicted]
    f1 = np.where(of_class > 0, 2 * hits / np.maximum(of_class + of_prediction, 1e-9), np.nan)
    result: Floats = np.nanmean(f1, axis=1)
    return result
