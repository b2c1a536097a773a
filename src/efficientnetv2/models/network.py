"""EfficientNetV2 and V1 as a PyTorch module, made from the expanded table of an architecture."""

from __future__ import annotations

from torch import Tensor, nn

from efficientnetv2.arch.spec import Architecture, blocks
from efficientnetv2.base.errors import InputError
from efficientnetv2.models.blocks import ConvNorm, FusedMBConv, MBConv, initialise
from efficientnetv2.models.regularize import apply_setting


class EfficientNet(nn.Module):
    """Stem, blocks, head, pooling, dropout, linear classifier.

    Fresh weights are drawn with PyTorch's generator: seed it with ``torch.manual_seed`` for repeatable ones.
    Dropout and stochastic depth may be changed at any time: ``models.regularize.apply_setting``.

    Args:
        architecture: the table.
        num_classes: of the classifier; 0 leaves it out, and ``forward`` gives what ``embed`` does.
        in_channels: of the picture.
        dropout: probability before the classifier, in [0, 1).
        drop_path: rate of stochastic depth, in [0, 1): block i of N is dropped with ``drop_path * i/N``.

    Raises:
        InputError: a value outside its range.
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
        super().__init__()
        if num_classes < 0:
            raise InputError(f"num_classes is {num_classes}, but is at least 0 (0 leaves out the classifier)")
        if in_channels < 1:
            raise InputError(f"in_channels is {in_channels}, but a picture has at least 1")
        self.architecture = architecture
        self.num_classes = num_classes
        self.in_channels = in_channels
        padding, epsilon = architecture.padding, architecture.batch_norm_epsilon
        rows = blocks(architecture)
        width = architecture.head_channels
        self.stem = ConvNorm(
            in_channels, architecture.stem_channels, kernel=3, stride=2, padding=padding, epsilon=epsilon
        )
        self.blocks = nn.ModuleList(
            (MBConv if row.kind == "mbconv" else FusedMBConv)(row, padding=padding, epsilon=epsilon)
            for row in rows
        )
        self.head = ConvNorm(rows[-1].out_channels, width, kernel=1, padding=padding, epsilon=epsilon)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        # Blocks with stride 2: the map before each is the last of its size.
        self._halving = tuple(index for index, row in enumerate(rows) if row.stride == 2)
        initialise(self)
        apply_setting(self, dropout=dropout, drop_path=drop_path)

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
            x = block(x)
        return [*maps, x]

    def embed(self, x: Tensor) -> Tensor:
        """What the classifier reads, before dropout.

        Args:
            x: (N, in_channels, H, W) float, normalised.

        Returns:
            (N, head_channels).
        """
        maps: Tensor = self.head(self.features(x)[-1])
        return maps.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Args:
            x: (N, in_channels, H, W) float, normalised.

        Returns:
            (N, num_classes), or (N, head_channels) without a classifier.
        """
        logits: Tensor = self.classifier(self.dropout(self.embed(x)))
        return logits
