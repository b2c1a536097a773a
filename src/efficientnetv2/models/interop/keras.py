"""Networks of ``keras.applications``: EfficientNetV2 B0 to B3, S, M, L and EfficientNet B0 to B7.

Reading needs h5py alone; writing builds the network with Keras, on whichever backend it has (PyTorch where none
was chosen).

Preprocessing: these networks scale their pixels by themselves. What they do becomes the mean and standard
deviation of our ``Preprocessing`` (``keras_scaling``), so that a JPEG file gives equal logits on both sides.

Padding: V2 says "same" and means TensorFlow's. V1 pads by itself, from the sizes of the maps at the time the
network is built. Built with an input size, even or odd, that is TensorFlow's "same" again. Built without
(``input_shape=(None, None, 3)``, the default of ``include_top=False``), it pads every map as one of even size,
and so differs from "same" wherever a map that is halved has an odd side: at every input that is no multiple of
32 px, 240, 260, 300 and 380 among them. Here the authors' padding is kept, and the reader says so.
"""

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

from efficientnetv2.arch.published import architecture as published_architecture
from efficientnetv2.arch.published import published
from efficientnetv2.base.errors import InputError
from efficientnetv2.base.extras import needed
from efficientnetv2.base.files import write_atomically
from efficientnetv2.base.preprocessing import SYMMETRIC_MEAN, SYMMETRIC_STD, Preprocessing
from efficientnetv2.models.interop import keras_scaling
from efficientnetv2.models.interop.keras_files import Contents, Stored, contents, opens
from efficientnetv2.models.interop.keras_layers import (
    CLASSES,
    OWN_NAMES,
    Layer,
    LayerClass,
    by_order,
    layers,
    published_name,
    recognise,
    tensor_names,
)
from efficientnetv2.models.interop.layout import Kind, to_tensorflow, to_torch
from efficientnetv2.models.interop.loading import loading_tensorflow
from efficientnetv2.models.interop.raw import Raw
from efficientnetv2.models.network import EfficientNet, Network

__all__ = ["opens", "published_name", "read", "tensor_names", "write"]

SUFFIXES = (".weights.h5", ".keras", ".h5")  # of files that Keras writes, the longest first

_LEAST_PX = 32  # of keras.applications
_CLASSIFIER = "predictions"


def read(path: str | Path) -> Raw:
    """Read ``.weights.h5``, ``.keras`` or legacy ``.h5``, whatever its name says.

    Args:
        path: of the file.

    Returns:
        Tensors under Keras' layer names (``block1a_project_conv.kernel``; see ``tensor_names``), in PyTorch's
        layout. The one dense layer is ``predictions`` whatever the file calls it. What scales the pixels is in
        ``preprocessing`` and not among the tensors.

    Raises:
        InputError: the file can't be read, its numbered layers are of no network that Keras has, or its
            preprocessing is no mean and standard deviation.
    """
    path = Path(path)
    found = contents(path)
    named, notes = _named(path, found)
    tensors = {
        f"{layer}.{leaf}": to_torch(array, _kind(layer, leaf, array.ndim))
        for layer, arrays in named.items()
        for leaf, array in arrays.items()
    }
    name = recognise({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    preprocessing: Preprocessing | None = None
    if name is not None:
        scaling = keras_scaling.concluded if found.config is None else keras_scaling.described
        preprocessing, more = scaling(path, found, name, tensors["stem_conv.kernel"].shape[1])
        notes += more
    return Raw(
        path, "keras", tensors, model=_own_name(found.config), preprocessing=preprocessing, notes=tuple(notes)
    )


def write(path: str | Path, network: Network) -> None:
    """Write a network as Keras' own, whole or not at all.

    Args:
        path: ends in ``.keras`` (the network, with its preprocessing), ``.weights.h5`` (weights alone) or
            ``.h5`` (the network in Keras' legacy format). The input size is that of the preprocessing; the
            outputs are probabilities (softmax), as Keras has it. Without a classifier, the pooled features.
        network: one that Keras has. Weights are written as 32-bit floats.

    Raises:
        InputError: Keras is not installed, has no such network, can't express it in this format, or the
            file can't be written.
    """
    path = Path(path)
    suffix = next((end for end in SUFFIXES if path.name.endswith(end)), None)
    if suffix is None:
        raise InputError(f"{path} can't be written for Keras: its name ends in none of {', '.join(SUFFIXES)}")
    name = _keras_network(network)
    assert isinstance(network, EfficientNet)
    _check_scaling(suffix, name, network.preprocessing)
    with _keras(path) as keras:
        model = _built(keras, name, network)
        _fill(model, network)

        def save(partial: Path) -> None:
            # Keras insists on its suffix.
            with tempfile.TemporaryDirectory(dir=partial.parent) as folder:
                whole = Path(folder) / f"network{suffix}"
                (model.save_weights if suffix == ".weights.h5" else model.save)(whole)
                os.replace(whole, partial)

        try:
            write_atomically(path, save)
        except OSError as error:
            raise InputError(f"{path} can't be written: {error.strerror or error}") from error


def _named(path: Path, found: Contents) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Layers with weights by their names, weights by theirs; and what the user should know."""
    with_arrays = [layer for layer in found.layers if layer.arrays and not _scales(layer)]
    named, notes = {}, []
    for layer, name in _own_names(path, with_arrays):
        dense = layer.layer_class == "dense" or _rank(layer) == 2
        if dense and name != _CLASSIFIER and sum(_rank(other) == 2 for other in with_arrays) == 1:
            if layer.name:
                notes.append(f"the one dense layer, '{name}', is read as the classifier")
            name = _CLASSIFIER
        if name in named:
            raise InputError(f"{path} has two layers called '{name}'; which one is meant can't be told.")
        named[name] = _leaves(layer)
    return named, notes


def _own_names(path: Path, stored: list[Stored]) -> Iterator[tuple[Stored, str]]:
    """Each layer and its name; where the file only numbers them, by the order of a network that fits."""
    unnamed = [layer for layer in stored if not layer.name]
    if not unnamed:
        yield from ((layer, layer.name) for layer in stored)
        return
    containers = [layer.container for layer in unnamed]
    trunk = max(set(containers), key=containers.count)
    ordered = sorted(unnamed, key=lambda layer: layer.number)
    kinds: tuple[LayerClass, ...] = ("conv2d", "depthwise_conv2d", "batch_normalization", "dense")
    by_class = {
        kind: [layer for layer in ordered if layer.layer_class == kind and layer.container == trunk]
        for kind in kinds
    }
    rows = by_order({kind: [_shape(layer) for layer in same] for kind, same in by_class.items()})
    if rows is None:
        counts = ", ".join(f"{len(same)} {kind}" for kind, same in by_class.items())
        raise InputError(
            f"{path} numbers its layers ({counts}), but their order and shapes are of none of the networks "
            f"that Keras has: {', '.join(CLASSES.values())}. Save the whole network as .keras or .h5."
        )
    for kind, same in by_class.items():
        names = (row.name for row in rows if row.layer_class == kind)
        yield from zip(same, names, strict=False)  # there may be no classifier
    known = {id(layer) for same in by_class.values() for layer in same}
    for layer in stored:
        if id(layer) not in known:
            yield layer, layer.name or f"{layer.layer_class}_{layer.number}"


def _leaves(layer: Stored) -> dict[str, Any]:
    """A layer's weights by name, where the file has numbers: kernel first, scale and shift before statistics."""
    names: tuple[str, ...] = ("kernel", "bias")
    if layer.layer_class == "batch_normalization":
        names = ("gamma", "beta", "moving_mean", "moving_variance")
    known = {str(index): name for index, name in enumerate(names)}
    return {known.get(key, key): array for key, array in layer.arrays.items()}


def _scales(layer: Stored) -> bool:
    return layer.layer_class == "normalization" or (
        not layer.layer_class and layer.name.startswith("normalization")
    )


def _rank(layer: Stored) -> int:
    kernel = layer.arrays.get("kernel", layer.arrays.get("0"))
    return 0 if kernel is None else kernel.ndim


def _shape(layer: Stored) -> tuple[int, ...]:
    """Of its first weight, in PyTorch's layout."""
    kernel = layer.arrays.get("0", np.empty(()))
    kinds: dict[str, Kind] = {"conv2d": "convolution", "depthwise_conv2d": "depthwise", "dense": "dense"}
    return tuple(to_torch(kernel, kinds.get(layer.layer_class, "vector")).shape)


def _kind(layer: str, leaf: str, axes: int) -> Kind:
    if leaf != "kernel":
        return "vector"
    if axes == 2:
        return "dense"
    return "depthwise" if "dwconv" in layer else "convolution"


def _own_name(config: Mapping[str, Any] | None) -> str | None:
    """What the description calls the network, itself or one within it; None if it is a name of the user's."""
    inner = config.get("config") if config else None
    if not isinstance(inner, dict):
        return None
    if inner.get("name") in OWN_NAMES.values():
        return str(inner["name"])
    parts = inner.get("layers")
    found = (_own_name(part) for part in parts if isinstance(part, dict)) if isinstance(parts, list) else ()
    return next((name for name in found if name), None)


def _keras_network(network: Network) -> str:
    """The published name of a network that Keras has."""
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
    """Keras, on PyTorch where nothing else was chosen, without the noise that it and its backends make."""
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
            yield needed("keras", "keras", f"Writing {path} for Keras")
        finally:
            log.setLevel(level)


def _built(keras: Any, name: str, network: EfficientNet) -> Any:
    """Keras' network with its own fresh weights."""
    preprocessing = network.preprocessing
    shape = (preprocessing.image_px, preprocessing.image_px, network.in_channels)
    options: dict[str, Any] = {"weights": None, "include_top": network.num_classes > 0, "input_shape": shape}
    if network.num_classes:
        options["classes"] = network.num_classes
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
    """Give Keras' network our weights, every one of them."""
    state: dict[str, Tensor] = network.state_dict()
    rows = {row.name: row for row in layers(network.architecture)}
    for layer in model.layers:
        if type(layer).__name__ == "Normalization" and layer.weights:
            variance = [std**2 for std in network.preprocessing.std]
            layer.set_weights([np.array(network.preprocessing.mean), np.array(variance), np.array(0)])
        elif layer.weights and layer.name in rows:
            row = rows.pop(layer.name)
            layer.set_weights([_array(state, row, ours, theirs) for ours, theirs in row.tensors.items()])
    rows.pop(_CLASSIFIER, None) if not network.num_classes else None
    assert not rows, f"Keras has no layers {sorted(rows)}"


def _array(state: Mapping[str, Tensor], row: Layer, ours: str, theirs: str) -> Any:
    return to_tensorflow(state[f"{row.ours}.{ours}"], row.kind(theirs))
