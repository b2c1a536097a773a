"""Step times of a recorded study: measured, compared with the sum over their blocks, and measured twice.

The backbone's step is measured first, then the step of each architecture, then some steps a second time. All step times
are scaled to the pace of the machine at the backbone's measurement, because a shared machine can be slower for hours.
The times of blocks are estimated from many architectures. A step that is not the sum of its blocks is measured again,
and the measurement with the smaller spread counts. The first measurement is stored too (``step_first_seconds``). The
error of estimates is of the first measurement: the final measurements agree too well, because only steps that disagree
are repeated. In old rows this column is empty; their error is of the final measurement.
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

# Largest relative error of the sum over blocks without doubt.
APART = 0.15
# Repetitions of a step in doubt; number of steps with a second measurement. Ours.
_TIMES, _TWICE = 2, 40


@dataclass(frozen=True)
class Step:
    """One measurement of a step.

    Args:
        seconds: Median.
        spread: Interquartile range / median.
    """

    seconds: float
    spread: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Step | None:
        """Read a row or a second measurement. None if nothing was measured."""
        if not row["step_seconds"]:
            return None
        return cls(float(row["step_seconds"]), float(row["step_spread"] or 0))

    def agrees(self, other: Step) -> bool:
        """Check that the interquartile ranges of two measurements overlap."""
        half = (self.seconds * self.spread + other.seconds * other.spread) / 2
        return abs(self.seconds - other.seconds) <= half


def error(step: float, foretold: float) -> float:
    """Compute the relative error of the sum over blocks."""
    return abs(foretold / step - 1)


def step_errors(rows: Sequence[Mapping[str, str]]) -> list[float]:
    """Compute relative errors of the sum over blocks of other architectures, against the first measurement of a step.

    Old rows without a first measurement use the final measurement.
    """
    return [
        error(float(row.get("step_first_seconds") or row["step_seconds"]), float(row["step_foretold"]))
        for row in rows
        if row["step_foretold"] and row["step_seconds"]
    ]


def twice(rows: Sequence[Mapping[str, str]], again: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Check for each step with a second measurement that both agree."""
    first = {int(row["number"]): Step.of(row) for row in rows}
    both = [(first[one["number"]], Step.of(one)) for one in again]
    return [one.agrees(other) for one, other in both if one and other]


def timed(study: Record, proxy: ProxyTask, by: Mapping[str, str], *, retime: bool = False) -> list[int]:
    """Time the steps that are missing in a table: the backbone, each architecture, and some a second time.

    Args:
        study: Complete table.
        proxy: Proxy task of the trials.
        by: Machine and code. They must be equal for all steps.
        retime: Measure all steps again.

    Returns:
        Numbers of the steps in doubt.

    Raises:
        SystemExit: The table has steps of another machine or code, or a step cannot be measured.
    """
    stored = study.common
    if "backbone" in stored and not retime:
        if differing := [name for name in by if stored[name] != by[name]]:
            raise SystemExit(
                f"The steps of {study.table} are of another {', '.join(differing)}; --retime measures them anew."
            )
        backbone = Measurement.from_json(stored["backbone"])
    else:
        study.forget_steps()
        proxy.times.unlink(missing_ok=True)  # from other steps
        backbone = backbone_measured(study.space, proxy)
        common = {**stored, **by, "backbone": backbone.to_json()}
        write_text_atomically(study.about, json.dumps(common, indent=1) + "\n")
    proxy = at_pace_of(proxy, study.space, backbone)
    points = study.points()
    for row in study.rows():
        if row["top1"] and not row["step_seconds"]:
            _time(study, int(row["number"]), points, proxy)
    doubtful = time_again(study, proxy)
    _time_some_twice(study, points, proxy)
    return doubtful


def _time(study: Record, number: int, points: Sequence[Point], proxy: ProxyTask) -> None:
    architecture = study.space.decode(points[number])
    foretold = _times(proxy).predict(architecture)  # from blocks of other architectures: its blocks are not known yet
    found = untrained(architecture, proxy)
    seconds, spread = short(found.step_seconds), short(found.step_spread)
    study.change(
        number,
        step_seconds=seconds,
        step_spread=spread,
        step_foretold="" if foretold is None else short(foretold),
        step_first_seconds=seconds,
        step_first_spread=spread,
    )
    print(f"network {number}: step {1000 * (found.step_seconds or 0):.4g} ms", flush=True)


def _time_some_twice(study: Record, points: Sequence[Point], proxy: ProxyTask) -> None:
    done = study.timed_twice()
    timed_ones = [int(row["number"]) for row in study.rows() if row["step_seconds"]]
    places = np.linspace(0, len(timed_ones) - 1, _TWICE).round().astype(int) if timed_ones else ()
    for number in dict.fromkeys(timed_ones[place] for place in places):
        if any(one["number"] == number for one in done):
            continue
        found = untrained(study.space.decode(points[number]), proxy)
        step = {"step_seconds": short(found.step_seconds), "step_spread": short(found.step_spread)}
        done.append({"number": number, **step})
        write_text_atomically(study.twice, json.dumps(done, indent=1) + "\n")


def _times(proxy: ProxyTask) -> StepTimeCache:
    device = torch.device(proxy.device)
    return StepTimeCache(proxy.times, proxy.recipe, num_classes=proxy.num_classes, device=device)


def time_again(study: Record, proxy: ProxyTask) -> list[int]:
    """Repeat measurements of steps that are not the sum of their blocks, by the estimates from all architectures.

    The measurement with the smaller spread counts, because disturbances increase the spread. The row keeps its first
    measurement. A step with two measurements that agree is certain, whatever the estimate.

    Args:
        study: Table. Rows change where the second measurement counts.
        proxy: Proxy task of the trials.

    Returns:
        Numbers of the steps that are still in doubt.
    """
    times = _times(proxy)
    architectures = [study.space.decode(point) for point in study.points()]
    sure: set[int] = set()

    def steps() -> list[tuple[int, Step]]:
        found = [(int(row["number"]), Step.of(row)) for row in study.rows()]
        return [(number, step) for number, step in found if step and number not in sure]

    def in_doubt(number: int, step: Step) -> bool:
        foretold = times.predict(architectures[number])  # changes with each repeated measurement
        return foretold is None or error(step.seconds, foretold) > APART

    for _ in range(_TIMES):
        for number, step in steps():
            if not in_doubt(number, step):
                continue
            found = untrained(architectures[number], proxy)
            again = Step(short(found.step_seconds), short(found.step_spread))
            print(f"network {number}: step {1000 * step.seconds:.4g} ms, again {1000 * again.seconds:.4g} ms")
            if step.agrees(again):
                sure.add(number)
            if again.spread <= step.spread:
                study.change(number, step_seconds=again.seconds, step_spread=again.spread)
    return [number for number, step in steps() if in_doubt(number, step)]
