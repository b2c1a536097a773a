"""Many processes as one: who is who, and everything that they say to each other.

A launcher (torchrun, on one machine or on many) starts the same program several times and gives each its number.
They share the groups of every step: gradients are summed by PyTorch's DistributedDataParallel while the backward
pass goes on, batch-norm statistics and losses once per step. So N processes compute what one would.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from efficientnetv2.utils.errors import InputError, OtherProcessError, pluralize
from efficientnetv2.utils.shell import START_OR_UNSET, env_int, rank_and_world_size

_logger = logging.getLogger(__name__)

Made = TypeVar("Made")

# Where one process works and the others wait (it looks at every file, or fills a cache), hours are no fault. Ours.
_PATIENCE = timedelta(days=2)
# Within a step, and while evaluating, all have about the same to do. PyTorch's own default for gloo.
_STEP_PATIENCE = timedelta(minutes=30)
_FAILURES, _ROOM = "efficientnetv2/failures", "efficientnetv2/room"
_ASK_AGAIN_S = 0.02
# Until the first process says that it waits for the others, which torchrun starts within seconds. Ours.
_WAITS_S = 20.0


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Args:
        rank: this one's number, from 0.
        size: how many there are.
        local_rank: its number on its machine.
        local_size: how many there are on its machine.
        launch: what torchrun's start of them is called: the same when it starts them again after a failure. None
            without torchrun.
        restarts: how often it has done so.
        tensors: the group that tensors go through, of the device's kind; None is the default one, which all else
            goes through.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launch: str | None = None
    restarts: int = 0
    tensors: dist.ProcessGroup | None = None

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes, prints and decides."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there is anybody to talk to."""
        return self.size > 1

    @property
    def machines(self) -> int:
        """How many they run on, as many on each."""
        return self.size // self.local_size

    def groups(self, groups: int) -> range:
        """This process's share of a step's groups, by their numbers."""
        return range(self.rank, groups, self.size)


SINGLE_PROCESS = World()


def world_from_env() -> World:
    """This process's place, as the launcher's environment says it: torchrun's, or whoever's sets the same names.

    Raises:
        InputError: A variable is missing or out of range, as where a cluster has set some of them.
    """
    if (here := rank_and_world_size()) is None:
        return SINGLE_PROCESS
    if here[1] > 1:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                raise InputError(
                    f"environment variable WORLD_SIZE is {here[1]}, but {name} is not set, so the processes can't find "
                    f"each other. {START_OR_UNSET}"
                )
        env_int("MASTER_PORT", below=2**16)
    local_size = env_int("LOCAL_WORLD_SIZE", 1, least=1)
    below = local_size if "LOCAL_WORLD_SIZE" in os.environ else None  # some clusters set the other alone
    return World(
        rank=here[0],
        size=here[1],
        local_rank=env_int("LOCAL_RANK", below=below),
        local_size=local_size,
        launch=_launch(os.environ.get("TORCHELASTIC_RUN_ID")),
        restarts=env_int("TORCHELASTIC_RESTART_COUNT"),
    )


def _launch(run_id: str | None) -> str | None:
    """Torchrun's own name for a launch; where it has none, the process that started this one and lives on."""
    if run_id != "none":
        return run_id
    starter = psutil.Process(os.getppid())
    return f"{platform.node()}:{starter.pid}:{starter.create_time():.0f}"


@contextmanager
def process_group(world: World, *, mend: str) -> Iterator[None]:
    """Within it the processes can talk; what ends one of them ends all, and the first to fail says why.

    Args:
        world: of ``world_from_env()``.
        mend: what to do where one was killed.

    Raises:
        OtherProcessError: another process has failed, and has said why.
        InputError: as raised within; or another process is gone without a word.
    """
    if not world.is_distributed:
        yield
        return
    with _telling_of_waiting(world):
        try:
            store, rank, size = next(iter(rendezvous("env://", timeout=_PATIENCE)))
        except (dist.DistError, OSError, ValueError) as error:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise InputError(
                f"process {world.rank} of {world.size} can't reach MASTER_ADDR and MASTER_PORT, {place} "
                f"({_first_line(error)}). {START_OR_UNSET}"
            ) from error
        store = _room_of_its_own(store, rank, size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield
    except OtherProcessError:
        raise
    except KeyboardInterrupt as stop:  # reaches all of them
        if not world.is_main_process:
            raise OtherProcessError from stop
        raise
    except Exception as error:
        lost_touch = _is_lost_touch(error)
        if not _first_to_fail(store, otherwise=not lost_touch):
            raise OtherProcessError from error
        if lost_touch:
            raise InputError(
                f"Process {rank} of {size} has lost touch with another one ({_first_line(error)}), which was killed or "
                f"can't be reached. The launcher says which one ended first. {mend}"
            ) from error
        raise
    # After a failure nobody is there to say goodbye to; the process is about to end, and so do its connections.
    dist.destroy_process_group()


@contextmanager
def _telling_of_waiting(world: World) -> Iterator[None]:
    """Within, the processes find each other. After some seconds the first one says that it waits."""

    def tell() -> None:
        _logger.warning(
            f"Waiting for the other {pluralize(world.size - 1, 'process')} (WORLD_SIZE {world.size}, MASTER_ADDR "
            f"{os.environ['MASTER_ADDR']}). {START_OR_UNSET}"
        )

    timer = threading.Timer(_WAITS_S, tell)
    timer.daemon = True
    if world.is_main_process:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _room_of_its_own(store: Store, rank: int, size: int) -> Store:
    """The part of a store that belongs to this start of all processes.

    torchrun keeps one store over its restarts, with the addresses of processes that are no more; who finds those first
    waits for them for ever. And its count of restarts differs between machines that joined at different times. So the
    first process opens a room under a name that is new; the others ask for entry, under names as new, until it has
    answered them.
    """
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
        time.sleep(_ASK_AGAIN_S)


def with_tensor_group(world: World, device: torch.device) -> World:
    """The same, its tensors sent by what is fastest on the device: NCCL between GPUs."""
    if not world.is_distributed:
        return world
    backend = "nccl" if device.type == "cuda" else "gloo"
    group = cast(dist.ProcessGroup, dist.new_group(backend=backend, timeout=_STEP_PATIENCE))
    return replace(world, tensors=group)


def broadcast_from_main(world: World, make: Callable[[], Made]) -> Made:
    """What the first process makes, for all of them; the others wait for it.

    Args:
        world: of processes.
        make: called by the first process alone.
    """
    if not world.is_distributed:
        return make()
    box = [make() if world.is_main_process else None]
    dist.broadcast_object_list(box, src=0)
    return cast(Made, box[0])


def all_gather_object(world: World, value: Made) -> list[Made]:
    """Everybody's value, in the order of their numbers."""
    if not world.is_distributed:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def gather_to_main(world: World, value: Made) -> list[Made]:
    """Everybody's value, in the order of their numbers, for the first process; for the others an empty list."""
    if not world.is_distributed:
        return [value]
    values: list[Any] | None = [None] * world.size if world.is_main_process else None
    dist.gather_object(value, values, dst=0)
    return values or []


def all_reduce_sum(world: World, tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one type and device by their sums over all processes, in one message."""
    if not world.is_distributed or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=world.tensors)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])


def convert_sync_batch_norm(network: nn.Module, world: World) -> None:
    """Let the batch-norms of a network share their statistics with all processes; on GPUs.

    Its weights, their names and their order stay what they were.

    Args:
        network: changed in place; no batch-norm itself.
        world: of processes, which compute equally many passes.
    """
    nn.SyncBatchNorm.convert_sync_batchnorm(network, world.tensors)  # type: ignore[no-untyped-call]


def _first_to_fail(store: Store, *, otherwise: bool) -> bool:
    try:
        return bool(store.add(_FAILURES, 1) == 1)
    except RuntimeError:  # the store went with the first process, which was its keeper
        return otherwise


def _is_lost_touch(error: Exception) -> bool:
    """Whether an operation failed because of somebody else: gloo says so in words alone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
