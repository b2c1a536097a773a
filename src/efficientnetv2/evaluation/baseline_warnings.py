"""Sentences on whether a model beats its baselines: warnings of the report, and lines below the printed metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from efficientnetv2.evaluation.html import percent
from efficientnetv2.evaluation.predictions import PairedDifference
from efficientnetv2.evaluation.report_metadata import ReportContext, ReportMetadata
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.multilabel import ASSIGNMENT_RULES, MACRO_METRICS, Metrics, MultilabelMetrics, macro_metric
from efficientnetv2.utils.errors import pluralize


def majority_warning(metrics: Metrics, intervals: Mapping[str, Interval]) -> str | None:
    """A sentence if the model is not clearly better than always predicting the majority class."""
    low, high = intervals["top1"]
    if low > metrics.majority_top1:
        return None
    if high >= metrics.majority_top1:
        return "The model is not clearly better than that."
    # A model that finds rare classes at the cost of the frequent class has a low top-1 but is of use.
    classes = sum(each.support > 0 for each in metrics.per_class.values())
    if isinstance(metrics, MultilabelMetrics) or "balanced_accuracy" not in intervals or classes == 1:
        return "The model is worse than that."
    separates = intervals["balanced_accuracy"][0] > 1 / classes
    return (
        f"The model is worse than that{', but it separates' if separates else ' and does not clearly separate'} the "
        f"classes: balanced accuracy is {percent(metrics.balanced_accuracy)}, by chance {percent(1 / classes)}."
    )


def probe_evaluated_images(metrics: Metrics, difference: PairedDifference | None) -> str | None:
    """``500 of these images``, if the linear probe was evaluated on fewer."""
    if difference is None or difference.num_images >= metrics.num_images:
        return None
    return f"{difference.num_images:,} of these images"


def probe_warning(metrics: Metrics, metadata: ReportMetadata, difference: PairedDifference | None = None) -> str | None:
    """A sentence if the model does not beat the linear probe in top-1 and macro-F1, or if training was discarded.

    ``difference`` is of model and probe on the images that both predicted.
    """
    probe = {"top-1": metadata.linear_probe_top1, "macro-F1": metadata.linear_probe_macro_f1}
    if None in probe.values() or isinstance(metrics, MultilabelMetrics):
        return None
    if metadata.kept_model == "start":
        return metadata.kept_reason
    model, images = {"top-1": metrics.top1, "macro-F1": metrics.macro_f1}, ""
    if difference is not None and difference.num_images < metrics.num_images:
        gains = {"top-1": difference.top1.value, "macro-F1": difference.macro_f1.value}
        model = {name: (value or 0) + gains[name] for name, value in probe.items()}
        images = f" on the {difference.num_images:,} images that both predicted"
    lost = [
        f"{name} ({percent(model[name])} against {percent(value)}{images})"
        for name, value in probe.items()
        if value is not None and model[name] <= value
    ]
    if not lost:
        return None
    return (
        f"Training has not beaten the linear probe in {' or '.join(lost)}. The probe is a linear classifier on "
        f"pretrained features, trained on {metadata.probe_training_images or 'the same images'}."
    )


def accuracy_lines(
    score: Metrics, intervals: Mapping[str, Interval], evaluated_on: str, unit: str | None
) -> Iterator[str]:
    """Accuracy with intervals, compared with the majority class. ``unit`` is what the bootstrap draws as a whole."""
    low, high = intervals["top1"]
    name, mean = macro_metric(score)
    reach = f" ({intervals[name][0]:.1%} to {intervals[name][1]:.1%})" if name in intervals else ""
    yield (
        f"top-1 {score.top1:.1%} (95 % interval {low:.1%} to {high:.1%}), {MACRO_METRICS[name]} {mean:.1%}{reach} on "
        f"{pluralize(score.num_images, 'image')} ({evaluated_on})"
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


def probe_lines(metrics: Metrics, facts: ReportMetadata, probe: PairedDifference | None) -> Iterator[str]:
    """The linear probe on the initial weights, or a warning that the model is below it."""
    warning = probe_warning(metrics, facts, probe)
    if warning is not None:
        yield warning
    elif facts.linear_probe_top1 is not None and facts.linear_probe_macro_f1 is not None:
        fewer, on = facts.probe_training_images, probe_evaluated_images(metrics, probe)
        trained = "" if fewer is None else f", trained on {fewer}"
        yield (
            f"Linear probe on the initial weights{trained}{f', on {on}' if on else ''}: top-1 "
            f"{facts.linear_probe_top1:.1%}, macro-F1 {facts.linear_probe_macro_f1:.1%}."
        )


def summary_lines(context: ReportContext) -> list[str]:
    """What is printed below the metrics."""
    lines = [] if context.unseen is None else [context.unseen]
    name, last = context.last or ("", None)
    for question, difference in (
        ("Is it better with test-time augmentation?", context.tta),
        ("Better than the linear probe?", context.probe),
        (f"Better than {name}?", last),
    ):
        if difference is not None:
            lines.append(f"{question} {difference.verdict} {difference.text}")
    if context.more_labels is not None:
        lines.append(f"Would more labels help? {' '.join(context.more_labels)}")
    answers = [each[1] for each in (context.calibration, context.subgroups) if each is not None]
    return [*lines, *answers, *context.requested]
