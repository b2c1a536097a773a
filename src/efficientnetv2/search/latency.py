"""How long a network takes at inference for one picture on this device."""

from __future__ import annotations

import statistics

import torch

from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.timing import alternate, waiting
from efficientnetv2.inference.accelerate import place
from efficientnetv2.inference.predict import evaluating
from efficientnetv2.models.create import create

# Both ours. A pass of a small network takes milliseconds, and single ones are easily disturbed.
_WARM_UP, _ROUNDS = 5, 30


def latency(architecture: Architecture, *, image_px: int, num_classes: int, device: torch.device) -> float:
    """Seconds of a forward pass of one picture, a batch of its own, as ``predict`` computes; the median of 30 rounds.

    Args:
        architecture: the network.
        image_px: side of the picture, which is noise.
        num_classes: of the classifier.
        device: to run on, which nobody else should use meanwhile.

    Raises:
        RuntimeError: memory ran out (``base.memory.is_out_of_memory``).
    """
    network = create(architecture, num_classes=num_classes)
    place(network, device)
    noise = torch.rand(1, network.in_channels, image_px, image_px, generator=torch.Generator().manual_seed(0))
    picture = noise.to(device, memory_format=torch.channels_last)
    with evaluating(network):
        rounds = alternate(
            {"pass": lambda: network(picture)}, rounds=_ROUNDS, warmup=_WARM_UP, wait=waiting(device)
        )
    return statistics.median(rounds["pass"])
