"""What a cross-validation came to: fold by fold, over the folds, and beside folds that were dealt otherwise."""

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
from efficientnetv2.evaluation.sections import Section
from efficientnetv2.evaluation.split_leakage import NEAR_KM
from efficientnetv2.metrics.multilabel import MACRO_METRICS


@dataclass(frozen=True)
class Candidate:
    """One of the settings that a fold could choose from.

    Args:
        name: the settings, as the user gave them.
        scores: fold → the mean figure over classes on the part of the fold's training pictures that chose.
    """

    name: str
    scores: Mapping[int, float]


@dataclass(frozen=True)
class FoldScore:
    """What one fold's network reached, or its networks together.

    Args:
        number: of the fold, from 0.
        note: what sets it apart, such as its period; empty for nothing.
        learning: pictures that it had to learn from.
        answering: pictures that it answered.
        top1: share that it labelled right.
        mean: its mean figure over classes, macro-F1 where a picture has one label.
        epochs: that it was trained for; of several networks the first.
        seconds: that this took, all networks together.
        weights: that it began from, as the recipe says; of several networks each that differs.
        chosen: the settings of each network, as a try says them: the best inside the fold's training pictures, the
            best first; empty without tries.
    """

    number: int
    note: str
    learning: int
    answering: int
    top1: float
    mean: float
    epochs: float | None
    seconds: float
    weights: tuple[str, ...]
    chosen: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoldSpread:
    """Of a figure over the folds.

    Args:
        mean: over the folds, each counting alike.
        deviation: standard deviation (n - 1); None of one fold.
        least, most: of the folds.
    """

    mean: float
    deviation: float | None
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> FoldSpread:
        """Of one value a fold."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, min(values), max(values))

    def __str__(self) -> str:
        give = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return f"{100 * self.mean:.1f}{give} % ({100 * self.least:.1f} to {percent(self.most)})"


@dataclass(frozen=True)
class CrossValidation:
    """All of it, beside the pooled figures.

    Args:
        by: the rule of the folds, as ``data.folds.Folds.rule`` has it.
        note: a sentence that says how they were made.
        over_classes: name of the mean figure over classes, one of ``MACRO_METRICS``.
        folds: in order.
        tries: that folds chose from; empty for none.
        beside: folds dealt otherwise, if they were.
        members: networks that answer each fold together.
        timed: whether minutes decided how many epochs there are.
        apart: how far the pictures are from those that their networks learnt from; None where nothing is known of it.
    """

    by: str
    note: str
    over_classes: str
    folds: Sequence[FoldScore]
    tries: Sequence[Candidate] = ()
    beside: Sequence[SplitComparison] = ()
    members: int = 1
    timed: bool = False
    apart: TrainDistance | None = None

    @property
    def top1(self) -> FoldSpread:
        """Over the folds."""
        return FoldSpread.of([fold.top1 for fold in self.folds])

    @property
    def mean(self) -> FoldSpread:
        """Of the figure in which each class counts alike, over the folds."""
        return FoldSpread.of([fold.mean for fold in self.folds])

    def lines(self) -> list[str]:
        """For the screen: the spread, and what folds dealt otherwise say."""
        words = MACRO_METRICS[self.over_classes]
        spread = f"Over {len(self.folds)} folds, mean ± standard deviation (least to most)"
        return [
            f"{spread}: {words} {self.mean}, top-1 {self.top1}.",
            *self._starts(),
            *(f"Warning: {one.sentence()}" if one.flattering else one.sentence() for one in self.beside),
        ]

    def elsewhere(self) -> NewPlaceEstimate | None:
        """The answer to the report's question about new places; None where nothing is known of places or groups."""
        return new_place_estimate(self.by, self.beside, self.apart)

    def sections(self) -> list[Section]:
        """For the page."""
        words = MACRO_METRICS[self.over_classes]
        noted, chose = any(fold.note for fold in self.folds), any(fold.chosen for fold in self.folds)
        columns = ["", "learnt from", "answered", "top-1", words, "epochs", "minutes"]
        rows = [
            [
                f"fold {fold.number + 1}", f"{fold.learning:,}", f"{fold.answering:,}", percent(fold.top1),
                percent(fold.mean), "–" if fold.epochs is None else f"{fold.epochs:.4g}", f"{fold.seconds / 60:.1f}",
                *([fold.note] if noted else []), *(["; ".join(fold.chosen)] if chose else []),
            ]
            for fold in self.folds
        ]  # fmt: skip
        first = Section(
            "Folds",
            [
                self.note,
                f"The figures above are of all answers together, each by {self._who} that had not learnt from the "
                f"picture. Over the folds, mean ± standard deviation (least to most): {words} {self.mean}, top-1 "
                f"{self.top1}.",
                *self._starts(),
                *self._shown(),
                "How each of them learnt, its own report shows: fold1/report.html and so on.",
            ],
            [*columns, *(["what"] if noted else []), *([self._tries_called] if chose else [])],
            rows,
        )
        return [first, *self._tried(words), *self._dealt_otherwise()]

    @property
    def _who(self) -> str:
        return "a network" if self.members == 1 else f"{self.members} networks together (their mean)"

    @property
    def _tries_called(self) -> str:
        return "chosen" if self.tries else "settings"

    def _starts(self) -> list[str]:
        """A sentence where folds have chosen different weights to begin from."""
        began: dict[str, list[str]] = {}
        for fold in self.folds:
            began.setdefault(" and ".join(fold.weights), []).append(str(fold.number + 1))
        if len(began) < 2:
            return []
        listed = "; ".join(
            f"{weights} in fold{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
            for weights, numbers in began.items()
        )
        return [
            f"Weights: {listed}, as each fold's own training pictures had it. The linear probe is on those of fold 1."
        ]

    def _shown(self) -> list[str]:
        """A sentence where what the page shows of one run is not that of all."""
        alike = len({(fold.weights, fold.chosen, fold.epochs) for fold in self.folds}) < 2
        if alike and self.members == 1 and not self.timed:
            return []
        run = "fold 1" if self.members == 1 else "the first network of fold 1"
        epochs = " How many epochs fit into the minutes was measured there." if self.timed else ""
        return [
            f"What this report shows as recipe, epochs, and what was chosen is that of {run}; all others have reports "
            f"of their own.{epochs}"
        ]

    def _tried(self, words: str) -> list[Section]:
        if not self.tries:
            return []
        sentence = (
            f"Chosen in each fold by {words} on a part of its own training pictures: what is answered above has chosen "
            "nothing."
        )
        numbers = [fold.number for fold in self.folds]
        rows = [[one.name, *(percent(one.scores.get(number)) for number in numbers)] for one in self.tries]
        return [Section("Candidates", [sentence], ["settings", *(f"fold {n + 1}" for n in numbers)], rows)]

    def _dealt_otherwise(self) -> list[Section]:
        sentences = [f"!{one.sentence()}" if one.flattering else one.sentence() for one in self.beside]
        return [Section("New locations", sentences)] if sentences else []

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for ``report.json``."""
        return {
            "split_by": self.by,
            "folds": [asdict(fold) for fold in self.folds],
            "over_folds": {"top1": asdict(self.top1), self.over_classes: asdict(self.mean)},
            "tries": [{"settings": one.name, "scores": dict(one.scores)} for one in self.tries],
            "splits_compared": [one.to_json() for one in self.beside],
            "apart": None if self.apart is None else asdict(self.apart) | {"near_km": NEAR_KM},
        }
