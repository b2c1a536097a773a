"""The loss on soft labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy against label distributions.

    Smoothing and mixing have happened before, in the labels; see ``augment.pipeline``.

    Args:
        logits: (N, K) float.
        labels: (N, K) float, rows sum to 1.

    Returns:
        A scalar, in nats.
    """
    return functional.cross_entropy(logits.float(), labels)
