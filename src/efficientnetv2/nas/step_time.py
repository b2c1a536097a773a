"""How long a training step of an architecture takes on this device, by part; and the inference of one image."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from filelock import FileLock
from pydantic import Field, TypeAdapter
from torch import Tensor

from efficientnetv2.architectures.flops import output_size
from efficientnetv2.architectures.spec import Architecture, blocks
from efficientnetv2.inference.predict import eval_mode
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.models.ghost_batch import ghost_batches
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.training.loop import optimizer_step
from efficientnetv2.training.losses import cross_entropy
from efficientnetv2.training.microbatch import chunks
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.train_state import init_state
from efficientnetv2.utils.benchmark import TimingStats, interleave, speed_ratio
from efficientnetv2.utils.device import autocast, device_title, place, synchronizer
from efficientnetv2.utils.errors import InputError, error_summary
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.memory import is_out_of_memory

# All ours. Warm-up rounds of a step, in the first sitting for at least so many seconds: a new process receives its
# memory in the first second. Then at least so many timed rounds, until they fill so many seconds or are so many.
_WARM_UP_ROUNDS, _WARM_UP_S = 1, 1.0
_MIN_ROUNDS, _SECONDS, _MAX_ROUNDS = 3, 1.0, 6
# A model's place in memory makes it some percent faster or slower; so it is created again for each of so many sittings.
_SITTINGS = 3
# Rounds of an inference, which takes milliseconds and is easily disturbed.
_WARM_UP, _ROUNDS = 5, 30
# Of each part, the times in so many architectures are kept; their median counts.
_KEPT = 15
# The file: conditions -> part -> seconds.
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_TIMES = TypeAdapter(dict[str, dict[str, Annotated[list[_Seconds], Field(min_length=1)]]])


class StepBenchmark:
    """A model newly created in memory, and the noise that its steps train on, at the last stage's settings.

    The recipe is resolved. The last pass of a step may have fewer groups.
    """

    def __init__(
        self,
        architecture: Architecture,
        recipe: Recipe,
        num_classes: int,
        device: torch.device,
        groups_per_pass: int = 1,
    ) -> None:
        self.recipe, self.device = recipe, device
        network = create(architecture, num_classes=num_classes)
        assert isinstance(network, EfficientNet)
        place(network, device)
        settings = recipe.progressive.last
        apply_regularization(network.train(), settings)
        self.state = init_state(network, recipe)
        for parameters in self.state.optimizer.param_groups:
            parameters["lr"] = 0.0  # The weights stay: on noise they might become infinite.
        self.group_size = recipe.group_size
        num_groups, px = recipe.num_groups, settings.image_size
        generator = torch.Generator().manual_seed(0)  # The run's own random numbers stay as they are.
        group = torch.rand(self.group_size, network.in_channels, px, px, generator=generator)
        # Every group has the same noise: a large batch would take much memory.
        largest = group.repeat(min(groups_per_pass, num_groups), 1, 1, 1)
        largest = largest.to(device, memory_format=torch.channels_last)
        sizes = [self.group_size * len(groups) for groups in chunks(range(num_groups), groups_per_pass)]
        labels = torch.full((max(sizes), num_classes), 1 / num_classes, device=device)
        self.passes = [(largest[:size], labels[:size]) for size in sizes]
        # The classifier belongs to the head.
        self.parts = [network.stem, *network.blocks, network.head]
        sizes = [sum(weight.numel() for weight in part.parameters()) for part in self.parts]
        sizes[-1] += sum(weight.numel() for weight in network.classifier.parameters())
        self.update_shares = [size / sum(sizes) for size in sizes]
        self._marks: list[Any] = []

    def step(self) -> float:
        """Seconds of one step."""
        start = self._now(wait=True)
        for images, labels in self.passes:
            with self._groups(images):
                self._backward(self._loss(images, labels))
        optimizer_step(self.state, self.recipe)
        return self._seconds(start, self._now(wait=True))

    def step_by_part(self) -> list[float]:
        """Seconds of each part in one step."""
        hooks = [part.register_forward_hook(self._mark_output) for part in self.parts[:-1]]
        seconds = [0.0] * len(self.parts)
        try:
            for images, labels in self.passes:
                self._marks = [self._now(wait=True)]
                with self._groups(images):
                    loss = self._loss(images, labels)
                    self._marks.append(self._now())  # The head's forward pass ends here.
                    self._backward(loss)
                self._marks.append(self._now(wait=True))  # The stem's backward pass ends here.
                # Marks go forward through the parts, then backward.
                for number, (begin, end) in enumerate(zip(self._marks, self._marks[1:], strict=False)):
                    part = number if number < len(seconds) else 2 * len(seconds) - 1 - number
                    seconds[part] += self._seconds(begin, end)
        finally:
            for hook in hooks:
                hook.remove()
        start = self._now(wait=True)
        optimizer_step(self.state, self.recipe)
        update_s = self._seconds(start, self._now(wait=True))
        return [part + share * update_s for part, share in zip(seconds, self.update_shares, strict=True)]

    def _mark_output(self, module: torch.nn.Module, inputs: object, output: Tensor) -> None:
        self._marks.append(self._now())
        output.register_hook(lambda gradient: self._marks.append(self._now()))  # type: ignore[no-untyped-call]

    def _groups(self, images: Tensor) -> AbstractContextManager[None]:
        seeds = range(len(images) // self.group_size)
        return ghost_batches(self.state.network, images=self.group_size, seeds=seeds)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        assert self.recipe.precision != "auto", "resolve_recipe() comes first"
        with autocast(self.device, self.recipe.precision):
            logits = self.state.network(images)
        return cross_entropy(logits, labels)

    def _backward(self, loss: Tensor) -> None:
        scaled = self.state.scaler.scale(loss) if self.state.scaler else loss
        scaled.backward()  # type: ignore[no-untyped-call]

    def _now(self, *, wait: bool = False) -> Any:
        """A moment: of a GPU an event in its queue, else the clock's seconds."""
        is_cuda = self.device.type == "cuda"
        if is_cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self.device))
        if wait:
            synchronizer(self.device)()
        return event if is_cuda else time.perf_counter()

    def _seconds(self, start: Any, end: Any) -> float:
        return float(end - start if self.device.type != "cuda" else start.elapsed_time(end) / 1000)


@dataclass(frozen=True)
class ReferenceTiming:
    """The backbone's times when the study began, by which later times are normalized.

    On shared machines all steps take longer or shorter by a tenth and more from one minute to the next. ``seconds`` and
    ``inference_seconds`` (None where that is not timed) are what a step and an inference of one image count as.
    """

    architecture: Architecture
    recipe: Recipe
    seconds: float
    inference_seconds: float | None = None
    groups_per_pass: int = 1


@dataclass(frozen=True)
class StepTimeByPart:
    """Seconds of a training step (the lowest and highest quartiles of the sittings), and of its parts by name."""

    total: TimingStats
    parts: Mapping[str, float]

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        return (self.total.high - self.total.low) / self.total.median


def part_names(architecture: Architecture, *, image_size: int, num_classes: int) -> list[str]:
    """The parts of an architecture in order (stem, blocks, head), each named by all that its time depends on."""
    px = output_size(image_size, stride=2)
    names = [f"stem {architecture.stem_channels} at {image_size}"]
    for block in blocks(architecture):
        channels = f"{block.in_channels}-{block.inner_channels}-{block.out_channels}"
        se = "" if block.se_channels is None else f" se {block.se_channels}"
        # A fused block that expands has a second convolution.
        kind = f"{block.kind} expanding" if block.expands else block.kind
        names.append(f"{kind} {channels} kernel {block.kernel} stride {block.stride}{se} at {px}")
        px = output_size(px, stride=block.stride)
    channels = f"{architecture.stages[-1].channels}-{architecture.head_channels}"
    return [*names, f"head {channels} at {px}, {architecture.global_pool}, {num_classes} classes"]


def time_step(
    architecture: Architecture,
    recipe: Recipe,
    *,
    num_classes: int,
    device: torch.device,
    groups_per_pass: int = 1,
    reference: ReferenceTiming | None = None,
) -> StepTimeByPart:
    """Time training steps (forward, backward, update) of a resolved recipe at the last stage's settings, on noise.

    Whole steps, which count, alternate with steps timed by part. The model is created again for each sitting; the
    reference is timed before, between and after them. The device must be idle otherwise.

    Raises:
        RuntimeError: Out of memory (`utils.memory.is_out_of_memory`).
        InputError: Out of memory for the reference.
    """
    before = 0.0
    if reference is not None:
        before = _time_reference(reference, num_classes, device, warm_up_s=_WARM_UP_S)
    sittings: list[list[float]] = []
    parts: list[list[float]] = []
    for _ in range(_SITTINGS):
        benchmark = StepBenchmark(architecture, recipe, num_classes, device, groups_per_pass)
        _warm_up(benchmark, 0.0 if sittings or reference is not None else _WARM_UP_S)
        steps: list[float] = []
        by_part: list[list[float]] = []
        while not _is_enough(steps):
            steps.append(benchmark.step())
            by_part.append(benchmark.step_by_part())
        del benchmark  # Another one might not fit into memory with it.
        factor = 1.0
        if reference is not None:
            after = _time_reference(reference, num_classes, device)
            factor, before = reference.seconds / statistics.mean((before, after)), after
        sittings.append([factor * seconds for seconds in steps])
        parts += [[factor * seconds for seconds in times] for times in by_part]
    by_name: dict[str, list[float]] = {}
    names = part_names(architecture, image_size=recipe.progressive.last.image_size, num_classes=num_classes)
    for name, times in zip(names, zip(*parts, strict=True), strict=True):
        by_name.setdefault(name, []).append(statistics.median(times))
    stats = [TimingStats.of(rounds) for rounds in sittings]
    rounds = [seconds for sitting in sittings for seconds in sitting]
    low, high = min(sitting.low for sitting in stats), max(sitting.high for sitting in stats)
    return StepTimeByPart(
        TimingStats(statistics.median(rounds), low, high, len(rounds)),
        {name: statistics.mean(times) for name, times in by_name.items()},
    )


def min_timed_steps() -> tuple[int, int]:
    """How many steps `time_step` takes of an architecture and of the reference, where each takes a second or more."""
    steps = _SITTINGS * 2 * (_WARM_UP_ROUNDS + _MIN_ROUNDS)  # Whole and by part.
    return steps, (1 + _SITTINGS) * (2 * _WARM_UP_ROUNDS + _MIN_ROUNDS)


def _time_reference(
    reference: ReferenceTiming, num_classes: int, device: torch.device, *, warm_up_s: float = 0.0
) -> float:
    try:
        benchmark = StepBenchmark(
            reference.architecture, reference.recipe, num_classes, device, reference.groups_per_pass
        )
        _warm_up(benchmark, warm_up_s)
        rounds: list[float] = []
        while not _is_enough(rounds):
            rounds.append(benchmark.step())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise reference_memory_error(error_summary(error)) from error
    return statistics.median(rounds)


def reference_memory_error(reason: str) -> InputError:
    """The error for a backbone that no longer fits into memory, which is not the trial's fault."""
    return InputError(
        f"The memory no longer suffices for the backbone, which fitted when the study began ({reason}). Free memory or "
        "increase `memory_gib`, then continue with effnetv2 search resume."
    )


def _warm_up(benchmark: StepBenchmark, seconds: float) -> None:
    rounds: list[float] = []
    while len(rounds) < _WARM_UP_ROUNDS or sum(rounds) < seconds:
        rounds.append(benchmark.step() + sum(benchmark.step_by_part()))


def _is_enough(rounds: list[float]) -> bool:
    return len(rounds) >= _MAX_ROUNDS or (len(rounds) >= _MIN_ROUNDS and sum(rounds) >= _SECONDS)


class StepTimeCache:
    """A JSON file of the step times of parts, as the architectures measured on this device had them.

    Times of another recipe, device or number of groups are kept apart. A damaged file counts as empty.
    """

    def __init__(
        self, file: Path, recipe: Recipe, *, num_classes: int, device: torch.device, groups_per_pass: int = 1
    ) -> None:
        self.file, self.num_classes = file, num_classes
        self.image_size = recipe.progressive.last.image_size
        self.conditions = (
            f"{device_title(device)}; {recipe.batch_size} images in groups of {recipe.group_size}"
            f"{'' if groups_per_pass == 1 else f', {groups_per_pass} at a time'}, {recipe.precision}, "
            f"{recipe.optimizer.name}{'' if recipe.optimizer.clip_norm is None else ', clipped'}"
            f"{'' if recipe.ema_decay is None else ', moving average'}"
        )

    def part_names(self, architecture: Architecture) -> list[str]:
        """See `part_names`, at this image size."""
        return part_names(architecture, image_size=self.image_size, num_classes=self.num_classes)

    def predict(self, architecture: Architecture) -> float | None:
        """Seconds of a step as the sum over parts; None if a part is not known yet."""
        known = self._read().get(self._key(architecture), {})
        names = self.part_names(architecture)
        if any(name not in known for name in names):
            return None
        return sum(statistics.median(known[name]) for name in names)

    def add(self, architecture: Architecture, parts: Mapping[str, float]) -> None:
        """Add the times of an architecture's parts."""
        with FileLock(self.file.with_suffix(".lock")):
            times = self._read()
            known = times.setdefault(self._key(architecture), {})
            for name, seconds in parts.items():
                known[name] = [*known.get(name, []), float(f"{seconds:.4g}")][-_KEPT:]
            write_text_atomically(self.file, json.dumps(times, indent=1) + "\n")

    def _key(self, architecture: Architecture) -> str:
        return f"{self.conditions}; padding {architecture.padding}"

    def _read(self) -> dict[str, dict[str, list[float]]]:
        try:
            return _TIMES.validate_json(self.file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}


def inference_latency(
    architecture: Architecture,
    *,
    image_size: int,
    num_classes: int,
    device: torch.device,
    reference: ReferenceTiming | None = None,
) -> float:
    """Median seconds of a forward pass of one image, computed as ``predict`` does on an otherwise idle device.

    With a ``reference`` that has ``inference_seconds``, its passes alternate with these, and the result is normalized
    by them. Raises RuntimeError out of memory (`utils.memory.is_out_of_memory`).
    """
    architectures = {"trial": architecture}
    reference_s = None if reference is None else reference.inference_seconds
    if reference is not None and reference_s is not None:
        architectures["reference"] = reference.architecture
    networks = {name: create(spec, num_classes=num_classes) for name, spec in architectures.items()}
    channels = networks["trial"].in_channels
    noise = torch.rand(1, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    image = noise.to(device, memory_format=torch.channels_last)
    with ExitStack() as stack:
        for network in networks.values():
            place(network, device)
            stack.enter_context(eval_mode(network))
        passes = {name: partial(network, image) for name, network in networks.items()}
        rounds = interleave(passes, rounds=_ROUNDS, warmup=_WARM_UP, wait=synchronizer(device))
    if reference_s is None:
        return statistics.median(rounds["trial"])
    return reference_s * speed_ratio(rounds, of="reference", to="trial").median
