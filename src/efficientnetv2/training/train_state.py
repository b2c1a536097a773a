"""What training changes, and how long it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from efficientnetv2.training import optim
from efficientnetv2.training.recipe import Recipe


@dataclass
class TrainState:
    """What training changes, and all that a checkpoint has to keep.

    Args:
        network: being trained.
        optimizer: with its moments.
        ema: the moving average, or None.
        step: steps done.
        scaler: keeps small gradients of fp16 from vanishing; None in every other precision.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: optim.EMA | None
    step: int = 0
    scaler: torch.amp.GradScaler | None = None

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.network.state_dict() if self.ema else None,
            "step": self.step,
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def load_dict(self, kept: dict[str, Any]) -> None:
        """Take over what ``to_dict`` gave; the state goes on as if it had never stopped."""
        self.network.load_state_dict(kept["network"])
        self.optimizer.load_state_dict(kept["optimizer"])
        if self.ema:
            self.ema.network.load_state_dict(kept["ema"])
        if self.scaler:
            self.scaler.load_state_dict(kept["scaler"])
        self.step = kept["step"]

    def fits(self, kept: dict[str, Any]) -> bool:
        """Whether ``load_dict`` can take over what a checkpoint holds: names and shapes of the weights are compared."""
        own = self.to_dict()
        if not isinstance(kept, dict) or not own.keys() <= kept.keys():
            return False
        parts = [name for name in ("network", "ema") if own[name] is not None]
        return isinstance(kept["step"], int) and all(_shapes(own[one]) == _shapes(kept[one]) for one in parts)

    @property
    def best(self) -> nn.Module:
        """The network to evaluate and to keep: the moving average where there is one."""
        return self.ema.network if self.ema else self.network


def _shapes(tensors: Any) -> dict[str, torch.Size | None] | None:
    if not isinstance(tensors, dict):
        return None
    return {name: getattr(one, "shape", None) for name, one in tensors.items()}


@dataclass(frozen=True)
class RunLength:
    """How long a run is.

    Args:
        steps: of the run.
        steps_per_epoch: may be a fraction: epochs need not end with a step.
    """

    steps: int
    steps_per_epoch: float

    @classmethod
    def of(cls, recipe: Recipe, images: int) -> RunLength:
        """Of a recipe with settled epochs, on so many training pictures."""
        assert recipe.epochs != "auto", "resolve_recipe() comes first"
        steps = max(1, round(recipe.epochs * images / recipe.batch_images))
        return cls(steps, images / recipe.batch_images)


def init_state(network: nn.Module, recipe: Recipe) -> TrainState:
    """The state before the first step."""
    ema = optim.EMA(network, recipe.ema_decay) if recipe.ema_decay else None
    device = next(network.parameters()).device
    scaler = torch.amp.GradScaler(device.type) if recipe.precision == "fp16" else None
    return TrainState(network, optim.build_optimizer(network, recipe.optimizer), ema, scaler=scaler)
