"""How much of the paper's work a reproduction does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from efficientnetv2.base.errors import InputError, did_you_mean

ScaleName = Literal["tiny", "small", "paper"]
#: As ``Scale.data``.
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Scale:
    """What is cut down, and how far.

    Args:
        name: on the command line.
        px_share: of the paper's picture sizes where speed is measured.
        batch_share: of the paper's batches where speed is measured; at least 2 pictures remain.
        rounds: that the speed of training steps is measured over.
        answer_rounds: that the time of answers is measured over.
        seeds: that an accuracy is the mean of, unless the user says otherwise.
        data: that runs train on, unless the user names some or the table has its own: a standard set, or the pictures
            that come with the repository (``EMBEDDED``). None leaves it to the user.
    """

    name: ScaleName
    px_share: float
    batch_share: float
    rounds: int
    answer_rounds: int
    seeds: int
    data: str | None

    def px(self, paper_px: int) -> int:
        """A size of the paper's at this scale: a multiple of 16, at least 32."""
        return max(32, round(paper_px * self.px_share / 16) * 16) if self.px_share < 1 else paper_px

    def batch(self, paper_images: int) -> int:
        """A batch of the paper's at this scale."""
        return max(2, round(paper_images * self.batch_share))


# Ours: tiny shows in minutes on two cores that everything runs, small takes hours there, paper is the paper's work.
SCALES = {
    scale.name: scale
    for scale in (
        Scale("tiny", px_share=0.25, batch_share=0.17, rounds=2, answer_rounds=9, seeds=1, data=EMBEDDED),
        Scale(
            "small", px_share=0.5, batch_share=0.25, rounds=7, answer_rounds=15, seeds=3, data="imagenette"
        ),
        Scale("paper", px_share=1.0, batch_share=1.0, rounds=15, answer_rounds=15, seeds=5, data=None),
    )
}


def named(name: str) -> Scale:
    """The scale of that name.

    Raises:
        InputError: there is none.
    """
    for scale in SCALES.values():
        if scale.name == name:
            return scale
    raise InputError(f"--scale is '{name}', but is {', '.join(SCALES)}{did_you_mean(name, list(SCALES))}")
