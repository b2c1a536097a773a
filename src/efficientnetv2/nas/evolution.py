"""Regularized evolution: mutate the best of a random subset of the youngest architectures.

Source: arXiv:1802.01548 (aging evolution, Algorithm 1). Ours draws the tournament without replacement, has no identity
mutation, and never repeats an architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from efficientnetv2.nas.space import Space
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.utils.rng import Key

# Ours. A converged policy draws known architectures; each further draw costs a millisecond, a trial minutes.
_MAX_DRAWS = 50


@dataclass(frozen=True)
class PastTrial:
    """The canonical point of a trial and its reward, None while it runs."""

    point: Point
    reward: float | None


def sample_untried(draw: Callable[[Key], Point], space: Space, past: Sequence[PastTrial], key: Key) -> Point:
    """The first point drawn that was not tried, running trials included.

    If ``draw`` gives only tried points, an untried neighbor of the last one; else any untried point of the space; else,
    where all were tried, the last one drawn.
    """
    known = {trial.point for trial in past}
    for turn in range(_MAX_DRAWS):
        point = draw(key.fold(turn))
        if point not in known:
            return point
    if neighbors := [other for other in space.neighbors(point) if other not in known]:
        return neighbors[int(key.fold("near").generator().integers(len(neighbors)))]
    for turn in range(_MAX_DRAWS):
        other = space.sample(key.fold("any", turn))
        if other not in known:
            return other
    return next((other for other in space.points() if other not in known), point)


@dataclass(frozen=True)
class RegularizedEvolution:
    """The defaults are ours; ``benchmarks/samplers_replay.py --tune`` compares others with them.

    Args:
        population: The newest finished trials, which may be parents. As many are drawn uniformly at first.
        tournament: How many of them are drawn for the best to be the parent.

    Raises:
        ValueError: Either is below 1.
    """

    population: int = 20
    tournament: int = 12

    def __post_init__(self) -> None:
        if min(self.population, self.tournament) < 1:
            raise ValueError(
                f"population is {self.population} and tournament {self.tournament}, but both must be at least 1"
            )

    def propose(self, space: Space, past: Sequence[PastTrial], key: Key) -> Point:
        """The point to try next. ``past`` is in the order of trial numbers."""
        rewarded = [(trial.reward, trial.point) for trial in past if trial.reward is not None]
        if len(rewarded) < self.population:
            return sample_untried(space.sample, space, past, key)
        living = rewarded[-self.population :]

        def child(key: Key) -> Point:
            generator = key.generator()
            rivals = generator.choice(len(living), size=min(self.tournament, len(living)), replace=False)
            _, parent = max(living[index] for index in rivals)
            return mutate(space, parent, key.fold("mutation"))

        return sample_untried(child, space, past, key)


def mutate(space: Space, point: Point, key: Key) -> Point:
    """The point with one decision changed; the decision and its new option are drawn uniformly."""
    changes: dict[int, list[Point]] = {}
    for other in space.neighbors(point):
        # A stage's number of layers is its last decision: where a stage goes or comes back, that one differs last.
        last = max(place for place, (a, b) in enumerate(zip(point, other, strict=True)) if a != b)
        changes.setdefault(last, []).append(other)
    generator = key.generator()
    chosen = changes[sorted(changes)[generator.integers(len(changes))]]
    return chosen[generator.integers(len(chosen))]
