"""A trial: what is timed and trained of an architecture, and the measurement that follows from it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.proxy_task import PROXY_OVERRIDES, ProxyTask
from efficientnetv2.nas.step_time import (
    ReferenceTiming,
    StepTimeCache,
    inference_latency,
    reference_memory_error,
    time_step,
)
from efficientnetv2.training.initial_weights import build_initial_model
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS
from efficientnetv2.training.resolve import TrainingSet, resolve_recipe
from efficientnetv2.training.run_dir import NullRunDir
from efficientnetv2.training.run_setup import RunSetup, eval_preprocessing
from efficientnetv2.utils.benchmark import MachineLock, TimingStats
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.errors import InputError, MemoryShortError

FailureKind = Literal["diverged", "out of memory", "crashed"]

# On an idle machine, a step differs from the sum over its parts by less. Otherwise one of the two was disturbed, and
# the step is measured once more. Ours; the same value that estimates are tested against.
_MAX_DISAGREEMENT = 0.15
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
class ImageSkipped:
    """A training image that could not be read."""

    path: str
    reason: str


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


TrialMessage = StepTimed | EpochDone | ImageSkipped | Trained | Failed | InputError


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


def resolve_task(architecture: Architecture, task: ProxyTask, device: torch.device) -> ProxyTask:
    """The task with the recipe of this architecture, in the groups and passes that there is memory for.

    This happens once per trial: what is timed is what is trained, with every seed. Raises MemoryShortError.
    """
    resolved = resolve_recipe(
        task.recipe.model_copy(update={"model": architecture, "seed": 0, **PROXY_OVERRIDES}),
        TrainingSet(len(task.train), task.train.class_names),
        Hardware(device, task.memory_gib),
    )
    progressive = replace(resolved.recipe.progressive, seed=task.recipe.progressive.seed)
    recipe = resolved.recipe.model_copy(update={"progressive": progressive})
    return replace(task, recipe=recipe, microbatches=resolved.microbatches)


def resolve_reference(task: ProxyTask, device: torch.device) -> ReferenceTiming:
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


def trial_setup(
    architecture: Architecture, task: ProxyTask, seed: int, device: torch.device, folder: NullRunDir
) -> RunSetup:
    """The setup of a run of a resolved task."""
    assert task.microbatches is not None, "resolve_task() comes first"
    progressive = task.recipe.progressive
    if progressive.order == "random" and progressive.seed is None:  # it follows the seed of the run
        progressive = replace(progressive, seed=seed)
    recipe = task.recipe.model_copy(update={"model": architecture, "seed": seed, "progressive": progressive})
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
