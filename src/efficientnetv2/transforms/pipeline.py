"""From a uint8 batch and its labels to what the model trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from efficientnetv2.transforms.per_sample import Floats, as_ids, from_rows, on_device, to_rows
from efficientnetv2.transforms.randaugment import Colors, RandAugmentPreset, randaugment
from efficientnetv2.utils.device import to_device
from efficientnetv2.utils.errors import InputError
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


def normalize(
    images: Tensor, *, mean: Sequence[float], std: Sequence[float], out: Tensor | None = None
) -> Tensor:
    """``(images / 255 - mean) / std``, as one multiply-add on the device that holds the images.

    Args:
        images: (N, C, H, W) uint8.
        mean: C numbers for values in [0, 1].
        std: C numbers above 0 for values in [0, 1].
        out: (N, C, H, W) float32 to write to; None allocates one in the same memory format.

    Raises:
        InputError: The images have another number of channels than mean and std.
        TypeError: The images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"normalize takes uint8 values 0 to 255, but was given {images.dtype}")
    if not images.shape[1] == len(mean) == len(std):
        raise InputError(
            f"the images have {images.shape[1]} channels, but the preprocessing has {len(mean)} means and "
            f"{len(std)} deviations. Give one of each per channel."
        )
    # In float64, rounded once: x * scale + offset is then as exact as float32 allows.
    deviation = torch.tensor(std, dtype=torch.float64)
    scale = to_device((1 / (255 * deviation)).float(), images.device)
    offset = to_device((-torch.tensor(mean, dtype=torch.float64) / deviation).float(), images.device)
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
    """Mixup, CutMix, both or neither, as the setting says; called once per ghost batch.

    With both on, mixup works on the first half of the batch and CutMix on the second.

    Source: the released EfficientNetV2 code.
    """
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

    Raises:
        ValueError: ``alpha`` is not above 0, or N differs.

    Source: arXiv:1710.09412; partner and folding as the released EfficientNetV2 code.
    """
    drawn = _beta(images, labels, alpha, key)
    own = on_device(np.maximum(drawn, 1 - drawn), images)
    blended = torch.lerp(images.flip(0), images, own.to(images.dtype)[:, None, None, None])
    return blended, torch.lerp(labels.flip(0), labels, own.to(labels.dtype)[:, None])


def cutmix(images: Tensor, labels: Tensor, *, alpha: float, key: Key) -> tuple[Tensor, Tensor]:
    """Paste a box of its partner into every image.

    Each image draws its own weight w from Beta(alpha, alpha), and a box of the image's shape and 1 - w of its area
    around a random pixel. What is over the edge is cut off, and the label is weighted by the area that was pasted.

    Raises:
        ValueError: ``alpha`` is not above 0, or N differs.

    Source: arXiv:1905.04899; partner and box as the released EfficientNetV2 code.
    Ours: each label is weighted by the area of its own image's box. The released code weights all labels of the half
        batch by the mean area of their boxes.
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
        raise ValueError(
            f"alpha is {alpha:g}, for {len(images)} images and {len(labels)} labels, but must be above 0, and each "
            "image needs a label"
        )
    return key.generator().beta(alpha, alpha, len(images))


def _span(where: Floats, side: Floats, length: int) -> npt.NDArray[np.bool_]:
    """(N, length): True in a box of ``side * length`` around the pixel at ``where * length``."""
    center = np.floor(where * length)
    reach = np.floor(side * length) // 2
    place = np.arange(length)
    inside: npt.NDArray[np.bool_] = (place >= (center - reach)[:, None]) & (place < (center + reach)[:, None])
    return inside
