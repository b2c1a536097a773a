"""Several processes that train together, as under a launcher, but forked from a server with all imports."""

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
    """Run ``work(*args)`` in several processes. Return the result or error of each rank, None if killed.

    Args:
        work: Function of a module. It reads its rank from the environment, as under torchrun.
        size: Number of processes.
        args: Arguments of the function, which are pickled.
        timeout: Seconds until all processes must have ended.
        agent_port: Port of the launcher's store. None starts the store in the first process.
    """
    with tempfile.TemporaryDirectory() as folder:
        port = agent_port or free_port()
        agent = {"TORCHELASTIC_USE_AGENT_STORE": str(agent_port is not None)}
        files = [Path(folder) / f"{rank}.pickle" for rank in range(size)]
        processes = [
            SERVER.Process(target=_run_rank, args=(work, args, environment(rank, size, port) | agent, file))
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
    """Start a command in several processes, as torchrun does.

    Args:
        size: Number of processes.
        arguments: Arguments of the command.
        cwd: Working directory.
        launch: Run ID of torchrun.
        restarts: Number of earlier restarts.
    """
    port = free_port()
    torchrun = {"TORCHELASTIC_RUN_ID": launch, "TORCHELASTIC_RESTART_COUNT": str(restarts)}
    return [started(*arguments, cwd=cwd, environment=environment(rank, size, port) | torchrun) for rank in range(size)]


def effnetv2_together(
    size: int, *arguments: object, cwd: Path, launch: str = "a launch", restarts: int = 0
) -> list[Done]:
    """Run a command in several processes. Return their results in the order of ranks."""
    running = started_together(size, *arguments, cwd=cwd, launch=launch, restarts=restarts)
    return [one.end() for one in running]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """Return the variables that a launcher sets for a process, all on one machine."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def free_port() -> int:
    """Return a port that is currently unused."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _run_rank(work: Callable[..., Any], args: tuple[Any, ...], variables: dict[str, str], file: Path) -> None:
    import torch

    os.environ.update(variables)
    torch.set_num_threads(1)
    try:
        given = work(*args)
    except Exception as error:
        traceback.print_exc()
        given = error
    file.write_bytes(pickle.dumps(given))
    os._exit(0)
