"""Two classifiers on the same pictures: what one has over the other, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from efficientnetv2.base.keys import Floats, Key

_DRAWS = (
    4_000  # of the bootstrap: an interval's ends then move by a twentieth of its width from key to key. Ours
)
_CELLS_AT_ONCE = 4_000_000  # resampled cells held in memory together (32 MB): ours


@dataclass(frozen=True)
class Difference:
    """A figure of the one less that of the other, as fractions.

    Args:
        value: on these pictures.
        low, high: its 95 % interval: what chance in the choice of pictures leaves open, not that of the seed.
    """

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether chance in the choice of pictures does not explain it."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Paired:
    """What one classifier has over another.

    Args:
        pictures: that both answered.
        top1: share labelled right.
        macro_f1: mean F1 over the classes that have a picture.
        balanced_accuracy: mean recall over the same.
        f1: of each such class.
    """

    pictures: int
    top1: Difference
    macro_f1: Difference
    balanced_accuracy: Difference
    f1: dict[str, Difference]


def paired(
    labels: npt.ArrayLike,
    one: npt.ArrayLike,
    over: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    key: Key,
    draws: int = _DRAWS,
) -> Paired:
    """Differences on the same pictures, each with the percentile interval of a paired bootstrap.

    A draw takes as many pictures as there are, with replacement, and both classifiers' answers to them. The figures
    see only how many pictures have which label and which two answers, so a draw is one of a multinomial over
    these cells. A draw without a class's pictures leaves that class out of the means.

    Args:
        labels: (N,) class ids, N ≥ 1.
        one: (N,) answers of the classifier that is compared.
        over: (N,) answers of the one that it is compared with.
        class_names: K names.
        key: of the resampling.
        draws: how many times to resample.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    triples = np.stack([np.asarray(labels), np.asarray(one), np.asarray(over)], axis=1)
    cells, counts = np.unique(triples, axis=0, return_counts=True)
    classes = len(class_names)
    sides = [_sums(cells[:, 0], cells[:, side], classes) for side in (1, 2)]
    found = _differences(counts[None].astype(np.float64), sides)
    generator, parts = key.generator(), []
    at_once = max(1, _CELLS_AT_ONCE // (len(cells) + 6 * classes))
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        drawn = generator.multinomial(counts.sum(), counts / counts.sum(), size=size)
        parts.append(_differences(drawn.astype(np.float64), sides))
    rows = np.concatenate(parts)
    present = np.flatnonzero(np.bincount(cells[:, 0], minlength=classes))
    wanted = [0, 1, 2, *(3 + present)]
    lows, highs = np.nanquantile(rows[:, wanted], [0.025, 0.975], axis=0)
    top1, macro_f1, balanced, *of_classes = [
        Difference(float(value), float(low), float(high))
        for value, low, high in zip(found[0, wanted], lows, highs, strict=True)
    ]
    names = [class_names[k] for k in present.tolist()]
    return Paired(int(counts.sum()), top1, macro_f1, balanced, dict(zip(names, of_classes, strict=True)))


def _sums(true: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], classes: int) -> csr_array:
    """(cells, 3K): which cells count as hits, as true and as called of each class."""
    cells = np.arange(len(true))
    hit = true == answers
    rows = np.concatenate([cells[hit], cells, cells])
    columns = np.concatenate([true[hit], classes + true, 2 * classes + answers])
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(true), 3 * classes))


def _differences(drawn: Floats, sides: Sequence[csr_array]) -> Floats:
    """(draws, 3 + K): of top-1, macro-F1, balanced accuracy and each class's F1; NaN where a draw lacks the class."""
    pictures = drawn.sum(axis=1)
    of_sides = []
    for sums in sides:
        hits, true, called = np.split(drawn @ sums, 3, axis=1)
        absent = true == 0
        f1 = np.where(absent, np.nan, 2 * hits / np.maximum(true + called, 1))
        recall = np.where(absent, np.nan, hits / np.maximum(true, 1))
        means = [hits.sum(axis=1) / pictures, np.nanmean(f1, axis=1), np.nanmean(recall, axis=1)]
        of_sides.append(np.column_stack([*means, f1]))
    result: Floats = of_sides[0] - of_sides[1]
    return result
