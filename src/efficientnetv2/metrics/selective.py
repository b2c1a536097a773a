"""What a classifier is worth that may stay silent: accuracy against the share of pictures it answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficientnetv2.metrics.confidence_intervals import Interval, wilson_interval

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CoverageCurve:
    """One point for every probability from which on pictures could be answered; those below are left to a person.

    Args:
        threshold: (P,) probabilities of the most probable class, falling.
        answered: (P,) share of the pictures that reach it, growing to 1.
        accuracy: (P,) share of those answered that is right.
        aurc: area under the curve of the share that is wrong against the share answered, 0 (no mistake before all
            right answers) to 1. Pictures of equal probability count as in mean order.
        pictures: how many there are.
    """

    threshold: Floats
    answered: Floats
    accuracy: Floats
    aurc: float
    pictures: int

    def at_share(self, share: float) -> int:
        """The point that answers at least this share, and as little more as can be."""
        return int(np.searchsorted(self.answered, share - 1e-9))

    def answered_at(self, threshold: float) -> tuple[int, float | None, Interval | None]:
        """Of a threshold: how many pictures are answered, the share of them that is right, and its 95 % interval.

        Args:
            threshold: pictures whose most probable class has less are not answered.

        Returns:
            0, None, None if none is answered.
        """
        point = int(np.searchsorted(-self.threshold, -threshold, side="right")) - 1
        if point < 0:
            return 0, None, None
        count, share = round(self.answered[point] * self.pictures), float(self.accuracy[point])
        return count, share, wilson_interval(share, count)


def coverage_curve(right: npt.ArrayLike, confidence: npt.ArrayLike) -> CoverageCurve:
    """From the surest answers to all of them.

    Args:
        right: (N,) whether the answer is right; N ≥ 1.
        confidence: (N,) probability of the answer.

    Source: Geifman and El-Yaniv, arXiv:1705.08500 (risk against coverage), arXiv:1805.08206 (AURC); mean order ours.
    """
    hits, sure = np.asarray(right, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
    order = np.argsort(-sure, kind="stable")
    hits, sure = hits[order], sure[order]
    first = np.flatnonzero(np.append(True, sure[1:] != sure[:-1]))
    sizes = np.diff(np.append(first, len(sure)))
    even = np.repeat(np.add.reduceat(hits, first) / sizes, sizes)
    so_far = np.arange(1, len(hits) + 1)
    share_right = np.cumsum(even) / so_far
    last = first + sizes - 1
    return CoverageCurve(
        threshold=sure[last],
        answered=so_far[last] / len(hits),
        accuracy=np.cumsum(hits)[last] / so_far[last],
        aurc=float(np.mean(1 - share_right)),
        pictures=len(hits),
    )
