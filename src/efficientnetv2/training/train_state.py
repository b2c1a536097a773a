"""What training changes, and the length of a run."""

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

    network: nn.Module  # Model in training
    optimizer: torch.optim.Optimizer  # Optimizer with its moments
    ema: EMA | None  # Moving average of the weights, or None
    step: int = 0  # Steps done
    scaler: torch.amp.GradScaler | None = None  # Loss scaler, for fp16 only

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.network.state_dict() if self.ema else None,
            "step": self.step,
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave; training then continues to the same bits."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.network.load_state_dict(state["ema"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]

    def matches(self, state: dict[str, Any]) -> bool:
        """Whether ``load_state_dict`` can restore a checkpoint: it has all keys, and weights of the same shapes."""
        own = self.state_dict()
        if not isinstance(state, dict) or not own.keys() <= state.keys():
            return False
        models = [name for name in ("network", "ema") if own[name] is not None]
        return isinstance(state["step"], int) and all(
            _shapes(own[name]) == _shapes(state[name]) for name in models
        )

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


@dataclass(frozen=True)
class RunLength:
    """Number of steps of a run, and of an epoch, which need not end with a step."""

    steps: int
    steps_per_epoch: float

    @classmethod
    def of(cls, recipe: Recipe, images: int) -> RunLength:
        """Length of a resolved recipe on a number of training images."""
        assert recipe.epochs != "auto", "resolve_recipe() comes first"
        steps = max(1, round(recipe.epochs * images / recipe.batch_size))
        return cls(steps, images / recipe.batch_size)


def _shapes(tensors: Any) -> dict[str, torch.Size | None] | None:
    if not isinstance(tensors, dict):
        return None
    return {name: getattr(tensor, "shape", None) for name, tensor in tensors.items()}
