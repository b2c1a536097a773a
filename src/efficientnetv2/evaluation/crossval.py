"""Results of a cross-validation: by fold, over the folds, and compared with other folds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from efficientnetv2.evaluation.generalization import (
    NEAR_KM,
    NewPlaceEstimate,
    SplitComparison,
    TrainDistance,
    new_place_estimate,
)
from efficientnetv2.evaluation.html import Section, percent
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
        deviation = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return f"{100 * self.mean:.1f}{deviation} % ({100 * self.least:.1f} to {percent(self.most)})"


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

    def lines(self) -> list[str]:
        """Lines to print: the spread, and comparisons with other folds."""
        warnings = [f"{'Warning: ' * each.flattering}{each.sentence()}" for each in self.comparisons]
        return [self._spread_text, *self._weights_notes(), *warnings]

    def new_places(self) -> NewPlaceEstimate | None:
        """What the folds say of new locations; None if no location or group is known."""
        return new_place_estimate(self.by, self.comparisons, self.apart)

    def sections(self) -> list[Section]:
        """Sections of the page: folds, candidates, and comparisons with other folds."""
        found = [self._folds_section()]
        if self.tries:
            sentence = (
                f"Chosen in each fold by {MACRO_METRICS[self.over_classes]} on a part of its training images. The "
                "metrics above chose nothing."
            )
            numbers = [fold.number for fold in self.folds]
            rows = [
                [each.name, *(percent(each.scores.get(number)) for number in numbers)] for each in self.tries
            ]
            columns = ["hyperparameters", *(f"fold {number + 1}" for number in numbers)]
            found.append(Section("Candidates", [sentence], columns, rows))
        if self.comparisons:
            sentences = [f"{'!' * each.flattering}{each.sentence()}" for each in self.comparisons]
            found.append(Section("New locations", sentences))
        return found

    def _folds_section(self) -> Section:
        models = "a model" if self.members == 1 else f"{self.members} models together (their mean)"
        sentences = [
            self.note,
            f"The metrics above are of all images together, each predicted by {models} not trained on it. "
            f"{self._spread_text}",
            *self._weights_notes(),
        ]
        if (
            len({(fold.weights, fold.chosen, fold.epochs) for fold in self.folds}) > 1
            or self.members > 1
            or self.timed
        ):
            epochs = (
                " The number of epochs that fit into the minutes was measured there." if self.timed else ""
            )
            sentences.append(
                "Recipe, epochs and automatic choices on this page are those of the first model of fold 1. The other "
                f"runs have their own reports.{epochs}"
            )
        sentences.append("Training curves are in the report of each fold: fold1/report.html and so on.")
        table = {
            "": [f"fold {fold.number + 1}" for fold in self.folds],
            "training images": [f"{fold.num_train:,}" for fold in self.folds],
            "predicted images": [f"{fold.num_test:,}" for fold in self.folds],
            "top-1": [percent(fold.top1) for fold in self.folds],
            MACRO_METRICS[self.over_classes]: [percent(fold.mean) for fold in self.folds],
            "epochs": ["–" if fold.epochs is None else f"{fold.epochs:.4g}" for fold in self.folds],
            "minutes": [f"{fold.seconds / 60:.1f}" for fold in self.folds],
            "note": [fold.note for fold in self.folds],
            "chosen" if self.tries else "hyperparameters": ["; ".join(fold.chosen) for fold in self.folds],
        }
        table = {name: column for name, column in table.items() if any(column)}
        return Section("Folds", sentences, list(table), list(zip(*table.values(), strict=True)))

    @property
    def _spreads(self) -> dict[str, FoldSpread]:
        return {
            self.over_classes: FoldSpread.of([fold.mean for fold in self.folds]),
            "top1": FoldSpread.of([fold.top1 for fold in self.folds]),
        }

    @property
    def _spread_text(self) -> str:
        values = ", ".join(
            f"{MACRO_METRICS.get(name, 'top-1')} {each}" for name, each in self._spreads.items()
        )
        return f"Over {len(self.folds)} folds, mean ± standard deviation (least to most): {values}."

    def _weights_notes(self) -> list[str]:
        """A sentence if folds chose different initial weights."""
        folds_of: dict[str, list[str]] = {}
        for fold in self.folds:
            folds_of.setdefault(" and ".join(fold.weights), []).append(str(fold.number + 1))
        if len(folds_of) < 2:
            return []
        listed = "; ".join(f"{weights} (fold {', '.join(numbers)})" for weights, numbers in folds_of.items())
        return [
            f"Initial weights: {listed}, chosen on the training images of each fold. "
            "The linear probe uses those of fold 1."
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for ``report.json``."""
        return {
            "split_by": self.by,
            "folds": [asdict(fold) for fold in self.folds],
            "fold_mean": {name: asdict(spread) for name, spread in self._spreads.items()},
            "candidates": [{"settings": each.name, "scores": dict(each.scores)} for each in self.tries],
            "split_comparison": [each.to_json() for each in self.comparisons],
            "distance_to_train": None if self.apart is None else asdict(self.apart) | {"near_km": NEAR_KM},
        }
