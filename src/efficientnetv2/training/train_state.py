"""What training changes (weights, their moving average, optimizer), its checkpoints, and the points of a run.

Checkpoints are written atomically. The last two are kept during a run, and none after its end: to train longer, start
another run from the model file.
"""

from __future__ import annotations

import copy
import errno
import re
import weakref
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efficientnetv2.training.optim import build_optimizer
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import hint_for_os_error, remove_partial, write_atomically
from efficientnetv2.utils.memory import is_out_of_memory

# Log rows in a run: enough for a curve, few enough that reading the loss costs nothing. Ours.
_LOG_ROWS = 200
_CHECKPOINT_NAME = re.compile(r"step_(\d+)\.pt")
_DAMAGED_SUFFIX = ".damaged"
_CHECKPOINTS_KEPT = 2


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
                if name in module._non_persistent_buffers_set:
                    continue
                if tensor is not None and tensor.is_floating_point():
                    slots.setdefault((tensor.data_ptr(), tensor.shape), (owner, name))
    return list(slots.values())


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


def save_checkpoint(folder: Path, state: dict[str, Any], step: int) -> Path:
    """Write a checkpoint after ``step`` steps, and remove all but the last two.

    Raises:
        InputError: The file can't be written, as on a full disk. Earlier checkpoints stay.
    """
    path = folder / f"step_{step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        write_atomically(path, lambda file: torch.save(state, file))
    except (OSError, RuntimeError) as error:
        before = checkpoint_steps(folder)
        rest = f"The checkpoint of step {before[-1]} is whole" if before else "There is no earlier checkpoint"
        raise InputError(
            f"{path}: the checkpoint could not be written ({error}). {rest}. "
            f"{hint_for_os_error(error)}, then go on with --resume."
        ) from error
    for old in checkpoint_steps(folder)[:-_CHECKPOINTS_KEPT]:
        (folder / f"step_{old:08d}.pt").unlink()
    return path


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a finished run, also damaged and partial ones. The folder stays."""
    if not folder.is_dir():
        return
    remove_partial(folder)
    for path in folder.glob("step_*"):
        if _CHECKPOINT_NAME.fullmatch(path.with_suffix(".pt").name):
            path.unlink()


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(
        int(match[1]) for path in folder.iterdir() if (match := _CHECKPOINT_NAME.fullmatch(path.name))
    )


def load_latest_checkpoint(
    folder: Path, matches: Callable[[dict[str, Any]], bool] = lambda state: True
) -> tuple[dict[str, Any] | None, list[str]]:
    """The latest checkpoint that is whole (None without checkpoints), and a sentence for each damaged one.

    Args:
        folder: Checkpoints of the run.
        matches: Whether a checkpoint has the state of this run. If not, it counts as damaged.

    Raises:
        InputError: All checkpoints are damaged, or one can't be read now but may be whole.
    """
    damaged: list[str] = []
    for step in reversed(checkpoint_steps(folder)):
        path = folder / f"step_{step:08d}.pt"
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if not matches(state):
                raise ValueError("it does not hold the state of this run")
            return state, damaged
        except Exception as error:  # a damaged file may raise anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if _is_temporary(error):
                raise InputError(
                    f"{path} can't be read now ({reason}), but may be whole. Fix that, then go on with --resume; or "
                    "move the file away, to go on from the checkpoint before it."
                ) from error
            damaged.append(f"{path} is damaged ({reason})")
            path.rename(path.with_suffix(_DAMAGED_SUFFIX))
    damaged = damaged or [f"{path} is damaged" for path in sorted(folder.glob(f"step_*{_DAMAGED_SUFFIX}"))]
    if damaged:
        raise InputError("; ".join(damaged) + ". Start a new run with another --output.")
    return None, []


def _is_temporary(error: Exception) -> bool:
    """Whether reading failed for memory, permission or the disk, rather than for the content of the file."""
    # A truncated file may make the reader seek before its start, which is EINVAL.
    is_system = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
    return is_system or is_out_of_memory(error)
