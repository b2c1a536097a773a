"""Optimizers, and the learning rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from efficientnetv2.models.adapt import classifier_layers, layer_groups
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.training import recipe


class TensorFlowRMSprop(torch.optim.Optimizer):
    """RMSprop as in TensorFlow, which the published training runs used.

    Unlike in ``torch.optim.RMSprop``, epsilon is inside the square root, the running mean square starts at 1, which
    keeps the first steps small, and the learning rate goes into the momentum buffer, so that a later decrease does not
    shrink what the buffer holds. ``weight_decay`` is L2, added to the gradient.

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
        rates = {"lr": lr, "decay": decay, "momentum": momentum}
        super().__init__(params, rates | {"epsilon": epsilon, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update the weights by their gradients."""
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


def build_optimizer(network: nn.Module, optimizer: recipe.Optimizer) -> torch.optim.Optimizer:
    """The optimizer of a recipe, for the parameters that require gradients.

    Each parameter group has ``lr_share``, its multiple of the scheduled rate, and ``begins``, the fraction of the run
    after which it trains. Only weights have weight decay. ``layer_decay`` and ``gradual_unfreeze`` need a ``Network``.
    """
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    factors, starts = _lr_factors_and_starts(network, optimizer)
    excluded = _excluded_from_decay(network)
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            decays = id(weight) not in excluded and _decays(name, weight)
            key = decays, factors.get(id(weight), 1.0), starts.get(id(weight), 0.0)
            groups.setdefault(key, []).append(weight)
    parameters: list[dict[str, Any]] = [
        {
            "params": weights,
            "weight_decay": optimizer.weight_decay if decays else 0.0,
            "lr_share": factor,  # saved in checkpoints, as is "begins"
            "begins": start,
        }
        for (decays, factor, start), weights in groups.items()
    ]
    lr, momentum = optimizer.lr, optimizer.momentum
    if optimizer.name == "rmsprop":
        return TensorFlowRMSprop(parameters, lr, decay=optimizer.beta2, momentum=momentum, epsilon=optimizer.epsilon)
    if optimizer.name == "adamw":
        betas = (momentum, optimizer.beta2)
        return torch.optim.AdamW(parameters, lr, betas=betas, eps=optimizer.epsilon, fused=True)
    sgd = torch.optim.SGD(parameters, lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    if momentum:
        # The first step from a buffer of 0 equals that without a buffer. But in fp16 a first step with overflow is
        # skipped, and then PyTorch's fused SGD would use uninitialized memory.
        for weight in (weight for group in sgd.param_groups for weight in group["params"]):
            sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return sgd


def _decays(name: str, weight: nn.Parameter) -> bool:
    """Whether a parameter has weight decay: no bias, norm, scale (ConvNeXt) or single vector (class token)."""
    last = name.rpartition(".")[2]
    is_vector = weight.numel() == max(weight.shape, default=1)
    # Of a convolution or linear layer with one output, the weight is a vector, but decays.
    return weight.ndim > 1 and "bias" not in last and (last == "weight" or not is_vector)


def _excluded_from_decay(network: nn.Module) -> set[int]:
    """``id`` of the parameters that a timm model excludes from weight decay."""
    excluded: set[int] = set()
    for prefix, module in network.named_modules():
        no_weight_decay = getattr(module, "no_weight_decay", None)
        if callable(no_weight_decay):
            names = {".".join(part for part in (prefix, name) if part) for name in no_weight_decay()}
            excluded |= {id(weight) for name, weight in network.named_parameters() if name in names}
    return excluded


def _lr_factors_and_starts(
    network: nn.Module, optimizer: recipe.Optimizer
) -> tuple[dict[int, float], dict[int, float]]:
    """By ``id`` of the parameter: multiple of the scheduled rate, or 1, and fraction of the run to start at, or 0."""
    factors: dict[int, float] = {}
    starts: dict[int, float] = {}
    if optimizer.layer_decay != 1 or optimizer.gradual_unfreeze is not None:
        assert isinstance(network, Network), "only a Network has layer groups"
        groups = layer_groups(network)
        last = len(groups) - 1
        for depth, weights in enumerate(groups):
            start = (optimizer.gradual_unfreeze or 0.0) * (last - depth) / max(1, last)
            for weight in weights:
                factors[id(weight)] = optimizer.layer_decay ** (last - depth)
                starts[id(weight)] = start
    if optimizer.head_lr_mult != 1:
        # Of a module that is not a ``Network``, the last linear layer is the classifier.
        linears: list[nn.Module] = [module for module in network.modules() if isinstance(module, nn.Linear)]
        for module in classifier_layers(network) if isinstance(network, Network) else linears[-1:]:
            factors |= {id(weight): optimizer.head_lr_mult for weight in module.parameters()}
    return factors, starts


def lr_factor(schedule: recipe.Schedule, step: float, *, steps: int, steps_per_epoch: float) -> float:
    """The learning rate at a step, as a fraction of its peak.

    Warm-up is linear and reaches the peak at its end. As in the released code, the staircase counts from the start of
    the run. The cosine starts where warm-up ends, which is ours (the released code counts it from the start). Warm-up
    is one step ahead of the released code, whose first step has a rate of 0. ``step`` may be between two steps.
    """
    warmup_steps = min(schedule.warmup_epochs * steps_per_epoch, schedule.max_warmup_fraction * steps)
    if step < warmup_steps:
        return min(1.0, (step + 1) / warmup_steps)
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "staircase":
        return float(schedule.gamma ** math.floor(step / steps_per_epoch / schedule.step_epochs))
    fraction = (step - warmup_steps) / max(1.0, steps - warmup_steps)
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * (1 + math.cos(math.pi * fraction)) / 2
