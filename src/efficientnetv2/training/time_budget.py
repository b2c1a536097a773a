"""What time decides before the first step: image sizes, stage lengths, epochs, and the images of a linear probe."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.loader import decode_threads, thread_map
from efficientnetv2.data.readers import source_reader
from efficientnetv2.inference.linear_probe import max_probe_images
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.autotune import seconds_per_image
from efficientnetv2.training.ddp import parallel_speed
from efficientnetv2.training.head_init import images_within, min_probe_images, probe_s, wants_probe
from efficientnetv2.training.memory_probe import MemoryProbe, takes_sizes
from efficientnetv2.training.overrides import sets_sizes
from efficientnetv2.training.recipe import MAX_COUNT, Recipe
from efficientnetv2.training.resolve_image_sizes import lower_sizes_for_budget, settings_by_size
from efficientnetv2.training.run_estimate import estimate_run
from efficientnetv2.training.run_request import ResolvedRun
from efficientnetv2.training.run_setup import ImageCounts, RunLength, RunSetup, eval_preprocessing
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.training.time_limit import BEFORE_SHARE, RESERVE, StartupBudget, TimeLimit
from efficientnetv2.training.timing import StepTimings, measure_timings, scaled_s
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.distributed import SINGLE_PROCESS
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.logs import as_details, progress

_logger = logging.getLogger(__name__)

# Fraction of the time before the first step for measuring steps. Ours.
_TIMING_FRACTION = 0.4
# Seconds of a report, predictions that its galleries take as long as, and seconds per evaluated image. Ours: measured
# on two slow cores.
_REPORT_S, _REPORT_PREDICTIONS, _REPORT_VAL_S = 5.0, 60, 0.004
# Images that are read to time one. Ours.
_TIMED_IMAGES = 16


@dataclass(frozen=True)
class TimeConstraints:
    """What a time limit means before the first step. None is no limit."""

    minutes: float | None = None  # Minutes of the whole run, which decide the number of steps later
    training_s: float | None = None  # Seconds for steps. Image sizes are lowered until an epoch fits.
    read_s: float = 0.0  # Seconds to read one training image
    compile_within_s: float | None = None  # Seconds that compiling may take


def epochs_in_time(
    constraints: TimeConstraints, recipe: Recipe, network: Network, images: int, hardware: Hardware
) -> Callable[[Recipe], float]:
    """About how many epochs fit into the time, as a function of the recipe with its sizes."""
    pixel_s = seconds_per_image(recipe, network, hardware.device) / recipe.progressive.last.image_size**2
    training_s = (constraints.training_s or 0.0) * parallel_speed(hardware.world, hardware.device)

    def epochs_of(sized: Recipe) -> float:
        plan = sized.progressive
        pixels = sum(share * plan.stage(stage).image_size ** 2 for stage, share in enumerate(plan.weights))
        return training_s / (images * (constraints.read_s + pixel_s * pixels))

    return epochs_of


def seconds_per_read(train: ImageDataset, recipe: Recipe, workers: int, *, again: bool = False) -> float:
    """Seconds to read one training image, from a few of them; each worker reads another one meanwhile.

    ``again`` takes other images than the first time, whose files are in memory by then.
    """
    reader, preprocessing = source_reader(train), Preprocessing(image_size=recipe.progressive.last.image_size)
    places = np.linspace(0, len(train) - 1, 2 * _TIMED_IMAGES).astype(np.int64)[int(again) :: 2]
    rows = np.unique(places).tolist()

    def read(place: int) -> None:
        with suppress(UnreadableImageError):  # counted and named elsewhere
            load_eval_image(reader.source(rows[place]), preprocessing)

    began = time.perf_counter()
    thread_map(read, len(rows), decode_threads(workers))
    return (time.perf_counter() - began) / (len(rows) * max(1, workers))


def resolve_length(run: ResolvedRun, hardware: Hardware, budget: StartupBudget | None) -> ResolvedRun:
    """The run with what measured steps decide: image sizes, probe, stage lengths, epochs, time limit.

    With ``budget``, the minutes are those from the command to the report; without, those from the first step to the
    last prediction, and of filling a cache.
    """
    minutes, setup = run.request.overrides.minutes, run.setup(replace(hardware, world=SINGLE_PROCESS))
    length, timed, within_s = LengthBudget.of(run, hardware), setup, None
    if budget is not None:  # the run compiles; its speed is measured again under way
        length, within_s = replace(length, spent_s=budget.used_s), _TIMING_FRACTION * budget.left_s
        timed = replace(setup, recipe=run.recipe.model_copy(update={"compile": False}))
    _logger.debug(measuring_line(run.recipe))
    with scratch_dir(run.request.path) as folder, progress("measuring steps", None), as_details():
        timings = measure_timings(timed, folder, is_impossible=length.is_exceeded, within_s=within_s)
    if budget is not None and minutes is not None:
        after_s = report_s(setup, timings)
        before = replace(length, spent_s=60 * minutes * BEFORE_SHARE + after_s)
        run, timings = with_lower_sizes(run, before, timings, hardware)
        length = replace(length, recipe=run.recipe, spent_s=budget.used_s + after_s)
        free_s = 60 * (minutes - length.minutes_for(run.recipe.progressive.stages, timings))
        run, probing_s = _probe_in_time(run, timings, hardware, max(0.0, min(budget.left_s, free_s)))
        shared = timings.shared(length.at_once, run.recipe.num_groups)
        run = replace(run, limit=TimeLimit(60 * minutes, after_s, shared, began=budget.began))
        length = replace(length, spent_s=length.spent_s + probing_s)
    return with_length(run, length, timings)


def with_lower_sizes(
    run: ResolvedRun, length: LengthBudget, timings: StepTimings, hardware: Hardware
) -> tuple[ResolvedRun, StepTimings]:
    """The run with image sizes at which three epochs fit, unless the user has set them, and its timings."""
    if sets_sizes(run.request.overrides):
        return run, timings
    probe = MemoryProbe(run.recipe, run.network, replace(hardware, memory_gib=None))  # only for the sizes
    if run.cache is None:  # a cache is read in no time
        length = replace(length, read_s=seconds_per_read(run.data.train, run.recipe, hardware.workers, again=True))
    recipe, timings, notes = length.lower_sizes(timings, partial(takes_sizes, probe))
    # The new note has another size at evaluation.
    kept = [note for note in run.notes if not (notes and note.startswith("Evaluation at "))]
    return replace(run, recipe=recipe, notes=(*kept, *notes)), timings


def with_length(run: ResolvedRun, length: LengthBudget, timings: StepTimings) -> ResolvedRun:
    """The run with the stage lengths and epochs that its timings decide."""
    recipe, notes = replace(length, recipe=run.recipe).set_length(timings)
    preprocessing = eval_preprocessing(recipe, run.network, run.data.dataset.bands)
    return replace(run, recipe=recipe, preprocessing=preprocessing, notes=(*run.notes, *notes))


@dataclass(frozen=True)
class LengthBudget:
    """The time of a run whose length is open."""

    recipe: Recipe
    counts: ImageCounts
    # Minutes from its first step on, and ``spent_s``. None keeps the epochs of the recipe.
    minutes: float | None
    spent_s: float = 0.0  # Seconds of other work: a cache, all before the first step, the report
    at_once: int = 1  # Processes that share steps and predictions, each as fast as the one that was timed
    read_s: float = 0.0  # Seconds to read one image, which a lower image size does not reduce

    @classmethod
    def of(cls, run: ResolvedRun, hardware: Hardware) -> LengthBudget:
        """The time of a run on all its processes, of which its cache takes a part."""
        spent_s = 0.0 if run.cache is None else run.cache.seconds
        counts, at_once = run.setup(hardware).image_counts, parallel_speed(hardware.world, hardware.device)
        return cls(run.recipe, counts, run.request.overrides.minutes, spent_s, at_once)

    def minutes_for(self, steps: int, timings: StepTimings) -> float:
        """The minutes to give a run of a number of steps: its time, a reserve and the other work."""
        epochs = steps * self.recipe.batch_size / self.counts.train
        recipe = self.recipe.model_copy(update={"epochs": epochs})
        run = estimate_run(recipe, timings.shared(self.at_once, recipe.num_groups), self.counts)
        return (self.spent_s + run.seconds / (1 - RESERVE)) / 60

    def is_exceeded(self, timings: StepTimings) -> bool:
        """Whether not even one step per stage fits, by timings of this run or better ones."""
        return self.minutes is not None and self.minutes_for(self.recipe.progressive.stages, timings) > self.minutes

    def epochs(self, timings: StepTimings) -> float:
        """The epochs that fit into the minutes, with one step per stage at least."""
        assert self.minutes is not None
        needed = partial(self.minutes_for, timings=timings)
        fewest = self.recipe.progressive.stages
        if (shortest := needed(fewest)) > self.minutes:
            digit = 10 ** (math.floor(math.log10(shortest)) - 1)  # rounded up to two digits
            least = pluralize(float(f"{math.ceil(shortest / digit) * digit:.2g}"), "minute")
            other = f", {self.spent_s / 60:.2g} of them for preparation and the report" if self.spent_s else ""
            raise InputError(
                f"`minutes={self.minutes:g}`: the shortest run has {pluralize(fewest, 'step')}, one for each stage, "
                f"and takes about {least}{other}. Give at least that, or use a smaller `image_size` or `model`."
            )
        too_many = 2 * fewest
        while needed(too_many) <= self.minutes:
            too_many *= 2
        fits = bisect_right(range(too_many), self.minutes, lo=fewest, key=needed) - 1
        return min(float(MAX_COUNT), float(f"{fits * self.recipe.batch_size / self.counts.train:.4g}"))

    def lower_sizes(
        self, timings: StepTimings, takes: Callable[[Recipe], bool]
    ) -> tuple[Recipe, StepTimings, list[str]]:
        """The recipe with image sizes at which three epochs fit, its timings, and a note if they are lower.

        ``takes`` is as for ``lower_sizes_for_budget``.
        """

        def of_sizes(recipe: Recipe) -> StepTimings:
            sizes = [setting.image_size for setting in settings_by_size(recipe)]
            sized = timings.of_sizes(sizes, self.read_s * self.recipe.batch_size)
            share = ((recipe.eval_image_size or 1) / (self.recipe.eval_image_size or 1)) ** 2
            curve, predictions = (
                replace(one, each_s=scaled_s(one.each_s, share, self.read_s))
                for one in (sized.curve, sized.predictions)
            )
            return replace(sized, curve=curve, predictions=predictions)

        def epochs_of(recipe: Recipe) -> float:
            with suppress(InputError):
                return replace(self, recipe=recipe).epochs(of_sizes(recipe))
            return 0.0

        recipe, notes = lower_sizes_for_budget(self.recipe, epochs_of, takes)
        return recipe, of_sizes(recipe), notes

    def set_length(self, timings: StepTimings) -> tuple[Recipe, list[str]]:
        """The recipe with the stage lengths and epochs that the timings decide, and a note for each."""
        recipe, notes = self.recipe, []
        if recipe.measures_stages:
            recipe, note = _lengths_by_time(recipe, timings)
            notes.append(note)
        if self.minutes is not None:
            epochs = replace(self, recipe=recipe).epochs(timings)
            recipe = recipe.model_copy(update={"epochs": epochs})
            recipe.progressive.at(0, total_steps=RunLength.of(recipe, self.counts.train).steps)
            notes.append(
                f"Epochs: {epochs:g}, what fits into {pluralize(self.minutes, 'minute')} by a short measurement."
            )
        return recipe, notes


def _lengths_by_time(recipe: Recipe, timings: StepTimings) -> tuple[Recipe, str]:
    """The recipe with the stage lengths that give the stages their shares of the time, and a note."""
    plan = recipe.progressive
    shares = None if recipe.stage_time == "equal" else recipe.stage_time
    step_s = [timings.step_s(plan.stage(index).image_size) for index in range(plan.stages)]
    plan = plan.with_stage_times(step_s, shares)
    lengths = " : ".join(f"{100 * share:.3g}" for share in plan.weights)
    times = ", ".join(f"{1000 * each:,.3g}" if each < 1 else f"{1000 * each:,.0f}" for each in step_s)
    share = "the same time" if shares is None else "its share of the time"
    return recipe.model_copy(update={"progressive": plan}), (
        f"Stage lengths: {lengths} in 100 steps, so that each takes {share}; their steps measured {times} ms."
    )


def measuring_line(recipe: Recipe) -> str:
    """What is measured before the first step."""
    sizes = pluralize(len(settings_by_size(recipe)), "image size")
    return f"Measuring: some steps of {sizes}, predictions, a checkpoint."


@contextmanager
def scratch_dir(run: Path) -> Iterator[Path]:
    """A folder on the disk of a run directory, which need not be there; removed however the block ends.

    It is in the run directory itself if that is there, as its parent may be on another disk or not writable. Its name
    is that of a partial file, so that a run may start although a killed run has left one.
    """
    parent = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.is_dir())
    with signals_as_ctrl_c():
        try:
            folder = tempfile.TemporaryDirectory(
                prefix=".measured.", suffix=".partial", dir=parent, ignore_cleanup_errors=True
            )
        except OSError as error:
            raise InputError(f"{parent}: {error.strerror or error}. Give another `output`.") from error
        with folder as name:
            yield Path(name)


def report_s(setup: RunSetup, timings: StepTimings) -> float:
    """Estimated seconds of the report: galleries, intervals, plots."""
    return _REPORT_S + _REPORT_PREDICTIONS * timings.predictions.each_s + _REPORT_VAL_S * len(setup.val)


def _probe_in_time(
    run: ResolvedRun, timings: StepTimings, hardware: Hardware, left_s: float
) -> tuple[ResolvedRun, float]:
    """The run with the images that a linear probe has time for, or a note if it has none; and its seconds."""
    recipe, data = run.recipe, run.data
    if not wants_probe(recipe, run.network, run.request.options.probe, data):
        return run, 0.0
    px = recipe.eval_image_size or run.preprocessing.image_size
    most = max_probe_images(run.network, px, len(data.train.class_names), hardware.device)
    images = images_within(left_s, data, run.network, timings.curve.each_s, most)
    if images is None:
        every = min(most, max(len(data.train), len(data.val)))
        return run, probe_s(every, data.train, min(every, len(data.val)), run.network, timings.curve.each_s)
    if images >= min_probe_images(data):
        return replace(run, probe_images=images), left_s
    note = (
        f"No linear probe of the initial weights (`minutes={run.request.overrides.minutes:g}` leaves no time for it)."
    )
    recipe = recipe.model_copy(update={"head_init": "random"})
    return replace(run, recipe=recipe, probe_images=0, notes=(*run.notes, note)), 0.0
