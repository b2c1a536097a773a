"""A training step on noise, timed as a whole or by its parts: stem, blocks, head."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.models.ghost_batch import ghost_batches
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.training.loop import optimizer_step
from efficientnetv2.training.losses import cross_entropy
from efficientnetv2.training.microbatch import chunks
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.train_state import init_state
from efficientnetv2.utils.device import autocast, place
from efficientnetv2.utils.timer import synchronizer


class StepBenchmark:
    """A model newly created in memory, and the noise that its steps train on, at the last stage's settings.

    Args:
        architecture: Of the model.
        recipe: Resolved; its batch, groups, precision and optimizer are used.
        num_classes: Outputs of the classifier.
        device: To train on.
        groups_per_pass: Groups in a forward pass; the last pass of a step may have fewer.
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
        self.group_size = recipe.ghost_batch_size or recipe.batch_size
        num_groups, px = recipe.batch_size // self.group_size, settings.image_size
        generator = torch.Generator().manual_seed(0)  # The run's own random numbers stay as they are.
        group = torch.rand(self.group_size, network.in_channels, px, px, generator=generator)
        # Every group has the same noise: a large batch would take much memory.
        largest = group.repeat(min(groups_per_pass, num_groups), 1, 1, 1)
        largest = largest.to(device, memory_format=torch.channels_last)
        sizes = [self.group_size * len(each) for each in chunks(range(num_groups), groups_per_pass)]
        self.passes = [
            (largest[:size], torch.full((size, num_classes), 1 / num_classes, device=device))
            for size in sizes
        ]
        # The classifier belongs to the head.
        self.parts = [network.stem, *network.blocks, network.head]
        sizes = [sum(weight.numel() for weight in part.parameters()) for part in self.parts]
        sizes[-1] += sum(weight.numel() for weight in network.classifier.parameters())
        self.update_shares = [size / sum(sizes) for size in sizes]
        self._marks: list[Any] = []

    def step(self) -> float:
        """Seconds of one step."""
        began = self._now(wait=True)
        for images, labels in self.passes:
            with self._groups(images):
                self._backward(self._loss(images, labels))
        optimizer_step(self.state, self.recipe)
        return self._seconds(began, self._now(wait=True))

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
        began = self._now(wait=True)
        optimizer_step(self.state, self.recipe)
        update_s = self._seconds(began, self._now(wait=True))
        return [own + share * update_s for own, share in zip(seconds, self.update_shares, strict=True)]

    def _mark_output(self, module: torch.nn.Module, inputs: object, output: Tensor) -> None:
        self._marks.append(self._now())
        output.register_hook(lambda gradient: self._marks.append(self._now()))  # type: ignore[no-untyped-call]

    def _groups(self, images: Tensor) -> AbstractContextManager[None]:
        """Within it, the groups of a pass have statistics and random numbers of their own, as in training."""
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
        if self.device.type != "cuda":
            if wait:
                synchronizer(self.device)()
            return time.perf_counter()
        moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        moment.record(torch.cuda.current_stream(self.device))
        if wait:
            synchronizer(self.device)()
        return moment

    def _seconds(self, began: Any, ended: Any) -> float:
        return float(ended - began if self.device.type != "cuda" else began.elapsed_time(ended) / 1000)
