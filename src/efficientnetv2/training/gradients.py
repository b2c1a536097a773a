"""Gradients of many processes: summed layer by layer while the last backward pass of a step goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from efficientnetv2.training.distributed import World, sum_


class Gradients:
    """Passes whose gradients become, by the end of a step, the sum over all processes.

    They are sent while the last backward pass goes on, layer by layer. Only the first step of each picture size
    keeps them back until its end: if a size does not fit into memory, that is where it shows, and what has been sent
    can't be computed anew.

    Args:
        network: on its device, the same on every process.
        world: of processes.

    Attributes:
        sending: whether the pass that runs, or ran last, sends its gradients.
    """

    def __init__(self, network: nn.Module, world: World) -> None:
        self.network, self.world, self.sending = network, world, False
        self._parallel: DistributedDataParallel | None = None
        if world.many and any(weight.requires_grad for weight in network.parameters()):
            self._parallel = _parallel(network, world)
        self._fits: set[int] = set()
        self._image_px = 0

    def begin_step(self, image_px: int) -> None:
        """Before the first pass of a step with pictures of that size; again, if the step is computed anew."""
        self._image_px, self.sending = image_px, False

    @contextmanager
    def of_pass(self, *, last: bool) -> Iterator[Callable[[Tensor], Tensor]]:
        """Around forward and backward of each pass; gives what to call with the pictures."""
        if self._parallel is None:
            yield self.network
            return
        self.sending = last and self._image_px in self._fits
        with nullcontext() if self.sending else self._parallel.no_sync():
            yield self._parallel

    def end_step(self) -> None:
        """After the last pass: what was kept back is summed now."""
        if self._parallel is not None and not self.sending:
            sum_(self.world, [weight.grad for weight in self.network.parameters() if weight.grad is not None])
        self._fits.add(self._image_px)


def _parallel(network: nn.Module, world: World) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # The word for it that PyTorch 2.15 prefers is unknown to those before.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        parallel = DistributedDataParallel(
            network,
            process_group=world.tensors,
            # Statistics of batch-norm are summed by ``statistics.GroupedStatistics``, once per step.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    # Behind a lambda, because PyTorch compares the hook's annotations, which here are strings.
    parallel.register_comm_hook(world.tensors, lambda group, bucket: _summed(group, bucket))
    return parallel


def _summed(group: dist.ProcessGroup | None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Gradients summed: each group's loss is divided by the number of all groups already.

    DistributedDataParallel by itself takes the mean, which is another number where processes have unequal shares.
    """
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    future = work.get_future()
    return cast("torch.futures.Future[Tensor]", future.then(lambda done: done.value()[0]))
