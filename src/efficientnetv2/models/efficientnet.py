"""What every network is, and EfficientNetV2 and V1, made from the expanded table of an architecture."""

from __future__ import annotations

from abc import abstractmethod
from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from efficientnetv2.architectures.flops import FLOAT_BYTES, cost
from efficientnetv2.architectures.spec import Architecture, blocks
from efficientnetv2.models.blocks import Dropout, FusedMBConv, MBConv, init_weights
from efficientnetv2.models.layers import ConvNorm
from efficientnetv2.models.provenance import TrainingFingerprint
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.models.temperature import Calibration
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, MemoryShortError, count_of
from efficientnetv2.utils.memory import GIB, free_bytes
from efficientnetv2.utils.probability import Answer

# ImageNet's usual size, for networks of which nobody says another.
_DEFAULT_PX = 224


def check_classes_and_channels(num_classes: object, in_channels: object) -> None:
    """Refuse classes and channels that no network has. None, where a caller allows it, is passed over.

    Args:
        num_classes: 0 or more.
        in_channels: 1 or more.

    Raises:
        InputError: one of them is less, or no whole number.
    """
    for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise InputError(f"{name} is {value!r} (a {type(value).__name__}), but is a whole number")
    if isinstance(num_classes, Integral) and num_classes < 0:
        raise InputError(f"num_classes is {num_classes}, but is at least 0 (0 leaves out the classifier)")
    if isinstance(in_channels, Integral) and in_channels < 1:
        raise InputError(f"in_channels is {in_channels}, but a picture has at least 1")


class Network(nn.Module):
    """A network with all that it takes to use it; ours and, wrapped, anyone's.

    Parts that ``models.adapt.freeze`` has frozen stay in evaluation mode whatever ``train`` says.

    Args:
        num_classes: of the classifier; 0 is none, and ``forward`` gives what ``embed`` does.
        in_channels: of the picture.
        embed_dim: width of what the classifier reads.

    Attributes:
        preprocessing: from any picture to the input. As published for a published network; ImageNet's mean
            and standard deviation at 224 px where nobody says otherwise.
        class_names: of the outputs, in order; empty where they are not known.
        answer: what its logits mean: ``utils.probability.probabilities`` makes probabilities of them.
        recipe: that it was trained by, as plain JSON; empty where that is not known.
        metrics: what it reached, as plain JSON.
        trained_on: a sample of the pictures that trained it; None where they are not known.
        calibration: the temperature that ``inference.predict`` divides its logits by; None leaves them as they are.

    Raises:
        InputError: see ``check_classes_and_channels``.
    """

    def __init__(self, *, num_classes: int, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        check_classes_and_channels(num_classes, in_channels)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.embed_dim = embed_dim
        self.preprocessing = Preprocessing(image_px=_DEFAULT_PX).with_channels(in_channels)
        self.class_names: tuple[str, ...] = ()
        self.answer: Answer = "softmax"
        self.recipe: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.trained_on: TrainingFingerprint | None = None
        self.calibration: Calibration | None = None
        self.frozen: tuple[str, ...] = ()  # names of modules that stay in evaluation mode

    @abstractmethod
    def features(self, x: Tensor) -> list[Tensor]:
        """The last map of every size, from large to small.

        Args:
            x: (N, in_channels, H, W) float, normalised.
        """

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """What the classifier reads.

        Args:
            x: (N, in_channels, H, W) float, normalised.

        Returns:
            (N, embed_dim).
        """

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for what is frozen; or evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self


class EfficientNet(Network):
    """Stem, blocks, head, pooling, dropout, linear classifier.

    Fresh weights are drawn with PyTorch's generator: seed it with ``torch.manual_seed`` for repeatable ones.
    Dropout and stochastic depth may be changed at any time: ``models.regularization.apply_regularization``.

    Args:
        architecture: the table.
        num_classes: of the classifier; 0 leaves it out, and ``forward`` gives what ``embed`` does.
        in_channels: of the picture.
        dropout: probability before the classifier, in [0, 1).
        drop_path: rate of stochastic depth, in [0, 1): block i of N is dropped with ``drop_path * i/N``.

    Attributes:
        recomputed: numbers of the blocks whose activations training does not keep but computes again in the backward
            pass; see ``recompute_stages``.

    Raises:
        InputError: a value outside its range.
        MemoryShortError: its weights alone take more memory than is free; nothing has been made of it then.
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
        width = architecture.head_channels
        device = torch.get_default_device()
        if device.type != "meta":
            _check_fits(architecture, num_classes, in_channels, device)
        # Without values at first: PyTorch's layers draw some of their own, which would be thrown away.
        with torch.device("meta"):
            self.stem = ConvNorm(
                in_channels, architecture.stem_channels, kernel=3, stride=2, padding=padding, epsilon=epsilon
            )
            self.blocks = nn.ModuleList(
                (MBConv if row.kind == "mbconv" else FusedMBConv)(row, padding=padding, epsilon=epsilon)
                for row in rows
            )
            self.head: nn.Module = ConvNorm(
                rows[-1].out_channels, width, kernel=1, padding=padding, epsilon=epsilon
            )
            self.dropout = Dropout(dropout)
            self.classifier = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        # Blocks with stride 2: the map before each is the last of its size.
        self._halving = tuple(index for index, row in enumerate(rows) if row.stride == 2)
        self.recomputed: frozenset[int] = frozenset()
        if device.type != "meta":
            # As ``to_empty`` does it, which first imports sympy, for longer than all the rest takes.
            self._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))  # type: ignore[no-untyped-call]
            init_weights(self)
        apply_regularization(self, dropout=dropout, drop_path=drop_path)

    def recompute_stages(self, stages: int) -> None:
        """Let training keep only the input of each block of the first stages, and compute the rest of it twice.

        The first stages have the largest maps. Dropped paths are the same both times; batch-norm's running statistics
        move twice, unless whoever trains sets them right afterwards: ``training.batch_norm.GhostBatchNormStats``.

        Args:
            stages: how many; 0 keeps everything.

        Raises:
            InputError: the network has fewer.
        """
        if not 0 <= stages <= len(self.architecture.stages):
            having = count_of(len(self.architecture.stages), "stage")
            raise InputError(
                f"recompute_stages is {stages}, but the network has {having}. Give at most that."
            )
        self.recomputed = frozenset(range(sum(stage.layers for stage in self.architecture.stages[:stages])))

    def features(self, x: Tensor) -> list[Tensor]:
        """The last map of every size, from large to small; the head is not among them.

        Args:
            x: (N, in_channels, H, W) float, normalised.

        Returns:
            (N, C, ceil(H/s), ceil(W/s)) for s = 2, 4, 8, 16, 32 in every published network.
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
        """What the classifier reads, before dropout.

        Args:
            x: (N, in_channels, H, W) float, normalised.

        Returns:
            (N, embed_dim).
        """
        # A scripted network only predicts, and TorchScript knows no lists of maps.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
        else:
            x = self.features(x)[-1]
        maps: Tensor = self.head(x)  # (N, head_channels, H/32, W/32)
        pooled = maps.mean((2, 3))
        if self.embed_dim == pooled.shape[1]:
            return pooled
        (above, below), (left, right) = _middle(maps.shape[-2]), _middle(maps.shape[-1])
        return torch.cat([pooled, maps[:, :, above:below, left:right].mean((2, 3))], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Args:
            x: (N, in_channels, H, W) float, normalised.

        Returns:
            (N, num_classes), or (N, embed_dim) without a classifier.
        """
        logits: Tensor = self.classifier(self.dropout(self.embed(x)))
        return logits


def _check_fits(architecture: Architecture, num_classes: int, in_channels: int, device: torch.device) -> None:
    """Refuse an architecture whose weights take more memory than is free."""
    parts = cost(architecture, image_px=1, num_classes=num_classes, in_channels=in_channels)
    parameters = parts.total.parameters
    needed, free = parameters * FLOAT_BYTES, free_bytes(device)
    if needed > free:
        largest = max(
            (*parts.blocks, parts.stem, parts.head, parts.classifier), key=lambda part: part.parameters
        )
        raise MemoryShortError(
            f"the architecture has {parameters:,} parameters ({largest.parameters:,} of them in one block). They take "
            f"{needed / GIB:,.1f} GiB of memory, but {max(0, free) / GIB:,.1f} GiB are free. Make it narrower."
        )


def _middle(side: int) -> tuple[int, int]:
    """The middle third of a side, rounded to the larger: of 7 the 3 in the middle, of 2 both."""
    return side // 3, side - side // 3
