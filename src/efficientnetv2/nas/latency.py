"""How long a network takes at inference for one picture on this device."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from filelock import FileLock
from pydantic import Field, TypeAdapter
from torch import Tensor

from efficientnetv2.architectures.flops import out_px
from efficientnetv2.architectures.spec import Architecture, Block, blocks
from efficientnetv2.inference.predict import eval_mode
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.models.ghost_batch import ghost_batches
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.training.loop import optimizer_step
from efficientnetv2.training.losses import cross_entropy
from efficientnetv2.training.microbatch import chunks
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.train_state import TrainState, init_state
from efficientnetv2.utils.device import autocast, device_title, place
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.memory import first_line, is_out_of_memory
from efficientnetv2.utils.timer import TimingStats, interleave, speed_ratio, synchronizer


@dataclass
class Bench:
    """A network about to take steps, and what it is given.

    Args:
        state: of the network, its optimizer and its moving average.
        recipe: settled; its batch, groups, precision and optimizer are used.
        device: to train on.
        images: (n, C, S, S) noise, one for each pass of a step: some groups, one after another.
        labels: (n, K) of the same.
        marks: moments of the pass under way.
        shares: of the parts in the update.
    """

    state: TrainState
    recipe: Recipe
    device: torch.device
    images: list[Tensor]
    labels: list[Tensor]
    marks: list[Any] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        recipe: Recipe,
        num_classes: int,
        device: torch.device,
        at_a_time: int = 1,
    ) -> Bench:
        """A network made anew, laid into memory.

        Args:
            architecture: the network.
            recipe: settled.
            num_classes: K.
            device: to train on.
            at_a_time: groups in a pass; the last pass of a step may have fewer.
        """
        network = create(architecture, num_classes=num_classes)
        assert isinstance(network, EfficientNet)
        place(network, device)
        setting = recipe.progressive.last
        apply_regularization(network.train(), setting)
        state = init_state(network, recipe)
        for group in state.optimizer.param_groups:
            group["lr"] = 0.0  # the weights stay as they are: on noise they might come to infinity
        count = recipe.group_images or recipe.batch_images
        groups, px = recipe.batch_images // count, setting.image_px
        noise = torch.Generator().manual_seed(0)  # the run's own draws stay as they are
        one = torch.rand(count, network.in_channels, px, px, generator=noise)
        # The same for every group: noise is noise, and of a large batch there is much.
        most = one.repeat(min(at_a_time, groups), 1, 1, 1).to(device, memory_format=torch.channels_last)
        passes = [count * len(each) for each in chunks(range(groups), at_a_time)]
        sizes = [sum(weight.numel() for weight in part.parameters()) for part in _parts(network)]
        sizes[-1] += sum(weight.numel() for weight in network.classifier.parameters())
        return cls(
            state,
            recipe,
            device,
            [most[:size] for size in passes],
            [torch.full((size, num_classes), 1 / num_classes, device=device) for size in passes],
            shares=[size / sum(sizes) for size in sizes],
        )

    def plain(self) -> float:
        """Seconds of a step."""
        begun = self._now(wait=True)
        for images, labels in zip(self.images, self.labels, strict=True):
            with self._pass(images):
                self._backward(self._loss(images, labels))
        optimizer_step(self.state, self.recipe)
        return self._between(begun, self._now(wait=True))

    def in_parts(self) -> list[float]:
        """Seconds of each part in a step: stem, blocks, head."""
        network = self.state.network
        assert isinstance(network, EfficientNet)
        inner = _parts(network)[:-1]
        hooks = [part.register_forward_hook(self._mark_output) for part in inner]
        seconds = [0.0] * (len(inner) + 1)
        try:
            for images, labels in zip(self.images, self.labels, strict=True):
                self.marks = [self._now(wait=True)]
                with self._pass(images):
                    loss = self._loss(images, labels)
                    self.marks.append(self._now())  # the head's forward ends here
                    self._backward(loss)
                self.marks.append(self._now(wait=True))  # the stem's backward ends here
                self._add_passes(seconds)
        finally:
            for hook in hooks:
                hook.remove()
        begun = self._now(wait=True)
        optimizer_step(self.state, self.recipe)
        update_s = self._between(begun, self._now(wait=True))
        return [own + share * update_s for own, share in zip(seconds, self.shares, strict=True)]

    def _add_passes(self, seconds: list[float]) -> None:
        """Marks come forwards through the parts, then backwards: the way to the first and from it are the same."""
        spans = [
            self._between(one, next_one) for one, next_one in zip(self.marks, self.marks[1:], strict=False)
        ]
        count = len(seconds)
        for number, span in enumerate(spans):
            seconds[number if number < count else 2 * count - 1 - number] += span

    def _mark_output(self, module: torch.nn.Module, given: object, output: Tensor) -> None:
        self.marks.append(self._now())

        def mark(gradient: Tensor) -> None:
            self.marks.append(self._now())

        output.register_hook(mark)  # type: ignore[no-untyped-call]

    def _pass(self, images: Tensor) -> AbstractContextManager[None]:
        """Within, the groups of a pass have statistics and draws of their own, as in training."""
        count = self.recipe.group_images or self.recipe.batch_images
        return ghost_batches(self.state.network, images=count, seeds=range(len(images) // count))

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        assert self.recipe.precision != "auto", "resolve_recipe() comes first"
        with autocast(self.device, self.recipe.precision):
            logits = self.state.network(images)
        return cross_entropy(logits, labels)

    def _backward(self, loss: Tensor) -> None:
        scaled = self.state.scaler.scale(loss) if self.state.scaler else loss
        scaled.backward()  # type: ignore[no-untyped-call]

    def _now(self, *, wait: bool = False) -> Any:
        """A moment; a GPU, which is told ahead, notes it itself when it comes there."""
        if self.device.type != "cuda":
            if wait:
                synchronizer(self.device)()
            return time.perf_counter()
        moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        moment.record(torch.cuda.current_stream(self.device))
        if wait:
            synchronizer(self.device)()
        return moment

    def _between(self, begun: Any, ended: Any) -> float:
        if self.device.type != "cuda":
            return float(ended - begun)
        return float(begun.elapsed_time(ended)) / 1000


def _parts(network: EfficientNet) -> list[torch.nn.Module]:
    """The modules whose times are told apart; the classifier goes with the head."""
    return [network.stem, *network.blocks, network.head]


# All ours. Rounds before those that count, in the first sitting for so many seconds at least: a new process's memory
# comes to it in the first second. Of those that count so many at least in a sitting, and then until they fill so many
# seconds or, where they are short, are so many.
_WARM_UP_steptime, _WARM_UP_S = 1, 1.0
_ROUNDS_steptime, _SECONDS, _MANY_ROUNDS = 3, 1.0, 6
# A network laid anew into memory is as much as some percent faster or slower, for as long as it lies there; so it is
# measured in so many sittings.
_SITTINGS = 3
# Of a shape, the times in so many networks are kept; their median counts.
_KEPT = 15
# Of the file: conditions -> part -> seconds, some of each.
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_TIMES = TypeAdapter(dict[str, dict[str, Annotated[list[_Seconds], Field(min_length=1)]]])


@dataclass(frozen=True)
class Pace:
    """How fast the machine is at a moment, told by a network whose steps are timed between those of others.

    Where others compute too, as on most rented machines, all steps take longer or shorter by a tenth and more from one
    minute to the next. What was measured beside the same network can be compared all the same.

    Args:
        architecture: of that network.
        recipe: as of ``measure``.
        seconds: that its step counts as; other steps are told at the pace at which it takes so long.
        inference_seconds: the same of one picture at inference; None where that is not timed.
        at_a_time: groups in a pass of its steps.
    """

    architecture: Architecture
    recipe: Recipe
    seconds: float
    inference_seconds: float | None = None
    at_a_time: int = 1


@dataclass(frozen=True)
class StepTime:
    """What was measured of a network's training step.

    Args:
        whole: seconds of a step: the median over rounds, the lowest and the highest quartile of the sittings.
        parts: shape of a part → its share of the step in seconds; of equal parts the mean.
    """

    whole: TimingStats
    parts: Mapping[str, float]

    @property
    def unsteadiness(self) -> float:
        """How far the step's quartiles lie apart, over its median."""
        return (self.whole.high - self.whole.low) / self.whole.median


def part_names(architecture: Architecture, *, image_px: int, num_classes: int) -> list[str]:
    """The parts of a network in order, each named by all that its time depends on: stem, blocks, head.

    Args:
        architecture: the network.
        image_px: side of the picture.
        num_classes: of the classifier.
    """
    px = out_px(image_px, stride=2)
    names = [f"stem {architecture.stem_channels} at {image_px}"]
    for block in blocks(architecture):
        names.append(_block_name(block, px))
        px = out_px(px, stride=block.stride)
    channels, width = architecture.stages[-1].channels, architecture.head_channels
    return [*names, f"head {channels}-{width} at {px}, {architecture.pooling}, {num_classes} classes"]


def _block_name(block: Block, px: int) -> str:
    channels = f"{block.in_channels}-{block.inner_channels}-{block.out_channels}"
    se = "" if block.se_channels is None else f" se {block.se_channels}"
    # A fused block that expands has a second convolution, which one of the same channels that does not has not.
    expands = " expanding" if block.expands else ""
    return f"{block.kind}{expands} {channels} kernel {block.kernel} stride {block.stride}{se} at {px}"


def measure(
    architecture: Architecture,
    recipe: Recipe,
    *,
    num_classes: int,
    device: torch.device,
    at_a_time: int = 1,
    pace: Pace | None = None,
) -> StepTime:
    """Time training steps of a network: forward, backward, the loop's update, at the last stage's setting, on noise.

    Rounds of the plain step, which is what counts, alternate with rounds in which the parts are told apart; both in
    some sittings, each with the network made anew.

    Args:
        architecture: the network.
        recipe: settled; its batch, groups, precision and optimizer are used.
        num_classes: of the classifier.
        device: to train on, which nobody else should use meanwhile.
        at_a_time: groups in a pass, as in training.
        pace: timed before, between and after the sittings; None tells the seconds as they were.

    Raises:
        RuntimeError: memory ran out (``utils.memory.is_out_of_memory``).
        InputError: it ran out with the network of the pace.
    """
    share = _Shares(pace, num_classes, device)
    sittings: list[list[float]] = []
    parts: list[list[float]] = []
    for _ in range(_SITTINGS):
        bench = Bench.of(architecture, recipe, num_classes, device, at_a_time)
        _warm_up(bench, 0.0 if sittings or pace is not None else _WARM_UP_S)
        whole, in_parts = _sitting(bench)
        del bench  # another one might not fit beside it
        factor = share.now()
        sittings.append([factor * seconds for seconds in whole])
        parts += [[factor * seconds for seconds in times] for times in in_parts]
    by_name: dict[str, list[float]] = {}
    names = part_names(architecture, image_px=recipe.progressive.last.image_px, num_classes=num_classes)
    for name, times in zip(names, zip(*parts, strict=True), strict=True):
        by_name.setdefault(name, []).append(statistics.median(times))
    return StepTime(_over(sittings), {name: statistics.mean(times) for name, times in by_name.items()})


def fewest_steps() -> tuple[int, int]:
    """How many steps ``measure`` takes of a network, and of that of its pace, where each takes a second or longer."""
    own = _SITTINGS * 2 * (_WARM_UP_steptime + _ROUNDS_steptime)  # plain and in parts
    return own, (1 + _SITTINGS) * (2 * _WARM_UP_steptime + _ROUNDS_steptime)


class _Shares:
    """What the seconds between two looks at the pace are multiplied by; the first look is taken at once."""

    def __init__(self, pace: Pace | None, num_classes: int, device: torch.device) -> None:
        self.pace, self.num_classes, self.device = pace, num_classes, device
        self._before = self._look(_WARM_UP_S)

    def now(self) -> float:
        """Of the seconds since the last look."""
        if self.pace is None:
            return 1.0
        before, self._before = self._before, self._look(0.0)
        return self.pace.seconds / statistics.mean((before, self._before))

    def _look(self, warm_up_s: float) -> float:
        """Seconds of the network's step, as it lies in memory this time."""
        if self.pace is None:
            return 0.0
        try:
            return _median(self.pace, self.num_classes, self.device, warm_up_s)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(no_pace(first_line(error))) from error


def _median(pace: Pace, num_classes: int, device: torch.device, warm_up_s: float) -> float:
    """Seconds of a step of the pace's network, laid anew into memory."""
    bench = Bench.of(pace.architecture, pace.recipe, num_classes, device, pace.at_a_time)
    _warm_up(bench, warm_up_s)
    rounds: list[float] = []
    while not _enough(rounds):
        rounds.append(bench.plain())
    return statistics.median(rounds)


def no_pace(why: str) -> str:
    """The message for memory that is too short for the network of the pace, which is the affair of no other network.

    Args:
        why: it is; a sentence without its end.
    """
    return (
        f"Memory is too short for the backbone, beside which every network is timed ({why}). It did fit when the study "
        "began: end what else takes memory, or give more (--memory-gib), then go on with effnetv2 search resume."
    )


def _warm_up(bench: Bench, seconds: float) -> None:
    warm: list[float] = []
    while len(warm) < _WARM_UP_steptime or sum(warm) < seconds:
        warm.append(bench.plain() + sum(bench.in_parts()))


def _sitting(bench: Bench) -> tuple[list[float], list[list[float]]]:
    """The plain rounds of a network as it lies in memory, and those in parts."""
    whole: list[float] = []
    parts: list[list[float]] = []
    while not _enough(whole):
        whole.append(bench.plain())
        parts.append(bench.in_parts())
    return whole, parts


def _enough(rounds: list[float]) -> bool:
    return len(rounds) >= _MANY_ROUNDS or (len(rounds) >= _ROUNDS_steptime and sum(rounds) >= _SECONDS)


def _over(sittings: list[list[float]]) -> TimingStats:
    """The median of all rounds, with the lowest of the sittings' lower quartiles and the highest upper one."""
    each = [TimingStats.of(rounds) for rounds in sittings]
    every = [seconds for rounds in sittings for seconds in rounds]
    low, high = min(one.low for one in each), max(one.high for one in each)
    return TimingStats(statistics.median(every), low, high, len(every))


class StepTimes:
    """Times of parts by their shape, in a file: what the networks measured on this device had.

    Args:
        file: JSON; its folder is there. A file that is damaged counts as empty: it is only a cache.
        recipe: settled; times of another batch, size, precision or optimizer, or of gradients not clipped, are kept
            apart.
        num_classes: of the classifier.
        device: that they are of.
        at_a_time: groups in a pass; times of another number are kept apart too.
    """

    def __init__(
        self, file: Path, recipe: Recipe, *, num_classes: int, device: torch.device, at_a_time: int = 1
    ) -> None:
        self.file, self.num_classes = file, num_classes
        self.image_px = recipe.progressive.last.image_px
        group = recipe.group_images or recipe.batch_images
        self.conditions = (
            f"{device_title(device)}; {recipe.batch_images} images in groups of {group}"
            f"{'' if at_a_time == 1 else f', {at_a_time} at a time'}, {recipe.precision}, "
            f"{recipe.optimizer.kind}{'' if recipe.optimizer.clip_norm is None else ', clipped'}"
            f"{'' if recipe.ema_decay is None else ', moving average'}"
        )

    def foretold(self, architecture: Architecture) -> float | None:
        """Seconds of a step of a network: the sum over its parts; None if one of them is not known yet."""
        known = self._read().get(self._key(architecture), {})
        names = part_names(architecture, image_px=self.image_px, num_classes=self.num_classes)
        if any(name not in known for name in names):
            return None
        return sum(statistics.median(known[name]) for name in names)

    def add(self, architecture: Architecture, parts: Mapping[str, float]) -> None:
        """Keep the times of a network's parts."""
        with FileLock(self.file.with_suffix(".lock")):
            kept = self._read()
            known = kept.setdefault(self._key(architecture), {})
            for name, seconds in parts.items():
                known[name] = [*known.get(name, []), float(f"{seconds:.4g}")][-_KEPT:]
            write_text_atomically(self.file, json.dumps(kept, indent=1) + "\n")

    def _key(self, architecture: Architecture) -> str:
        return f"{self.conditions}; padding {architecture.padding}"

    def _read(self) -> dict[str, dict[str, list[float]]]:
        try:
            return _TIMES.validate_json(self.file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # no JSON, or none of ours
            return {}


# Both ours. A pass of a small network takes milliseconds, and single ones are easily disturbed.
_WARM_UP, _ROUNDS = 5, 30


def latency(
    architecture: Architecture,
    *,
    image_px: int,
    num_classes: int,
    device: torch.device,
    pace: Pace | None = None,
) -> float:
    """Seconds of a forward pass of one picture, a batch of its own, as ``predict`` computes; the median of 30 rounds.

    Args:
        architecture: the network.
        image_px: side of the picture, which is noise.
        num_classes: of the classifier.
        device: to run on, which nobody else should use meanwhile.
        pace: whose network takes a pass in every round too; the seconds are told at the pace at which its pass takes
            ``inference_seconds``. None, or a pace without these, tells them as they were.

    Raises:
        RuntimeError: memory ran out (``utils.memory.is_out_of_memory``).
    """
    both = {"pass": architecture}
    if pace is not None and pace.inference_seconds is not None:
        both["pace"] = pace.architecture
    networks = {name: create(one, num_classes=num_classes) for name, one in both.items()}
    channels = networks["pass"].in_channels
    noise = torch.rand(1, channels, image_px, image_px, generator=torch.Generator().manual_seed(0))
    picture = noise.to(device, memory_format=torch.channels_last)
    with ExitStack() as evaluated:
        for network in networks.values():
            place(network, device)
            evaluated.enter_context(eval_mode(network))
        passes = {name: partial(network, picture) for name, network in networks.items()}
        rounds = interleave(passes, rounds=_ROUNDS, warmup=_WARM_UP, wait=synchronizer(device))
    if pace is None or pace.inference_seconds is None:
        return statistics.median(rounds["pass"])
    return pace.inference_seconds * speed_ratio(rounds, of="pace", to="pass").median
