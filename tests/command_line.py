"""The command line as a user meets it: a process of its own, with its own streams and exit code."""

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

# A network of seconds, for whatever is not about a published one.
NETWORK = str(Path(__file__).with_name("network.yaml"))

# The smallest run that goes the whole way: at 32 and 64 px, a few steps, two stages; from scratch, for of published
# networks the weights that come with the repository would be taken.
TINY = (
    "--model", NETWORK, "--epochs", "1", "--batch-size", "8", "--workers", "0", "--device", "cpu",
    "--set", "progressive.stages=2", "--set", "progressive.image_size={start: 32, end: 64}", "--weights", "none",
)  # fmt: skip

# Forked off a server that has imported everything already: a fresh interpreter would spend most of a test's time on
# importing torch. (Not off the test process: once that has computed gradients, PyTorch refuses to in its children.)
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
        "alembic.command",  # which Optuna imports for the first database
        "torch._dynamo",  # which PyTorch imports for the first optimizer
        "fsspec.core",
        "httpcore2",  # which httpx2 imports for the first question to a server, as truststore
        "truststore",
        "pyarrow.pandas_compat",
        "tests.hasty",
    ]
)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def effnetv2(*arguments: object, cwd: Path, timeout: float = 300, environment: dict[str, str] | None = None) -> Done:
    """Run a command; ``effnetv2_fresh`` does it in a fresh interpreter."""
    return started(*arguments, cwd=cwd, environment=environment).end(timeout)


def killed_at(place: str, *arguments: object, cwd: Path, environment: dict[str, str] | None = None) -> None:
    """Run a command that is killed at a certain place.

    Args:
        place: a function or method, as ``module:function``; it never begins.
        arguments: of the command.
        cwd: where.
        environment: further variables to set.
    """
    ended = started(*arguments, cwd=cwd, environment=environment, fatal=place).end()
    assert ended.returncode == -signal.SIGKILL, f"it has never come to {place}: {ended}"


def started(*arguments: object, cwd: Path, environment: dict[str, str] | None = None, fatal: str = "") -> Running:
    """Start a command.

    Args:
        arguments: of the command.
        cwd: where.
        environment: further variables to set.
        fatal: a function to be killed at, as ``killed_at`` takes it; empty for none.
    """
    folder = Path(tempfile.mkdtemp())
    words = [str(word) for word in arguments]
    process = SERVER.Process(target=_command, args=(words, str(cwd), str(folder), environment or {}, fatal))
    process.start()
    return Running(process, words, folder)


@dataclass(frozen=True)
class Running:
    """A command under way.

    Args:
        process: its.
        words: of the command line.
        folder: where its output goes meanwhile.
    """

    process: BaseProcess
    words: list[str]
    folder: Path

    def goes_on(self) -> bool:
        """Whether it has not ended."""
        return self.process.exitcode is None

    def kill(self) -> None:
        """SIGKILL; what it said goes with it."""
        self.process.kill()
        self.process.join()
        shutil.rmtree(self.folder)

    def end(self, timeout: float = 300) -> Done:
        """Wait for it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"effnetv2 {self.words} has not ended after {timeout} s")
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        shutil.rmtree(self.folder)
        return Done(self.process.exitcode, out, err)


def _command(words: list[str], cwd: str, folder: str, environment: dict[str, str], fatal: str) -> None:
    import torch

    from efficientnetv2.cli import main as cli

    sys.stdout, sys.stderr = (open(f"{folder}/{name}", "w") for name in ("out", "err"))  # noqa: SIM115 - they stay
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stderr.fileno(), 2)
    os.chdir(cwd)
    os.environ.update({"COLUMNS": "200", "NO_COLOR": "1"} | environment)
    # A process that a server forked starts its own by servers too; here as anywhere the platform's way is meant.
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(1)
    if sys.version_info < (3, 14):  # where a server serves whoever knows its address
        # What a command forks off a server of its own it gets off this one, which has imported as much already.
        forkserver._forkserver.ensure_running = lambda: None
    sys.argv = ["effnetv2", *words]
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
    """Run a command in a fresh interpreter."""
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
    """Run a command with ``--json``, and parse what it prints."""
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
