"""Parameters and multiply-adds of an architecture, counted from its table without torch."""

from __future__ import annotations

from dataclasses import dataclass

from efficientnetv2.architectures.spec import Architecture, Block, blocks
from efficientnetv2.utils.errors import InputError

FLOAT_BYTES = 4  # fp32


@dataclass(frozen=True)
class Cost:
    """Cost of a part of a model, for one image.

    ``multiply_adds`` are those of all convolutions and linear layers, squeeze-excite included: what the papers call
    FLOPs.
    """

    parameters: int = 0
    multiply_adds: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.multiply_adds + other.multiply_adds)


@dataclass(frozen=True)
class NetworkCost:
    """The cost of a model, part by part: ``blocks`` as in ``spec.blocks``, ``head`` with the pooling."""

    stem: Cost
    blocks: tuple[Cost, ...]
    head: Cost
    classifier: Cost

    @property
    def total(self) -> Cost:
        """The sum of all parts."""
        return sum((*self.blocks, self.head, self.classifier), start=self.stem)


def count_flops(
    architecture: Architecture, *, image_size: int, num_classes: int = 1000, in_channels: int = 3
) -> NetworkCost:
    """Count parameters and multiply-adds at an image size.

    Args:
        image_size: Height and width of the image.
        num_classes: 0 for no classifier.

    Raises:
        InputError: A size below 1, or a negative number of classes.

    Example::

        import efficientnetv2 as ev2

        ev2.count_flops(ev2.get_architecture("efficientnetv2_s"), image_size=384).total.multiply_adds
    """
    if not isinstance(architecture, Architecture):
        raise InputError(
            f"`architecture` is a {type(architecture).__name__}. Give an `Architecture`, such as "
            "`efficientnetv2.get_architecture('efficientnetv2_s')`."
        )
    for name, value, least in (
        ("image_size", image_size, 1),
        ("in_channels", in_channels, 1),
        ("num_classes", num_classes, 0),
    ):
        if value < least:
            raise InputError(f"{name} is {value}, but must be at least {least}.")
    size = output_size(image_size, stride=2)
    stem = _convolution(in_channels, architecture.stem_channels, kernel=3, size=size)
    rows = []
    for block in blocks(architecture):
        in_size, size = size, output_size(size, stride=block.stride)
        rows.append(_block(block, in_size=in_size, size=size))
    channels, width = architecture.stages[-1].channels, architecture.embed_dim
    return NetworkCost(
        stem=stem,
        blocks=tuple(rows),
        head=_convolution(channels, architecture.head_channels, kernel=1, size=size),
        classifier=Cost(width * num_classes + num_classes, width * num_classes),
    )


def output_size(size: int, *, stride: int) -> int:
    """Side of a convolution's output: either padding makes it ``size / stride``, rounded up."""
    return -(-size // stride)


def _block(block: Block, *, in_size: int, size: int) -> Cost:
    inner, out = block.inner_channels, block.out_channels
    total = Cost()
    if block.kind == "mbconv":
        if block.expands:
            total += _convolution(block.in_channels, inner, kernel=1, size=in_size)
        total += _convolution(inner, inner, kernel=block.kernel, size=size, groups=inner)
    else:
        total += _convolution(block.in_channels, inner, kernel=block.kernel, size=size)
    if block.se_channels is not None:
        weights = 2 * inner * block.se_channels
        total += Cost(weights + inner + block.se_channels, weights)
    if block.projects:
        total += _convolution(inner, out, kernel=1, size=size)
    return total


def _convolution(in_channels: int, out_channels: int, *, kernel: int, size: int, groups: int = 1) -> Cost:
    """Convolution and batch-norm."""
    weights = kernel**2 * (in_channels // groups) * out_channels
    return Cost(weights + 2 * out_channels, weights * size**2)
