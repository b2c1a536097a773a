"""Run a trial in a child process, which sends messages about its architecture.

An architecture that diverges, runs out of memory or crashes is a result like any other. What is wrong with the images
or the disk is not, and ends the search: it is sent as an `InputError`.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.nas.proxy_task import ProxyTask
from efficientnetv2.nas.trial import (
    EpochDone,
    Failed,
    FailureKind,
    ImageSkipped,
    StepTimed,
    Trained,
    TrialMessage,
    TrialResult,
    resolve_reference,
    resolve_task,
    time_trial_step,
    trial_setup,
)
from efficientnetv2.training import timing
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.run_dir import NullRunDir
from efficientnetv2.training.signals import defer_signals
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.benchmark import MachineLock
from efficientnetv2.utils.errors import DivergedError, InputError, MemoryShortError, ReaderKilledError, error_summary
from efficientnetv2.utils.memory import is_out_of_memory, limit_memory, peak_bytes, reset_peak_memory
from efficientnetv2.utils.processes import keep_freed_memory, without_script

_logger = logging.getLogger(__name__)

# Of the output of a process that ended unexpectedly, so many last lines go into the failure. Ours.
_LAST_LINES = 12


def run_trial(
    architecture: Architecture,
    task: ProxyTask,
    *,
    verify: bool = True,
    on_message: Callable[[StepTimed | EpochDone], bool] = lambda message: True,
) -> TrialResult:
    """Measure and train an architecture in a process of its own.

    ``verify`` measures the step even where cached times of its parts are known. ``on_message`` gets the step time and
    every point of the curve; False stops the trial. Raises InputError for what is not the architecture's fault.
    """
    with tempfile.TemporaryDirectory(prefix="effnetv2-trial-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        context = _context()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(  # type: ignore[attr-defined]
            target=trial_process_main, args=(sender, architecture, task, verify, scratch), daemon=False
        )
        result = TrialResult()
        try:
            with defer_signals(), without_script():  # Interrupted while it starts, nobody could stop the process.
                process.start()
            sender.close()
            while True:
                try:
                    message: TrialMessage = receiver.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    message = Failed("crashed", _exit_reason(process.exitcode, scratch), 0)
                match message:
                    case InputError():
                        raise message
                    case Trained():
                        return replace(result, trained=message)
                    case Failed():
                        return replace(result, failed=message)
                    case StepTimed():
                        result = replace(result, step=message)
                    case ImageSkipped():
                        _log_skipped(task.times, message.path, message.reason)
                        continue
                    case EpochDone():
                        result = replace(result, epochs=(*result.epochs, message))
                if not on_message(message):
                    return result
        finally:
            if process.pid is not None:
                process.kill()
                process.join()
            receiver.close()


def _exit_reason(code: int | None, scratch: Path) -> str:
    ended = f"ended with code {code}"
    if code is not None and code < 0:
        ended = f"was killed by {signal.Signals(-code).name}"
    file = scratch / "output.txt"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    output = "\n".join(lines[-_LAST_LINES:])
    return f"the process {ended}: {output}" if output else f"the process {ended}"


def _context() -> BaseContext:
    """A fork server that has imported everything, where the system has one; not on macOS, whose GPU no fork can use."""
    if sys.platform == "darwin" or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # PyTorch imports the second for the first optimizer, which takes seconds.
    context.set_forkserver_preload(["efficientnetv2.nas.trial_process", "torch._dynamo"])
    return context


def trial_process_main(
    connection: Connection, architecture: Architecture, task: ProxyTask, verify: bool, scratch: Path
) -> None:
    """Measure and train an architecture, and send each ``TrialMessage``. ``scratch`` is an empty folder."""
    exit_with_parent()
    _redirect_output(scratch / "output.txt")
    keep_freed_memory()  # As training does: its step is the one to time.
    device = torch.device(task.device)
    try:
        if task.threads is not None:
            torch.set_num_threads(task.threads)
        if task.memory_gib is not None:
            limit_memory(device, task.memory_gib)
        lock = MachineLock(task.quiet)
        with lock.working():
            if task.reference is not None:
                task = replace(task, reference=resolve_reference(task, device))
            task = resolve_task(architecture, task, device)
        if task.step_time != "unmeasured":
            connection.send(time_trial_step(architecture, task, device, lock, verify=verify))
            reset_peak_memory(device)  # The reference, timed too, may take more than this training.
        if task.training_threads is not None:
            torch.set_num_threads(task.training_threads)
        with lock.working():
            top1 = []
            for number in range(len(task.seeds)):
                folder = _MessageRunDir(scratch / f"run_{number}", number, device, connection.send)
                top1.append(_train(architecture, task, number, device, lock, folder))
            if not task.seeds:  # For the memory of training.
                timing.measure_timings(trial_setup(architecture, task, 0, device, NullRunDir(scratch)), scratch)
        connection.send(Trained(tuple(top1), peak_bytes(device)))
    except Exception as error:
        connection.send(_to_message(error, device))


def _to_message(error: Exception, device: torch.device) -> TrialMessage:
    kind: FailureKind = "out of memory"
    if isinstance(error, DivergedError):
        kind, reason = "diverged", str(error)
    elif isinstance(error, MemoryShortError | ReaderKilledError):
        reason = str(error)
    elif isinstance(error, InputError):
        return InputError(str(error))
    elif is_out_of_memory(error):
        reason = error_summary(error)
    elif isinstance(error, OSError):
        return InputError(f"{error.filename or 'the trial'}: {error.strerror or error}")
    else:
        kind, reason = "crashed", traceback.format_exc()
    return Failed(kind, reason, peak_bytes(device))


def _train(
    architecture: Architecture, task: ProxyTask, run: int, device: torch.device, lock: MachineLock, folder: NullRunDir
) -> float:
    setup = trial_setup(architecture, task, task.seeds[run], device, folder)
    predictions = Trainer(setup, [_PauseForTiming(lock)]).fit().predictions
    return classification_metrics(predictions.labels, predictions.probabilities, task.train.class_names).top1


class _MessageRunDir(NullRunDir):
    """A run directory that sends the validation curve instead of writing it."""

    def __init__(self, path: Path, run: int, device: torch.device, send: Callable[[TrialMessage], None]) -> None:
        super().__init__(path)
        path.mkdir(parents=True, exist_ok=True)
        self._run, self._device, self._send = run, device, send

    def skip(self, path: str, reason: str) -> bool:
        if new := super().skip(path, reason):
            self._send(ImageSkipped(path, reason))
        return new

    def record(self, row: dict[str, Any]) -> None:
        if row["kind"] == "val":
            epoch, top1 = float(row["epoch"]), float(row["top1"])
            self._send(EpochDone(self._run, epoch, top1, peak_bytes(self._device)))


@cache
def _log_skipped(_study: Path, path: str, reason: str) -> None:
    """Log it once in a study, not in each trial."""
    _logger.info(f"Skipped, as it could not be read: {path}: {reason}.")


class _PauseForTiming(Callback):
    def __init__(self, lock: MachineLock) -> None:
        self._lock = lock

    def on_log(self, *args: object, **kwargs: object) -> None:
        self._lock.pause()


def _redirect_output(file: Path) -> None:
    output = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()


def exit_with_parent() -> None:
    """End this child process as soon as its parent has ended."""
    parent = parent_process()
    assert parent is not None, "this is a child"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
