"""The results of a study: its ended trials as rows, the best ones, Pareto fronts, and which decisions matter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.nas.storage import import_optuna, optuna_warnings_only
from efficientnetv2.nas.study import OpenStudy
from efficientnetv2.utils.errors import InputError

# Fewer finished trials do not show which decisions matter. Ours.
_MIN_FOR_IMPORTANCES = 10

End = Literal["finished", "stopped", "failed"]
Cost = Callable[[Measurement], float | None]


@dataclass(frozen=True)
class TrialRow:
    """A trial that has ended.

    ``reward`` is 0 where it failed; where it was stopped, as far as it came. ``predicted_step_s`` is the step time as
    the sum over parts, before it was measured; None where a part was new. ``same_as`` is the number of an earlier trial
    of the same architecture, whose measurement this is.
    """

    number: int
    point: Point
    measurement: Measurement
    reward: float
    end: End
    seconds: float
    predicted_step_s: float | None = None
    same_as: int | None = None

    @property
    def top1(self) -> float:
        """Accuracy in [0, 1]; 0 where there is none."""
        return self.measurement.top1 or 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "point": list(self.point), "measurement": self.measurement.to_json()}


def count_states(rows: Sequence[TrialRow]) -> dict[End, int]:
    """How many trials ended in each way."""
    return {end: sum(row.end == end for row in rows) for end in get_args(End)}


def load_rows(study: OpenStudy) -> list[TrialRow]:
    """The ended trials of a study, by number."""
    complete = import_optuna().trial.TrialState.COMPLETE
    rows = []
    for trial in study.trials():
        attributes = trial.user_attrs
        if not trial.state.is_finished() or "measurement" not in attributes:
            continue
        found = Measurement.from_json(attributes["measurement"])
        end: End = "finished" if trial.state == complete else "stopped"
        rows.append(
            TrialRow(
                number=trial.number,
                point=tuple(attributes["point"]),
                measurement=found,
                reward=study.config.reward.compute(found, study.config.reference),
                end="failed" if found.failure else end,
                seconds=0.0 if trial.duration is None else trial.duration.total_seconds(),
                predicted_step_s=attributes.get("predicted_step_s"),
                same_as=attributes.get("same_as"),
            )
        )
    return sorted(rows, key=lambda row: row.number)


def best(rows: Sequence[TrialRow], *, most: int = 1) -> list[TrialRow]:
    """The finished trials with the largest rewards, each architecture once. Raises InputError if there are none."""
    finished = [row for row in rows if row.end == "finished" and row.same_as is None]
    if not finished:
        failures = [row.measurement.failure_line for row in rows if row.end == "failed"]
        last = f" The last one failed: {failures[-1]}" if failures else ""
        raise InputError(f"no trial of the study has finished yet.{last}")
    leaders: dict[Point, TrialRow] = {}  # Several workers may have trained an architecture twice.
    for row in sorted(finished, key=lambda row: (-row.reward, row.number)):
        leaders.setdefault(row.point, row)
    return list(leaders.values())[:most]


def pareto_front(rows: Sequence[TrialRow], cost: Cost) -> list[TrialRow]:
    """The finished trials that no other beats in accuracy and cost at once, the cheapest first."""
    costs = [(value, row) for row in rows if row.end == "finished" and (value := cost(row.measurement)) is not None]
    front: list[TrialRow] = []
    for _, row in sorted(costs, key=lambda pair: (pair[0], -pair[1].top1)):
        if not front or row.top1 > front[-1].top1:
            front.append(row)
    return front


def best_so_far(rows: Sequence[TrialRow]) -> list[float]:
    """The largest reward of finished trials after each trial."""
    return list(accumulate((row.reward if row.end == "finished" else 0.0 for row in rows), max))


def importances(study: OpenStudy) -> Mapping[str, float]:
    """The share of each decision in the variance of the rewards (Optuna's fANOVA), the largest first; sums to 1.

    Empty where too few trials have finished, or all rewards are equal.
    """
    optuna = import_optuna()
    finished = [row for row in load_rows(study) if row.end == "finished"]
    if len(finished) < _MIN_FOR_IMPORTANCES or len({row.reward for row in finished}) < 2:
        return {}
    from efficientnetv2.nas.samplers import distributions  # With Optuna, an extra.

    space = study.config.space
    with optuna_warnings_only():
        in_memory = optuna.create_study(direction="maximize")
    for row in finished:
        trial = optuna.trial.create_trial(
            params=space.choices(row.point), distributions=distributions(space), value=row.reward
        )
        in_memory.add_trial(trial)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found: Mapping[str, float] = optuna.importance.get_param_importances(in_memory, evaluator=evaluator)
    return found


def architecture_table(architecture: Architecture) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of an architecture as in the paper's Table 4."""
    rows = [["0", "Conv3x3", "2", str(architecture.stem_channels), "1"]]
    for number, stage in enumerate(architecture.stages, start=1):
        operator = stage.operator
        kind = "Fused-MBConv" if operator.kind == "fused" else "MBConv"
        se = "" if operator.se is None else f", SE{operator.se:g}"
        name = f"{kind}{operator.expand}, k{operator.kernel}x{operator.kernel}{se}"
        rows.append([str(number), name, str(stage.stride), str(stage.channels), str(stage.layers)])
    rows.append([str(len(rows)), "Conv1x1 & Pooling & FC", "-", str(architecture.head_channels), "1"])
    return ["stage", "operator", "stride", "#channels", "#layers"], rows


def step_ms(found: Measurement) -> float | None:
    """The time of a training step in milliseconds."""
    return None if found.step_seconds is None else 1000 * found.step_seconds


def millions(found: Measurement) -> float:
    """Parameters in millions."""
    return found.parameters / 1e6
