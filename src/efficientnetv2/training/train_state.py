"""What training changes and a checkpoint holds: weights, their moving average (EMA), optimizer."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from efficientnetv2.training.optim import build_optimizer
from efficientnetv2.training.recipe import Recipe


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


@dataclass
class TrainState:
    """What training changes and a checkpoint keeps."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    step: int = 0  # Steps done
    scaler: torch.amp.GradScaler | None = None  # For fp16 only

    def _parts(self) -> dict[str, Any]:
        ema = self.ema.network if self.ema else None
        return {"network": self.network, "optimizer": self.optimizer, "ema": ema, "scaler": self.scaler}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        parts = {name: None if part is None else part.state_dict() for name, part in self._parts().items()}
        return parts | {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave; training then continues to the same bits."""
        for name, part in self._parts().items():
            if part is not None:
                part.load_state_dict(state[name])
        self.step = state["step"]

    def matches(self, state: dict[str, Any]) -> bool:
        """Whether ``load_state_dict`` can restore a checkpoint: it has all keys, and weights of the same shapes."""
        own = self.state_dict()
        if not isinstance(state, dict) or not own.keys() <= state.keys() or not isinstance(state["step"], int):
            return False
        return all(_shapes(own[name]) in (None, _shapes(state[name])) for name in ("network", "ema"))

    @property
    def eval_network(self) -> nn.Module:
        """The model to evaluate and to save: the EMA if there is one."""
        return self.ema.network if self.ema else self.network


def init_state(network: nn.Module, recipe: Recipe) -> TrainState:
    """The state before the first step."""
    ema = EMA(network, recipe.ema_decay) if recipe.ema_decay else None
    device = next(network.parameters()).device
    scaler = torch.amp.GradScaler(device.type) if recipe.precision == "fp16" else None
    return TrainState(network, build_optimizer(network, recipe.optimizer), ema, scaler=scaler)


def _shapes(tensors: Any) -> dict[str, torch.Size | None] | None:
    if not isinstance(tensors, dict):
        return None
    return {name: getattr(tensor, "shape", None) for name, tensor in tensors.items()}
