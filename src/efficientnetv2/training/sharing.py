"""Whether a step's groups can be shared among the processes of a run, which size of them can, and how much faster."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from efficientnetv2.base.errors import InputError, count_of
from efficientnetv2.inference.accelerate import cores
from efficientnetv2.training.distributed import World
from efficientnetv2.training.memory import divisors
from efficientnetv2.training.recipe import Recipe


def best_shared(possible: Sequence[int], *, batch_images: int, processes: int) -> Sequence[int]:
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


def at_once(world: World, device: torch.device) -> int:
    """How many processes' worth of work is done in the time that one of them, alone, takes for its own.

    On GPUs that of all. On a CPU of as many of a machine's as its cores bear with the threads that each has: divided
    among them (``inference.accelerate.pick_own_device``) that of all, and of one where one has as many as there are
    cores.

    Args:
        world: the processes, as many on each machine.
        device: of this one.
    """
    if device.type == "cuda":
        return world.size
    return world.machines * min(world.local_size, max(1, cores() // torch.get_num_threads()))


def refuse_unshared(recipe: Recipe, device: torch.device, world: World, *, begun: bool = False) -> None:
    """Every process has a group of every step; and where they share batch-norm statistics, equally many on a GPU each.

    Args:
        recipe: with ``group_images`` known.
        device: to train on.
        world: the processes.
        begun: the run is there already, and its groups are fixed.

    Raises:
        InputError: that can't be.
    """
    assert recipe.group_images is not None, "settle() decides it first"
    batch, group, processes = recipe.batch_images, recipe.group_images, world.size
    groups = batch // group
    if groups < processes:
        raise InputError(
            f"{processes} processes share the groups of a step, but there {'is' if groups == 1 else 'are'} only "
            f"{groups}: group_images is {group}, of {count_of(batch, 'picture')} a batch. "
            f"{_fewer_or(batch, group, processes, begun=begun)} at most {groups}."
        )
    if recipe.sync_batch_norm and world.many and device.type != "cuda":
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
