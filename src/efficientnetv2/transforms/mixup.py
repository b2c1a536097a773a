"""Mixup and CutMix: mix images (N, C, H, W) float and labels (N, K) float with those of the same ghost batch.

The partner of an image is that of the reversed batch; the middle one of an odd number stays as it is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.transforms.per_sample import Floats, from_rows, on_device, to_rows
from efficientnetv2.utils.rng import Key


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
