"""Results of a cross-validation: by fold, over the folds, and compared with other folds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from efficientnetv2.evaluation.generalization import (
    NewPlaceEstimate,
    SplitComparison,
    TrainDistance,
    new_place_estimate,
)
from efficientnetv2.evaluation.html import percent
from efficientnetv2.evaluation.locations import NEAR_KM
from efficientnetv2.evaluation.sections import Section
from efficientnetv2.metrics.multilabel import MACRO_METRICS


@dataclass(frozen=True)
class Candidate:
    """Candidate hyperparameters, and fold -> macro metric on the selection part of the fold's training images."""

    name: str
    scores: Mapping[int, float]


@dataclass(frozen=True)
class FoldScore:
    """Result of a fold, of its model or of its models together. The fields are keys of ``report.json``.

    Attributes:
        number: From 0.
        note: What distinguishes the fold, such as its period.
        num_train: Number of training images.
        num_test: Number of predicted images.
        mean: Macro-F1, or mean average precision.
        epochs: Of the first model.
        weights: Initial weights of each model that differs.
        chosen: Chosen candidate of each model, the best first.
    """

    number: int
    note: str
    num_train: int
    num_test: int
    top1: float
    mean: float
    epochs: float | None
    seconds: float
    weights: tuple[str, ...]
    chosen: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoldSpread:
    """Mean, standard deviation (n - 1; None for one fold) and range of a metric over the folds."""

    mean: float
    deviation: float | None
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> FoldSpread:
        """From one value per fold."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, min(values), max(values))

    def __str__(self) -> str:
        give = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return f"{100 * self.mean:.1f}{give} % ({100 * self.least:.1f} to {percent(self.most)})"


@dataclass(frozen=True)
class CrossValidationSummary:
    """Everything beside the pooled metrics.

    Attributes:
        by: Rule of the folds, ``data.folds.Folds.rule``.
        note: How the folds were made.
        over_classes: Key of the macro metric, one of ``MACRO_METRICS``.
        comparisons: With other folds.
        members: Models that predict each fold together.
        timed: Whether a time budget decided the number of epochs.
    """

    by: str
    note: str
    over_classes: str
    folds: Sequence[FoldScore]
    tries: Sequence[Candidate] = ()
    comparisons: Sequence[SplitComparison] = ()
    members: int = 1
    timed: bool = False
    apart: TrainDistance | None = None

    @property
    def top1(self) -> FoldSpread:
        """Top-1 over the folds."""
        return FoldSpread.of([fold.top1 for fold in self.folds])

    @property
    def mean(self) -> FoldSpread:
        """The macro metric over the folds."""
        return FoldSpread.of([fold.mean for fold in self.folds])

    def lines(self) -> list[str]:
        """Lines to print: the spread, and comparisons with other folds."""
        words = MACRO_METRICS[self.over_classes]
        spread = f"Over {len(self.folds)} folds, mean ± standard deviation (least to most)"
        return [
            f"{spread}: {words} {self.mean}, top-1 {self.top1}.",
            *self._starts(),
            *(
                f"Warning: {each.sentence()}" if each.flattering else each.sentence()
                for each in self.comparisons
            ),
        ]

    def new_places(self) -> NewPlaceEstimate | None:
        """What the folds say of new locations; None if no location or group is known."""
        return new_place_estimate(self.by, self.comparisons, self.apart)

    def sections(self) -> list[Section]:
        """Sections of the page."""
        words = MACRO_METRICS[self.over_classes]
        noted, chose = any(fold.note for fold in self.folds), any(fold.chosen for fold in self.folds)
        columns = ["", "training images", "predicted images", "top-1", words, "epochs", "minutes"]
        rows = [
            [
                f"fold {fold.number + 1}", f"{fold.num_train:,}", f"{fold.num_test:,}", percent(fold.top1),
                percent(fold.mean), "–" if fold.epochs is None else f"{fold.epochs:.4g}", f"{fold.seconds / 60:.1f}",
                *([fold.note] if noted else []), *(["; ".join(fold.chosen)] if chose else []),
            ]
            for fold in self.folds
        ]  # fmt: skip
        first = Section(
            "Folds",
            [
                self.note,
                f"The metrics above are of all images together, each predicted by {self._models} not trained on it. "
                f"Over the folds, mean ± standard deviation (least to most): {words} {self.mean}, top-1 {self.top1}.",
                *self._starts(),
                *self._shown(),
                "Training curves are in the report of each fold: fold1/report.html and so on.",
            ],
            [
                *columns,
                *(["note"] if noted else []),
                *(["chosen" if self.tries else "hyperparameters"] if chose else []),
            ],
            rows,
        )
        return [first, *self._candidates(words), *self._comparisons()]

    @property
    def _models(self) -> str:
        return "a model" if self.members == 1 else f"{self.members} models together (their mean)"

    def _starts(self) -> list[str]:
        """A sentence if folds chose different initial weights."""
        started: dict[str, list[str]] = {}
        for fold in self.folds:
            started.setdefault(" and ".join(fold.weights), []).append(str(fold.number + 1))
        if len(started) < 2:
            return []
        listed = "; ".join(
            f"{weights} in fold{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
            for weights, numbers in started.items()
        )
        return [
            f"Initial weights: {listed}, chosen on the training images of each fold. "
            "The linear probe uses those of fold 1."
        ]

    def _shown(self) -> list[str]:
        """A sentence if the page shows one run that stands for different ones."""
        alike = len({(fold.weights, fold.chosen, fold.epochs) for fold in self.folds}) < 2
        if alike and self.members == 1 and not self.timed:
            return []
        run = "fold 1" if self.members == 1 else "the first model of fold 1"
        epochs = " The number of epochs that fit into the minutes was measured there." if self.timed else ""
        return [
            f"Recipe, epochs and automatic choices on this page are those of {run}. The other runs have their own "
            f"reports.{epochs}"
        ]

    def _candidates(self, words: str) -> list[Section]:
        if not self.tries:
            return []
        sentence = f"Chosen in each fold by {words} on a part of its training images. The metrics above chose nothing."
        numbers = [fold.number for fold in self.folds]
        rows = [[each.name, *(percent(each.scores.get(number)) for number in numbers)] for each in self.tries]
        return [
            Section("Candidates", [sentence], ["hyperparameters", *(f"fold {n + 1}" for n in numbers)], rows)
        ]

    def _comparisons(self) -> list[Section]:
        sentences = [
            f"!{each.sentence()}" if each.flattering else each.sentence() for each in self.comparisons
        ]
        return [Section("New locations", sentences)] if sentences else []

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for ``report.json``."""
        return {
            "split_by": self.by,
            "folds": [asdict(fold) for fold in self.folds],
            "fold_mean": {"top1": asdict(self.top1), self.over_classes: asdict(self.mean)},
            "candidates": [{"settings": each.name, "scores": dict(each.scores)} for each in self.tries],
            "split_comparison": [each.to_json() for each in self.comparisons],
            "distance_to_train": None if self.apart is None else asdict(self.apart) | {"near_km": NEAR_KM},
        }
