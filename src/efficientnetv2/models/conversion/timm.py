"""timm's names: of tensors, of networks, of preprocessing; its hub folders in both directions.

timm has most networks twice under the same tensor names: ``tf_efficientnetv2_s`` pads as TensorFlow does
and has batch-norm epsilon 1e-3, ``efficientnetv2_s`` pads symmetrically with epsilon 1e-5. Weights of one
give wrong answers in the other, and a file of tensors alone does not say whose they are.

Facts about timm here are those of timm 1.0.31; nothing here imports it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from efficientnetv2.architectures.registry import NAMES, architecture, published
from efficientnetv2.architectures.spec import Architecture, blocks
from efficientnetv2.models import pretrained
from efficientnetv2.models.conversion.tensors import shape_name, tensors_of, write_tensors
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.model_card import reason
from efficientnetv2.models.pretrained import HALF, IMAGENET, Statistics, timm_crop_fraction
from efficientnetv2.preprocessing import Framing, Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import write_text_atomically

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of a hub folder
SUFFIXES = (".safetensors", ".pth")  # of a state dict; with another name ``write`` makes a folder
# Fields of our preprocessing that a pretrained_cfg states.
STATED = ("image_px", "framing", "crop_fraction", "interpolation", "mean", "std")
_USUAL_CROP_PCT = 0.875  # where none is stated

PLAIN_EPSILON = 1e-5  # of the networks whose name has no tf_
# Without tf_ timm has all of V1, but of V2 only these: there B0 to B3 exist as tf_ alone.
_PLAIN = frozenset(name for name in NAMES if not name.startswith("efficientnetv2_b"))

# By the channels of stem and head: timm's own networks, which share the tensor names but no published table.
_RW = {
    (24, 1024): "efficientnetv2_rw_t",
    (24, 1792): "efficientnetv2_rw_s",
    (32, 2152): "efficientnetv2_rw_m",
}
_RW_REASON = (
    "it is a network of timm's author, drawn from the paper's figures before the authors' code was there: "
    "other widths and blocks than any published EfficientNetV2. Use it through timm itself: "
    "create('timm:{name}')"
)

# What a bare ``tf_`` name means to timm: the first of these that it has of it, as its default_cfgs are ordered.
_FIRST_TAGS = ("in21k_ft_in1k", "ns_jft_in1k_475", "ns_jft_in1k", "ap_in1k", "in1k")

# What may follow a name without a dot, timm's older way to say what the weights were trained on, and its tags of today
# (its register_model_deprecations; of AutoAugment's and RandAugment's the files alone were called so).
_OLD_TAGS = {
    "_ap": "ap_in1k",
    "_ns": "ns_jft_in1k",
    "_ns_475": "ns_jft_in1k_475",
    "_in21k": "in21k",
    "_in21ft1k": "in21k_ft_in1k",
    "_aa": "aa_in1k",
    "_ra": "ra_in1k",
    "_ra2": "ra2_in1k",
}

# Size, crop_pct, framing, mean and std at evaluation of the weights that timm has of its plain networks, those that the
# bare name means first: its default_cfgs (timm/models/efficientnet.py).
_PLAIN_WEIGHTS: Mapping[str, Mapping[str, tuple[int, float, Framing, Statistics]]] = {
    "efficientnet_b0": {
        "ra_in1k": (224, 0.875, "crop", IMAGENET),
        "ra4_e3600_r224_in1k": (256, 1.0, "crop", HALF),
    },
    "efficientnet_b1": {
        "ra4_e3600_r240_in1k": (288, 1.0, "crop", HALF),
        "ft_in1k": (256, 1.0, "crop", IMAGENET),
    },
    "efficientnet_b2": {"ra_in1k": (288, 1.0, "crop", IMAGENET)},
    "efficientnet_b3": {"ra2_in1k": (320, 1.0, "crop", IMAGENET)},
    "efficientnet_b4": {"ra2_in1k": (384, 1.0, "crop", IMAGENET)},
    "efficientnet_b5": {
        "sw_in12k_ft_in1k": (448, 1.0, "whole", IMAGENET),
        "sw_in12k": (416, 0.95, "crop", IMAGENET),
    },
}

_FRAMINGS: dict[str, Framing] = {
    "center": "crop",
    "squash": "whole",
    "border": "pad",
}  # timm's crop_mode -> our framing


def tensor_names(architecture: Architecture) -> dict[str, str]:
    """Every tensor name of our network, and timm's.

    Args:
        architecture: the table; padding and epsilon do not matter.
    """
    modules = {"stem.conv": "conv_stem", "stem.norm": "bn1"}
    layers: dict[int, int] = {}
    for index, block in enumerate(blocks(architecture)):
        layer = layers[block.stage] = layers.get(block.stage, -1) + 1
        ours, theirs = f"blocks.{index}", f"blocks.{block.stage}.{layer}"
        if block.kind == "fused":
            parts = {"spatial": "conv_exp", "project": "conv_pwl"} if block.expands else {"spatial": "conv"}
        elif block.expands:
            parts = {"expand": "conv_pw", "spatial": "conv_dw", "project": "conv_pwl"}
        else:
            parts = {"spatial": "conv_dw", "project": "conv_pw"}
        for number, (part, convolution) in enumerate(parts.items(), start=1):
            modules[f"{ours}.{part}.conv"] = f"{theirs}.{convolution}"
            modules[f"{ours}.{part}.norm"] = f"{theirs}.bn{number}"
        if block.se_channels is not None:
            modules[f"{ours}.se.reduce"] = f"{theirs}.se.conv_reduce"
            modules[f"{ours}.se.expand"] = f"{theirs}.se.conv_expand"
    modules |= {"head.conv": "conv_head", "head.norm": "bn2", "classifier": "classifier"}
    return tensors_of(modules)


def published_name(model: str) -> tuple[str, bool]:
    """Which published network timm means, and whether it is the ``tf_`` one.

    Args:
        model: as timm writes it: ``tf_efficientnetv2_s.in1k``, ``tf_efficientnet_l2_ns``, ``efficientnet_b0``.

    Raises:
        InputError: another network; of ``efficientnetv2_rw_*`` the message says why.
    """
    match = re.match(r"(tf_)?(efficientnet(?:v2)?_(?:[a-z]\d|xl|[sml]))(?=[._]|$)", model)
    variant = "" if match is None else model[match.end() :]
    tagged = variant in ("", *_OLD_TAGS) or variant.startswith(".")
    if "efficientnetv2_rw" in model:
        raise InputError(f"'{model}' cannot be read: {_RW_REASON.format(name=model.partition('.')[0])}.")
    if match is None or not tagged or match[2] not in NAMES or not (match[1] or match[2] in _PLAIN):
        if match is not None and tagged and match[2] in NAMES:
            raise InputError(f"timm has no network '{model}'; did you mean 'tf_{model}'?")
        raise InputError(
            f"'{model}' is none of timm's networks that can be read here: tf_efficientnetv2_*, "
            "tf_efficientnet_b0 to b8 and l2, and those of the same names without tf_ that timm has. Others that it "
            "has are used through timm itself: create('timm:NAME')."
        )
    return match[2], match[1] is not None


def tag_of(model: str) -> str:
    """Timm's tag of the weights that one of its names is of, an older one as of today; '' where it names none.

    Args:
        model: one that ``published_name`` knows.
    """
    name, _, tag = model.partition(".")
    return tag or next((today for old, today in _OLD_TAGS.items() if name.endswith(old)), "")


def has_plain(name: str) -> bool:
    """Whether timm has a published network without ``tf_`` too."""
    return name in _PLAIN


def architecture_of(name: str, *, tf: bool) -> Architecture:
    """The published table with the padding and the epsilon of timm's ``tf_`` network, or of its plain one."""
    table = architecture(name)
    return table if tf else replace(table, padding="symmetric", batch_norm_epsilon=PLAIN_EPSILON)


def default_preprocessing(
    name: str, *, tf: bool, tag: str = "", num_classes: int | None = None
) -> tuple[Preprocessing, str]:
    """What timm does with a network's pictures, where nothing was stated with the weights.

    That of its own weights, of all its ``tf_`` networks and of the plain ones that it has weights of. Else as published
    but for plain S to XL, which are bicubic with ImageNet's mean and std and cut the centre square.

    Args:
        name: of the published network.
        tf: timm's ``tf_`` one, or its plain one.
        tag: of timm's weights; '' is those that the bare name means there.
        num_classes: of the classifier; those of ``tf_`` weights of as many go before those that the bare name means.

    Returns:
        The preprocessing, and what timm calls the weights that it is of.

    Raises:
        InputError: timm has weights of that network, but none with that tag.
    """
    if tf:
        own = _of_tf_weights(name, tag, num_classes)
        return own, f"tf_{name}.{tag}" if tag else f"tf_{name}"
    if known := _PLAIN_WEIGHTS.get(name, {}):
        tag = tag or next(iter(known))
        if tag not in known:
            raise _no_tag(name, tag, known)
        image_px, crop_pct, framing, (mean, std) = known[tag]
        fraction = timm_crop_fraction(image_px, crop_pct)
        own = Preprocessing(
            image_px=image_px,
            framing=framing,
            crop_fraction=fraction,
            interpolation="bicubic",
            mean=mean,
            std=std,
        )
        return own, f"{name}.{tag}"
    preprocessing = published(name).preprocessing
    if name.startswith("efficientnetv2_") and name in _PLAIN:
        mean, std = IMAGENET
        preprocessing = replace(preprocessing, interpolation="bicubic", mean=mean, std=std, framing="crop")
    return preprocessing, name


def _of_tf_weights(name: str, tag: str, num_classes: int | None) -> Preprocessing:
    """Of timm's weights of a ``tf_`` network; arguments as of ``default_preprocessing``."""
    every = [pretrained.about(one) for one in pretrained.best(name)]
    known = {one.name.partition(".")[2]: one for one in every if one.source == "timm"}
    if not tag:
        tag = next(first for first in _FIRST_TAGS if first in known)
        as_many = [other for other, one in known.items() if one.num_classes == num_classes]
        if as_many and tag not in as_many:
            tag = as_many[0]
    if tag not in known:
        raise _no_tag(f"tf_{name}", tag, known)
    return known[tag].preprocessing


def _no_tag(theirs: str, tag: str, known: Iterable[str]) -> InputError:
    return InputError(f"timm has no weights '{theirs}.{tag}', but {', '.join(known)}. Leave the tag out.")


def stated_preprocessing(config: Mapping[str, Any], path: Path) -> tuple[Preprocessing, tuple[str, ...]]:
    """The preprocessing of evaluation that a ``pretrained_cfg`` states, and what of it is not exactly ours.

    Args:
        config: the ``pretrained_cfg`` of a config.json.
        path: of that file, for the message.

    Raises:
        InputError: a value that is no preprocessing.
    """
    notes = []
    mode = config.get("crop_mode") or "center"
    crop_pct = config.get("test_crop_pct") or config.get("crop_pct") or _USUAL_CROP_PCT
    interpolation: Any = config.get("interpolation") or "bicubic"  # checked by Preprocessing
    if interpolation not in ("bilinear", "bicubic"):
        notes.append(f"interpolation '{interpolation}' is not to be had here: bicubic instead")
        interpolation = "bicubic"
    try:
        framing = _FRAMINGS[mode]
        _, height, width = config.get("test_input_size") or config["input_size"]
        if height != width:
            raise ValueError(f"the input is {height}x{width} px, but a square is wanted")
        if framing == "pad" and crop_pct != 1:
            notes.append(
                f"a margin is cut off padded pictures there (crop_pct {crop_pct}); here they stay whole"
            )
        preprocessing = Preprocessing(
            image_px=height,
            framing=framing,
            crop_fraction=1.0 if framing == "pad" else timm_crop_fraction(height, crop_pct),
            interpolation=interpolation,
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: its pretrained_cfg states no preprocessing that could be followed ({reason(error)}). It needs "
            "input_size, mean and std as timm writes them."
        ) from error
    return preprocessing, tuple(notes)


def refuse_rw(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse timm's ``efficientnetv2_rw_*`` by name, where a file does not name itself.

    Raises:
        InputError: it is one.
    """
    stem, head = tensors.get("conv_stem.weight"), tensors.get("conv_head.weight")
    if stem is None or head is None or not (stem.ndim and head.ndim):
        return
    if (name := _RW.get((stem.shape[0], head.shape[0]))) is None:
        return
    raise InputError(f"{path} holds timm's '{name}', which cannot be read: {_RW_REASON.format(name=name)}.")


def model_name(architecture: Architecture) -> tuple[str, dict[str, Any]]:
    """What timm calls a network, and the arguments that make it build exactly that one.

    Args:
        architecture: a published table, with any padding and epsilon.

    Raises:
        InputError: timm has no such network.
    """
    name = shape_name(architecture)
    if name is None:
        raise InputError("timm has only the published networks, and this one is none of them")
    tf = architecture.padding == "same"
    if not tf and name not in _PLAIN:
        raise InputError(f"timm has {name} with TensorFlow's padding alone, and this one pads symmetrically")
    own = 1e-3 if tf else PLAIN_EPSILON
    epsilon = architecture.batch_norm_epsilon
    return f"tf_{name}" if tf else name, {} if epsilon == own else {"bn_eps": epsilon}


def write(path: str | Path, network: EfficientNet) -> None:
    """Write weights for timm.

    Args:
        path: ending in ``.safetensors`` or ``.pth`` a state dict for ``load_state_dict``; otherwise a folder,
            as timm's hub has them: ``timm.create_model("local-dir:PATH", pretrained=True)`` needs no more.
        network: with its preprocessing and class names.

    Raises:
        InputError: timm has no such network, a state dict alone would lose its epsilon, or a file stands where
            the folder should be.
    """
    path = Path(path)
    name, arguments = model_name(network.architecture)
    names = tensor_names(network.architecture)
    # timm ignores it; our reader, and a person who looks into the file, do not.
    metadata = {"architecture": name}
    if path.suffix in SUFFIXES:
        if arguments:
            raise InputError(
                f"batch-norm epsilon is {network.architecture.batch_norm_epsilon:g}, but timm's {name} has "
                "another, and a state dict cannot say so. Give a folder for OUT: its config.json can"
            )
        write_tensors(path, network, names, metadata)
        return
    if path.exists() and not path.is_dir():
        raise InputError(
            "there is a file of that name, and for timm a folder is written. Give the name of a folder, or one "
            f"ending in {' or '.join(SUFFIXES)} for the tensors alone"
        )
    path.mkdir(exist_ok=True)
    write_tensors(path / WEIGHTS, network, names, metadata)
    config = _config(name, arguments, network)
    write_text_atomically(path / CONFIG, json.dumps(config, indent=2) + "\n")


def _crop_pct(preprocessing: Preprocessing) -> float:
    """The number by which timm comes nearest to a crop: what it rounds down gives the whole pixels that are meant."""
    if preprocessing.framing == "pad":  # which cuts nothing here, whatever the fraction
        return 1.0
    image_px = preprocessing.image_px
    resize_px = round(image_px / preprocessing.crop_fraction)
    crop_pct = image_px / resize_px
    return crop_pct if math.floor(image_px / crop_pct) == resize_px else math.nextafter(crop_pct, 0)


def lost_crop(preprocessing: Preprocessing) -> float | None:
    """What becomes of the ``crop_fraction`` in timm, which knows whole pixels alone; None if it stays."""
    if preprocessing.framing == "pad":
        return None
    there = timm_crop_fraction(preprocessing.image_px, _crop_pct(preprocessing))
    return None if math.isclose(there, preprocessing.crop_fraction, rel_tol=1e-9) else there


def _config(name: str, arguments: dict[str, Any], network: EfficientNet) -> dict[str, Any]:
    preprocessing = network.preprocessing
    modes = {ours: theirs for theirs, ours in _FRAMINGS.items()}
    if network.in_channels != 3:
        arguments = arguments | {"in_chans": network.in_channels}
    return {
        "architecture": name,
        "num_classes": network.num_classes,
        "num_features": network.architecture.head_channels,
        **({"label_names": list(network.class_names)} if network.class_names else {}),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [network.in_channels, preprocessing.image_px, preprocessing.image_px],
            "fixed_input_size": False,
            "interpolation": preprocessing.interpolation,
            "crop_pct": _crop_pct(preprocessing),
            "crop_mode": modes[preprocessing.framing],
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": network.num_classes,
            "pool_size": None,
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
    }
