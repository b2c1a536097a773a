"""A loss that is no number any more ends a run, with words on what may help."""

from __future__ import annotations

import math

from torch import Tensor

from efficientnetv2.base.errors import DivergedError
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.state import Length


def refuse_divergence(loss: Tensor, step: int, recipe: Recipe, length: Length) -> None:
    """Refuse to go on with a loss that is infinite or NaN.

    Args:
        loss: of a step, a scalar.
        step: its number.
        recipe: of the run.
        length: of the run.

    Raises:
        DivergedError: it is no number.
    """
    if not math.isfinite(float(loss)):
        raise DivergedError(
            f"The loss at step {step} is {float(loss)}: training has diverged. Begin anew (another --out) with a "
            f"lower learning rate (--set optimizer.lr={recipe.optimizer.lr / 3:.2g}){_longer_warmup(recipe, length)}."
        )


def _longer_warmup(recipe: Recipe, length: Length) -> str:
    """Another way out, in words that follow the first; '' where warm-up is as long as it may be."""
    longest = recipe.schedule.warmup_share * length.steps / length.steps_per_epoch
    longer = min(recipe.schedule.warmup_epochs + 2, longest)
    if longer <= 1.1 * recipe.schedule.warmup_epochs:
        return ""
    return f" or a longer warm-up (--set schedule.warmup_epochs={longer:.3g})"
