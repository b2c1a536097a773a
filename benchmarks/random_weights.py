"""Weights that make parity mean something, and a distance that does too.

With PyTorch's own initialisation every batch-norm is the identity, and a wrong epsilon, a forgotten bias or a wrong
padding hardly shows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randomise(network: nn.Module, pictures: Tensor | None = None, *, seed: int = 0) -> nn.Module:
    """Make every number of a network random, batch-norm's too, with activations of ordinary size.

    Args:
        network: of three channels; changed in place, and left in evaluation mode.
        images: (N, 3, H, W) float, like those it will be given; None is noise.
        seed: of the numbers.
    """

    def settle(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Statistics near those of what really comes in, so that nothing dies or explodes; but away from
        # them, so that they matter.
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
        norm.running_mean.copy_(mean + 0.3 * variance.sqrt() * torch.randn_like(mean))
        norm.running_var.copy_(variance * torch.empty_like(mean).uniform_(0.5, 1.5) + 0.1 * variance.mean())

    torch.manual_seed(seed)
    hooks = []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.8)
            nn.init.normal_(module.bias, std=0.3)
            hooks.append(module.register_forward_pre_hook(settle))
    with torch.no_grad():
        network.eval()(torch.randn(8, 3, 96, 96) if pictures is None else pictures)
    for hook in hooks:
        hook.remove()
    return network


def distance(got: Tensor, expected: Tensor) -> float:
    """The largest difference of two networks' logits, over the spread of those expected."""
    assert expected.isfinite().all()
    # Dead or exploding logits would prove nothing. (Of two photographs at 480 px one may have a spread of 16, in a
    # network as deep as M.)
    assert 0.05 < expected.std() < 50
    return float((got - expected).abs().max() / expected.std())
