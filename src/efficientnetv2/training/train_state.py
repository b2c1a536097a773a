"""What training changes and a checkpoint holds; the length of a run, and its steps at which something is due."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from efficientnetv2.training.optim import EMA, build_optimizer
from efficientnetv2.training.recipe import Recipe

# Log rows in a run: enough for a curve, few enough that reading the loss costs nothing. Ours.
_LOG_ROWS = 200


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
        if (
            not isinstance(state, dict)
            or not own.keys() <= state.keys()
            or not isinstance(state["step"], int)
        ):
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


def stage_ends(recipe: Recipe, length: RunLength) -> list[int]:
    """The steps after which a stage ends, in order; the last is the run's end."""
    ends: list[int] = []
    while not ends or ends[-1] < length.steps:
        ends.append(recipe.progressive.stage_end(ends[-1] if ends else 0, total_steps=length.steps))
    return ends


def validation_steps(recipe: Recipe, length: RunLength) -> frozenset[int]:
    """The steps before a validation: each stage's end, and every ``val_interval_epochs`` unless a stage ends soon."""
    every = max(1, round(recipe.val_interval_epochs * length.steps_per_epoch))
    ends = stage_ends(recipe, length)
    between = range(every, length.steps, every)
    return frozenset(ends) | {step for step in between if ends[bisect_left(ends, step)] - step >= every / 2}


def log_steps(recipe: Recipe, length: RunLength) -> frozenset[int]:
    """The steps before a log row: evenly spaced, and each stage's end."""
    every = max(1, length.steps // _LOG_ROWS)
    return frozenset(range(every, length.steps + 1, every)) | frozenset(stage_ends(recipe, length))
