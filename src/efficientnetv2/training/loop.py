"""The loop: batches in, steps done, whatever the setting of the moment is.

Image size, dropout, stochastic depth and augmentation change inside the one loop, because the setting
travels with the batch. Nothing here prints, saves or evaluates: ``train`` yields after every step and
whoever drives it (``training.run``) does the rest.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efficientnetv2.augment.pipeline import AugmentPlan, augment
from efficientnetv2.base.keys import Key
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.data.loader import Batch
from efficientnetv2.models.regularize import apply_setting
from efficientnetv2.progressive import Setting
from efficientnetv2.training import optim
from efficientnetv2.training.loss import cross_entropy
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.state import Length, State


@dataclass
class StepDone:
    """What a step was.

    Args:
        step: its number, from 0.
        setting: that held.
        loss: scalar tensor, still on the device: reading it waits for the device.
        lr: peak group's learning rate.
        images: pictures in this step on this process.
        unreadable: sample and reason of each picture that could not be read.
        waited_s: for the step's pictures: how long the loop had nothing to do. Where no worker reads ahead, that is
            the reading itself.
    """

    step: int
    setting: Setting
    loss: Tensor
    lr: float
    images: int
    unreadable: tuple[tuple[int, str], ...]
    waited_s: float


def train(
    state: State,
    batches: Iterable[Batch],
    *,
    recipe: Recipe,
    preprocessing: Preprocessing,
    length: Length,
    num_classes: int,
    key: Key,
    device: torch.device,
) -> Iterator[StepDone]:
    """Train from ``state.step`` to the end, yielding after every step.

    Args:
        state: changed in place.
        batches: one per group, in order, beginning with the first group of ``state.step``.
        recipe: settled.
        preprocessing: of the network; its mean and std.
        length: of the run.
        num_classes: K.
        key: of the run.
        device: that holds the network.
    """
    assert recipe.group_images is not None, "settle() comes before the loop"
    groups = recipe.batch_images // recipe.group_images
    momentum = 1 - recipe.batch_norm_momentum
    statistics = optim.GroupedStatistics(state.network, groups=groups, momentum=momentum)
    state.network.train()
    setting: Setting | None = None
    for step, waited_s in _by_step(batches, groups):
        request = step[0].request
        if request.setting != setting:
            setting = request.setting
            apply_setting(state.network, dropout=setting.dropout, drop_path=setting.drop_path)
        loss = torch.zeros((), device=device)
        statistics.begin_step()
        for batch in step:
            loss += train_group(
                state.network,
                batch,
                plan=recipe.augment,
                preprocessing=preprocessing,
                num_classes=num_classes,
                key=key,
                device=device,
                groups=groups,
            )
            statistics.after_group()
        statistics.end_step()
        lr = _update(state, recipe, length)
        images = sum(len(batch.labels) for batch in step)
        unreadable = tuple(failure for batch in step for failure in batch.unreadable)
        yield StepDone(request.step, setting, loss, lr, images, unreadable, waited_s)


def _by_step(batches: Iterable[Batch], groups: int) -> Iterator[tuple[list[Batch], float]]:
    """The groups of each step together, and the seconds that were spent waiting for them."""
    coming = iter(batches)
    while True:
        began = time.perf_counter()
        step = list(itertools.islice(coming, groups))
        if not step:
            return
        yield step, time.perf_counter() - began


def train_group(
    network: nn.Module,
    batch: Batch,
    *,
    plan: AugmentPlan,
    preprocessing: Preprocessing,
    num_classes: int,
    key: Key,
    device: torch.device,
    groups: int,
) -> Tensor:
    """Forward and backward of one group: gradients are added to those of the step's other groups.

    Returns:
        Its share of the step's loss, a scalar on the device.
    """
    request = batch.request
    images, labels = augment(
        batch.images.to(device, non_blocking=True),
        batch.labels.to(device, non_blocking=True),
        setting=request.setting,
        key=key.fold("augment"),
        ids=request.ids,
        mix_key=key.fold("mix", request.step, request.group),
        plan=plan,
        preprocessing=preprocessing,
        num_classes=num_classes,
    )
    # Dropout and stochastic depth draw from torch's generator: it starts anew for every group.
    torch.manual_seed(key.fold("dropout", request.step, request.group).torch_seed())
    loss = cross_entropy(network(images), labels) / groups
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _update(state: State, recipe: Recipe, length: Length) -> float:
    """One step of the optimizer and of the moving average; the learning rate it used."""
    share = optim.lr_share(
        recipe.schedule, state.step, steps=length.steps, steps_per_epoch=length.steps_per_epoch
    )
    lr = recipe.optimizer.lr * share
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["lr_share"]
    if recipe.optimizer.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), recipe.optimizer.clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema:
        state.ema.update(state.network, state.step)
    state.step += 1
    return lr
