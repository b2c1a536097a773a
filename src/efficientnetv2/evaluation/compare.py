"""Runs beside each other: what each reached in which time, and how sure the difference is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.keys import Key
from efficientnetv2.evaluation.curve import Row
from efficientnetv2.training.folder import RunFolder

_DRAWS = 10_000  # of the paired bootstrap; ours


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run that has come to its end.

    Args:
        name: to call it by.
        report: its ``report.json``.
        history: rows of its ``metrics.jsonl``.
        right: path of each picture it was evaluated on → whether it was labelled right.
    """

    name: str
    report: Mapping[str, Any]
    history: tuple[Row, ...]
    right: Mapping[str, bool]

    @property
    def train_s(self) -> float:
        """Seconds of training, without validation and saving; of a run without such rows, of all."""
        seconds = sum(row.get("train_s", 0.0) for row in self.history if row["kind"] == "train")
        return float(seconds or self.report["wall_s"])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of the training pictures, growing."""
        return tuple(sorted({row["image_px"] for row in self.history if row["kind"] == "train"}))

    @classmethod
    def read(cls, folder: Path, name: str) -> FinishedRun:
        """What a run folder says.

        Args:
            folder: of a run.
            name: to call it by.

        Raises:
            InputError: it is none, the run has not come to its end, or its pictures have several labels.
        """
        missing = [
            file
            for file in ("report.json", "metrics.jsonl", "predictions.csv")
            if not (folder / file).is_file()
        ]
        if missing:
            raise InputError(
                f"{folder} is no run that has come to its end: it has no {missing[0]}. Give the folder of one; "
                f"one that was stopped goes on with effnetv2 train DATA --out {folder} --resume."
            )
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if "macro_f1" not in report:
            raise InputError(
                f"{folder}: its pictures have several labels each, but compare takes runs with one. Leave it out."
            )
        answers = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
        if "true_label" not in answers:
            raise InputError(
                f"{folder / 'predictions.csv'} has no column true_label: another version wrote it. "
                "Leave the run out, or train it again."
            )
        right = dict(zip(answers["path"], (answers["label"] == answers["true_label"]).tolist(), strict=True))
        history = RunFolder(folder, lambda line: None).history()
        return cls(name, report, tuple(history), right)


@dataclass(frozen=True)
class Gain:
    """How much better one run labels the same pictures than another.

    Args:
        points: of top-1.
        low, high: the 95 % interval: what chance in the choice of pictures leaves open, not that of the seed.
        pictures: that both were evaluated on.
        time_ratio: training time of the one over that of the other.
    """

    points: float
    low: float
    high: float
    pictures: int
    time_ratio: float


def gain(one: FinishedRun, over: FinishedRun) -> Gain | None:
    """One run against another, picture by picture; None if they were evaluated on different pictures.

    A percentile bootstrap over pictures, which are right with both, with neither, or with one of the two.

    Args:
        one: that is compared.
        over: what it is compared with.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    if one.right.keys() != over.right.keys() or not one.right:
        return None
    apart = np.array([int(right) - int(over.right[path]) for path, right in one.right.items()])
    counts = np.array([(apart == value).sum() for value in (-1, 0, 1)])
    drawn = Key.of(0).fold("paired").generator().multinomial(len(apart), counts / len(apart), size=_DRAWS)
    points = 100 * (drawn[:, 2] - drawn[:, 0]) / len(apart)
    low, high = np.percentile(points, [2.5, 97.5])
    return Gain(
        float(100 * apart.mean()), float(low), float(high), len(apart), one.train_s / max(1e-9, over.train_s)
    )
