"""The questions at the top of a report, each with a verdict and its reasons, and the limitations of the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from efficientnetv2.evaluation.generalization import (
    QUESTIONS,
    NewPlaceEstimate,
    TrainDistance,
    hold_out_estimate,
)
from efficientnetv2.evaluation.headline import evaluated_images, probe_training_images
from efficientnetv2.evaluation.html import percent
from efficientnetv2.evaluation.next_steps import CHANGE_THE_PROBE, NextStep
from efficientnetv2.evaluation.predictions import PairedDifference, few_clusters_note
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.metrics.bootstrap import Difference
from efficientnetv2.metrics.classification import ClassificationMetrics
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.multilabel import Metrics, MultilabelMetrics
from efficientnetv2.metrics.subgroups import SMALL_SLICE
from efficientnetv2.utils.errors import pluralize

#: A verdict of a few words, and the sentences behind it.
Verdict = tuple[str, str]

_TTA = "Is it better with test-time augmentation?"
_PROBE = "Is it better than a linear probe?"
_LABELS = "Would more labels help?"


@dataclass(frozen=True)
class SummaryItem:
    """A question with its verdict in a few words and the sentences behind it.

    Attributes:
        command: Command that would measure it, or measure it better.
        section: Id of the section of the page with details.
    """

    question: str
    text: str
    verdict: str
    command: str | None = None
    section: str | None = None


@dataclass(frozen=True)
class ReportContext:
    """What the summary needs beside metrics and metadata. None: not known, or not requested.

    Attributes:
        probe: Model minus linear probe.
        last: Name of another run, and model minus that run.
        new_places: What a cross-validation says of new locations.
        bootstrap_unit: What the intervals draw whole: ``places``, ``groups``. None for single images.
        train_distance: Distance of the evaluated images from the training images.
        tta: Model with test-time augmentation minus without.
        unseen: Metrics without the images that trained the model, as a sentence.
    """

    probe: PairedDifference | None = None
    last: tuple[str, PairedDifference] | None = None
    new_places: NewPlaceEstimate | None = None
    bootstrap_unit: str | None = None
    train_distance: TrainDistance | None = None
    tta: PairedDifference | None = None
    unseen: str | None = None
    more_labels: Verdict | None = None
    calibration: Verdict | None = None
    subgroups: Verdict | None = None


def summarize(
    metrics: Metrics,
    intervals: Mapping[str, Interval],
    metadata: ReportMetadata,
    context: ReportContext,
    steps: Sequence[NextStep] = (),
) -> list[SummaryItem]:
    """The summary in reading order. A training report also says what was not measured; an evaluation does not."""
    multilabel = isinstance(metrics, MultilabelMetrics)
    items = [
        _performance(metrics, intervals, metadata),
        None
        if context.unseen is None
        else SummaryItem(
            "How good is it on images that it has not seen?", context.unseen, "Measured separately."
        ),
        _kept_model(metadata),
        _beats_probe(metadata, context.probe, multilabel),
        _beats_last(metadata, context.last, multilabel),
        None if context.tta is None else _tta(context.tta),
        _new_places(metadata, context),
        _more_labels(metadata, context.more_labels, multilabel, steps),
        _linked("Are its probabilities reliable?", context.calibration, "calibration"),
        _linked("Is it equally good in all subgroups?", context.subgroups, "subgroups"),
        _automatic_choices(metadata),
    ]
    return [item for item in items if item is not None]


def summary_lines(context: ReportContext) -> list[str]:
    """The part of the summary that is printed below the metrics."""
    lines = [] if context.unseen is None else [context.unseen]
    if context.tta is not None:
        lines.append(f"{_TTA} {describe_difference(context.tta)}")
    if context.probe is not None:
        lines.append(f"Better than the linear probe? {describe_difference(context.probe)}")
    if context.last is not None:
        name, difference = context.last
        lines.append(f"Better than {name}? {describe_difference(difference)}")
    if context.more_labels is not None:
        lines.append(f"{_LABELS} {' '.join(context.more_labels)}")
    return [*lines, *(each[1] for each in (context.calibration, context.subgroups) if each is not None)]


def describe_difference(difference: PairedDifference) -> str:
    """``Yes. On the same 100 images: top-1 +5.0 points (+1.0 to +9.0), ...``."""
    return f"{_better(difference)} {_points(difference)}"


def quote_classes(names: Sequence[str], most: int = 5) -> str:
    """The first class names, quoted, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {pluralize(len(names) - most, 'more class')}"


def limitations(
    metrics: Metrics, intervals: Mapping[str, Interval], metadata: ReportMetadata, context: ReportContext
) -> list[str]:
    """What the metrics do not say, in sentences."""
    low, high = intervals["top1"]
    unit, related = "", "related images (of one location, one day)"
    if context.bootstrap_unit is not None:
        unit, related = (
            f" in whole {context.bootstrap_unit}",
            "images related otherwise (of one day, one camera)",
        )
    sentences = [
        f"The intervals cover chance in the choice of these {metrics.num_images:,} images{unit}: top-1 from "
        f"{100 * low:.1f} to {percent(high)}. They do not cover another training seed, wrong labels, and {related}."
    ]
    few = [name for name, each in metrics.per_class.items() if 0 < each.support < SMALL_SLICE]
    if few:
        sentences.append(f"Metrics of {quote_classes(few)} rest on fewer than {SMALL_SLICE} images each.")
    distance = context.train_distance
    new = (context.new_places is not None and context.new_places.known) or (
        distance is not None and distance.new and distance.by == "place"
    )
    sentences.append(f"The metrics may not hold for other {'' if new else 'locations, '}seasons or cameras.")
    if not isinstance(metrics, MultilabelMetrics):
        sentences.append(
            "Overall metrics hold for this mix of classes. With another mix, precision and top-1 change, but recall "
            "does not."
        )
    if metadata.optimistic:
        sentences.append(f"{metadata.optimism}, so the metrics are optimistic.")
    if metadata.num_skipped:
        sentences.append(
            f"{pluralize(metadata.num_skipped, 'image')} could not be read and are not in the metrics."
        )
    return sentences


def _linked(question: str, verdict: Verdict | None, section: str) -> SummaryItem | None:
    return None if verdict is None else SummaryItem(question, verdict[1], verdict[0], section=section)


def _performance(
    metrics: Metrics, intervals: Mapping[str, Interval], metadata: ReportMetadata
) -> SummaryItem:
    question = "How good is it?"
    text = f"On {evaluated_images(metrics.num_images, metadata)}{': optimistic.' if metadata.optimistic else '.'}"
    if metrics.num_images < SMALL_SLICE:
        text += " So few images say little beyond the interval."
    if isinstance(metrics, MultilabelMetrics):
        interval = _interval(intervals.get("mean_average_precision"))
        return SummaryItem(
            question,
            f"{text}{_without_label(metrics)}",
            f"Mean average precision {percent(metrics.mean_average_precision)}{interval}.",
            section="per-class-metrics",
        )
    verdict = f"Macro-F1 {percent(metrics.macro_f1)}{_interval(intervals.get('macro_f1'))}."
    text += f" Each class counts alike in it. {_weakest_class(metrics, intervals)}"
    return SummaryItem(question, text, verdict, section="per-class-metrics")


def _without_label(metrics: MultilabelMetrics) -> str:
    """How many images get no label, although each has one."""
    if not metrics.without:
        return ""
    if metrics.without == metrics.num_images:
        return " No class reaches a probability of 0.5, so no image gets a label: the model has learned too little."
    verb = "gets" if metrics.without == 1 else "get"
    return f" {pluralize(metrics.without, 'image')} {verb} no label, because no class reaches 0.5."


def _weakest_class(metrics: ClassificationMetrics, intervals: Mapping[str, Interval]) -> str:
    measured = {name: each for name, each in metrics.per_class.items() if each.f1 is not None}
    never = [name for name, each in measured.items() if not each.f1]
    if len(never) > 1:
        return (
            f"No image of {len(never)} of the {len(measured)} classes is classified correctly: "
            f"{quote_classes(never, 3)}."
        )
    weakest = min(measured, key=lambda name: measured[name].f1 or 0.0)
    return (
        f"The weakest class is '{weakest}', with F1 {percent(measured[weakest].f1)}"
        f"{_interval(intervals.get(f'f1:{weakest}'))} on {pluralize(measured[weakest].support, 'image')}."
    )


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f" ({100 * interval[0]:.1f} to {percent(interval[1])})"


def _kept_model(metadata: ReportMetadata) -> SummaryItem | None:
    if not metadata.kept_reason:
        return None
    verdicts = {"start": "The model before training.", "trained": "A trained model.", None: "The last one."}
    return SummaryItem("Which model was kept?", metadata.kept_reason, verdicts[metadata.kept_model])


def _beats_probe(
    metadata: ReportMetadata, probe: PairedDifference | None, multilabel: bool
) -> SummaryItem | None:
    if probe is not None:
        subset = probe_training_images(metadata)
        own = f"{metadata.num_train_images:,}" if metadata.num_train_lost else "all"
        trained = "" if subset is None else f" It was trained on {subset}, the model on {own}."
        text = f"The probe is a linear classifier on the features of the pretrained weights.{trained} {_points(probe)}"
        return SummaryItem(_PROBE, text, _better(probe))
    if metadata.linear_probe_top1 is not None or not metadata.is_training_report:
        return None
    if multilabel:
        text = "A linear probe predicts one label, and these images have several."
    elif (metadata.recipe or {}).get("weights", "none") != "none":
        text = "No probe was requested."
    else:
        text = "The run started without pretrained weights, whose features a probe needs."
    return SummaryItem(_PROBE, text, "Not measured.")


def _beats_last(
    metadata: ReportMetadata, last: tuple[str, PairedDifference] | None, multilabel: bool
) -> SummaryItem | None:
    if last is not None:
        return SummaryItem(f"Is it better than {last[0]}?", _points(last[1]), _better(last[1]))
    if multilabel or not metadata.is_training_report:
        return None
    kind = "cross-validation by the same rule" if metadata.evaluated_on == "out-of-fold" else "run"
    text = f"No other finished {kind} here predicted the same images without training on them. To compare with another:"
    return SummaryItem("Is it better than the last run?", text, "Not known.", "effnetv2 compare RUN RUN")


def _tta(difference: PairedDifference) -> SummaryItem:
    verdict = _better(difference)
    if verdict != "Yes.":
        return SummaryItem(_TTA, _points(difference), verdict)
    text = f"{_points(difference)} To keep test-time augmentation in a model file:"
    return SummaryItem(_TTA, text, verdict, "effnetv2 convert MODEL OUT --tta d4")


def _better(difference: PairedDifference) -> str:
    certain = [each.value > 0 for each in (difference.top1, difference.macro_f1) if each.certain]
    if not certain:
        return "Not clearly."
    if all(certain):
        return "Yes."
    return "No, worse." if not any(certain) else "In one metric yes, in the other no."


def _points(difference: PairedDifference) -> str:
    def points(each: Difference) -> str:
        return f"{100 * each.value:+.1f} points ({100 * each.low:+.1f} to {100 * each.high:+.1f})"

    clusters = "" if difference.together is None else f", drawn in {difference.together:,} clusters"
    notes = [few_clusters_note(difference.together), difference.by_name, difference.optimistic]
    return (
        f"On the same {difference.num_images:,} images{clusters}: top-1 {points(difference.top1)}, "
        f"macro-F1 {points(difference.macro_f1)}; 95 % intervals.{''.join(f' {note}' for note in notes if note)}"
    )


def _new_places(metadata: ReportMetadata, context: ReportContext) -> SummaryItem | None:
    """Only for data with locations, groups or times."""
    found = context.new_places
    if found is None and metadata.is_training_report and context.train_distance is not None:
        found = hold_out_estimate(context.train_distance)
    return (
        None
        if found is None
        else SummaryItem(QUESTIONS[found.about], found.text, found.verdict, found.command)
    )


def _more_labels(
    metadata: ReportMetadata, verdict: Verdict | None, multilabel: bool, steps: Sequence[NextStep]
) -> SummaryItem | None:
    if verdict is not None:
        text = verdict[1]
        if first := [
            f"{step.action[0].lower()}{step.action[1:]}" for step in steps if step.topic in CHANGE_THE_PROBE
        ]:
            text += f" Other steps come first and change this estimate: {', '.join(first)}."
        return SummaryItem(_LABELS, text, verdict[0], section="learning-curve")
    if not metadata.is_training_report:
        return None
    needs = "one label per image" if multilabel else "pretrained weights and enough images per class"
    return SummaryItem(
        _LABELS, f"A linear probe on parts of the labels would show it. It needs {needs}.", "Not measured."
    )


def _automatic_choices(metadata: ReportMetadata) -> SummaryItem | None:
    choices = [text for text in metadata.auto_choices if text]
    if not choices:
        return None
    # Most sentences begin with their topic: "Model: efficientnetv2_b0, ...".
    topics = dict.fromkeys(topic.lower() for text in choices if (topic := _topic(text)))
    among = f"Among them: {', '.join(topics)}. " if topics else ""
    return SummaryItem(
        "What was chosen automatically?",
        f"{among}The list below explains each.",
        f"{pluralize(len(choices), 'choice')}.",
        section="automatic-choices",
    )


def _topic(text: str) -> str | None:
    start, colon, _ = text.partition(": ")
    return start if colon and start.replace(" ", "").isalpha() and len(start) <= 24 else None
