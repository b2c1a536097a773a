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
from efficientnetv2.evaluation.headline import describe_split, probe_training_images
from efficientnetv2.evaluation.html import format_interval, percent
from efficientnetv2.evaluation.next_steps import CHANGE_THE_PROBE, NextStep
from efficientnetv2.evaluation.predictions import PairedDifference, few_clusters_note
from efficientnetv2.evaluation.report_metadata import ReportMetadata
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
    items = [_performance(metrics, intervals, metadata)]
    if context.unseen is not None:
        question = "How good is it on images that it has not seen?"
        items.append(SummaryItem(question, context.unseen, "Measured separately."))
    if metadata.kept_reason:
        kept = {"start": "The model before training.", "trained": "A trained model.", None: "The last one."}
        items.append(SummaryItem("Which model was kept?", metadata.kept_reason, kept[metadata.kept_model]))
    items += _beats_probe(metadata, context.probe, multilabel)
    items += _beats_last(metadata, context.last, multilabel)
    if context.tta is not None:
        verdict = _better(context.tta)
        keep = "effnetv2 convert MODEL OUT --tta d4" if verdict == "Yes." else None
        how = " To keep test-time augmentation in a model file:" if keep else ""
        items.append(SummaryItem(_TTA, f"{_points(context.tta)}{how}", verdict, keep))
    places = context.new_places
    if places is None and metadata.is_training_report and context.train_distance is not None:
        places = hold_out_estimate(context.train_distance)
    if places is not None:
        items.append(SummaryItem(QUESTIONS[places.about], places.text, places.verdict, places.command))
    items += _more_labels(metadata, context.more_labels, multilabel, steps)
    for question, found, section in (
        ("Are its probabilities reliable?", context.calibration, "calibration"),
        ("Is it equally good in all subgroups?", context.subgroups, "subgroups"),
    ):
        if found is not None:
            items.append(SummaryItem(question, found[1], found[0], section=section))
    if choices := [text for text in metadata.auto_choices if text]:
        # Most sentences begin with their topic: "Model: efficientnetv2_b0, ...".
        starts = [text.partition(": ")[0].lower() for text in choices if ": " in text]
        topics = dict.fromkeys(
            start for start in starts if start.replace(" ", "").isalpha() and len(start) <= 24
        )
        among = f"Among them: {', '.join(topics)}. " if topics else ""
        text = f"{among}The list below explains each."
        verdict = f"{pluralize(len(choices), 'choice')}."
        items.append(
            SummaryItem("What was chosen automatically?", text, verdict, section="automatic-choices")
        )
    return items


def summary_lines(context: ReportContext) -> list[str]:
    """The part of the summary that is printed below the metrics."""
    lines = [] if context.unseen is None else [context.unseen]
    name, last = context.last or ("", None)
    for question, difference in (
        (_TTA, context.tta),
        ("Better than the linear probe?", context.probe),
        (f"Better than {name}?", last),
    ):
        if difference is not None:
            lines.append(f"{question} {describe_difference(difference)}")
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
    unit, related = context.bootstrap_unit, "images related otherwise (of one day, one camera)"
    if unit is None:
        related = "related images (of one location, one day)"
    sentences = [
        f"The intervals cover chance in the choice of these {metrics.num_images:,} images"
        f"{f' in whole {unit}' if unit else ''}: top-1 from {format_interval(intervals['top1'])}. They do not cover "
        f"another training seed, wrong labels, and {related}."
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
        sentences.append(f"Unreadable and not in the metrics: {pluralize(metadata.num_skipped, 'image')}.")
    return sentences


def _performance(
    metrics: Metrics, intervals: Mapping[str, Interval], metadata: ReportMetadata
) -> SummaryItem:
    text = f"On {pluralize(metrics.num_images, 'image')}: {describe_split(metadata)}"
    text += "; optimistic." if metadata.optimistic else "."
    if metrics.num_images < SMALL_SLICE:
        text += " So few images say little beyond the interval."
    if isinstance(metrics, MultilabelMetrics):
        name, value, title = (
            "mean_average_precision",
            metrics.mean_average_precision,
            "Mean average precision",
        )
        if metrics.without:
            text += f" Images without a label, because no class reaches 0.5: {metrics.without:,}."
    else:
        name, value, title = "macro_f1", metrics.macro_f1, "Macro-F1"
        measured = {each: scores.f1 for each, scores in metrics.per_class.items() if scores.f1 is not None}
        text += " Each class counts alike in it."
        never = [each for each, f1 in measured.items() if not f1]
        weakest = min(measured, key=measured.__getitem__)
        if len(never) > 1:
            text += (
                f" Classes that are never right: {len(never)} of {len(measured)}, {quote_classes(never, 3)}."
            )
        else:
            text += (
                f" The weakest class is '{weakest}', with F1 {percent(measured[weakest])}"
                f"{_in_brackets(intervals.get(f'f1:{weakest}'))} on "
                f"{pluralize(metrics.per_class[weakest].support, 'image')}."
            )
    verdict = f"{title} {percent(value)}{_in_brackets(intervals.get(name))}."
    return SummaryItem("How good is it?", text, verdict, section="per-class-metrics")


def _in_brackets(interval: Interval | None) -> str:
    return "" if interval is None else f" ({format_interval(interval)})"


def _beats_probe(
    metadata: ReportMetadata, probe: PairedDifference | None, multilabel: bool
) -> list[SummaryItem]:
    if probe is not None:
        subset = probe_training_images(metadata)
        own = f"{metadata.num_train_images:,}" if metadata.num_train_lost else "all"
        trained = "" if subset is None else f" It was trained on {subset}, the model on {own}."
        text = f"The probe is a linear classifier on the features of the pretrained weights.{trained} {_points(probe)}"
        return [SummaryItem(_PROBE, text, _better(probe))]
    if metadata.linear_probe_top1 is not None or not metadata.is_training_report:
        return []
    text = "The run started without pretrained weights, whose features a probe needs."
    if multilabel:
        text = "A linear probe predicts one label, and these images have several."
    elif (metadata.recipe or {}).get("weights", "none") != "none":
        text = "No probe was requested."
    return [SummaryItem(_PROBE, text, "Not measured.")]


def _beats_last(
    metadata: ReportMetadata, last: tuple[str, PairedDifference] | None, multilabel: bool
) -> list[SummaryItem]:
    if last is not None:
        return [SummaryItem(f"Is it better than {last[0]}?", _points(last[1]), _better(last[1]))]
    if multilabel or not metadata.is_training_report:
        return []
    kind = "cross-validation by the same rule" if metadata.evaluated_on == "out-of-fold" else "run"
    text = f"No other finished {kind} here predicted the same images without training on them. To compare with another:"
    return [SummaryItem("Is it better than the last run?", text, "Not known.", "effnetv2 compare RUN RUN")]


def _more_labels(
    metadata: ReportMetadata, verdict: Verdict | None, multilabel: bool, steps: Sequence[NextStep]
) -> list[SummaryItem]:
    if verdict is not None:
        first = [
            f"{step.action[0].lower()}{step.action[1:]}" for step in steps if step.topic in CHANGE_THE_PROBE
        ]
        others = f" Other steps come first and change this estimate: {', '.join(first)}." if first else ""
        return [SummaryItem(_LABELS, f"{verdict[1]}{others}", verdict[0], section="learning-curve")]
    if not metadata.is_training_report:
        return []
    needs = "one label per image" if multilabel else "pretrained weights and enough images per class"
    text = f"A linear probe on parts of the labels would show it. It needs {needs}."
    return [SummaryItem(_LABELS, text, "Not measured.")]


def _better(difference: PairedDifference) -> str:
    certain = [each.value > 0 for each in (difference.top1, difference.macro_f1) if each.certain]
    if not certain:
        return "Not clearly."
    if all(certain):
        return "Yes."
    return "No, worse." if not any(certain) else "In one metric yes, in the other no."


def _points(difference: PairedDifference) -> str:
    clusters = "" if difference.together is None else f", drawn in {difference.together:,} clusters"
    notes = [few_clusters_note(difference.together), difference.by_name, difference.optimistic]
    return (
        f"On the same {difference.num_images:,} images{clusters}: top-1 {difference.top1.points}, "
        f"macro-F1 {difference.macro_f1.points}; 95 % intervals.{''.join(f' {note}' for note in notes if note)}"
    )
