"""Random weights and a distance with which a comparison of logits can fail.

With PyTorch's default initialization each batch-norm is the identity. Then a wrong epsilon, a missing bias or a wrong
padding hardly changes the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randomise(network: nn.Module, pictures: Tensor | None = None, *, seed: int = 0) -> nn.Module:
    """Make all parameters and buffers random, also those of batch-norm, with activations of ordinary size.

    Args:
        network: Model with three input channels; changed in place, and left in evaluation mode.
        pictures: (N, 3, H, W) float, similar to the images of the comparison. None means noise.
        seed: Random seed.
    """

    def settle(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Statistics near those of the inputs, so that activations neither vanish nor explode; but different, so that
        # they matter.
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
    """Compute the largest difference of the logits / the standard deviation of the expected logits."""
    assert expected.isfinite().all()
    # Vanishing or exploding logits would prove nothing. (In a model as deep as M, two photographs at 480 px can have a
    # standard deviation of 16.)
    assert 0.05 < expected.std() < 50
    return float((got - expected).abs().max() / expected.std())
