"""What commands print of a run or an evaluation: its metrics, by class and over all images."""

from __future__ import annotations

from pathlib import Path

from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.evaluation.headline import probe_evaluated_images, probe_training_images, probe_warning
from efficientnetv2.evaluation.plots import SizeCurve
from efficientnetv2.evaluation.summary import summary_lines
from efficientnetv2.metrics.multilabel import (
    ASSIGNMENT_RULES,
    MACRO_METRICS,
    Metrics,
    MultilabelMetrics,
    macro_metric,
)
from efficientnetv2.utils.errors import format_duration, pluralize
from efficientnetv2.utils.io import read_object
from efficientnetv2.workflows.evaluation_result import EvaluationResult

_CLASSES_SHOWN = 30  # Ours.


class ResultPrinter:
    """Prints a result as soon as it is known: before the report is written, so that a full disk loses no metric.

    Args:
        screen: Where the command writes.
        as_json: Print the report as JSON instead.
    """

    def __init__(self, screen: Screen, *, as_json: bool) -> None:
        self._screen, self._as_json = screen, as_json

    def __call__(self, result: EvaluationResult | Path, sizes: SizeCurve | None = None) -> None:
        """Print an outcome, or the report of a run that had finished before, which is printed as JSON alone."""
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
    """Print the metrics of an outcome."""
    score, low_high = outcome.figures, outcome.intervals
    columns, rows = _by_class(score)
    more = (
        f" (the first {_CLASSES_SHOWN} of {len(rows)}; all in the report)"
        if len(rows) > _CLASSES_SHOWN
        else ""
    )
    screen.table(f"By class{more}", columns, rows[:_CLASSES_SHOWN])
    name, mean = macro_metric(score)
    drawn = outcome.findings.context.bootstrap_unit
    whole = "" if drawn is None else f", bootstrap of whole {drawn}"
    reach = f" ({low_high[name][0]:.1%} to {low_high[name][1]:.1%})" if name in low_high else ""
    screen.say(
        f"top-1 {score.top1:.1%} (95 % interval {low_high['top1'][0]:.1%} to {low_high['top1'][1]:.1%}), "
        f"{MACRO_METRICS[name]} {mean:.1%}{reach} on {pluralize(score.num_images, 'image')} "
        f"({outcome.facts.evaluated_on}){whole}."
    )
    if isinstance(score, MultilabelMetrics):
        screen.say(
            f"With every class {ASSIGNMENT_RULES[score.answer]}: micro-F1 {score.f1_micro:.1%}, "
            f"macro-F1 {score.f1_macro:.1%}."
        )
    low, high = low_high["top1"]
    verdict = (
        "above"
        if low > score.majority_top1
        else "below"
        if high < score.majority_top1
        else "not clearly above"
    )
    screen.say(
        f"That is {verdict} always answering '{score.majority_class}', which is right for "
        f"{score.majority_top1:.1%}."
    )
    lost = probe_warning(score, outcome.facts, outcome.findings.context.probe)
    if lost is not None:
        screen.say(lost)
    elif outcome.facts.linear_probe is not None and outcome.facts.linear_probe_macro_f1 is not None:
        fewer = probe_training_images(outcome.facts)
        learnt = "" if fewer is None else f", trained on {fewer},"
        on = probe_evaluated_images(score, outcome.findings.context.probe)
        screen.say(
            f"The linear probe on the weights it began with{learnt} had{f', on {on},' if on else ''} top-1 "
            f"{outcome.facts.linear_probe:.1%}, macro-F1 {outcome.facts.linear_probe_macro_f1:.1%}."
        )
    for line in summary_lines(outcome.findings.context):
        screen.say(line)
    if outcome.facts.optimistic:
        why = (
            "the network was trained on these pictures."
            if outcome.facts.on_training_split
            else "these pictures also chose the model."
        )
        screen.say("Optimistic: " + " ".join(outcome.facts.notes or [why]))
    if outcome.facts.wall_s is not None and outcome.facts.images_per_s is not None:
        waited = outcome.facts.input_wait_share
        share = "" if waited is None else f", {waited:.0%} of the training time waiting for pictures"
        screen.say(
            f"{format_duration(outcome.facts.wall_s)}, {outcome.facts.images_per_s:.0f} images/s{share}."
        )


def _print_sizes(curve: SizeCurve, screen: Screen) -> None:
    rows = [
        [str(point.image_px), f"{point.top1:.3f}", f"{point.low:.3f}", f"{point.high:.3f}",
         f"{point.macro_f1:.3f}", f"{point.images_per_s:.0f}"]
        for point in curve.points
    ]  # fmt: skip
    screen.table("By size", ["px", "top-1", "low", "high", "macro-F1", "images/s"], rows)
    screen.say(curve.advice)


def _by_class(score: Metrics) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the classes that have a picture."""
    if isinstance(score, MultilabelMetrics):
        return ["class", "average precision", "F1", "pictures"], [
            [name, f"{one.average_precision:.3f}", f"{one.f1:.3f}", str(one.support)]
            for name, one in score.per_class.items()
            if one.average_precision is not None and one.f1 is not None
        ]
    return ["class", "user's (precision)", "producer's (recall)", "F1", "pictures"], [
        [name, *(f"{value:.3f}" for value in (one.precision, one.recall, one.f1)), str(one.support)]
        for name, one in score.per_class.items()
        if one.precision is not None and one.recall is not None and one.f1 is not None
    ]
