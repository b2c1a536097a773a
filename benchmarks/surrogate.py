"""What a recorded study teaches: the reward of every network of its space, foretold from those that were trained.

A study is two files, such as ``benchmarks.search_record`` makes. TABLE.csv has a row for each trained network: a column
for each decision of the space (``stage2.kind``, ...) with the option taken, ``top1``, ``step_seconds``, ``parameters``.
TABLE.json next to it has ``space``, and ``backbone``, its measurement, which the paper's reward is normalised by. Two
regressions learn top-1 and step time from the table; parameters are counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.nas.objective import Measurement, Reward
from efficientnetv2.nas.space import Space
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

FOLDS = 10
_DRAWS = 1_000  # of the bootstrap


@dataclass(frozen=True)
class Table:
    """A recorded study.

    Args:
        space: its networks.
        backbone: that the reward is normalised by.
        points: (N) canonical, each once.
        top1, step_seconds, parameters: (N,) each; of a network trained several times the mean.
    """

    space: Space
    backbone: Measurement
    points: list[Point]
    top1: np.ndarray
    step_seconds: np.ndarray
    parameters: np.ndarray

    @property
    def rewards(self) -> np.ndarray:
        """(N,) the paper's."""
        rows = zip(self.top1, self.step_seconds, self.parameters, strict=True)
        return np.array([worth(self.backbone, *row) for row in rows])


def worth(backbone: Measurement, top1: float, step_seconds: float, parameters: float) -> float:
    """The paper's reward of three numbers; a foretold accuracy may lie a little outside of [0, 1]."""
    top1 = min(max(float(top1), 0.0), 1.0)
    return Reward().compute(Measurement(int(parameters), 1, top1=top1, step_seconds=step_seconds), backbone)


def read(path: Path) -> Table:
    """A recorded study from its two files; networks that failed (no ``top1``) are left out.

    Raises:
        InputError: a column or an option that the space does not know, or too few networks.
    """
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    space = Space.from_json(about["space"])
    rows = pd.read_csv(path, dtype=dict.fromkeys((one.name for one in space.decisions), str), keep_default_na=True)
    measured = ["top1", "step_seconds", "parameters"]
    for name in (*(one.name for one in space.decisions), *measured):
        if name not in rows:
            raise InputError(f"{path}: the column '{name}' is missing; there are {', '.join(rows.columns)}.")
    rows = rows.dropna(subset=measured)
    options = {one.name: {"" if at is None else str(at): at for at in one.options} for one in space.decisions}
    found: list[Point] = []
    for number, row in rows.iterrows():
        said = {name: "" if pd.isna(row[name]) else row[name] for name in options}
        for name, known in options.items():
            if said[name] not in known:
                raise InputError(
                    f"{path}, row {number + 2}: {name} is '{said[name]}', which is no option of its space."
                )
        found.append(space.point({name: options[name][text] for name, text in said.items()}))
    rows["point"] = pd.Series(found, index=rows.index, dtype=object)
    each = rows.groupby("point", sort=False)[measured].mean()
    if len(each) < 2 * FOLDS:
        raise InputError(f"{path}: {len(each)} networks are too few to learn from; at least {2 * FOLDS}.")
    backbone = Measurement.from_json(about["backbone"])
    return Table(space, backbone, list(each.index), *(each[name].to_numpy(dtype=float) for name in measured))


def features(space: Space, points: Iterable[Point]) -> np.ndarray:
    """(N, F): 1 for each option that a network has; none of a removed stage but that it is."""
    sizes = [len(decision.options) for decision in space.decisions]
    rows = []
    for point in points:
        counts = space.effective(point)
        ones = [np.eye(size)[index] * took for size, index, took in zip(sizes, point, counts, strict=True)]
        rows.append(np.concatenate(ones))
    return np.array(rows)


def regression() -> Pipeline:
    """Every option's own effect and that of every pair of them, shrunk by as much as foretells best.

    On made-up tables it foretold as well as Gaussian processes, and better than trees.
    """
    pairs = PolynomialFeatures(2, interaction_only=True, include_bias=False)
    return make_pipeline(pairs, StandardScaler(), RidgeCV(np.logspace(0, 5, 21)))


@dataclass(frozen=True)
class Surrogate:
    """Foretells the reward of every network of a space."""

    table: Table
    top1: Pipeline
    log_seconds: Pipeline
    classifier: float
    known: dict[Point, float] = field(default_factory=dict)

    @classmethod
    def fitted(cls, table: Table) -> Surrogate:
        """Learnt from all of a table."""
        x = features(table.space, table.points)
        # The classifier is the same in all networks of a space: its size is what a count without it lacks.
        lacking = [size - trunk(table.space, one) for size, one in zip(table.parameters, table.points, strict=True)]
        return cls(
            table,
            regression().fit(x, table.top1),
            regression().fit(x, np.log(table.step_seconds)),
            float(np.median(lacking)),
        )

    def reward(self, point: Point) -> float:
        """Of a canonical point."""
        if point not in self.known:
            x = features(self.table.space, [point])
            self.known[point] = worth(
                self.table.backbone,
                self.top1.predict(x)[0],
                float(np.exp(self.log_seconds.predict(x)[0])),
                trunk(self.table.space, point) + self.classifier,
            )
        return self.known[point]


def trunk(space: Space, point: Point) -> int:
    """Parameters but for the classifier's; the image's size has no part in them."""
    return count_flops(space.decode(point), image_size=64, num_classes=0).total.parameters


def agreement(table: Table) -> dict[str, tuple[float, float, float]]:
    """Kendall's tau between measured and foretold values, of networks left out of the fit, with its interval."""
    x = features(table.space, table.points)
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    top1 = cross_val_predict(regression(), x, table.top1, cv=folds)
    seconds = np.exp(cross_val_predict(regression(), x, np.log(table.step_seconds), cv=folds))
    rows = zip(top1, seconds, table.parameters, strict=True)
    rewards = np.array([worth(table.backbone, *row) for row in rows])
    pairs = {
        "top1": (table.top1, top1),
        "step_seconds": (table.step_seconds, seconds),
        "reward": (table.rewards, rewards),
    }
    return {name: rank_agreement(*pair) for name, pair in pairs.items()}


def rank_agreement(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Kendall's tau of two values of the same networks, and the ends of its 95 % interval (bootstrap over networks)."""
    draws = Key.of(0).fold("rank agreement").generator().integers(len(one), size=(_DRAWS, len(one)))
    taus = np.array([kendalltau(one[rows], other[rows]).statistic for rows in draws])
    low, high = np.nanquantile(taus, [0.025, 0.975])
    return float(kendalltau(one, other).statistic), float(low), float(high)
