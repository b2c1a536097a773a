"""Distributed training: the processes of a run, and their collectives.

A launcher such as torchrun starts the same program several times and gives each a rank. The processes share the groups
of every step, and compute what one would.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from efficientnetv2.utils.errors import InputError, OtherProcessError, error_summary, pluralize
from efficientnetv2.utils.processes import START_OR_UNSET, env_int, rank_and_world_size

_logger = logging.getLogger(__name__)

Made = TypeVar("Made")

# While one process reads all files or fills a cache, the others wait for hours. Ours.
_TIMEOUT = timedelta(days=2)
# Within a step and in evaluation, all have about the same work. PyTorch's own default for gloo.
_STEP_TIMEOUT = timedelta(minutes=30)
_FAILURES, _ROOM = "efficientnetv2/failures", "efficientnetv2/room"
_POLL_S = 0.02
# Until the main process logs that it waits for the others, which torchrun starts within seconds. Ours.
_WAITS_S = 20.0


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # On this machine
    local_size: int = 1
    launch: str | None = None  # Name of torchrun's launch, equal after a restart. None without torchrun.
    restarts: int = 0
    nodes: int | None = None  # Number of machines, which may have different numbers of processes. None if unknown.
    tensors: dist.ProcessGroup | None = None  # Group of the device's backend. None is the default group, for all else.

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes, logs and decides."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are other processes."""
        return self.size > 1

    @property
    def machines(self) -> int:
        """Number of machines. If the launcher does not state it, each has equally many processes."""
        return self.size // self.local_size if self.nodes is None else self.nodes

    def groups(self, groups: int) -> range:
        """The numbers of this process's groups of a step."""
        return range(self.rank, groups, self.size)


SINGLE_PROCESS = World()


def world_from_env() -> World:
    """This process's place, from the environment variables of torchrun or a compatible launcher. Raises InputError."""
    if (here := rank_and_world_size()) is None:
        return SINGLE_PROCESS
    if here[1] > 1:
        if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
            raise InputError(
                f"environment variable WORLD_SIZE is {here[1]}, but {missing[0]} is not set. {START_OR_UNSET}"
            )
        env_int("MASTER_PORT", below=2**16)
    local_size = env_int("LOCAL_WORLD_SIZE", 1, least=1)
    below = local_size if "LOCAL_WORLD_SIZE" in os.environ else None  # some clusters set the other alone
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if launch == "none":  # torchrun has no name for it: the process that started this one
        import psutil  # Only here: a training loop does not need it.

        starter = psutil.Process(os.getppid())
        launch = f"{platform.node()}:{starter.pid}:{starter.create_time():.0f}"
    return World(
        rank=here[0],
        size=here[1],
        local_rank=env_int("LOCAL_RANK", below=below),
        local_size=local_size,
        launch=launch,
        restarts=env_int("TORCHELASTIC_RESTART_COUNT"),
        nodes=env_int("GROUP_WORLD_SIZE", least=1) if "GROUP_WORLD_SIZE" in os.environ else None,
    )


@contextmanager
def process_group(world: World, *, fix: str) -> Iterator[None]:
    """Within the block, the processes can communicate; an error in one ends all, and the first to fail reports it.

    ``fix`` is what to do after a process was killed, for the message.

    Raises:
        OtherProcessError: Another process has failed, and has reported it.
        InputError: As raised in the block; or another process was lost.
    """
    if not world.is_distributed:
        yield
        return
    with _log_waiting(world):
        try:
            store, rank, size = next(iter(rendezvous("env://", timeout=_TIMEOUT)))
        except (dist.DistError, OSError, ValueError) as error:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise InputError(
                f"process {world.rank} of {world.size} can't reach MASTER_ADDR and MASTER_PORT, {place} "
                f"({error_summary(error)}). {START_OR_UNSET}"
            ) from error
        store = _own_store(store, rank, size)
        try:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
        except RuntimeError as error:
            raise InputError(
                f"process {rank} of {size} can't connect to the others ({error_summary(error)}). "
                "Set GLOO_SOCKET_IFNAME to the interface that connects the machines."
            ) from error
    try:
        yield
    except OtherProcessError:
        raise
    except KeyboardInterrupt as stop:  # reaches all of them
        if not world.is_main_process:
            raise OtherProcessError from stop
        raise
    except Exception as error:
        # Gloo raises a plain RuntimeError where another process has failed.
        is_lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        try:
            is_first = store.add(_FAILURES, 1) == 1
        except RuntimeError:  # the store ended with the main process
            is_first = not is_lost
        if not is_first:
            raise OtherProcessError from error
        if isinstance(error, dist.DistBackendError):  # NCCL has the cause in its last lines
            raise InputError(
                f"Process {rank} of {size} can't exchange tensors with the others. Another process has ended, or the "
                "GPUs can't connect (NCCL_SOCKET_IFNAME names the interface). "
                f"{' '.join(str(error).split())}. {fix}"
            ) from error
        if is_lost:
            raise InputError(
                f"Process {rank} of {size} has lost another one ({error_summary(error)}). The launcher shows which "
                f"one ended first. {fix}"
            ) from error
        raise
    # Not after a failure: the others have gone.
    dist.destroy_process_group()


@contextmanager
def _log_waiting(world: World) -> Iterator[None]:
    """Log after some seconds of the block that the main process waits for the others."""
    message = (
        f"Waiting for the other {pluralize(world.size - 1, 'process')} (WORLD_SIZE {world.size}, MASTER_ADDR "
        f"{os.environ['MASTER_ADDR']}). {START_OR_UNSET}"
    )
    timer = threading.Timer(_WAITS_S, _logger.warning, [message])
    timer.daemon = True
    if world.is_main_process:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _own_store(store: Store, rank: int, size: int) -> Store:
    """The part of a store that belongs to this start of all processes."""
    # torchrun keeps one store over restarts, with addresses of processes that have ended, which would be waited for
    # forever. Its count of restarts differs between machines that joined at different times. So the main process
    # announces a new name; the others ask for entry under it, until it has responded.
    me = uuid.uuid4().hex
    if rank == 0:
        store.set(_ROOM, me)
        names = [store.get(f"{me}/{other}").decode() for other in range(1, size)]  # waits for them
        store.set(f"{me}/all", " ".join(names))
        return PrefixStore(me, store)
    while True:
        room = store.get(_ROOM).decode()
        store.set(f"{room}/{rank}", me)
        if store.check([f"{room}/all"]) and me in store.get(f"{room}/all").decode().split():
            return PrefixStore(room, store)
        time.sleep(_POLL_S)


def with_tensor_group(world: World, device: torch.device) -> World:
    """The world with the fastest process group for tensors on the device: NCCL between GPUs."""
    if not world.is_distributed:
        return world
    backend = "nccl" if device.type == "cuda" else "gloo"
    group = cast(dist.ProcessGroup, dist.new_group(backend=backend, timeout=_STEP_TIMEOUT))
    return replace(world, tensors=group)


def broadcast_from_main(world: World, make: Callable[[], Made]) -> Made:
    """What ``make`` returns on the main process, on all processes."""
    if not world.is_distributed:
        return make()
    box = [make() if world.is_main_process else None]
    dist.broadcast_object_list(box, src=0)
    return cast(Made, box[0])


def all_gather_object(world: World, value: Made) -> list[Made]:
    """The values of all processes, by rank."""
    if not world.is_distributed:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def gather_to_main(world: World, value: Made) -> list[Made]:
    """The values of all processes by rank, on the main process; an empty list on the others."""
    if not world.is_distributed:
        return [value]
    values: list[Any] | None = [None] * world.size if world.is_main_process else None
    dist.gather_object(value, values, dst=0)
    return values or []


def all_reduce_sum(world: World, tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype and device by their sums over all processes, in one message."""
    if not world.is_distributed or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=world.tensors)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])


def convert_sync_batch_norm(network: nn.Module, world: World) -> None:
    """Let the batch-norm layers of a model share their statistics over all processes, in place; on GPUs."""
    # A batch norm of timm applies an activation too, which PyTorch's conversion drops.
    timm: Any = sys.modules.get("timm.layers")
    convert = nn.SyncBatchNorm.convert_sync_batchnorm if timm is None else timm.convert_sync_batchnorm
    convert(network, world.tensors)
