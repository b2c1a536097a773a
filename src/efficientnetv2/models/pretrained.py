"""Pretrained weights by name: source, license, preprocessing and accuracy. ``hub`` downloads them.

A name is a published model and a tag for the data that the weights were trained on:

- ``in1k``: ImageNet-1k. ``in21k``: ImageNet-21k. ``in21k_ft_in1k``: ImageNet-21k, then ImageNet-1k.
- ``aa_``, ``ra_``: AutoAugment, RandAugment. ``ap_``: AdvProp (arXiv:1911.09665).
- ``ns_jft_``: noisy student with JFT-300M (arXiv:1911.04252); ``_475`` at 475 px.
- ``tv_``, ``tv2_``: torchvision's first and second ImageNet-1k weights, with symmetric padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from efficientnetv2.architectures.registry import NAMES, get_model_info
from efficientnetv2.preprocessing import IMAGENET_MEAN, IMAGENET_STD, CropMode, Interpolation, Preprocessing
from efficientnetv2.utils.errors import InputError, did_you_mean

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean, std
IMAGENET: Statistics = (IMAGENET_MEAN, IMAGENET_STD)
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Remote:
    """A file of weights on a server of timm or torchvision."""

    name: str  # of the weights, for people
    source: Literal["timm", "torchvision"]
    repository: str  # timm's on the Hugging Face hub, at the newest commit; torchvision's folder on PyTorch's server
    file: str  # torchvision's names end in the first digits of the SHA-256


@dataclass(frozen=True)
class Pretrained(Remote):
    """Weights that ``create`` knows by name, ``model.tag``."""

    their_model: str  # the source's name of the model
    num_classes: int
    preprocessing: Preprocessing  # as the source states it; the accuracy was measured with it
    top1_percent: float | None  # on ImageNet's validation images, as the source publishes it; None for other classes
    license: str

    @property
    def model(self) -> str:
        """The published model."""
        return self.name.partition(".")[0]


def weight_names() -> tuple[str, ...]:
    """Every name, V2 first."""
    return tuple(sorted(_TABLE, key=lambda name: NAMES.index(name.partition(".")[0])))


def get_weights(name: str) -> Pretrained:
    """The entry of a name. Raises InputError for an unknown model or tag, with the nearest name and all tags."""
    if name in _TABLE:
        return _TABLE[name]
    model = get_model_info(name.partition(".")[0]).name
    known = [other for other in weight_names() if other.startswith(f"{model}.")]
    raise InputError(f"there are no pretrained weights '{name}'{did_you_mean(name, known)} Known: {', '.join(known)}.")


def ranked_weights(model: str) -> tuple[str, ...]:
    """Every name of a model's weights, the first choice for fine-tuning first. Raises InputError for an unknown model.

    By published top-1, so that ``in21k_ft_in1k`` precedes ``in1k``; timm's before torchvision's, since they have the
    padding and epsilon of the published model; last those without a top-1.
    """
    model = get_model_info(model).name
    known = [entry for name, entry in _TABLE.items() if name.startswith(f"{model}.")]
    known.sort(key=lambda entry: (entry.top1_percent is None, entry.source != "timm", -(entry.top1_percent or 0)))
    return tuple(entry.name for entry in known)


def timm_crop_pct(image_size: int, crop_pct: float) -> float:
    """Timm's ``crop_pct`` as our ``crop_pct``: timm resizes to whole pixels, rounded down, and crops.

    Raises ValueError for a ``crop_pct`` outside of (0, 1].

    Source: transforms_imagenet_eval of timm 1.0.31 (timm/data/transforms_factory.py).
    """
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct is {crop_pct}, but must be in (0, 1]")
    return image_size / math.floor(image_size / crop_pct)


def _timm(
    name: str, size: int, crop_pct: float, crop_mode: CropMode, statistics: Statistics, classes: int, top1: float | None
) -> Pretrained:
    return Pretrained(
        name=name,
        source="timm",
        repository=f"timm/tf_{name}",
        file="model.safetensors",
        their_model=f"tf_{name.partition('.')[0]}",
        num_classes=classes,
        preprocessing=Preprocessing(size, crop_mode, timm_crop_pct(size, crop_pct), "bicubic", *statistics),
        top1_percent=top1,
        license="Apache-2.0",
    )


def _torch(
    name: str, file: str, size: int, resize_px: int, interpolation: Interpolation, statistics: Statistics, top1: float
) -> Pretrained:
    return Pretrained(
        name=name,
        source="torchvision",
        repository="models",
        file=f"{file}.pth",
        their_model=name.partition(".")[0].replace("efficientnetv2", "efficientnet_v2"),
        num_classes=1000,
        preprocessing=Preprocessing(size, "center", size / resize_px, interpolation, *statistics),
        top1_percent=top1,
        license="BSD-3-Clause (torchvision's own; none stated for its weights)",
    )


# Repositories, sizes, crop mode, statistics, classes, license: the default_cfgs of timm 1.0.31
# (timm/models/efficientnet.py); the repository of tf_x with tag t is timm/tf_x.t. Top-1: its
# results/results-imagenet.csv (huggingface/pytorch-image-models, commit 4e5207c), measured by timm's author.
# fmt: off
_TIMM = [
    #     name                                   px   crop   crop mode  mean, std classes top-1
    _timm("efficientnetv2_b0.in1k",              224, 0.875, "center",   IMAGENET,  1000, 78.386),
    _timm("efficientnetv2_b1.in1k",              240, 0.882, "center",   IMAGENET,  1000, 79.518),
    _timm("efficientnetv2_b2.in1k",              260, 0.89,  "center",   IMAGENET,  1000, 80.226),
    _timm("efficientnetv2_b3.in1k",              300, 0.904, "center",   IMAGENET,  1000, 81.960),
    _timm("efficientnetv2_b3.in21k",             300, 0.904, "center",   HALF,     21843, None),
    _timm("efficientnetv2_b3.in21k_ft_in1k",     300, 0.9,   "squash",  HALF,      1000, 82.634),
    _timm("efficientnetv2_s.in1k",               384, 1.0,   "center",   HALF,      1000, 83.900),
    _timm("efficientnetv2_s.in21k",              384, 1.0,   "center",   HALF,     21843, None),
    _timm("efficientnetv2_s.in21k_ft_in1k",      384, 1.0,   "center",   HALF,      1000, 84.332),
    _timm("efficientnetv2_m.in1k",               480, 1.0,   "squash",  HALF,      1000, 85.208),
    _timm("efficientnetv2_m.in21k",              480, 1.0,   "squash",  HALF,     21843, None),
    _timm("efficientnetv2_m.in21k_ft_in1k",      480, 1.0,   "squash",  HALF,      1000, 86.014),
    _timm("efficientnetv2_l.in1k",               480, 1.0,   "squash",  HALF,      1000, 85.660),
    _timm("efficientnetv2_l.in21k",              480, 1.0,   "squash",  HALF,     21843, None),
    _timm("efficientnetv2_l.in21k_ft_in1k",      480, 1.0,   "squash",  HALF,      1000, 86.802),
    _timm("efficientnetv2_xl.in21k",             512, 1.0,   "squash",  HALF,     21843, None),
    _timm("efficientnetv2_xl.in21k_ft_in1k",     512, 1.0,   "squash",  HALF,      1000, 86.754),
    _timm("efficientnet_l2.ns_jft_in1k",         800, 0.96,  "center",   IMAGENET,  1000, 88.360),
    _timm("efficientnet_l2.ns_jft_in1k_475",     475, 0.936, "center",   IMAGENET,  1000, 88.246),
]

# V1 B0 to B8: size, crop_pct, and the top-1 of each tag.
_V1_TAGS = ("in1k", "aa_in1k", "ap_in1k", "ns_jft_in1k", "ra_in1k")
_V1: dict[str, tuple[int, float, *tuple[float | None, ...]]] = {
    "efficientnet_b0": (224, 0.875, 76.542, 76.882, 77.100, 78.680,   None),
    "efficientnet_b1": (240, 0.882, 78.546, 78.840, 79.288, 81.388,   None),
    "efficientnet_b2": (260, 0.89,  79.612, 80.074, 80.300, 82.412,   None),
    "efficientnet_b3": (300, 0.904, 80.878, 81.648, 81.842, 84.054,   None),
    "efficientnet_b4": (380, 0.922, 82.598, 83.040, 83.246, 85.156,   None),
    "efficientnet_b5": (456, 0.934, 83.170, 83.696, 84.258, 86.096, 83.834),
    "efficientnet_b6": (528, 0.942,   None, 84.124, 84.794, 86.476,   None),
    "efficientnet_b7": (600, 0.949,   None, 84.424, 85.132, 86.850, 84.926),
    "efficientnet_b8": (672, 0.954,   None,   None, 85.358,   None, 85.344),
}
_TIMM += [
    _timm(f"{model}.{tag}", size, crop, "center", HALF if tag == "ap_in1k" else IMAGENET, 1000, top1)
    for model, (size, crop, *by_tag) in _V1.items()
    for tag, top1 in zip(_V1_TAGS, by_tag, strict=True) if top1
]

# torchvision 0.29: url, transforms() and acc@1 of the weights of torchvision.models.efficientnet. It publishes
# them without a license of their own.
_TORCHVISION = [
    #      name                       file, without .pth                    px  resize interpolation mean, std top-1
    _torch("efficientnetv2_s.tv_in1k", "efficientnet_v2_s-dd5fe13b",         384, 384, "bilinear", IMAGENET, 84.228),
    _torch("efficientnetv2_m.tv_in1k", "efficientnet_v2_m-dc08266a",         480, 480, "bilinear", IMAGENET, 85.112),
    _torch("efficientnetv2_l.tv_in1k", "efficientnet_v2_l-59c71312",         480, 480, "bicubic",  HALF,     85.808),
    _torch("efficientnet_b0.tv_in1k",  "efficientnet_b0_rwightman-7f5810bc", 224, 256, "bicubic",  IMAGENET, 77.692),
    _torch("efficientnet_b1.tv_in1k",  "efficientnet_b1_rwightman-bac287d4", 240, 256, "bicubic",  IMAGENET, 78.642),
    _torch("efficientnet_b1.tv2_in1k", "efficientnet_b1-c27df63c",           240, 255, "bilinear", IMAGENET, 79.838),
    _torch("efficientnet_b2.tv_in1k",  "efficientnet_b2_rwightman-c35c1473", 288, 288, "bicubic",  IMAGENET, 80.608),
    _torch("efficientnet_b3.tv_in1k",  "efficientnet_b3_rwightman-b3899882", 300, 320, "bicubic",  IMAGENET, 82.008),
    _torch("efficientnet_b4.tv_in1k",  "efficientnet_b4_rwightman-23ab8bcd", 380, 384, "bicubic",  IMAGENET, 83.384),
    _torch("efficientnet_b5.tv_in1k",  "efficientnet_b5_lukemelas-1a07897c", 456, 456, "bicubic",  IMAGENET, 83.444),
    _torch("efficientnet_b6.tv_in1k",  "efficientnet_b6_lukemelas-24a108a5", 528, 528, "bicubic",  IMAGENET, 84.008),
    _torch("efficientnet_b7.tv_in1k",  "efficientnet_b7_lukemelas-c5b4e57e", 600, 600, "bicubic",  IMAGENET, 84.122),
]
# fmt: on

_TABLE = {entry.name: entry for entry in (*_TIMM, *_TORCHVISION)}
