"""Sides that did the same work in turn: how fast each was, and how far ours is ahead."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from efficientnetv2.base.timing import Spread, ratio

OURS = "efficientnetv2"


@dataclass(frozen=True)
class Sides:
    """Measured work of several sides.

    Args:
        seconds: of a round: side -> one per round.
        images: of a round.
    """

    seconds: dict[str, list[float]]
    images: int

    def images_per_s(self, side: str) -> Spread:
        """Median and quartiles over the rounds."""
        return Spread.of([self.images / one for one in self.seconds[side]])

    def ahead_of(self, side: str, *, ours: str = OURS) -> Spread:
        """How many times as fast ours is, round by round.

        Args:
            side: that it is compared with.
            ours: which of ours.
        """
        return ratio(self.seconds, of=ours, to=side)

    def side_json(self, side: str) -> dict[str, Any]:
        """Images per second, our ratio over it, and the raw seconds."""
        return {
            "images_per_s": asdict(self.images_per_s(side)),
            "ours_ahead": asdict(self.ahead_of(side)),
            "seconds": self.seconds[side],
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, ``side_json`` of each side."""
        return {"sides": {side: self.side_json(side) for side in self.seconds}}

    def row(self, side: str) -> list[str]:
        """Of a table: its name, images per second, their quartiles, how many times as fast ours is."""
        speed = self.images_per_s(side)
        return [
            side,
            f"{speed.median:.1f}",
            f"{speed.low:.1f} to {speed.high:.1f}",
            f"{self.ahead_of(side).median:.2f}",
        ]


COLUMNS = ["side", "images/s", "quartiles", "ours is faster by"]
