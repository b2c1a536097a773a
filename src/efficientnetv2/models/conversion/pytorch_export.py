"""Models as files of timm and torchvision."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from efficientnetv2.models.conversion import timm, torchvision
from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.conversion.weight_file import header_text
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.model_card import CARRIED
from efficientnetv2.models.pretrained import timm_crop_pct
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import write_atomically, write_text_atomically

SUFFIXES = (".safetensors", ".pth")  # of a state dict


def write_timm(path: Path, network: EfficientNet) -> None:
    """Write a state dict (``.safetensors``, ``.pth``), or a directory for ``timm.create_model("local-dir:PATH")``.

    Raises InputError if timm has no such model, or a state dict would lose the epsilon.
    """
    name, arguments = timm.model_name(network.architecture)
    names = tensor_names("timm", network.architecture)
    if path.suffix in SUFFIXES:
        if arguments:
            raise InputError(
                f"batch-norm epsilon is {network.architecture.batch_norm_epsilon:g}, not that of timm's {name}, and a "
                "state dict cannot say so. Give a folder for OUT: its config.json can"
            )
        _write_tensors(path, network, names, name)
        return
    if path.exists() and not path.is_dir():
        raise InputError(
            f"it is a file, but timm takes a folder. Give one, or a name in {' or '.join(SUFFIXES)}"
        )
    path.mkdir(exist_ok=True)
    _write_tensors(path / timm.WEIGHTS, network, names, name)
    config = _timm_config(name, arguments, network)
    write_text_atomically(path / timm.CONFIG, json.dumps(config, indent=2) + "\n")


def write_torchvision(path: Path, network: EfficientNet) -> None:
    """Write a state dict (``.pth``, ``.safetensors``) that torchvision's model loads strictly. Raises InputError."""
    if path.suffix not in SUFFIXES:
        raise InputError("a file for torchvision ends in .pth or .safetensors")
    name = torchvision.model_name(network.architecture)
    if not network.num_classes:
        raise InputError(f"torchvision's {name} always has a classifier, and this model has none")
    _write_tensors(path, network, tensor_names("torchvision", network.architecture), name)


def _write_tensors(path: Path, network: EfficientNet, names: Mapping[str, str], name: str) -> None:
    """Write tensors under the library's names, with the embedded header, whole or not at all."""
    tensors = {names[ours]: value.detach().cpu().contiguous() for ours, value in network.state_dict().items()}
    header = header_text(network)
    # timm ignores the architecture's name; our reader and people do not.
    metadata = {"format": "pt", "architecture": name, CARRIED: header}
    # PyTorch keeps the versions of modules here, by name, and looks up no other name.
    pickled = OrderedDict(tensors)
    pickled._metadata = OrderedDict({CARRIED: header})  # type: ignore[attr-defined]

    def fill(partial: Path) -> None:
        if path.suffix == ".safetensors":
            save_file(tensors, partial, metadata)
        else:
            torch.save(pickled, partial)

    try:
        write_atomically(path, fill)
    except (OSError, SafetensorError, RuntimeError) as error:  # a full disk raises any of them
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise InputError(f"{reason}. Make room, or give another place.") from error


def _timm_crop_pct(preprocessing: Preprocessing) -> float:
    """The ``crop_pct`` that gives the same resize in whole pixels, which timm rounds down."""
    if preprocessing.crop_mode == "border":  # nothing is cropped
        return 1.0
    image_size = preprocessing.image_size
    resize_px = round(image_size / preprocessing.crop_pct)
    crop_pct = image_size / resize_px
    return crop_pct if math.floor(image_size / crop_pct) == resize_px else math.nextafter(crop_pct, 0)


def rounded_crop(preprocessing: Preprocessing) -> float | None:
    """The ``crop_pct`` in timm if its whole pixels change it; otherwise None."""
    if preprocessing.crop_mode == "border":
        return None
    rounded = timm_crop_pct(preprocessing.image_size, _timm_crop_pct(preprocessing))
    return None if math.isclose(rounded, preprocessing.crop_pct, rel_tol=1e-9) else rounded


def _timm_config(name: str, arguments: dict[str, Any], network: EfficientNet) -> dict[str, Any]:
    preprocessing = network.preprocessing
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
            "input_size": [network.in_channels, preprocessing.image_size, preprocessing.image_size],
            "fixed_input_size": False,
            "interpolation": preprocessing.interpolation,
            "crop_pct": _timm_crop_pct(preprocessing),
            "crop_mode": preprocessing.crop_mode,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": network.num_classes,
            "pool_size": None,
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
    }
