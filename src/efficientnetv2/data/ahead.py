"""Reading ahead: worker processes that live as long as a run, threads where there are none, and what kills them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from efficientnetv2.base.errors import InputError, ReaderKilledError
from efficientnetv2.base.leftovers import end_with_parent, own_folder

Read = TypeVar("Read")
#: Batches that each worker has read ahead where nobody takes them. Ours.
AHEAD = 4


@dataclass(frozen=True)
class Failure:
    """Why a request could not be answered; it travels from a worker as a value."""

    message: str

    def pin_memory(self) -> Failure:
        """For the DataLoader, which pins what goes to a GPU."""
        return self


def reading_threads(workers: int) -> int:
    """How many threads read in one process: one in a worker; without workers, one per core.

    On a CPU the training step keeps all cores busy, and a worker beside it makes its threads wait for each
    other. So the main process reads by itself, on all cores, between two steps. Pillow lets threads run side by
    side while it decodes and resizes.
    """
    return 1 if workers else torch.get_num_threads()


def in_threads(work: Callable[[int], Read], count: int, threads: int) -> list[Read]:
    """``work`` of 0 to count - 1, in order."""
    if threads == 1:
        return [work(place) for place in range(count)]
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Around the threads, because filters belong to the process: within, each opener sets its own aside.
        warnings.simplefilter("ignore")
        return list(pool.map(work, range(count)))


def _begun(dataset: Dataset[Any], requests: Any, workers: int, pin_memory: bool) -> Iterator[Any]:
    parent = None
    if workers:
        if parent_process() is None:  # else its parent's folder holds what multiprocessing puts aside
            own_folder()
        # The system ends a worker with the thread that has started it, and only the main thread stays to the end.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else None
    with warnings.catch_warnings():
        # Of every loader anew, beyond a worker per core; whoever asked for them has been told of the cores once.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        # batch_size=None: a request is a whole group already, so nothing is left to collate.
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            sampler=requests,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=partial(_begin_worker, parent=parent) if workers else None,
            prefetch_factor=AHEAD if workers else None,
            # On Linux forked, whatever Python's default: they share the list of pictures, and begin at once.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )
        return iter(loader)


def answers_of(dataset: Dataset[Any], requests: Any, workers: int, pin_memory: bool) -> Iterator[Any]:
    """What a dataset answers to requests, in their order, read ahead by ``workers`` processes (0: none).

    Raises:
        InputError: while iterating: the reason of a ``Failure``, or a worker was killed.
    """
    with telling_killed_readers():
        for batch in _begun(dataset, requests, workers, pin_memory):
            if isinstance(batch, Failure):
                raise InputError(batch.message)
            yield batch


@contextmanager
def telling_killed_readers() -> Iterator[None]:
    """Around reading, and around what is done with what was read: PyTorch says so wherever the main process is.

    Raises:
        ReaderKilledError: a process that reads pictures was killed, other than for want of shared memory.
        InputError: it was, for that: a Bus error.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        said = str(error) or type(error).__name__
        if isinstance(error, RuntimeError) and (
            "DataLoader worker" not in said
            or not ("exited unexpectedly" in said or "killed by signal" in said)
        ):
            raise
        # Shared memory holds pictures alone; of other memory the network that is trained has most.
        kind = InputError if "Bus error" in said else ReaderKilledError
        raise kind(
            f"A process that reads pictures was killed by the system ({said.splitlines()[0]}), most likely for "
            "want of memory or shared memory. Use fewer with --workers, or none with --workers 0."
        ) from error


def _begin_worker(_: int, parent: int | None) -> None:
    if parent is not None:
        end_with_parent(parent)
    torch.set_num_threads(1)
    # Ctrl-C, a window that is closed, and a launcher's SIGTERM reach the whole process group; the main process alone
    # decides what they mean. Its own SIGTERM, for a worker that does not end by itself, comes after.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # Windows has none
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
