"""The pieces of a network: padded convolution, squeeze-excite, stochastic depth, the two blocks.

Every kxk convolution is called ``spatial``, 1x1 ones ``expand`` and ``project``, whichever the block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from efficientnetv2.arch.spec import Block, Padding
from efficientnetv2.models.norm import BatchNorm2d


def same_padding(px: int, *, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after a side so that ``ceil(px / stride)`` come out.

    An odd one goes after: to the bottom and the right.

    Source: TensorFlow's documentation of the padding "SAME".
    """
    total = max((-(-px // stride) - 1) * stride + kernel - px, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A square convolution with TensorFlow's "same" padding, which depends on the size of its input.

    Where the two sides need equal padding (at stride 2: odd sizes) the convolution pads by itself;
    only elsewhere is the input copied.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        top, bottom = same_padding(input.shape[-2], kernel=kernel, stride=stride)
        left, right = same_padding(input.shape[-1], kernel=kernel, stride=stride)
        padding = (top, left)
        if top != bottom or left != right:
            input = F.pad(input, (left, right, top, bottom))
            padding = (0, 0)
        return F.conv2d(input, self.weight, self.bias, self.stride, padding, groups=self.groups)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise 3x3 convolution at stride 1, quick to train on a CPU however small its input.

    Of inputs below 3 px, where the convolution is to pad them by itself, the gradients have no fast kernel: they take
    13 times as long as those of an input padded before, and in V2-B0 at 64 px 28 % of the step
    (benchmarks/results/step_tried.md).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        if self.training and input.device.type == "cpu" and max(input.shape[-2:]) < self.kernel_size[0]:
            return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias, groups=self.groups)
        return super().forward(input)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution at stride 1, as quick to train on a CPU as a matrix product where its input is small.

    Of inputs up to 2 px, with autocast up to 4 px, a convolution spends more on laying weights out than on products:
    a tenth of V2-B0's step at 64 px (benchmarks/results/step_tried.md).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, H, W)."""
        if self.training and input.device.type == "cpu" and _is_small(input):
            # Permuted, so that the gradient lies in memory as the channels-last weight does: PyTorch's parallel
            # training copies it otherwise, and warns.
            weight = self.weight.permute(0, 2, 3, 1).flatten(1)
            return F.linear(input.permute(0, 2, 3, 1), weight, self.bias).permute(0, 3, 1, 2)
        return super().forward(input)


class ConvNorm(nn.Module):
    """Convolution without bias, batch-norm and, unless said otherwise, SiLU.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: k, odd.
        stride: 1 or 2.
        groups: ``in_channels`` for a depthwise convolution.
        padding: of the architecture; at stride 1 both are the same.
        epsilon: of the batch-norm.
        act: whether SiLU follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        padding: Padding,
        epsilon: float,
        act: bool = True,
    ) -> None:
        super().__init__()
        # At stride 1 "same" is symmetric at every size, and known beforehand.
        moving = padding == "same" and stride > 1
        self.conv = (SameConv2d if moving else _quick(kernel, stride, groups))(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=0 if moving else (kernel - 1) // 2,
            groups=groups,
            bias=False,
        )
        self.norm = BatchNorm2d(out_channels, epsilon=epsilon)
        self.act: nn.Module = nn.SiLU() if act else nn.Identity()
        self._strided_depthwise = groups > 1 and stride > 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.act(self.norm(self._convolved(x)))
        return out

    def _convolved(self, x: Tensor) -> Tensor:
        """The convolution; a strided depthwise one in fp32 even where a CPU's autocast says bf16.

        The gradient to its input has no fast kernel in bf16: in V2-B0 at 224 px two such layers took a quarter of
        the step (benchmarks/results/step_tried.md).
        """
        if self._strided_depthwise and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                whole: Tensor = self.conv(x.float())
            return whole.to(torch.get_autocast_dtype("cpu"))
        out: Tensor = self.conv(x)
        return out


def _is_small(input: Tensor) -> bool:
    return input.shape[-1] * input.shape[-2] <= (16 if torch.is_autocast_enabled("cpu") else 4)


def _quick(kernel: int, stride: int, groups: int) -> type[nn.Conv2d]:
    """The kind of convolution that trains fastest."""
    if stride == 1 and kernel == 3 and groups > 1:
        return DepthwiseConv2d
    return PointwiseConv2d if stride == 1 and kernel == 1 and groups == 1 else nn.Conv2d


class SqueezeExcite(nn.Module):
    """A gate per channel, from the means of all channels.

    Args:
        channels: of input and output.
        se_channels: in between.

    Source: arXiv:1709.01507, with SiLU as in EfficientNet.
    """

    def __init__(self, channels: int, se_channels: int) -> None:
        super().__init__()
        self.reduce = PointwiseConv2d(channels, se_channels, 1)
        self.expand = PointwiseConv2d(se_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), shape unchanged."""
        gate: Tensor = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True))))  # (N, C, 1, 1)
        return x * gate.sigmoid()


class DropPath(nn.Module):
    """Stochastic depth: leaves the block out for a picture, and scales it up for the others.

    ``rate`` may be changed at any time; it is 0 in evaluation. The draws are PyTorch's own, so a caller
    who wants them repeatable seeds the generator of the device before the step, or draws himself:
    ``kept``, (N, 1, 1, 1), is 0 for a picture that leaves the block out and 1 / (1 - rate) for the others.

    Args:
        depth_fraction: of the block; the network sets ``rate`` to its own times this.

    Source: arXiv:1603.09382; one draw per picture as the released code.
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
        """The rate, for ``print(network)``."""
        return f"rate={self.rate:.3f}"


class Dropout(nn.Dropout):
    """PyTorch's dropout, whose draws a caller may make himself.

    ``kept``, of the input's shape, is 0 for a number that is left out and 1 / (1 - p) for the others; None lets
    PyTorch draw.
    """

    kept: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, unchanged."""
        if not self.training or self.kept is None:
            return super().forward(input)
        return input * self.kept.to(input.dtype)


class _Block(nn.Module):
    """What both kinds share: expansion if any, kxk, squeeze-excite if any, projection if any, shortcut."""

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
    """1x1 expansion, depthwise kxk, squeeze-excite, 1x1 projection; see ``arch.spec.Block``."""

    def __init__(self, block: Block, *, padding: Padding, epsilon: float) -> None:
        inner = block.inner_channels
        expand: nn.Module = nn.Identity()
        if block.expands:
            expand = ConvNorm(block.in_channels, inner, kernel=1, padding=padding, epsilon=epsilon)
        super().__init__(block, expand=expand, groups=inner, padding=padding, epsilon=epsilon)


class FusedMBConv(_Block):
    """Full kxk convolution, 1x1 projection where it expands; see ``arch.spec.Block``.

    Squeeze-excite, which no released network has here, stands after the kxk convolution.
    """

    def __init__(self, block: Block, *, padding: Padding, epsilon: float) -> None:
        super().__init__(block, expand=nn.Identity(), groups=1, padding=padding, epsilon=epsilon)


def initialise(network: nn.Module) -> None:
    """Draw fresh weights for every convolution and linear layer; batch-norm starts as the identity.

    Convolutions are normal with variance 2 / (k·k·out / groups), linear layers uniform within
    ±1/sqrt(out); biases are 0. The draws are PyTorch's own: seed them with ``torch.manual_seed``. On the
    device ``meta``, where weights have no values, nothing is drawn.

    Source: google/automl, efficientnetv2.
    """
    if all(parameter.is_meta for parameter in network.parameters()):
        return  # not only in vain: it would take as long as building the network
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
def calm(network: nn.Module) -> None:
    """Let every residual block begin as its shortcut, and every class as likely as any other.

    The last batch-norm's scale of residual blocks and the classifier become 0. The released range of the
    classifier, ±1/sqrt(classes), is made for a thousand classes: with ten, the first loss is 3.6 instead of
    ln 10 = 2.3, and a short run spends its warm-up on that.

    Args:
        network: ours, freshly initialised; changed in place.

    Source: arXiv:1706.02677, section 5.1 (scale 0); classifiers at 0 as in arXiv:1912.11370, section 3.3.
    """
    for module in network.modules():
        if isinstance(module, _Block) and module.drop_path is not None:
            last = module.project if isinstance(module.project, ConvNorm) else module.spatial
            assert isinstance(last, ConvNorm)
            nn.init.zeros_(last.norm.weight)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
