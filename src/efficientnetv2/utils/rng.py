"""Counted randomness: a draw is a function of a key, never of what was drawn before it.

A ``Key`` names a stream of random numbers. Folding in an epoch, a sample or a step gives another
key, independent of the first, so that the numbers a picture gets depend neither on the worker that
draws them nor on where a run was stopped and resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Key:
    """A name for a stream of random numbers (128 bits, the key of numpy's Philox).

    >>> Key.of(7).fold("crop", 3) == Key.of(7).fold("crop", 3)
    True
    """

    words: tuple[int, int]

    @classmethod
    def of(cls, seed: int) -> Key:
        """The root key of a seed (any integer)."""
        return cls((0, 0)).fold("seed", seed)

    def fold(self, *parts: int | str) -> Key:
        """The key of a part of this stream: of a purpose, an epoch, a sample, a step."""
        text = repr((self.words, *(int(part) if not isinstance(part, str) else part for part in parts)))
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        return Key((int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")))

    def generator(self) -> np.random.Generator:
        """A numpy generator at the beginning of this stream."""
        return np.random.Generator(np.random.Philox(key=np.array(self.words, dtype=np.uint64)))

    def torch_seed(self) -> int:
        """A seed for ``torch.manual_seed``: 0 ≤ seed < 2^63."""
        return self.words[0] >> 1

    def uniform_rows(self, ids: Sequence[int] | npt.NDArray[np.int64], columns: int) -> Floats:
        """Uniform numbers in [0, 1), a row for each id, whatever ids stand beside it.

        Args:
            ids: (N,) non-negative integers, of samples say.
            columns: how many numbers each id gets; fewer columns are a prefix of more.

        Returns:
            (N, columns) float64.
        """
        # Philox counts in blocks of four draws: each id owns the blocks (0.., id) of the counter.
        bits = np.random.Philox(key=np.array(self.words, dtype=np.uint64))
        generator = np.random.Generator(bits)
        rows = np.empty((len(ids), columns))
        state = bits.state  # read once: reading and writing it are most of the work
        state["buffer_pos"], state["has_uint32"] = (
            4,
            0,
        )  # nothing buffered: the next draw starts at the counter
        counter = state["state"]["counter"]
        counter[:] = 0
        for row, identity in zip(rows, ids, strict=True):
            counter[1] = int(identity)
            bits.state = state
            generator.random(out=row)
        return rows
