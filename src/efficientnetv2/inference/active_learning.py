"""Active learning: rank unlabeled images by BADGE, uncertain and unlike each other first.

Source: Ash et al., "Deep batch active learning by diverse, uncertain gradient lower bounds", ICLR 2020,
arXiv:1906.03671. An image stands for the gradient of the classifier if the predicted class were its label: long where
the network is unsure. The first image has the longest gradient; the next ones are drawn as k-means++ draws its centers,
by squared distance to the nearest chosen one. Ours: the zero gradient counts as chosen from the beginning, else a sure
prediction far from all others would be drawn early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.records import Ints
from efficientnetv2.utils.rng import Floats, Key

# Images ranked by gradients; the rest follow by uncertainty. Nobody labels more before training again, and the work is
# n times this. Ours.
MAX_DIVERSE = 1_000
# Numbers in float64 at a time, 2 MB: the embeddings of 100,000 images by five networks are 2.6 GB in float32. Ours.
_CHUNK = 2**18


@dataclass(frozen=True, eq=False)
class Ranking:
    """Images in the order in which labels would help most."""

    order: Ints  # (n,) positions, the most useful first
    diverse: int  # how many of the first were chosen by gradients; the others follow by entropy
    entropy: Floats  # (n,) of the predictions, in the given order; 0 is certain, 1 uniform
    margin: Floats  # (n,) probability of the best class minus that of the second


def rank_for_labeling(
    probabilities: npt.NDArray[np.floating],
    vectors: npt.NDArray[np.floating],
    *,
    key: Key,
    most: int = MAX_DIVERSE,
    progress: Callable[[int], object] | None = None,
) -> Ranking:
    """Rank images by how much their labels would help, from (n, K) probabilities and (n, d) embeddings.

    At ``most`` so many are chosen by gradients, fewer if the rest are copies of these. Neither array is copied as a
    whole. ``progress`` is called with the number chosen so far.
    """
    count = len(probabilities)
    entropy, margin = np.empty(count), np.empty(count)
    for rows, part in _chunks(probabilities):
        logarithms = np.log(np.maximum(part, np.finfo(np.float64).tiny))
        entropy[rows] = (-(part * logarithms).sum(axis=1) / np.log(part.shape[1])).clip(0, 1)
        best = np.partition(part, -2, axis=1)
        margin[rows] = best[:, -1] - best[:, -2]
    chosen = _choose_diverse(probabilities, vectors, min(most, count), key, progress)
    rest = np.setdiff1d(np.arange(count), chosen)
    rest = rest[np.argsort(-entropy[rest], kind="stable")]
    return Ranking(np.concatenate([np.array(chosen, dtype=np.int64), rest]), len(chosen), entropy, margin)


def _choose_diverse(
    probabilities: npt.NDArray[np.floating],
    vectors: npt.NDArray[np.floating],
    count: int,
    key: Key,
    progress: Callable[[int], object] | None,
) -> list[int]:
    """Positions chosen by k-means++ among gradients, the longest first.

    A gradient is the outer product of a residual (K), the probabilities minus 1 at the predicted class, and an
    embedding (d), so distances need neither in full.
    """
    if not count:
        return []
    predicted = probabilities.argmax(axis=1)
    lengths = _squared_norms(probabilities, predicted) * _squared_norms(vectors)
    generator = key.fold("rank").generator()
    chosen = [int(lengths.argmax())]
    nearest = lengths.copy()  # squared distances to the nearest chosen gradient; to zero at first
    while True:
        if progress is not None:
            progress(len(chosen))
        last = chosen[-1]
        products = _products(probabilities, last, predicted) * _products(vectors, last)
        distances = lengths + lengths[last] - 2 * products
        distances[distances < 1e-9 * (lengths + lengths[last])] = 0  # rounding errors between equal gradients
        nearest = np.minimum(nearest, distances)
        nearest[last] = 0
        total = nearest.sum()
        if len(chosen) == count or total <= 0:
            return chosen
        place = int(np.searchsorted(np.cumsum(nearest), generator.random() * total, side="right"))
        chosen.append(min(place, int(np.flatnonzero(nearest)[-1])))


def _chunks(
    numbers: npt.NDArray[np.floating], predicted: Ints | None = None
) -> Iterator[tuple[slice, Floats]]:
    """Rows of (n, d) numbers in float64, each chunk in the same memory; minus 1 at ``predicted`` (n,).

    In float32 the distance of two nearly equal gradients would be rounding errors.
    """
    count, width = numbers.shape
    rows = max(1, _CHUNK // max(1, width))
    memory = np.empty((min(rows, count), width))
    for start in range(0, count, rows):
        part = memory[: min(rows, count - start)]
        part[:] = numbers[start : start + rows]
        if predicted is not None:
            part[np.arange(len(part)), predicted[start : start + rows]] -= 1
        yield slice(start, start + len(part)), part


def _squared_norms(numbers: npt.NDArray[np.floating], predicted: Ints | None = None) -> Floats:
    """(n,) of the rows of ``_chunks``."""
    norms = np.empty(len(numbers))
    for rows, part in _chunks(numbers, predicted):
        norms[rows] = np.einsum("nd,nd->n", part, part)
    return norms


def _products(numbers: npt.NDArray[np.floating], index: int, predicted: Ints | None = None) -> Floats:
    """(n,) inner products of each row of ``_chunks`` with row ``index``."""
    own = None if predicted is None else predicted[index : index + 1]
    ((_, row),) = _chunks(numbers[index : index + 1], own)
    products = np.empty(len(numbers))
    for rows, part in _chunks(numbers, predicted):
        products[rows] = part @ row[0]
    return products
