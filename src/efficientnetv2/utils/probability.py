"""Logits to probabilities and back: softmax over the classes, or a sigmoid for each class."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

#: ``softmax``: probabilities sum to 1 over the classes. ``sigmoid``: each class is independent.
Activation = Literal["softmax", "sigmoid"]


def probabilities(logits: Tensor, activation: Activation) -> Tensor:
    """(N, K) probabilities from (N, K) logits."""
    return logits.softmax(dim=1) if activation == "softmax" else logits.sigmoid()


def to_logits(shares: Tensor, activation: Activation) -> Tensor:
    """(N, K) logits with the given (N, K) probabilities; finite also where those were rounded to 0 or 1."""
    limits = torch.finfo(shares.dtype)
    above = shares.clamp(min=limits.tiny)
    if activation == "softmax":
        return above.log()
    # The second limit changes nothing here. In a file exported in float16, 1 - eps becomes 1, with an infinite logit.
    return above.clamp(max=1 - limits.eps).logit().clamp(max=-math.log(limits.eps))
