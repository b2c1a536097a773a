"""How much each class counts where some have many pictures and others few."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

#: How strongly rare classes are brought forward: ``equal`` until all count alike, ``sqrt`` half of the way on a scale
#: of ratios, ``effective`` by the effective number of pictures.
Balance = Literal["sqrt", "effective", "equal"]
Floats = npt.NDArray[np.float64]

# Of ``effective``: with n pictures of a class, about min(n, 1 / (1 - beta)) count in full. Of the values that the
# paper compares (0.9, 0.99, 0.999, 0.9999) the one for classes of some hundred to some thousand pictures. Ours.
BETA = 0.999


def effective_number(counts: npt.ArrayLike, beta: float = BETA) -> Floats:
    """How many pictures those of a class are worth, since each further one overlaps with what is there.

    Args:
        counts: (K,) pictures of each class.
        beta: 0 lets each class count as one picture, towards 1 all pictures count.

    Returns:
        (K,) ``(1 - beta^n) / (1 - beta)``.

    Source: arXiv:1901.05555, equation 1 (proposition 1).
    """
    number: Floats = (1 - beta ** np.asarray(counts, dtype=np.float64)) / (1 - beta)
    return number


def weight_of_pictures(counts: npt.ArrayLike, balance: Balance, beta: float = BETA) -> Floats:
    """How much one picture of each class counts, before any scale: (K,), 0 for a class without pictures.

    Args:
        counts: (K,) pictures of each class.
        balance: see there.
        beta: of ``effective``.

    Source: ``effective`` is arXiv:1901.05555, equation 2; ``equal`` is its limit for beta towards 1, the inverse of the
        number; ``sqrt`` the inverse of its root, as arXiv:1805.00932, section 2.2, draws hashtags.
    """
    number = np.asarray(counts, dtype=np.float64)
    worth = {"equal": number, "sqrt": np.sqrt(number), "effective": effective_number(number, beta)}[balance]
    each: Floats = np.divide(1.0, worth, out=np.zeros_like(worth), where=number > 0)
    return each


def class_shares(counts: npt.ArrayLike, balance: Balance | None, beta: float = BETA) -> Floats:
    """How often each class is drawn, as shares that sum to 1.

    Args:
        counts: (K,) pictures of each class, not all 0.
        balance: None draws as many as there are.
        beta: of ``effective``.
    """
    drawn = np.asarray(counts, dtype=np.float64)
    if balance is not None:
        drawn = drawn * weight_of_pictures(counts, balance, beta)
    shares: Floats = drawn / drawn.sum()
    return shares


def target_counts(
    counts: npt.ArrayLike, balance: Balance, *, fewer: bool = False, beta: float = BETA
) -> npt.NDArray[np.int64]:
    """How many pictures of each class a balanced set has.

    Args:
        counts: (K,) pictures of each class.
        balance: in which proportions.
        fewer: none is added, frequent classes have some left out; else none is left out, rare ones get copies.
        beta: of ``effective``.
    """
    number = np.asarray(counts, dtype=np.int64)
    there = number > 0
    drawn = class_shares(number, balance, beta)
    # As shares of the class that keeps its number: the rarest if none is added, else the commonest.
    keeps = int(np.where(there, number, number.max() + 1).argmin() if fewer else number.argmax())
    wanted = np.round(drawn / drawn[keeps] * number[keeps]).astype(np.int64)
    return np.where(there, np.minimum(wanted, number) if fewer else np.maximum(wanted, number), 0)
