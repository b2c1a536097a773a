"""What to label next: pictures that a network is unsure of, each unlike those before it.

The rule is BADGE's (Ash et al., "Deep batch active learning by diverse, uncertain gradient lower bounds", ICLR 2020,
arXiv:1906.03671). Every picture stands for the gradient that it would give the classifier if the network's own answer
were the label: long where the network is unsure, and in the direction of what it would learn. The first is the longest;
each next one is drawn as k-means++ draws its centres, with the square of its distance to the nearest already chosen.
Ours is that no gradient at all counts as chosen from the beginning: else a picture that the network is sure of, which
is far from all others, would be drawn early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficientnetv2.utils.rng import Key

# Pictures that are put in order by the rule; the rest follow by uncertainty alone. Nobody labels more before training
# again, and the work is n times this. Ours.
MAX_DIVERSE = 1_000
# Numbers that are widened to float64 at a time, 2 MB: all of them at once would be twice what there is, and five
# networks' vectors of 100,000 pictures are 2.6 GB already, a thousand probabilities of a million 4 GB. Ours.
_WIDENED = 2**18

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Pictures in the order in which they are worth labelling.

    Args:
        order: (n,) places in what was given, the first to label first.
        diverse: how many of the first were chosen for being unlike those before them; the others are in the order of
            their entropy.
        entropy: (n,) in the order of what was given: 0 is sure, 1 knows nothing of any class.
        margin: (n,) likewise: probability of the best class less that of the second.
    """

    order: Places
    diverse: int
    entropy: Floats
    margin: Floats


def rank_for_labeling(
    probabilities: npt.NDArray[np.floating],
    vectors: npt.NDArray[np.floating],
    *,
    key: Key,
    most: int = MAX_DIVERSE,
    progress: Callable[[int], object] | None = None,
) -> Ranking:
    """Put pictures in the order in which they are worth labelling.

    Args:
        probabilities: (n, K) of the classes, rows sum to 1; K is 2 or more; never copied as a whole.
        vectors: (n, d) what the classifier reads of them; never copied as a whole.
        key: of the draws; the same gives the same order.
        most: how many are chosen for being different; fewer where the rest are copies of those.
        progress: called with how many are chosen so far; each looks at all vectors and probabilities once.
    """
    count = len(probabilities)
    entropy, margin = np.empty(count), np.empty(count)
    for rows, shares in _widened(probabilities):
        entropy[rows] = _entropy(shares)
        best = np.partition(shares, -2, axis=1)
        margin[rows] = best[:, -1] - best[:, -2]
    chosen = _spread(probabilities, vectors, min(most, count), key, progress)
    left = np.setdiff1d(np.arange(count), chosen)
    left = left[np.argsort(-entropy[left], kind="stable")]
    order = np.concatenate([np.array(chosen, dtype=np.int64), left])
    return Ranking(order, len(chosen), entropy, margin)


def _entropy(shares: Floats) -> Floats:
    """(n,) of the greatest that so many classes can have."""
    logarithms = np.log(np.maximum(shares, np.finfo(np.float64).tiny))
    entropy: Floats = -(shares * logarithms).sum(axis=1) / np.log(shares.shape[1])
    return entropy.clip(0, 1)


def _spread(
    probabilities: npt.NDArray[np.floating],
    vectors: npt.NDArray[np.floating],
    count: int,
    key: Key,
    progress: Callable[[int], object] | None,
) -> list[int]:
    """Places chosen by k-means++ among gradients, the first being the longest.

    A gradient is the outer product of a residual (K), the probabilities less 1 at the class called, and a vector (d),
    so distances need neither in full.
    """
    if not count:
        return []
    called = probabilities.argmax(axis=1)
    lengths = _lengths(probabilities, called) * _lengths(vectors)
    draws = key.fold("rank").generator()
    chosen = [int(lengths.argmax())]
    squares = lengths.copy()  # to no gradient at all
    while True:
        if progress is not None:
            progress(len(chosen))
        last = chosen[-1]
        products = _products(probabilities, last, called) * _products(vectors, last)
        apart = lengths + lengths[last] - 2 * products
        # What rounding leaves between equal gradients is no distance.
        apart[apart < 1e-9 * (lengths + lengths[last])] = 0
        squares = np.minimum(squares, apart)
        squares[last] = 0
        total = squares.sum()
        if len(chosen) == count or total <= 0:
            return chosen
        place = int(np.searchsorted(np.cumsum(squares), draws.random() * total, side="right"))
        chosen.append(min(place, int(np.flatnonzero(squares)[-1])))


def _widened(
    numbers: npt.NDArray[np.floating], called: Places | None = None
) -> Iterator[tuple[slice, Floats]]:
    """(n, d) numbers in float64, some rows at a time, each part in the memory of the one before it.

    In float32 the distance of two that are all but equal would be what rounding left.

    Args:
        numbers: (n, d).
        called: (n,) where in each row 1 is taken off; None takes off none.
    """
    count, width = numbers.shape
    rows = max(1, _WIDENED // max(1, width))
    memory = np.empty((min(rows, count), width))
    for start in range(0, count, rows):
        part = memory[: min(rows, count - start)]
        part[:] = numbers[start : start + rows]
        if called is not None:
            part[np.arange(len(part)), called[start : start + rows]] -= 1
        yield slice(start, start + len(part)), part


def _lengths(numbers: npt.NDArray[np.floating], called: Places | None = None) -> Floats:
    """(n,) squared, of rows as ``_widened`` has them."""
    found = np.empty(len(numbers))
    for rows, part in _widened(numbers, called):
        found[rows] = np.einsum("nd,nd->n", part, part)
    return found


def _products(numbers: npt.NDArray[np.floating], at: int, called: Places | None = None) -> Floats:
    """(n,) inner products of each row, as ``_widened`` has them, with one of them."""
    ((_, one),) = _widened(numbers[at : at + 1], None if called is None else called[at : at + 1])
    found = np.empty(len(numbers))
    for rows, part in _widened(numbers, called):
        found[rows] = part @ one[0]
    return found
