"""The layers of ``keras.applications``: their names, and our modules.

Both families name a layer by its place: ``stem_conv``, ``block2a_expand_conv`` (stage 2, first block), ``top_bn``,
``predictions``. The depthwise convolution is ``dwconv`` in V1 and ``dwconv2`` in V2.

Some files number layers instead (``conv2d``, ``conv2d_1``). Keras numbers the layers of a class in the order of
computation, which is the order of ``layers``.

Source: keras/src/applications/efficientnet.py and efficientnet_v2.py, Keras 3.15.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from efficientnetv2.architectures.registry import architecture as published_architecture
from efficientnetv2.architectures.spec import Architecture, Block, blocks
from efficientnetv2.models.conversion.tensors import Kind
from efficientnetv2.utils.errors import InputError, did_you_mean

# Published networks that Keras has, and how it calls them.
CLASSES = {
    **{f"efficientnetv2_{size}": f"EfficientNetV2{size.upper()}" for size in ("b0", "b1", "b2", "b3")},
    **{f"efficientnetv2_{size}": f"EfficientNetV2{size.upper()}" for size in ("s", "m", "l")},
    **{f"efficientnet_b{size}": f"EfficientNetB{size}" for size in range(8)},
}

# Names of the models themselves: "efficientnetv2-b0", "efficientnetb0".
OWN_NAMES = {name: name.replace("_", "-" if name.startswith("efficientnetv2") else "") for name in CLASSES}

CLASSIFIER = "predictions"  # the layer

LayerClass = Literal["conv2d", "depthwise_conv2d", "batch_normalization", "dense"]

_KINDS: dict[LayerClass, Kind] = {
    "conv2d": "convolution",
    "depthwise_conv2d": "depthwise",
    "batch_normalization": "vector",
    "dense": "dense",
}
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


@dataclass(frozen=True)
class Layer:
    """A layer with weights.

    Args:
        name: Keras' name.
        ours: Our module.
        layer_class: Keras' class as files spell it.
        shape: Of the kernel in PyTorch's layout, or of the batch-norm's vectors; -1 for any size.
        bias: Whether it has a bias beside the kernel.
    """

    name: str
    ours: str
    layer_class: LayerClass
    shape: tuple[int, ...]
    bias: bool = False

    @property
    def tensors(self) -> dict[str, str]:
        """Tensor names from ours to Keras', in Keras' order."""
        if self.layer_class == "batch_normalization":
            return _NORM
        return {"weight": "kernel", "bias": "bias"} if self.bias else {"weight": "kernel"}

    @property
    def kernel(self) -> str:
        """Full name of the first tensor."""
        return f"{self.name}.{next(iter(self.tensors.values()))}"

    def kind(self, leaf: str) -> Kind:
        """Layout of a tensor, by Keras' name."""
        return _KINDS[self.layer_class] if leaf == "kernel" else "vector"


def version(architecture: Architecture) -> Literal[1, 2]:
    """Whose names a model gets: V1 has no fused block, every V2 has."""
    return 2 if any(stage.operator.kind == "fused" for stage in architecture.stages) else 1


def layers(architecture: Architecture) -> tuple[Layer, ...]:
    """Every layer with weights, in the order of computation, classifier last."""
    depthwise = "dwconv2" if version(architecture) == 2 else "dwconv"
    rows = _convolution("stem", "stem_conv", "stem_bn", (architecture.stem_channels, -1, 3, 3))
    before: dict[int, int] = {}
    for index, block in enumerate(blocks(architecture)):
        place = before[block.stage] = before.get(block.stage, -1) + 1
        rows += _block(f"blocks.{index}", f"block{block.stage + 1}{chr(ord('a') + place)}_", block, depthwise)
    width, channels = architecture.head_channels, architecture.stages[-1].channels
    rows += _convolution("head", "top_conv", "top_bn", (width, channels, 1, 1))
    return (*rows, Layer(CLASSIFIER, "classifier", "dense", (-1, width), bias=True))


def tensor_names(architecture: Architecture) -> dict[str, str]:
    """Tensor names from ours to Keras', classifier included, without ``num_batches_tracked``."""
    return {
        f"{layer.ours}.{ours}": f"{layer.name}.{theirs}"
        for layer in layers(architecture)
        for ours, theirs in layer.tensors.items()
    }


def published_name(model: str) -> str:
    """The published model of Keras' class (``EfficientNetV2B0``), its own name (``efficientnetv2-b0``) or our name."""
    names = {name: name for name in CLASSES} | {their: name for name, their in CLASSES.items()}
    names |= {own: name for name, own in OWN_NAMES.items()}
    if model not in names:
        raise InputError(
            f"'{model}' is none of Keras' networks that can be read here{did_you_mean(model, names)} "
            f"Known: {', '.join(CLASSES)}."
        )
    return names[model]


def detect(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The published model with these kernel shapes, by Keras' names in PyTorch's layout; more names do no harm."""
    blocks_there = {key for key in shapes if key.startswith("block") and key.endswith("conv.kernel")}
    for name in CLASSES:
        expected = {row.kernel: row.shape for row in layers(published_architecture(name))[:-1]}
        # B0 is a part of B1, so nothing may be left over.
        if blocks_there <= expected.keys() and all(
            _fits(shapes.get(kernel, ()), shape) for kernel, shape in expected.items()
        ):
            return name
    return None


def by_order(kernels: Mapping[LayerClass, Sequence[tuple[int, ...]]]) -> tuple[Layer, ...] | None:
    """The layers of the published model whose kernels have these shapes in this order; None if there is none.

    Args:
        kernels: By layer class, shapes in PyTorch's layout in the order of the layers' numbers; ``dense`` may be
            absent.
    """
    for name in CLASSES:
        rows = layers(published_architecture(name))
        if all(_same(kernels.get(kind, ()), rows, kind) for kind in _KINDS):
            return rows
    return None


def _same(shapes: Sequence[tuple[int, ...]], rows: Sequence[Layer], kind: LayerClass) -> bool:
    expected = [row.shape for row in rows if row.layer_class == kind]
    if kind == "dense" and not shapes:
        return True
    return len(shapes) == len(expected) and all(map(_fits, shapes, expected))


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(
        right in (-1, size) for size, right in zip(shape, expected, strict=True)
    )


def _convolution(
    ours: str, name: str, norm: str, shape: tuple[int, ...], layer_class: LayerClass = "conv2d"
) -> list[Layer]:
    return [
        Layer(name, f"{ours}.conv", layer_class, shape),
        Layer(norm, f"{ours}.norm", "batch_normalization", shape[:1]),
    ]


def _block(ours: str, prefix: str, block: Block, depthwise: str) -> list[Layer]:
    inner, out, kernel = block.inner_channels, block.out_channels, block.kernel
    spatial, project = f"{ours}.spatial", f"{ours}.project"
    rows = []
    if block.kind == "mbconv":
        if block.expands:
            shape = (inner, block.in_channels, 1, 1)
            rows += _convolution(f"{ours}.expand", f"{prefix}expand_conv", f"{prefix}expand_bn", shape)
        shape = (inner, 1, kernel, kernel)
        rows += _convolution(spatial, f"{prefix}{depthwise}", f"{prefix}bn", shape, "depthwise_conv2d")
    else:
        # Without expansion Keras calls the one convolution the projection.
        part = "expand" if block.expands else "project"
        shape = (inner, block.in_channels, kernel, kernel)
        rows += _convolution(spatial, f"{prefix}{part}_conv", f"{prefix}{part}_bn", shape)
    if block.se_channels is not None:
        reduce, expand = (block.se_channels, inner, 1, 1), (inner, block.se_channels, 1, 1)
        rows.append(Layer(f"{prefix}se_reduce", f"{ours}.se.reduce", "conv2d", reduce, bias=True))
        rows.append(Layer(f"{prefix}se_expand", f"{ours}.se.expand", "conv2d", expand, bias=True))
    if block.projects:
        rows += _convolution(project, f"{prefix}project_conv", f"{prefix}project_bn", (out, inner, 1, 1))
    return rows
