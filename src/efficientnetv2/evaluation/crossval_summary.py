"""Results of a cross-validation: by fold, over the folds, and compared with other folds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from efficientnetv2.evaluation.distribution_shift import (
    NEAR_KM,
    NewPlaceEstimate,
    SplitComparison,
    TrainDistance,
    new_place_estimate,
)
from efficientnetv2.evaluation.html import TemplateSection, percent
from efficientnetv2.metrics.multilabel import MACRO_METRICS


@dataclass(frozen=True)
class FoldScore:
    """Result of a fold, of its model or of its models together. The fields are keys of ``report.json``."""

    number: int  # from 0
    note: str  # what distinguishes the fold, such as its period
    num_train: int
    num_test: int
    top1: float
    mean: float  # macro-F1, or mean average precision
    epochs: float | None  # of the first model
    seconds: float
    weights: tuple[str, ...]  # initial weights of each model that differs
    chosen: tuple[str, ...] = ()  # candidate of each model, the best first


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
        deviation = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return f"{100 * self.mean:.1f}{deviation} % ({100 * self.least:.1f} to {percent(self.most)})"


@dataclass(frozen=True)
class CrossValidationSummary:
    """Everything besides the pooled metrics."""

    by: str  # rule of the folds, ``data.folds.Folds.rule``
    note: str  # how the folds were made
    over_classes: str  # key of the macro metric, one of ``MACRO_METRICS``
    folds: Sequence[FoldScore]
    # Settings -> fold -> macro metric on the selection part of the fold's training images.
    candidates: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    comparisons: Sequence[SplitComparison] = ()  # with other folds
    members: int = 1  # models that predict each fold together
    timed: bool = False  # whether a time budget decided the number of epochs
    train_distance: TrainDistance | None = None

    def lines(self) -> list[str]:
        """Lines to print: the spread, and comparisons with other folds."""
        warnings = [f"{'Warning: ' * each.is_optimistic}{each.sentence()}" for each in self.comparisons]
        return [line for line in (self.spread_text, self.weights_note, *warnings) if line]

    def new_places(self) -> NewPlaceEstimate | None:
        """The estimate of the folds for new locations; None if no location or group is known."""
        return new_place_estimate(self.by, self.comparisons, self.train_distance)

    def section(self) -> TemplateSection:
        """Folds, candidates, and comparisons with other folds."""
        runs_differ = len({(fold.weights, fold.chosen, fold.epochs) for fold in self.folds}) > 1
        values = {
            "summary": self,
            "macro": MACRO_METRICS[self.over_classes],
            "first_fold_only": runs_differ or self.members > 1 or self.timed,
        }
        return TemplateSection("folds.html.j2", values)

    @property
    def _spreads(self) -> dict[str, FoldSpread]:
        return {
            self.over_classes: FoldSpread.of([fold.mean for fold in self.folds]),
            "top1": FoldSpread.of([fold.top1 for fold in self.folds]),
        }

    @property
    def spread_text(self) -> str:
        """The metrics over the folds, as a sentence."""
        values = ", ".join(f"{MACRO_METRICS.get(name, 'top-1')} {each}" for name, each in self._spreads.items())
        return f"Over {len(self.folds)} folds, mean ± standard deviation (least to most): {values}."

    @property
    def weights_note(self) -> str:
        """A sentence if folds chose different initial weights, else ''."""
        folds_of: dict[str, list[str]] = {}
        for fold in self.folds:
            folds_of.setdefault(" and ".join(fold.weights), []).append(str(fold.number + 1))
        if len(folds_of) < 2:
            return ""
        listed = "; ".join(f"{weights} (fold {', '.join(numbers)})" for weights, numbers in folds_of.items())
        return f"Initial weights, chosen on the training images of each fold: {listed}."

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for ``report.json``."""
        distance = self.train_distance
        return {
            "split_by": self.by,
            "folds": [asdict(fold) for fold in self.folds],
            "fold_mean": {name: asdict(spread) for name, spread in self._spreads.items()},
            "candidates": [{"settings": name, "scores": dict(scores)} for name, scores in self.candidates.items()],
            "split_comparison": [asdict(each) | {"is_optimistic": each.is_optimistic} for each in self.comparisons],
            "distance_to_train": None if distance is None else asdict(distance) | {"near_km": NEAR_KM},
        }
