"""Several groups of pictures in one forward pass, and what each draws, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from efficientnetv2.models.blocks import Dropout, DropPath
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.layers import BatchNorm2d


def supports_ghost_batches(network: nn.Module) -> bool:
    """Whether a pass of several groups gives what a pass for each would.

    True of our networks, whose only layers that mix the pictures of a pass keep groups apart. Of anybody else's
    network nobody knows: its groups run one after another.

    Args:
        network: any.
    """
    return isinstance(network, EfficientNet) and all(
        isinstance(module, BatchNorm2d) for module in network.modules() if isinstance(module, _NormBase)
    )


@contextmanager
def ghost_batches(network: nn.Module, *, images: int, seeds: Sequence[int]) -> Iterator[None]:
    """Within: a forward pass takes one group for each seed, one after another along the batch.

    In our networks dropout and stochastic depth are drawn here, group by group, before the pass: so a group's draws
    depend on its seed alone, and a pass that is computed twice (``recompute``) drops the same twice. Other networks
    draw during the pass, from PyTorch's own generators, which are seeded here.

    Args:
        network: in training mode.
        images: of each group.
        seeds: one per group, 0 to 2^63 - 1; several only where ``supports_ghost_batches``.
    """
    if not isinstance(network, EfficientNet):
        assert len(seeds) == 1, "check supports_ghost_batches first"
        torch.manual_seed(seeds[0])
        yield
        return
    drops = [module for module in network.modules() if isinstance(module, DropPath | Dropout)]
    norms = [module for module in network.modules() if isinstance(module, BatchNorm2d)]
    _draw(drops, network, images, seeds)
    for norm in norms:
        norm.groups = len(seeds)
    try:
        yield
    finally:
        for drop in drops:
            drop.kept = None
        for norm in norms:
            norm.groups = 1


def _draw(
    drops: Sequence[DropPath | Dropout], network: EfficientNet, images: int, seeds: Sequence[int]
) -> None:
    """Give every module that drops something what it keeps, scaled up by what it drops."""
    device = network.stem.conv.weight.device
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    for drop in drops:
        keep = 1 - (drop.rate if isinstance(drop, DropPath) else drop.p)
        if keep == 1 or not drop.training:
            continue
        shape = (images, 1, 1, 1) if isinstance(drop, DropPath) else (images, network.embed_dim)
        draws = [torch.rand(shape, generator=generator, device=device) for generator in generators]
        drop.kept = (torch.cat(draws) < keep).float() / keep
