"""Batch-norm over a step that is made of several groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from efficientnetv2.models.regularization import set_batch_norm
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World, all_reduce_sum


class GhostBatchNormStats:
    """Batch-norm statistics of a step made of several groups: updated as one.

    Each group is normalised by its own statistics; the running ones move once per step, towards the
    mean over the groups, and a step counts as one batch. So they depend neither on how many groups run at a
    time nor on how many processes share them. With one group PyTorch's own update does the same, and this does
    nothing, but in fp16.

    Args:
        network: whose batch-norms to look after.
        groups: of a step.
        momentum: PyTorch's: share of the new statistics.
        world: the processes that share the groups.
        may_overflow: computed in fp16, where a step is left out whose gradients overflow. Statistics that did stay as
            they were before it: one infinity would stay in the running ones for good.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        groups: int,
        momentum: float,
        world: World = SINGLE_PROCESS,
        may_overflow: bool = False,
    ) -> None:
        self.groups, self.momentum, self.world, self.may_overflow = groups, momentum, world, may_overflow
        # Blocks that are computed twice put the same statistics there twice: that is harmless only with momentum 1.
        self.apart = groups > 1 or may_overflow or bool(getattr(network, "recomputed", False))
        self.norms = [
            module
            for module in network.modules()
            if isinstance(module, _NormBase) and module.track_running_stats
        ]
        set_batch_norm(network, momentum=1.0 if self.apart else momentum)

    @torch.no_grad()
    def begin_step(self) -> None:
        """Before the first group: put the running statistics aside."""
        if self.apart:
            self._before = [tensor.clone() for tensor in self._running()]
            self._sums = [torch.zeros_like(tensor) for tensor in self._before]
            self._batches = [count.clone() for count in self._counts()]

    @torch.no_grad()
    def restart_step(self) -> None:
        """Before the first group is computed a second time: forget what the step's groups had."""
        if self.apart and self._before:  # empty where every batch-norm is frozen
            torch._foreach_zero_(self._sums)

    @torch.no_grad()
    def after_groups(self, count: int) -> None:
        """After each forward pass of so many groups: with momentum 1 the buffers hold the mean of theirs."""
        if self.apart and self._before:
            torch._foreach_add_(self._sums, self._running(), alpha=count)

    @torch.no_grad()
    def end_step(self, loss: Tensor) -> None:
        """After the last group: move the statistics put aside towards the groups' mean.

        Args:
            loss: of this process's groups, a scalar that becomes that of all groups: it goes in the same message.
        """
        all_reduce_sum(self.world, [loss, *(self._sums if self.apart else [])])
        if self.apart and self._before:
            torch._foreach_div_(self._sums, self.groups)
            if self.may_overflow:
                self._sums = [
                    torch.where(new.isfinite(), new, before)
                    for new, before in zip(self._sums, self._before, strict=True)
                ]
            torch._foreach_lerp_(self._before, self._sums, self.momentum)
            torch._foreach_copy_(self._running(), self._before)
            torch._foreach_add_(self._batches, 1)
            torch._foreach_copy_(self._counts(), self._batches)

    def _running(self) -> list[Tensor]:
        return [
            tensor
            for norm in self.norms
            if norm.training
            for tensor in (norm.running_mean, norm.running_var)
            if tensor is not None
        ]

    def _counts(self) -> list[Tensor]:
        return [
            norm.num_batches_tracked
            for norm in self.norms
            if norm.training and norm.num_batches_tracked is not None
        ]
