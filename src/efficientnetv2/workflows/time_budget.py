"""What ``plan`` and ``train`` share: a run that has not begun, to be measured, and what is settled by that."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from efficientnetv2.data.data_module import DataModule
from efficientnetv2.data.readers import Reader
from efficientnetv2.training.auto_config import ResolvedRecipe, lower_sizes_for_budget
from efficientnetv2.training.ddp import parallel_speed
from efficientnetv2.training.estimate import epochs_for_budget, minutes_for_steps
from efficientnetv2.training.image_sizes import settings_by_size
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import RunConfig, eval_preprocessing
from efficientnetv2.training.run_dir import NullRunDir
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.training.timing import StepTimings
from efficientnetv2.training.train_state import RunLength
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World
from efficientnetv2.utils.errors import InputError, pluralize

# Seconds of a report, of answers that its galleries take the time of, and of each image that it answers. Ours: measured
# on two slow cores.
_REPORT_S, _REPORT_ANSWERS, _REPORT_VAL_S = 5.0, 60, 0.004


def job_of(
    settled: ResolvedRecipe,
    prepared: DataModule,
    path: Path,
    device: torch.device,
    workers: int,
    reader: Reader | None = None,
) -> RunConfig:
    """The run, as one process would run it, but that nothing is written into its folder.

    Args:
        settled: its recipe and network.
        prepared: its pictures.
        path: of its folder, which need not be there.
        device: to train on.
        workers: processes that read pictures.
        reader: of the training pictures; None reads the originals.
    """
    return RunConfig(
        recipe=settled.recipe,
        network=settled.network,
        train=prepared.train,
        val=prepared.val,
        preprocessing=eval_preprocessing(settled.recipe, settled.network, prepared.dataset.bands),
        folder=NullRunDir(path),
        device=device,
        workers=workers,
        microbatches=settled.microbatches,
        reader=reader,
        minival=prepared.minival,
    )


def to_be_measured(minutes: float | None, recipe: Recipe) -> bool:
    """Whether anything of a settled recipe waits for how long its steps take: its epochs, or its stages' lengths."""
    return minutes is not None or _lengths_open(recipe)


def to_measure(recipe: Recipe, minutes: float | None, *, whole: bool = False) -> str:
    """A sentence on the measurement that comes: of what, and for what.

    Args:
        recipe: settled but for what it decides.
        minutes: that the run may take; None where they decide nothing.
        whole: Whether the minutes are those from the command to the report.
    """
    sizes = pluralize(len(settings_by_size(recipe)), "picture size")
    line = f"Measuring: some steps of {sizes}, answers, a checkpoint."
    if minutes is None:
        return line
    if whole:
        return f"{line} The {pluralize(minutes, 'minute')} are those from the command to the report."
    return (
        f"{line} The {pluralize(minutes, 'minute')} are those from the first step to the last answer, and filling a "
        "cache; what goes before, this measurement too, and the report come on top."
    )


def report_s(job: RunConfig, rates: StepTimings) -> float:
    """Seconds of the report and of its start, estimated: galleries, intervals, drawings.

    Args:
        job: The run.
        rates: Measured rates.
    """
    return _REPORT_S + _REPORT_ANSWERS * rates.answers.each_s + _REPORT_VAL_S * len(job.val)


def in_vain(
    minutes: float | None, job: RunConfig, *, spent_s: float, world: World = SINGLE_PROCESS
) -> Callable[[StepTimings], bool]:
    """Whether timings say that not even one step per stage fits into the minutes, for ``timing.measure_timings``.

    Args:
        minutes: that the run may take, as of ``settled_by``; None leaves nothing in vain.
        job: to be run.
        spent_s: on filling a cache.
        world: the processes that will run it.
    """
    if minutes is None:
        return lambda rates: False
    stages = job.recipe.progressive.stages
    return lambda rates: _given(minutes_for_steps, job, rates, spent_s, world)(stages) > minutes


def still_so(notes: Sequence[str], minutes: float | None) -> list[str]:
    """Those sentences on what was chosen that ``settled_by`` does not choose anew.

    Args:
        notes: of what was settled before.
        minutes: as it gets them.
    """
    return [line for line in notes if minutes is None or not line.startswith("Epochs:")]


def settled_by(
    rates: StepTimings,
    job: RunConfig,
    minutes: float | None,
    *,
    spent_s: float,
    world: World = SINGLE_PROCESS,
) -> tuple[Recipe, list[str]]:
    """The recipe with all that its steps' time decides, and a sentence on each such choice.

    Args:
        rates: of the run, measured by one process.
        job: to be run.
        minutes: that the run may take from its first step, and whatever has been spent before on its account; None
            leaves the epochs as they are.
        spent_s: on filling a cache.
        world: the processes that will run it.

    Raises:
        InputError: not even one step per stage fits into the minutes.
    """
    recipe, notes = job.recipe, []
    if _lengths_open(recipe):
        recipe, note = _in_time(recipe, rates)
        notes.append(note)
    if minutes is not None:
        recipe, note = _as_long_as(minutes, replace(job, recipe=recipe), rates, spent_s, world)
        notes.append(note)
    return recipe, notes


def lowered_by(
    rates: StepTimings,
    job: RunConfig,
    minutes: float,
    stored_px: float | None,
    *,
    spent_s: float,
    world: World = SINGLE_PROCESS,
) -> tuple[Recipe, StepTimings, list[str]]:
    """The recipe with image sizes at which three epochs fit by a measurement, its rates, and a sentence if lower.

    Args:
        rates: of the run, measured by one process.
        job: to be run.
        minutes: that the run may take.
        stored_px: Side of the images as they are stored, in pixels. None if it is not known.
        spent_s: on other work, as of ``settled_by``.
        world: the processes that will run it.
    """

    def of(recipe: Recipe) -> StepTimings:
        return rates.of_sizes([setting.image_px for setting in settings_by_size(recipe)])

    def epochs_of(recipe: Recipe) -> float:
        given = _given(epochs_for_budget, replace(job, recipe=recipe), of(recipe), spent_s, world)
        with suppress(InputError):
            return given(minutes)
        return 0.0

    recipe, notes = lower_sizes_for_budget(job.recipe, epochs_of, stored_px)
    return recipe, of(recipe), notes


def _lengths_open(recipe: Recipe) -> bool:
    return (
        recipe.time_shares is not None and recipe.progressive.shares is None and recipe.progressive.stages > 1
    )


def _in_time(recipe: Recipe, rates: StepTimings) -> tuple[Recipe, str]:
    """The recipe with the lengths of its stages that give them their shares of the time."""
    plan = recipe.progressive
    wanted = None if recipe.time_shares == "equal" else recipe.time_shares
    step_s = [rates.step_s(plan.stage(index).image_px) for index in range(plan.stages)]
    plan = plan.in_time(step_s, wanted)
    lengths = " : ".join(f"{100 * share:.3g}" for share in plan.weights)
    times = ", ".join(
        f"{1000 * seconds:,.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}" for seconds in step_s
    )
    shared = "the same time" if wanted is None else "its share of the time"
    return recipe.model_copy(update={"progressive": plan}), (
        f"Stage lengths: {lengths} in 100 steps, so that each takes {shared}; their steps measured {times} ms."
    )


def _as_long_as(
    minutes: float, job: RunConfig, rates: StepTimings, spent_s: float, world: World
) -> tuple[Recipe, str]:
    """The recipe with the epochs that fit into so many minutes."""
    epochs = _given(epochs_for_budget, job, rates, spent_s, world)(minutes)
    recipe = job.recipe.model_copy(update={"epochs": epochs})
    recipe.progressive.at(0, total_steps=RunLength.of(recipe, len(job.train)).steps)
    return (
        recipe,
        f"Epochs: {epochs:g}, what fits into {pluralize(minutes, 'minute')} by a short measurement.",
    )


def _given(
    asked: Callable[..., float], job: RunConfig, rates: StepTimings, spent_s: float, world: World
) -> Callable[[float], float]:
    """A function of ``training.estimate``, given all but its first argument."""
    return partial(
        asked,
        recipe=job.recipe,
        timings=rates,
        counts=job.image_counts,
        spent_s=spent_s,
        at_once=parallel_speed(world, job.device),
    )


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A folder on the disk that a run will write to, gone afterwards, however the block ends: SIGTERM included.

    In the run's own folder where that is there, for its parent may lie on another disk, or not be the user's to write
    in. It is called as what is half written, so that a run may begin beside what a kill has left of it.

    Args:
        beside: the run's folder, which need not be there.

    Raises:
        InputError: it can't be made.
    """
    there = next(folder for folder in (beside.absolute(), *beside.absolute().parents) if folder.is_dir())
    with ExitStack() as made:
        made.enter_context(signals_as_ctrl_c())
        try:
            folder = made.enter_context(
                tempfile.TemporaryDirectory(
                    prefix=".measured.", suffix=".partial", dir=there, ignore_cleanup_errors=True
                )
            )
        except OSError as error:
            raise InputError(
                f"{there}: {error.strerror or error}, but how fast a run writes is measured there. Give another --out."
            ) from error
        yield Path(folder)
