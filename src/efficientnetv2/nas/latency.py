"""How long a network takes at inference for one picture on this device."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from functools import partial

import torch

from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.timing import alternate, ratio, waiting
from efficientnetv2.inference.accelerate import place
from efficientnetv2.inference.predict import evaluating
from efficientnetv2.models.create import create
from efficientnetv2.nas.steptime import Pace

# Both ours. A pass of a small network takes milliseconds, and single ones are easily disturbed.
_WARM_UP, _ROUNDS = 5, 30


def latency(
    architecture: Architecture,
    *,
    image_px: int,
    num_classes: int,
    device: torch.device,
    pace: Pace | None = None,
) -> float:
    """Seconds of a forward pass of one picture, a batch of its own, as ``predict`` computes; the median of 30 rounds.

    Args:
        architecture: the network.
        image_px: side of the picture, which is noise.
        num_classes: of the classifier.
        device: to run on, which nobody else should use meanwhile.
        pace: whose network takes a pass in every round too; the seconds are told at the pace at which its pass takes
            ``inference_seconds``. None, or a pace without these, tells them as they were.

    Raises:
        RuntimeError: memory ran out (``base.memory.is_out_of_memory``).
    """
    both = {"pass": architecture}
    if pace is not None and pace.inference_seconds is not None:
        both["pace"] = pace.architecture
    networks = {name: create(one, num_classes=num_classes) for name, one in both.items()}
    channels = networks["pass"].in_channels
    noise = torch.rand(1, channels, image_px, image_px, generator=torch.Generator().manual_seed(0))
    picture = noise.to(device, memory_format=torch.channels_last)
    with ExitStack() as evaluated:
        for network in networks.values():
            place(network, device)
            evaluated.enter_context(evaluating(network))
        passes = {name: partial(network, picture) for name, network in networks.items()}
        rounds = alternate(passes, rounds=_ROUNDS, warmup=_WARM_UP, wait=waiting(device))
    if pace is None or pace.inference_seconds is None:
        return statistics.median(rounds["pass"])
    return pace.inference_seconds * ratio(rounds, of="pace", to="pass").median
