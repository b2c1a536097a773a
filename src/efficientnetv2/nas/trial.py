"""One trial: a process measures and trains an architecture, and its messages become a measurement.

An architecture that diverges, runs out of memory or crashes is a result like any other. What is wrong with the images
or the disk is not, and ends the search: it is sent as an `InputError`.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import statistics
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Literal

import torch

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.proxy_task import PROXY_OVERRIDES, ProxyTask
from efficientnetv2.nas.step_time import (
    ReferenceTiming,
    StepTimeCache,
    inference_latency,
    reference_memory_error,
    time_step,
)
from efficientnetv2.training import timing
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.initial_weights import build_initial_model
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS
from efficientnetv2.training.resolve import TrainingSet, resolve_recipe
from efficientnetv2.training.run_dir import NullRunDir
from efficientnetv2.training.run_setup import RunSetup, eval_preprocessing
from efficientnetv2.training.signals import defer_signals
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.benchmark import TimingStats
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.errors import DivergedError, InputError, MemoryShortError, ReaderKilledError, error_summary
from efficientnetv2.utils.machine_lock import MachineLock
from efficientnetv2.utils.memory import is_out_of_memory, limit_memory, peak_bytes, reset_peak_memory
from efficientnetv2.utils.processes import keep_freed_memory, own_folder

FailureKind = Literal["diverged", "out of memory", "crashed"]

# On an idle machine, a step differs from the sum over its parts by less. Otherwise one of the two was disturbed, and
# the step is measured once more. Ours; the same value that estimates are tested against.
_MAX_DISAGREEMENT = 0.15
# Of the output of a process that ended unexpectedly, so many last lines go into the failure. Ours.
_LAST_LINES = 12
_UNTRAINED = "not trained"  # The failure of an architecture that was only timed.


@dataclass(frozen=True)
class StepTimed:
    """The time of a training step, known before training.

    ``predicted`` is the sum over parts as other architectures had them, None where a part is new. Without ``measured``
    it is also ``time``. ``inference_seconds`` is of one image, None where that is not timed.
    """

    time: TimingStats
    predicted: float | None
    measured: bool
    inference_seconds: float | None = None
    groups_per_pass: int = 1


@dataclass(frozen=True)
class EpochDone:
    """A point of the validation curve of a run (from 0). ``peak_bytes`` is 0 where the device does not tell."""

    run: int
    epoch: float
    top1: float
    peak_bytes: int = 0


@dataclass(frozen=True)
class Trained:
    """All runs are done: the top-1 of each, and the peak memory of training (on a CPU, of the process)."""

    top1: tuple[float, ...]
    peak_bytes: int


@dataclass(frozen=True)
class Failed:
    """The architecture could not be trained."""

    kind: FailureKind
    reason: str
    peak_bytes: int


TrialMessage = StepTimed | EpochDone | Trained | Failed | InputError


@dataclass(frozen=True)
class TrialResult:
    """The step time, the validation curve of all runs, and how the trial ended: neither of both where it was pruned."""

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
    peaks = [message.peak_bytes for message in (*result.epochs, trained, failed) if message is not None]
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
    """Measure and train an architecture in a process of its own.

    ``verify`` measures the step even where cached times of its parts are known. ``on_message`` gets the step time and
    every point of the curve; False stops the trial. Raises InputError for what is not the architecture's fault.
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
    """A fork server that has imported everything, where the system has one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # PyTorch imports the second for the first optimizer, which takes seconds.
    context.set_forkserver_preload(["efficientnetv2.nas.trial", "torch._dynamo"])
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
                task = replace(task, reference=_resolve_reference(task, device))
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


def resolve_task(architecture: Architecture, task: ProxyTask, device: torch.device) -> ProxyTask:
    """The task with the recipe of this architecture, in the groups and passes that there is memory for.

    This happens once per trial: what is timed is what is trained, with every seed. Raises MemoryShortError.
    """
    resolved = resolve_recipe(
        task.recipe.model_copy(update={"model": architecture, "seed": 0, **PROXY_OVERRIDES}),
        TrainingSet(len(task.train), task.train.class_names),
        Hardware(device, task.memory_gib),
    )
    return replace(task, recipe=resolved.recipe, microbatches=resolved.microbatches)


def _resolve_reference(task: ProxyTask, device: torch.device) -> ReferenceTiming:
    """The reference in the groups in which it was timed when the study began; else in those that fit now."""
    reference = task.reference
    assert reference is not None
    try:
        resolved = resolve_task(reference.architecture, replace(task, recipe=reference.recipe), device)
    except MemoryShortError as error:
        raise reference_memory_error(str(error).partition(". ")[0]) from error
    return replace(reference, recipe=resolved.recipe)


def time_trial_step(
    architecture: Architecture, task: ProxyTask, device: torch.device, lock: MachineLock, *, verify: bool
) -> StepTimed:
    """Time a training step while no other trial of this machine computes, or add up parts that are known."""
    recipe, num_classes = task.recipe, task.num_classes
    last_size = recipe.progressive.last.image_size
    groups = (task.microbatches or ONE_GROUP_PER_PASS).at(last_size)
    cache = StepTimeCache(task.times, recipe, num_classes=num_classes, device=device, groups_per_pass=groups)
    predicted = cache.predict(architecture)
    if predicted is not None and task.step_time == "cached" and not verify:
        stats = TimingStats(predicted, predicted, predicted, 0)
        timed = StepTimed(stats, predicted, measured=False, groups_per_pass=groups)
    else:
        measure = partial(
            time_step, architecture, recipe, num_classes=num_classes, device=device, groups_per_pass=groups
        )
        with lock.exclusive():
            found = measure(reference=task.reference)
            known = predicted or sum(found.parts[name] for name in cache.part_names(architecture))
            if abs(known / found.total.median - 1) > _MAX_DISAGREEMENT:
                again = measure(reference=task.reference)
                found = min(found, again, key=lambda timing: timing.spread)  # A disturbed one spreads wider.
            cache.add(architecture, found.parts)
        timed = StepTimed(found.total, predicted, measured=True, groups_per_pass=groups)
    if not task.latency:
        return timed
    with lock.exclusive():
        seconds = inference_latency(
            architecture,
            image_size=recipe.eval_image_size or last_size,
            num_classes=num_classes,
            device=device,
            reference=task.reference,
        )
    return replace(timed, inference_seconds=seconds)


def _train(
    architecture: Architecture, task: ProxyTask, run: int, device: torch.device, lock: MachineLock, folder: NullRunDir
) -> float:
    setup = trial_setup(architecture, task, task.seeds[run], device, folder)
    predictions = Trainer(setup, [_PauseForTiming(lock)]).fit().predictions
    return classification_metrics(predictions.labels, predictions.probabilities, task.train.class_names).top1


def trial_setup(
    architecture: Architecture, task: ProxyTask, seed: int, device: torch.device, folder: NullRunDir
) -> RunSetup:
    """The setup of a run of a resolved task."""
    assert task.microbatches is not None, "resolve_task() comes first"
    recipe = task.recipe.model_copy(update={"model": architecture, "seed": seed})
    network = build_initial_model(recipe, class_names=task.train.class_names, device=device).network
    return RunSetup(
        recipe=recipe,
        network=network,
        train=task.train,
        val=task.selection,
        preprocessing=eval_preprocessing(recipe, network, task.train.bands),
        folder=folder,
        device=device,
        workers=task.workers,
        microbatches=task.microbatches,
        strict=task.strict,
    )


class _MessageRunDir(NullRunDir):
    """A run directory that sends the validation curve instead of writing it."""

    def __init__(self, path: Path, run: int, device: torch.device, send: Callable[[TrialMessage], None]) -> None:
        super().__init__(path)
        path.mkdir(parents=True, exist_ok=True)
        self._run, self._device, self._send = run, device, send

    def record(self, row: dict[str, Any]) -> None:
        if row["kind"] == "val":
            epoch, top1 = float(row["epoch"]), float(row["top1"])
            self._send(EpochDone(self._run, epoch, top1, peak_bytes(self._device)))


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
