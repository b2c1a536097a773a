"""The training loop: batches in, optimizer steps out.

Image size and regularization change inside the one loop, because the step's settings travel with the batch. The loop
neither logs, saves nor evaluates: it yields after every step, for ``training.trainer``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from efficientnetv2.data.loader import Batch
from efficientnetv2.models.ghost_batch import GhostBatchNormStats, ghost_batches
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import StepPlan, StepSettings
from efficientnetv2.training.compile import compile_model
from efficientnetv2.training.cuda_graphs import CudaGraphs
from efficientnetv2.training.ddp import GradientSync
from efficientnetv2.training.losses import NO_CLASS_TERMS, ClassTerms, binary_cross_entropy, class_terms, cross_entropy
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS, MicrobatchPlan, chunks, divisors
from efficientnetv2.training.optim import lr_factor
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_setup import RunLength, RunSetup
from efficientnetv2.training.train_state import TrainState
from efficientnetv2.transforms.pipeline import augment, binary_targets
from efficientnetv2.utils.device import Precision, autocast, to_device
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World
from efficientnetv2.utils.errors import MemoryShortError, error_summary, pluralize
from efficientnetv2.utils.memory import is_out_of_memory, release_memory
from efficientnetv2.utils.probability import Activation
from efficientnetv2.utils.random_key import Key


@dataclass
class StepOutput:
    """Result of a step."""

    step: int  # From 0
    setting: StepSettings
    loss: Tensor  # Mean over all groups, a scalar on the device. Reading it waits for the device.
    lr: float  # Scheduled. Each parameter group has a multiple of it.
    images: int  # On all processes
    unreadable: tuple[tuple[int, str], ...]  # Sample and reason of each image that this process could not read
    data_wait_s: float  # Without workers, the time to read the images
    microbatches: MicrobatchPlan  # Groups per pass on this process from now on


@dataclass(frozen=True)
class StepContext:
    """What all steps of a run have in common."""

    recipe: Recipe  # Resolved
    preprocessing: Preprocessing
    num_classes: int
    key: Key
    device: torch.device
    class_terms: ClassTerms = NO_CLASS_TERMS
    activation: Activation = "softmax"  # Of the head; it decides the loss

    @property
    def precision(self) -> Precision:
        """Precision of the forward and backward pass."""
        assert self.recipe.precision != "auto", "resolve_recipe() comes first"
        return self.recipe.precision


def step_context(setup: RunSetup) -> StepContext:
    """What all steps of a run have in common."""
    classes = len(setup.train.class_names)
    return StepContext(
        setup.recipe,
        setup.preprocessing,
        classes,
        setup.key,
        setup.device,
        class_terms(setup.train.targets, classes, setup.recipe),
        activation=setup.activation,
    )


def train_steps(
    state: TrainState,
    batches: Iterable[Batch],
    context: StepContext,
    *,
    length: RunLength,
    microbatches: MicrobatchPlan = ONE_GROUP_PER_PASS,
    world: World = SINGLE_PROCESS,
    plan: StepPlan | None = None,
) -> Generator[StepOutput, None, None]:
    """Train ``state`` in place from ``state.step`` on, by the groups of this process, and yield after every step.

    Where memory runs out, ``microbatches`` is reduced. Without ``plan``, step ``n`` has position ``n`` in the schedule.
    Raises InputError if memory runs out with a single group, or after gradients were sent to other processes.
    """
    model, recipe, device = state.network, context.recipe, context.device
    context = replace(context, class_terms=context.class_terms.to(device))
    plan = plan or StepPlan(length.steps)
    graphs = CudaGraphs(model, device, world, recipe)
    momentum, fp16 = 1 - recipe.batch_norm_momentum, state.scaler is not None
    batch_norm = GhostBatchNormStats(model, groups=recipe.num_groups, momentum=momentum, world=world, may_overflow=fp16)
    model.train()
    call = compile_model(model, recipe, device, microbatches, world=world) if recipe.compile is True else model
    gradients = GradientSync(call, world)
    setting: StepSettings | None = None
    iterator, group_count = iter(batches), len(world.groups(recipe.num_groups))
    began = time.perf_counter()
    while groups := list(itertools.islice(iterator, group_count)):
        data_wait_s = time.perf_counter() - began
        request = groups[0].request
        if request.setting != setting:
            setting = request.setting
            apply_regularization(model, setting)
        batch_norm.begin_step()
        loss, microbatches = _accumulate_gradients(state, groups, context, batch_norm, gradients, graphs, microbatches)
        gradients.end_step()
        batch_norm.end_step(loss)
        lr = _set_learning_rate(state, recipe, length, plan)
        optimizer_step(state, recipe)
        unreadable = tuple(failure for batch in groups for failure in batch.unreadable)
        yield StepOutput(request.step, setting, loss, lr, recipe.batch_size, unreadable, data_wait_s, microbatches)
        began = time.perf_counter()


def _accumulate_gradients(
    state: TrainState,
    groups: Sequence[Batch],
    context: StepContext,
    batch_norm: GhostBatchNormStats,
    gradients: GradientSync,
    graphs: CudaGraphs,
    microbatches: MicrobatchPlan,
) -> tuple[Tensor, MicrobatchPlan]:
    """Loss and gradients of this process's groups; if memory runs out, again with half as many groups per pass."""
    image_size = groups[0].request.setting.image_size
    while True:
        loss = torch.zeros((), device=context.device)
        gradients.begin_step(image_size)
        try:
            for microbatch in chunks(groups, microbatches.at(image_size)):
                with gradients.forward_pass(last=microbatch[-1] is groups[-1]) as forward:
                    loss += forward_backward(state.network, microbatch, context, forward, state.scaler, graphs)
                batch_norm.after_groups(len(microbatch))
            return loss, microbatches
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if microbatches.at(image_size) == 1:
                raise _one_group_error(groups[0], context.recipe, error) from error
            if gradients.sending:
                raise MemoryShortError(
                    f"Memory ran out with images of {image_size} px ({error_summary(error)}), after other processes "
                    "got a part of the step. Free memory, then use `resume`."
                ) from error
        # Only here, after the error and the tensors of its traceback are gone, is the memory free again.
        microbatches = microbatches.halved(image_size)
        graphs.clear()
        state.network.zero_grad(set_to_none=True)
        batch_norm.restart_step()
        release_memory(context.device)


def _one_group_error(group: Batch, recipe: Recipe, error: BaseException) -> MemoryShortError:
    """The error where memory runs out with a single group."""
    last, images = recipe.progressive.last, len(group.labels)
    least = max(1, 2 * (bool(last.mixup_alpha) + bool(last.cutmix_alpha)))  # a partner for each image
    smaller = [size for size in divisors(images * recipe.num_groups, most=images // 2) if size >= least]
    fix = f"`ghost_batch_size={smaller[-1]}`" if smaller else "a smaller `image_size`"
    return MemoryShortError(
        f"Memory ran out with one group of {pluralize(images, 'image')} of {group.request.setting.image_size} px "
        f"({error_summary(error)}). Free memory and use `resume`, or start a new run with {fix}."
    )


def forward_backward(
    model: nn.Module,
    batches: Sequence[Batch],
    context: StepContext,
    forward: Callable[[Tensor], Tensor],
    scaler: torch.amp.GradScaler | None = None,
    graphs: CudaGraphs | None = None,
) -> Tensor:
    """Forward and backward pass of some groups of a step, adding to the gradients; returns their part of its loss.

    With ``graphs`` the next pass may overwrite this loss.
    """
    groups = [augment_batch(batch, context) for batch in batches]
    images, targets = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*groups, strict=True))
    requests = [batch.request for batch in batches]
    seeds = [context.key.fold("dropout", request.step, request.group).torch_seed() for request in requests]

    def compute(images: Tensor, targets: Tensor) -> Tensor:
        with autocast(context.device, context.precision):
            logits = forward(images)
        if context.activation == "sigmoid":
            loss = binary_cross_entropy(logits, targets)
        else:
            loss = cross_entropy(logits, targets, offsets=context.class_terms.offsets)
        loss = loss * (len(batches) / context.recipe.num_groups)
        scaled = scaler.scale(loss) if scaler else loss
        scaled.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    with ghost_batches(model, images=len(batches[0].labels), seeds=seeds):
        return graphs.run(compute, images, targets) if graphs else compute(images, targets)


def augment_batch(batch: Batch, context: StepContext) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a group: (N, 3, S, S) normalized images and (N, K) class probabilities."""
    request, key, terms = batch.request, context.key, context.class_terms
    first_labels = batch.labels if batch.labels.ndim == 1 else batch.labels[:, 0]
    return augment(
        to_device(batch.images, context.device),
        to_device(batch.labels, context.device),
        setting=request.setting,
        key=key.fold("augment"),
        ids=request.ids,
        mix_key=key.fold("mix", request.step, request.group),
        plan=context.recipe.augment,
        preprocessing=context.preprocessing,
        num_classes=context.num_classes,
        stronger=None if terms.stronger is None else terms.stronger[first_labels.cpu()],
        targets=terms.targets if context.activation == "softmax" else binary_targets,
    )


def _set_learning_rate(state: TrainState, recipe: Recipe, length: RunLength, plan: StepPlan) -> float:
    """Set the rate of each parameter group, and return the scheduled one."""
    position = plan.position(state.step)
    factor = lr_factor(recipe.schedule, position, steps=length.steps, steps_per_epoch=length.steps_per_epoch)
    lr = recipe.optimizer.lr * factor
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["lr_share"] if position >= group["begins"] * length.steps else 0.0
    return lr


def optimizer_step(state: TrainState, recipe: Recipe) -> None:
    """End of a step: clip the gradients, update the weights and the EMA, count the step."""
    optimizer, scaler = state.optimizer, state.scaler
    if recipe.optimizer.clip_norm is not None:
        if scaler:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), recipe.optimizer.clip_norm)
    if scaler:
        scaler.step(optimizer)  # skips the step if gradients overflowed
        scaler.update()
    else:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if state.ema:
        state.ema.update(state.network, state.step)
    state.step += 1
