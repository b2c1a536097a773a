"""Data-parallel training: gradients, signals and groups of a step shared by several processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from efficientnetv2.training.microbatch import divisors
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.distributed import World, all_gather_object, all_reduce_sum
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.processes import cores


class GradientSync:
    """Sums the gradients of a step over all processes.

    They are sent layer by layer during the last backward pass (``sending``). The first step of each image size sends
    them at its end: it shows whether the size fits into memory, and gradients that are sent can't be computed again.
    """

    def __init__(self, network: nn.Module, world: World) -> None:
        self.network, self.world, self.sending = network, world, False
        self._parallel: DistributedDataParallel | None = None
        if world.is_distributed and any(weight.requires_grad for weight in network.parameters()):
            self._parallel = _parallel(network, world)
        self._fits: set[int] = set()
        self._image_size = 0

    def begin_step(self, image_size: int) -> None:
        """Before the first pass of a step, also of one that starts again."""
        self._image_size, self.sending = image_size, False

    @contextmanager
    def forward_pass(self, *, last: bool) -> Iterator[Callable[[Tensor], Tensor]]:
        """Context of the forward and backward pass; gives the module to call with the images."""
        if self._parallel is None:
            yield self.network
            return
        self.sending = last and self._image_size in self._fits
        with nullcontext() if self.sending else self._parallel.no_sync():
            yield self._parallel

    def end_step(self) -> None:
        """After the last pass: send what was not sent yet."""
        if self._parallel is not None and not self.sending:
            all_reduce_sum(self.world, [weight.grad for weight in self.network.parameters() if weight.grad is not None])
        self._fits.add(self._image_size)


def _parallel(network: nn.Module, world: World) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # Versions before PyTorch 2.15 do not know the new name.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        parallel = DistributedDataParallel(
            network,
            process_group=world.tensors,
            # ``GhostBatchNormStats`` sums the statistics, once per step.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    # A lambda, because PyTorch compares the annotations of the hook, which are strings here.
    parallel.register_comm_hook(world.tensors, lambda group, bucket: _summed(group, bucket))
    return parallel


def _summed(group: dist.ProcessGroup | None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The sum, not PyTorch's mean, as each group's loss is divided by the number of all groups already."""
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    future = work.get_future()
    return cast("torch.futures.Future[Tensor]", future.then(lambda done: done.value()[0]))


class AsyncFlags:
    """Shares after each step whether to stop, and rare notes, among all processes.

    The result arrives one step later, so that no process waits, but on all processes after the same step.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._noted: list[tuple[int, str]] = []
        self._pending: tuple[dist.Work, Tensor] | None = None

    def after_step(
        self, *, stop: bool, noted: Sequence[tuple[int, str]], last: bool
    ) -> tuple[bool, list[tuple[int, str]]]:
        """Whether all processes stop now, and the notes of all of them. All processes call this after every step.

        ``stop`` is whether this process wants to; ``noted`` are its notes; the ``last`` step does not wait for another.
        """
        if not self._world.is_distributed:
            return stop, list(noted)
        self._noted += noted
        stop_all, has_notes = self._receive()
        flags = torch.tensor([int(stop), int(bool(self._noted))])
        work = dist.all_reduce(flags, async_op=True)
        assert work is not None
        self._pending = (work, flags)
        if last:
            now = self._receive()
            stop_all, has_notes = stop_all or now[0], has_notes or now[1]
        if not has_notes:
            return stop_all, []
        shared = [note for notes in all_gather_object(self._world, self._noted) for note in notes]
        self._noted = []
        return stop_all, shared

    def _receive(self) -> tuple[bool, bool]:
        if self._pending is None:
            return False, False
        work, flags = self._pending
        work.wait()
        self._pending = None
        return bool(flags[0]), bool(flags[1])


def evenly_shared(possible: Sequence[int], *, batch_size: int, processes: int) -> Sequence[int]:
    """The group sizes that give all processes equally many groups, or else at least one group each, or else all."""
    evenly = [size for size in possible if batch_size // size % processes == 0]
    enough = [size for size in possible if batch_size // size >= processes]
    return evenly or enough or possible


def parallel_speed(world: World, device: torch.device) -> int:
    """Speed of all processes together, in multiples of a single one that runs alone.

    On GPUs this is their number. On CPUs it is limited by the cores of each machine and the threads of each process.
    """
    if device.type == "cuda":
        return world.size
    return world.machines * min(world.local_size, max(1, cores() // torch.get_num_threads()))


def validate_sharing(
    recipe: Recipe, device: torch.device, world: World, *, least: int = 1, is_set: bool = True, begun: bool = False
) -> None:
    """Check that each process gets a group of every step and, with ``sync_batch_norm``, equally many on a GPU each.

    A group must have ``least`` images. ``is_set`` is whether the user set its size; ``begun`` whether the run exists
    already, so that its groups are fixed.

    Raises InputError if a process would get no group, or an unequal number.
    """
    batch, group, groups, processes = recipe.batch_size, recipe.group_size, recipe.num_groups, world.size
    if groups < processes:
        possible = [size for size in divisors(batch, most=group) if size >= least]
        smaller = [size for size in possible if batch // size >= processes]
        setting = f"`ghost_batch_size={smaller[-1]}`" if smaller else f"`batch_size={processes * least}`"
        most = groups if is_set else batch // possible[0]
        raise InputError(
            f"{processes} processes share the groups of a step, but there {'is' if groups == 1 else 'are'} only "
            f"{groups}: `ghost_batch_size` is {group}, of {pluralize(batch, 'image')} a batch. Start at most {most}"
            f"{'' if begun else f', or set {setting}'}."
        )
    if recipe.sync_batch_norm and world.is_distributed and device.type != "cuda":
        raise InputError("`sync_batch_norm` is for GPUs, and equal results do not need it. Leave it out.")
    if recipe.sync_batch_norm and groups % processes:
        raise InputError(
            f"With `sync_batch_norm`, {processes} processes can't share {groups} groups evenly. Start as many as "
            f"divide {groups}."
        )
