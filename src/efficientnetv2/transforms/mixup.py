"""Mixup and cutmix: blend pictures and labels within a group of pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.progressive.schedule import Setting
from efficientnetv2.transforms.per_sample import Floats, on_device
from efficientnetv2.utils.rng import Key


def mix(images: Tensor, labels: Tensor, setting: Setting, key: Key) -> tuple[Tensor, Tensor]:
    """Mixup, cutmix, both or neither, as the setting says; called once per group of pictures.

    With both on, mixup works on the first half of the group and cutmix on the second.

    Args:
        images: (N, C, H, W) float.
        labels: (N, K) float.
        setting: its ``mixup_alpha`` and ``cutmix_alpha``; 0 is off.
        key: of this group at this step.

    Returns:
        Mixed images and labels, shapes unchanged; the inputs themselves where both are off.

    Source: the released EfficientNetV2 code.
    """
    if setting.mixup_alpha and setting.cutmix_alpha:
        half = len(images) // 2
        first = mixup(images[:half], labels[:half], alpha=setting.mixup_alpha, key=key.fold("mixup"))
        second = cutmix(images[half:], labels[half:], alpha=setting.cutmix_alpha, key=key.fold("cutmix"))
        return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
    if setting.mixup_alpha:
        return mixup(images, labels, alpha=setting.mixup_alpha, key=key.fold("mixup"))
    if setting.cutmix_alpha:
        return cutmix(images, labels, alpha=setting.cutmix_alpha, key=key.fold("cutmix"))
    return images, labels


def mixup(images: Tensor, labels: Tensor, *, alpha: float, key: Key) -> tuple[Tensor, Tensor]:
    """Blend every picture and its label with another of the same group.

    The partner is the group reversed (of an odd number the middle one is its own, and stays as it is); each picture
    draws its own weight and keeps the larger share.

    Args:
        images: (N, C, H, W) float.
        labels: (N, K) float.
        alpha: of Beta(alpha, alpha), > 0. Callers skip the call when mixup is off.
        key: of this step; the same key gives the same blend.

    Returns:
        Blended images and labels, shapes unchanged.

    Raises:
        ValueError: alpha <= 0, or N differs.

    Source: arXiv:1710.09412; partner and folding as the released EfficientNetV2 code.
    """
    drawn = _beta(images, labels, alpha, key)
    weight = on_device(np.maximum(drawn, 1 - drawn), images)
    own = weight.to(images.dtype)[:, None, None, None]
    blended = torch.lerp(images.flip(0), images, own)
    return blended, torch.lerp(labels.flip(0), labels, weight.to(labels.dtype)[:, None])


def cutmix(images: Tensor, labels: Tensor, *, alpha: float, key: Key) -> tuple[Tensor, Tensor]:
    """Paste a box of another picture of the same group into every picture.

    The partner is the group reversed. Each picture draws its own weight w and a box of the picture's
    shape and 1 - w of its area around a random pixel; what lies over the edge is cut off, and the label
    is weighted by the area that was really pasted.

    Args:
        images: (N, C, H, W) float.
        labels: (N, K) float.
        alpha: of Beta(alpha, alpha), > 0. Callers skip the call when cutmix is off.
        key: of this step; the same key gives the same boxes.

    Returns:
        Mixed images and labels, shapes unchanged.

    Raises:
        ValueError: alpha <= 0, or N differs.

    Source: arXiv:1905.04899; partner and box as the released EfficientNetV2 code.
    Ours: each label is weighted by the area of its own image's box. The released code weights all labels of the half
        batch by the mean area of their boxes.
    """
    side = np.sqrt(1 - _beta(images, labels, alpha, key))
    centre = key.fold("centre").generator().random((2, len(images)))
    count, channels, height, width = images.shape
    rows = _span(centre[0], side, height)
    columns = _span(centre[1], side, width)
    share = on_device(rows.mean(1) * columns.mean(1), images).to(labels.dtype)[:, None]
    # A weight of exactly 0 or 1 per value, in the memory's own order: far faster than torch.where.
    pictures = images.permute(0, 2, 3, 1).reshape(count, height, width * channels)
    across = on_device(columns.repeat(channels, axis=1).astype(np.float32), images)[:, None, :]
    weight = on_device(rows.astype(np.float32), images)[:, :, None] * across
    pasted = torch.lerp(pictures, pictures.flip(0), weight.to(images.dtype))
    pasted = pasted.view(count, height, width, channels).permute(0, 3, 1, 2)
    return pasted, torch.lerp(labels, labels.flip(0), share)


def _beta(images: Tensor, labels: Tensor, alpha: float, key: Key) -> Floats:
    if alpha <= 0:
        raise ValueError(f"alpha is {alpha:g}, but Beta(alpha, alpha) needs it above 0")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} pictures, but {len(labels)} labels")
    return key.generator().beta(alpha, alpha, len(images))


def _span(where: Floats, side: Floats, length: int) -> npt.NDArray[np.bool_]:
    """(N, length): what lies in a box of ``side * length`` around the pixel at ``where * length``."""
    centre = np.floor(where * length)
    reach = np.floor(side * length) // 2
    place = np.arange(length)
    inside: npt.NDArray[np.bool_] = (place >= (centre - reach)[:, None]) & (place < (centre + reach)[:, None])
    return inside
