"""What a network's logits mean: shares that its classes have among them, or a probability of each class by itself.

The one place where logits become probabilities, and probabilities that were averaged become logits again.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: ``softmax``: probabilities sum to 1 over the classes. ``sigmoid``: each class is a yes or no of its own.
Answer = Literal["softmax", "sigmoid"]


def probabilities(logits: Tensor, answer: Answer) -> Tensor:
    """What a network says of each class.

    Args:
        logits: (N, K) float.
        answer: how they are meant.

    Returns:
        (N, K), 0 to 1; rows sum to 1 with ``softmax``.
    """
    return logits.softmax(dim=1) if answer == "softmax" else logits.sigmoid()


def to_logits(shares: Tensor, answer: Answer) -> Tensor:
    """Logits whose ``probabilities`` are these; finite, whatever was rounded to 0 or 1.

    Args:
        shares: (N, K) float, 0 to 1.
        answer: how the logits are to be meant.

    Returns:
        (N, K).
    """
    numbers = torch.finfo(shares.dtype)
    above = shares.clamp(min=numbers.tiny)
    if answer == "softmax":
        return above.log()
    return above.clamp(max=1 - numbers.eps).logit()
