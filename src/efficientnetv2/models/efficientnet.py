"""EfficientNetV2 and EfficientNet V1, built from the table of an architecture; and the base class of all models."""

from __future__ import annotations

from abc import abstractmethod
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from efficientnetv2.architectures.flops import FLOAT_BYTES, count_flops
from efficientnetv2.architectures.spec import Architecture, blocks
from efficientnetv2.models.blocks import ConvNorm, Dropout, FusedMBConv, MBConv, init_weights
from efficientnetv2.models.provenance import Calibration, TrainingFingerprint
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.models.unknown import UnknownDetector
from efficientnetv2.preprocessing import RGB, Preprocessing
from efficientnetv2.utils.errors import InputError, MemoryShortError, pluralize
from efficientnetv2.utils.memory import GIB, free_bytes
from efficientnetv2.utils.probability import Activation

_DEFAULT_IMAGE_SIZE = 224  # ImageNet's usual size, for models without a stated preprocessing


class Network(nn.Module):
    """A classifier together with its preprocessing, its class names and its history.

    The base class of ``EfficientNet``, ``WrappedModel`` and ``Ensemble``.

    Attributes:
        num_classes: Outputs of the classifier. With 0, ``forward`` returns the features, in training after dropout.
        embed_dim: Width of the classifier's input.
        preprocessing: As published for a published model, otherwise ImageNet's mean and std at 224 px.
        class_names: Of the outputs, in order; empty if unknown.
        activation: Meaning of the logits, "softmax" or "sigmoid"; see ``utils.probability.probabilities``.
        recipe: The recipe that trained it, as plain JSON; empty if unknown.
        metrics: Its metrics, as plain JSON.
        trained_on: A sample of the images that trained it; None if unknown.
        calibration: The temperature that ``inference.predict`` divides its logits by; None for 1.
        unknown: The detector of unknown images; None without.
        frozen: Names of the modules that stay in evaluation mode (``freeze``).
    """

    def __init__(self, *, num_classes: int, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        check_classes_and_channels(num_classes, in_channels)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.embed_dim = embed_dim
        self.preprocessing = Preprocessing(image_size=_DEFAULT_IMAGE_SIZE).with_channels(in_channels)
        self.class_names: tuple[str, ...] = ()
        self.activation: Activation = "softmax"
        self.recipe: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.trained_on: TrainingFingerprint | None = None
        self.calibration: Calibration | None = None
        self.unknown: UnknownDetector | None = None
        self.frozen: tuple[str, ...] = ()

    def display_name(self) -> str:
        """What messages call the model."""
        return type(self).__name__

    @abstractmethod
    def features(self, x: Tensor) -> list[Tensor]:
        """The last feature map at each resolution, largest first. Takes (N, C, H, W) float, normalized."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """The classifier's input (N, embed_dim). Takes (N, C, H, W) float, normalized."""

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self


def output_names(network: Network) -> tuple[str, ...]:
    """Names of the classes; the numbers of the outputs, from 0, where the network has no names."""
    return network.class_names or tuple(str(number) for number in range(network.num_classes))


def check_classes_and_channels(num_classes: object, in_channels: object) -> None:
    """Raise InputError unless ``num_classes`` ≥ 0 and ``in_channels`` ≥ 1; None passes."""
    for name, value, least in (("num_classes", num_classes, 0), ("in_channels", in_channels, 1)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise InputError(f"{name} is {value!r}, but must be a whole number of at least {least}.")


def how_to_get_network(value: object) -> str:
    """The fix for a value that should be a ``Network``."""
    for name in ("network", "module", "_orig_mod"):  # of a Backbone; of DDP and AveragedModel; of torch.compile
        if isinstance(getattr(value, name, None), Network):
            return f"Give the model within it: `.{name}`."
    return "efficientnetv2.create(module) makes a model of a module."


def require_classes(network: Network, file: str | Path | None = None) -> None:
    """Refuse a network without a classifier. ``file`` names it in the message."""
    if network.num_classes == 0:
        raise InputError(f"{file or 'the model'} has no classifier. Use this model as initial `weights` of a training.")


def require_single_label(network: Network, why: str, file: str | Path | None = None) -> None:
    """Refuse a multi-label network. ``why`` is what needs a single label, ``file`` is the path of the model."""
    if network.activation == "sigmoid":
        raise InputError(
            f"{file or 'the model'} predicts each class independently (sigmoid), but {why}. Use a model trained on "
            "images with one label, or with `multilabel=softmax`."
        )


def require_image_channels(network: Network, file: str | Path | None = None) -> None:
    """Refuse a network whose channels no file has: neither RGB nor the bands of its preprocessing."""
    bands = network.preprocessing.bands
    if network.in_channels != (RGB if bands is None else bands.channels):
        raise InputError(
            f"{file or 'the model'} takes images of {pluralize(network.in_channels, 'channel')}, but files are read "
            "as RGB. Use a model of 3 channels, or call the model on tensors."
        )


class EfficientNet(Network):
    """Stem, blocks, head, pooling, dropout, linear classifier; weights are drawn with PyTorch's generator.

    ``num_classes`` 0 leaves out the classifier. Stochastic depth drops block i of N with probability
    ``drop_path * i / N``. Both rates may change at any time, see ``apply_regularization``. Raises InputError for a
    value out of range, and MemoryShortError before it allocates weights that need more memory than is free.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, embed_dim=architecture.embed_dim)
        self.architecture = architecture
        padding, epsilon = architecture.padding, architecture.batch_norm_epsilon
        rows = blocks(architecture)
        device = torch.get_default_device()
        if device.type != "meta":
            _check_fits(architecture, num_classes, in_channels, device)
        # Built without memory first: PyTorch's layers would draw weights that init_weights overwrites.
        with torch.device("meta"):
            self.stem = ConvNorm(
                in_channels, architecture.stem_channels, kernel=3, stride=2, padding=padding, epsilon=epsilon
            )
            self.blocks = nn.ModuleList(
                (MBConv if row.kind == "mbconv" else FusedMBConv)(row, padding=padding, epsilon=epsilon) for row in rows
            )
            self.head: nn.Module = ConvNorm(
                rows[-1].out_channels, architecture.head_channels, kernel=1, padding=padding, epsilon=epsilon
            )
            self.dropout = Dropout(dropout)
            self.classifier = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        # The map before a block of stride 2 is the last of its resolution.
        self._halving = tuple(index for index, row in enumerate(rows) if row.stride == 2)
        self.recomputed: frozenset[int] = frozenset()  # blocks under gradient checkpointing
        if device.type != "meta":
            # What ``to_empty`` does, without its import of sympy, which takes longer than all the rest.
            self._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))  # type: ignore[no-untyped-call]
            init_weights(self)
        apply_regularization(self, dropout=dropout, drop_path=drop_path)

    def checkpoint_stages(self, stages: int) -> None:
        """Use gradient checkpointing in the first stages, which have the largest maps; 0 turns it off.

        Stochastic depth drops the same blocks both times. Batch-norm's running statistics are updated twice, unless the
        trainer corrects them as ``models.ghost_batch.GhostBatchNormStats`` does. Raises InputError for too many stages.
        """
        if not 0 <= stages <= len(self.architecture.stages):
            raise InputError(
                f"`checkpoint_stages` is {stages}, but the model has "
                f"{pluralize(len(self.architecture.stages), 'stage')}. Give at most that."
            )
        self.recomputed = frozenset(range(sum(stage.layers for stage in self.architecture.stages[:stages])))

    def features(self, x: Tensor) -> list[Tensor]:
        """The last feature map at each resolution, largest first, without the head.

        From (N, in_channels, H, W) float, normalized, to (N, C, ceil(H/s), ceil(W/s)) for s = 2, 4, 8, 16, 32 in every
        published model.
        """
        maps = []
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            if index in self._halving:
                maps.append(x)
            again = index in self.recomputed and self.training and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return [*maps, x]

    def embed(self, x: Tensor) -> Tensor:
        """The pooled features before dropout: (N, in_channels, H, W) float, normalized, to (N, embed_dim)."""
        maps: Tensor = self.head(self.features(x)[-1])  # (N, head_channels, H/32, W/32)
        pooled = maps.mean((2, 3))
        if self.embed_dim == pooled.shape[1]:
            return pooled
        height, width = maps.shape[-2:]  # the middle third, rounded up: 3 of 7, both of 2
        middle = maps[:, :, height // 3 : height - height // 3, width // 3 : width - width // 3]
        return torch.cat([pooled, middle.mean((2, 3))], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits: (N, in_channels, H, W) float, normalized, to (N, num_classes), or (N, embed_dim) without classes."""
        logits: Tensor = self.classifier(self.dropout(self.embed(x)))
        return logits


def _check_fits(architecture: Architecture, num_classes: int, in_channels: int, device: torch.device) -> None:
    """Refuse an architecture whose weights need more memory than is free."""
    cost = count_flops(architecture, image_size=1, num_classes=num_classes, in_channels=in_channels)
    parameters = cost.total.parameters
    needed, free = parameters * FLOAT_BYTES, free_bytes(device)
    if needed > free:
        raise MemoryShortError(
            f"the architecture has {parameters:,} parameters. They take {needed / GIB:,.1f} GiB of memory, but "
            f"{max(0, free) / GIB:,.1f} GiB are free. Make it narrower."
        )
