"""State dicts of timm's models with random weights, each made once."""

import copy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def timm_state(name: str = "tf_efficientnetv2_b0", **arguments: Any) -> dict[str, Tensor]:
    """Return the state dict of a new model of timm, as a copy that a test may change."""
    return copy.deepcopy(_made(name, **arguments))


@lru_cache(maxsize=4)
def _made(name: str, **arguments: Any) -> dict[str, Tensor]:
    import timm

    torch.manual_seed(1)
    return timm.create_model(name, **arguments).state_dict()
