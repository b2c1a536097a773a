"""What training changes and a checkpoint holds: weights, their moving average, optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from efficientnetv2.training.ema import EMA
from efficientnetv2.training.optim import build_optimizer
from efficientnetv2.training.recipe import Recipe


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
