"""Our models as those of ``keras.applications``, built with Keras on its chosen backend, PyTorch by default."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from efficientnetv2.architectures.registry import architecture as published_architecture
from efficientnetv2.architectures.registry import published
from efficientnetv2.models.conversion import embedded_metadata, keras_files
from efficientnetv2.models.conversion.keras_layers import CLASSES, CLASSIFIER, Layer, layers
from efficientnetv2.models.conversion.tensorflow import loading_tensorflow
from efficientnetv2.models.conversion.tensors import to_tensorflow
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.preprocessing import SYMMETRIC_MEAN, SYMMETRIC_STD, Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import write_atomically
from efficientnetv2.utils.optional_deps import import_optional

SUFFIXES = (".weights.h5", ".keras", ".h5")  # of files that Keras writes, the longest first

_LEAST_PX = 32  # of keras.applications


def write(path: str | Path, network: Network) -> None:
    """Write a model as Keras' own, whole or not at all.

    Args:
        path: Ends in ``.keras`` (the model with its preprocessing), ``.weights.h5`` (weights only) or ``.h5`` (the
            model in the legacy format). The input size is that of the preprocessing. Outputs are probabilities, as in
            Keras; without a classifier, pooled features.
        network: One that Keras has. Weights are written as 32-bit floats.

    Raises:
        InputError: Keras is not installed, has no such model, cannot express it in this format, or the file cannot be
            written.
    """
    path = Path(path)
    suffix = next((end for end in SUFFIXES if path.name.endswith(end)), None)
    if suffix is None:
        raise InputError(f"a file for Keras ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    name = _keras_network(network)
    assert isinstance(network, EfficientNet)
    _check_scaling(suffix, name, network.preprocessing)
    text = embedded_metadata.text_of(network)
    with _keras(path) as keras:
        model = _built(keras, name, network)
        _fill(model, network)

        def save(partial: Path) -> None:
            # Keras insists on its suffix.
            with tempfile.TemporaryDirectory(dir=partial.parent) as folder:
                whole = Path(folder) / f"network{suffix}"
                (model.save_weights if suffix == ".weights.h5" else model.save)(whole)
                keras_files.carry(whole, text)
                os.replace(whole, partial)

        try:
            write_atomically(path, save)
        except OSError as error:
            raise InputError(f"{path} can't be written: {error.strerror or error}") from error


def _keras_network(network: Network) -> str:
    """The published name of a model that Keras has."""
    refusal = "Keras has no such network"
    if not isinstance(network, EfficientNet):
        raise InputError(f"{refusal}; only EfficientNets of this package can be written for it.")
    if network.architecture.padding != "same":
        raise InputError(
            f"{refusal}. Its padding is symmetric, as of torchvision's weights, but Keras pads as TensorFlow "
            'does ("same"): the weights would lose accuracy there.'
        )
    for name in CLASSES:
        if published_architecture(name) == network.architecture:
            return name
    raise InputError(f"{refusal}. It has {', '.join(CLASSES)}, with a batch-norm epsilon of 0.001.")


def _check_scaling(suffix: str, name: str, preprocessing: Preprocessing) -> None:
    if preprocessing.image_px < _LEAST_PX:
        raise InputError(f"image_px is {preprocessing.image_px}, but Keras takes {_LEAST_PX} px or more")
    if suffix != ".weights.h5" or name.startswith("efficientnet_"):
        return  # the description holds it, and V1's is among the weights
    built_in = published(name).preprocessing
    mean, std = built_in.mean, built_in.std
    if preprocessing.channels != 3:  # Keras knows ImageNet's three alone
        mean, std = SYMMETRIC_MEAN[:1] * preprocessing.channels, SYMMETRIC_STD[:1] * preprocessing.channels
    if (preprocessing.mean, preprocessing.std) != (mean, std):
        raise InputError(
            f"a file of weights alone can't hold the preprocessing, and Keras would "
            f"apply its own (mean {mean}, std {std}) in place of this network's (mean {preprocessing.mean}, "
            f"std {preprocessing.std}). Write '.keras', which holds it."
        )


@contextmanager
def _keras(path: Path) -> Iterator[Any]:
    """Keras, without the noise of it and its backends."""
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    log = logging.getLogger("absl")
    level = log.level
    with warnings.catch_warnings(), loading_tensorflow():
        # Of Keras with numpy 2 and tensors of PyTorch; it works nonetheless.
        warnings.filterwarnings("ignore", message="__array__ implementation doesn't accept a copy keyword")
        # A legacy file is what was asked for.
        log.setLevel(logging.ERROR)
        try:
            yield import_optional("keras", "keras", f"Writing {path} for Keras")
        finally:
            log.setLevel(level)


def _built(keras: Any, name: str, network: EfficientNet) -> Any:
    """Keras' model with its own fresh weights."""
    preprocessing = network.preprocessing
    shape = (preprocessing.image_px, preprocessing.image_px, network.in_channels)
    options: dict[str, Any] = {"weights": None, "include_top": network.num_classes > 0, "input_shape": shape}
    if network.num_classes:
        options |= {"classes": network.num_classes, "classifier_activation": network.answer}
    else:
        options["pooling"] = "avg"
    builder = getattr(keras.applications, CLASSES[name])
    if name.startswith("efficientnet_"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This model usually expects 1 or 3 input channels")
            return builder(**options)
    # V2's own preprocessing has fixed constants; layers of the same classes hold any.
    pixels = keras.Input(shape)
    if (preprocessing.mean, preprocessing.std) == (
        SYMMETRIC_MEAN[:1] * network.in_channels,
        SYMMETRIC_STD[:1] * network.in_channels,
    ):
        scaled = keras.layers.Rescaling(1 / 128, offset=-1)(pixels)
    else:
        variance = [std**2 for std in preprocessing.std]
        scaled = keras.layers.Rescaling(1 / 255)(pixels)
        scaled = keras.layers.Normalization(mean=list(preprocessing.mean), variance=variance)(scaled)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This model usually expects 1 or 3 input channels")
        model = builder(**options, input_tensor=scaled, include_preprocessing=False)
    return keras.Model(pixels, model.output, name=model.name)


def _fill(model: Any, network: EfficientNet) -> None:
    """Set every weight of Keras' model."""
    state: dict[str, Tensor] = network.state_dict()
    rows = {row.name: row for row in layers(network.architecture)}
    for layer in model.layers:
        if type(layer).__name__ == "Normalization" and layer.weights:
            variance = [std**2 for std in network.preprocessing.std]
            layer.set_weights([np.array(network.preprocessing.mean), np.array(variance), np.array(0)])
        elif layer.weights and layer.name in rows:
            row = rows.pop(layer.name)
            layer.set_weights([_array(state, row, ours, theirs) for ours, theirs in row.tensors.items()])
    rows.pop(CLASSIFIER, None) if not network.num_classes else None
    assert not rows, f"Keras has no layers {sorted(rows)}"


def _array(state: Mapping[str, Tensor], row: Layer, ours: str, theirs: str) -> Any:
    return to_tensorflow(state[f"{row.ours}.{ours}"], row.kind(theirs))
