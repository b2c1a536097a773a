"""The scales of a reproduction: how much of the paper's work it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: As ``Scale.data``: the images in examples/.
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Scale:
    """What is reduced, and how far.

    ``size_factor`` and ``batch_factor`` reduce the paper's image sizes and batches where speed is measured. ``rounds``
    are of training steps, ``latency_rounds`` of forward passes, ``seeds`` the default number of runs per cell. ``data``
    is the default dataset of runs; None requires ``--data``.
    """

    name: Literal["tiny", "small", "paper"]
    size_factor: float
    batch_factor: float
    rounds: int
    latency_rounds: int
    seeds: int
    data: str | None

    def px(self, paper_px: int) -> int:
        """An image size of the paper at this scale: a multiple of 16, at least 32."""
        return max(32, round(paper_px * self.size_factor / 16) * 16) if self.size_factor < 1 else paper_px

    def batch(self, paper_images: int) -> int:
        """A batch size of the paper at this scale, at least 2."""
        return max(2, round(paper_images * self.batch_factor))


# Ours: tiny shows in minutes on two cores that everything runs, small takes hours there, paper is the paper's work.
SCALES: dict[str, Scale] = {
    "tiny": Scale("tiny", 0.25, 0.17, rounds=2, latency_rounds=9, seeds=1, data=EMBEDDED),
    "small": Scale("small", 0.5, 0.25, rounds=7, latency_rounds=15, seeds=3, data="imagenette"),
    "paper": Scale("paper", 1.0, 1.0, rounds=15, latency_rounds=15, seeds=5, data=None),
}
