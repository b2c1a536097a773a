"""The options of an architecture search, for the command line and Python. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from efficientnetv2.utils.shell import option_args


@dataclass(frozen=True)
class SearchOptions:
    """What is searched, and the reward. None takes the preset's value."""

    preset: str = "small"
    space: str | None = None
    sampler: str | None = None
    w: float | None = None
    v: float | None = None
    inference_exponent: float | None = None
    memory_exponent: float | None = None
    prune: bool = True
    step_time: str = "measured"


@dataclass(frozen=True)
class ProxyOptions:
    """How an architecture is trained in a trial. None takes the recipe's value."""

    recipe: str | None = None
    epochs: float | None = None
    image_size: int | None = None
    batch_size: int | None = None
    seeds: str = "0"
    seed: int = 0
    settings: Sequence[str] | None = None


@dataclass(frozen=True)
class WorkerOptions:
    """The share of the machine that a worker uses. ``wait`` is in minutes."""

    device: str = "auto"
    workers: int | None = None
    threads: int | None = None
    memory_gib: float | None = None
    strict: bool = False
    wait: float = 10.0

    @property
    def args(self) -> list[str]:
        """The options as command-line arguments, for the command that resumes."""
        return option_args(
            device=None if self.device == "auto" else self.device,
            workers=self.workers,
            threads=self.threads,
            memory_gib=self.memory_gib,
            strict=self.strict,
        )
