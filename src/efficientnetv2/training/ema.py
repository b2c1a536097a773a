"""The moving average of the weights."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class EMA:
    """Exponential moving average of all weights and batch-norm statistics.

    Early on, the decay is at most (1 + step) / (10 + step), so that the average forgets the random start.

    Source: arXiv:2104.00298, section 5.1 (0.9999). The cap and the statistics are those of the released code, which
        counts finished steps, while this counts from 0.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        # Found once: a walk through all modules takes a percent of a step of 0.1 s.
        self._slots, self._source = _float_slots(network), weakref.ref(network)
        self._averages = [owner[name] for owner, name in _float_slots(self.network)]

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards the weights after a step, counted from 0."""
        assert network is self._source(), "the EMA follows one network"
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, [owner[name] for owner, name in self._slots], 1 - decay)


def _float_slots(network: nn.Module) -> list[tuple[Mapping[str, Any], str]]:
    """Owner and name of each floating-point parameter and saved buffer; shared ones once."""
    slots: dict[tuple[int, torch.Size], tuple[Mapping[str, Any], str]] = {}
    for module in network.modules():
        for owner in (module._parameters, module._buffers):
            for name, tensor in owner.items():
                saved = name not in module._non_persistent_buffers_set
                if saved and tensor is not None and tensor.is_floating_point():
                    slots.setdefault((tensor.data_ptr(), tensor.shape), (owner, name))
    return list(slots.values())
