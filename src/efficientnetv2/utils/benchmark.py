"""Benchmarks: warmed-up, interleaved, repeated timings.

Calls of the same round meet the same conditions, so a ratio is taken round by round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TimingStats:
    """Median and quartiles over rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: list[float]) -> TimingStats:
        """From at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def interleave(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of some calls by name, one per round. The order is reversed with every round.

    ``wait`` is called before each reading of the clock, see `synchronizer`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warmup + rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            wait()
            began = time.perf_counter()
            sides[name]()
            wait()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def speed_ratio(seconds: Mapping[str, list[float]], *, of: str, to: str) -> TimingStats:
    """How many times as fast ``of`` is as ``to``, round by round."""
    return TimingStats.of([theirs / ours for ours, theirs in zip(seconds[of], seconds[to], strict=True)])


def synchronizer(device: torch.device) -> Callable[[], object]:
    """A call that waits until a device has done all its work."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None
