"""The optimizer of the published training runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class TensorFlowRMSprop(torch.optim.Optimizer):
    """RMSprop as TensorFlow has it, which the published training runs used.

    It differs from ``torch.optim.RMSprop`` twice: epsilon stands inside the square root, and the
    running mean square starts at 1, so that the first steps are small. The learning rate goes into the
    momentum buffer, so a falling rate does not shrink what was gathered before::

        square = decay * square + (1 - decay) * grad^2
        buffer = momentum * buffer + lr * grad / sqrt(square + epsilon)
        weight = weight - buffer

    Args:
        params: as of any optimizer.
        lr: learning rate.
        decay: of the running mean square.
        momentum: of the buffer.
        epsilon: inside the root.
        weight_decay: L2, added to the gradient.

    Source: TensorFlow's RMSPropOptimizer; epsilon 0.001, decay and momentum 0.9 in the released code.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        decay: float = 0.9,
        momentum: float = 0.9,
        epsilon: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "decay": decay,
            "momentum": momentum,
            "epsilon": epsilon,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step on the gradients at hand.

        Args:
            closure: evaluates the model again and returns the loss, as in any optimizer.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            grads: list[Tensor] = [weight.grad for weight in weights]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["square"] = torch.ones_like(weight)
                    self.state[weight]["buffer"] = torch.zeros_like(weight)
            squares = [self.state[weight]["square"] for weight in weights]
            buffers = [self.state[weight]["buffer"] for weight in weights]
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
            torch._foreach_mul_(squares, group["decay"])
            torch._foreach_addcmul_(squares, grads, grads, value=1 - group["decay"])
            roots = torch._foreach_add(squares, group["epsilon"])
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_addcdiv_(buffers, grads, roots, value=group["lr"])
            torch._foreach_sub_(weights, buffers)
        return loss
