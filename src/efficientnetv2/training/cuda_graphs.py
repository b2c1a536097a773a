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
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import error_summary
from efficientnetv2.utils.memory import release_memory

_logger = logging.getLogger(__name__)

# Passes of a kind before it is captured. The first chooses algorithms and compiles kernels. Ours.
_WARM_UP = 3
# Most graphs of a run: each takes some megabytes, and sizes that change at every step would need one each. Ours.
_MOST_GRAPHS = 32

Pass = Callable[[Tensor, Tensor], Tensor]  # Images and targets to the loss; adds to the gradients


class CudaGraphs:
    """Runs passes, and replays those of a kind (shapes, active drops) after the first few.

    Gradients then stay in the same memory, which is set to 0 at the start of a step. Where capturing fails, or
    ``release`` is called, all further passes run as usual.
    """

    def __init__(self, network: nn.Module, device: torch.device, world: World, *, enabled: bool) -> None:
        self.device = device
        self.enabled = enabled and _supported(network, device, world)
        if self.enabled:
            self._weights = [weight for weight in network.parameters() if weight.requires_grad]
            self._drops = [module for module in network.modules() if isinstance(module, DropPath | Dropout)]
            self._gradients: list[Tensor] = []
            self._seen: Counter[Any] = Counter()
            self._graphs: dict[Any, _Graph] = {}
            self._pool = torch.cuda.graph_pool_handle()

    def run(self, compute: Pass, images: Tensor, targets: Tensor) -> Tensor:
        """The loss of a pass. ``compute`` must do the same for all passes of a kind, within ``ghost_batches``."""
        if not self.enabled:
            return compute(images, targets)
        self._keep_gradients()
        drops = [drop for drop in self._drops if drop.kept is not None]
        inputs = [images, targets, *(drop.kept for drop in drops if drop.kept is not None)]
        kind = (tuple(images.shape), tuple(targets.shape), tuple(map(id, drops)))
        self._seen[kind] += 1
        if kind not in self._graphs:
            if self._seen[kind] <= _WARM_UP or len(self._graphs) >= _MOST_GRAPHS:
                return compute(images, targets)
            try:
                self._graphs[kind] = _captured(compute, inputs, drops, self._pool)
            except (RuntimeError, MemoryError) as error:
                _logger.info(f"CUDA graphs are not used from here on: {error_summary(error)}")
                self.release()
                for drop, kept in zip(drops, inputs[2:], strict=True):
                    drop.kept = kept
                return compute(images, targets)
        return self._graphs[kind].replay(inputs)

    @property
    def captured(self) -> bool:
        """Whether there are graphs, which keep the memory of their passes."""
        return self.enabled and bool(self._graphs)

    def release(self) -> None:
        """Free the memory of all graphs, and use none from now on."""
        self.enabled = False
        self._graphs.clear()
        self._gradients.clear()
        release_memory(self.device)

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


def _supported(network: nn.Module, device: torch.device, world: World) -> bool:
    """Whether all that changes between passes is in their inputs. Other networks may draw, or wait for the device."""
    return (
        device.type == "cuda"
        and not world.is_distributed
        and isinstance(network, EfficientNet)
        and not network.recomputed
    )


def _captured(compute: Pass, inputs: Sequence[Tensor], drops: Sequence[DropPath | Dropout], pool: Any) -> _Graph:
    """Record the kernels of a pass, without running them."""
    fixed = [tensor.clone() for tensor in inputs]
    for drop, kept in zip(drops, fixed[2:], strict=True):
        drop.kept = kept
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on to pin memory for the next images.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        loss = compute(fixed[0], fixed[1])
    return _Graph(graph, fixed, loss)
