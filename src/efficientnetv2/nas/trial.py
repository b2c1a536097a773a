"""A trial: a network is measured and trained for a little in a process of its own, and whatever happens is recorded.

A network that diverges, runs out of memory or takes its process down is a result like any other. What is wrong with
the pictures or the disk is not, and ends the search.
"""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from efficientnetv2.arch.cost import cost
from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.errors import InputError
from efficientnetv2.base.leftovers import own_folder
from efficientnetv2.nas.child import tried
from efficientnetv2.nas.measurement import Measurement
from efficientnetv2.nas.proxy import Proxy
from efficientnetv2.nas.told import EpochTold, Failed, Refused, StepTold, Told, Trained
from efficientnetv2.training.interrupt import held

# Of what a process has written before it ended, so many of the last lines may say why.
_LAST_LINES = 12
# Of a network whose step alone was measured.
_UNTRAINED = "not trained"


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Args:
        step: its training step; None if it did not come so far.
        epochs: the validation curve, of all seeds.
        trained: what came out; None if it was stopped or has failed.
        failed: why; None unless it has.
    """

    step: StepTold | None
    epochs: tuple[EpochTold, ...]
    trained: Trained | None
    failed: Failed | None

    @property
    def stopped(self) -> bool:
        """Whether whoever watched had seen enough."""
        return self.trained is None and self.failed is None


def measurement(architecture: Architecture, proxy: Proxy, tried: Outcome) -> Measurement:
    """What was measured of a network, as far as its trial came.

    Args:
        architecture: the network.
        proxy: how it was tried.
        tried: what became of it.
    """
    recipe = proxy.recipe
    counted = cost(
        architecture,
        image_px=recipe.eval_px or recipe.progressive.last.image_px,
        num_classes=proxy.num_classes,
    ).total
    latest = {one.seed: one for one in tried.epochs}
    top1 = [one.top1 for one in latest.values()] if tried.trained is None else list(tried.trained.top1)
    failed = tried.failed
    ended = tried.trained or failed
    peaks = [one.peak_bytes for one in tried.epochs] + ([ended.peak_bytes] if ended else [])
    time = None if tried.step is None else tried.step.time
    return Measurement(
        parameters=counted.parameters,
        multiply_adds=counted.multiply_adds,
        top1=None if failed or not top1 else statistics.mean(top1),
        step_seconds=None if time is None else time.median,
        step_spread=None if time is None else (time.high - time.low) / time.median,
        inference_seconds=None if tried.step is None else tried.step.inference_seconds,
        peak_memory_bytes=max(peaks, default=0) or None,
        epochs=statistics.mean(one.epoch for one in latest.values()) if latest else 0.0,
        seeds=proxy.seeds[: max(len(latest), len(top1))],
        failure=f"{failed.kind}: {failed.reason}" if failed else (None if top1 else _UNTRAINED),
    )


def try_out(
    architecture: Architecture,
    proxy: Proxy,
    *,
    verify: bool = True,
    watch: Callable[[StepTold | EpochTold], bool] = lambda told: True,
) -> Outcome:
    """Measure and train a network.

    Args:
        architecture: the network.
        proxy: how it is tried.
        verify: measure the step even where its parts are known; of use with ``step_time`` cached alone.
        watch: told of the step and of every point of the curve; False stops the trial.

    Raises:
        InputError: something is wrong that is not the network's affair.
    """
    with tempfile.TemporaryDirectory(prefix="trial-", dir=own_folder(), ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        context = _context()
        here, there = context.Pipe(duplex=False)
        process = context.Process(  # type: ignore[attr-defined]
            target=tried, args=(there, architecture, proxy, verify, scratch), daemon=False
        )
        try:
            with held():  # stopped in the middle of it, nobody could stop the process
                process.start()
            there.close()
            return _followed(here, process, watch, scratch)
        finally:
            if process.pid is not None:
                process.kill()
                process.join()
            here.close()


def _followed(
    told: Connection,
    process: BaseProcess,
    watch: Callable[[StepTold | EpochTold], bool],
    scratch: Path,
) -> Outcome:
    step: StepTold | None = None
    epochs: list[EpochTold] = []
    while (one := _next(told)) is not None:
        if isinstance(one, Refused):
            raise InputError(one.message)
        if isinstance(one, Trained):
            return Outcome(step, tuple(epochs), one, None)
        if isinstance(one, Failed):
            return Outcome(step, tuple(epochs), None, one)
        if isinstance(one, StepTold):
            step = one
        else:
            epochs.append(one)
        if not watch(one):
            return Outcome(step, tuple(epochs), None, None)
    process.join()
    return Outcome(step, tuple(epochs), None, Failed("crashed", _why(process.exitcode, scratch), 0))


def _next(told: Connection) -> Told | None:
    """What is told next; None when the process has ended without a word."""
    try:
        one: Told = told.recv()
    except (EOFError, ConnectionResetError):
        return None
    return one


def _why(code: int | None, scratch: Path) -> str:
    """How a process ended, and what it wrote at last."""
    ended = f"ended with code {code}"
    if code is not None and code < 0:
        ended = f"was killed by {signal.Signals(-code).name}"
    written = scratch / "output.txt"
    lines = written.read_text(encoding="utf-8", errors="replace").splitlines() if written.exists() else []
    said = "\n".join(lines[-_LAST_LINES:])
    return f"the process {ended}" + (f": {said}" if said else "")


def _context() -> BaseContext:
    """Where there can be one, a server that has imported everything and forks; else each trial begins afresh."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # PyTorch imports the second for the first optimizer, which takes seconds.
    context.set_forkserver_preload(["efficientnetv2.nas.child", "torch._dynamo"])
    return context
