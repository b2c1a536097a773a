"""Convolutions as the networks of this family use them: padded as TensorFlow pads, quick to train on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn
from torch.nn import functional

from efficientnetv2.architectures.spec import Padding


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's batch-norm, and several groups of pictures in one pass, each normalised by its own statistics.

    ``groups`` may be changed at any time (``models.ghost_batch.ghost_batches`` does). With 1, and in evaluation, this
    is PyTorch's own. With more, the running statistics move towards the mean over the pass's groups, as they would if
    the groups came one after another and each moved the statistics from where they were before.

    Args:
        channels: of the input.
        epsilon: added to the variance.
    """

    def __init__(self, channels: int, *, epsilon: float) -> None:
        super().__init__(channels, eps=epsilon)
        self.groups = 1

    def forward(self, input: Tensor) -> Tensor:
        """(groups * n, C, H, W), the groups one after another; shape unchanged."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._grouped(input)
        # TorchScript knows no ``super``.
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            0.0 if self.momentum is None else self.momentum, self.eps,
        )  # fmt: skip

    def _grouped(self, input: Tensor) -> Tensor:
        if self.groups == 1 or not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        means = self.running_mean.repeat(self.groups, 1)  # (groups, C)
        variances = self.running_var.repeat(self.groups, 1)
        parts = [
            functional.batch_norm(part, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)
            for part, mean, variance in zip(input.chunk(self.groups), means, variances, strict=True)
        ]
        with torch.no_grad():
            self.running_mean.copy_(means.mean(0))
            self.running_var.copy_(variances.mean(0))
        return torch.cat(parts)


# Up to how many positions of its result a convolution takes longer, forward and backward, than a product of the same
# numbers, and from how many channels on; ours, measured on two cores with AVX-512 and bf16
# (benchmarks/results/step_tried.md).
_POINTWISE_AUTOCAST = 64
_SQUARE_AUTOCAST = 9
_SQUARE_CHANNELS = 256


def same_padding(px: int, *, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after a side so that ``ceil(px / stride)`` come out.

    An odd one goes after: to the bottom and the right. So the pixels after are the same at every size. The size, the
    pixels before and those after add up to a multiple of the stride plus a constant: ``torch.compile`` and
    ``torch.export`` simplify this sum, however many layers follow each other.

    Args:
        px: Length of the side.
        kernel: Odd side of the kernel.
        stride: 1 or 2.

    Source: TensorFlow's documentation of the padding "SAME".
    """
    if kernel < stride:
        return 0, 0
    after = kernel // 2
    return -(-px // stride) * stride + kernel - stride - after - px, after


class SameConv2d(nn.Conv2d):
    """A square convolution with TensorFlow's "same" padding, which depends on the size of its input.

    Where the two sides need equal padding (at stride 2: odd sizes) the convolution pads by itself;
    only elsewhere is the input copied. A compiled or exported network always copies: it asks for no size, so one
    program serves odd and even sizes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        top, bottom = same_padding(input.shape[-2], kernel=kernel, stride=stride)
        left, right = same_padding(input.shape[-1], kernel=kernel, stride=stride)
        padding = (top, left)
        if torch.compiler.is_compiling() or top != bottom or left != right:
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
        out: Tensor = self._conv_forward(input, self.weight, self.bias)  # TorchScript knows no ``super``
        return out


class ProductConv2d(nn.Conv2d):
    """A convolution of 1x1 or 3x3 without groups, trained on a CPU as a matrix product where that is quicker.

    On small maps a convolution spends more on laying weights and gradients out than on products. A 1x1 convolution is
    one where autocast is on and up to 8 x 8 positions come out, and of a single position without autocast; a 3x3 one
    with autocast, up to 3 x 3 positions and from 256 channels on, of which the nine neighbours are copied side by side.
    Together a quarter of ResNet-50's step at 48 px (benchmarks/results/step_tried.md).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._quickest(input)
        out: Tensor = self._conv_forward(input, self.weight, self.bias)
        return out

    def _quickest(self, input: Tensor) -> Tensor:
        if not (self.training and input.device.type == "cpu" and self._is_quicker(input)):
            return super().forward(input)
        # Permuted, so that the gradient lies in memory as the channels-last weight does: PyTorch's parallel
        # training copies it otherwise, and warns.
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(self._neighbours(input), weight, self.bias).permute(0, 3, 1, 2)

    def _is_quicker(self, input: Tensor) -> bool:
        kernel, stride = self.kernel_size[0], self.stride[0]
        positions = -(-input.shape[-2] // stride) * -(-input.shape[-1] // stride)
        autocast = torch.is_autocast_enabled("cpu")
        if kernel == 1:
            return positions <= (_POINTWISE_AUTOCAST if autocast else 1)
        return autocast and positions <= _SQUARE_AUTOCAST and self.in_channels >= _SQUARE_CHANNELS

    def _neighbours(self, input: Tensor) -> Tensor:
        """What each position is made of: (N, C, H, W) to (N, H', W', k * k * C), in the order of the weight."""
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
    """Make plain convolutions within a module ``ProductConv2d``, in place: weights, names and answers stay.

    Args:
        module: whose parts of type ``nn.Conv2d`` are changed; those of other types, derived ones too, are left alone.
    """
    for part in module.modules():
        if type(part) is nn.Conv2d and _may_be_product(part):
            part.__class__ = ProductConv2d


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
        # TorchScript, which only predicts, knows not all that a CPU's autocast needs.
        convolved: Tensor = self.conv(x) if torch.jit.is_scripting() else self._convolved(x)  # type: ignore[attr-defined]
        out: Tensor = self.act(self.norm(convolved))
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


def _quick(kernel: int, stride: int, groups: int) -> type[nn.Conv2d]:
    """The kind of convolution that trains fastest."""
    if groups > 1:
        return DepthwiseConv2d if stride == 1 and kernel == 3 else nn.Conv2d
    return ProductConv2d if kernel in (1, 3) else nn.Conv2d


def _may_be_product(convolution: nn.Conv2d) -> bool:
    """Whether ``ProductConv2d`` knows its kind: padded to the middle of its kernel with zeros, the same both ways."""
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    plain = convolution.groups == 1 and convolution.padding_mode == "zeros" and convolution.dilation == (1, 1)
    square = convolution.kernel_size == (kernel, kernel) and convolution.stride == (stride, stride)
    return plain and square and kernel in (1, 3) and convolution.padding == (kernel // 2, kernel // 2)
