"""The preprocessing inside a Keras model, as a mean and a standard deviation on [0, 1].

``keras.applications`` models take pixels of 0 to 255 and start with layers that scale them:

* V2 B0 to B3: ``Rescaling(1 / 255)``, ``Normalization`` with ImageNet's constants in the description;
* V2 S, M, L: ``Rescaling(1 / 128, offset=-1)``;
* V1: ``Rescaling(1 / 255)``, ``Normalization`` with mean and variance among the weights. In the published files that
  "variance" is the standard deviation, and ``weights="imagenet"`` adds a ``Rescaling`` by 1 / sqrt(standard deviation)
  to compensate.

A description (``.keras``, legacy ``.h5``) states the layers; for weights alone these rules decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.architectures.registry import get_model_info
from efficientnetv2.models.conversion.keras_files import KerasFile
from efficientnetv2.models.conversion.layouts import to_torch
from efficientnetv2.preprocessing import IMAGENET_MEAN, IMAGENET_STD, SYMMETRIC_MEAN, SYMMETRIC_STD, Preprocessing
from efficientnetv2.utils.errors import InputError, short_repr

_Floats = npt.NDArray[np.float64]

_MIN_STD = 1e-7  # Keras' own, below which Normalization does not divide
_IMAGENET_ROOTS = tuple(1 / math.sqrt(std) for std in IMAGENET_STD)  # of weights="imagenet"
CONVOLUTIONS = frozenset({"Conv2D", "DepthwiseConv2D"})
# Before the first convolution, and without effect on the numbers in evaluation.
_NEUTRAL = frozenset({"InputLayer", "ZeroPadding2D", "Dropout", "Identity", "GaussianNoise", "ActivityRegularization"})
_UNSCALED = "the model does not scale images"
_EVEN_PADDING = (
    "built without an input size, it pads every map in Keras as one of even size; here odd ones are padded as "
    "TensorFlow and the authors do, so logits equal Keras' at multiples of 32 px"
)
_SIZE, _SCALE = ("image_size",), ("mean", "std")  # fields of the preprocessing
_NESTED = frozenset({"Functional", "Model", "Sequential"})


# The preprocessing, its fields that the file states (the others are as published), and notes.
Scaling = tuple[Preprocessing, tuple[str, ...], tuple[str, ...]]


def scaling_of(path: Path, file: KerasFile, name: str, channels: int) -> Scaling:
    """The preprocessing that a file states, for the published model ``name``. Refuses what is no mean and std."""
    if file.config is None:
        return _from_weights(path, file, name, channels)
    factor, offset = np.ones(channels), np.zeros(channels)
    base, sized, scaled = get_model_info(name).preprocessing, False, False
    notes: tuple[str, ...] = ()
    for layer in flat_layers(file.config):
        kind, config = str(layer.get("class_name")), layer.get("config")
        config = config if isinstance(config, dict) else {}
        if kind in CONVOLUTIONS:
            break
        if kind in ("Rescaling", "Normalization"):
            scaled = True
            scale, shift = _affine(path, kind, config, file, channels)
            factor, offset = factor * scale, offset * scale + shift
        elif kind == "InputLayer":
            shape = config.get("batch_shape", config.get("batch_input_shape"))
            sides = shape[1:3] if isinstance(shape, list) else []
            fixed = [side for side in sides if type(side) is int and side > 0]
            # A model within a model may be built without the size that the outer one has.
            if len(fixed) == 2 and fixed[0] == fixed[1]:
                base, sized = replace(base, image_size=fixed[0]), True
            notes = () if name.startswith("efficientnetv2") or len(fixed) == 2 else (_EVEN_PADDING,)
        elif kind not in _NEUTRAL and not (kind.startswith("Random") and kind != "RandomCrop"):
            raise InputError(
                f"{path}: its layer '{config.get('name', kind)}' ({kind}) before the first convolution is not a scale "
                "and offset per channel. Save the model without it."
            )
    stated = _SIZE if sized else ()
    if not scaled:
        return base, stated, (*notes, _UNSCALED)
    return _normalized(path, base, factor, offset), stated + _SCALE, notes


def _from_weights(path: Path, file: KerasFile, name: str, channels: int) -> Scaling:
    """The preprocessing of a file of weights only."""
    base = get_model_info(name).preprocessing
    rescalings = sum(layer.is_a("rescaling") for layer in file.layers)
    constants = _stored_constants(path, file)
    if constants is not None:
        mean, variance = (_per_channel(path, "normalization", part, channels) for part in constants)
        deviation = _deviation(variance)
        if channels == 3 and (rescalings == 2 or np.allclose(variance, IMAGENET_STD, rtol=1e-4)):
            deviation = deviation / _IMAGENET_ROOTS
        factor, offset = np.full(channels, 1 / 255) / deviation, -mean / deviation
        return _normalized(path, base, factor, offset), _SCALE, ()
    if not file.complete or rescalings == 0:
        return base, (), (_UNSCALED,) if file.complete else ()
    imagenet = any(layer.is_a("normalization") for layer in file.layers)
    mean_std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else (SYMMETRIC_MEAN, SYMMETRIC_STD)
    return replace(base, mean=mean_std[0], std=mean_std[1]).with_channels(channels), _SCALE, ()


def flat_layers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The layers of a description in order, nested models flattened."""
    inner = config.get("config")
    parts = inner.get("layers") if isinstance(inner, dict) else inner  # a list in oldest Sequentials
    for layer in parts if isinstance(parts, list) else []:
        if isinstance(layer, dict):
            if layer.get("class_name") in _NESTED:
                yield from flat_layers(layer)
            else:
                yield layer


def _affine(path: Path, kind: str, config: dict[str, Any], file: KerasFile, channels: int) -> tuple[_Floats, _Floats]:
    """Factor and offset of a layer, per channel."""
    name = config.get("name", kind)
    if kind == "Rescaling":
        scale, offset = config.get("scale", 1), config.get("offset", 0)
        return _per_channel(path, name, scale, channels), _per_channel(path, name, offset, channels)
    mean, variance = config.get("mean"), config.get("variance")
    if mean is None or variance is None:
        mean, variance = _stored_constants(path, file) or (None, None)
    if mean is None or config.get("invert"):
        raise InputError(
            f"{path}: its layer '{name}' (Normalization) is inverted or has no values. Save the model without it."
        )
    factor = 1 / _deviation(_per_channel(path, name, variance, channels))
    return factor, -_per_channel(path, name, mean, channels) * factor


def _per_channel(path: Path, layer: str, value: Any, channels: int) -> _Floats:
    """Numbers of a description (one, a list, or a serialized array) or of weights, for each channel."""
    if isinstance(value, dict):
        inner = value.get("config")
        value = inner.get("value") if isinstance(inner, dict) else value.get("value")
    try:
        return np.broadcast_to(np.asarray(value, dtype=np.float64).reshape(-1), channels)
    except (TypeError, ValueError) as error:
        count = len(value) if isinstance(value, list) else 1
        raise InputError(
            f"{path}: its layer '{layer}' has {count} values ({short_repr(value)}) for {channels} channels."
        ) from error


def _deviation(variance: _Floats) -> _Floats:
    """Standard deviation as Keras computes it; NaN, which ``_normalized`` refuses, for a variance below 0."""
    with np.errstate(invalid="ignore"):
        deviation: _Floats = np.maximum(np.sqrt(variance), _MIN_STD)
    return deviation


def _stored_constants(path: Path, file: KerasFile) -> tuple[_Floats, _Floats] | None:
    """Mean and variance of the Normalization layer among the weights."""
    found = [layer for layer in file.layers if layer.is_a("normalization") and layer.arrays]
    if not found:
        return None
    arrays = found[0].arrays
    mean, variance = arrays.get("mean", arrays.get("0")), arrays.get("variance", arrays.get("1"))
    if len(found) > 1 or mean is None or variance is None:
        raise InputError(f"{path} has {len(found)} Normalization layers with weights, not one with mean and variance.")
    # By way of PyTorch, since numpy has no bfloat16.
    return to_torch(mean, "vector").double().numpy(), to_torch(variance, "vector").double().numpy()


def _normalized(path: Path, base: Preprocessing, factor: _Floats, offset: _Floats) -> Preprocessing:
    """Mean and standard deviation on [0, 1] from ``factor * pixel + offset`` on 0 to 255."""
    with np.errstate(all="ignore"):
        std = 1 / (255 * factor)
        mean = -offset * std
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise InputError(
            f"{path}: its first layers multiply pixels by {factor.tolist()} and add {offset.tolist()}, so a standard "
            "deviation is not finite and above 0."
        )
    return replace(base, mean=_known_constant(mean), std=_known_constant(std))


def _known_constant(values: _Floats) -> tuple[float, ...]:
    """The nearby constant that was meant: 32-bit floats have changed its eighth digit."""
    for constants in (IMAGENET_MEAN, IMAGENET_STD, SYMMETRIC_MEAN[:1] * len(values)):
        if len(constants) == len(values) and np.allclose(values, constants, rtol=1e-6, atol=0):
            return constants
    return tuple(float(f"{value:.7g}") + 0.0 for value in values)  # no -0.0
