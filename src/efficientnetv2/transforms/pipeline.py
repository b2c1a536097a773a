"""From a uint8 batch and its labels to what the model trains on. New operations go into `auto_augment.OPERATIONS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import StepSettings, refuse_boolean_numbers
from efficientnetv2.transforms.auto_augment import Colors, RandAugmentPreset, autoaugment, randaugment
from efficientnetv2.transforms.color import color_jitter
from efficientnetv2.transforms.geometric import Fill, cutout, random_horizontal_flip, random_symmetry
from efficientnetv2.transforms.tensor_ops import Floats, as_ids, from_rows, on_device, to_rows
from efficientnetv2.utils.device import to_device
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

Flip = Literal["none", "horizontal", "d4"]
Targets = Callable[[Tensor, float], Tensor]

# Ours: with 64 images of 300 px, a third of the time went into getting fresh memory from the system; in smaller
# portions, operations that few images share cost more than they save.
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

    _no_boolean_numbers = field_validator("*", mode="before")(refuse_boolean_numbers)


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

    From (N, C, H, W) uint8 images, (N,) int64 labels or (N, M) padded with -1, and (N,) draw ids to normalized float32
    images in channels-last memory and (N, K) float32 targets. ``key`` is the same at every step; ``mix_key`` is of this
    batch. ``stronger`` are (N,) factors of RandAugment's magnitude, on the CPU. ``targets`` maps mixed (N, K) label
    counts and the label smoothing to targets; None is ``soft_labels``.
    """
    numbers, floats = as_ids(ids), _floats_like(images)
    for part in cache_sized_slices(images):
        factor = None if stronger is None else stronger[part]
        changed = augment_images(images[part], setting, key, numbers[part], plan, factor)
        normalize(changed, mean=preprocessing.mean, std=preprocessing.std, out=floats[part])
    mixed, counted = mix(floats, multi_hot(labels, num_classes), setting, mix_key)
    return mixed, (targets or soft_labels)(counted, setting.label_smoothing)


def multi_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(N, K) float32, 1 for each class of an image, from labels (N,) or (N, M), padded with -1."""
    if labels.ndim == 1:
        return functional.one_hot(labels, num_classes).float()
    places = torch.where(labels < 0, num_classes, labels)
    hot = torch.zeros(len(labels), num_classes + 1, device=labels.device)
    return hot.scatter_(1, places, 1.0)[:, :num_classes]


def soft_labels(
    counted: Tensor, smoothing: float, *, weights: Tensor | None = None, towards: Tensor | None = None
) -> Tensor:
    """Label distributions (N, K) from counts of ``multi_hot``; a fraction is spread evenly or ``towards`` (K,).

    With (K,) class ``weights``, an image counts as much as its labels do, so that its row sums to that.
    Source: google/automl, efficientnetv2: mixed, normalized (arXiv:2104.00298, section 5.2), smoothed in the loss.
    """
    shares = counted / counted.sum(dim=1, keepdim=True)
    each = smoothing / counted.shape[1] if towards is None else smoothing * towards
    if weights is None:
        return shares * (1 - smoothing) + each
    weighed = shares * weights
    return weighed * (1 - smoothing) + weighed.sum(dim=1, keepdim=True) * each


def binary_targets(counted: Tensor, smoothing: float) -> Tensor:
    """Multi-label targets (N, K): counts moved towards 1/2. Source: Keras' ``BinaryCrossentropy``."""
    return counted * (1 - smoothing) + smoothing / 2


def _floats_like(images: Tensor) -> Tensor:
    """An uninitialized float32 batch in channels-last memory."""
    if images.device.type != "cpu":
        return torch.empty_like(images, dtype=torch.float32, memory_format=torch.channels_last)
    count, channels, height, width = images.shape
    # numpy asks the system for large pages: with small ones, getting 69 MB takes longer than filling them.
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


def normalize(images: Tensor, *, mean: Sequence[float], std: Sequence[float], out: Tensor | None = None) -> Tensor:
    """``(images / 255 - mean) / std`` of (N, C, H, W) uint8 images, as one multiply-add, into ``out`` if given."""
    if images.dtype != torch.uint8:
        raise TypeError(f"normalize takes uint8 values 0 to 255, but was given {images.dtype}")
    if not images.shape[1] == len(mean) == len(std):
        found = f"{images.shape[1]} channels, {len(mean)} means and {len(std)} deviations"
        raise InputError(f"the images and the preprocessing have {found}. Give one of each per channel.")
    # In float64, rounded once: x * scale + offset is then as exact as float32 allows.
    deviation = torch.tensor(std, dtype=torch.float64, device="cpu")
    scale = to_device((1 / (255 * deviation)).float(), images.device)
    offset = to_device((-torch.tensor(mean, dtype=torch.float64, device="cpu") / deviation).float(), images.device)
    floats = images.float() if out is None else out.copy_(images)
    if floats.is_contiguous(memory_format=torch.channels_last):
        # A row of W * C numbers at a time: broadcasting over C = 3 alone would give up on vectors.
        width = floats.shape[3]
        values = floats.permute(0, 2, 3, 1).reshape(-1, width * len(mean))
        scale, offset = scale.repeat(width), offset.repeat(width)
    else:
        values, scale, offset = floats, scale.view(-1, 1, 1), offset.view(-1, 1, 1)
    torch.addcmul(offset, values, scale, out=values)  # in place: a second buffer costs more than the sums
    return floats


def mix(images: Tensor, labels: Tensor, setting: StepSettings, key: Key) -> tuple[Tensor, Tensor]:
    """Mixup, CutMix, both (a half of the batch each) or neither. Source: the released EfficientNetV2 code."""
    count, both = len(images), bool(setting.mixup_alpha and setting.cutmix_alpha)
    half = count // 2 if both else count
    parts = []
    if setting.mixup_alpha:
        parts.append(mixup(images[:half], labels[:half], alpha=setting.mixup_alpha, key=key.fold("mixup")))
    if setting.cutmix_alpha:
        rest = slice(half if both else 0, count)
        parts.append(cutmix(images[rest], labels[rest], alpha=setting.cutmix_alpha, key=key.fold("cutmix")))
    if len(parts) < 2:
        return parts[0] if parts else (images, labels)
    return torch.cat([parts[0][0], parts[1][0]]), torch.cat([parts[0][1], parts[1][1]])


def mixup(images: Tensor, labels: Tensor, *, alpha: float, key: Key) -> tuple[Tensor, Tensor]:
    """Blend every image and its label with its partner; the larger weight, from Beta(alpha, alpha), is its own.

    Source: arXiv:1710.09412; partner and folding as the released EfficientNetV2 code.
    """
    drawn = _beta(images, labels, alpha, key)
    weight = on_device(np.maximum(drawn, 1 - drawn), images)
    blended = torch.lerp(images.flip(0), images, weight.to(images.dtype)[:, None, None, None])
    return blended, torch.lerp(labels.flip(0), labels, weight.to(labels.dtype)[:, None])


def cutmix(images: Tensor, labels: Tensor, *, alpha: float, key: Key) -> tuple[Tensor, Tensor]:
    """Paste a box of its partner into every image, of a share 1 - w of its area, with w from Beta(alpha, alpha).

    Source: arXiv:1905.04899; partner and box as the released EfficientNetV2 code. Ours: each label is weighted by the
    area of its own box, in the released code by the mean area of the half batch.
    """
    side = np.sqrt(1 - _beta(images, labels, alpha, key))
    center = key.fold("centre").generator().random((2, len(images)))
    _, channels, height, width = images.shape
    rows, columns = _span(center[0], side, height), _span(center[1], side, width)
    share = on_device(rows.mean(1) * columns.mean(1), images).to(labels.dtype)[:, None]
    # A weight of exactly 0 or 1 per value, in the memory's own order: far faster than torch.where.
    across = on_device(columns.repeat(channels, axis=1).astype(np.float32), images)[:, None, :]
    box = (on_device(rows.astype(np.float32), images)[:, :, None] * across).to(images.dtype)
    pasted = torch.lerp(to_rows(images), to_rows(images).flip(0), box)
    return from_rows(pasted, channels), torch.lerp(labels, labels.flip(0), share)


def _beta(images: Tensor, labels: Tensor, alpha: float, key: Key) -> Floats:
    if alpha <= 0 or len(images) != len(labels):
        raise ValueError(f"alpha is {alpha:g} (above 0), for {len(images)} images and {len(labels)} labels")
    return key.generator().beta(alpha, alpha, len(images))


def _span(where: Floats, side: Floats, length: int) -> npt.NDArray[np.bool_]:
    """(N, length): True in a box of ``side * length`` around the pixel at ``where * length``."""
    center = np.floor(where * length)
    reach = np.floor(side * length) // 2
    place = np.arange(length)
    inside: npt.NDArray[np.bool_] = (place >= (center - reach)[:, None]) & (place < (center + reach)[:, None])
    return inside
