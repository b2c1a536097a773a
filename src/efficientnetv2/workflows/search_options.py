"""The options of an architecture search, as the command line and Python give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from efficientnetv2.utils.shell import option_args


@dataclass(frozen=True)
class SearchOptions:
    """What is searched, and for what; None takes the preset's."""

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
    """How a network is tried; None takes the recipe's."""

    recipe: str | None = None
    epochs: float | None = None
    image_px: int | None = None
    batch_images: int | None = None
    seeds: str = "0"
    seed: int = 0
    settings: Sequence[str] | None = None


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker takes of the machine."""

    device: str = "auto"
    workers: int | None = None
    threads: int | None = None
    memory_gib: float | None = None
    strict: bool = False
    wait: float = 10.0

    @property
    def words(self) -> list[str]:
        """The options as one types them, which a worker that goes on with a study needs again."""
        return option_args(
            device=None if self.device == "auto" else self.device,
            workers=self.workers,
            threads=self.threads,
            memory_gib=self.memory_gib,
            strict=self.strict,
        )
