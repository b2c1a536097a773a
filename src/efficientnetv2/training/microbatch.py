"""How many groups of a step run in one pass.

The result does not depend on it: statistics, partners and draws belong to a group, and gradients are averaged over
groups. So it may follow the memory there is: many small pictures at a time, few large ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from efficientnetv2.utils.errors import count_of
from efficientnetv2.utils.memory import reason_of

Item = TypeVar("Item")


@dataclass(frozen=True)
class MicrobatchPlan:
    """Groups in one pass, by picture size.

    Args:
        by_px: size of the picture -> groups. Of a size between two, as many as of the larger one; above the largest,
            and where nothing is known, one.
    """

    by_px: Mapping[int, int] = field(default_factory=dict)

    def at(self, image_px: int) -> int:
        """Groups in a pass of pictures of that size, at least 1."""
        known = min((px for px in self.by_px if px >= image_px), default=None)
        return 1 if known is None else self.by_px[known]

    @property
    def most(self) -> int:
        """The largest number at any size."""
        return max(self.by_px.values(), default=1)

    def __str__(self) -> str:
        """For people: ``8 of 128 px, 3 of 300 px``."""
        return ", ".join(f"{count} of {px} px" for px, count in sorted(self.by_px.items()))

    def to_json(self) -> dict[str, int]:
        """Plain JSON values, whose names are texts."""
        return {str(px): count for px, count in sorted(self.by_px.items())}

    @classmethod
    def from_json(cls, plain: Mapping[str, int]) -> MicrobatchPlan:
        """What ``to_json`` gave."""
        return cls({int(px): count for px, count in plain.items()})

    def halved(self, image_px: int) -> MicrobatchPlan:
        """Half as many at that size, and no more than that at larger ones."""
        half = max(1, self.at(image_px) // 2)
        by_px = {px: min(count, half) if px >= image_px else count for px, count in self.by_px.items()}
        return MicrobatchPlan(by_px | {image_px: half})


ONE_GROUP_PER_PASS = MicrobatchPlan()


def chunks(groups: Sequence[Item], count: int) -> Iterator[Sequence[Item]]:
    """The groups of a step in passes of so many; the last may have fewer."""
    for first in range(0, len(groups), count):
        yield groups[first : first + count]


def out_of_memory_message(group_images: int, groups: int, image_px: int, error: BaseException) -> str:
    """The message for a single group that does not fit, although it did when the run began.

    Args:
        group_images: of the group.
        groups: of a step.
        image_px: size of the pictures.
        error: that said so.
    """
    smaller = divisors(group_images * groups, most=group_images // 2)
    anew = f" (--set group_images={smaller[-1]})" if smaller else " (there is none smaller: use --image-px)"
    return (
        f"Memory ran out with a single group of {count_of(group_images, 'picture')} of {image_px} px "
        f"({reason_of(error)}). It did fit when the run began: end what else takes memory, then go on with "
        f"--resume. Or begin anew with smaller groups{anew}."
    )


def out_of_memory_mid_step_message(image_px: int, error: BaseException) -> str:
    """The message for memory that runs out when a part of the step's gradients is with the other processes.

    Args:
        image_px: size of the pictures.
        error: that said so.
    """
    return (
        f"Memory ran out with pictures of {image_px} px ({reason_of(error)}), where it had been enough before, and "
        "other processes have a part of the step already. End what else takes memory, then go on with --resume."
    )


def divisors(number: int, *, most: int) -> list[int]:
    """The divisors of a number from 1 to ``most``, in order."""
    return [one for one in range(1, most + 1) if number % one == 0]
