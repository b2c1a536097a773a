"""Run a trial in a process of its own, and turn its messages into a measurement."""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.proxy_task import ProxyTask
from efficientnetv2.nas.trial_process import (
    EpochDone,
    Failed,
    StepTimed,
    Trained,
    TrialMessage,
    trial_process_main,
)
from efficientnetv2.training.signals import defer_signals
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.processes import own_folder

# Of the output of a process that ended unexpectedly, so many last lines go into the failure. Ours.
_LAST_LINES = 12
_UNTRAINED = "not trained"  # The failure of an architecture that was only timed.


@dataclass(frozen=True)
class TrialResult:
    """What is known of a trial: the step time, the validation curve of all runs, and how it ended.

    Both ``trained`` and ``failed`` are None for a trial that was pruned.
    """

    step: StepTimed | None = None
    epochs: tuple[EpochDone, ...] = ()
    trained: Trained | None = None
    failed: Failed | None = None

    @property
    def pruned(self) -> bool:
        """Whether the caller stopped the trial."""
        return self.trained is None and self.failed is None


def to_measurement(architecture: Architecture, task: ProxyTask, result: TrialResult) -> Measurement:
    """What was measured of an architecture, as far as its trial came."""
    size = count_flops(
        architecture,
        image_size=task.recipe.eval_image_size or task.recipe.progressive.last.image_size,
        num_classes=task.num_classes,
    ).total
    step, trained, failed = result.step, result.trained, result.failed
    latest = {epoch.run: epoch for epoch in result.epochs}
    top1 = [epoch.top1 for epoch in latest.values()] if trained is None else list(trained.top1)
    ended = trained or failed
    peaks = [epoch.peak_bytes for epoch in result.epochs] + ([ended.peak_bytes] if ended else [])
    return Measurement(
        parameters=size.parameters,
        multiply_adds=size.multiply_adds,
        top1=None if failed or not top1 else statistics.mean(top1),
        step_seconds=None if step is None else step.time.median,
        step_spread=None if step is None else (step.time.high - step.time.low) / step.time.median,
        inference_seconds=None if step is None else step.inference_seconds,
        peak_memory_bytes=max(peaks, default=0) or None,
        epochs=statistics.mean(epoch.epoch for epoch in latest.values()) if latest else 0.0,
        seeds=task.seeds[: max(len(latest), len(top1))],
        failure=f"{failed.kind}: {failed.reason}" if failed else (None if top1 else _UNTRAINED),
    )


def run_trial(
    architecture: Architecture,
    task: ProxyTask,
    *,
    verify: bool = True,
    on_message: Callable[[StepTimed | EpochDone], bool] = lambda message: True,
) -> TrialResult:
    """Measure and train an architecture.

    Args:
        architecture: To try.
        task: How it is trained.
        verify: Measure the step even where its parts are known; matters only with cached step times.
        on_message: Gets the step time and every point of the curve. False stops the trial.

    Raises:
        InputError: Something is wrong that is not the architecture's fault.
    """
    with tempfile.TemporaryDirectory(prefix="trial-", dir=own_folder(), ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        context = _context()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(  # type: ignore[attr-defined]
            target=trial_process_main, args=(sender, architecture, task, verify, scratch), daemon=False
        )
        result = TrialResult()
        try:
            with defer_signals():  # Interrupted while it starts, nobody could stop the process.
                process.start()
            sender.close()
            while True:
                try:
                    message: TrialMessage = receiver.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    failed = Failed("crashed", _exit_reason(process.exitcode, scratch), 0)
                    return TrialResult(result.step, result.epochs, None, failed)
                match message:
                    case InputError():
                        raise message
                    case Trained():
                        return TrialResult(result.step, result.epochs, message, None)
                    case Failed():
                        return TrialResult(result.step, result.epochs, None, message)
                    case StepTimed():
                        result = TrialResult(message, result.epochs)
                    case EpochDone():
                        result = TrialResult(result.step, (*result.epochs, message))
                if not on_message(message):
                    return result
        finally:
            if process.pid is not None:
                process.kill()
                process.join()
            receiver.close()


def _exit_reason(code: int | None, scratch: Path) -> str:
    """How a process ended, with the last lines of its output."""
    ended = f"ended with code {code}"
    if code is not None and code < 0:
        ended = f"was killed by {signal.Signals(-code).name}"
    file = scratch / "output.txt"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    output = "\n".join(lines[-_LAST_LINES:])
    return f"the process {ended}" + (f": {output}" if output else "")


def _context() -> BaseContext:
    """A fork server that has imported everything, where the system has one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # PyTorch imports the second for the first optimizer, which takes seconds.
    context.set_forkserver_preload(["efficientnetv2.nas.trial", "torch._dynamo"])
    return context
