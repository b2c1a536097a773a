"""A uint8 batch and its labels to what the network trains on, on the device that holds the batch."""

from __future__ import annotations

from typing import Literal

import numpy.typing as npt
import torch
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from efficientnetv2.augment.autoaugment import autoaugment
from efficientnetv2.augment.colour import jitter
from efficientnetv2.augment.erase import Fill, cutout
from efficientnetv2.augment.geometry import horizontal_flip, symmetries
from efficientnetv2.augment.mix import mix
from efficientnetv2.augment.normalise import normalise
from efficientnetv2.augment.randaugment import RandAugmentPreset, randaugment
from efficientnetv2.augment.rows import as_ids
from efficientnetv2.base.keys import Key
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.progressive import Setting

__all__ = ["AugmentPlan", "Flip", "RandAugmentPreset", "augment", "soft_labels"]

Flip = Literal["none", "horizontal", "symmetries"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AugmentPlan:
    """What stays the same over a run; how strong it is comes with each batch, in its ``Setting``.

    Args:
        flip: ``horizontal`` mirrors every other picture, ``symmetries`` draws one of the eight
            symmetries of the square (for pictures without an upright).
        randaugment_preset: ``released`` is the authors' formulas, ``monotone`` ours.
        randaugment_layers: operations per picture.
        autoaugment: AutoAugment's released policy over the whole run, where no RandAugment is scheduled.
        colour: strength of a jitter of brightness, contrast and saturation, 0 to 1; 0 is off.
        cutout_fill: what the hole is filled with.
    """

    flip: Flip = "horizontal"
    randaugment_preset: RandAugmentPreset = "released"
    randaugment_layers: int = 2
    autoaugment: bool = False
    colour: float = 0.0
    cutout_fill: Fill = "noise"

    @model_validator(mode="after")
    def _in_range(self) -> AugmentPlan:
        if self.randaugment_layers < 1:
            raise ValueError(f"randaugment_layers is {self.randaugment_layers}, but is at least 1")
        if not 0 <= self.colour <= 1:
            raise ValueError(f"colour is {self.colour:g}, but lies between 0 and 1")
        return self


def augment(
    images: Tensor,
    labels: Tensor,
    *,
    setting: Setting,
    key: Key,
    ids: npt.ArrayLike,
    mix_key: Key,
    plan: AugmentPlan,
    preprocessing: Preprocessing,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """One group of pictures, augmented: flip, colours, RandAugment or AutoAugment, hole, normalise, mix.

    Args:
        images: (N, C, H, W) uint8; RandAugment, AutoAugment and colour need C = 3.
        labels: (N,) int64, 0 to num_classes - 1.
        setting: how strong, at this step.
        key: of the run's augmentation: the same at every step.
        ids: (N,) draw ids, one per picture and epoch: what is done to a picture alone depends on its id.
        mix_key: of this group at this step, for mixup and cutmix.
        plan: what stays the same over the run.
        preprocessing: of the network; its mean and std are used here.
        num_classes: K.

    Returns:
        (N, C, H, W) float32 normalised, in channels-last memory, and (N, K) float32 labels whose rows
        sum to 1.

    Raises:
        InputError: a number of channels that the mean, RandAugment or AutoAugment does not fit.
    """
    pictures = _augment_each(images, setting, key, as_ids(ids), plan)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    soft = soft_labels(labels, num_classes, setting.label_smoothing)
    return mix(normalise(pictures, mean=preprocessing.mean, std=preprocessing.std), soft, setting, mix_key)


def soft_labels(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """One-hot labels, a share of each given to all classes alike.

    Args:
        labels: (N,) int64.
        num_classes: K.
        smoothing: the share, 0 to 1.

    Returns:
        (N, K) float32, rows sum to 1.
    """
    hot = functional.one_hot(labels, num_classes).float()
    return hot * (1 - smoothing) + smoothing / num_classes


def _augment_each(
    images: Tensor, setting: Setting, key: Key, ids: npt.ArrayLike, plan: AugmentPlan
) -> Tensor:
    if plan.flip == "horizontal":
        images = horizontal_flip(images, key.fold("flip"), ids)
    elif plan.flip == "symmetries":
        images = symmetries(images, key.fold("flip"), ids)
    if plan.colour:
        images = jitter(images, key.fold("colour"), ids, strength=plan.colour)
    if plan.autoaugment:
        images = autoaugment(images, key=key.fold("autoaugment"), ids=ids)
    if setting.randaugment is not None:
        images = randaugment(
            images,
            magnitude=setting.randaugment,
            key=key.fold("randaugment"),
            ids=ids,
            preset=plan.randaugment_preset,
            layers=plan.randaugment_layers,
        )
    if setting.cutout:
        key = key.fold("cutout")
        images = cutout(images, fraction=setting.cutout, key=key, ids=ids, fill=plan.cutout_fill)
    return images
