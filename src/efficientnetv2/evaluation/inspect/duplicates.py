"""Pictures that are there more than once: the same files, and the same pictures in other files.

Files are the same by a hash of their bytes. Pictures that look the same are found in two steps: candidates by a
perceptual hash of 64 bits, few of which differ; then both are compared as squares of a few pixels.

Candidates are looked for by bit sampling (Indyk and Motwani, "Approximate nearest neighbors", STOC 1998): the
pictures that agree in some bits drawn at random meet in one bucket, in many such draws. As many bits are drawn as
leave about one picture by chance in a bucket, so the work grows with n^1.2 rather than with n², and the number of
draws is such that a pair at the largest distance meets with 99 %, a closer one nearly always.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.base.keys import Key
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.portraits import HASH_BITS, Portraits

# Bits that may differ, and how alike (in correlation) the small squares have to be. Of ten thousand aerial pictures
# these let through six pairs, each of one place taken twice. Ours, by looking at the pairs on either side.
MOST_BITS = 8
LEAST_ALIKE = 0.75
# Levels between the darkest and the brightest of the small square, up to which a picture shows nothing: its hash is
# that of noise. Ours.
FLAT_GREYS = 2
# A pair at MOST_BITS is missed with this probability.
_MISSED = 0.01
# In a bucket each picture is compared with so many that follow it in order: enough for all but series of hundreds of
# nearly equal pictures, whose neighbours hold them together all the same. Ours.
_FOLLOWING = 64

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two pictures that look the same.

    Args:
        first: row of the one.
        second: row of the other, greater.
        alike: correlation of the small squares, up to 1.
    """

    first: int
    second: int
    alike: float


def same_files(looked: Portraits) -> list[list[int]]:
    """Rows of the files that hold the same bytes, group by group, in their order."""
    rows = pd.Series(looked.readable)
    contents = looked.table["content"].to_numpy()[looked.readable]
    groups = [group.tolist() for _, group in rows.groupby(contents, sort=False) if len(group) > 1]
    return sorted(groups)


def flat(looked: Portraits) -> npt.NDArray[np.bool_]:
    """(N,) whether a picture can be read but shows nothing: one colour all over."""
    spread = looked.small.max(axis=(1, 2)) - looked.small.min(axis=(1, 2))  # (N, 3), never below 0
    empty: npt.NDArray[np.bool_] = spread.max(axis=1, initial=0) <= FLAT_GREYS
    return empty & (looked.table["reason"] == "").to_numpy()


def near(looked: Portraits, *, key: Key) -> list[Pair]:
    """Pairs of pictures that look the same but are other files, the most alike first.

    Of equal files one stands for all.

    Args:
        looked: at the pictures.
        key: of the draws of bits.
    """
    usable = np.zeros(len(looked.table), dtype=bool)
    usable[looked.readable] = True
    usable &= ~looked.table["content"].duplicated().to_numpy() & ~flat(looked)
    rows = np.flatnonzero(usable).astype(np.int64)
    pairs = rows[candidates(looked.hashes[rows], key=key)]
    alike = _correlation(looked.small, pairs)
    kept = np.flatnonzero(alike >= LEAST_ALIKE)
    order = kept[np.lexsort((pairs[kept, 1], pairs[kept, 0], -alike[kept]))]
    return [Pair(int(pairs[at, 0]), int(pairs[at, 1]), round(float(alike[at]), 4)) for at in order]


def candidates(hashes: npt.NDArray[np.bool_], *, key: Key, most_bits: int = MOST_BITS) -> Ints:
    """Pairs whose hashes differ in few bits: of those at ``most_bits`` 99 %, of closer ones nearly all.

    Args:
        hashes: (n, HASH_BITS) bool.
        key: of the draws.
        most_bits: that may differ.

    Returns:
        (m, 2) places in ``hashes``, the lower first, each pair once, ascending.
    """
    count = len(hashes)
    if count < 2:
        return np.empty((0, 2), dtype=np.int64)
    bits = min(48, max(8, math.ceil(math.log2(count))))
    meet = math.comb(HASH_BITS - most_bits, bits) / math.comb(
        HASH_BITS, bits
    )  # all drawn bits are equal ones
    draws = math.ceil(math.log(_MISSED) / math.log(1 - meet))
    whole = np.packbits(hashes, axis=1).view(">u8")[:, 0]  # as one number each, which puts them in order
    found = []
    for draw in range(draws):
        chosen = key.fold("bits", draw).generator().choice(HASH_BITS, bits, replace=False)
        bucket = hashes[:, chosen] @ (1 << np.arange(bits, dtype=np.int64))
        found.append(_within_buckets(bucket, whole, hashes, most_bits))
    return np.unique(np.concatenate(found), axis=0)


def _within_buckets(
    bucket: Ints, whole: npt.NDArray[np.uint64], hashes: npt.NDArray[np.bool_], most_bits: int
) -> Ints:
    """Pairs of one bucket that differ in at most ``most_bits``."""
    order = np.lexsort((whole, bucket))
    ordered = bucket[order]
    found = [np.empty((0, 2), dtype=np.int64)]
    for step in range(1, min(_FOLLOWING, len(order) - 1) + 1):
        together = np.flatnonzero(ordered[step:] == ordered[:-step])
        if not len(together):
            break  # no bucket holds more
        first, second = order[together], order[together + step]
        near_enough = (hashes[first] != hashes[second]).sum(axis=1) <= most_bits
        pairs = np.stack([first[near_enough], second[near_enough]], axis=1)
        found.append(np.sort(pairs, axis=1))
    return np.concatenate(found)


def _correlation(small: npt.NDArray[np.uint8], pairs: Ints) -> Floats:
    """(m,) how the greys and colours of two squares go together: 1 if one is a brighter or paler copy of the other."""
    if not len(pairs):
        return np.empty(0)
    rows, places = np.unique(pairs, return_inverse=True)
    squares = small[rows].reshape(len(rows), -1).astype(np.float64)
    squares -= squares.mean(axis=1, keepdims=True)
    squares /= np.linalg.norm(squares, axis=1, keepdims=True)
    first, second = places.reshape(pairs.shape).T
    alike: Floats = np.einsum("ij,ij->i", squares[first], squares[second])
    return alike
