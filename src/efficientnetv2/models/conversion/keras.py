"""Read models of ``keras.applications``: EfficientNetV2 B0 to B3, S, M, L and EfficientNet B0 to B7. Needs h5py only.

Preprocessing: these models scale their pixels themselves. What they do becomes the mean and standard deviation of our
``Preprocessing`` (``keras_preprocessing``), so that a JPEG file gives equal logits on both sides.

Padding: V2 has TensorFlow's "same". V1 pads itself, by the map sizes at the time the model is built. Built with an
    input
size, that is "same" again. Built without one (``input_shape=(None, None, 3)``, the default of ``include_top=False``),
it pads every map as one of even size, which differs from "same" at every input that is not a multiple of 32 px. Here
the authors' padding is kept, and a note says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from efficientnetv2.models.conversion import embedded_metadata, keras_preprocessing
from efficientnetv2.models.conversion.keras_files import Contents, Stored, contents, opens
from efficientnetv2.models.conversion.keras_layers import (
    CLASSES,
    CLASSIFIER,
    OWN_NAMES,
    LayerClass,
    by_order,
    detect,
    published_name,
    tensor_names,
)
from efficientnetv2.models.conversion.keras_preprocessing import flat
from efficientnetv2.models.conversion.raw import RawWeights
from efficientnetv2.models.conversion.tensors import Kind, to_torch
from efficientnetv2.utils.errors import InputError, shorten
from efficientnetv2.utils.probability import Answer

_CONVOLUTIONS = frozenset({"Conv2D", "DepthwiseConv2D"})
# Layers that our models have too, or that change nothing in evaluation.
_KNOWN = frozenset(
    {
        "InputLayer", "BatchNormalization", "Activation", "GlobalAveragePooling2D", "Flatten", "Dropout", "Dense",
        "Identity", "GaussianNoise", "Activity", "Softmax",
    }
)  # fmt: skip
_LOGITS = ("linear", None)


def refuse_other_heads(path: Path, config: dict[str, Any], answer: Answer = "softmax") -> None:
    """Refuse a head that would be read without an error but give other outputs.

    Args:
        path: For the message.
        config: The model's description.
        answer: The activation that this package wrote the model with, softmax for other files.

    Raises:
        InputError: Several dense layers, another pooling or activation, a single output, or an unknown layer.
    """
    layers = [(str(one.get("class_name")), one.get("config") or {}) for one in flat(config)]
    last = max((place for place, (kind, _) in enumerate(layers) if kind in _CONVOLUTIONS), default=-1)
    dense = [str(inner.get("name", kind)) for kind, inner in layers[last + 1 :] if kind == "Dense"]
    if len(dense) > 1:
        raise InputError(
            f"{path}: its head has {len(dense)} dense layers ({shorten(dense)}), but networks here have one. Save the "
            "network before these layers, keras.Model(inputs, pooled).save(FILE), and train a new classifier on it."
        )
    answered = False
    for kind, inner in layers[last + 1 :]:
        name = inner.get("name", kind)
        if kind not in _KNOWN:
            raise InputError(
                f"{path}: its layer '{name}' ({kind}) stands behind the last convolution, where networks here average "
                "over the map and classify. Save the network without what is not so."
            )
        answered = answered or kind == "Dense"
        activation = _activation(inner)
        if answered and kind in ("Dense", "Activation") and activation not in (answer, *_LOGITS):
            raise InputError(
                f"{path}: its classifier '{name}' ends in {activation}, but networks here answer with one of several "
                "classes (softmax). Train it with a softmax of as many outputs as there are classes."
            )
        if kind == "Dense" and inner.get("units") == 1:
            raise InputError(
                f"{path}: its classifier '{name}' has one output. Networks here have one for each class: two for a yes "
                "or no. Train it with two."
            )


def _activation(config: dict[str, Any]) -> Any:
    said = config.get("activation")
    if isinstance(said, dict):  # a class such as {"class_name": "Softmax", ...}
        inner = said.get("config")
        said = inner if isinstance(inner, str) else str(said.get("class_name")).lower()
    return said


__all__ = ["opens", "published_name", "read", "tensor_names"]


def read(path: str | Path) -> RawWeights:
    """Read ``.weights.h5``, ``.keras`` or legacy ``.h5``, whatever the file's name.

    Returns:
        Tensors under Keras' layer names (``block1a_project_conv.kernel``; see ``tensor_names``), in PyTorch's layout.
        The one dense layer is ``predictions`` whatever the file calls it. Layers that scale pixels become
        ``preprocessing``.

    Raises:
        InputError: The file cannot be read, its numbered layers are of no model that Keras has, its preprocessing is
            not a mean and standard deviation, or its head differs.
    """
    path = Path(path)
    found = contents(path)
    named, notes = _named(path, found)
    tensors = {
        f"{layer}.{leaf}": to_torch(array, _kind(layer, leaf, array.ndim))
        for layer, arrays in named.items()
        for leaf, array in arrays.items()
    }
    name = detect({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    raw = RawWeights(
        path,
        "keras",
        tensors,
        model=_own_name(found.config),
        carried=embedded_metadata.parse(path, found.carried),
        notes=tuple(notes),
    )
    if name is None:
        return raw
    if found.config is not None:
        refuse_other_heads(path, found.config, "softmax" if raw.carried is None else raw.carried.answer)
    understood = keras_preprocessing.concluded if found.config is None else keras_preprocessing.described
    scaling = understood(path, found, name, tensors["stem_conv.kernel"].shape[1])
    return replace(
        raw,
        preprocessing=scaling.preprocessing if scaling.stated else None,
        stated=scaling.stated,
        notes=(*raw.notes, *scaling.notes),
    )


def _named(path: Path, found: Contents) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Layers with weights by name, their arrays by name; and notes."""
    with_arrays = [layer for layer in found.layers if layer.arrays and not _scales(layer)]
    named, notes = {}, []
    for layer, name in _own_names(path, with_arrays):
        dense = layer.layer_class == "dense" or _rank(layer) == 2
        if dense and name != CLASSIFIER and sum(_rank(other) == 2 for other in with_arrays) == 1:
            if layer.name:
                notes.append(f"the one dense layer, '{name}', is read as the classifier")
            name = CLASSIFIER
        if name in named:
            raise InputError(f"{path} has two layers called '{name}'; which one is meant can't be told.")
        named[name] = _leaves(layer)
    return named, notes


def _own_names(path: Path, stored: list[Stored]) -> Iterator[tuple[Stored, str]]:
    """Each layer and its name; if the file only numbers them, by the order of the model that fits."""
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
    """A layer's arrays by name, if the file numbers them: kernel first, scale and shift before statistics."""
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
    """Shape of a layer's first array in PyTorch's layout."""
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
    """Keras' name of the model in a description, or of a model within it; None for a name of the user's."""
    inner = config.get("config") if config else None
    if not isinstance(inner, dict):
        return None
    if inner.get("name") in OWN_NAMES.values():
        return str(inner["name"])
    parts = inner.get("layers")
    found = (_own_name(part) for part in parts if isinstance(part, dict)) if isinstance(parts, list) else ()
    return next((name for name in found if name), None)
