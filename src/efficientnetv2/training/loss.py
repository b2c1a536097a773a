"""The loss on soft labels, by what the network's answer is to be."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor, *, offsets: Tensor | None = None) -> Tensor:
    """Mean cross-entropy against label distributions.

    Smoothing, mixing and weighing have happened before, in the labels; see ``augment.pipeline``.

    Args:
        logits: (N, K) float.
        labels: (N, K) float, rows sum to 1, or to what their picture counts. The mean is over pictures, not over that.
        offsets: (K,) added to the logits.

    Returns:
        A scalar, in nats.
    """
    adjusted = logits.float() if offsets is None else logits.float() + offsets
    return functional.cross_entropy(adjusted, labels)


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over pictures of the sum over classes of binary cross-entropies: each class is a yes or no of its own.

    The sum, so that a class that is answered wrong pulls at its row of the classifier as hard as in ``cross_entropy``
    (probability minus target, at most 1), however many other classes there are: learning rates and the norm that
    gradients are clipped to serve both losses. In a mean over classes it would be 1/K of that.

    Smoothing and mixing have happened before, in the labels; see ``augment.pipeline``.

    Args:
        logits: (N, K) float.
        labels: (N, K) float, 0 to 1.

    Returns:
        A scalar, in nats.

    Source: timm's ``BinaryCrossEntropy`` with ``sum_classes``; arXiv:2009.14119's code sums over classes too.
    """
    each = functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
    return each.sum(dim=1).mean()
