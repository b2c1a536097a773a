"""Read models of ``keras.applications``: EfficientNetV2 B0 to B3, S, M, L and EfficientNet B0 to B7. Needs h5py only.

V1 that was built without an input size pads every map as one of even size, which differs from the authors' padding at
inputs that are not a multiple of 32 px. Here the authors' is kept, with a note.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.models.conversion import keras_files, keras_preprocessing
from efficientnetv2.models.conversion.keras_files import StoredLayer
from efficientnetv2.models.conversion.keras_preprocessing import CONVOLUTIONS, flat_layers
from efficientnetv2.models.conversion.layouts import AxisOrder, Kind, Layer, fits, layer_name, layers, to_torch
from efficientnetv2.models.conversion.weight_file import WeightFile, parse_header
from efficientnetv2.utils.errors import InputError, shorten
from efficientnetv2.utils.probability import Activation

# Published models that Keras has, its classes, and its own names of the models ("efficientnetv2-b0", "efficientnetb0").
CLASSES = {
    **{f"efficientnetv2_{size}": f"EfficientNetV2{size.upper()}" for size in ("b0", "b1", "b2", "b3", "s", "m", "l")},
    **{f"efficientnet_b{size}": f"EfficientNetB{size}" for size in range(8)},
}
_KERAS_NAMES = {name.replace("_", "-" if "v2" in name else ""): name for name in CLASSES}
ALIASES = {name: name for name in CLASSES} | {cls: name for name, cls in CLASSES.items()} | _KERAS_NAMES

CLASSIFIER = "predictions"  # the layer

_LAYER_CLASSES: dict[Kind, str] = {
    "convolution": "conv2d",
    "depthwise": "depthwise_conv2d",
    "batch_norm": "batch_normalization",
    "dense": "dense",
}
# Layers that our models have too, or that change nothing in evaluation.
_KNOWN = frozenset(
    {
        "InputLayer", "BatchNormalization", "Activation", "GlobalAveragePooling2D", "Flatten", "Dropout", "Dense",
        "Identity", "GaussianNoise", "ActivityRegularization", "Softmax",
    }
)  # fmt: skip


def read(path: Path) -> WeightFile:
    """Read ``.weights.h5``, ``.keras`` or legacy ``.h5``, whatever the file's name.

    Tensors have Keras' layer names. The only dense layer is ``predictions`` whatever the file calls it. Raises
    InputError if the file cannot be read, its layers are of no model that Keras has, its preprocessing is not a mean
    and standard deviation, or its head differs.
    """
    found = keras_files.read(path)
    named, notes = _named_layers(path, found.layers)
    tensors = {
        f"{layer}.{leaf}": to_torch(array, _axis_order(layer, leaf, array.ndim))
        for layer, arrays in named.items()
        for leaf, array in arrays.items()
    }
    header = parse_header(path, found.header)
    file = WeightFile(path, "keras", tensors, _published_name(found.config), header=header, notes=tuple(notes))
    name = detect({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    if name is None:
        return file
    if found.config is not None:
        activation: Activation = "softmax" if header is None else header.activation
        refuse_other_heads(path, found.config, activation)
        file = replace(file, activation=activation)
    channels = tensors["stem_conv.kernel"].shape[1]
    preprocessing, stated, more = keras_preprocessing.scaling_of(path, found, name, channels)
    notes += more
    return replace(file, preprocessing=preprocessing if stated else None, stated=stated, notes=tuple(notes))


def refuse_other_heads(path: Path, config: dict[str, Any], expected: Activation = "softmax") -> None:
    """Raise InputError for a head that would be read without an error but give other outputs.

    ``expected`` is the activation that this package wrote the model with.
    """
    rows = [(str(layer.get("class_name")), layer.get("config") or {}) for layer in flat_layers(config)]
    last = max((place for place, (kind, _) in enumerate(rows) if kind in CONVOLUTIONS), default=-1)
    head = rows[last + 1 :]
    dense = [str(inner.get("name", kind)) for kind, inner in head if kind == "Dense"]
    faults = [f"has {len(dense)} dense layers ({shorten(dense)}), not one"] if len(dense) > 1 else []
    classifying = False
    for kind, inner in head:
        name, activation = inner.get("name", kind), _activation(inner)
        classifying = classifying or kind == "Dense"
        if kind not in _KNOWN:
            faults.append(f"has the layer '{name}' ({kind})")
        elif classifying and kind in ("Dense", "Activation") and activation not in (expected, "linear", None):
            faults.append(f"ends in '{name}' with {activation}, not {expected}")
        elif kind == "Dense" and inner.get("units") == 1:
            faults.append(f"has one output in '{name}', not one for each class")
    if faults:
        raise InputError(
            f"{path}: its head {faults[0]}. Save it without its head, keras.Model(inputs, pooled).save(FILE), and "
            "train a new classifier."
        )


def _activation(config: dict[str, Any]) -> Any:
    activation = config.get("activation")
    if isinstance(activation, dict):  # a class such as {"class_name": "Softmax", ...}
        inner = activation.get("config")
        return inner if isinstance(inner, str) else str(activation.get("class_name")).lower()
    return activation


def _named_layers(path: Path, stored: tuple[StoredLayer, ...]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Layers with weights by name, their arrays by name; and notes."""
    with_arrays = [layer for layer in stored if layer.arrays and not layer.is_a("normalization")]
    named: dict[str, dict[str, Any]] = {}
    notes = []
    for layer, name in _names(path, with_arrays):
        dense = layer.layer_class == "dense" or _rank(layer) == 2
        if dense and name != CLASSIFIER and sum(_rank(other) == 2 for other in with_arrays) == 1:
            if layer.name:
                notes.append(f"the only dense layer, '{name}', is read as the classifier")
            name = CLASSIFIER
        if name in named:
            raise InputError(f"{path} has two layers called '{name}'. Save the model again with other names.")
        # Arrays that the file numbers: kernel first, scale and shift before statistics.
        leaves: tuple[str, ...] = ("kernel", "bias")
        if layer.layer_class == "batch_normalization":
            leaves = ("gamma", "beta", "moving_mean", "moving_variance")
        numbered = {str(index): leaf for index, leaf in enumerate(leaves)}
        named[name] = {numbered.get(key, key): array for key, array in layer.arrays.items()}
    return named, notes


def _names(path: Path, stored: list[StoredLayer]) -> Iterator[tuple[StoredLayer, str]]:
    """Each layer and its name; if the file only numbers them, by the order of the model that fits."""
    unnamed = [layer for layer in stored if not layer.name]
    if not unnamed:
        yield from ((layer, layer.name) for layer in stored)
        return
    containers = [layer.container for layer in unnamed]
    trunk = max(set(containers), key=containers.count)
    # Keras numbers the layers of a class in the order of computation, which is the order of ``layouts.layers``.
    ordered = sorted(unnamed, key=lambda layer: layer.number)
    by_class = {
        kind: [layer for layer in ordered if layer.layer_class == kind and layer.container == trunk]
        for kind in _LAYER_CLASSES.values()
    }
    rows = next((rows for name in CLASSES if _same_order(by_class, rows := _rows(name))), None)
    if rows is None:
        counts = ", ".join(f"{len(same)} {kind}" for kind, same in by_class.items())
        raise InputError(
            f"{path} numbers its layers ({counts}) in an order and shapes that match no Keras model. Save the whole "
            "model as .keras or .h5."
        )
    for kind, same in by_class.items():
        yield from zip(same, rows[kind], strict=False)  # there may be no classifier
    known = {id(layer) for same in by_class.values() for layer in same}
    for layer in stored:
        if id(layer) not in known:
            yield layer, layer.name or f"{layer.layer_class}_{layer.number}"


@cache
def _rows(name: str) -> dict[str, dict[str, Layer]]:
    """A published model's layers by Keras' class and name, in order."""
    rows: defaultdict[str, dict[str, Layer]] = defaultdict(dict)
    table = get_architecture(name)
    for layer in layers(table):
        rows[_LAYER_CLASSES[layer.kind]][layer_name("keras", layer, table)] = layer
    return rows


def _same_order(by_class: Mapping[str, list[StoredLayer]], rows: Mapping[str, dict[str, Layer]]) -> bool:
    for kind, expected in rows.items():
        found = by_class[kind]
        if (kind != "dense" or found) and len(found) != len(expected):
            return False
        for layer, row in zip(found, expected.values(), strict=False):
            first = to_torch(layer.arrays.get("0", np.empty(())), row.kind)
            if not fits(first.shape, row.shape):
                return False
    return True


def detect(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The published model with these kernels, by Keras' names; other tensors than blocks' do not matter."""
    blocks = {key for key in shapes if key.startswith("block") and key.endswith("conv.kernel")}
    for model in CLASSES:
        expected: dict[str, tuple[int, ...]] = {}
        for kind, rows in _rows(model).items():
            leaf = "gamma" if kind == "batch_normalization" else "kernel"
            expected |= {f"{name}.{leaf}": row.shape for name, row in rows.items() if name != CLASSIFIER}
        # B0 is a part of B1, so nothing may be left over.
        if blocks <= expected.keys() and all(fits(shapes.get(key, ()), shape) for key, shape in expected.items()):
            return model
    return None


def _rank(layer: StoredLayer) -> int:
    kernel = layer.arrays.get("kernel", layer.arrays.get("0"))
    return 0 if kernel is None else kernel.ndim


def _axis_order(layer: str, leaf: str, axes: int) -> AxisOrder:
    if leaf != "kernel":
        return "vector"
    if axes == 2:
        return "dense"
    return "depthwise" if "dwconv" in layer else "convolution"


def _published_name(config: Mapping[str, Any] | None) -> str | None:
    """Keras' name of the model in a description, or of a model within it; None for a name of the user's."""
    inner = config.get("config") if config else None
    if not isinstance(inner, dict):
        return None
    if inner.get("name") in _KERAS_NAMES:
        return str(inner["name"])
    parts = inner.get("layers")
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict) and (name := _published_name(part)):
            return name
    return None
