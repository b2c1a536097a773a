"""Optimizers, the learning rate as a function of the step, and the moving average of weights."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from efficientnetv2.models.adapt import classifiers_of, layer_groups
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.training import recipe


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


def build_optimizer(network: nn.Module, optimizer: recipe.Optimizer) -> torch.optim.Optimizer:
    """The optimizer of a recipe: decay for weights alone, the classifier and each depth at its own rate.

    Args:
        network: whose parameters to train; those with ``requires_grad`` off are left out.
        optimizer: of the recipe; with a ``layer_decay`` below 1 the network is a ``Network``.

    Returns:
        With parameter groups of equal decay, rate and beginning; each has ``lr_factor``, its rate over the scheduled
        one, and ``begins``, the share of the run from which on it learns.
    """
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    shares, beginnings = _lr_shares(network, optimizer), _beginnings(network, optimizer)
    spared = _spared(network)
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            share, begins = shares.get(id(weight), 1.0), beginnings.get(id(weight), 0.0)
            decays = id(weight) not in spared and _decays(name, weight)
            groups.setdefault((decays, share, begins), []).append(weight)
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
        sgd = torch.optim.SGD(
            parameters,
            optimizer.lr,
            momentum=optimizer.momentum,
            nesterov=optimizer.momentum > 0,
            fused=True,
        )
        if optimizer.momentum:
            # From 0 the first step comes to what it does without. But a first step that is left out, for gradients
            # overflowed in fp16, would leave PyTorch's fused one with whatever was in memory.
            for weight in (one for group in sgd.param_groups for one in group["params"]):
                sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return sgd
    betas = (optimizer.momentum, optimizer.decay)
    return torch.optim.AdamW(parameters, optimizer.lr, betas=betas, eps=optimizer.epsilon, fused=True)


def _decays(name: str, weight: nn.Parameter) -> bool:
    """Whether a parameter is a weight: no bias or table of them, and nothing that scales or stands for one vector.

    Biases and the gammas and betas of norms have one dimension; others have some of length 1 beside it, as the scales
    of ConvNeXt's blocks or a transformer's class token. A convolution or a linear layer of one output is a weight.
    """
    last = name.rpartition(".")[2]
    one_vector = weight.numel() == max(weight.shape, default=1)
    return weight.ndim > 1 and "bias" not in last and (last == "weight" or not one_vector)


def _spared(network: nn.Module) -> set[int]:
    """Parameters, by their ``id``, that a network of timm's names itself as not to be decayed."""
    spared: set[int] = set()
    for prefix, module in network.named_modules():
        named = getattr(module, "no_weight_decay", None)
        if callable(named):
            names = {".".join(part for part in (prefix, name) if part) for name in named()}
            spared |= {id(weight) for name, weight in network.named_parameters() if name in names}
    return spared


def _lr_shares(network: nn.Module, optimizer: recipe.Optimizer) -> dict[int, float]:
    """Rates over the scheduled one, by the parameter's ``id``; 1 for those that are not in it."""
    shares: dict[int, float] = {}
    if optimizer.layer_decay != 1:
        assert isinstance(network, Network), "layers have depths in a Network"
        depths = layer_groups(network)
        for depth, weights in enumerate(depths):
            share = optimizer.layer_decay ** (len(depths) - 1 - depth)
            shares |= {id(weight): share for weight in weights}
    if optimizer.head_lr != 1:
        shares |= {id(weight): optimizer.head_lr for weight in _of_classifiers(network)}
    return shares


def _beginnings(network: nn.Module, optimizer: recipe.Optimizer) -> dict[int, float]:
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


def _of_classifiers(network: nn.Module) -> list[nn.Parameter]:
    """Parameters of the classifiers; of a module that is no ``Network``, of its last linear layer."""
    linears: list[nn.Module] = [module for module in network.modules() if isinstance(module, nn.Linear)]
    found = classifiers_of(network) if isinstance(network, Network) else linears[-1:]
    return [weight for module in found for weight in module.parameters()]


def lr_factor(schedule: recipe.Schedule, step: float, *, steps: int, steps_per_epoch: float) -> float:
    """The learning rate at a step, as a share of its peak.

    Warm-up grows linearly and reaches the peak at its end. The staircase is counted from the run's start, as in the
    released code, so it has begun to fall when warm-up ends; the cosine begins there, which is ours (the released code
    counts it from the start too). Warm-up is one step ahead of the released code, whose first step has a rate of 0.

    Args:
        schedule: of the recipe.
        step: 0 ≤ step < steps. A fraction lies between two steps of the schedule.
        steps: of the run.
        steps_per_epoch: may be a fraction.
    """
    warmup_steps = min(schedule.warmup_epochs * steps_per_epoch, schedule.warmup_share * steps)
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

    Source: arXiv:2104.00298, section 5.1 (0.9999); cap and statistics as the released code, but the cap counts steps
        from 0, where the released code takes its counter of finished steps: one step apart.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        # Found once: with a step of a tenth of a second, walking through all modules after each is a percent of it.
        self._places, self._followed = _places(network), weakref.ref(network)
        self._averages = [held[name] for held, name in _places(self.network)]

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards the network as it is after this step (counted from 0)."""
        assert network is self._followed(), "it is the one that this follows"
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, [held[name] for held, name in self._places], 1 - decay)


def _places(network: nn.Module) -> list[tuple[Mapping[str, Any], str]]:
    """Where a network's floating-point weights and statistics stand, each once, also where modules share one."""
    found: dict[tuple[int, torch.Size], tuple[Mapping[str, Any], str]] = {}
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, one in held.items():
                if name in module._non_persistent_buffers_set:
                    continue  # made anew with the network, as it stands in no file
                if one is not None and one.is_floating_point():
                    found.setdefault((one.data_ptr(), one.shape), (held, name))
    return list(found.values())
