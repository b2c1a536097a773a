"""An architecture as data: stages as in the paper's tables, and the blocks that models and FLOPs are made from."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from efficientnetv2.utils.errors import short_repr

Padding = Literal["same", "symmetric"]
GlobalPool = Literal["avg", "avg+center"]

# Far beyond any network, near enough to be counted and built: a table of more is a mistake or an attack. Ours.
_MAX_LAYERS = 1_000
_MAX_CHANNELS = 1_000_000


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Operator:
    """What the blocks of a stage compute. Raises pydantic.ValidationError for a value outside its range.

    ``mbconv`` is 1x1 expansion, depthwise kxk, squeeze-excite, 1x1 projection; ``fused`` has one full kxk convolution
    in place of the first two. With ``expand`` 1 there is no expansion: ``mbconv`` starts at the depthwise convolution,
    ``fused`` is the kxk convolution alone.

    Source: arXiv:2104.00298, Figure 2; squeeze-excite width as google/automl, efficientnetv2.
    """

    kind: Literal["mbconv", "fused"]
    expand: int  # inner channels over the block's input channels
    kernel: int  # odd
    se: float | None = None  # width of squeeze-excite over the block's input channels, in (0, 1]; None is off

    @model_validator(mode="after")
    def _possible(self) -> Operator:
        _check_range("expand", self.expand, _MAX_CHANNELS)
        _check_range("kernel", self.kernel, _MAX_CHANNELS)
        if self.kernel % 2 == 0:
            raise ValueError(f"{self}: kernel is {self.kernel}, but must be odd and at least 1")
        if self.se is not None and not 0 < self.se <= 1:
            raise ValueError(f"{self}: se is {self.se:g}, but must be in (0, 1], or None for off")
        return self

    def __str__(self) -> str:
        se = "" if self.se is None else f", se={self.se:g}"
        return f"{self.kind}(expand={self.expand}, kernel={self.kernel}{se})"


def mbconv(*, expand: int, kernel: int, se: float | None = 0.25) -> Operator:
    """The block of MobileNetV2 and EfficientNet: 1x1 expansion, depthwise convolution, squeeze-excite, projection.

    Example::

        import efficientnetv2 as ev2

        ev2.mbconv(expand=4, kernel=3, se=0.25)

    Args:
        expand: Inner channels over the block's input channels; 1 for no expansion.
        kernel: Side of the depthwise convolution, odd.
        se: Width of squeeze-excite over the block's input channels, in (0, 1]; None is off.

    Raises:
        pydantic.ValidationError: A value outside its range.
    """
    return Operator("mbconv", expand, kernel, se)


def fused_mbconv(*, expand: int, kernel: int, se: float | None = None) -> Operator:
    """The block of EfficientNetV2's early stages: one full convolution in place of expansion and depthwise one.

    Example::

        import efficientnetv2 as ev2

        ev2.fused_mbconv(expand=4, kernel=3)

    Args:
        expand: Inner channels over the block's input channels; 1 for the convolution alone.
        kernel: Side of the convolution, odd.
        se: Width of squeeze-excite over the block's input channels, in (0, 1]; None is off.

    Raises:
        pydantic.ValidationError: A value outside its range.
    """
    return Operator("fused", expand, kernel, se)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Stage:
    """A row of the table: one operator, repeated. Raises pydantic.ValidationError for a value outside its range.

    Example::

        import efficientnetv2 as ev2

        ev2.Stage(ev2.mbconv(expand=4, kernel=3), stride=2, channels=48, layers=2)

    Args:
        stride: Of the first block, 1 or 2; the others have 1.
        channels: Output channels of every block.
        layers: Number of blocks.
    """

    operator: Operator
    stride: int
    channels: int
    layers: int

    @model_validator(mode="after")
    def _possible(self) -> Stage:
        _check_range("channels", self.channels, _MAX_CHANNELS)
        _check_range("layers", self.layers, _MAX_LAYERS)
        if self.stride not in (1, 2):
            raise ValueError(f"{self}: stride is {short_repr(self.stride)}, but must be 1 or 2")
        return self

    def __str__(self) -> str:
        stride = short_repr(self.stride)
        return f"stage {self.operator}, stride {stride}, {self.channels} channels, {self.layers} layers"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Architecture:
    """A model except for its input channels and its classes.

    Args:
        stem_channels: Of the first convolution, 3x3 with stride 2.
        stages: At least one.
        head_channels: Of the last convolution, 1x1, whose maps are pooled for the classifier.
        padding: ``same`` is TensorFlow's, as released and as in timm's ``tf_`` models: at stride 2 and an even size the
            odd pixel goes to the bottom and the right. ``symmetric`` is torchvision's. Weights trained with one lose
            accuracy with the other.
        batch_norm_epsilon: 1e-3 as released; torchvision has 1e-5 for EfficientNet B0 to B4.
        global_pool: ``avg`` of the last maps, as published; ``avg+center`` appends the mean of their middle third, for
            images whose subject is at the center. Ours.

    Raises:
        pydantic.ValidationError: A value outside its range, or no stage.

    Example::

        import efficientnetv2 as ev2

        stage = ev2.Stage(ev2.mbconv(expand=4, kernel=3), stride=2, channels=48, layers=2)
        ev2.Architecture(stem_channels=24, stages=(stage,), head_channels=256)
    """

    stem_channels: int
    stages: tuple[Stage, ...]
    head_channels: int
    padding: Padding = "same"
    batch_norm_epsilon: float = 1e-3
    global_pool: GlobalPool = "avg"

    @property
    def embed_dim(self) -> int:
        """Width of the classifier's input."""
        return self.head_channels * (2 if self.global_pool == "avg+center" else 1)

    @property
    def stride(self) -> int:
        """Side of the image over that of the last maps."""
        return 2 * math.prod(stage.stride for stage in self.stages)

    @model_validator(mode="after")
    def _possible(self) -> Architecture:
        _check_range("stem_channels", self.stem_channels, _MAX_CHANNELS)
        if not self.stages:
            raise ValueError("stages is empty, but must have at least one")
        _check_range("head_channels", self.head_channels, _MAX_CHANNELS)
        if not (math.isfinite(self.batch_norm_epsilon) and self.batch_norm_epsilon > 0):
            raise ValueError(f"batch_norm_epsilon is {self.batch_norm_epsilon}, but must be finite and above 0")
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``from_json`` gives an equal ``Architecture``."""
        plain: dict[str, Any] = TypeAdapter(Architecture).dump_python(self, mode="json")
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Architecture:
        """Read plain JSON values. Raises pydantic.ValidationError for an unknown field or a value out of range."""
        return TypeAdapter(cls).validate_python(plain)


def _check_range(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise ValueError(f"{name} is {short_repr(value)}, but must be at least 1 and at most {most:,}")


@dataclass(frozen=True)
class Block:
    """One block with all its numbers."""

    kind: Literal["mbconv", "fused"]
    stage: int  # index of its stage, from 0
    in_channels: int
    inner_channels: int  # of its kxk convolution; ``out_channels`` in a fused block that does not expand
    out_channels: int
    kernel: int
    stride: int
    expands: bool
    se_channels: int | None
    residual: bool
    depth_fraction: float  # i/N of block i of N, from 0: stochastic depth drops it with ``rate * i/N``

    @property
    def projects(self) -> bool:
        """Whether a 1x1 projection ends the block: always, except in a fused block that does not expand."""
        return self.kind == "mbconv" or self.expands


def blocks(architecture: Architecture) -> tuple[Block, ...]:
    """Every block in order: models and FLOPs are made from these."""
    total = sum(stage.layers for stage in architecture.stages)
    rows: list[Block] = []
    in_channels = architecture.stem_channels
    for index, stage in enumerate(architecture.stages):
        operator = stage.operator
        expands = operator.expand > 1
        for layer in range(stage.layers):
            stride = stage.stride if layer == 0 else 1
            single = operator.kind == "fused" and not expands
            block = Block(
                kind=operator.kind,
                stage=index,
                in_channels=in_channels,
                inner_channels=stage.channels if single else in_channels * operator.expand,
                out_channels=stage.channels,
                kernel=operator.kernel,
                stride=stride,
                expands=expands,
                se_channels=None if operator.se is None else max(1, int(in_channels * operator.se)),
                residual=stride == 1 and in_channels == stage.channels,
                depth_fraction=len(rows) / total,
            )
            rows.append(block)
            in_channels = stage.channels
    return tuple(rows)
