"""Regularised evolution: the best of a few of the youngest networks, changed in one decision.

Source: arXiv:1802.01548 (aging evolution, Algorithm 1): a population whose oldest member dies with each new one, a
tournament for the parent, one mutation for the child. Ours draws the tournament without replacement, and knows neither
the identity mutation nor a network tried before: a child that was tried is bred anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from efficientnetv2.nas.space import Space
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.utils.rng import Key

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


@dataclass(frozen=True)
class RegularizedEvolution:
    """How networks are bred. The defaults are ours; ``benchmarks/samplers_replay.py --tune`` compares others with them.

    Args:
        population: how many of the newest finished trials may be parents; as many are drawn uniformly to begin with.
        tournament: how many of them are drawn, the best of which is the parent.

    Raises:
        ValueError: either is below 1.
    """

    population: int = 20
    tournament: int = 12

    def __post_init__(self) -> None:
        if min(self.population, self.tournament) < 1:
            raise ValueError(
                f"population is {self.population} and tournament {self.tournament}, but each has to be at least 1"
            )

    def propose(self, space: Space, tried: Sequence[Tried], key: Key) -> Point:
        """A canonical point to try next, another than those tried where a change leads to one.

        Args:
            space: to choose from.
            tried: by the trials' numbers.
            key: of this proposal.
        """
        rewarded = [(one.reward, one.point) for one in tried if one.reward is not None]
        if len(rewarded) < self.population:
            return untried(space.sample, space, tried, key)
        living = rewarded[-self.population :]

        def child(key: Key) -> Point:
            generator = key.generator()
            rivals = generator.choice(len(living), size=min(self.tournament, len(living)), replace=False)
            _, parent = max(living[index] for index in rivals)
            return mutated(space, parent, key.fold("mutation"))

        return untried(child, space, tried, key)


def mutated(space: Space, point: Point, key: Key) -> Point:
    """The point with one decision changed: which, and to what, are drawn uniformly.

    A stage that comes back does so with whatever its other decisions may say; see ``Space.neighbours``.
    """
    changes: dict[int, list[Point]] = {}
    for other in space.neighbours(point):
        # Of a stage the number of layers is decided last: where it goes or comes back, that is the last to differ.
        last = max(
            place for place, (mine, theirs) in enumerate(zip(point, other, strict=True)) if mine != theirs
        )
        changes.setdefault(last, []).append(other)
    generator = key.generator()
    chosen = changes[sorted(changes)[generator.integers(len(changes))]]
    return chosen[generator.integers(len(chosen))]
