"""The time of a picture at inference is told at the pace of the machine when the search began."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests.nas.test_steptime import RECIPE
from tests.nas.test_trial import TINY

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.nas import latency as module
from efficientnetv2.nas.latency import ReferenceTiming, inference_latency
from efficientnetv2.utils import timer

BACKBONE = get_architecture("efficientnetv2_b0")
SECONDS = {TINY: 0.002, BACKBONE: 0.004}


class Clock:
    """Goes on while a network computes, the machine so many times as slow as it was."""

    def __init__(self, slowness: float) -> None:
        self.now, self.slowness = 0.0, slowness

    def pass_of(self, architecture: object, **words: object) -> torch.nn.Module:
        """Stands for a network."""
        clock, seconds = self, SECONDS[architecture]

        class Passing(torch.nn.Module):
            in_channels = 3

            def forward(self, picture: torch.Tensor) -> None:
                clock.now += clock.slowness * seconds

        return Passing()


@pytest.mark.parametrize(
    ("slowness", "pace", "told"),
    [
        (1.1, ReferenceTiming(BACKBONE, RECIPE, 1.0, inference_seconds=0.004), 0.002),
        (1.0, ReferenceTiming(BACKBONE, RECIPE, 1.0, inference_seconds=0.008), 0.004),
        (1.1, ReferenceTiming(BACKBONE, RECIPE, 1.0), 0.0022),
        (1.1, None, 0.0022),
    ],
)
def test_a_machine_that_is_slower_changes_no_time_that_is_told_at_a_pace(slowness, pace, told, monkeypatch):
    clock = Clock(slowness)
    monkeypatch.setattr(module, "create", clock.pass_of)
    monkeypatch.setattr(timer, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    found = inference_latency(TINY, image_size=32, num_classes=3, device=torch.device("cpu"), reference=pace)
    assert found == pytest.approx(told)
