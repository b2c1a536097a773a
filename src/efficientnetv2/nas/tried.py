"""What a search has tried, and a point that it has not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from efficientnetv2.base.keys import Key
from efficientnetv2.nas.choices import Point
from efficientnetv2.nas.space import Space

# Ours. A policy that has settled draws what it knows; each further draw costs a millisecond, a trial minutes.
_DRAWS = 50


@dataclass(frozen=True)
class Tried:
    """One trial.

    Args:
        point: canonical.
        reward: None while it runs.
    """

    point: Point
    reward: float | None


def untried(draw: Callable[[Key], Point], space: Space, tried: Sequence[Tried], key: Key) -> Point:
    """The first point drawn that was not tried; if only tried ones come, a neighbour of what was drawn that was not.

    Trying a network again would teach little: its reward differs by noise alone. Where all neighbours were tried it is
    another one of the space; where every network was, the last one drawn is tried again.

    Args:
        draw: a canonical point by a key.
        space: of the points.
        tried: running trials among them, so that workers beside each other do not repeat each other.
        key: of this proposal.
    """
    known = {one.point for one in tried}
    for turn in range(_DRAWS):
        point = draw(key.fold(turn))
        if point not in known:
            return point
    near = [other for other in space.neighbours(point) if other not in known]
    if near:
        return near[int(key.fold("near").generator().integers(len(near)))]
    for turn in range(_DRAWS):
        other = space.sample(key.fold("any", turn))
        if other not in known:
            return other
    return next((other for other in space.points() if other not in known), point)
