"""Would more labels help? The linear probe with fewer labels than there are, and what that says of twice as many.

The embeddings are there already, so that it takes seconds. It says how the features of the given weights use labels,
not how training does: that reaches more, and mostly needs more labels for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficientnetv2.inference.linear_probe import GroupedData, fit_classifier
from efficientnetv2.inference.predict import Embeddings
from efficientnetv2.utils.rng import Floats, Key

# Parts of the training pictures that the probe learns from, each drawn so often. Ours.
_PARTS, _DRAWS = (1 / 16, 1 / 8, 1 / 4, 1 / 2), 5
# Of each class on average, or a part says nothing. Ours.
_LEAST_OF_A_CLASS = 4
# Multiply-adds of all fits, at most: about 10 s on a core. Larger parts are left out. Ours.
_MOST_WORK = 4e10
_ITERATIONS = 100
# Resamplings of pictures and draws. Ours.
_RESAMPLED = 300
# How fast errors may fall beyond a sample, as shares of the exponent that was read in it: curves flatten, nobody knows
# where. On five drawn sets whose truth was at hand, of 2 to 16 times the sample, the exponent as read foretold 1 to 7
# points too much on average, and its interval held the truth in 54 of 100; that of these three held it in 98. Ours.
_BEYOND = (1.0, 0.5, 0.0)


@dataclass(frozen=True)
class LearningCurvePoint:
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
class LearningCurve:
    """The probe's macro-F1 against the number of labels.

    Args:
        points: measured, by growing number; the last is of all training pictures, or of the sample of them.
        forecast: with twice as many as there are, if it goes on as before.
        gain, gain_low, gain_high: of that over all that there are, with its 95 % interval.
        carried: with all that there are, carried on likewise, where the points are of a sample; None where the last
            point is of all.
    """

    points: tuple[LearningCurvePoint, ...]
    forecast: LearningCurvePoint
    gain: float
    gain_low: float
    gain_high: float
    carried: LearningCurvePoint | None = None


def learning_curve(
    train: Embeddings,
    val: Embeddings,
    answers: npt.NDArray[np.int64],
    *,
    labelled: int,
    strength: float,
    balanced: bool,
    key: Key,
    together: GroupedData | None = None,
) -> LearningCurve | None:
    """The probe with parts of the labels, and a power law through its errors.

    The error 1 - macro-F1 is taken to fall as a power of the number of labels. Its exponent is read twice, from all
    points and from the last two alone, for curves bend; the forecast is the mean of both, and its interval holds the
    readings of both over resampled pictures and draws. Where ``train`` is a sample, errors beyond it are taken to fall
    with each exponent as read, with half of it, and no further; mean and interval are of all these.

    Args:
        train: to learn from: all training pictures, or a sample of them.
        val: to evaluate on.
        answers: to ``val`` of the probe that has learnt from all of ``train``.
        labelled: how many training pictures there are, not counting copies.
        strength: that this one was fitted with.
        balanced: as this one.
        key: of the draws.
        together: what hangs together in ``train``; None where nothing does. Parts of the labels leave it whole, and
            copies, which go along with their origins, are no labels more.

    Returns:
        None where there are too few pictures for parts of them to say anything.

    Source: power laws, arXiv:1712.00409; fitting and extrapolating them for data sets of one's own, Figueroa et al.,
        BMC Medical Informatics and Decision Making 12:8 (2012); the readings are ours.
    """
    labels = train.labels
    classes = int(max(labels.max(), val.labels.max())) + 1
    together = GroupedData.nothing(len(labels)) if together is None else together
    whole = len(together.originals)
    by_size: dict[int, list[npt.NDArray[np.int64]]] = {}
    for size in _sizes(labels, together, train.vectors.shape[1], classes):
        drawn = together.drawn(labels, key=key.fold("labels", size), draws=_DRAWS, teach=size)
        parts = [(part, rest) for part, rest in drawn if len(np.unique(labels[part])) > 1]
        if not parts:  # of a class that is very rare a small part may have nothing
            continue
        reached = round(float(np.mean([whole - len(rest) for _, rest in drawn])))
        if max(by_size, default=0) < reached < whole:  # whole clusters may be far from the size
            by_size[reached] = [
                fit_classifier(train.vectors[part], labels[part], strength, balanced).predict(val.vectors)
                for part, _ in parts
            ]
    if len(by_size) < 2:
        return None
    by_size[whole] = [answers]
    return _read(by_size, val.labels, classes, labelled, key.fold("resampled"))


def _sizes(labels: npt.NDArray[np.int64], together: GroupedData, width: int, classes: int) -> list[int]:
    """Sizes of the parts, growing, as many as the work allows."""
    originals = together.originals
    _, counts = np.unique(labels[originals], return_counts=True)
    if counts.min() < 2:
        return []
    least = _LEAST_OF_A_CLASS * len(counts)
    clusters = len(np.unique(together.clusters[originals]))
    sizes = [
        size
        for part in _PARTS
        if (size := int(part * len(originals))) >= least and part * clusters >= len(counts)
    ]
    outputs = 1 if classes == 2 else classes
    copied = len(labels) / len(originals)
    while sizes and _DRAWS * sum(sizes) * copied * width * outputs * 2 * _ITERATIONS > _MOST_WORK:
        sizes.pop()
    return sizes


def _read(
    by_size: dict[int, list[npt.NDArray[np.int64]]],
    true: npt.NDArray[np.int64],
    classes: int,
    labelled: int,
    key: Key,
) -> LearningCurve:
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
        points.append(LearningCurvePoint(size, float(np.mean(whole)), float(low), float(high), len(draws)))
        resampled.append(spread)
        measured.append(np.mean(whole))
    sizes = np.array(list(by_size), dtype=float)
    return _foretold(tuple(points), np.array(measured)[:, None], np.stack(resampled), sizes, labelled)


def _foretold(
    points: tuple[LearningCurvePoint, ...], measured: Floats, drawn: Floats, sizes: Floats, labelled: int
) -> LearningCurve:
    """The curve carried on, of (S, 1) scores and (S, R) scores over resampled pictures and draws."""
    now, now_drawn, carried = measured[-1], drawn[-1], None
    if labelled > sizes[-1]:
        now, now_drawn = (_carried(each, sizes, labelled, labelled) for each in (measured, drawn))
        carried = _point(labelled, now, now_drawn)
    then, then_drawn = (_carried(each, sizes, labelled, 2 * labelled) for each in (measured, drawn))
    low, high = np.quantile(then_drawn - now_drawn, [0.025, 0.975])
    gain = float((then - now).mean())
    return LearningCurve(
        points, _point(2 * labelled, then, then_drawn), gain, float(low), float(high), carried
    )


def _point(pictures: int, readings: Floats, drawn: Floats) -> LearningCurvePoint:
    """What is foretold: the mean of the readings, and the interval that holds them over what was drawn."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return LearningCurvePoint(pictures, float(readings.mean()), float(low), float(high), 0)


def _carried(scores: Floats, sizes: Floats, labelled: int, pictures: int) -> Floats:
    """(n, R) macro-F1 with so many pictures, by each of n readings, of (S, R) scores at (S,) sizes."""
    errors = np.log(np.maximum(1 - scores, 1e-4))
    steps = np.log2(sizes)
    centred = steps - steps.mean()
    by_all = (centred[:, None] * errors).sum(axis=0) / (centred**2).sum()
    by_last = (errors[-1] - errors[-2]) / (steps[-1] - steps[-2])
    readings = np.stack([by_all, by_last])
    if labelled > sizes[-1]:  # many doublings away a rise by chance would become a great one
        readings = np.concatenate([rate * np.minimum(readings, 0) for rate in _BEYOND])
    carried: Floats = 1 - np.exp(errors[-1] + (np.log2(pictures) - steps[-1]) * readings)
    return carried


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
