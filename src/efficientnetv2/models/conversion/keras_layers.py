"""The layers of ``keras.applications``: their names, and what of ours each one is.

Both families name a layer by its place: ``stem_conv``, ``block2a_expand_conv`` (stage 2, first block),
``top_bn``, ``predictions``. The depthwise convolution is ``dwconv`` in V1, ``dwconv2`` in V2.

A file that numbers its layers instead (``conv2d``, ``conv2d_1``, ... as Keras' own format does where it does
not add the names) is read by order: Keras numbers the layers of a class in the order in which they are
computed, which is the order of ``layers``. There is one chain of convolutions, so there is one order.

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

# How V2 and V1 call themselves: "efficientnetv2-b0", "efficientnetb0".
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
        name: Keras'.
        ours: our module.
        layer_class: Keras' class, in its files' spelling.
        shape: of the kernel in PyTorch's layout, or of the batch-norm's vectors; -1 where it may be anything.
        bias: whether there is one beside the kernel.
    """

    name: str
    ours: str
    layer_class: LayerClass
    shape: tuple[int, ...]
    bias: bool = False

    @property
    def tensors(self) -> dict[str, str]:
        """Our tensors and Keras', in the order in which Keras keeps them."""
        if self.layer_class == "batch_normalization":
            return _NORM
        return {"weight": "kernel", "bias": "bias"} if self.bias else {"weight": "kernel"}

    @property
    def kernel(self) -> str:
        """The full name of its first tensor."""
        return f"{self.name}.{next(iter(self.tensors.values()))}"

    def kind(self, leaf: str) -> Kind:
        """The layout of one of its tensors, by Keras' name."""
        return _KINDS[self.layer_class] if leaf == "kernel" else "vector"


def version(architecture: Architecture) -> Literal[1, 2]:
    """Whose names a network gets: V1 has no fused block, every V2 has."""
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
    """Every tensor of our network, classifier included, and its name in a Keras file.

    Keras counts no batches, so ``num_batches_tracked`` is not among them.
    """
    return {
        f"{layer.ours}.{ours}": f"{layer.name}.{theirs}"
        for layer in layers(architecture)
        for ours, theirs in layer.tensors.items()
    }


def published_name(model: str) -> str:
    """Which published network Keras means: by our name, by its class or by what the network calls itself.

    Args:
        model: ``efficientnetv2_b0``, ``EfficientNetV2B0`` or ``efficientnetv2-b0``.

    Raises:
        InputError: Keras has none of that name; names the nearest.
    """
    names = {name: name for name in CLASSES} | {their: name for name, their in CLASSES.items()}
    names |= {own: name for name, own in OWN_NAMES.items()}
    if model not in names:
        raise InputError(
            f"'{model}' is none of Keras' networks that can be read here{did_you_mean(model, names)} "
            f"Known: {', '.join(CLASSES)}."
        )
    return names[model]


def detect(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The published network that has these tensors; None if none has.

    Args:
        shapes: in PyTorch's layout, by Keras' names; more of them do no harm.
    """
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
    """The layers of the published network whose kernels come in this order; None if no network's do.

    Args:
        kernels: of every class of layers, the shapes of the kernels (or batch-norm vectors), in PyTorch's
            layout, in the order of the layers' numbers. ``dense`` may be absent.
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
