"""Training that diverges ends, with words on what may help."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from efficientnetv2.base.errors import DivergedError
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.state import Length

# Share of the learning rate to try next, and the largest rate that is advised. Ours.
_LOWER, _LARGEST_LR = 0.1, 0.1


def refuse_loss(steps: Sequence[tuple[int, float, Tensor]], recipe: Recipe, length: Length) -> None:
    """Refuse to train on after a loss that is infinite or NaN. Reading the losses waits for the device.

    Args:
        steps: Number, learning rate and loss (a scalar) of each step to check, in order.
        recipe: Of the run.
        length: Of the run.

    Raises:
        DivergedError: A loss is not finite. The error names the first such step.
    """
    if not steps:
        return
    losses = torch.stack([loss for _, _, loss in steps]).cpu()
    broken = (~losses.isfinite()).nonzero().flatten().tolist()
    if broken:
        step, lr, _ = steps[broken[0]]
        raise diverged(f"the loss is {float(losses[broken[0]])}", step, lr, recipe, length)


def refuse_weights(network: nn.Module, step: int, lr: float, recipe: Recipe, length: Length) -> None:
    """Refuse to keep weights or batch-norm statistics that are infinite or NaN.

    Args:
        network: That would be kept.
        step: Number of the step just done.
        lr: Its learning rate.
        recipe: Of the run.
        length: Of the run.

    Raises:
        DivergedError: A tensor of the network is not finite. The error names the tensor.
    """
    tensors = {
        name: one.detach()
        for name, one in network.state_dict().items()
        if one.is_floating_point() and one.numel()
    }
    largest = torch.stack(torch._foreach_norm(list(tensors.values()), float("inf"))).cpu()
    broken = (~largest.isfinite()).nonzero().flatten().tolist()
    if broken:
        name = list(tensors)[broken[0]]
        raise diverged(f"the weights are not finite (first: {name})", step, lr, recipe, length)


def diverged(what: str, step: int, lr: float, recipe: Recipe, length: Length) -> DivergedError:
    """The error of a run whose numbers are not finite any more.

    Args:
        what: Is not finite.
        step: Number of the step.
        lr: Its learning rate.
        recipe: Of the run.
        length: Of the run.
    """
    lower = min(_LOWER * recipe.optimizer.lr, _LARGEST_LR)
    return DivergedError(
        f"Training diverged at step {step} (learning rate {lr:.3g}): {what}. Start a new run (another --out) with a "
        f"lower learning rate (--set optimizer.lr={lower:.2g}){_longer_warmup(recipe, length)}."
    )


def _longer_warmup(recipe: Recipe, length: Length) -> str:
    """Another way out, in words that follow the first; '' where warm-up is as long as it may be."""
    longest = recipe.schedule.warmup_share * length.steps / length.steps_per_epoch
    longer = min(recipe.schedule.warmup_epochs + 2, longest)
    if longer <= 1.1 * recipe.schedule.warmup_epochs:
        return ""
    return f" or a longer warm-up (--set schedule.warmup_epochs={longer:.3g})"
