"""What a study has found: its trials as rows, the best of them, those that nothing beats in two respects at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.evaluation.plot_style import COLORS, INK, WIDTH_IN, style_axes
from efficientnetv2.nas.objective import Measurement, Reward
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.nas.storage import optuna
from efficientnetv2.nas.study import Opened
from efficientnetv2.utils.errors import InputError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


# Fewer finished trials say nothing about which decisions matter. Ours.
_FEWEST_TO_WEIGH = 10

End = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Row:
    """A trial that has ended.

    Args:
        number: of the trial, from 0.
        point: of the space.
        measurement: of its network.
        reward: 0 of one that failed; of one that was stopped, as far as it came.
        end: how it ended.
        seconds: that it took.
        foretold: seconds of a step by the sum over its parts, before it was measured; None where one was new.
        same_as: number of an earlier trial of the same network, whose measurement it has.
    """

    number: int
    point: Point
    measurement: Measurement
    reward: float
    end: End
    seconds: float
    foretold: float | None = None
    same_as: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "point": list(self.point), "measurement": self.measurement.to_json()}


def ended(rows: Sequence[Row]) -> dict[End, int]:
    """How many trials came to which end."""
    return {end: sum(row.end == end for row in rows) for end in get_args(End)}


def rows_of(opened: Opened) -> list[Row]:
    """The trials of a study that have ended, by their numbers."""
    rdb, states = opened.storage.rdb, optuna().trial.TrialState
    trials = opened.storage.patiently(
        lambda: rdb.get_all_trials(rdb.get_study_id_from_name(opened.name), deepcopy=False)
    )
    rows = []
    for one in trials:
        plain = one.user_attrs.get("measurement")
        if not one.state.is_finished() or plain is None:
            continue
        found = Measurement.from_json(plain)
        end: End = "finished" if one.state == states.COMPLETE else "stopped"
        rows.append(
            Row(
                number=one.number,
                point=tuple(one.user_attrs["point"]),
                measurement=found,
                reward=opened.plan.reward.of(found, opened.plan.reference),
                end="failed" if found.failure else end,
                seconds=_seconds(one),
                foretold=one.user_attrs.get("foretold"),
                same_as=one.user_attrs.get("same_as"),
            )
        )
    return sorted(rows, key=lambda row: row.number)


def _seconds(trial: FrozenTrial) -> float:
    if trial.datetime_start is None or trial.datetime_complete is None:
        return 0.0
    return (trial.datetime_complete - trial.datetime_start).total_seconds()


def best(rows: Sequence[Row], *, most: int = 1) -> list[Row]:
    """The finished trials with the largest rewards, each network once; of equals the earlier one.

    Workers beside each other may have trained a network twice.

    Raises:
        InputError: none has finished.
    """
    finished = [row for row in rows if row.end == "finished" and row.same_as is None]
    if not finished:
        failures = [row.measurement.failed_because for row in rows if row.end == "failed"]
        last = f" The last one failed: {failures[-1]}" if failures else ""
        raise InputError(f"no trial of the study has been finished yet.{last}")
    leaders: dict[Point, Row] = {}
    for row in sorted(finished, key=lambda row: (-row.reward, row.number)):
        leaders.setdefault(row.point, row)
    return list(leaders.values())[:most]


def front(rows: Sequence[Row], cost: Callable[[Measurement], float | None]) -> list[Row]:
    """The finished trials that no other beats in accuracy and cost at once, the cheapest first.

    Args:
        rows: of a study.
        cost: to be as little as can be; None of networks that have none.
    """
    known = [
        (value, row) for row in rows if row.end == "finished" and (value := cost(row.measurement)) is not None
    ]
    found: list[Row] = []
    for _, row in sorted(known, key=lambda one: (one[0], -(one[1].measurement.top1 or 0.0))):
        if not found or (row.measurement.top1 or 0.0) > (found[-1].measurement.top1 or 0.0):
            found.append(row)
    return found


def incumbents(rows: Sequence[Row]) -> list[float]:
    """The largest reward after each trial; trials that were stopped count for nothing."""
    found: list[float] = []
    for row in rows:
        reward = row.reward if row.end == "finished" else 0.0
        found.append(max(reward, found[-1] if found else 0.0))
    return found


def importances(opened: Opened) -> Mapping[str, float]:
    """How much of the rewards' spread each decision accounts for, the most first; they add up to 1.

    Optuna's functional ANOVA. Empty where too few trials have finished, or all are worth the same.
    """
    package = optuna()
    finished = [row for row in rows_of(opened) if row.end == "finished"]
    if len(finished) < _FEWEST_TO_WEIGH or len({row.reward for row in finished}) < 2:
        return {}
    study = package.create_study(direction="maximize")
    for row in finished:
        choices = dict(opened.plan.space.choices(row.point))
        study.add_trial(
            package.trial.create_trial(
                params=choices,
                distributions={
                    name: package.distributions.CategoricalDistribution(options)
                    for name, options in opened.plan.space.decisions
                },
                value=row.reward,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = package.importance.FanovaImportanceEvaluator(seed=0)
        found: Mapping[str, float] = package.importance.get_param_importances(study, evaluator=evaluator)
    return found


def table_of(architecture: Architecture) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a network as the paper's Table 4 has them: stage, operator, stride, channels, layers."""
    rows = [["0", "Conv3x3", "2", str(architecture.stem_channels), "1"]]
    for number, stage in enumerate(architecture.stages, start=1):
        operator = stage.operator
        kind = "Fused-MBConv" if operator.kind == "fused" else "MBConv"
        squeeze = "" if operator.se is None else f", SE{operator.se:g}"
        kernel = f"k{operator.kernel}x{operator.kernel}"
        rows.append(
            [
                str(number),
                f"{kind}{operator.expand}, {kernel}{squeeze}",
                str(stage.stride),
                str(stage.channels),
                str(stage.layers),
            ]
        )
    last = str(len(architecture.stages) + 1)
    rows.append([last, "Conv1x1 & Pooling & FC", "-", str(architecture.head_channels), "1"])
    return ["stage", "operator", "stride", "#channels", "#layers"], rows


def exponents(reward: Reward) -> str:
    """A reward as a formula: ``A · S^-0.07 · P^-0.05``."""
    letters = {"step_seconds": "S", "parameters": "P", "inference_seconds": "I", "peak_memory_bytes": "M"}
    powers = [f"{letters[name]}^{power:g}" for name, power in reward.exponents.items() if power]
    return " · ".join(["A", *powers])


# Of decisions, so many bars; the others matter less. Ours.
_BARS = 12


def step_ms(found: Measurement) -> float | None:
    """The time of a training step in milliseconds."""
    return None if found.step_seconds is None else 1000 * found.step_seconds


def millions(found: Measurement) -> float:
    """Parameters in millions."""
    return found.parameters / 1e6


def draw_fronts(rows: Sequence[Row]) -> Figure | None:
    """Accuracy against the time of a step and against parameters; what nothing beats is joined. None without a trial.

    Args:
        rows: of a study.
    """
    if not any(row.end == "finished" for row in rows):
        return None
    figure = Figure(figsize=(WIDTH_IN, 5.4), layout="constrained")
    costs: tuple[tuple[str, Callable[[Measurement], float | None]], ...] = (
        ("training step, ms", step_ms),
        ("parameters, millions", millions),
    )
    for ax, (unit, cost) in zip(figure.subplots(2), costs, strict=True):
        _front(ax, rows, cost)
        ax.set_xlabel(unit, color=INK)
        style_axes(ax, "top-1 of a trial, %")
    figure.axes[0].legend(
        frameon=False, labelcolor=INK, fontsize=9, ncols=3, loc="lower right", bbox_to_anchor=(1, 1)
    )
    return figure


def _front(ax: Axes, rows: Sequence[Row], cost: Callable[[Measurement], float | None]) -> None:
    soft, strong, leading = COLORS[0], COLORS[1], COLORS[2]
    points = [
        (value, 100 * (row.measurement.top1 or 0.0))
        for row in rows
        if row.end == "finished" and (value := cost(row.measurement)) is not None
    ]
    across, up = zip(*points, strict=True)
    ax.scatter(across, up, s=14, color=soft, alpha=0.5, linewidths=0, label="trials")
    edge = [(cost(row.measurement), 100 * (row.measurement.top1 or 0.0)) for row in front(rows, cost)]
    ax.plot(
        *zip(*edge, strict=True), color=strong, linewidth=1.5, marker="o", markersize=4,
        drawstyle="steps-post", label="none better and cheaper",
    )  # fmt: skip
    (leader,) = best(rows)
    ax.scatter(
        [cost(leader.measurement) or 0.0], [100 * (leader.measurement.top1 or 0.0)], s=110, marker="*",
        color=leading, zorder=3, label="largest reward",
    )  # fmt: skip


def draw_rewards(rows: Sequence[Row]) -> Figure | None:
    """The reward of every trial, and the largest so far; None without a trial.

    Args:
        rows: of a study.
    """
    if not any(row.end == "finished" for row in rows):
        return None
    figure = Figure(figsize=(WIDTH_IN, 2.8), layout="constrained")
    ax = figure.subplots()
    for end, marker, colour in (("finished", "o", 0), ("stopped", "v", 3), ("failed", "x", 4)):
        these = [row for row in rows if row.end == end]
        if these:
            ax.scatter(
                [row.number for row in these], [row.reward for row in these], s=16, marker=marker,
                color=COLORS[colour], alpha=0.6, linewidths=1 if marker == "x" else 0, label=end,
            )  # fmt: skip
    ax.step(
        [row.number for row in rows], incumbents(rows), where="post", color=COLORS[1], linewidth=1.5,
        label="largest so far",
    )  # fmt: skip
    ax.legend(frameon=False, labelcolor=INK, fontsize=9, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
    ax.set_xlabel("trial", color=INK)
    style_axes(ax, "reward")
    return figure


def draw_importances(importances: Mapping[str, float]) -> Figure | None:
    """Which decisions matter, as bars; None where nothing is known.

    Args:
        importances: decision → its share, the most first.
    """
    if not importances:
        return None
    shown = list(importances.items())[:_BARS]
    figure = Figure(figsize=(WIDTH_IN, 0.5 + 0.26 * len(shown)), layout="constrained")
    ax = figure.subplots()
    ax.barh([name for name, _ in shown], [100 * share for _, share in shown], height=0.6, color=COLORS[0])
    ax.invert_yaxis()
    style_axes(ax, "share of the rewards' spread, %")
    ax.grid(visible=False, axis="y")
    return figure
