"""Write our models as those of timm, torchvision and Keras."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from efficientnetv2.architectures.registry import get_architecture, get_model_info
from efficientnetv2.models.conversion import keras_files, timm_config, torchvision_config
from efficientnetv2.models.conversion.keras import CLASSES, CLASSIFIER
from efficientnetv2.models.conversion.layouts import layer_name, layers, leaf_names, tensor_names, to_tensorflow
from efficientnetv2.models.conversion.tensorflow_checkpoint import loading_tensorflow
from efficientnetv2.models.conversion.weight_file import header_text
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.model_header import CARRIED
from efficientnetv2.models.pretrained import timm_crop_pct
from efficientnetv2.models.safetensors_io import independent
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.preprocessing import RGB, SYMMETRIC_MEAN, SYMMETRIC_STD, Preprocessing
from efficientnetv2.utils.errors import InputError, error_summary
from efficientnetv2.utils.io import write_atomically, write_text_atomically
from efficientnetv2.utils.optional_deps import import_optional

STATE_DICT_SUFFIXES = (".safetensors", ".pth")  # of a state dict

KERAS_SUFFIXES = (".weights.h5", ".keras", ".h5")  # of files that Keras writes, the longest first

_MIN_IMAGE_SIZE = 32  # of keras.applications
_WEIGHT_SUFFIXES = (".pt", ".bin", ".ckpt", ".tar", ".h5", ".keras")  # of weights in general


def write_timm(path: Path, network: EfficientNet | WrappedModel) -> None:
    """Write a state dict (``.safetensors``, ``.pth``), or a directory for ``timm.create_model("local-dir:PATH")``.

    Raises InputError if timm has no such model, or a state dict would lose the epsilon.
    """
    name, arguments, names = in_timm(network)
    if path.suffix in STATE_DICT_SUFFIXES:
        if arguments:
            assert isinstance(network, EfficientNet)  # others have no arguments
            raise InputError(
                f"a state dict for timm's {name} cannot state its batch-norm epsilon "
                f"{network.architecture.batch_norm_epsilon:g}. Give a folder, whose config.json can"
            )
        _write_tensors(path, network, names, name)
        return
    if path.exists() and not path.is_dir():
        raise InputError(f"it is a file, but timm takes a folder or a name in {' or '.join(STATE_DICT_SUFFIXES)}")
    if not path.exists() and path.suffix in _WEIGHT_SUFFIXES:
        raise InputError(f"a file for timm ends in {' or '.join(STATE_DICT_SUFFIXES)}, and a folder has no such suffix")
    path.mkdir(exist_ok=True)
    _write_tensors(path / timm_config.WEIGHTS, network, names, name)
    config = _timm_config(name, arguments, network)
    write_text_atomically(path / timm_config.CONFIG, json.dumps(config, indent=2) + "\n")


def in_timm(network: EfficientNet | WrappedModel) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Timm's name of a model, arguments that build it, and its tensor names by ours. Raises InputError if none fits."""
    if isinstance(network, EfficientNet):
        return *timm_config.model_name(network.architecture), tensor_names("timm", network.architecture)
    library, _, name = (network.source or "").partition(":")
    if library != "timm":
        raise InputError(f"timm has no model '{network.display_name()}'")
    return name, {}, {f"module.{tensor}": tensor for tensor in network.module.state_dict()}


def write_torchvision(path: Path, network: EfficientNet) -> None:
    """Write a state dict (``.pth``, ``.safetensors``) that torchvision's model loads strictly. Raises InputError."""
    if path.suffix not in STATE_DICT_SUFFIXES:
        raise InputError("a file for torchvision ends in .pth or .safetensors")
    name = torchvision_config.model_name(network.architecture)
    if not network.num_classes:
        raise InputError(f"torchvision's {name} always has a classifier, and this model has none")
    if network.in_channels != RGB:
        raise InputError(
            f"torchvision's {name} takes images of {RGB} channels, and this model of {network.in_channels}. Write it "
            "for timm"
        )
    _write_tensors(path, network, tensor_names("torchvision", network.architecture), name)


def _write_tensors(path: Path, network: EfficientNet | WrappedModel, names: Mapping[str, str], name: str) -> None:
    """Write tensors under the library's names, with the embedded header, whole or not at all."""
    tensors = independent({names[ours]: value for ours, value in network.state_dict().items()})
    header = header_text(network)

    def fill(partial: Path) -> None:
        if path.suffix == ".safetensors":
            # timm ignores the architecture's name; our reader and people do not.
            save_file(tensors, partial, {"format": "pt", "architecture": name, CARRIED: header})
            return
        # PyTorch keeps the versions of modules here, by name, and looks up no other name.
        pickled = OrderedDict(tensors)
        pickled._metadata = OrderedDict({CARRIED: header})  # type: ignore[attr-defined]
        torch.save(pickled, partial)

    try:
        write_atomically(path, fill)
    except (OSError, SafetensorError, RuntimeError) as error:  # a full disk raises any of them
        reason = getattr(error, "strerror", None) or error_summary(error)
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


def _timm_config(name: str, arguments: dict[str, Any], network: EfficientNet | WrappedModel) -> dict[str, Any]:
    preprocessing = network.preprocessing
    stems, classifiers = ["conv_stem"], ["classifier"]
    if isinstance(network, WrappedModel):
        stems, classifiers = list(network.stem_names), list(network.classifier_names)
        built = getattr(network.module, "pretrained_cfg", {})
        if built.get("fixed_input_size"):  # timm would take the default of its network
            arguments = arguments | {"img_size": list(built["input_size"][-2:])}
    if network.in_channels != RGB:
        arguments = arguments | {"in_chans": network.in_channels}
    return {
        "architecture": name,
        "num_classes": network.num_classes,
        "num_features": network.embed_dim,
        **({"label_names": list(network.class_names)} if network.class_names else {}),
        **({"model_args": arguments} if arguments else {}),
        # Read by transformers, whose pipeline then takes the sigmoid.
        **({"problem_type": timm_config.MULTI_LABEL} if network.activation == "sigmoid" else {}),
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
            # timm up to 1.0.29 replaces the weights of this layer where the channels are not 3.
            "first_conv": None if network.in_channels != RGB else stems[0] if len(stems) == 1 else stems,
            "classifier": classifiers[0] if len(classifiers) == 1 else classifiers,
        },
    }


def write_keras(path: Path, network: EfficientNet) -> None:
    """Write a model as Keras' own, whole or not at all, with 32-bit weights.

    ``path`` ends in ``.keras`` (the model with its preprocessing), ``.weights.h5`` (weights only) or ``.h5`` (the model
    in the legacy format). The input size is that of the preprocessing. Outputs are probabilities, as in Keras; without
    a classifier, pooled features. Raises InputError if Keras is not installed, has no such model, cannot express it in
    this format, or the file cannot be written.
    """
    suffix = next((end for end in KERAS_SUFFIXES if path.name.endswith(end)), None)
    if suffix is None:
        raise InputError(f"a file for Keras ends in {', '.join(KERAS_SUFFIXES)}")
    name = next((name for name in CLASSES if get_architecture(name) == network.architecture), None)
    if name is None:
        raise InputError(
            "Keras has no such model. It has padding 'same', batch-norm epsilon 0.001, and the architectures "
            f"{', '.join(CLASSES)}"
        )
    _check_preprocessing(suffix, name, network)
    text = header_text(network)
    with _keras(path) as keras:
        model = _build(keras, name, network)
        _fill(model, network)

        def save(partial: Path) -> None:
            # Keras insists on its suffix.
            with tempfile.TemporaryDirectory(dir=partial.parent) as folder:
                complete = Path(folder) / f"network{suffix}"
                (model.save_weights if suffix == ".weights.h5" else model.save)(complete)
                keras_files.embed(complete, text)
                os.replace(complete, partial)

        try:
            write_atomically(path, save)
        except OSError as error:
            raise InputError(f"{path} can't be written: {error.strerror or error}") from error


def _check_preprocessing(suffix: str, name: str, network: EfficientNet) -> None:
    preprocessing = network.preprocessing
    if preprocessing.image_size < _MIN_IMAGE_SIZE:
        raise InputError(f"image_size is {preprocessing.image_size}, but Keras takes {_MIN_IMAGE_SIZE} px or more")
    if suffix != ".weights.h5" or name.startswith("efficientnet_"):
        return  # the description holds it, and V1's is among the weights
    keras = get_model_info(name).preprocessing
    mean, std = keras.mean, keras.std
    if network.in_channels != 3:  # Keras has ImageNet's constants for three channels only
        mean, std = SYMMETRIC_MEAN[:1] * network.in_channels, SYMMETRIC_STD[:1] * network.in_channels
    if (preprocessing.mean, preprocessing.std) != (mean, std):
        raise InputError(
            f"a file of weights can't hold the preprocessing (mean {preprocessing.mean}, std {preprocessing.std}; "
            f"Keras would apply mean {mean}, std {std}). Write '.keras', which holds it"
        )


@contextmanager
def _keras(path: Path) -> Iterator[Any]:
    """Keras, without the warnings of Keras and its backends."""
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    log = logging.getLogger("absl")
    level = log.level
    with warnings.catch_warnings(), loading_tensorflow():
        # Of Keras with numpy 2 and tensors of PyTorch, and of models with other channels.
        warnings.filterwarnings("ignore", message="__array__ implementation doesn't accept a copy keyword")
        warnings.filterwarnings("ignore", message="This model usually expects 1 or 3 input channels")
        log.setLevel(logging.ERROR)  # about the legacy format
        try:
            yield import_optional("keras", "keras", f"Writing {path} for Keras")
        finally:
            log.setLevel(level)


def _build(keras: Any, name: str, network: EfficientNet) -> Any:
    """Keras' model with its own random weights."""
    preprocessing = network.preprocessing
    shape = (preprocessing.image_size, preprocessing.image_size, network.in_channels)
    options: dict[str, Any] = {"weights": None, "include_top": network.num_classes > 0, "input_shape": shape}
    if network.num_classes:
        options |= {"classes": network.num_classes, "classifier_activation": network.activation}
    else:
        options["pooling"] = "avg"
    builder = getattr(keras.applications, CLASSES[name])
    if name.startswith("efficientnet_"):
        return builder(**options)
    # V2's own preprocessing has fixed constants; layers of the same classes hold any.
    pixels = keras.Input(shape)
    symmetric = (SYMMETRIC_MEAN[:1] * network.in_channels, SYMMETRIC_STD[:1] * network.in_channels)
    if (preprocessing.mean, preprocessing.std) == symmetric:
        scaled = keras.layers.Rescaling(1 / 128, offset=-1)(pixels)
    else:
        variance = [std**2 for std in preprocessing.std]
        scaled = keras.layers.Rescaling(1 / 255)(pixels)
        scaled = keras.layers.Normalization(mean=list(preprocessing.mean), variance=variance)(scaled)
    model = builder(**options, input_tensor=scaled, include_preprocessing=False)
    return keras.Model(pixels, model.output, name=model.name)


def _fill(model: Any, network: EfficientNet) -> None:
    """Set every weight of Keras' model."""
    table, state = network.architecture, network.state_dict()
    rows = {layer_name("keras", row, table): row for row in layers(table)}
    for layer in model.layers:
        if type(layer).__name__ == "Normalization" and layer.weights:
            variance = [std**2 for std in network.preprocessing.std]
            layer.set_weights([np.array(network.preprocessing.mean), np.array(variance), np.array(0)])
        elif layer.weights and layer.name in rows:
            row = rows.pop(layer.name)
            arrays = [
                to_tensorflow(state[f"{row.module}.{leaf}"], row.kind if leaf == "weight" else "vector")
                for leaf in leaf_names("keras", row)  # in Keras' order
            ]
            layer.set_weights(arrays)
    if not network.num_classes:
        del rows[CLASSIFIER]
    assert not rows, f"Keras has no layers {sorted(rows)}"
