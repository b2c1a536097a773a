"""The loop: batches in, steps done, whatever the setting of the moment is.

Image size, dropout, stochastic depth and augmentation change inside the one loop, because the setting
travels with the batch. Nothing here prints, saves or evaluates: ``train_steps`` yields after every step and
whoever drives it (``training.trainer``) does the rest.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from efficientnetv2.data.loader import Batch
from efficientnetv2.models.ghost_batch import one_pass
from efficientnetv2.models.regularization import apply_setting
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import Setting
from efficientnetv2.progressive.step_plan import StepPlan
from efficientnetv2.training import optim
from efficientnetv2.training.batch_norm import GhostBatchNormStats
from efficientnetv2.training.compile import compile_model
from efficientnetv2.training.ddp import GradientSync
from efficientnetv2.training.losses import NO_CLASS_TERMS, ClassTerms, binary_cross_entropy, cross_entropy
from efficientnetv2.training.microbatch import (
    ONE_GROUP_PER_PASS,
    MicrobatchPlan,
    chunks,
    out_of_memory_message,
    out_of_memory_mid_step_message,
)
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.train_state import RunLength, TrainState
from efficientnetv2.transforms.pipeline import AugmentPlan, augment, yes_or_no
from efficientnetv2.utils.device import Precision, autocast, send
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World
from efficientnetv2.utils.errors import MemoryShortError
from efficientnetv2.utils.memory import is_out_of_memory, release
from efficientnetv2.utils.probability import Answer
from efficientnetv2.utils.rng import Key


@dataclass
class StepOutput:
    """What a step was.

    Args:
        step: its number, from 0.
        setting: that held.
        loss: of all groups; scalar tensor, still on the device: reading it waits for the device.
        lr: the scheduled learning rate, of which each group of weights has its share.
        images: pictures in this step, on all processes.
        unreadable: sample and reason of each picture that could not be read, on this process.
        waited_s: for the step's pictures: how long the loop had nothing to do. Where no worker reads ahead, that is
            the reading itself.
        at_a_time: how many groups ran in one pass at last, on this process.
    """

    step: int
    setting: Setting
    loss: Tensor
    lr: float
    images: int
    unreadable: tuple[tuple[int, str], ...]
    waited_s: float
    at_a_time: MicrobatchPlan


@dataclass(frozen=True)
class StepContext:
    """What is the same in every pass of a run.

    Args:
        plan: of the augmentation.
        preprocessing: of the network; its mean and std.
        num_classes: K.
        key: of the run.
        device: that holds the network.
        groups: of a step.
        precision: of the network's multiplications.
        scaler: of fp16's losses; None in every other precision.
        terms: what differs from class to class, on the device; of no effect on ``sigmoid``'s loss.
        answer: what the network learns to answer.
    """

    plan: AugmentPlan
    preprocessing: Preprocessing
    num_classes: int
    key: Key
    device: torch.device
    groups: int
    precision: Precision
    scaler: torch.amp.GradScaler | None
    terms: ClassTerms = NO_CLASS_TERMS
    answer: Answer = "softmax"


def train_steps(
    state: TrainState,
    batches: Iterable[Batch],
    *,
    recipe: Recipe,
    preprocessing: Preprocessing,
    length: RunLength,
    num_classes: int,
    key: Key,
    device: torch.device,
    at_a_time: MicrobatchPlan = ONE_GROUP_PER_PASS,
    world: World = SINGLE_PROCESS,
    terms: ClassTerms = NO_CLASS_TERMS,
    answer: Answer = "softmax",
    say: Callable[[str], None] = lambda line: None,
    plan: StepPlan | None = None,
) -> Iterator[StepOutput]:
    """Train from ``state.step`` to the end, yielding after every step.

    Args:
        state: changed in place.
        batches: one per group of this process's, in order, beginning with its first group of ``state.step``.
        recipe: settled.
        preprocessing: of the network; its mean and std.
        length: of the run.
        num_classes: K.
        key: of the run.
        device: that holds the network.
        at_a_time: how many groups run in one pass; fewer from the step on in which memory runs out.
        world: the processes that share the groups.
        terms: what differs from class to class.
        answer: what the network learns to answer.
        say: gets lines on what takes minutes before the first step: compiling.
        plan: Where each step stands in the schedule, if the number of steps may change. None takes ``length``.

    Raises:
        InputError: memory is too short for a single group, or ran out when half of a step was with other processes.
    """
    assert recipe.group_images is not None, "resolve_recipe() comes first"
    groups = recipe.batch_images // recipe.group_images
    momentum = 1 - recipe.batch_norm_momentum
    assert recipe.precision != "auto", "resolve_recipe() comes first"
    statistics = GhostBatchNormStats(
        state.network, groups=groups, momentum=momentum, world=world, may_overflow=state.scaler is not None
    )
    state.network.train()
    gradients = GradientSync(
        compile_model(state.network, recipe, device, at_a_time, world=world, say=say), world
    )
    constants = StepContext(
        recipe.augment,
        preprocessing,
        num_classes,
        key,
        device,
        groups,
        recipe.precision,
        state.scaler,
        terms.to(device),
        answer,
    )
    setting: Setting | None = None
    killed = DeferredWorkerDeath()
    for step, waited_s in _by_step(batches, len(world.groups(groups))):
        request = step[0].request
        if request.setting != setting:
            setting = request.setting
            apply_setting(state.network, setting)
        with killed.held():  # half a step cannot be kept
            statistics.begin_step()
            loss, at_a_time = _all_groups(state.network, step, constants, statistics, gradients, at_a_time)
            gradients.end_step()
            statistics.end_step(loss)
            lr = _update(state, recipe, length, state.step if plan is None else plan.position(state.step))
        unreadable = tuple(failure for batch in step for failure in batch.unreadable)
        images = recipe.batch_images
        yield StepOutput(request.step, setting, loss, lr, images, unreadable, waited_s, at_a_time)
        killed.tell()


class DeferredWorkerDeath:
    """Lets PyTorch say between two steps that a process which reads was killed: it says so wherever the main one is."""

    def __init__(self) -> None:
        self._came: tuple[int, FrameType | None] | None = None
        self._told: Any = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, nothing is said."""
        if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._told = signal.signal(signal.SIGCHLD, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGCHLD, self._told)

    def tell(self) -> None:
        """Say what was held back.

        Raises:
            RuntimeError: PyTorch's, of a process that was killed.
        """
        came, self._came = self._came, None
        if came is not None and callable(self._told):
            self._told(*came)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = number, frame


def _by_step(batches: Iterable[Batch], groups: int) -> Iterator[tuple[list[Batch], float]]:
    """This process's groups of each step together, and the seconds that were spent waiting for them."""
    coming = iter(batches)
    while True:
        began = time.perf_counter()
        step = list(itertools.islice(coming, groups))
        if not step:
            return
        yield step, time.perf_counter() - began


def _all_groups(
    network: nn.Module,
    step: Sequence[Batch],
    constants: StepContext,
    statistics: GhostBatchNormStats,
    gradients: GradientSync,
    at_a_time: MicrobatchPlan,
) -> tuple[Tensor, MicrobatchPlan]:
    """The gradients of this process's groups; where memory runs out, again from the first, half as many at a time.

    Returns:
        Their share of the step's loss, a scalar on the device, and how many groups run at a time from now on.
    """
    image_px = step[0].request.setting.image_px
    while True:
        loss = torch.zeros((), device=constants.device)
        gradients.begin_step(image_px)
        try:
            for groups in chunks(step, at_a_time.at(image_px)):
                with gradients.of_pass(last=groups[-1] is step[-1]) as forward:
                    loss += forward_backward(network, groups, constants, forward)
                statistics.after_groups(len(groups))
            return loss, at_a_time
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if at_a_time.at(image_px) == 1:
                raise MemoryShortError(
                    out_of_memory_message(len(step[0].labels), constants.groups, image_px, error)
                ) from error
            if gradients.sending:
                raise MemoryShortError(out_of_memory_mid_step_message(image_px, error)) from error
        # Only here, where the error and all that its traceback held on to are gone, is memory free again.
        at_a_time = at_a_time.halved(image_px)
        network.zero_grad(set_to_none=True)
        statistics.begin_again()
        release(constants.device)


def forward_backward(
    network: nn.Module,
    batches: Sequence[Batch],
    constants: StepContext,
    forward: Callable[[Tensor], Tensor],
) -> Tensor:
    """Forward and backward of some groups in one pass: gradients are added to those of the step's other groups.

    Args:
        network: in training mode.
        batches: a group each, of one step.
        constants: of the run.
        forward: the network itself, or what calls it.

    Returns:
        Their share of the step's loss, a scalar on the device.
    """
    key = constants.key
    groups = [augment_batch(batch, constants) for batch in batches]
    images, labels = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*groups, strict=True))
    requests = [batch.request for batch in batches]
    seeds = [key.fold("dropout", request.step, request.group).torch_seed() for request in requests]
    with one_pass(network, images=len(batches[0].labels), seeds=seeds):
        with autocast(constants.device, constants.precision):
            logits = forward(images)
        loss = _loss(logits, labels, constants)
        loss = loss * (len(batches) / constants.groups)
        scaled = constants.scaler.scale(loss) if constants.scaler else loss
        scaled.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _loss(logits: Tensor, labels: Tensor, constants: StepContext) -> Tensor:
    if constants.answer == "sigmoid":
        return binary_cross_entropy(logits, labels)
    return cross_entropy(logits, labels, offsets=constants.terms.offsets)


def augment_batch(batch: Batch, constants: StepContext) -> tuple[Tensor, Tensor]:
    """A group as the network gets it: (n, 3, S, S) normalised pictures, and (n, K) targets."""
    request, key, stronger = batch.request, constants.key, constants.terms.stronger
    first = batch.labels if batch.labels.ndim == 1 else batch.labels[:, 0]
    return augment(
        send(batch.images, constants.device),
        send(batch.labels, constants.device),
        setting=request.setting,
        key=key.fold("augment"),
        ids=request.ids,
        mix_key=key.fold("mix", request.step, request.group),
        plan=constants.plan,
        preprocessing=constants.preprocessing,
        num_classes=constants.num_classes,
        stronger=None if stronger is None else stronger[first.cpu()],
        targets=constants.terms.targets if constants.answer == "softmax" else yes_or_no,
    )


def _update(state: TrainState, recipe: Recipe, length: RunLength, position: float) -> float:
    """One step of the optimizer and of the moving average; the learning rate it used."""
    share = optim.lr_factor(
        recipe.schedule, position, steps=length.steps, steps_per_epoch=length.steps_per_epoch
    )
    lr = recipe.optimizer.lr * share
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["lr_share"] if position >= group["begins"] * length.steps else 0.0
    optimizer_step(state, recipe)
    return lr


def optimizer_step(state: TrainState, recipe: Recipe) -> None:
    """The end of a step: gradients clipped, the optimizer's step at the rates it has, the moving average.

    Args:
        state: whose gradients are those of the whole batch; changed in place, and the step is counted.
        recipe: settled.
    """
    if recipe.optimizer.clip_norm is not None:
        if state.scaler:
            state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), recipe.optimizer.clip_norm)
    if state.scaler:
        state.scaler.step(state.optimizer)  # leaves the step out where gradients overflowed
        state.scaler.update()
    else:
        state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema:
        state.ema.update(state.network, state.step)
    state.step += 1
