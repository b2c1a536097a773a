"""Replay passes on an NVIDIA GPU from CUDA graphs, without the time that Python needs to start each kernel."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efficientnetv2.models.blocks import Dropout, DropPath
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import error_summary
from efficientnetv2.utils.memory import release_memory

_logger = logging.getLogger(__name__)

# Passes of a kind before it is captured. The first chooses algorithms and compiles kernels. Ours.
WARM_UP = 3

Pass = Callable[[Tensor, Tensor], Tensor]  # Images and targets to the loss; adds to the gradients


class CudaGraphs:
    """Runs passes, and replays those of a kind (shapes, active drops) after the first few.

    Gradients then stay in the same memory, which is set to 0 at the start of a step. The graphs of one image size and
    of the same active drops are kept: they hold its inputs, and the memory of its passes. Where capturing fails, all
    further passes run as usual.
    """

    def __init__(self, network: nn.Module, device: torch.device, world: World, recipe: Recipe) -> None:
        reason = _unsupported(network, device, world, recipe) if recipe.cuda_graphs else None
        self.device, self.enabled = device, recipe.cuda_graphs and reason is None
        if reason is not None and device.type == "cuda":
            self._stop(reason)
        self._graphs: dict[Any, _Graph] = {}
        if self.enabled:
            self._weights = [weight for weight in network.parameters() if weight.requires_grad]
            self._drops = [module for module in network.modules() if isinstance(module, DropPath | Dropout)]
            self._gradients: list[Tensor] = []
            self._seen: Counter[Any] = Counter()

    def run(self, compute: Pass, images: Tensor, targets: Tensor) -> Tensor:
        """The loss of a pass. ``compute`` must do the same for all passes of a kind, within ``ghost_batches``."""
        if not self.enabled:
            return compute(images, targets)
        self._keep_gradients()
        drops = [drop for drop in self._drops if drop.kept is not None]
        inputs = [images, targets, *(drop.kept for drop in drops if drop.kept is not None)]
        kind = (images.shape, targets.shape, tuple(map(id, drops)))
        # Graphs of another size, or of other drops, as after the first stage: their memory is nobody else's.
        if any((size[-1], active) != (images.shape[-1], kind[2]) for size, _, active in self._graphs):
            self._graphs.clear()
            release_memory(self.device)
        self._seen[kind] += 1
        if kind not in self._graphs and self._seen[kind] > WARM_UP:
            failure = None
            try:
                self._graphs[kind] = _captured(compute, inputs, drops)
            except (RuntimeError, MemoryError) as error:
                failure = error_summary(error).rstrip(".")
            if failure is not None:  # now that the error and the tensors of its traceback are gone
                self._graphs.clear()
                self._gradients.clear()
                release_memory(self.device)
                self._stop(failure)
                for drop, kept in zip(drops, inputs[2:], strict=True):
                    drop.kept = kept
        graph = self._graphs.get(kind)
        return compute(images, targets) if graph is None else graph.replay(inputs)

    def clear(self) -> None:
        """Free the memory of the graphs. Passes of a kind that was captured before are captured again."""
        self._graphs.clear()

    def _stop(self, reason: str) -> None:
        self.enabled = False
        _logger.info(f"CUDA graphs are not used: {reason}.")

    def _keep_gradients(self) -> None:
        """At the start of a step, let the weights have their gradients of 0 in the same memory as before."""
        if not self._gradients:
            self._gradients = [torch.zeros_like(weight) for weight in self._weights]
        new = [pair for pair in zip(self._weights, self._gradients, strict=True) if pair[0].grad is not pair[1]]
        if new:
            torch._foreach_zero_([gradient for _, gradient in new])
            for weight, gradient in new:
                weight.grad = gradient


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]  # Read by the graph
    loss: Tensor  # Written by the graph

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        torch._foreach_copy_(self.inputs, list(inputs))
        self.graph.replay()
        return self.loss


def _unsupported(network: nn.Module, device: torch.device, world: World, recipe: Recipe) -> str | None:
    """Why there can be no graphs: all that changes between passes must be in their inputs."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if torch.version.hip is not None:  # not tested
        return "the GPU is not from NVIDIA"
    if world.is_distributed:
        return "there are several processes"
    if not isinstance(network, EfficientNet):  # others may draw, or wait for the device
        return "the model is of another library"
    if network.recomputed:
        return "checkpoint_stages is set"
    return "values of `progressive` change at every step" if recipe.progressive.changes_always else None


def _captured(compute: Pass, inputs: Sequence[Tensor], drops: Sequence[DropPath | Dropout]) -> _Graph:
    """Record the kernels of a pass, without running them."""
    device = inputs[0].device
    fixed = [tensor.clone() for tensor in inputs]
    for drop, kept in zip(drops, fixed[2:], strict=True):
        drop.kept = kept
    # A stream of this device, not PyTorch's own for graphs. Other threads may go on to pin memory for the next images.
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        before = torch.cuda.current_stream(device)
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                loss = compute(fixed[0], fixed[1])
        finally:
            torch.cuda.set_stream(before)  # which PyTorch leaves out where capturing fails
    return _Graph(graph, fixed, loss)
