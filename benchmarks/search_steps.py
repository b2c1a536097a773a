"""How far the step times of a recorded study hold: beside the sum over their blocks, and measured twice.

A disturbance of some minutes or an hour only ever makes steps longer, and a table does not show it. What the parts of
a network take is known from many networks; a step that is not their sum is measured again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.search_table import Record, short
from benchmarks.search_trials import untrained

from efficientnetv2.search.proxy import Proxy
from efficientnetv2.search.steptime import StepTimes

# What the sum over the parts is held to, as a share of the step.
APART = 0.15
# So often a step is measured again that is further apart. Ours.
_TIMES = 2


@dataclass(frozen=True)
class Step:
    """A network's step as it was measured once.

    Args:
        seconds: the median.
        spread: from quartile to quartile, over the median.
    """

    seconds: float
    spread: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Step | None:
        """Of a row, or of what came of longer training; None where none was measured."""
        if not row["step_seconds"]:
            return None
        return cls(float(row["step_seconds"]), float(row["step_spread"] or 0))

    def agrees(self, other: Step) -> bool:
        """Whether two measurements of a network are within their stated spreads: their quartiles meet."""
        half = (self.seconds * self.spread + other.seconds * other.spread) / 2
        return abs(self.seconds - other.seconds) <= half


def error(step: float, foretold: float) -> float:
    """How far the sum over a network's parts lies from its step, as a share of that."""
    return abs(foretold / step - 1)


def step_errors(rows: Sequence[Mapping[str, str]]) -> list[float]:
    """How far the sum over blocks known from other networks lies from the measured step, as a share of it."""
    return [
        error(float(row["step_seconds"]), float(row["step_foretold"]))
        for row in rows
        if row["step_foretold"] and row["step_seconds"]
    ]


def twice(rows: Sequence[Mapping[str, str]], pairs: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Of every network that was trained longer, whether its step then agreed with that of its trial."""
    first = {int(row["number"]): Step.of(row) for row in rows}
    both = [(first[one["number"]], Step.of(one)) for one in pairs]
    return [one.agrees(other) for one, other in both if one and other]


def time_again(kept: Record, proxy: Proxy) -> list[int]:
    """Measure those steps again that are not the sum of their parts, as all networks together know them by now.

    The shortest measurement stands, for a disturbance only ever adds. A network whose step comes out twice alike takes
    so long, whatever its parts say.

    Args:
        kept: the table, changed where a step was shorter.
        proxy: how its networks were tried.

    Returns:
        The numbers of those that are still in doubt.
    """
    device = torch.device(proxy.device)
    times = StepTimes(proxy.times, proxy.recipe, num_classes=proxy.num_classes, device=device)
    networks = [kept.space.decode(point) for point in kept.points()]
    sure: set[int] = set()

    def steps() -> list[tuple[int, Step]]:
        found = [(int(row["number"]), Step.of(row)) for row in kept.rows()]
        return [(number, step) for number, step in found if step and number not in sure]

    def in_doubt(number: int, step: Step) -> bool:
        foretold = times.foretold(
            networks[number]
        )  # of other parts with every network that is measured again
        return foretold is None or error(step.seconds, foretold) > APART

    for _ in range(_TIMES):
        for number, step in steps():
            if not in_doubt(number, step):
                continue
            found = untrained(networks[number], proxy)
            again = Step(short(found.step_seconds), short(found.step_spread))
            print(f"network {number}: step {1000 * step.seconds:.4g} ms, again {1000 * again.seconds:.4g} ms")
            if step.agrees(again):
                sure.add(number)
            if again.seconds < step.seconds:
                kept.change(number, step_seconds=again.seconds, step_spread=again.spread)
    return [number for number, step in steps() if in_doubt(number, step)]
