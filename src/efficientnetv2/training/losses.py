"""Losses: cross-entropy, and binary cross-entropy for several labels per image."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor, *, offsets: Tensor | None = None) -> Tensor:
    """Mean over images of the cross-entropy of (N, K) logits against (N, K) label distributions, a scalar in nats.

    Smoothing, mixing and class weights are in the labels already (``transforms.pipeline``): rows sum to 1, or to the
    weight of their image. ``offsets`` (K,) are added to the logits.
    """
    adjusted = logits.float() if offsets is None else logits.float() + offsets
    return functional.cross_entropy(adjusted, labels)


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over images of the sum over classes of binary cross-entropies against (N, K) labels, a scalar in nats.

    The sum over classes keeps the gradient of a logit at probability minus target, as in ``cross_entropy``, so the same
    learning rate and gradient clipping suit both. A mean would divide it by K.

    Source: timm's ``BinaryCrossEntropy`` with ``sum_classes``; arXiv:2009.14119's code sums over classes too.
    """
    each = functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
    return each.sum(dim=1).mean()
