"""How gradients become steps, and how long these are over the run: the parts of a recipe that say so."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A frozen value whose fields are checked; a name that is none of them is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Optimizer(Part):
    """How gradients become steps.

    Args:
        kind: ``rmsprop`` in TensorFlow's form (epsilon inside the root, mean square starting at 1),
            ``sgd`` with Nesterov's momentum, or ``adamw``.
        lr: peak learning rate, at the recipe's ``batch_images``.
        weight_decay: of weights; biases and norms are never decayed. With ``rmsprop`` and ``sgd``
            it is L2 in the loss, with ``adamw`` decoupled.
        momentum: of ``rmsprop`` and ``sgd``; beta 1 of ``adamw``.
        decay: of the running mean square: rho of ``rmsprop``, beta 2 of ``adamw``.
        epsilon: of ``rmsprop`` and ``adamw``.
        clip_norm: gradients of a greater norm are scaled down to it; None is off.
        head_lr: the classifier's learning rate over the trunk's.
        layer_decay: with L groups of layers (``models.fit.layer_groups``), group i learns at ``layer_decay **
            (L - 1 - i)`` of the rate: less than 1 lets the layers near the picture move less.
        unfreeze: share of the run by which all layers learn. Group i has a rate of 0 until ``unfreeze * (L - 1 - i) /
            (L - 1)`` of it, so the head learns from the beginning and the stem last; batch-norm's statistics move all
            the while. None lets all learn from the beginning. Source: arXiv:1801.06146, section 3.3, a group per epoch.
    """

    kind: Literal["rmsprop", "sgd", "adamw"]
    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    decay: float = Field(default=0.9, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    clip_norm: float | None = Field(default=None, gt=0)
    head_lr: float = Field(default=1.0, gt=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    unfreeze: float | None = Field(default=None, gt=0, lt=1)


class Schedule(Part):
    """The learning rate over the run, as a share of its peak: warm-up, then the shape.

    Args:
        kind: ``cosine`` down to ``final``, ``staircase`` (times ``factor`` each ``every_epochs``),
            or ``constant``.
        warmup_epochs: of linear growth from 0.
        warmup_share: of the run that warm-up takes at most, so that a short run reaches its peak too.
        final: with ``cosine``, share of the peak at the end.
        factor: of the staircase: what the rate is multiplied by at each of its steps.
        every_epochs: of the staircase: from one of its steps to the next.
    """

    kind: Literal["cosine", "staircase", "constant"]
    warmup_epochs: float = Field(default=0.0, ge=0)
    warmup_share: float = Field(default=1.0, gt=0, le=1)
    final: float = Field(default=0.0, ge=0, le=1)
    factor: float = Field(default=0.97, gt=0, le=1)
    every_epochs: float = Field(default=2.4, gt=0)
