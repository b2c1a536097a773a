"""What measured steps decide: stage lengths by time, and the image sizes and epochs that fit into minutes."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from efficientnetv2.inference.linear_probe import max_probe_images
from efficientnetv2.training.ddp import parallel_speed
from efficientnetv2.training.estimate import epochs_for_budget, minutes_for_steps
from efficientnetv2.training.image_cache import CacheEstimate
from efficientnetv2.training.image_sizes import lower_sizes_for_budget, settings_by_size
from efficientnetv2.training.linear_probe import images_within, min_probe_images, wants_probe
from efficientnetv2.training.memory_probe import Hardware
from efficientnetv2.training.overrides import sets_sizes
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import RunConfig, eval_preprocessing
from efficientnetv2.training.run_request import ResolvedRun
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.training.time_budget import BEFORE_SHARE, StartupBudget, TimeLimit
from efficientnetv2.training.timing import StepTimings, measure_timings
from efficientnetv2.training.train_state import RunLength
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.logs import as_details, progress

_logger = logging.getLogger(__name__)

# Fraction of the time before the first step for measuring steps: of a run, and of an estimate. Ours.
_TIMING_FRACTION, _ESTIMATE_FRACTION = 0.4, 0.5
# Seconds of compiling a stage, where it is estimated. Ours: what was seen on two cores.
_COMPILE_S = 100.0
# Seconds of a report, predictions that its galleries take as long as, and seconds per evaluated image. Ours: measured
# on two slow cores.
_REPORT_S, _REPORT_PREDICTIONS, _REPORT_VAL_S = 5.0, 60, 0.004


def needs_timing(recipe: Recipe, minutes: float | None) -> bool:
    """Whether epochs or stage lengths depend on how long the steps take."""
    return minutes is not None or _lengths_open(recipe)


def timing_note(recipe: Recipe, minutes: float | None, *, whole: bool = False) -> str:
    """A sentence on the measurement that follows. ``whole``: the minutes are those from the command to the report."""
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


def report_s(config: RunConfig, timings: StepTimings) -> float:
    """Estimated seconds of the report: galleries, intervals, plots."""
    return _REPORT_S + _REPORT_PREDICTIONS * timings.answers.each_s + _REPORT_VAL_S * len(config.val)


@dataclass(frozen=True, eq=False)
class LengthBudget:
    """A run and the time that it has."""

    config: RunConfig  # The run, with a recipe whose length is open
    # Minutes from its first step on, and ``spent_s``. None keeps the epochs of the recipe.
    minutes: float | None
    spent_s: float  # Seconds of other work: a cache, all before the first step, the report
    world: World = SINGLE_PROCESS  # Processes that will run it

    def is_exceeded(self, timings: StepTimings) -> bool:
        """Whether not even one step per stage fits, by timings of this run or better ones."""
        if self.minutes is None:
            return False
        return self._given(minutes_for_steps, timings)(self.config.recipe.progressive.stages) > self.minutes

    def lower_sizes(
        self, timings: StepTimings, stored_size: float | None
    ) -> tuple[Recipe, StepTimings, list[str]]:
        """The recipe with image sizes at which three epochs fit, its timings, and a note if they are lower.

        ``stored_size`` is the side of the stored images in pixels; None if it is not known.
        """
        assert self.minutes is not None, "sizes are lowered for want of time"
        minutes = self.minutes

        def of_sizes(recipe: Recipe) -> StepTimings:
            return timings.of_sizes([setting.image_size for setting in settings_by_size(recipe)])

        def epochs_of(recipe: Recipe) -> float:
            resized = replace(self, config=replace(self.config, recipe=recipe))
            epochs = resized._given(epochs_for_budget, of_sizes(recipe))
            with suppress(InputError):
                return epochs(minutes)
            return 0.0

        recipe, notes = lower_sizes_for_budget(self.config.recipe, epochs_of, stored_size)
        return recipe, of_sizes(recipe), notes

    def set_length(self, timings: StepTimings) -> tuple[Recipe, list[str]]:
        """The recipe with the stage lengths and epochs that the timings decide, and a note for each.

        Raises:
            InputError: Not even one step per stage fits into the minutes.
        """
        recipe, notes = self.config.recipe, []
        if _lengths_open(recipe):
            recipe, note = _lengths_by_time(recipe, timings)
            notes.append(note)
        if self.minutes is not None:
            budget = replace(self, config=replace(self.config, recipe=recipe))
            epochs = budget._given(epochs_for_budget, timings)(self.minutes)
            recipe = recipe.model_copy(update={"epochs": epochs})
            recipe.progressive.at(0, total_steps=RunLength.of(recipe, len(self.config.train)).steps)
            notes.append(
                f"Epochs: {epochs:g}, what fits into {pluralize(self.minutes, 'minute')} by a short measurement."
            )
        return recipe, notes

    def _given(self, function: Callable[..., float], timings: StepTimings) -> Callable[[float], float]:
        """A function of ``training.estimate`` with all but its first argument."""
        return partial(
            function,
            recipe=self.config.recipe,
            timings=timings,
            counts=self.config.image_counts,
            spent_s=self.spent_s,
            at_once=parallel_speed(self.world, self.config.device),
        )


def _lengths_open(recipe: Recipe) -> bool:
    return (
        recipe.stage_time is not None
        and recipe.progressive.stage_fractions is None
        and recipe.progressive.stages > 1
    )


def _lengths_by_time(recipe: Recipe, timings: StepTimings) -> tuple[Recipe, str]:
    """The recipe with the stage lengths that give the stages their shares of the time."""
    plan = recipe.progressive
    shares = None if recipe.stage_time == "equal" else recipe.stage_time
    step_s = [timings.step_s(plan.stage(index).image_size) for index in range(plan.stages)]
    plan = plan.with_stage_times(step_s, shares)
    lengths = " : ".join(f"{100 * share:.3g}" for share in plan.weights)
    times = ", ".join(
        f"{1000 * seconds:,.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}" for seconds in step_s
    )
    share = "the same time" if shares is None else "its share of the time"
    return recipe.model_copy(update={"progressive": plan}), (
        f"Stage lengths: {lengths} in 100 steps, so that each takes {share}; their steps measured {times} ms."
    )


@contextmanager
def scratch_dir(run: Path) -> Iterator[Path]:
    """A folder on the disk of a run directory, which need not be there; removed however the block ends.

    It is in the run directory itself if that is there, as its parent may be on another disk or not writable. Its name
    is that of a partial file, so that a run may begin beside what a kill has left of it.

    Raises:
        InputError: It can't be made.
    """
    parent = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.is_dir())
    with ExitStack() as stack:
        stack.enter_context(signals_as_ctrl_c())
        try:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(
                    prefix=".measured.", suffix=".partial", dir=parent, ignore_cleanup_errors=True
                )
            )
        except OSError as error:
            raise InputError(
                f"{parent}: {error.strerror or error}, but how fast a run writes is measured there. Give another "
                "--output."
            ) from error
        yield Path(folder)


def resolve_length(
    run: ResolvedRun, hardware: Hardware, budget: StartupBudget | None, estimate_in: Path | None = None
) -> ResolvedRun:
    """The run with what measured steps decide: image sizes, probe, stage lengths, epochs, time limit."""
    minutes, config = run.request.overrides.minutes, run.config(hardware)
    cache_s = 0.0 if run.cache is None else run.cache.seconds
    note = timing_note(run.recipe, minutes, whole=estimate_in is not None or budget is not None)
    _logger.log(logging.DEBUG if estimate_in is None else logging.INFO, note)
    spent_s = cache_s if estimate_in is not None or budget is None else budget.used_s
    timings, measuring_s = _measure(run, hardware, budget, spent_s, estimate_in)
    notes = [*without_epochs(run.notes, minutes)]
    recipe, probe_images, limit, world = run.recipe, None, None, hardware.world
    if estimate_in is not None and recipe.compile:
        compile_s = _COMPILE_S * recipe.progressive.stages
        timings = replace(timings, compile_s=compile_s)
        notes.append(
            f"Compiling: about {compile_s / 60:.0f} minutes, estimated. The steps are measured without it."
        )
    if budget is not None and minutes is not None:
        # What comes before the first step has a part of the minutes. An estimate knows what it will take by now.
        before_s, after_s = 60 * minutes * BEFORE_SHARE, report_s(config, timings)
        if estimate_in is not None:
            before_s = min(before_s, budget.used_s + cache_s)
        if not sets_sizes(run.request.overrides):
            length = LengthBudget(config, minutes, before_s + after_s, world)
            recipe, timings, lowered = length.lower_sizes(timings, run.data.stored_size)
            notes += lowered
            config = replace(config, recipe=recipe)
        spent_s = before_s + after_s
        if estimate_in is None:
            recipe, probe_images, probing_s, probe_notes = _probe_in_time(
                replace(run, recipe=recipe), timings, hardware, budget
            )
            notes += probe_notes
            config = replace(config, recipe=recipe)
            spent_s = budget.used_s + probing_s + after_s
            groups = recipe.batch_size // (recipe.ghost_batch_size or recipe.batch_size)
            shared = timings.shared(parallel_speed(world, hardware.device), groups)
            limit = TimeLimit(60 * minutes, after_s, shared, began=budget.began)
    recipe, length_notes = LengthBudget(config, minutes, spent_s, world).set_length(timings)
    seconds = run.seconds | {"measuring": measuring_s} if needs_timing(run.recipe, minutes) else run.seconds
    return replace(
        run,
        recipe=recipe,
        preprocessing=eval_preprocessing(recipe, run.network, run.data.dataset.bands),
        notes=(*notes, *length_notes),
        timings=timings,
        limit=limit,
        probe_images=probe_images,
        seconds=seconds,
    )


def _measure(
    run: ResolvedRun,
    hardware: Hardware,
    budget: StartupBudget | None,
    spent_s: float,
    estimate_in: Path | None,
) -> tuple[StepTimings, float]:
    """Timings of the run, and the seconds that they took."""
    minutes, config = run.request.overrides.minutes, run.config(hardware)
    length = LengthBudget(config, minutes, spent_s, hardware.world)
    if budget is not None:  # the run compiles; its speed is measured again under way
        config = replace(config, recipe=run.recipe.model_copy(update={"compile": False}))
    if isinstance(run.cache, CacheEstimate):
        config = replace(config, train=run.cache.images)
    run_steps = None
    if estimate_in is not None and not needs_timing(run.recipe, minutes):
        run_steps = config.length.steps
    fraction = _TIMING_FRACTION if estimate_in is None else _ESTIMATE_FRACTION
    within_s = None if budget is None else fraction * budget.left_s
    where = scratch_dir(run.request.path) if estimate_in is None else nullcontext(estimate_in)
    shown = progress("measuring steps", None) if estimate_in is None else nullcontext()
    detail = as_details() if estimate_in is None else nullcontext()
    began = time.perf_counter()
    with where as folder, shown, detail:
        timings = measure_timings(
            config, folder, run_steps=run_steps, is_impossible=length.is_exceeded, within_s=within_s
        )
    return timings, time.perf_counter() - began


def _probe_in_time(
    run: ResolvedRun, timings: StepTimings, hardware: Hardware, budget: StartupBudget
) -> tuple[Recipe, int | None, float, list[str]]:
    """The recipe, the images that a linear probe has time for (None: all), its seconds, and a note if it has none."""
    recipe, data = run.recipe, run.data
    if not wants_probe(recipe, run.request.options.probe, data):
        return recipe, None, 0.0, []
    left_s, px = budget.left_s, recipe.eval_image_size or run.preprocessing.image_size
    most = max_probe_images(run.network, px, len(data.train.class_names), hardware.device)
    images = images_within(left_s, data, run.network, timings.curve.each_s, most)
    if images is None or images >= min_probe_images(data):
        return recipe, images, left_s, []
    minutes = run.request.overrides.minutes
    note = f"No linear probe of the given weights (--minutes {minutes:g} leaves no time for it)."
    return recipe.model_copy(update={"head_init": "random"}), 0, 0.0, [note]


def without_epochs(notes: tuple[str, ...], minutes: float | None) -> tuple[str, ...]:
    """The notes without that on the epochs, if minutes decide them."""
    return tuple(note for note in notes if minutes is None or not note.startswith("Epochs:"))
