"""Convolutions as the networks of this family use them: padded as TensorFlow pads, quick to train on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from efficientnetv2.arch.spec import Padding
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
