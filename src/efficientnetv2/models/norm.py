"""Batch-norm that keeps the groups of a pass apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's batch-norm, and several groups of pictures in one pass, each normalised by its own statistics.

    ``groups`` may be changed at any time (``models.groups.one_pass`` does). With 1, and in evaluation, this is
    PyTorch's own. With more, the running statistics move towards the mean over the pass's groups, as they would if
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
