"""Time the parts of a run by its own loop and images: steps of each size, predictions, a checkpoint."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from efficientnetv2.data.loader import Batch, training_batches, worker_errors
from efficientnetv2.data.sampler import BatchRequest
from efficientnetv2.models import model_file
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.training import cuda_graphs
from efficientnetv2.training.checkpoints import save_checkpoint
from efficientnetv2.training.loop import step_context, train_steps
from efficientnetv2.training.resolve_image_sizes import settings_by_size
from efficientnetv2.training.run_setup import RunLength, RunSetup, train_sampler, training_images
from efficientnetv2.training.train_state import TrainState, init_state
from efficientnetv2.utils.device import place, synchronizer
from efficientnetv2.utils.memory import PeakMemory

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepTiming:
    """Steps of an image size."""

    image_size: int
    begin_s: float  # Seconds that the first step takes longer
    each_s: float  # Seconds of a step of the whole batch
    memory_bytes: int  # Peak memory of the process


@dataclass(frozen=True)
class LinearCost:
    """Predictions or files: seconds before the first, and seconds for each."""

    begin_s: float
    each_s: float

    def seconds(self, number: int) -> float:
        """Seconds of a number of them."""
        return self.begin_s + self.each_s * number if number else 0.0


@dataclass(frozen=True)
class StepTimings:
    """What the parts of a run take."""

    compile_s: float  # Compiling the model for all stages
    steps: tuple[StepTiming, ...]  # One for each size, growing
    curve: LinearCost  # Predictions of a validation
    predictions: LinearCost  # Final predictions, with test-time augmentation
    checkpoints: LinearCost
    checkpoint_bytes: int
    model_s: float  # Writing the model file
    model_bytes: int

    def step_s(self, image_size: float) -> float:
        """Seconds of a step at any size; between measured ones in proportion to the pixels."""
        pixels = [step.image_size**2 for step in self.steps]
        return float(np.interp(image_size**2, pixels, [step.each_s for step in self.steps]))

    def of_sizes(self, sizes: Sequence[int], read_s: float = 0.0) -> StepTimings:
        """The same for other sizes; below the smallest measured size in proportion to the pixels.

        ``read_s`` are the seconds of a step that reading its images takes, at any size.
        """

        def timing(px: int) -> StepTiming:
            known = next((step for step in self.steps if step.image_size >= px), self.steps[-1])
            below = min(1.0, px / self.steps[0].image_size) ** 2
            return replace(known, image_size=px, each_s=scaled_s(self.step_s(px), below, read_s))

        return replace(self, steps=tuple(timing(px) for px in sorted(set(sizes))))

    def shared(self, processes: int, groups: int) -> StepTimings:
        """The same for processes that share predictions and the ``groups`` of a step; the one with most ends it.

        What comes once, such as compiling, each does at the same time; files are written by one alone.
        """
        part = math.ceil(groups / processes) / groups
        return replace(
            self,
            steps=tuple(replace(step, each_s=step.each_s * part) for step in self.steps),
            curve=replace(self.curve, each_s=self.curve.each_s / processes),
            predictions=replace(self.predictions, each_s=self.predictions.each_s / processes),
        )


def scaled_s(seconds: float, factor: float, fixed_s: float) -> float:
    """The seconds, of which all but ``fixed_s`` change by a factor."""
    fixed_s = min(seconds, fixed_s)
    return fixed_s + (seconds - fixed_s) * factor


# All ours. Steps of each size that are not counted at least: the first, and those in which memory is watched.
_WARM_UP = 2
# Of each size so many steps are timed at least, and so many seconds of them; or fewer steps that take so long.
_TIMED_STEPS, _TIMED_S, _LONG_S = 3, 2.0, 10.0
# A batch of more images is measured in part, whole passes of it; the second number counts under a time limit.
_MOST_IMAGES, _HURRIED_IMAGES = 256, 32
# Images that are predicted before timing, the most images that are timed, and the seconds that these should fill.
_FEW, _MAX_PREDICTIONS, _PREDICTIONS_S = 8, 512, 2.0
# Of the measured run: so long that its learning rate, where it warms up, stays near 0. Only a copy is trained.
_STEPS = 1_000_000


def measure_timings(
    setup: RunSetup,
    scratch: Path,
    *,
    run_steps: int | None = None,
    is_impossible: Callable[[StepTimings], bool] = lambda timings: False,
    within_s: float | None = None,
) -> StepTimings:
    """Do a little of everything that the run will do, with a copy of its model, small images first.

    Checkpoints and a model file are left in ``scratch``. ``run_steps``, if known, limit the steps that are timed. Sizes
    are extrapolated after one whose timings, or better ones, make a run ``is_impossible``, or after ``within_s``.
    """
    state = init_state(place(copy.deepcopy(setup.network), setup.device), setup.recipe)
    _logger.info("Measuring predictions.")
    curve = _predictions(setup, state, once=True)
    final = curve if setup.preprocessing.tta == "none" else _predictions(setup, state, once=False)
    timings = StepTimings(0.0, (), curve, final, LinearCost(0.0, 0.0), 0, 0.0, 0)
    timings = _StepTimer(setup, timings, run_steps, is_impossible, within_s).measure(state)
    _logger.info("Measuring checkpoints.")
    checkpoints, checkpoint = _checkpoints(state, scratch)
    began = time.perf_counter()
    model = scratch / "model.safetensors"
    model_file.save(
        model,
        setup.network,  # its trained copy may have diverged
        preprocessing=setup.preprocessing,
        class_names=setup.train.class_names,
        recipe=setup.recipe.to_json(),
    )
    return replace(
        timings,
        checkpoints=checkpoints,
        checkpoint_bytes=checkpoint.stat().st_size,
        model_s=time.perf_counter() - began,
        model_bytes=model.stat().st_size,
    )


class _StepTimer:
    """Gives the loop steps of one size after the other, as many as it takes to time them."""

    def __init__(
        self,
        setup: RunSetup,
        timings: StepTimings,
        run_steps: int | None,
        is_impossible: Callable[[StepTimings], bool],
        within_s: float | None,
    ) -> None:
        group = setup.recipe.group_size
        most = _MOST_IMAGES if within_s is None else _HURRIED_IMAGES
        self._groups = min(setup.recipe.num_groups, max(setup.microbatches.most, most // group))
        self.setup, self._timings = setup, timings
        part = setup.recipe.model_copy(update={"batch_size": self._groups * group})
        self._measured = replace(setup, recipe=part)
        self._is_impossible, self._within_s = is_impossible, within_s
        self._settings = sorted(settings_by_size(part), key=lambda setting: setting.image_size)
        self._most = math.inf if run_steps is None else run_steps / len(self._settings)
        # Workers start at the same time: what each reads first comes at once.
        self._warm_up = max(_WARM_UP if within_s is None else 1, setup.workers)
        if part.cuda_graphs and setup.device.type == "cuda":
            self._warm_up = max(self._warm_up, cuda_graphs.WARM_UP + 1)
        self._steps: list[StepTiming] = []
        self._begun = time.perf_counter()
        self._marks: list[float] = []
        self._watching, self._peak = ExitStack(), PeakMemory(setup.device)

    def measure(self, state: TrainState) -> StepTimings:
        """The timings with those of compiling and of the steps of each size."""
        context, length = step_context(self._measured), RunLength(_STEPS, _STEPS)
        with worker_errors():
            for _ in train_steps(state, self._batches(), context, length=length, microbatches=self.setup.microbatches):
                self._after_step()
        return replace(self._timings, steps=tuple(self._steps))

    def _batches(self) -> Iterator[Batch]:
        """The groups of steps of each size, small ones first. The loop asks for the first when it has compiled."""
        setup = self._measured
        images = training_images(
            setup.train, setup.preprocessing, setup.recipe, workers=setup.workers, reader=setup.reader
        )
        drawn = iter(train_sampler(setup, steps=_STEPS))
        self._timings = replace(self._timings, compile_s=time.perf_counter() - self._begun)
        for number, setting in enumerate(self._settings, start=1):
            _logger.info(f"Measuring steps of {setting.image_size} px ({number} of {len(self._settings)}).")
            with ExitStack() as self._watching:
                self._peak, self._marks = PeakMemory(setup.device), [time.perf_counter()]
                pins = setup.device.type == "cuda"
                requests = self._requests(drawn, setting)
                yield from training_batches(images, requests, workers=setup.workers, pin_memory=pins)
            self._steps.append(self._timing(setting, self._peak.bytes))
            now = time.perf_counter()
            next_px = self._settings[: number + 1][-1].image_size
            next_s = (now - self._marks[0]) * (next_px / setting.image_size) ** 2
            no_time_left = self._within_s is not None and now - self._begun + next_s > self._within_s
            # Larger sizes take no less time.
            least = replace(self._timings, steps=self._all(growth=0))
            if no_time_left or self._is_impossible(least):
                self._steps = list(self._all(growth=1))
                return

    def _after_step(self) -> None:
        """Note the time of a step. The device is waited for only where timing starts and ends."""
        if self._enough:  # a step whose images workers had read ahead does not count
            return
        self._marks.append(time.perf_counter())
        if len(self._marks) <= 1 + self._warm_up or self._enough:
            synchronizer(self.setup.device)()
            self._marks[-1] = time.perf_counter()
        # Watching the memory takes time itself: only between the first step and those that are timed.
        if len(self._marks) == 2:
            self._watching.enter_context(self._peak)
        elif len(self._marks) == 1 + self._warm_up:
            self._watching.close()

    def _all(self, *, growth: float) -> tuple[StepTiming, ...]:
        """The sizes done, and those left as the last one, its time grown by this power of the pixels."""
        last = self._steps[-1]

        def left(px: int) -> StepTiming:
            each_s = last.each_s * (px / last.image_size) ** (2 * growth)
            return replace(last, image_size=px, begin_s=0.0, each_s=each_s)

        rest = self._settings[len(self._steps) :]
        return (*self._steps, *(left(setting.image_size) for setting in rest))

    def _requests(self, drawn: Iterator[BatchRequest], setting: StepSettings) -> Iterator[BatchRequest]:
        """Whole steps at a setting, until they have taken long enough."""
        while not self._enough:
            for request in itertools.islice(drawn, self._groups):
                yield replace(request, setting=setting)

    @property
    def _enough(self) -> bool:
        """Whether the steps done show how long one takes; with workers, whole rounds of them."""
        timed, workers = len(self._marks) - 1 - self._warm_up, self.setup.workers
        if self._within_s is not None and timed >= max(1, workers):
            part_s = self._within_s / len(self._settings)
            if self._marks[-1] - self._marks[0] >= part_s:
                return True
        if timed < max(1, 2 * workers) or (workers and timed % workers):
            return False
        took = self._marks[-1] - self._marks[self._warm_up]
        return timed >= self._most or took >= (_TIMED_S if timed >= _TIMED_STEPS else _LONG_S)

    def _timing(self, setting: StepSettings, memory_bytes: int) -> StepTiming:
        marks, counted = self._marks, self._marks[self._warm_up :]
        if self.setup.workers or self.setup.device.type != "cpu":
            # Images come in bursts, and a device runs behind: only the time of all steps means something.
            each = (counted[-1] - counted[0]) / (len(counted) - 1)
        else:
            each = statistics.median(after - before for before, after in itertools.pairwise(counted))
        begin = max(0.0, marks[1] - marks[0] - each)
        if self.setup.workers and self._steps:
            begin = 0.0  # the workers have begun with the first size, and read on beyond it
        scale = self.setup.recipe.batch_size / self._measured.recipe.batch_size
        return StepTiming(setting.image_size, begin, each * scale, memory_bytes)


def _predictions(setup: RunSetup, state: TrainState, *, once: bool) -> LinearCost:
    """Time of predictions on images of ``val``, from few to as many as fill a little time."""

    def seconds(count: int) -> float:
        part = setup.val.select(np.unique(np.linspace(0, len(setup.val) - 1, count).astype(np.int64)))
        began = time.perf_counter()
        setup.predict_readable(state, part, once=once)
        return time.perf_counter() - began

    few = min(_FEW, len(setup.val))
    seconds(few)
    few_s = seconds(few)
    count = min(len(setup.val), _MAX_PREDICTIONS, max(few, int(_PREDICTIONS_S / few_s * few)))
    count_s = seconds(count)
    if setup.workers and count > few:  # starting them takes a time of its own
        each = max(0.0, count_s - few_s) / (count - few)
        return LinearCost(max(0.0, few_s - each * few), each)
    return LinearCost(0.0, count_s / count)


def _checkpoints(state: TrainState, folder: Path) -> tuple[LinearCost, Path]:
    """Time of checkpoints, and one of them. Most find memory and disk warm, as the second does."""

    def save(step: int) -> tuple[float, Path]:
        began = time.perf_counter()
        fix = ", or give another `output`"  # there is no run yet
        path = save_checkpoint(folder, state.state_dict() | {"seconds": 0.0}, step, fix=fix)
        return time.perf_counter() - began, path

    (first_s, _), (second_s, path) = save(state.step), save(state.step + 1)
    return LinearCost(max(0.0, first_s - second_s), second_s), path
