"""Several processes that train together, as a launcher would start them, but forked off a warm server."""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.command_line import SERVER, Done, Running, started


def in_processes(
    work: Callable[..., Any], size: int, *args: Any, timeout: float = 120, agent_port: int | None = None
) -> list[Any]:
    """What ``work(*args)`` gives or raises in each of ``size`` processes, in the order of their ranks; None if killed.

    Args:
        work: a function of a module; it finds its rank in the environment, as under torchrun.
        size: how many.
        args: pickled along.
        timeout: seconds for all.
        agent_port: of a store that the launcher keeps; None lets the first process keep one.
    """
    with tempfile.TemporaryDirectory() as folder:
        port = agent_port or free_port()
        agent = {"TORCHELASTIC_USE_AGENT_STORE": str(agent_port is not None)}
        files = [Path(folder) / f"{rank}.pickle" for rank in range(size)]
        processes = [
            SERVER.Process(target=_one, args=(work, args, environment(rank, size, port) | agent, file))
            for rank, file in enumerate(files)
        ]
        for process in processes:
            process.start()
        until = time.monotonic() + timeout
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        late = [process for process in processes if process.exitcode is None]
        for process in late:
            process.kill()
        assert not late, f"{len(late)} of {size} processes have not ended after {timeout} s"
        return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


def started_together(
    size: int, *arguments: object, cwd: Path, launch: str = "a launch", restarts: int = 0
) -> list[Running]:
    """Start a command as torchrun would, in several processes.

    Args:
        size: how many.
        arguments: of the command.
        cwd: where.
        launch: what torchrun calls its run.
        restarts: how often it has started them again.
    """
    port = free_port()
    torchrun = {"TORCHELASTIC_RUN_ID": launch, "TORCHELASTIC_RESTART_COUNT": str(restarts)}
    return [started(*arguments, cwd=cwd, environment=environment(rank, size, port) | torchrun) for rank in range(size)]


def effnetv2_together(
    size: int, *arguments: object, cwd: Path, launch: str = "a launch", restarts: int = 0
) -> list[Done]:
    """Run a command in several processes; how each ended, in the order of their ranks."""
    running = started_together(size, *arguments, cwd=cwd, launch=launch, restarts=restarts)
    return [one.end() for one in running]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What a launcher tells its processes, all on one machine."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _one(work: Callable[..., Any], args: tuple[Any, ...], place: dict[str, str], file: Path) -> None:
    import torch

    os.environ.update(place)
    torch.set_num_threads(1)
    try:
        given = work(*args)
    except Exception as error:
        traceback.print_exc()
        given = error
    file.write_bytes(pickle.dumps(given))
    os._exit(0)
