"""A network that takes training steps to be timed: the whole of them, or each part of it apart."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.timing import waiting
from efficientnetv2.inference.accelerate import autocast, place
from efficientnetv2.models.create import create
from efficientnetv2.models.groups import one_pass
from efficientnetv2.models.network import EfficientNet
from efficientnetv2.models.regularize import apply_setting
from efficientnetv2.training.loop import update
from efficientnetv2.training.loss import cross_entropy
from efficientnetv2.training.memory import batched
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.state import State, begin


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

    state: State
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
        place(network, device)
        setting = recipe.progressive.last
        apply_setting(network.train(), setting)
        state = begin(network, recipe)
        for group in state.optimizer.param_groups:
            group["lr"] = 0.0  # the weights stay as they are: on noise they might come to infinity
        count = recipe.group_images or recipe.batch_images
        groups, px = recipe.batch_images // count, setting.image_px
        noise = torch.Generator().manual_seed(0)  # the run's own draws stay as they are
        one = torch.rand(count, network.in_channels, px, px, generator=noise)
        # The same for every group: noise is noise, and of a large batch there is much.
        most = one.repeat(min(at_a_time, groups), 1, 1, 1).to(device, memory_format=torch.channels_last)
        passes = [count * len(each) for each in batched(range(groups), at_a_time)]
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
        update(self.state, self.recipe)
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
        update(self.state, self.recipe)
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
        return one_pass(self.state.network, images=count, seeds=range(len(images) // count))

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        assert self.recipe.precision != "auto", "settle() comes first"
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
                waiting(self.device)()
            return time.perf_counter()
        moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        moment.record(torch.cuda.current_stream(self.device))
        if wait:
            waiting(self.device)()
        return moment

    def _between(self, begun: Any, ended: Any) -> float:
        if self.device.type != "cuda":
            return float(ended - begun)
        return float(begun.elapsed_time(ended)) / 1000


def _parts(network: EfficientNet) -> list[torch.nn.Module]:
    """The modules whose times are told apart; the classifier goes with the head."""
    return [network.stem, *network.blocks, network.head]
