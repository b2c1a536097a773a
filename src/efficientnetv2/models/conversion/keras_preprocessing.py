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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.architectures.registry import published
from efficientnetv2.models.conversion.keras_files import Contents, Stored
from efficientnetv2.models.conversion.tensors import to_torch
from efficientnetv2.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SYMMETRIC_MEAN,
    SYMMETRIC_STD,
    Preprocessing,
)
from efficientnetv2.utils.errors import InputError

_Floats = npt.NDArray[np.float64]

_LEAST_STD = 1e-7  # Keras' own, below which Normalization does not divide
_IMAGENET_ROOTS = tuple(1 / math.sqrt(std) for std in IMAGENET_STD)  # of weights="imagenet"
# Before the first convolution, and without effect on the numbers in evaluation.
_NEUTRAL = frozenset({"InputLayer", "ZeroPadding2D", "Dropout", "Identity", "GaussianNoise", "Activity"})
_UNSCALED = "the network does not scale pictures by itself"
_SIZE, _SCALE = ("image_px",), ("mean", "std")  # fields of the preprocessing
_NESTED = frozenset({"Functional", "Model", "Sequential"})


@dataclass(frozen=True)
class Scaling:
    """The preprocessing of a file: fields that are not ``stated`` are as published."""

    preprocessing: Preprocessing
    stated: tuple[str, ...]
    notes: tuple[str, ...] = ()


def described(path: Path, contents: Contents, name: str, channels: int) -> Scaling:
    """The preprocessing that a description states, for the published model ``name``.

    Raises:
        InputError: A layer before the first convolution is not a scale and offset per channel.
    """
    assert contents.config is not None
    factor, offset = np.ones(channels), np.zeros(channels)
    base, sized, scaled = published(name).preprocessing, False, False
    notes: tuple[str, ...] = ()
    for kind, config in _beginning(contents.config):
        if kind in ("Rescaling", "Normalization"):
            scaled = True
            scale, shift = _affine(path, kind, config, contents, channels)
            factor, offset = factor * scale, offset * scale + shift
        elif kind == "InputLayer":
            # A network within one may be built without the size that the one around it has.
            base, fixed, notes = _sized(base, config, name)
            sized = sized or fixed
        elif kind not in _NEUTRAL and not (kind.startswith("Random") and kind != "RandomCrop"):
            raise InputError(
                f"{path}: its layer '{config.get('name', kind)}' ({kind}) stands before the first "
                "convolution, but is no scale and offset per channel, so it can't be told as a mean and a "
                "standard deviation. Save the network without it, and do its work before."
            )
    stated = _SIZE if sized else ()
    if not scaled:
        return Scaling(base, stated, (*notes, _UNSCALED))
    return Scaling(_made(path, base, factor, offset), stated + _SCALE, notes)


def concluded(path: Path, contents: Contents, name: str, channels: int) -> Scaling:
    """The preprocessing of a file of weights only; arguments as of ``described``."""
    base = published(name).preprocessing
    rescalings = _count(contents, "rescaling")
    normalization = _normalization(path, contents)
    if normalization is not None:
        mean, variance = (_per_channel(path, "normalization", part, channels) for part in normalization)
        factor, offset = np.full(channels, 1 / 255), np.zeros(channels)
        deviation = _deviation(variance)
        published_file = channels == 3 and np.allclose(variance, IMAGENET_STD, rtol=1e-4)
        if channels == 3 and (rescalings == 2 or published_file):
            deviation = deviation / _IMAGENET_ROOTS
        return Scaling(_made(path, base, factor / deviation, offset - mean / deviation), _SCALE)
    if not contents.complete:
        return Scaling(base, ())
    if rescalings == 0:
        return Scaling(base, (), (_UNSCALED,))
    imagenet = _count(contents, "normalization") > 0
    mean_std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else (SYMMETRIC_MEAN, SYMMETRIC_STD)
    base = replace(base, mean=mean_std[0], std=mean_std[1]).with_channels(channels)
    return Scaling(base, _SCALE)


def _beginning(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Class and configuration of every layer before the first convolution, nested models flattened."""
    for layer in flat(config):
        kind, inner = str(layer.get("class_name")), layer.get("config")
        if kind in ("Conv2D", "DepthwiseConv2D"):
            return
        yield kind, inner if isinstance(inner, dict) else {}


def flat(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The layers of a description in order, nested models flattened."""
    inner = config.get("config")
    parts = inner.get("layers") if isinstance(inner, dict) else inner  # a list in oldest Sequentials
    for layer in parts if isinstance(parts, list) else []:
        if isinstance(layer, dict):
            if layer.get("class_name") in _NESTED:
                yield from flat(layer)
            else:
                yield layer


def _affine(
    path: Path, kind: str, config: dict[str, Any], contents: Contents, channels: int
) -> tuple[_Floats, _Floats]:
    """Factor and offset of a layer, per channel."""
    name = config.get("name", kind)
    if kind == "Rescaling":
        scale, shift = (
            _per_channel(path, name, _numbers(path, config.get(key, usual)), channels)
            for key, usual in (("scale", 1), ("offset", 0))
        )
    else:
        mean, variance = config.get("mean"), config.get("variance")
        if mean is None or variance is None:
            stored = _normalization(path, contents)
            if stored is None:
                raise InputError(f"{path}: its Normalization layer has neither constants nor weights.")
            mean, variance = stored
        if config.get("invert"):
            raise InputError(f"{path}: its Normalization layer is inverted. Save the network without it.")
        scale = 1 / _deviation(_per_channel(path, name, _numbers(path, variance), channels))
        shift = -_per_channel(path, name, _numbers(path, mean), channels) * scale
    return scale, shift


def _per_channel(path: Path, layer: str, numbers: _Floats, channels: int) -> _Floats:
    if numbers.size not in (1, channels):
        raise InputError(
            f"{path}: its layer '{layer}' has {numbers.size} values for {channels} channels, so it is no scale and "
            "offset per channel."
        )
    return np.broadcast_to(numbers.reshape(-1), channels)


def _deviation(variance: _Floats) -> _Floats:
    """Standard deviation as Keras computes it; NaN, which ``_made`` refuses, for a variance below 0."""
    with np.errstate(invalid="ignore"):
        deviation: _Floats = np.maximum(np.sqrt(variance), _LEAST_STD)
    return deviation


def _numbers(path: Path, value: Any) -> _Floats:
    """Numbers in a description: one, a list, or a serialized array."""
    if isinstance(value, dict):
        inner = value.get("config")
        value = inner.get("value") if isinstance(inner, dict) else value.get("value")
    try:
        numbers: _Floats = np.asarray(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: '{value}' in the network's description are no numbers.") from error
    return numbers


def _normalization(path: Path, contents: Contents) -> tuple[_Floats, _Floats] | None:
    """Mean and variance among the weights."""
    found = [layer for layer in contents.layers if _is(layer, "normalization") and layer.arrays]
    if not found:
        return None
    if len(found) > 1:
        raise InputError(f"{path} has {len(found)} Normalization layers with weights; one can be read.")
    arrays = found[0].arrays
    mean, variance = (
        arrays.get(name, arrays.get(number)) for name, number in (("mean", "0"), ("variance", "1"))
    )
    if mean is None or variance is None:
        raise InputError(f"{path}: its Normalization layer lacks mean or variance. Save it again with Keras.")
    # By way of PyTorch, since numpy has no bfloat16.
    return to_torch(mean, "vector").double().numpy(), to_torch(variance, "vector").double().numpy()


def _count(contents: Contents, kind: str) -> int:
    return sum(_is(layer, kind) for layer in contents.layers)


def _is(layer: Stored, kind: str) -> bool:
    """By class, or by the name that Keras gives by default."""
    return layer.layer_class == kind or (not layer.layer_class and layer.name.startswith(kind))


def _sized(
    base: Preprocessing, config: dict[str, Any], name: str
) -> tuple[Preprocessing, bool, tuple[str, ...]]:
    """Base with the input layer's image size if it is fixed, whether it is, and notes."""
    shape = config.get("batch_shape", config.get("batch_input_shape"))
    sides = [side for side in shape[1:3] if type(side) is int and side > 0] if isinstance(shape, list) else []
    if len(sides) == 2 and sides[0] == sides[1]:
        return replace(base, image_px=sides[0]), True, ()
    if name.startswith("efficientnetv2") or len(sides) == 2:
        return base, False, ()
    padding = (
        "built without an input size, it pads every map in Keras as one of even size; here odd ones are "
        "padded as TensorFlow and the authors do, so logits equal Keras' at multiples of 32 px"
    )
    return base, False, (padding,)


def _made(path: Path, base: Preprocessing, factor: _Floats, offset: _Floats) -> Preprocessing:
    """Mean and standard deviation on [0, 1] from ``factor * pixel + offset`` on 0 to 255."""
    with np.errstate(all="ignore"):
        std = 1 / (255 * factor)
        mean = -offset * std
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise InputError(
            f"{path}: its first layers multiply pixels by {factor.tolist()} and add {offset.tolist()}; a "
            "standard deviation is finite and above 0."
        )
    return replace(base, mean=_clean(mean), std=_clean(std))


def _clean(values: _Floats) -> tuple[float, ...]:
    """The nearby constant that was meant: 32-bit floats have changed its eighth digit."""
    known = (IMAGENET_MEAN, IMAGENET_STD, SYMMETRIC_MEAN[:1] * len(values))
    for constants in known:
        if len(constants) == len(values) and np.allclose(values, constants, rtol=1e-6, atol=0):
            return constants
    return tuple(float(f"{value:.7g}") + 0.0 for value in values)  # no -0.0
