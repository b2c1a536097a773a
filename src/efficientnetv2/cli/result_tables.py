"""What commands print of a run or an evaluation: its metrics, by class and over all images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.evaluation.baseline_warnings import probe_evaluated_images, probe_warning, summary_lines
from efficientnetv2.evaluation.evaluation_result import EvaluationResult
from efficientnetv2.evaluation.training_plots import SizeCurve
from efficientnetv2.metrics.multilabel import ASSIGNMENT_RULES, MACRO_METRICS, Metrics, MultilabelMetrics, macro_metric
from efficientnetv2.utils.errors import format_duration, pluralize
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
    more = f" (the first {_CLASSES_SHOWN} of {len(rows)}; all in the report)"
    title = f"By class{more if len(rows) > _CLASSES_SHOWN else ''}"
    screen.table(title, columns, rows[:_CLASSES_SHOWN])
    for line in (*_headline(outcome), *_probe(outcome), *summary_lines(outcome.findings.context)):
        screen.say(line)
    facts = outcome.metadata
    if facts.optimistic:
        reason = "trained the model" if facts.on_training_split else "also selected the model"
        screen.say("Optimistic: " + " ".join(facts.notes or [f"these images {reason}."]))
    if facts.wall_s is not None and facts.images_per_s is not None:
        waited = facts.data_wait_fraction
        share = "" if waited is None else f", {waited:.0%} of the training time waiting for images"
        screen.say(f"{format_duration(facts.wall_s)}, {facts.images_per_s:.0f} images/s{share}.")


def _headline(outcome: EvaluationResult) -> Iterator[str]:
    """Accuracy with intervals, compared with the majority class."""
    score, intervals = outcome.metrics, outcome.intervals
    low, high = intervals["top1"]
    name, mean = macro_metric(score)
    reach = f" ({intervals[name][0]:.1%} to {intervals[name][1]:.1%})" if name in intervals else ""
    unit = outcome.findings.context.bootstrap_unit
    yield (
        f"top-1 {score.top1:.1%} (95 % interval {low:.1%} to {high:.1%}), {MACRO_METRICS[name]} {mean:.1%}{reach} on "
        f"{pluralize(score.num_images, 'image')} ({outcome.metadata.evaluated_on})"
        f"{'' if unit is None else f', bootstrap of whole {unit}'}."
    )
    if isinstance(score, MultilabelMetrics):
        yield (
            f"With every class {ASSIGNMENT_RULES[score.activation]}: micro-F1 {score.f1_micro:.1%}, "
            f"macro-F1 {score.f1_macro:.1%}."
        )
    verdict = "not clearly above"
    if low > score.majority_top1 or high < score.majority_top1:
        verdict = "above" if low > score.majority_top1 else "below"
    yield (
        f"That is {verdict} always predicting '{score.majority_class}', which is correct for {score.majority_top1:.1%}."
    )


def _probe(outcome: EvaluationResult) -> Iterator[str]:
    """The linear probe on the initial weights, or a warning that the model is below it."""
    facts, probe = outcome.metadata, outcome.findings.context.probe
    warning = probe_warning(outcome.metrics, facts, probe)
    if warning is not None:
        yield warning
    elif facts.linear_probe_top1 is not None and facts.linear_probe_macro_f1 is not None:
        fewer, on = facts.probe_training_images, probe_evaluated_images(outcome.metrics, probe)
        trained = "" if fewer is None else f", trained on {fewer}"
        yield (
            f"Linear probe on the initial weights{trained}{f', on {on}' if on else ''}: top-1 "
            f"{facts.linear_probe_top1:.1%}, macro-F1 {facts.linear_probe_macro_f1:.1%}."
        )


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
