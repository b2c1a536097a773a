"""Choose by measuring in which precision to train, and whether to compile."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.ghost_batch import ghost_batches
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.training.compile import compile_model
from efficientnetv2.training.losses import cross_entropy
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.device import Precision, autocast, lower_precision, place, synchronizer
from efficientnetv2.utils.errors import pluralize
from efficientnetv2.utils.memory import is_out_of_memory, release_memory

_logger = logging.getLogger(__name__)

# A run of fewer steps is not compiled: measuring would cost more than a wrong choice. Ours.
_FEWEST_STEPS = 150
# How much faster 16 bits must be than 32, so that noise does not decide. Ours.
_WORTH = 1.1
# Steps timed of each candidate, in turn, after one that warms up; the median counts. Ours.
_TIMED_STEPS = 3
# Images of a measured step on a CPU, where the time is in proportion to them; a GPU gets its whole group. Ours.
_CPU_IMAGES = 8
# Images of a rough measurement on a GPU, and the fewest where memory runs out: batch-norm may not take one. Ours.
_GPU_IMAGES, _LEAST_IMAGES = 32, 2
# On a CPU a run of fewer images takes fp32 unmeasured: 20 times those of measuring two precisions. Processors that have
# bf16 may be slower in it than in fp32 (benchmarks/results/step_tried.md), so knowing is worth a twentieth. Ours.
_FEWEST_IMAGES = 20 * 2 * (1 + _TIMED_STEPS) * _CPU_IMAGES
# Compiling is measured in runs that will take at least so long: it takes one to two minutes itself. Ours.
_COMPILE_FROM_S = 3600.0
# With less time before the first step, compiling is not measured. Ours: 471 s were seen on two slow cores.
_COMPILE_LEAST_S = 600.0
# Share of the run's time that compiling must save beyond its own cost. Ours.
_COMPILE_SAVES = 0.05
# Each stage is compiled for one to two minutes, and once more if its last pass has fewer groups: not for more stages.
# Ours.
_MOST_STAGES = 8

_Step = Callable[[], float]  # Forward and backward of a copy of the model, called in one way; returns the seconds


@dataclass(frozen=True)
class PrecisionChoice:
    """Precision of the passes, whether to compile, and a note; '' if the recipe left nothing open."""

    precision: Precision
    compile: bool
    note: str


def choose_precision(
    recipe: Recipe,
    network: Network,
    *,
    steps: int,
    device: torch.device,
    minutes: float | None = None,
    at_once: int = 1,
    compile_within_s: float | None = None,
) -> PrecisionChoice:
    """Decide the recipe's open ``precision`` and ``compile``, with copies of the model.

    A GPU takes the 16-bit format of its hardware. A CPU takes it if it measures a tenth faster than fp32, and fp32 in a
    run too short to measure. A run of few steps does not compile. With ``minutes`` the ``steps`` are not known yet.
    ``at_once`` processes share them. Within ``compile_within_s`` seconds a single step of each precision is timed.
    """
    timed = _TIMED_STEPS if compile_within_s is None else 1
    bench = _Bench(recipe, network, device, None if minutes is not None else steps, timed)
    notes: list[str] = []
    precision, compiles = recipe.precision, recipe.compile
    if precision == "auto":
        precision, note = _precision(bench)
        notes.append(note)
    if compiles == "auto":
        compiles, note = _compile(bench, precision, minutes, at_once, compile_within_s)
        notes.append(note)
    return PrecisionChoice(precision, compiles, " ".join(notes))


def seconds_per_image(recipe: Recipe, network: Network, device: torch.device) -> float:
    """Roughly measured seconds of forward and backward for an image of the last training size.

    If the precision is open, a GPU takes its 16-bit format, and a CPU the faster one. If memory runs out, fewer
    images are measured together.
    """
    precisions: list[Precision] = [recipe.precision] if recipe.precision != "auto" else ["fp32"]
    lower = lower_precision(device)
    if recipe.precision == "auto" and lower is not None:
        precisions = [lower] if device.type == "cuda" else ["fp32", lower]
    images = min(recipe.batch_size, _CPU_IMAGES if device.type == "cpu" else _GPU_IMAGES)
    while True:
        bench = _Bench(recipe.model_copy(update={"ghost_batch_size": images}), network, device, None)
        try:
            sides = (bench.side(precision) for precision in precisions)
            return min(min(step(), step()) for step in sides) / bench.images
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or images <= _LEAST_IMAGES:
                raise
        release_memory(device)
        images = max(_LEAST_IMAGES, images // 2)


def _precision(bench: _Bench) -> tuple[Precision, str]:
    lower = lower_precision(bench.device)
    if lower is None:
        return "fp32", f"Precision: fp32 (no other is known to be faster on this {bench.device.type})."
    # On a GPU, passes without CUDA graphs may wait for Python, so both would seem equally fast (results/gpu_tried.md).
    if bench.device.type != "cpu":
        return lower, f"Precision: {lower} (the hardware supports it)."
    if bench.steps is not None and bench.steps * bench.recipe.batch_size < _FEWEST_IMAGES:
        return "fp32", f"Precision: fp32 (the run is too short to measure whether {lower} is faster)."
    fp32_s, lower_s = bench.step_seconds([bench.side("fp32"), bench.side(lower)])
    chosen: Precision = lower if fp32_s / lower_s >= _WORTH else "fp32"
    return chosen, f"Precision: {chosen} ({lower} measured {fp32_s / lower_s:.2f} times as fast as fp32)."


def _compile(
    bench: _Bench, precision: Precision, minutes: float | None, at_once: int, within_s: float | None
) -> tuple[bool, str]:
    plan = bench.recipe.progressive
    if plan.changes_always or plan.stages > _MOST_STAGES:
        return False, "Not compiled (sizes or regularization change too often)."
    if bench.steps is not None and bench.steps < _FEWEST_STEPS:
        return False, "Not compiled (the run is too short)."
    plain = bench.side(precision)
    run_s = bench.run_seconds(plain, at_once) if minutes is None else 60 * minutes
    if run_s < _COMPILE_FROM_S:
        about = pluralize(round(run_s / 60), "minute")
        return False, f"Not compiled (the run takes about {about}, too short to save time)."
    if within_s is not None and within_s < _COMPILE_LEAST_S:
        return False, "Not compiled (trying it may take minutes)."
    _logger.info("Measuring whether compiling saves time, with a few steps of the last stage.")
    began = time.perf_counter()
    compiled = bench.side(precision, compiles=True)
    compile_s = (time.perf_counter() - began) * plan.stages
    plain_s, compiled_s = bench.step_seconds([plain, compiled])
    saved_s = run_s * (1 - compiled_s / plain_s) - compile_s
    chosen = saved_s > _COMPILE_SAVES * run_s and (within_s is None or compile_s < within_s)
    return chosen, (
        f"{'Compiled' if chosen else 'Not compiled'} (compiled steps measured {plain_s / compiled_s:.2f} times as "
        f"fast; compiling takes {compile_s:.0f} s)."
    )


@dataclass(frozen=True)
class _Bench:
    """Measures candidates at the last stage, where most of the time goes."""

    recipe: Recipe
    network: Network
    device: torch.device
    steps: int | None
    timed_steps: int = _TIMED_STEPS

    @property
    def images(self) -> int:
        """Images of a measured step."""
        group = self.recipe.group_size
        return min(group, _CPU_IMAGES) if self.device.type == "cpu" else group

    def run_seconds(self, plain: _Step, at_once: int) -> float:
        """Seconds of the whole run by ``at_once`` processes; the time of a step follows its pixels."""
        assert self.steps is not None, "with minutes the time is known"
        plan = self.recipe.progressive
        pixels = sum(share * plan.stage(stage).image_size ** 2 for stage, share in enumerate(plan.weights))
        (last_s,) = self.step_seconds([plain])
        images = self.steps * self.recipe.batch_size
        return last_s * pixels / plan.last.image_size**2 * images / self.images / at_once

    def side(self, precision: Precision, *, compiles: bool = False) -> _Step:
        """A measured step with a copy of the model."""
        network = copy.deepcopy(self.network).train()
        place(network, self.device)
        setting = self.recipe.progressive.last
        apply_regularization(network, setting)
        call: nn.Module = network
        if compiles:
            one_stage = replace(self.recipe.progressive, stages=1, stage_fractions=None)
            changes = {"precision": precision, "ghost_batch_size": self.images, "progressive": one_stage}
            call = compile_model(network, self.recipe.model_copy(update=changes), self.device)
        px, classes = setting.image_size, network.num_classes
        generator = torch.Generator().manual_seed(0)  # the run's own draws stay as they are
        images = torch.rand(self.images, network.in_channels, px, px, generator=generator)
        images = images.to(self.device, memory_format=torch.channels_last)
        labels = torch.full((self.images, classes), 1 / classes, device=self.device)

        def step() -> float:
            began = time.perf_counter()
            # Called as it was compiled, or it compiles again.
            with ghost_batches(network, images=len(images), seeds=[0]):
                with autocast(self.device, precision):
                    logits = call(images)
                loss = cross_entropy(logits, labels)
                loss.backward()  # type: ignore[no-untyped-call]
            network.zero_grad(set_to_none=True)
            synchronizer(self.device)()
            return time.perf_counter() - began

        return step

    def step_seconds(self, sides: Sequence[_Step]) -> list[float]:
        """Median step of each side, measured in turn."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            rounds = [[step() for step in sides] for _ in range(1 + self.timed_steps)]
        return [statistics.median(times) for times in zip(*rounds[1:], strict=True)]
