"""Would more labels help? The linear probe with fewer labels than there are, and what that says of twice as many.

The embeddings are there already, so that it takes seconds. It says how the features of the given weights use labels,
not how training does: that reaches more, and mostly needs more labels for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedShuffleSplit

from efficientnetv2.base.keys import Floats, Key
from efficientnetv2.inference.predict import Embeddings
from efficientnetv2.inference.probe import fitted

# Parts of the training pictures that the probe learns from, each drawn so often. Ours.
_PARTS, _DRAWS = (1 / 16, 1 / 8, 1 / 4, 1 / 2), 5
# Of each class on average, or a part says nothing. Ours.
_LEAST_OF_A_CLASS = 4
# Multiply-adds of all fits, at most: about 10 s on a core. Larger parts are left out. Ours.
_MOST_WORK = 4e10
_ITERATIONS = 100
# Resamplings of pictures and draws. Ours.
_RESAMPLED = 300


@dataclass(frozen=True)
class LabelPoint:
    """What the probe reaches with so many labels.

    Args:
        pictures: that it learnt from.
        macro_f1: mean over the draws.
        low, high: its 95 % interval over pictures and draws.
        draws: how often so many pictures were drawn.
    """

    pictures: int
    macro_f1: float
    low: float
    high: float
    draws: int


@dataclass(frozen=True)
class LabelCurve:
    """The probe's macro-F1 against the number of labels.

    Args:
        points: measured, by growing number; the last is of all pictures.
        forecast: with twice as many as the last, if it goes on as before.
        gain, gain_low, gain_high: of that over the last point, with its 95 % interval.
    """

    points: tuple[LabelPoint, ...]
    forecast: LabelPoint
    gain: float
    gain_low: float
    gain_high: float


def label_curve(
    train: Embeddings,
    val: Embeddings,
    answers: npt.NDArray[np.int64],
    *,
    strength: float,
    balanced: bool,
    key: Key,
) -> LabelCurve | None:
    """The probe with parts of the labels, and a power law through its errors.

    The error 1 - macro-F1 is taken to fall as a power of the number of labels. Its exponent is read twice, from all
    points and from the last two alone, for curves bend; the forecast is the mean of both, and its interval holds the
    readings of both over resampled pictures and draws.

    Args:
        train: to learn from.
        val: to evaluate on.
        answers: to ``val`` of the probe that has learnt from all of ``train``.
        strength: that this one was fitted with.
        balanced: as this one.
        key: of the draws.

    Returns:
        None where there are too few pictures for parts of them to say anything.

    Source: power laws, arXiv:1712.00409; fitting and extrapolating them for data sets of one's own, Figueroa et al.,
        BMC Medical Informatics and Decision Making 12:8 (2012); the two readings are ours.
    """
    labels = train.labels
    classes = int(max(labels.max(), val.labels.max())) + 1
    sizes = _sizes(labels, train.vectors.shape[1], classes)
    by_size: dict[int, list[npt.NDArray[np.int64]]] = {}
    for size in sizes:
        seed = key.fold("labels", size).torch_seed() % 2**32
        parts = StratifiedShuffleSplit(_DRAWS, train_size=size, random_state=seed).split(labels, labels)
        draws = [
            fitted(train.vectors[part], labels[part], strength, balanced).predict(val.vectors)
            for part, _ in parts
            if len(np.unique(labels[part])) > 1
        ]
        if draws:  # of a class that is very rare a small part may have nothing
            by_size[size] = draws
    if len(by_size) < 2:
        return None
    by_size[len(labels)] = [answers]
    return _read(by_size, val.labels, classes, key.fold("resampled"))


def _sizes(labels: npt.NDArray[np.int64], width: int, classes: int) -> list[int]:
    """Sizes of the parts, growing, as many as the work allows."""
    _, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        return []
    least = _LEAST_OF_A_CLASS * len(counts)
    sizes = [size for part in _PARTS if (size := int(part * len(labels))) >= least]
    outputs = 1 if classes == 2 else classes
    while sizes and _DRAWS * sum(sizes) * width * outputs * 2 * _ITERATIONS > _MOST_WORK:
        sizes.pop()
    return sizes


def _read(
    by_size: dict[int, list[npt.NDArray[np.int64]]], true: npt.NDArray[np.int64], classes: int, key: Key
) -> LabelCurve:
    generator = key.generator()
    weights = generator.multinomial(len(true), np.full(len(true), 1 / len(true)), size=_RESAMPLED).astype(
        float
    )
    resampled, measured, points = [], [], []
    for size, draws in by_size.items():
        whole = [_macro_f1(np.ones((1, len(true))), true, answers, classes)[0] for answers in draws]
        scores = np.stack([_macro_f1(weights, true, answers, classes) for answers in draws])
        chosen = generator.integers(0, len(draws), (len(draws), _RESAMPLED))
        spread = np.take_along_axis(scores, chosen, axis=0).mean(axis=0)
        low, high = np.quantile(spread, [0.025, 0.975])
        points.append(LabelPoint(size, float(np.mean(whole)), float(low), float(high), len(draws)))
        resampled.append(spread)
        measured.append(np.mean(whole))
    sizes = np.array(list(by_size), dtype=float)
    value = _doubled(np.array(measured)[:, None], sizes).mean()
    drawn = _doubled(np.stack(resampled), sizes)
    low, high = np.quantile(drawn, [0.025, 0.975])
    gains = np.quantile(drawn - resampled[-1], [0.025, 0.975])
    forecast = LabelPoint(int(2 * sizes[-1]), float(value), float(low), float(high), 0)
    gain = float(value - measured[-1])
    return LabelCurve(tuple(points), forecast, gain, float(gains[0]), float(gains[1]))


def _doubled(scores: Floats, sizes: Floats) -> Floats:
    """(2, R) macro-F1 with twice the last size, by both readings, of (S, R) scores at (S,) sizes."""
    errors = np.log(np.maximum(1 - scores, 1e-4))
    steps = np.log2(sizes)
    centred = steps - steps.mean()
    by_all = (centred[:, None] * errors).sum(axis=0) / (centred**2).sum()
    by_last = (errors[-1] - errors[-2]) / (steps[-1] - steps[-2])
    doubled: Floats = 1 - np.exp(errors[-1] + np.stack([by_all, by_last]))
    return doubled


def _macro_f1(
    weights: Floats, true: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], classes: int
) -> Floats:
    """(R,) macro-F1 over the classes that are there, of (R, N) weights of the pictures."""
    every = np.eye(classes)
    hits = weights @ (every[true] * (true == answers)[:, None])
    are, called = weights @ every[true], weights @ every[answers]
    f1 = np.where(are > 0, 2 * hits / np.maximum(are + called, 1e-9), np.nan)
    result: Floats = np.nanmean(f1, axis=1)
    return result
