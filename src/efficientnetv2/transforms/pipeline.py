"""From a uint8 batch and its labels to what the model trains on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.transforms.autoaugment import autoaugment
from efficientnetv2.transforms.color import color_jitter
from efficientnetv2.transforms.cutout import Fill, cutout
from efficientnetv2.transforms.geometric import random_horizontal_flip, random_symmetry
from efficientnetv2.transforms.mixup import mix
from efficientnetv2.transforms.normalize import normalize
from efficientnetv2.transforms.per_sample import as_ids
from efficientnetv2.transforms.randaugment import Colors, RandAugmentPreset, randaugment
from efficientnetv2.utils.rng import Key

Flip = Literal["none", "horizontal", "d4"]
Targets = Callable[[Tensor, float], Tensor]

# Ours: with 64 pictures of 300 px, a third of the time went into getting fresh memory from the system; in smaller
# portions, operations that few pictures share cost more than they save.
_PORTION_BYTES = 4 << 20


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class AugmentPlan:
    """Augmentation that is fixed for the run. The schedule (``progressive``) sets the strength of the rest."""

    flip: Flip = "horizontal"
    """`horizontal` mirrors every other image, `d4` draws one of the eight symmetries of the square (for images
    without a fixed orientation).
    """
    randaugment_preset: RandAugmentPreset = "released"
    """Strength of the operations at a magnitude: `released` as in the authors' code, `monotone` is ours."""
    randaugment_layers: int = Field(default=2, ge=1)
    """Operations per image."""
    randaugment_colors: Colors = "any"
    """`any` draws from all operations, `possible` only from those that keep colors a camera could see."""
    autoaugment: bool = False
    """AutoAugment's released policy for the whole run, instead of RandAugment."""
    color: float = Field(default=0.0, ge=0, le=1)
    """Strength of the jitter of brightness, contrast and saturation. 0 is off."""
    cutout_fill: Fill = "noise"
    """Content of the cutout hole."""


def augment(
    images: Tensor,
    labels: Tensor,
    *,
    setting: StepSettings,
    key: Key,
    ids: npt.ArrayLike,
    mix_key: Key,
    plan: AugmentPlan,
    preprocessing: Preprocessing,
    num_classes: int,
    stronger: Tensor | None = None,
    targets: Targets | None = None,
) -> tuple[Tensor, Tensor]:
    """Augment one ghost batch: flip, colors, RandAugment or AutoAugment, hole, normalization, mixup or CutMix.

    Args:
        images: (N, C, H, W) uint8; AutoAugment needs C = 3, RandAugment and color do less with other C.
        labels: (N,) int64; multi-label (N, M), -1 after the last of an image.
        setting: Strength at this step.
        key: Of the run's augmentation: the same at every step.
        ids: (N,) draw ids, one per image and epoch.
        mix_key: Of this ghost batch at this step.
        stronger: (N,) factors of RandAugment's magnitude, on the CPU.
        targets: From mixed (N, K) label counts and the label smoothing to the targets; None is ``soft_labels``.

    Returns:
        (N, C, H, W) float32 normalized, in channels-last memory, and (N, K) float32 targets.

    Raises:
        InputError: A number of channels that the mean or AutoAugment does not fit.
    """
    numbers, floats = as_ids(ids), _floats_like(images)
    for part in cache_sized_slices(images):
        factor = None if stronger is None else stronger[part]
        changed = augment_images(images[part], setting, key, numbers[part], plan, factor)
        normalize(changed, mean=preprocessing.mean, std=preprocessing.std, out=floats[part])
    mixed, counted = mix(floats, multi_hot(labels, num_classes), setting, mix_key)
    return mixed, (targets or soft_labels)(counted, setting.label_smoothing)


def multi_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(N, K) float32, 1 for each class of an image, from labels (N,) or (N, M) with -1 after the last."""
    if labels.ndim == 1:
        return functional.one_hot(labels, num_classes).float()
    places = torch.where(labels < 0, num_classes, labels)
    hot = torch.zeros(len(labels), num_classes + 1, device=labels.device)
    return hot.scatter_(1, places, 1.0)[:, :num_classes]


def soft_labels(
    counted: Tensor, smoothing: float, *, weights: Tensor | None = None, towards: Tensor | None = None
) -> Tensor:
    """Label distributions (N, K): label counts in proportion, a fraction of which is spread over all classes.

    Args:
        counted: (N, K) float of ``multi_hot``, mixed or not; each row has something above 0.
        smoothing: The fraction, 0 to 1.
        weights: (K,) of the classes. An image counts as much as its labels do, so that a row sums to that; its smoothed
            fraction counts as its image does, also where it goes to a rare class.
        towards: (K,) distribution of the fraction; None is uniform.

    Source: google/automl, efficientnetv2: label counts are mixed, then normalized to sum 1 (arXiv:2104.00298, section
        5.2) and smoothed in the loss.
    """
    shares = counted / counted.sum(dim=1, keepdim=True)
    each = smoothing / counted.shape[1] if towards is None else smoothing * towards
    if weights is None:
        return shares * (1 - smoothing) + each
    weighed = shares * weights
    return weighed * (1 - smoothing) + weighed.sum(dim=1, keepdim=True) * each


def binary_targets(counted: Tensor, smoothing: float) -> Tensor:
    """Multi-label targets (N, K): label counts moved towards 1/2 by the fraction ``smoothing``, so that 1/2 stays.

    Source: Keras' ``BinaryCrossentropy``.
    """
    return counted * (1 - smoothing) + smoothing / 2


def _floats_like(images: Tensor) -> Tensor:
    """An uninitialized float32 batch in channels-last memory.

    On a CPU from numpy, which asks the system for large pages: with small ones, getting 69 MB (64 images of 300 px)
    takes longer than filling them.
    """
    if images.device.type != "cpu":
        return torch.empty_like(images, dtype=torch.float32, memory_format=torch.channels_last)
    count, channels, height, width = images.shape
    return torch.from_numpy(np.empty((count, height, width, channels), np.float32)).permute(0, 3, 1, 2)


def cache_sized_slices(images: Tensor) -> list[slice]:
    """Slices of images to work on at a time: all of them, but on a CPU few enough for its caches and its allocator."""
    bytes_each = images[0].numel() if len(images) else 1
    most = max(1, _PORTION_BYTES // bytes_each) if images.device.type == "cpu" else len(images)
    return [slice(first, first + most) for first in range(0, len(images), most)]


def augment_images(
    images: Tensor,
    setting: StepSettings,
    key: Key,
    ids: npt.ArrayLike,
    plan: AugmentPlan,
    stronger: Tensor | None = None,
) -> Tensor:
    """The part of ``augment`` that changes each image by itself, before it is normalized: uint8 to uint8."""
    if plan.flip == "horizontal":
        images = random_horizontal_flip(images, key.fold("flip"), ids)
    elif plan.flip == "d4":
        images = random_symmetry(images, key.fold("flip"), ids)
    if plan.color:
        images = color_jitter(images, key.fold("colour"), ids, strength=plan.color)
    if plan.autoaugment:
        images = autoaugment(images, key=key.fold("autoaugment"), ids=ids)
    if setting.randaugment is not None:
        images = randaugment(
            images,
            magnitude=setting.randaugment if stronger is None else setting.randaugment * stronger,
            key=key.fold("randaugment"),
            ids=ids,
            preset=plan.randaugment_preset,
            layers=plan.randaugment_layers,
            colors=plan.randaugment_colors,
        )
    if setting.cutout:
        key = key.fold("cutout")
        images = cutout(images, fraction=setting.cutout, key=key, ids=ids, fill=plan.cutout_fill)
    return images
