"""Squeeze-excite, stochastic depth, dropout, and the MBConv and Fused-MBConv blocks.

In every block the kxk convolution is ``spatial`` and the 1x1 convolutions are ``expand`` and ``project``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from efficientnetv2.architectures.spec import Block, Padding
from efficientnetv2.models.layers import ConvNorm, ProductConv2d


class SqueezeExcite(nn.Module):
    """A gate per channel, computed from the means of all channels (arXiv:1709.01507, with SiLU as in EfficientNet)."""

    def __init__(self, channels: int, se_channels: int) -> None:
        super().__init__()
        self.reduce = ProductConv2d(channels, se_channels, 1)
        self.expand = ProductConv2d(se_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), shape unchanged."""
        gate: Tensor = self.expand(F.silu(self.reduce(_spatial_mean(x))))  # (N, C, 1, 1)
        return x * gate.sigmoid()


def _spatial_mean(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, 1, 1).

    In training on a CPU, a sum that is divided: the gradient of a sum needs no memory. The gradient of a mean is
    materialized channel by channel and added to a channels-last one, which took a third of squeeze-excite's time
    (benchmarks/results/step_tried.md). bf16 is rounded once more; fp16 could overflow.
    """
    if x.requires_grad and x.device.type == "cpu" and x.dtype != torch.float16:
        return x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
    return x.mean((2, 3), keepdim=True)


class DropPath(nn.Module):
    """Stochastic depth: skips the block for some images of a batch and scales it up for the others.

    ``rate`` may change at any time and has no effect in evaluation. Draws come from PyTorch's generator of the device,
    unless ``kept`` is set: (N, 1, 1, 1), 0 for a skipped image and 1 / (1 - rate) for the others.

    Args:
        depth_fraction: ``apply_regularization`` sets ``rate`` to the model's rate times this.

    Source: arXiv:1603.09382, with one draw per image as in the released code.
    """

    def __init__(self, depth_fraction: float) -> None:
        super().__init__()
        self.depth_fraction = depth_fraction
        self.rate = 0.0
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), shape unchanged."""
        if not self.training or self.rate == 0:
            return x
        if self.kept is not None:
            return x * self.kept.to(x.dtype)
        keep = 1 - self.rate
        kept = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep)
        return x * kept.div_(keep)

    def extra_repr(self) -> str:
        """The rate, for ``print(model)``."""
        return f"rate={self.rate:.3f}"


class Dropout(nn.Dropout):
    """PyTorch's dropout. ``kept``, of the input's shape, replaces its draws: 0 if dropped, else 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.kept: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, unchanged."""
        if self.kept is None or not self.training:
            return F.dropout(input, self.p, self.training, self.inplace)
        return input * self.kept.to(input.dtype)


class _Block(nn.Module):
    """Expansion if any, kxk convolution, squeeze-excite if any, projection if any, shortcut if any."""

    def __init__(
        self, block: Block, *, expand: nn.Module, groups: int, padding: Padding, epsilon: float
    ) -> None:
        super().__init__()
        inner = block.inner_channels
        self.expand = expand
        self.spatial = ConvNorm(
            inner if block.kind == "mbconv" else block.in_channels,
            inner,
            kernel=block.kernel,
            stride=block.stride,
            groups=groups,
            padding=padding,
            epsilon=epsilon,
        )
        self.se: nn.Module = nn.Identity()
        if block.se_channels is not None:
            self.se = SqueezeExcite(inner, block.se_channels)
        self.project: nn.Module = nn.Identity()
        if block.projects:
            self.project = ConvNorm(
                inner, block.out_channels, kernel=1, padding=padding, epsilon=epsilon, act=False
            )
        self.drop_path = DropPath(block.depth_fraction) if block.residual else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.project(self.se(self.spatial(self.expand(x))))
        return out if self.drop_path is None else x + self.drop_path(out)


class MBConv(_Block):
    """1x1 expansion, depthwise kxk, squeeze-excite, 1x1 projection; see ``architectures.spec.Block``."""

    def __init__(self, block: Block, *, padding: Padding, epsilon: float) -> None:
        inner = block.inner_channels
        expand: nn.Module = nn.Identity()
        if block.expands:
            expand = ConvNorm(block.in_channels, inner, kernel=1, padding=padding, epsilon=epsilon)
        super().__init__(block, expand=expand, groups=inner, padding=padding, epsilon=epsilon)


class FusedMBConv(_Block):
    """Full kxk convolution, 1x1 projection if it expands; see ``architectures.spec.Block``."""

    def __init__(self, block: Block, *, padding: Padding, epsilon: float) -> None:
        super().__init__(block, expand=nn.Identity(), groups=1, padding=padding, epsilon=epsilon)


def init_weights(network: nn.Module) -> None:
    """Draw fresh weights for every convolution and linear layer; batch-norm starts as the identity.

    Convolutions are normal with variance 2 / (k·k·out / groups), linear layers uniform within ±1/sqrt(out), biases 0.

    Source: google/automl, efficientnetv2.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            bound = module.out_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def zero_init_residual(network: nn.Module) -> None:
    """Start every residual block as its shortcut, and every class with the same probability.

    The last batch-norm scale of residual blocks and the classifier become 0. The released range of the classifier,
    ±1/sqrt(classes), suits a thousand classes. With ten, the first loss is 3.6 instead of ln 10 = 2.3, which costs a
    short run its warm-up.

    Source: arXiv:1706.02677, section 5.1 (scale 0); arXiv:1912.11370, section 3.3 (classifier at 0).
    """
    for module in network.modules():
        if isinstance(module, _Block) and module.drop_path is not None:
            last = module.project if isinstance(module.project, ConvNorm) else module.spatial
            assert isinstance(last, ConvNorm)
            nn.init.zeros_(last.norm.weight)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
