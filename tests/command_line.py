"""Run the command line as a user does: in a separate process with its own streams and exit code."""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.messages import mentions

# An architecture that trains in seconds, for tests that need no published architecture.
NETWORK = str(Path(__file__).with_name("network.yaml"))

# The shortest complete run: two stages at 32 and 64 px, a few steps, from scratch. By default, published architectures
# would start from the weights in the repository.
TINY = (
    "--model", NETWORK, "--epochs", "1", "--batch-size", "8", "--workers", "0", "--device", "cpu",
    "--set", "progressive.stages=2", "--set", "progressive.image_size={start: 32, end: 64}", "--weights", "none",
)  # fmt: skip

# Commands are forked from a server that has already imported everything, because a new interpreter would spend most of
# a test's time on importing torch. (The test process cannot be forked: after it has computed gradients, PyTorch refuses
# to compute gradients in its children.)
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "captum.attr",
        "sklearn.metrics",
        "sklearn.neighbors",
        "efficientnetv2.cli.main",
        "efficientnetv2.cli.progress_bars",
        "efficientnetv2.cli.result_tables",
        "efficientnetv2.workflows.train",
        "efficientnetv2.workflows.evaluate",
        "efficientnetv2.workflows.crossval",
        "efficientnetv2.workflows.check",
        "efficientnetv2.workflows.predict",
        "efficientnetv2.workflows.estimate",
        "efficientnetv2.workflows.predict_map",
        "efficientnetv2.workflows.area",
        "efficientnetv2.serving.server",
        "efficientnetv2.workflows.search_run",
        "efficientnetv2.workflows.search_report",
        "efficientnetv2.workflows.search_export",
        "efficientnetv2.models.conversion.convert",
        "matplotlib.backends.backend_agg",
        "matplotlib.backends.backend_svg",
        "rasterio.warp",
        "torchvision.models",
        "timm",
        "efficientnetv2.nas.samplers",
        "optuna.storages._rdb.models",
        "alembic.command",  # imported by Optuna for the first database
        "torch._dynamo",  # imported by PyTorch for the first optimizer
        "fsspec.core",
        "httpcore2",  # imported by httpx2 for the first request, like truststore
        "truststore",
        "pyarrow.pandas_compat",
        "tests.hasty",
    ]
)


@dataclass(frozen=True)
class Done:
    """Exit code and output of a command."""

    returncode: int
    stdout: str
    stderr: str


def effnetv2(*arguments: object, cwd: Path, timeout: float = 300, environment: dict[str, str] | None = None) -> Done:
    """Run a command. ``effnetv2_fresh`` uses a new interpreter."""
    return started(*arguments, cwd=cwd, environment=environment).end(timeout)


def killed_at(place: str, *arguments: object, cwd: Path, environment: dict[str, str] | None = None) -> None:
    """Run a command that is killed at the first call of a function.

    Args:
        place: Function or method, as ``module:function``.
        arguments: Arguments of the command.
        cwd: Working directory.
        environment: Additional environment variables.
    """
    ended = started(*arguments, cwd=cwd, environment=environment, fatal=place).end()
    assert ended.returncode == -signal.SIGKILL, f"it has never come to {place}: {ended}"


def started(*arguments: object, cwd: Path, environment: dict[str, str] | None = None, fatal: str = "") -> Running:
    """Start a command.

    Args:
        arguments: Arguments of the command.
        cwd: Working directory.
        environment: Additional environment variables.
        fatal: Function to be killed at, as for ``killed_at``. Empty for none.
    """
    folder = Path(tempfile.mkdtemp())
    args = [str(arg) for arg in arguments]
    process = SERVER.Process(target=_command, args=(args, str(cwd), str(folder), environment or {}, fatal))
    process.start()
    return Running(process, args, folder)


@dataclass(frozen=True)
class Running:
    """Running command.

    Args:
        process: Process of the command.
        args: Arguments of the command.
        folder: Folder of its output.
    """

    process: BaseProcess
    args: list[str]
    folder: Path

    def is_running(self) -> bool:
        return self.process.exitcode is None

    def kill(self) -> None:
        """Kill the process with SIGKILL and delete its output."""
        self.process.kill()
        self.process.join()
        shutil.rmtree(self.folder)

    def end(self, timeout: float = 300) -> Done:
        """Wait for the end of the command and return its result."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"effnetv2 {self.args} has not ended after {timeout} s")
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        shutil.rmtree(self.folder)
        return Done(self.process.exitcode, out, err)


def _command(args: list[str], cwd: str, folder: str, environment: dict[str, str], fatal: str) -> None:
    import torch

    from efficientnetv2.cli import main as cli

    sys.stdout, sys.stderr = (open(f"{folder}/{name}", "w") for name in ("out", "err"))  # noqa: SIM115 - stay open
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stderr.fileno(), 2)
    os.chdir(cwd)
    os.environ.update({"COLUMNS": "200", "NO_COLOR": "1"} | environment)
    # A process that was forked by a server also starts its processes by servers. Reset this to the platform's default.
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(1)
    if sys.version_info < (3, 14):  # until 3.13, a server accepts each process that knows its address
        # Let the command fork from this server, which has imported as much, instead of starting its own.
        forkserver._forkserver.ensure_running = lambda: None
    sys.argv = ["effnetv2", *args]
    if fatal:
        module, _, name = fatal.partition(":")
        *owners, name = name.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    code = 1
    try:
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def effnetv2_fresh(*arguments: object, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command in a new interpreter."""
    return subprocess.run(
        [sys.executable, "-m", "efficientnetv2", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_ok(*arguments: object, cwd: Path, timeout: float = 300, environment: dict[str, str] | None = None) -> Done:
    """Run a command that must succeed."""
    done = effnetv2(*arguments, cwd=cwd, timeout=timeout, environment=environment)
    assert done.returncode == 0, done.stderr
    return done


def run_json(*arguments: object, cwd: Path) -> Any:
    """Run a command with ``--json`` and parse its output."""
    return json.loads(run_ok(*arguments, "--json", cwd=cwd).stdout)


def run_refused(
    *arguments: object, cwd: Path, names: Iterable[object] = (), environment: dict[str, str] | None = None
) -> Done:
    """Run a command that must refuse its input: exit code 2, no traceback, and a message with all ``names``."""
    done = effnetv2(*arguments, cwd=cwd, environment=environment)
    assert done.returncode == 2, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    facts = tuple(names)
    assert not facts or mentions(done.stderr, *facts), done.stderr
    return done
