"""A trial: a network is measured and trained for a little in a process of its own, and whatever happens is recorded.

A network that diverges, runs out of memory or takes its process down is a result like any other. What is wrong with
the pictures or the disk is not, and ends the search.
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
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.nas.latency import Pace, StepTime, StepTimes, latency, measure, no_pace, part_names
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.proxy_task import LEFT_OUT, Proxy
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.training import timing as rates
from efficientnetv2.training.auto_batch import Hardware
from efficientnetv2.training.auto_config import TrainingSet, resolve_recipe
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.initial_weights import build_initial_model
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS
from efficientnetv2.training.run_config import RunConfig, eval_preprocessing
from efficientnetv2.training.run_dir import NullRunDir
from efficientnetv2.training.signals import defer_signals
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.child_processes import own_folder
from efficientnetv2.utils.cpu import keep_freed_memory
from efficientnetv2.utils.errors import DivergedError, InputError, MemoryShortError, ReaderKilledError
from efficientnetv2.utils.memory import is_out_of_memory, limit_memory, peak_bytes, reset_peak_memory
from efficientnetv2.utils.timer import MachineLock, TimingStats

FailureKind = Literal["diverged", "out of memory", "crashed"]


@dataclass(frozen=True)
class StepTold:
    """The training step, which is known before the first one counts.

    Args:
        time: measured, or with three times the same number where it was worked out.
        foretold: the sum over the parts as other networks had them; None where one is new.
        measured: whether this network's own steps were timed.
        inference_seconds: of one picture at inference; None where nobody asks for it.
        at_a_time: groups in a pass of the step.
    """

    time: TimingStats
    foretold: float | None
    measured: bool
    inference_seconds: float | None = None
    at_a_time: int = 1


@dataclass(frozen=True)
class EpochTold:
    """A point of the validation curve.

    Args:
        seed: which of the runs, from 0.
        epoch: passes over the pictures that it has done.
        top1: on the pictures that choose.
        peak_bytes: the most memory in use while it trained so far; 0 where the device does not tell.
    """

    seed: int
    epoch: float
    top1: float
    peak_bytes: int = 0


@dataclass(frozen=True)
class Trained:
    """All runs are done.

    Args:
        top1: of each seed.
        peak_bytes: the most memory in use while they trained; on a CPU, all that the process takes.
    """

    top1: tuple[float, ...]
    peak_bytes: int


@dataclass(frozen=True)
class Failed:
    """The network can't be trained so.

    Args:
        kind: what happened.
        reason: a sentence.
        peak_bytes: the most memory in use until then.
    """

    kind: FailureKind
    reason: str
    peak_bytes: int


@dataclass(frozen=True)
class Refused:
    """Something is wrong that is not the network's affair: the pictures, the disk, the device.

    Args:
        message: for the user.
    """

    message: str


Told = StepTold | EpochTold | Trained | Failed | Refused


# A quiet machine's steps differ from the sum over their parts by less than this; where they do not, one of the two was
# disturbed, and the step is measured once more. Ours; the share is the one that the estimate is held to.
_DISAGREEING = 0.15


def tried(told: Connection, architecture: Architecture, proxy: Proxy, verify: bool, scratch: Path) -> None:
    """Try a network and tell of it; the main function of the process.

    Args:
        told: takes ``Told``.
        architecture: the network.
        proxy: how it is tried.
        verify: measure the step even where its parts are known.
        scratch: an empty folder for what a run leaves; the parent removes it.
    """
    die_with_parent()
    _write_into(scratch / "output.txt")
    keep_freed_memory()  # as the program does that trains the network found: its step is the one to know
    device = torch.device(proxy.device)
    try:
        if proxy.threads is not None:
            torch.set_num_threads(proxy.threads)
        if proxy.memory_gib is not None:
            limit_memory(device, proxy.memory_gib)
        quiet = MachineLock(proxy.quiet)
        with quiet.working():
            if proxy.pace is not None:
                proxy = replace(proxy, pace=in_its_groups(proxy.pace, proxy, device))
            proxy = grouped(architecture, proxy, device)
        if proxy.step_time != "unmeasured":
            step = step_time(architecture, proxy, device, quiet, verify=verify)
            if proxy.latency:
                step = replace(step, inference_seconds=_latency(architecture, proxy, device, quiet))
            told.send(step)
            reset_peak_memory(
                device
            )  # the backbone's, timed beside it, may be larger than that of this training
        if proxy.training_threads is not None:
            torch.set_num_threads(proxy.training_threads)
        with quiet.working():
            top1 = tuple(
                _trained(architecture, proxy, number, device, quiet, scratch / f"run_{number}", told.send)
                for number in range(len(proxy.seeds))
            )
            if not proxy.seeds:  # for the memory of training
                rates.measure_timings(_job(architecture, proxy, 0, device, NullRunDir(scratch)), scratch)
        told.send(Trained(top1, peak_bytes(device)))
    except (DivergedError, MemoryShortError, ReaderKilledError) as error:
        kind: FailureKind = "diverged" if isinstance(error, DivergedError) else "out of memory"
        told.send(Failed(kind, str(error), peak_bytes(device)))
    except InputError as error:
        told.send(Refused(str(error)))
    except Exception as error:
        if is_out_of_memory(error):
            reason = str(error).strip().partition("\n")[0]
            told.send(Failed("out of memory", reason or type(error).__name__, peak_bytes(device)))
        elif isinstance(error, OSError):
            told.send(Refused(f"{error.filename or 'the trial'}: {error.strerror or error}"))
        else:
            told.send(Failed("crashed", traceback.format_exc(), peak_bytes(device)))


def grouped(architecture: Architecture, proxy: Proxy, device: torch.device) -> Proxy:
    """The same with the recipe of this network, in the groups that there is memory for, and so many of them at a time.

    It is settled once: what is timed is what is trained, with every seed, whatever becomes of the memory meanwhile.

    Args:
        architecture: the network.
        proxy: how it is tried; groups that are given there stay.
        device: to train on.

    Raises:
        MemoryShortError: not even one group fits, or one that is given does not.
    """
    settled = resolve_recipe(
        proxy.recipe.model_copy(update={"model": architecture, "seed": 0, **LEFT_OUT}),
        TrainingSet(len(proxy.train), proxy.train.class_names),
        Hardware(device, proxy.memory_gib),
    )
    return replace(proxy, recipe=settled.recipe, at_a_time=settled.microbatches)


def in_its_groups(pace: Pace, proxy: Proxy, device: torch.device) -> Pace:
    """The pace in the groups in which its network was timed when the study began; else in those that fit now.

    Args:
        pace: whose recipe may leave its groups open.
        proxy: how networks are tried.
        device: to train on.

    Raises:
        InputError: these groups do not fit any more, which says nothing of the network that is tried.
    """
    try:
        found = grouped(pace.architecture, replace(proxy, recipe=pace.recipe), device)
    except MemoryShortError as error:
        raise InputError(no_pace(str(error).partition(". ")[0])) from error
    return replace(pace, recipe=found.recipe)


def step_time(
    architecture: Architecture, proxy: Proxy, device: torch.device, quiet: MachineLock, *, verify: bool
) -> StepTold:
    """How long a training step takes: measured in a quiet moment, or the sum over parts that are known.

    Args:
        architecture: the network.
        proxy: how it is tried.
        device: to train on.
        quiet: the agreement on who measures.
        verify: measure even where all parts are known.
    """
    recipe, classes = proxy.recipe, proxy.num_classes
    count = (proxy.at_a_time or ONE_GROUP_PER_PASS).at(recipe.progressive.last.image_px)
    times = StepTimes(proxy.times, recipe, num_classes=classes, device=device, at_a_time=count)
    foretold = times.foretold(architecture)
    if foretold is not None and proxy.step_time == "cached" and not verify:
        return StepTold(
            TimingStats(foretold, foretold, foretold, 0), foretold, measured=False, at_a_time=count
        )

    def measured() -> StepTime:
        return measure(
            architecture, recipe, num_classes=classes, device=device, at_a_time=count, pace=proxy.pace
        )

    with quiet.exclusive():
        found = measured()
        known = foretold if foretold is not None else sum_of(architecture, found, times)
        if abs(known / found.whole.median - 1) > _DISAGREEING:
            found = min(
                found, measured(), key=lambda one: one.unsteadiness
            )  # a disturbed one is spread wider
        times.add(architecture, found.parts)
    return StepTold(found.whole, foretold, measured=True, at_a_time=count)


def _latency(architecture: Architecture, proxy: Proxy, device: torch.device, quiet: MachineLock) -> float:
    """Seconds of a picture at inference, at the size of evaluation, in a quiet moment."""
    px = proxy.recipe.eval_px or proxy.recipe.progressive.last.image_px
    with quiet.exclusive():
        return latency(
            architecture, image_px=px, num_classes=proxy.num_classes, device=device, pace=proxy.pace
        )


def sum_of(architecture: Architecture, found: StepTime, times: StepTimes) -> float:
    """The sum over the parts of a network just measured, in seconds."""
    names = part_names(architecture, image_px=times.image_px, num_classes=times.num_classes)
    return sum(found.parts[name] for name in names)


def _trained(
    architecture: Architecture,
    proxy: Proxy,
    number: int,
    device: torch.device,
    quiet: MachineLock,
    folder: Path,
    tell: Callable[[Told], None],
) -> float:
    """One run; its top-1 on the pictures that choose."""
    job = _job(architecture, proxy, proxy.seeds[number], device, _Telling(folder, number, device, tell))
    predictions = Trainer(job, [_Pausing(quiet)]).fit().predictions
    return classification_metrics(predictions.labels, predictions.probabilities, proxy.train.class_names).top1


def _job(
    architecture: Architecture, proxy: Proxy, seed: int, device: torch.device, folder: NullRunDir
) -> RunConfig:
    """A run of the recipe, to be done into that folder."""
    assert proxy.at_a_time is not None, "grouped() comes first"
    recipe = proxy.recipe.model_copy(update={"model": architecture, "seed": seed})
    network = build_initial_model(recipe, class_names=proxy.train.class_names, device=device).network
    return RunConfig(
        recipe=recipe,
        network=network,
        train=proxy.train,
        val=proxy.choosing,
        preprocessing=eval_preprocessing(recipe, network, proxy.train.bands),
        folder=folder,
        device=device,
        workers=proxy.workers,
        microbatches=proxy.at_a_time,
        strict=proxy.strict,
    )


class _Telling(NullRunDir):
    """A run's folder that tells of its validation curve instead of writing it down.

    Args:
        path: of the folder; only checkpoints and the model file go there.
        number: of the run.
        device: whose memory is told of.
        tell: takes what there is to tell.
    """

    def __init__(self, path: Path, number: int, device: torch.device, tell: Callable[[Told], None]) -> None:
        super().__init__(path)
        path.mkdir(parents=True, exist_ok=True)
        self._number, self._device, self._tell = number, device, tell

    def record(self, row: dict[str, Any]) -> None:
        """A row of figures."""
        if row["kind"] == "val":
            point = float(row["epoch"]), float(row["top1"])
            self._tell(EpochTold(self._number, *point, peak_bytes(self._device)))


class _Pausing(Callback):
    """Looks up from the steps now and then: somebody may want quiet."""

    def __init__(self, quiet: MachineLock) -> None:
        self._quiet = quiet

    def on_log(
        self,
        step: int,
        num_steps: int,
        settings: StepSettings,
        loss: float,
        images_per_s: float,
        seconds_left: float,
    ) -> None:
        """Called at every row of figures."""
        self._quiet.pause()


def _write_into(file: Path) -> None:
    """What this process would write on the screen goes into a file; a crash leaves there where it was."""
    output = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()


def die_with_parent() -> None:
    """Nobody is left to be told: end, rather than compute on and disturb others."""
    parent = parent_process()
    assert parent is not None, "this is a child"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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
    counted = count_flops(
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
            with defer_signals():  # stopped in the middle of it, nobody could stop the process
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
    context.set_forkserver_preload(["efficientnetv2.nas.trial", "torch._dynamo"])
    return context
