"""Time the parts of a run on this machine: some steps of each image size, predictions, a checkpoint.

Everything runs as the run will do it, by its own loop on its own images. ``training.estimate`` calculates the whole
run.
"""

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

from efficientnetv2.data.loader import Batch, TrainingImages, decode_threads, training_batches
from efficientnetv2.data.sampler import BatchRequest, TrainSampler
from efficientnetv2.models import model_file
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.training.image_sizes import settings_by_size
from efficientnetv2.training.loop import StepContext, train_steps
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import RunConfig
from efficientnetv2.training.train_state import RunLength, TrainState, init_state, save_checkpoint
from efficientnetv2.utils.device import place
from efficientnetv2.utils.memory import PeakMemory
from efficientnetv2.utils.timer import synchronizer

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepTiming:
    """Steps of an image size."""

    image_size: int  # Image size
    begin_s: float  # Seconds that the first step takes longer
    each_s: float  # Seconds of a step of the whole batch
    memory_bytes: int  # Peak memory, all that the process takes included


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
    answers: LinearCost  # Final predictions, with test-time augmentation
    checkpoints: LinearCost  # Checkpoints, one after the other
    checkpoint_bytes: int  # Bytes of a checkpoint
    model_s: float  # Writing the model file
    model_bytes: int  # Bytes of the model file

    def step_s(self, image_size: float) -> float:
        """Seconds of a step at any size; between measured ones in proportion to the pixels."""
        pixels = [rate.image_size**2 for rate in self.steps]
        return float(np.interp(image_size**2, pixels, [rate.each_s for rate in self.steps]))

    def of_sizes(self, sizes: Sequence[int]) -> StepTimings:
        """The same for other sizes; below the smallest measured size in proportion to the pixels."""
        least = self.steps[0]

        def rate(px: int) -> StepTiming:
            known = next((one for one in self.steps if one.image_size >= px), self.steps[-1])
            if px >= least.image_size:
                return replace(known, image_size=px, each_s=self.step_s(px))
            return replace(least, image_size=px, each_s=least.each_s * (px / least.image_size) ** 2)

        return replace(self, steps=tuple(rate(px) for px in sorted(set(sizes))))

    def shared(self, processes: int, groups: int) -> StepTimings:
        """The same for processes that share the ``groups`` of a step, and predictions.

        The process with most groups ends the step. What comes once, such as compiling, each does at the same time;
        files are written by one alone.
        """
        most = math.ceil(groups / processes)

        def answered(rate: LinearCost) -> LinearCost:
            return replace(rate, each_s=rate.each_s / processes)

        steps = tuple(replace(rate, each_s=rate.each_s * most / groups) for rate in self.steps)
        return replace(self, steps=steps, curve=answered(self.curve), answers=answered(self.answers))


# All ours. Steps of each size that are not counted at least: the first, and those in which memory is watched.
_WARM_UP = 2
# Of each size so many steps are timed at least, and so many seconds of them; or fewer steps that take so long.
_TIMED_STEPS, _TIMED_S, _LONG_S = 3, 2.0, 10.0
# A batch of more pictures is measured in part, whole passes of it.
_MOST_IMAGES = 256
# So with little time.
_HURRIED_IMAGES = 32
# Pictures answered before any that are timed, at most so many of these, and the seconds that they are to fill.
_FEW, _MOST_ANSWERS, _ANSWERS_S = 8, 512, 2.0
# Seconds of compiling, and steps of every size: see ``_Timed``.
_IsImpossible = Callable[[float, tuple[StepTiming, ...]], bool]
# Of the measured run: so long that its learning rate, where it warms up, stays near 0. Only a copy is trained.
_STEPS = 1_000_000


def measure_timings(
    config: RunConfig,
    scratch: Path,
    *,
    run_steps: int | None = None,
    is_impossible: Callable[[StepTimings], bool] = lambda timings: False,
    within_s: float | None = None,
) -> StepTimings:
    """Do a little of everything that the run will do.

    Small images come before large ones, so that a run that is impossible shows early.

    Args:
        config: The run, by one process. A copy of its model is trained.
        scratch: Folder on the disk of the run; checkpoints and a model file are left there.
        run_steps: Steps of the whole run. Of each size no more than its share are timed. None if the timings decide
            them.
        is_impossible: Whether a run of such timings, or better ones, is impossible. Then the other sizes are not timed.
        within_s: Rough limit of the seconds for steps: fewer steps are timed, and sizes without time are
            extrapolated.

    Raises:
        InputError: What the run would raise: unreadable images, memory or disk too short.
    """
    state = init_state(place(copy.deepcopy(config.network), config.device), config.recipe)
    _logger.info("Measuring answers.")
    curve = _answers(config, state, once=True)
    answers = curve if config.preprocessing.tta == "none" else _answers(config, state, once=False)

    def is_impossible_after(compile_s: float, steps: tuple[StepTiming, ...]) -> bool:
        return is_impossible(StepTimings(compile_s, steps, curve, answers, LinearCost(0.0, 0.0), 0, 0.0, 0))

    compile_s, steps = _steps(config, state, run_steps, is_impossible_after, within_s)
    _logger.info("Measuring checkpoints.")
    checkpoints, checkpoint = _checkpoints(state, scratch)
    began = time.perf_counter()
    model = scratch / "model.safetensors"
    model_file.save(
        model,
        config.network,  # not that of these steps: of a rate that is far too high the run itself tells, by its loss
        preprocessing=config.preprocessing,
        class_names=config.train.class_names,
        recipe=config.recipe.to_json(),
    )
    return StepTimings(
        compile_s=compile_s,
        steps=steps,
        curve=curve,
        answers=answers,
        checkpoints=checkpoints,
        checkpoint_bytes=checkpoint.stat().st_size,
        model_s=time.perf_counter() - began,
        model_bytes=model.stat().st_size,
    )


def _steps(
    config: RunConfig,
    state: TrainState,
    run_steps: int | None,
    is_impossible_after: _IsImpossible,
    within_s: float | None,
) -> tuple[float, tuple[StepTiming, ...]]:
    """Seconds of compiling, and the steps of each size."""
    group = config.recipe.ghost_batch_size
    assert group is not None, "resolve_recipe() comes first"
    most = _MOST_IMAGES if within_s is None else _HURRIED_IMAGES
    groups = min(config.recipe.batch_size // group, max(config.microbatches.most, most // group))
    recipe = config.recipe.model_copy(update={"batch_size": groups * group})
    timed = _Timed(config, recipe, run_steps, is_impossible_after, within_s)
    loop = train_steps(
        state,
        timed.batches(),
        StepContext(
            timed.recipe,
            config.preprocessing,
            num_classes=len(config.train.class_names),
            key=config.key,
            device=config.device,
            activation=config.answer,
        ),
        length=RunLength(_STEPS, _STEPS),
        microbatches=config.microbatches,
    )
    for _ in loop:
        timed.after_step()
    return timed.compile_s, tuple(timed.timings)


class _Timed:
    """Gives the loop steps of one size after the other, as many as it takes to time them.

    ``compile_s`` is the time until the loop asked for the first images; ``timings`` are the timings of the sizes done.
    """

    def __init__(
        self,
        config: RunConfig,
        recipe: Recipe,
        run_steps: int | None,
        is_impossible_after: _IsImpossible,
        within_s: float | None,
    ) -> None:
        self.config, self.recipe, self._is_impossible, self._within_s = (
            config,
            recipe,
            is_impossible_after,
            within_s,
        )
        self._settings = sorted(settings_by_size(recipe), key=lambda one: one.image_size)
        self._most = math.inf if run_steps is None else run_steps / len(self._settings)
        self.compile_s = 0.0
        self.timings: list[StepTiming] = []
        self._begun = time.perf_counter()
        self._marks: list[float] = []
        self._watching, self._peak = ExitStack(), PeakMemory(config.device)

    def batches(self) -> Iterator[Batch]:
        """The groups of steps of each size, small ones first."""
        config, recipe = self.config, self.recipe
        threads = decode_threads(config.workers)
        seen = replace(config.preprocessing, crop_mode=recipe.random_crop_mode)
        pictures = TrainingImages(
            config.train, seen, recipe.crop_scale_min, config.key, threads=threads, reader=config.reader
        )
        drawn = iter(self._sampler())
        self.compile_s = time.perf_counter() - self._begun
        for number, setting in enumerate(self._settings, start=1):
            _logger.info(
                f"Measuring steps of {setting.image_size} px ({number} of {len(self._settings)}{self._left()})."
            )
            with ExitStack() as self._watching:
                self._peak, self._marks = PeakMemory(config.device), [time.perf_counter()]
                yield from training_batches(
                    pictures,
                    self._requests(drawn, setting),
                    workers=config.workers,
                    pin_memory=config.device.type == "cuda",
                )
            self.timings.append(self._timing(setting, self._peak.bytes))
            no_time_left = self._within_s is not None and self._next_ends_s() > self._within_s
            if no_time_left or self._is_impossible(
                self.compile_s, self._all(growth=0)
            ):  # larger ones take no less time
                self.timings = list(self._all(growth=1))
                return

    def after_step(self) -> None:
        """Note the time of a step. The device is waited for only where timing starts and ends.

        Steps whose images workers had read ahead are trained on, but not counted.
        """
        if self._enough:
            return
        self._marks.append(time.perf_counter())
        if len(self._marks) <= 1 + self._warm_up or self._enough:
            synchronizer(self.config.device)()
            self._marks[-1] = time.perf_counter()
        # Looking at the memory takes time itself: only between the first step and those that are timed.
        if len(self._marks) == 2:
            self._watching.enter_context(self._peak)
        elif len(self._marks) == 1 + self._warm_up:
            self._watching.close()

    def _all(self, *, growth: float) -> tuple[StepTiming, ...]:
        """The sizes done, and those left as the last one, its time grown by this power of the pixels."""
        last = self.timings[-1]
        left = (
            replace(
                last,
                image_size=setting.image_size,
                begin_s=0.0,
                each_s=last.each_s * (setting.image_size / last.image_size) ** (2 * growth),
            )
            for setting in self._settings[len(self.timings) :]
        )
        return (*self.timings, *left)

    def _next_ends_s(self) -> float:
        """Seconds of measuring until the next size is done, by the last size."""
        last, now = self.timings[-1], time.perf_counter()
        sizes = [setting.image_size for setting in self._settings[: len(self.timings) + 1]]
        return now - self._begun + (now - self._marks[0]) * (sizes[-1] / last.image_size) ** 2

    def _left(self) -> str:
        """Time of the remaining sizes for the log, by those that are done; '' before any is."""
        if not self.timings or self._within_s is not None:
            return ""
        last, seconds = self.timings[-1], 0.0
        part = self.recipe.batch_size / self.config.recipe.batch_size
        for setting in self._settings[len(self.timings) :]:
            each = last.each_s * part * (setting.image_size / last.image_size) ** 2
            timed_s = max(each, min(_LONG_S, max(_TIMED_S, _TIMED_STEPS * each)))
            seconds += each * self._warm_up + min(timed_s, max(1.0, self._most) * each)
        return f", about {seconds:.0f} s left"

    @property
    def _warm_up(self) -> int:
        """Steps that are not counted. Workers start at the same time: what each reads first comes at once."""
        return max(_WARM_UP if self._within_s is None else 1, self.config.workers)

    def _sampler(self) -> TrainSampler:
        recipe = self.recipe
        assert recipe.ghost_batch_size is not None, "resolve_recipe() comes first"
        return TrainSampler(
            labels=self.config.train.labels,
            progressive=recipe.progressive,
            steps=_STEPS,
            batch_size=recipe.batch_size,
            ghost_batch_size=recipe.ghost_batch_size,
            class_sampling=recipe.class_sampling,
            key=self.config.key,
        )

    def _requests(self, drawn: Iterator[BatchRequest], setting: StepSettings) -> Iterator[BatchRequest]:
        """Whole steps at a setting, until they have taken long enough."""
        groups = self.recipe.batch_size // (self.recipe.ghost_batch_size or self.recipe.batch_size)
        while not self._enough:
            for request in itertools.islice(drawn, groups):
                yield replace(request, setting=setting)

    @property
    def _enough(self) -> bool:
        """Whether the steps done say how long one takes; with workers, whole rounds of them."""
        timed, workers = len(self._marks) - 1 - self._warm_up, self.config.workers
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
        if self.config.workers or self.config.device.type != "cpu":
            # Pictures come in bursts, and a device is told ahead: only the time of all steps means something.
            each = (counted[-1] - counted[0]) / (len(counted) - 1)
        else:
            each = statistics.median(after - before for before, after in itertools.pairwise(counted))
        begin = max(0.0, marks[1] - marks[0] - each)
        if self.config.workers and self.timings:
            begin = 0.0  # the workers have begun with the first size, and read on beyond it
        whole = self.config.recipe.batch_size / self.recipe.batch_size
        return StepTiming(setting.image_size, begin, each * whole, memory_bytes)


def _answers(config: RunConfig, state: TrainState, *, once: bool) -> LinearCost:
    """Time of predictions on images of ``val``, from few to as many as fill a little time."""

    def seconds(count: int) -> float:
        part = config.val.select(np.unique(np.linspace(0, len(config.val) - 1, count).astype(np.int64)))
        began = time.perf_counter()
        config.look(state, part, once=once)
        return time.perf_counter() - began

    few = min(_FEW, len(config.val))
    seconds(few)
    few_s = seconds(few)
    count = min(len(config.val), _MOST_ANSWERS, max(few, int(_ANSWERS_S / few_s * few)))
    count_s = seconds(count)
    if config.workers and count > few:  # starting them takes a time of its own
        each = max(0.0, count_s - few_s) / (count - few)
        return LinearCost(max(0.0, few_s - each * few), each)
    return LinearCost(0.0, count_s / count)


def _checkpoints(state: TrainState, folder: Path) -> tuple[LinearCost, Path]:
    """Time of checkpoints, and one of them. Most find memory and disk warm, as the second does."""

    def save(step: int) -> tuple[float, Path]:
        began = time.perf_counter()
        path = save_checkpoint(folder, state.state_dict() | {"seconds": 0.0}, step)
        return time.perf_counter() - began, path

    (first_s, _), (second_s, path) = save(state.step), save(state.step + 1)
    return LinearCost(max(0.0, first_s - second_s), second_s), path
