"""Several ghost batches in one forward pass, each with its own batch-norm statistics and random draws."""

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
    """Whether one pass of several ghost batches equals a pass for each: if only our batch-norm mixes the images."""
    return isinstance(network, EfficientNet) and all(
        isinstance(module, BatchNorm2d) for module in network.modules() if isinstance(module, _NormBase)
    )


@contextmanager
def ghost_batches(network: nn.Module, *, images: int, seeds: Sequence[int]) -> Iterator[None]:
    """Within: a forward pass takes one ghost batch of ``images`` images for each seed, in order along the batch.

    In ``EfficientNet``, dropout and stochastic depth are drawn before the pass for each ghost batch, so that its draws
    depend on its seed alone and gradient checkpointing drops the same twice. Other models draw during the pass from
    PyTorch's generators, which are seeded here.

    Args:
        seeds: 0 to 2^63 - 1; several only if ``supports_ghost_batches``.
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
    """Set ``kept`` of every dropout and stochastic depth module."""
    device = network.stem.conv.weight.device
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    for drop in drops:
        keep = 1 - (drop.rate if isinstance(drop, DropPath) else drop.p)
        if keep == 1 or not drop.training:
            continue
        shape = (images, 1, 1, 1) if isinstance(drop, DropPath) else (images, network.embed_dim)
        draws = [torch.rand(shape, generator=generator, device=device) for generator in generators]
        drop.kept = (torch.cat(draws) < keep).float() / keep
