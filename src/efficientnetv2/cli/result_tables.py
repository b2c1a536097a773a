"""What commands print of a run or an evaluation: its metrics, by class and over all images."""

from __future__ import annotations

from pathlib import Path

from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.evaluation.evaluation_result import EvaluationResult
from efficientnetv2.evaluation.training_plots import SizeCurve
from efficientnetv2.metrics.multilabel import Metrics, MultilabelMetrics
from efficientnetv2.utils.errors import format_duration
from efficientnetv2.utils.io import read_object

_CLASSES_SHOWN = 30  # Ours.


class ResultPrinter:
    """Prints a result as soon as it is known: before the report is written, so that a full disk loses no metric."""

    def __init__(self, screen: Screen, *, as_json: bool) -> None:
        self._screen, self._as_json = screen, as_json

    def __call__(self, result: EvaluationResult | Path, sizes: SizeCurve | None = None) -> None:
        """Print a result, or the report of a run that had finished before, which is printed as JSON alone."""
        if isinstance(result, Path):
            if self._as_json:
                fix = "Remove it, and --resume writes the report again from the folds."
                print_json(read_object(result, fix=fix))
        elif self._as_json:
            print_json(result.to_json())
        else:
            print_outcome(result, self._screen)
            if sizes is not None:
                _print_sizes(sizes, self._screen)


def print_outcome(outcome: EvaluationResult, screen: Screen) -> None:
    """Print the metrics of an evaluation."""
    columns, rows = _by_class(outcome.metrics)
    more = f" (the first {_CLASSES_SHOWN} of {len(rows)})"
    title = f"By class{more if len(rows) > _CLASSES_SHOWN else ''}"
    screen.table(title, columns, rows[:_CLASSES_SHOWN])
    for line in outcome.summary_lines:
        screen.say(line)
    facts = outcome.metadata
    if facts.wall_s is not None and facts.images_per_s is not None:
        waited = facts.data_wait_fraction
        share = "" if waited is None else f", {waited:.0%} of the training time waiting for images"
        what = "Training" if facts.is_training_report else "Prediction"
        screen.say(f"{what} took {format_duration(facts.wall_s)}, {facts.images_per_s:.0f} images/s{share}.")


def _print_sizes(curve: SizeCurve, screen: Screen) -> None:
    rows = [
        [str(point.image_size), f"{point.top1:.3f}", f"{point.low:.3f}", f"{point.high:.3f}",
         f"{point.macro_f1:.3f}", f"{point.images_per_s:.0f}"]
        for point in curve.points
    ]  # fmt: skip
    screen.table("By image size", ["px", "top-1", "low", "high", "macro-F1", "images/s"], rows)
    screen.say(curve.advice)


def _by_class(score: Metrics) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the classes that have an image."""
    if isinstance(score, MultilabelMetrics):
        return ["class", "average precision", "F1", "images"], [
            [name, f"{one.average_precision:.3f}", f"{one.f1:.3f}", str(one.support)]
            for name, one in score.per_class.items()
            if one.average_precision is not None and one.f1 is not None
        ]
    return ["class", "precision", "recall", "F1", "images"], [
        [name, *(f"{value:.3f}" for value in (one.precision, one.recall, one.f1)), str(one.support)]
        for name, one in score.per_class.items()
        if one.precision is not None and one.recall is not None and one.f1 is not None
    ]
