"""Surrogate of a recorded study: estimates the reward of each architecture of a space from trained architectures.

A study has two files, as from ``benchmarks.search_record``. TABLE.csv has a row for each trained architecture: a column
per decision of the space (``stage2.kind``, ...) with the chosen option, ``top1``, ``step_seconds``, ``parameters``.
TABLE.json has ``space`` and ``backbone``, its measurement, which normalizes the paper's reward. Two regressions learn
top-1 and step time from the table. Parameters are counted.
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
_DRAWS = 1_000  # bootstrap samples


@dataclass(frozen=True)
class Table:
    """Recorded study.

    Args:
        space: Search space.
        backbone: Measurement that normalizes the reward.
        points: (N) canonical points without repetition.
        top1, step_seconds, parameters: (N,) each. The mean for an architecture that was trained several times.
    """

    space: Space
    backbone: Measurement
    points: list[Point]
    top1: np.ndarray
    step_seconds: np.ndarray
    parameters: np.ndarray

    @property
    def rewards(self) -> np.ndarray:
        """(N,) rewards of the paper."""
        rows = zip(self.top1, self.step_seconds, self.parameters, strict=True)
        return np.array([worth(self.backbone, *row) for row in rows])


def worth(backbone: Measurement, top1: float, step_seconds: float, parameters: float) -> float:
    """Compute the paper's reward. A predicted accuracy may be a little outside of [0, 1]."""
    top1 = min(max(float(top1), 0.0), 1.0)
    return Reward().compute(Measurement(int(parameters), 1, top1=top1, step_seconds=step_seconds), backbone)


def read(path: Path) -> Table:
    """Read a recorded study from its two files, without failed architectures (no ``top1``).

    Raises:
        InputError: A column is missing, the space does not have an option, or there are too few architectures.
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
        chosen = {name: "" if pd.isna(row[name]) else row[name] for name in options}
        for name, known in options.items():
            if chosen[name] not in known:
                raise InputError(
                    f"{path}, row {number + 2}: {name} is '{chosen[name]}', which is no option of its space."
                )
        found.append(space.point({name: options[name][text] for name, text in chosen.items()}))
    rows["point"] = pd.Series(found, index=rows.index, dtype=object)
    each = rows.groupby("point", sort=False)[measured].mean()
    if len(each) < 2 * FOLDS:
        raise InputError(f"{path}: {len(each)} networks are too few to learn from; at least {2 * FOLDS}.")
    backbone = Measurement.from_json(about["backbone"])
    return Table(space, backbone, list(each.index), *(each[name].to_numpy(dtype=float) for name in measured))


def features(space: Space, points: Iterable[Point]) -> np.ndarray:
    """Return (N, F) one-hot features: 1 for each used option. A removed stage only has the feature of its removal."""
    sizes = [len(decision.options) for decision in space.decisions]
    rows = []
    for point in points:
        counts = space.effective(point)
        ones = [np.eye(size)[index] * took for size, index, took in zip(sizes, point, counts, strict=True)]
        rows.append(np.concatenate(ones))
    return np.array(rows)


def regression() -> Pipeline:
    """Build a ridge regression with effects of options and of pairs of options; cross-validation chooses the penalty.

    On synthetic tables its predictions were as good as those of Gaussian processes, and better than those of trees.
    """
    pairs = PolynomialFeatures(2, interaction_only=True, include_bias=False)
    return make_pipeline(pairs, StandardScaler(), RidgeCV(np.logspace(0, 5, 21)))


@dataclass(frozen=True)
class Surrogate:
    """Estimates the reward of each architecture of a space."""

    table: Table
    top1: Pipeline
    log_seconds: Pipeline
    classifier: float
    known: dict[Point, float] = field(default_factory=dict)

    @classmethod
    def fitted(cls, table: Table) -> Surrogate:
        """Fit to all rows of a table."""
        x = features(table.space, table.points)
        # The classifier is equal in all architectures of a space: its size is the difference of the two counts.
        sizes = [size - trunk(table.space, one) for size, one in zip(table.parameters, table.points, strict=True)]
        return cls(
            table,
            regression().fit(x, table.top1),
            regression().fit(x, np.log(table.step_seconds)),
            float(np.median(sizes)),
        )

    def reward(self, point: Point) -> float:
        """Estimate the reward of a canonical point."""
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
    """Count the parameters without the classifier. They do not depend on the image size."""
    return count_flops(space.decode(point), image_size=64, num_classes=0).total.parameters


def agreement(table: Table) -> dict[str, tuple[float, float, float]]:
    """Compute Kendall's tau between measured values and cross-validated predictions, with its interval."""
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
    """Compute Kendall's tau of two values per architecture, with its 95 % interval (bootstrap)."""
    draws = Key.of(0).fold("rank agreement").generator().integers(len(one), size=(_DRAWS, len(one)))
    taus = np.array([kendalltau(one[rows], other[rows]).statistic for rows in draws])
    low, high = np.nanquantile(taus, [0.025, 0.975])
    return float(kendalltau(one, other).statistic), float(low), float(high)
