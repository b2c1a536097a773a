"""Logits to probabilities and back: softmax over the classes, or a sigmoid for each class."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: ``softmax``: probabilities sum to 1 over the classes. ``sigmoid``: each class is independent.
Answer = Literal["softmax", "sigmoid"]


def probabilities(logits: Tensor, answer: Answer) -> Tensor:
    """(N, K) probabilities from (N, K) logits."""
    return logits.softmax(dim=1) if answer == "softmax" else logits.sigmoid()


def to_logits(shares: Tensor, answer: Answer) -> Tensor:
    """(N, K) logits with the given (N, K) probabilities; finite also where those were rounded to 0 or 1."""
    limits = torch.finfo(shares.dtype)
    above = shares.clamp(min=limits.tiny)
    if answer == "softmax":
        return above.log()
    return above.clamp(max=1 - limits.eps).logit()
