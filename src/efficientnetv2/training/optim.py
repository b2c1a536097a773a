"""Optimizers, the learning rate as a function of the step, and the moving average of weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.optimizer import ParamsT

from efficientnetv2.models.fit import layer_groups
from efficientnetv2.models.network import Network
from efficientnetv2.models.regularize import set_batch_norm
from efficientnetv2.training import recipe as recipes
from efficientnetv2.training.distributed import ALONE, World, sum_


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


def build(network: nn.Module, optimizer: recipes.Optimizer) -> torch.optim.Optimizer:
    """The optimizer of a recipe: decay for weights alone, the classifier and each depth at its own rate.

    Args:
        network: whose parameters to train; those with ``requires_grad`` off are left out.
        optimizer: of the recipe; with a ``layer_decay`` below 1 the network is a ``Network``.

    Returns:
        With parameter groups of equal decay, rate and beginning; each has ``lr_share``, its rate over the scheduled
        one, and ``begins``, the share of the run from which on it learns.
    """
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    shares, beginnings = _lr_shares(network, optimizer), _beginnings(network, optimizer)
    for weight in network.parameters():
        if weight.requires_grad:
            share, begins = shares.get(id(weight), 1.0), beginnings.get(id(weight), 0.0)
            # Biases and the gammas and betas of norms are the parameters of one dimension.
            groups.setdefault((weight.ndim > 1, share, begins), []).append(weight)
    parameters: list[dict[str, Any]] = [
        {
            "params": weights,
            "weight_decay": optimizer.weight_decay if decays else 0.0,
            "lr_share": share,
            "begins": begins,
        }
        for (decays, share, begins), weights in groups.items()
    ]
    if optimizer.kind == "rmsprop":
        return TensorFlowRMSprop(
            parameters,
            optimizer.lr,
            decay=optimizer.decay,
            momentum=optimizer.momentum,
            epsilon=optimizer.epsilon,
        )
    if optimizer.kind == "sgd":
        return torch.optim.SGD(
            parameters,
            optimizer.lr,
            momentum=optimizer.momentum,
            nesterov=optimizer.momentum > 0,
            fused=True,
        )
    betas = (optimizer.momentum, optimizer.decay)
    return torch.optim.AdamW(parameters, optimizer.lr, betas=betas, eps=optimizer.epsilon, fused=True)


def _lr_shares(network: nn.Module, optimizer: recipes.Optimizer) -> dict[int, float]:
    """Rates over the scheduled one, by the parameter's ``id``; 1 for those that are not in it."""
    shares: dict[int, float] = {}
    if optimizer.layer_decay != 1:
        assert isinstance(network, Network), "layers have depths in a Network"
        depths = layer_groups(network)
        for depth, weights in enumerate(depths):
            share = optimizer.layer_decay ** (len(depths) - 1 - depth)
            shares |= {id(weight): share for weight in weights}
    if optimizer.head_lr != 1:
        shares |= {id(weight): optimizer.head_lr for weight in _classifier(network).parameters()}
    return shares


def _beginnings(network: nn.Module, optimizer: recipes.Optimizer) -> dict[int, float]:
    """Shares of the run from which on parameters learn, by their ``id``; 0 for those that are not in it."""
    if optimizer.unfreeze is None:
        return {}
    assert isinstance(network, Network), "layers have depths in a Network"
    depths = layer_groups(network)
    last = max(1, len(depths) - 1)
    return {
        id(weight): optimizer.unfreeze * (last - depth) / last
        for depth, weights in enumerate(depths)
        for weight in weights
    }


def _classifier(network: nn.Module) -> nn.Module:
    """The last linear layer: the classifier of every network of this family, and of most others."""
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return linears[-1] if linears else nn.Identity()


def lr_share(schedule: recipes.Schedule, step: int, *, steps: int, steps_per_epoch: float) -> float:
    """The learning rate at a step, as a share of its peak.

    Warm-up grows linearly and reaches the peak at its end; the shape is counted from the run's start,
    as in the released code, so the staircase has begun to fall when warm-up ends.

    Args:
        schedule: of the recipe.
        step: 0 ≤ step < steps.
        steps: of the run.
        steps_per_epoch: may be a fraction.
    """
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return min(1.0, (step + 1) / warmup_steps)
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "staircase":
        return float(schedule.factor ** math.floor(step / steps_per_epoch / schedule.every_epochs))
    fraction = (step - warmup_steps) / max(1.0, steps - warmup_steps)
    return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * fraction)) / 2


class EMA:
    """Exponential moving average of all weights and batch-norm statistics.

    Args:
        network: to follow.
        decay: in the long run. Early on it is capped by (1 + step) / (10 + step), so that the average
            forgets the random start.

    Source: arXiv:2104.00298, section 5.1 (0.9999); cap and statistics as the released code.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._averages = _floats(self.network)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards the network as it is after this step (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, _floats(network), 1 - decay)


def _floats(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in network.state_dict(keep_vars=False).values() if tensor.is_floating_point()]


class GroupedStatistics:
    """Batch-norm statistics of a step made of several groups: updated as one.

    Each group is normalised by its own statistics; the running ones move once per step, towards the
    mean over the groups, and a step counts as one batch. So they depend neither on how many groups run at a
    time nor on how many processes share them. With one group PyTorch's own update does the same, and this does
    nothing.

    Args:
        network: whose batch-norms to look after.
        groups: of a step.
        momentum: PyTorch's: share of the new statistics.
        world: the processes that share the groups.
    """

    def __init__(self, network: nn.Module, *, groups: int, momentum: float, world: World = ALONE) -> None:
        self.groups, self.momentum, self.world = groups, momentum, world
        # Blocks that are computed twice put the same statistics there twice: that is harmless only with momentum 1.
        self.apart = groups > 1 or bool(getattr(network, "recomputed", False))
        self.norms = [
            module
            for module in network.modules()
            if isinstance(module, _NormBase) and module.track_running_stats
        ]
        set_batch_norm(network, momentum=1.0 if self.apart else momentum)

    @torch.no_grad()
    def begin_step(self) -> None:
        """Before the first group: put the running statistics aside."""
        if self.apart:
            self._before = [tensor.clone() for tensor in self._running()]
            self._sums = [torch.zeros_like(tensor) for tensor in self._before]
            self._batches = [count.clone() for count in self._counts()]

    @torch.no_grad()
    def begin_again(self) -> None:
        """Before the first group is computed a second time: forget what the step's groups had."""
        if self.apart and self._before:  # empty where every batch-norm is frozen
            torch._foreach_zero_(self._sums)

    @torch.no_grad()
    def after_groups(self, count: int) -> None:
        """After each forward pass of so many groups: with momentum 1 the buffers hold the mean of theirs."""
        if self.apart and self._before:
            torch._foreach_add_(self._sums, self._running(), alpha=count)

    @torch.no_grad()
    def end_step(self, loss: Tensor) -> None:
        """After the last group: move the statistics put aside towards the groups' mean.

        Args:
            loss: of this process's groups, a scalar that becomes that of all groups: it goes in the same message.
        """
        sum_(self.world, [loss, *(self._sums if self.apart else [])])
        if self.apart and self._before:
            torch._foreach_div_(self._sums, self.groups)
            torch._foreach_lerp_(self._before, self._sums, self.momentum)
            torch._foreach_copy_(self._running(), self._before)
            torch._foreach_add_(self._batches, 1)
            torch._foreach_copy_(self._counts(), self._batches)

    def _running(self) -> list[Tensor]:
        return [
            tensor
            for norm in self.norms
            if norm.training
            for tensor in (norm.running_mean, norm.running_var)
            if tensor is not None
        ]

    def _counts(self) -> list[Tensor]:
        return [
            norm.num_batches_tracked
            for norm in self.norms
            if norm.training and norm.num_batches_tracked is not None
        ]
