"""Names, tags, preprocessing and hub directories of timm's models (1.0.31). Nothing here imports timm.

timm has most models twice under the same tensor names: ``tf_efficientnetv2_s`` pads as TensorFlow does and has
batch-norm epsilon 1e-3, ``efficientnetv2_s`` pads symmetrically with epsilon 1e-5. Tensors do not show which.
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

from efficientnetv2.architectures.registry import NAMES, get_architecture, get_model_info, published_shape
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.models import pretrained
from efficientnetv2.models.pretrained import HALF, IMAGENET, Statistics, timm_crop_pct
from efficientnetv2.preprocessing import CropMode, Preprocessing
from efficientnetv2.utils.errors import InputError, error_summary, shorten
from efficientnetv2.utils.io import read_object_or_empty

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # in a hub directory
MULTI_LABEL = "multi_label_classification"  # ``problem_type`` of transformers in config.json
# Fields of the preprocessing in a pretrained_cfg.
STATED = ("image_size", "crop_mode", "crop_pct", "interpolation", "mean", "std")
_DEFAULT_CROP_PCT = 0.875

_PLAIN_EPSILON = 1e-5  # of models without tf_
# Without tf_, timm has all of V1 but not V2 B0 to B3.
PLAIN = frozenset(name for name in NAMES if not name.startswith("efficientnetv2_b"))

# timm's own models, by the channels of stem and head. They share the tensor names but have no published architecture.
_RW = {(24, 1024): "efficientnetv2_rw_t", (24, 1792): "efficientnetv2_rw_s", (32, 2152): "efficientnetv2_rw_m"}
_RW_REASON = (
    "timm's author made it before the official code was published, with other widths and blocks. Use it through timm: "
    "create('timm:{name}')."
)

# The weights of a ``tf_`` name without a tag are the first of these that exist (order of timm's default_cfgs).
_FIRST_TAGS = ("in21k_ft_in1k", "ns_jft_in1k_475", "ns_jft_in1k", "ap_in1k", "in1k")

# timm's former name suffixes and the tags that replaced them (its register_model_deprecations; those of AutoAugment and
# RandAugment were names of files only).
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

# Evaluation size, crop_pct, crop mode, and mean with std of timm's plain models by tag, the default tag first
# (untrained: without weights): default_cfgs in timm/models/efficientnet.py.
_PLAIN_WEIGHTS: Mapping[str, tuple[int, float, CropMode, Statistics]] = {
    "efficientnet_b0.ra_in1k": (224, 0.875, "center", IMAGENET),
    "efficientnet_b0.ra4_e3600_r224_in1k": (256, 1.0, "center", HALF),
    "efficientnet_b1.ra4_e3600_r240_in1k": (288, 1.0, "center", HALF),
    "efficientnet_b1.ft_in1k": (256, 1.0, "center", IMAGENET),
    "efficientnet_b2.ra_in1k": (288, 1.0, "center", IMAGENET),
    "efficientnet_b3.ra2_in1k": (320, 1.0, "center", IMAGENET),
    "efficientnet_b4.ra2_in1k": (384, 1.0, "center", IMAGENET),
    "efficientnet_b5.sw_in12k_ft_in1k": (448, 1.0, "squash", IMAGENET),
    "efficientnet_b5.sw_in12k": (416, 0.95, "center", IMAGENET),
    "efficientnetv2_s.untrained": (384, 1.0, "center", IMAGENET),
    "efficientnetv2_m.untrained": (416, 1.0, "center", IMAGENET),
    "efficientnetv2_l.untrained": (480, 1.0, "center", IMAGENET),
    "efficientnetv2_xl.untrained": (512, 1.0, "center", IMAGENET),
}

# Arguments of timm's models that change nothing in evaluation, or that the shapes of the tensors show as well.
_HARMLESS = {"in_chans", "num_classes", "drop_rate", "drop_path_rate", "img_size", "global_pool", "bn_momentum"}


def published_name(model: str) -> tuple[str, bool]:
    """The published model that a timm name means (``tf_efficientnet_l2_ns``), and whether it is the ``tf_`` one."""
    match = re.match(r"(tf_)?(efficientnet(?:v2)?_(?:[a-z]\d|xl|[sml]))(?=[._]|$)", model)
    variant = "" if match is None else model[match.end() :]
    tagged = variant in ("", *_OLD_TAGS) or variant.startswith(".")
    if "efficientnetv2_rw" in model:
        raise InputError(f"'{model}' cannot be read: {_RW_REASON.format(name=model.partition('.')[0])}")
    if match is None or not tagged or match[2] not in NAMES:
        raise InputError(f"'{model}' is not one of the timm models that can be read. Use create('timm:NAME').")
    if not match[1] and match[2] not in PLAIN:
        raise InputError(f"timm has no model '{model}'; did you mean 'tf_{model}'?")
    return match[2], match[1] is not None


def tag_of(model: str) -> str:
    """The tag in a timm name, an old suffix as its present tag; "" if it has none."""
    name, _, tag = model.partition(".")
    return tag or next((new for old, new in _OLD_TAGS.items() if name.endswith(old)), "")


def architecture_of(name: str, *, tf: bool) -> Architecture:
    """The published architecture with the padding and epsilon of timm's ``tf_`` model, or of its plain one."""
    table = get_architecture(name)
    return table if tf else replace(table, padding="symmetric", batch_norm_epsilon=_PLAIN_EPSILON)


def default_preprocessing(
    name: str, *, tf: bool, tag: str = "", num_classes: int | None = None
) -> tuple[Preprocessing, str]:
    """Timm's preprocessing of a published model, if the file states none, and the name of the weights it belongs to.

    Plain B6 to L2, of which timm has no weights, have the published one. Without a tag, ``tf_`` weights with as many
    classes go first. Raises InputError for a wrong tag.
    """
    if tf:
        weights = [pretrained.get_weights(full_name) for full_name in pretrained.ranked_weights(name)]
        entries = {entry.name.partition(".")[2]: entry for entry in weights if entry.source == "timm"}
        title = f"tf_{name}.{tag}" if tag else f"tf_{name}"
        if not tag:
            tag = next(first for first in _FIRST_TAGS if first in entries)
            same_classes = [other for other, entry in entries.items() if entry.num_classes == num_classes]
            if same_classes and tag not in same_classes:
                tag = same_classes[0]
        _check_tag(f"tf_{name}", tag, entries)
        return entries[tag].preprocessing, title
    known = {key.partition(".")[2]: row for key, row in _PLAIN_WEIGHTS.items() if key.startswith(f"{name}.")}
    if known:
        tag = tag or next(iter(known))
        _check_tag(name, tag, known)
        image_size, crop_pct, crop_mode, (mean, std) = known[tag]
        crop = timm_crop_pct(image_size, crop_pct)
        return Preprocessing(image_size, crop_mode, crop, "bicubic", mean, std), f"{name}.{tag}"
    return get_model_info(name).preprocessing, name


def _check_tag(model: str, tag: str, known: Iterable[str]) -> None:
    if tag not in known:
        raise InputError(f"timm has no weights '{model}.{tag}', but {', '.join(known)}. Leave the tag out.")


def stated_preprocessing(config: Mapping[str, Any], path: str | Path) -> tuple[Preprocessing, tuple[str, ...]]:
    """The evaluation preprocessing of a ``pretrained_cfg``, and notes on what cannot be followed exactly.

    Raises InputError, with ``path``, for a value that is not a preprocessing.
    """
    notes = []
    crop_mode: Any = config.get("crop_mode") or "center"  # checked by Preprocessing
    crop_pct = config.get("test_crop_pct") or config.get("crop_pct") or _DEFAULT_CROP_PCT
    interpolation: Any = config.get("interpolation") or "bicubic"  # checked by Preprocessing
    if interpolation not in ("bilinear", "bicubic"):
        notes.append(f"interpolation '{interpolation}' is not available here: bicubic instead")
        interpolation = "bicubic"
    try:
        _, height, width = config.get("test_input_size") or config["input_size"]
        if height != width:
            raise ValueError(f"the input is {height}x{width} px, but must be square")
        if crop_mode == "border" and crop_pct != 1:
            notes.append(f"timm cuts a margin off padded images (crop_pct {crop_pct}); here they stay whole")
        if crop_mode != "border" and 1 < crop_pct <= 2:
            notes.append(f"timm adds a black margin (crop_pct {crop_pct}); here images fill the input")
            crop_pct = 1.0
        preprocessing = Preprocessing(
            image_size=height,
            crop_mode=crop_mode,
            crop_pct=1.0 if crop_mode == "border" else timm_crop_pct(height, crop_pct),
            interpolation=interpolation,
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: its pretrained_cfg states no valid preprocessing ({error_summary(error)}). It needs input_size, "
            "mean and std as timm writes them."
        ) from error
    return preprocessing, tuple(notes)


def is_config(path: Path) -> bool:
    """Whether a file is the config.json of a hub directory of timm, and not of another program."""
    plain = read_object_or_empty(path) if path.is_file() else {}
    return isinstance(plain.get("architecture"), str) and bool({"pretrained_cfg", "input_size"} & plain.keys())


def read_config(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the config.json of a hub directory states, as fields of ``WeightFile``; and notes."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}). Download it again, or remove it.") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise InputError(
            f"{path} names no 'architecture', as timm's do: it is of another program. Give weights of timm."
        )
    stated, arguments = config.get("pretrained_cfg", config), config.get("model_args") or {}
    for name, value in (("pretrained_cfg", stated), ("model_args", arguments)):
        if not isinstance(value, dict):
            raise InputError(f"{path}: {name} is not an object, as timm's are. Give the weight file instead.")
    unknown = sorted(set(arguments) - _HARMLESS - {"bn_eps"})
    unknown += ["global_pool"] * (arguments.get("global_pool", "avg") != "avg")
    if unknown:
        raise InputError(f"{path}: model_args changes the model by {shorten(unknown)}. Use it through timm.")
    epsilon = arguments.get("bn_eps")
    if epsilon is not None and not (type(epsilon) in (int, float) and math.isfinite(epsilon) and epsilon > 0):
        raise InputError(f"{path}: model_args has bn_eps {epsilon!r}, but must be a finite number above 0.")
    labels = config.get("label_names") or stated.get("label_names") or stated.get("labels") or ()
    try:
        if isinstance(labels, Mapping):  # timm allows {"0": name, ...}
            labels = [labels[number] for number in sorted(labels, key=int)]
        if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) for label in labels):
            raise ValueError("it is not a list of names")
    except ValueError as error:
        raise InputError(f"{path}: label_names cannot be read ({error}). Correct or remove it.") from error
    preprocessing, notes = stated_preprocessing(stated, path)
    fields = {
        "model": config["architecture"],
        "batch_norm_epsilon": None if epsilon is None else float(epsilon),
        "preprocessing": preprocessing,
        "stated": STATED,
        "class_names": tuple(labels),
        "activation": "sigmoid" if config.get("problem_type") == MULTI_LABEL else None,
    }
    return fields, notes


def refuse_rw(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse timm's ``efficientnetv2_rw_*``, recognized by their widths."""
    stem, head = (tensors.get(f"conv_{end}.weight") for end in ("stem", "head"))
    if stem is None or head is None or not (stem.ndim and head.ndim):
        return
    if (name := _RW.get((stem.shape[0], head.shape[0]))) is not None:
        raise InputError(f"{path} holds timm's '{name}', which cannot be read: {_RW_REASON.format(name=name)}")


def model_name(table: Architecture) -> tuple[str, dict[str, Any]]:
    """Timm's name of a model with any padding and epsilon, and the arguments that build exactly this one."""
    name = published_shape(table)
    if name is None and table.global_pool != "avg":
        raise InputError(f"timm has no global_pool '{table.global_pool}'")
    if name is None:
        raise InputError("timm has only the published models, and this is not one of them")
    tf = table.padding == "same"
    if not tf and name not in PLAIN:
        raise InputError(f"timm has {name} only with TensorFlow's padding, and this one pads symmetrically")
    theirs, epsilon = 1e-3 if tf else _PLAIN_EPSILON, table.batch_norm_epsilon
    return f"tf_{name}" if tf else name, {} if epsilon == theirs else {"bn_eps": epsilon}
