"""Layers and blocks: convolutions, batch-norm, squeeze-excite, stochastic depth, MBConv and Fused-MBConv.

Some layers have a second path for training on a CPU; benchmarks/results/step_tried.md has the measurements.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from efficientnetv2.architectures.spec import Block, Padding

# A matrix product trains faster than a convolution up to so many output positions, 3x3 with at least so many channels.
# Ours, measured on two cores with AVX-512 and bf16.
_POINTWISE_AUTOCAST = 64
_SQUARE_AUTOCAST = 9
_SQUARE_CHANNELS = 256


class BatchNorm2d(nn.BatchNorm2d):
    """Batch-norm that normalizes ``groups`` ghost batches of one pass separately (``ghost_batch.ghost_batches``).

    The running statistics move to the mean over the groups, each of which starts from the old ones.
    """

    def __init__(self, channels: int, *, epsilon: float) -> None:
        super().__init__(channels, eps=epsilon)
        self.groups = 1

    def forward(self, input: Tensor) -> Tensor:
        """(groups * n, C, H, W), the groups one after another; shape unchanged."""
        if self.groups == 1 or not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        means = self.running_mean.repeat(self.groups, 1)  # (groups, C)
        variances = self.running_var.repeat(self.groups, 1)
        parts = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)
            for part, mean, variance in zip(input.chunk(self.groups), means, variances, strict=True)
        ]
        with torch.no_grad():
            self.running_mean.copy_(means.mean(0))
            self.running_var.copy_(variances.mean(0))
        return torch.cat(parts)


def same_padding(size: int, *, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after a side of ``size`` pixels, for an output of ``ceil(size / stride)``. As TensorFlow's.

    The padded size is a multiple of the stride plus a constant, which symbolic shapes simplify.
    """
    if kernel < stride:
        return 0, 0
    after = kernel // 2
    return -(-size // stride) * stride + kernel - stride - after - size, after


class SameConv2d(nn.Conv2d):
    """A square convolution with TensorFlow's "same" padding, which depends on the input size."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        top, bottom = same_padding(input.shape[-2], kernel=kernel, stride=stride)
        left, right = same_padding(input.shape[-1], kernel=kernel, stride=stride)
        padding = (top, left)
        # A compiled or exported model always copies, so that one program serves odd and even sizes.
        if torch.compiler.is_compiling() or top != bottom or left != right:
            input = F.pad(input, (left, right, top, bottom))
            padding = (0, 0)
        return F.conv2d(input, self.weight, self.bias, self.stride, padding, groups=self.groups)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise 3x3 convolution at stride 1 that pads inputs below 3 px before the convolution.

    On a CPU, the gradient of such an input takes 13 times as long if the convolution pads.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        if self.training and input.device.type == "cpu" and max(input.shape[-2:]) < self.kernel_size[0]:
            return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias, groups=self.groups)
        return super().forward(input)


class ProductConv2d(nn.Conv2d):
    """A 1x1 or 3x3 convolution without groups, trained on a CPU as a matrix product where that is faster.

    On small maps a convolution spends most time on laying out weights and gradients.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        if not (self.training and input.device.type == "cpu" and self._product_is_faster(input)):
            return super().forward(input)
        # Permuted so that the gradient has the channels-last layout of the weight: DDP copies it otherwise, and warns.
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(self._neighbors(input), weight, self.bias).permute(0, 3, 1, 2)

    def _product_is_faster(self, input: Tensor) -> bool:
        kernel, stride = self.kernel_size[0], self.stride[0]
        positions = -(-input.shape[-2] // stride) * -(-input.shape[-1] // stride)
        autocast = torch.is_autocast_enabled("cpu")
        if kernel == 1:
            return positions <= (_POINTWISE_AUTOCAST if autocast else 1)
        return autocast and positions <= _SQUARE_AUTOCAST and self.in_channels >= _SQUARE_CHANNELS

    def _neighbors(self, input: Tensor) -> Tensor:
        """The inputs of each output position: (N, C, H, W) to (N, H', W', k * k * C), in the order of the weight."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        maps = input.permute(0, 2, 3, 1)
        if kernel == 1:
            return maps[:, ::stride, ::stride]
        height, width = input.shape[-2:]
        padded = F.pad(maps, (0, 0, 1, 1, 1, 1))
        shifted = [
            padded[:, row : row + height : stride, column : column + width : stride]
            for row in range(kernel)
            for column in range(kernel)
        ]
        return torch.cat(shifted, dim=-1)


def optimize_convolutions(module: nn.Module) -> None:
    """Make plain convolutions within a module ``ProductConv2d``, in place; weights, names and outputs stay."""
    for conv in module.modules():
        if type(conv) is not nn.Conv2d or conv.groups != 1 or conv.padding_mode != "zeros":
            continue
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        square = conv.kernel_size == (kernel, kernel) and conv.stride == (stride, stride)
        padded = conv.padding == (kernel // 2, kernel // 2) and conv.dilation == (1, 1)
        if square and padded and kernel in (1, 3):
            conv.__class__ = ProductConv2d


class ConvNorm(nn.Module):
    """Convolution without bias, batch-norm and, unless ``act`` is False, SiLU."""

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
        pads_by_size = padding == "same" and stride > 1
        layer: type[nn.Conv2d] = nn.Conv2d
        if pads_by_size:
            layer = SameConv2d
        elif groups > 1 and stride == 1 and kernel == 3:
            layer = DepthwiseConv2d
        elif groups == 1 and kernel in (1, 3):
            layer = ProductConv2d
        pixels = 0 if pads_by_size else (kernel - 1) // 2
        self.conv = layer(in_channels, out_channels, kernel, stride, pixels, groups=groups, bias=False)
        self.norm = BatchNorm2d(out_channels, epsilon=epsilon)
        self.act: nn.Module = nn.SiLU() if act else nn.Identity()
        self._strided_depthwise = groups > 1 and stride > 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.act(self.norm(self._convolved(x)))
        return out

    def _convolved(self, x: Tensor) -> Tensor:
        # The input gradient of a strided depthwise convolution has no fast bf16 kernel on a CPU.
        if self._strided_depthwise and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                single: Tensor = self.conv(x.float())
            return single.to(torch.get_autocast_dtype("cpu"))
        out: Tensor = self.conv(x)
        return out


class SqueezeExcite(nn.Module):
    """A gate per channel, computed from the means of all channels (arXiv:1709.01507, with SiLU as in EfficientNet)."""

    def __init__(self, channels: int, se_channels: int) -> None:
        super().__init__()
        self.reduce = ProductConv2d(channels, se_channels, 1)
        self.expand = ProductConv2d(se_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), shape unchanged."""
        # On a CPU, the gradient of a mean is materialized and that of a sum is not. A sum in fp16 could overflow.
        # torch.jit.trace compares calls with and without gradients.
        has_gradient = x.requires_grad or is_tracing()  # type: ignore[no-untyped-call]
        if has_gradient and x.device.type == "cpu" and x.dtype != torch.float16:
            mean = x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
        else:
            mean = x.mean((2, 3), keepdim=True)
        gate: Tensor = self.expand(F.silu(self.reduce(mean)))  # (N, C, 1, 1)
        return x * gate.sigmoid()


class DropPath(nn.Module):
    """Stochastic depth: skips the block for some images of a batch, and scales it up for the others.

    ``apply_regularization`` sets ``rate`` to the model's rate times ``depth_fraction``. ``kept`` replaces the draws:
    (N, 1, 1, 1), 0 for a skipped image and 1 / (1 - rate) for the others.

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


class MBConv(nn.Module):
    """1x1 expansion, depthwise kxk convolution, squeeze-excite, 1x1 projection, shortcut: those that ``block`` has."""

    def __init__(self, block: Block, *, padding: Padding, epsilon: float) -> None:
        super().__init__()
        conv = partial(ConvNorm, padding=padding, epsilon=epsilon)
        in_channels, inner, depthwise = block.in_channels, block.inner_channels, block.kind == "mbconv"
        self.expand: nn.Module = nn.Identity()
        if depthwise and block.expands:
            self.expand = conv(in_channels, inner, kernel=1)
        self.spatial = conv(
            inner if depthwise else in_channels,
            inner,
            kernel=block.kernel,
            stride=block.stride,
            groups=inner if depthwise else 1,
        )
        self.se: nn.Module = nn.Identity()
        if block.se_channels is not None:
            self.se = SqueezeExcite(inner, block.se_channels)
        self.project: nn.Module = nn.Identity()
        if block.projects:
            self.project = conv(inner, block.out_channels, kernel=1, act=False)
        self.drop_path = DropPath(block.depth_fraction) if block.residual else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.project(self.se(self.spatial(self.expand(x))))
        return out if self.drop_path is None else x + self.drop_path(out)


class FusedMBConv(MBConv):
    """One full kxk convolution in place of the expansion and the depthwise convolution."""


def init_weights(network: nn.Module) -> None:
    """Draw random weights for every convolution and linear layer; batch-norm starts as the identity.

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

    The last batch-norm scale of residual blocks and the classifier become 0. With ten classes, the released range of
    the classifier, ±1/sqrt(classes), gives a first loss of 3.6 instead of ln 10 = 2.3.

    Source: arXiv:1706.02677, section 5.1 (scale 0); arXiv:1912.11370, section 3.3 (classifier at 0).
    """
    for module in network.modules():
        if isinstance(module, MBConv) and module.drop_path is not None:
            last = module.project if isinstance(module.project, ConvNorm) else module.spatial
            nn.init.zeros_(last.norm.weight)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
