"""Counter-based randomness: a draw depends on its key alone, never on what was drawn before.

A `Key` names a stream of random numbers. Folding in an epoch, a sample or a step gives an independent key. So the
numbers that an image gets depend neither on the worker that draws them nor on where a run was resumed.
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
        """A numpy generator at the start of this stream."""
        return np.random.Generator(np.random.Philox(key=np.array(self.words, dtype=np.uint64)))

    def torch_seed(self) -> int:
        """A seed for ``torch.manual_seed``: 0 ≤ seed < 2^63."""
        return self.words[0] >> 1

    def uniform_rows(self, ids: Sequence[int] | npt.NDArray[np.int64], columns: int) -> Floats:
        """Uniform numbers in [0, 1): (N, columns) float64, a row for each of (N,) non-negative ids.

        A row does not depend on the other ids, and fewer columns are a prefix of more.
        """
        # Philox counts in blocks of four draws: each id owns the blocks (0.., id) of the counter.
        bits = np.random.Philox(key=np.array(self.words, dtype=np.uint64))
        generator = np.random.Generator(bits)
        rows = np.empty((len(ids), columns))
        state = bits.state  # Read once: reading and writing it are most of the work.
        # Nothing buffered: the next draw starts at the counter.
        state["buffer_pos"], state["has_uint32"] = 4, 0
        counter = state["state"]["counter"]
        counter[:] = 0
        for row, identity in zip(rows, ids, strict=True):
            counter[1] = int(identity)
            bits.state = state
            generator.random(out=row)
        return rows
