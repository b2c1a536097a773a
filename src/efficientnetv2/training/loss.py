"""The loss on soft labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy(
    logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, offsets: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy against label distributions.

    Smoothing and mixing have happened before, in the labels; see ``augment.pipeline``.

    Args:
        logits: (N, K) float.
        labels: (N, K) float, rows sum to 1.
        weights: (K,) of each class; a label that is shared among classes has its share of each weight. The mean is
            over pictures, not over weights.
        offsets: (K,) added to the logits.

    Returns:
        A scalar, in nats.
    """
    adjusted = logits.float() if offsets is None else logits.float() + offsets
    return functional.cross_entropy(adjusted, labels, weight=weights)
