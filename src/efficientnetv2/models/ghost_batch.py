"""Ghost batches: several in one forward pass, each with its own batch-norm statistics and random draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from efficientnetv2.models.blocks import BatchNorm2d, Dropout, DropPath
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World, all_reduce_sum


def supports_ghost_batches(network: nn.Module) -> bool:
    """Whether one pass of several ghost batches equals a pass for each: if only our batch-norm mixes the images."""
    return isinstance(network, EfficientNet) and all(
        isinstance(module, BatchNorm2d) for module in network.modules() if isinstance(module, _NormBase)
    )


@contextmanager
def ghost_batches(network: nn.Module, *, images: int, seeds: Sequence[int]) -> Iterator[None]:
    """Within: a forward pass takes one ghost batch of ``images`` images for each seed, in order along the batch.

    In ``EfficientNet``, dropout and stochastic depth are drawn before the pass for each ghost batch, so that its draws
    depend on its seed (0 to 2^63 - 1) alone and gradient checkpointing drops the same twice. Other models take one seed
    and draw during the pass from PyTorch's generators, which are seeded here.
    """
    if not isinstance(network, EfficientNet):
        assert len(seeds) == 1, "check supports_ghost_batches first"
        torch.manual_seed(seeds[0])
        yield
        return
    drops = [module for module in network.modules() if isinstance(module, DropPath | Dropout)]
    norms = [module for module in network.modules() if isinstance(module, BatchNorm2d)]
    device = network.stem.conv.weight.device
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    for drop in drops:
        keep = 1 - (drop.rate if isinstance(drop, DropPath) else drop.p)
        if keep < 1 and drop.training:
            shape = (images, 1, 1, 1) if isinstance(drop, DropPath) else (images, network.embed_dim)
            draws = [torch.rand(shape, generator=generator, device=device) for generator in generators]
            drop.kept = (torch.cat(draws) < keep).float() / keep
    for norm in norms:
        norm.groups = len(seeds)
    try:
        yield
    finally:
        for drop in drops:
            drop.kept = None
        for norm in norms:
            norm.groups = 1


class GhostBatchNormStats:
    """Updates the running statistics once per step, towards the mean over its groups (arXiv:1705.08741).

    Each group is normalized by its own statistics. So the running ones depend neither on the groups per pass nor on the
    number of processes. ``groups`` are those of a step, ``momentum`` is PyTorch's. With a single group PyTorch's update
    does the same, and this does nothing unless training ``may_overflow`` (fp16): statistics that overflow then keep
    their value, as one infinity would stay in the running ones for good.
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
        # Recomputed blocks update their statistics twice, which is harmless only with momentum 1.
        self.manual = groups > 1 or may_overflow or bool(getattr(network, "recomputed", False))
        norms = [module for module in network.modules() if isinstance(module, _NormBase)]
        self.norms = [norm for norm in norms if norm.track_running_stats]
        for norm in self.norms:
            norm.momentum = 1.0 if self.manual else momentum

    @torch.no_grad()
    def begin_step(self) -> None:
        """Before the first group: save the running statistics."""
        if self.manual:
            self._before = [tensor.clone() for tensor in self._running()]
            self._sums = [torch.zeros_like(tensor) for tensor in self._before]
            self._batches = [count.clone() for count in self._counts()]

    @torch.no_grad()
    def restart_step(self) -> None:
        """Before the groups of a step run again: drop their statistics."""
        if self.manual and self._before:  # empty if every batch-norm is frozen
            torch._foreach_zero_(self._sums)

    @torch.no_grad()
    def after_groups(self, count: int) -> None:
        """After a forward pass of ``count`` groups: with momentum 1 the buffers hold the mean of theirs."""
        if self.manual and self._before:
            torch._foreach_add_(self._sums, self._running(), alpha=count)

    @torch.no_grad()
    def end_step(self, loss: Tensor) -> None:
        """After the last group: move the saved statistics towards the mean of the groups.

        ``loss``, a scalar, is summed over the processes in the same message.
        """
        all_reduce_sum(self.world, [loss, *(self._sums if self.manual else [])])
        if self.manual and self._before:
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
        statistics = [s for norm in self.norms if norm.training for s in (norm.running_mean, norm.running_var)]
        return [tensor for tensor in statistics if tensor is not None]

    def _counts(self) -> list[Tensor]:
        counts = [norm.num_batches_tracked for norm in self.norms if norm.training]
        return [count for count in counts if count is not None]
