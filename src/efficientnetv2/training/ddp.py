"""Gradients of many processes: summed layer by layer while the last backward pass of a step goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Generic, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from efficientnetv2.training.microbatch import divisors
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.device import cores
from efficientnetv2.utils.distributed import World, all_gather_object, all_reduce_sum
from efficientnetv2.utils.errors import InputError, count_of


class GradientSync:
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
        if world.is_distributed and any(weight.requires_grad for weight in network.parameters()):
            self._parallel = _parallel(network, world)
        self._fits: set[int] = set()
        self._image_px = 0

    def begin_step(self, image_px: int) -> None:
        """Before the first pass of a step with pictures of that size; again, if the step is computed anew."""
        self._image_px, self.sending = image_px, False

    @contextmanager
    def forward_pass(self, *, last: bool) -> Iterator[Callable[[Tensor], Tensor]]:
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
            all_reduce_sum(
                self.world, [weight.grad for weight in self.network.parameters() if weight.grad is not None]
            )
        self._fits.add(self._image_px)


def _parallel(network: nn.Module, world: World) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # The word for it that PyTorch 2.15 prefers is unknown to those before.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        parallel = DistributedDataParallel(
            network,
            process_group=world.tensors,
            # Statistics of batch-norm are summed by ``batch_norm.GhostBatchNormStats``, once per step.
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


Note = TypeVar("Note")


class AsyncFlags(Generic[Note]):
    """What everybody has to say after a step: whether to stop, and anything else, which is rare.

    An answer comes a step later, so that nobody waits for it; but it comes to all after the same step.

    Args:
        world: of processes.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._noted: list[Note] = []
        self._asked: tuple[dist.Work, Tensor] | None = None

    def after_step(self, *, stop: bool, noted: Sequence[Note], last: bool) -> tuple[bool, list[Note]]:
        """Called by all after every step.

        Args:
            stop: whether this process wants all to stop.
            noted: what it has to tell.
            last: whether no step comes after; then the answer is of this one.

        Returns:
            Whether all stop now, and what there was to tell, from all of them.
        """
        if not self._world.is_distributed:
            return stop, list(noted)
        self._noted += noted
        stops, tells = self._answer()
        self._ask(stop)
        if last:
            now = self._answer()
            stops, tells = stops or now[0], tells or now[1]
        if not tells:
            return stops, []
        told = [note for notes in all_gather_object(self._world, self._noted) for note in notes]
        self._noted = []
        return stops, told

    def _ask(self, stop: bool) -> None:
        flags = torch.tensor([int(stop), int(bool(self._noted))])
        work = dist.all_reduce(flags, async_op=True)
        assert work is not None
        self._asked = (work, flags)

    def _answer(self) -> tuple[bool, bool]:
        if self._asked is None:
            return False, False
        work, flags = self._asked
        work.wait()
        self._asked = None
        return bool(flags[0]), bool(flags[1])


def evenly_shared(possible: Sequence[int], *, batch_images: int, processes: int) -> Sequence[int]:
    """The sizes of groups that a number of processes can share best.

    Args:
        possible: sizes in order, at least one; each divides ``batch_images``.
        batch_images: of a step.
        processes: that share its groups.

    Returns:
        Those of which all processes get equally many; else those of which each gets one; else all.
    """
    evenly = [n for n in possible if batch_images // n % processes == 0]
    enough = [n for n in possible if batch_images // n >= processes]
    return evenly or enough or possible


def parallel_speed(world: World, device: torch.device) -> int:
    """How many processes' worth of work is done in the time that one of them, alone, takes for its own.

    On GPUs that of all. On a CPU of as many of a machine's as its cores bear with the threads that each has: divided
    among them (``utils.device.pick_own_device``) that of all, and of one where one has as many as there are
    cores.

    Args:
        world: the processes, as many on each machine.
        device: of this one.
    """
    if device.type == "cuda":
        return world.size
    return world.machines * min(world.local_size, max(1, cores() // torch.get_num_threads()))


def validate_sharing(recipe: Recipe, device: torch.device, world: World, *, begun: bool = False) -> None:
    """Every process has a group of every step; and where they share batch-norm statistics, equally many on a GPU each.

    Args:
        recipe: with ``group_images`` known.
        device: to train on.
        world: the processes.
        begun: the run is there already, and its groups are fixed.

    Raises:
        InputError: that can't be.
    """
    assert recipe.group_images is not None, "resolve_recipe() comes first"
    batch, group, processes = recipe.batch_images, recipe.group_images, world.size
    groups = batch // group
    if groups < processes:
        raise InputError(
            f"{processes} processes share the groups of a step, but there {'is' if groups == 1 else 'are'} only "
            f"{groups}: group_images is {group}, of {count_of(batch, 'picture')} a batch. "
            f"{_fewer_or(batch, group, processes, begun=begun)} at most {groups}."
        )
    if recipe.sync_batch_norm and world.is_distributed and device.type != "cuda":
        raise InputError(
            "sync_batch_norm is for GPUs; it is not needed for equal results on any number of processes. Leave it out."
        )
    if recipe.sync_batch_norm and groups % processes:
        raise InputError(
            f"With sync_batch_norm every process has equally many groups, but {processes} share {groups}. Start as "
            f"many as divide {groups}."
        )


def _fewer_or(batch: int, group: int, processes: int, *, begun: bool) -> str:
    """What else can be done than to start fewer processes."""
    if begun:
        return "Start"
    smaller = [n for n in divisors(batch, most=group) if batch // n >= processes]
    if not smaller:
        return f"Use a larger batch (--batch-images {processes} or more), or start"
    return f"Set it to {smaller[-1]} (--set group_images={smaller[-1]}), or start"
