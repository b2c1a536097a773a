"""Gradient accumulation: groups per pass follow the memory, and the result of a step does not depend on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class MicrobatchPlan:
    """Groups per pass by image size. A size between two takes the number of the larger; an unknown size takes 1."""

    by_px: Mapping[int, int] = field(default_factory=dict)

    def at(self, image_size: int) -> int:
        """Groups per pass at an image size, at least 1."""
        known = min((px for px in self.by_px if px >= image_size), default=None)
        return 1 if known is None else self.by_px[known]

    @property
    def most(self) -> int:
        """The largest number at any size."""
        return max(self.by_px.values(), default=1)

    def __str__(self) -> str:
        """Text such as ``8 of 128 px, 3 of 300 px``."""
        return ", ".join(f"{count} of {px} px" for px, count in sorted(self.by_px.items()))

    @classmethod
    def from_json(cls, plain: Mapping[str, int]) -> MicrobatchPlan:
        """The plan whose ``by_px`` was written as JSON, where the sizes are text."""
        return cls({int(px): count for px, count in plain.items()})

    def halved(self, image_size: int) -> MicrobatchPlan:
        """Half as many groups at a size, and at most that at larger sizes."""
        half = max(1, self.at(image_size) // 2)
        by_px = {px: min(count, half) if px >= image_size else count for px, count in self.by_px.items()}
        return MicrobatchPlan(by_px | {image_size: half})


ONE_GROUP_PER_PASS = MicrobatchPlan()


def chunks(groups: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The groups of a step in parts of ``size``; the last may be smaller."""
    for first in range(0, len(groups), size):
        yield groups[first : first + size]


def divisors(number: int, *, most: int) -> list[int]:
    """The divisors of a number from 1 to ``most``, in order."""
    return [divisor for divisor in range(1, most + 1) if number % divisor == 0]
