"""The step times of a recorded study: measured, and how far they hold next to the sum over their blocks, and twice.

The backbone's step is measured first, then every network's, then some a second time, all told at the pace at which the
backbone's was: a shared machine is slower for minutes or hours, and a table does not show it. What the parts of a
network take is known from many networks; a step that is not their sum is measured again, and the steadier of the two
counts. The first measurement is kept too (``step_first_seconds``), and how well steps are estimated is of the
first: only those that disagree are measured again, so what stands agrees too well. In rows that were timed before the
first was kept, this column is empty; of them it is told of the step that stands, which may be a second measurement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from benchmarks.search_table import Record, short
from benchmarks.search_trials import at_pace_of, backbone_measured, untrained

from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.proxy_task import ProxyTask
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.nas.step_time import StepTimeCache
from efficientnetv2.utils.io import write_text_atomically

# What the sum over the parts is held to, as a share of the step.
APART = 0.15
# So often a step is measured again that is further apart; so many networks are timed a second time. Ours.
_TIMES, _TWICE = 2, 40


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
        """Of a row, or of a second measurement; None where none was measured."""
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
    """How far the sum over blocks known from other networks lies from the step as measured first, as a share of it.

    Of a row that was timed before its first measurement was kept: from the step that stands.
    """
    return [
        error(float(row.get("step_first_seconds") or row["step_seconds"]), float(row["step_foretold"]))
        for row in rows
        if row["step_foretold"] and row["step_seconds"]
    ]


def twice(rows: Sequence[Mapping[str, str]], again: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Of every network whose step was measured a second time, whether the two agree."""
    first = {int(row["number"]): Step.of(row) for row in rows}
    both = [(first[one["number"]], Step.of(one)) for one in again]
    return [one.agrees(other) for one, other in both if one and other]


def timed(kept: Record, proxy: ProxyTask, by: Mapping[str, str], *, retime: bool = False) -> list[int]:
    """Time what has not been timed of a table's networks: the backbone, each of them, and some a second time.

    Args:
        kept: the table, filled.
        proxy: how its networks were tried.
        by: machine and code, which have to be the same for all of them.
        retime: measure all of them again.

    Returns:
        The numbers of those that are in doubt.

    Raises:
        SystemExit: another machine or code has begun to, or a step can't be measured.
    """
    there = kept.common
    if "backbone" in there and not retime:
        if differing := [name for name in by if there[name] != by[name]]:
            raise SystemExit(
                f"The steps of {kept.table} are of another {', '.join(differing)}; --retime measures them anew."
            )
        backbone = Measurement.from_json(there["backbone"])
    else:
        kept.forget_steps()
        proxy.times.unlink(missing_ok=True)  # of other steps
        backbone = backbone_measured(kept.space, proxy)
        common = {**there, **by, "backbone": backbone.to_json()}
        write_text_atomically(kept.about, json.dumps(common, indent=1) + "\n")
    proxy = at_pace_of(proxy, kept.space, backbone)
    points = kept.points()
    for row in kept.rows():
        if row["top1"] and not row["step_seconds"]:
            _time(kept, int(row["number"]), points, proxy)
    doubtful = time_again(kept, proxy)
    _time_some_twice(kept, points, proxy)
    return doubtful


def _time(kept: Record, number: int, points: Sequence[Point], proxy: ProxyTask) -> None:
    network = kept.space.decode(points[number])
    foretold = _times(proxy).predict(network)  # by others' parts: its own are known only afterwards
    found = untrained(network, proxy)
    seconds, spread = short(found.step_seconds), short(found.step_spread)
    kept.change(
        number,
        step_seconds=seconds,
        step_spread=spread,
        step_foretold="" if foretold is None else short(foretold),
        step_first_seconds=seconds,
        step_first_spread=spread,
    )
    print(f"network {number}: step {1000 * (found.step_seconds or 0):.4g} ms", flush=True)


def _time_some_twice(kept: Record, points: Sequence[Point], proxy: ProxyTask) -> None:
    done = kept.timed_twice()
    timed_ones = [int(row["number"]) for row in kept.rows() if row["step_seconds"]]
    places = np.linspace(0, len(timed_ones) - 1, _TWICE).round().astype(int) if timed_ones else ()
    for number in dict.fromkeys(timed_ones[place] for place in places):
        if any(one["number"] == number for one in done):
            continue
        found = untrained(kept.space.decode(points[number]), proxy)
        step = {"step_seconds": short(found.step_seconds), "step_spread": short(found.step_spread)}
        done.append({"number": number, **step})
        write_text_atomically(kept.twice, json.dumps(done, indent=1) + "\n")


def _times(proxy: ProxyTask) -> StepTimeCache:
    device = torch.device(proxy.device)
    return StepTimeCache(proxy.times, proxy.recipe, num_classes=proxy.num_classes, device=device)


def time_again(kept: Record, proxy: ProxyTask) -> list[int]:
    """Measure those steps again that are not the sum of their parts, as all networks together know them by now.

    The measurement with the lesser spread stands, for what is disturbed is spread wider; the row's first one stays as
    it was. A network whose step comes out twice alike takes so long, whatever its parts say.

    Args:
        kept: the table, changed where a step was steadier.
        proxy: how its networks were tried.

    Returns:
        The numbers of those that are still in doubt.
    """
    times = _times(proxy)
    networks = [kept.space.decode(point) for point in kept.points()]
    sure: set[int] = set()

    def steps() -> list[tuple[int, Step]]:
        found = [(int(row["number"]), Step.of(row)) for row in kept.rows()]
        return [(number, step) for number, step in found if step and number not in sure]

    def in_doubt(number: int, step: Step) -> bool:
        foretold = times.predict(networks[number])  # of other parts with every network that is measured again
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
            if again.spread <= step.spread:
                kept.change(number, step_seconds=again.seconds, step_spread=again.spread)
    return [number for number, step in steps() if in_doubt(number, step)]
