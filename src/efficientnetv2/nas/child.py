"""The process in which a network is tried: it measures its step, trains it, and tells its parent what it sees.

The memory told is that of training alone. Where no run is asked for, as of the backbone, over whose the others' is
taken, a few steps and answers of one are done for it.

It may crash, be killed or run out of memory; then it just ends, and its parent knows. When the parent ends, it does.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.allocator import keep_freed_memory
from efficientnetv2.base.errors import DivergedError, InputError, MemoryShortError, ReaderKilledError
from efficientnetv2.base.memory import forget_peak, is_out_of_memory, limit, peak_bytes
from efficientnetv2.base.quiet import Quiet
from efficientnetv2.base.timing import Spread
from efficientnetv2.metrics.classification import figures
from efficientnetv2.nas.latency import latency
from efficientnetv2.nas.proxy import LEFT_OUT, Proxy
from efficientnetv2.nas.steptime import Pace, StepTime, StepTimes, measure, no_pace, part_names
from efficientnetv2.nas.told import EpochTold, Failed, FailureKind, Refused, StepTold, Told, Trained
from efficientnetv2.progressive import Setting
from efficientnetv2.training import rates
from efficientnetv2.training.folder import NoFolder
from efficientnetv2.training.job import Job, preprocessing_of
from efficientnetv2.training.memory import ONE_AT_A_TIME
from efficientnetv2.training.run import run
from efficientnetv2.training.settle import settle
from efficientnetv2.training.start import start

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
            limit(device, proxy.memory_gib)
        quiet = Quiet(proxy.quiet)
        with quiet.working():
            if proxy.pace is not None:
                proxy = replace(proxy, pace=in_its_groups(proxy.pace, proxy, device))
            proxy = grouped(architecture, proxy, device)
        if proxy.step_time != "unmeasured":
            step = step_time(architecture, proxy, device, quiet, verify=verify)
            if proxy.latency:
                step = replace(step, inference_seconds=_latency(architecture, proxy, device, quiet))
            told.send(step)
            forget_peak(device)  # the backbone's, timed beside it, may be larger than that of this training
        if proxy.training_threads is not None:
            torch.set_num_threads(proxy.training_threads)
        with quiet.working():
            top1 = tuple(
                _trained(architecture, proxy, number, device, quiet, scratch / f"run_{number}", told.send)
                for number in range(len(proxy.seeds))
            )
            if not proxy.seeds:  # for the memory of training
                rates.measure(_job(architecture, proxy, 0, device, NoFolder(scratch)), scratch)
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
    settled = settle(
        proxy.recipe.model_copy(update={"model": architecture, "seed": 0, **LEFT_OUT}),
        images=len(proxy.train),
        class_names=proxy.train.class_names,
        device=device,
        memory_gib=proxy.memory_gib,
    )
    return replace(proxy, recipe=settled.recipe, at_a_time=settled.at_a_time)


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
    architecture: Architecture, proxy: Proxy, device: torch.device, quiet: Quiet, *, verify: bool
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
    count = (proxy.at_a_time or ONE_AT_A_TIME).at(recipe.progressive.last.image_px)
    times = StepTimes(proxy.times, recipe, num_classes=classes, device=device, at_a_time=count)
    foretold = times.foretold(architecture)
    if foretold is not None and proxy.step_time == "cached" and not verify:
        return StepTold(Spread(foretold, foretold, foretold, 0), foretold, measured=False, at_a_time=count)

    def measured() -> StepTime:
        return measure(
            architecture, recipe, num_classes=classes, device=device, at_a_time=count, pace=proxy.pace
        )

    with quiet.alone():
        found = measured()
        known = foretold if foretold is not None else sum_of(architecture, found, times)
        if abs(known / found.whole.median - 1) > _DISAGREEING:
            found = min(
                found, measured(), key=lambda one: one.unsteadiness
            )  # a disturbed one is spread wider
        times.add(architecture, found.parts)
    return StepTold(found.whole, foretold, measured=True, at_a_time=count)


def _latency(architecture: Architecture, proxy: Proxy, device: torch.device, quiet: Quiet) -> float:
    """Seconds of a picture at inference, at the size of evaluation, in a quiet moment."""
    px = proxy.recipe.eval_px or proxy.recipe.progressive.last.image_px
    with quiet.alone():
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
    quiet: Quiet,
    folder: Path,
    tell: Callable[[Told], None],
) -> float:
    """One run; its top-1 on the pictures that choose."""
    job = _job(architecture, proxy, proxy.seeds[number], device, _Telling(folder, number, device, tell))
    predictions = run(job, resumed=False, watch=_Pausing(quiet)).predictions
    return figures(predictions.labels, predictions.probabilities, proxy.train.class_names).top1


def _job(architecture: Architecture, proxy: Proxy, seed: int, device: torch.device, folder: NoFolder) -> Job:
    """A run of the recipe, to be done into that folder."""
    assert proxy.at_a_time is not None, "grouped() comes first"
    recipe = proxy.recipe.model_copy(update={"model": architecture, "seed": seed})
    network = start(recipe, class_names=proxy.train.class_names, device=device).network
    return Job(
        recipe=recipe,
        network=network,
        train=proxy.train,
        val=proxy.choosing,
        preprocessing=preprocessing_of(recipe, network, proxy.train.bands),
        folder=folder,
        device=device,
        workers=proxy.workers,
        at_a_time=proxy.at_a_time,
        strict=proxy.strict,
    )


class _Telling(NoFolder):
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


class _Pausing:
    """Looks up from the steps now and then: somebody may want quiet."""

    def __init__(self, quiet: Quiet) -> None:
        self._quiet = quiet

    def progress(
        self, done: int, of: int, setting: Setting, images_per_s: float, seconds_left: float, loss: float
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
