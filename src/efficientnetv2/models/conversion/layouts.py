"""Tensor names and axes of timm, torchvision, Keras and google/automl, for one list of a model's layers.

Sources: timm/models/_efficientnet_blocks.py (1.0.31), torchvision/models/efficientnet.py, keras/src/applications
(3.15), google/automl and tensorflow/tpu.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.architectures.spec import Architecture, Block, blocks

Source = Literal["timm", "torchvision", "keras", "tensorflow"]
TITLES = {"timm": "timm", "torchvision": "torchvision", "keras": "Keras", "tensorflow": "google/automl"}

Kind = Literal["convolution", "depthwise", "dense", "batch_norm"]
Part = Literal["stem", "expand", "spatial", "reduce", "excite", "project", "head", "classifier"]

COUNTER = "num_batches_tracked"  # of batch-norm; unused in evaluation, and missing in some files
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", COUNTER)


@dataclass(frozen=True)
class Layer:
    """A layer with weights."""

    module: str  # our name of it
    part: Part
    kind: Kind
    shape: tuple[int, ...]  # of the weight in PyTorch's layout; -1 for any size (classes, input channels)
    block: Block | None = None
    index: int = 0  # of the block in the model
    place: int = 0  # of the block in its stage
    number: int = 0  # of the convolution among those of the block that have a batch-norm

    @property
    def leaves(self) -> tuple[str, ...]:
        """Names of the tensors."""
        if self.kind == "batch_norm":
            return _BATCH_NORM
        return ("weight",) if self.module.endswith(".conv") else ("weight", "bias")


def layers(architecture: Architecture) -> tuple[Layer, ...]:
    """Every layer with weights in the order of computation."""
    rows = [*_with_norm(Layer("stem", "stem", "convolution", (architecture.stem_channels, -1, 3, 3)))]
    places: Counter[int] = Counter()
    for index, block in enumerate(blocks(architecture)):
        rows += _block_layers(block, index, places[block.stage])
        places[block.stage] += 1
    shape = (architecture.head_channels, architecture.stages[-1].channels, 1, 1)
    rows += _with_norm(Layer("head", "head", "convolution", shape))
    return (*rows, Layer("classifier", "classifier", "dense", (-1, architecture.embed_dim)))


def _with_norm(layer: Layer) -> Iterator[Layer]:
    yield replace(layer, module=f"{layer.module}.conv")
    yield replace(layer, module=f"{layer.module}.norm", kind="batch_norm", shape=layer.shape[:1])


def _block_layers(block: Block, index: int, place: int) -> Iterator[Layer]:
    inner, kernel = block.inner_channels, block.kernel
    rows: list[tuple[Part, Kind, tuple[int, ...]]] = []
    if block.kind == "mbconv":
        if block.expands:
            rows.append(("expand", "convolution", (inner, block.in_channels, 1, 1)))
        rows.append(("spatial", "depthwise", (inner, 1, kernel, kernel)))
    else:
        rows.append(("spatial", "convolution", (inner, block.in_channels, kernel, kernel)))
    if block.projects:
        rows.append(("project", "convolution", (block.out_channels, inner, 1, 1)))
    for number, (part, kind, shape) in enumerate(rows):
        layer = Layer(f"blocks.{index}.{part}", part, kind, shape, block, index, place, number)
        yield from _with_norm(layer)
        if part == "spatial" and (se := block.se_channels) is not None:
            layer = replace(layer, kind="convolution")
            yield replace(layer, module=f"blocks.{index}.se.reduce", part="reduce", shape=(se, inner, 1, 1))
            yield replace(layer, module=f"blocks.{index}.se.expand", part="excite", shape=(inner, se, 1, 1))


def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by our name; -1 for any size."""
    lengths = {"weight": None, COUNTER: 0}  # all others are vectors
    return {
        f"{layer.module}.{leaf}": layer.shape[: lengths.get(leaf, 1)]
        for layer in layers(architecture)
        for leaf in layer.leaves
    }


def fits(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether a shape is as expected, where -1 is any size above 0."""
    return len(shape) == len(expected) and all(
        size == right or (right == -1 and size > 0) for size, right in zip(shape, expected, strict=True)
    )


def layer_name(source: Source, layer: Layer, architecture: Architecture) -> str:
    """A library's name of a layer."""
    return _LAYER_NAMES[source](layer, architecture)


def tensor_names(source: Source, architecture: Architecture) -> dict[str, str]:
    """Tensor names from ours to a library's, classifier included. Padding and epsilon do not matter."""
    separator = "/" if source == "tensorflow" else "."
    return {
        f"{layer.module}.{ours}": f"{layer_name(source, layer, architecture)}{separator}{theirs}"
        for layer in layers(architecture)
        for ours, theirs in leaf_names(source, layer).items()
    }


def leaf_names(source: Source, layer: Layer) -> dict[str, str]:
    """Names of a layer's tensors from ours to a library's, in the library's order."""
    if source in ("timm", "torchvision"):
        return {leaf: leaf for leaf in layer.leaves}
    names: tuple[str, ...] = ("kernel", "bias")
    if layer.kind == "batch_norm":
        names = ("gamma", "beta", "moving_mean", "moving_variance")
    elif layer.kind == "depthwise" and source == "tensorflow":
        names = ("depthwise_kernel",)
    return dict(zip(layer.leaves, names, strict=False))  # TensorFlow has no counter


def _timm(layer: Layer, _: Architecture) -> str:
    norm, block = layer.kind == "batch_norm", layer.block
    if block is None:
        ends = {"stem": ("conv_stem", "bn1"), "head": ("conv_head", "bn2")}
        return ends[layer.part][norm] if layer.part in ends else "classifier"
    if norm:
        name = f"bn{layer.number + 1}"
    elif layer.part in ("reduce", "excite"):
        name = "se.conv_reduce" if layer.part == "reduce" else "se.conv_expand"
    elif block.kind == "fused":
        name = {"spatial": "conv_exp", "project": "conv_pwl"}[layer.part] if block.expands else "conv"
    else:
        project = "conv_pwl" if block.expands else "conv_pw"
        name = {"expand": "conv_pw", "spatial": "conv_dw", "project": project}[layer.part]
    return f"blocks.{block.stage}.{layer.place}.{name}"


def _torchvision(layer: Layer, architecture: Architecture) -> str:
    norm, block = int(layer.kind == "batch_norm"), layer.block
    if block is None:
        ends = {"stem": f"features.0.{norm}", "head": f"features.{len(architecture.stages) + 1}.{norm}"}
        return ends.get(layer.part, "classifier.1")
    prefix = f"features.{block.stage + 1}.{layer.place}.block."
    if layer.part in ("reduce", "excite"):
        return f"{prefix}{layer.number + 1}.{'fc1' if layer.part == 'reduce' else 'fc2'}"
    after_se = layer.part == "project" and block.se_channels is not None
    return f"{prefix}{layer.number + after_se}.{norm}"


def _keras(layer: Layer, architecture: Architecture) -> str:
    end, block = "bn" if layer.kind == "batch_norm" else "conv", layer.block
    if block is None:
        return {"stem": f"stem_{end}", "head": f"top_{end}"}.get(layer.part, "predictions")
    if layer.part in ("reduce", "excite"):
        name = "se_reduce" if layer.part == "reduce" else "se_expand"
    elif layer.part == "spatial" and block.kind == "mbconv":
        v2 = any(stage.operator.kind == "fused" for stage in architecture.stages)  # V1 has no fused block
        name = "bn" if end == "bn" else "dwconv2" if v2 else "dwconv"
    elif layer.part == "spatial":  # Keras calls the only convolution the projection
        name = f"expand_{end}" if block.expands else f"project_{end}"
    else:
        name = f"{layer.part}_{end}"
    return f"block{block.stage + 1}{chr(ord('a') + layer.place)}_{name}"


def _tensorflow(layer: Layer, _: Architecture) -> str:
    def numbered(name: str, number: int) -> str:
        return f"{name}_{number}" if number else name

    block = layer.block
    if layer.part == "classifier":
        return "head/dense"
    scope = layer.part if block is None else f"blocks_{layer.index}"
    if layer.kind == "batch_norm":
        return f"{scope}/{numbered('tpu_batch_normalization', layer.number)}"
    if layer.part in ("reduce", "excite"):
        return f"{scope}/se/{numbered('conv2d', int(layer.part == 'excite'))}"
    if layer.kind == "depthwise":
        return f"{scope}/depthwise_conv2d"
    after_depthwise = block is not None and block.kind == "mbconv" and layer.part == "project"
    return f"{scope}/{numbered('conv2d', layer.number - after_depthwise)}"


_LAYER_NAMES: dict[Source, Callable[[Layer, Architecture], str]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "keras": _keras,
    "tensorflow": _tensorflow,
}


AxisOrder = Kind | Literal["vector"]

# From TensorFlow's axes to PyTorch's: (k, k, in, out), (k, k, channels, 1), (in, out).
_AXES: dict[AxisOrder, tuple[int, ...]] = {
    "convolution": (3, 2, 0, 1),
    "depthwise": (2, 3, 0, 1),
    "dense": (1, 0),
    "batch_norm": (0,),
    "vector": (0,),
}


def to_torch(array: npt.NDArray[Any], order: AxisOrder) -> Tensor:
    """An array of TensorFlow in PyTorch's layout, in its own number format (two bytes without a name are bfloat16).

    An array with another number of axes is returned as it is; its shape is refused later.
    """
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        tensor = torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    axes = _AXES[order]
    return tensor.permute(axes).contiguous() if tensor.ndim == len(axes) else tensor


def to_tensorflow(tensor: Tensor, order: AxisOrder) -> npt.NDArray[np.float32]:
    """The inverse of ``to_torch``, as 32-bit floats, which hold every shorter format exactly."""
    axes = tuple(int(axis) for axis in np.argsort(_AXES[order]))
    array: npt.NDArray[np.float32] = tensor.detach().float().cpu().permute(axes).contiguous().numpy()
    return array
