"""What a report opens with: the questions that a person has, answered in a sentence or two each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from efficientnetv2.evaluation.generalization import QUESTIONS, NewPlaceEstimate, TrainDistance
from efficientnetv2.evaluation.headline import evaluated_images, probe_training_images
from efficientnetv2.evaluation.html import number, percent
from efficientnetv2.evaluation.next_steps import CHANGE_THE_PROBE, NextStep
from efficientnetv2.evaluation.predictions import PairedDifference, few_clusters_note
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.split_leakage import NEAR_KM
from efficientnetv2.metrics.bootstrap import Difference
from efficientnetv2.metrics.classification import ClassificationMetrics
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.multilabel import MultilabelMetrics
from efficientnetv2.metrics.subgroups import SMALL_SLICE
from efficientnetv2.utils.errors import count_of

_VIEWS = "Is it better with test-time augmentation?"


@dataclass(frozen=True)
class SummaryItem:
    """A question and its answer.

    Args:
        question: as a person asks it.
        words: the answer, in sentences.
        verdict: the same in a word or a figure, said first.
        command: that would answer it, or answer it better.
        section: The id of the section of the page that has more; None for none.
    """

    question: str
    words: str
    verdict: str
    command: str | None = None
    section: str | None = None


@dataclass(frozen=True)
class ReportContext:
    """What the answers are made from beside the figures; None and empty: not known, or not asked.

    Args:
        probe: what the network has over the linear probe, on the same pictures.
        last: another run, as it is called in a question, and what the network has over it.
        elsewhere: what a cross-validation says of pictures from new places.
        drawn_whole: what the intervals draw as a whole: "places", "groups"; None where they draw single pictures.
        apart: how far the pictures are from those learnt from, where that is known.
        views: what the network has with these views of each picture over its own, one.
        unseen: words on the pictures alone that did not train the network, where others did.
        labels: verdict and words on whether more labels would help.
        trusted: verdict and words on its probabilities.
        slices: verdict and words on the slice that is worst.
    """

    probe: PairedDifference | None = None
    last: tuple[str, PairedDifference] | None = None
    elsewhere: NewPlaceEstimate | None = None
    drawn_whole: str | None = None
    apart: TrainDistance | None = None
    views: PairedDifference | None = None
    unseen: str | None = None
    labels: tuple[str, str] | None = None
    trusted: tuple[str, str] | None = None
    slices: tuple[str, str] | None = None


def summarize(
    figures: ClassificationMetrics | MultilabelMetrics,
    intervals: Mapping[str, Interval],
    facts: ReportMetadata,
    beside: ReportContext,
    steps: Sequence[NextStep] = (),
) -> list[SummaryItem]:
    """The answers, in the order in which they are read.

    Args:
        figures: of the pictures evaluated on.
        intervals: of them.
        facts: of the report.
        beside: what else is known.
        steps: What to do next. Steps that change what more labels bring are named with that answer.
    """
    # Of a run or a cross-validation what was not measured is said; of an evaluation nobody expects it.
    trained = facts.is_training_report
    several = isinstance(figures, MultilabelMetrics)
    found = [
        _how_good(figures, intervals, facts),
        None
        if beside.unseen is None
        else SummaryItem("How good is it on images that it has not seen?", beside.unseen, "Measured apart."),
        _kept(facts),
        _over_probe(facts, beside.probe, trained, several),
        _over_last(facts, beside.last, trained and not several),
        None if beside.views is None else _over_one_view(beside.views),
        _elsewhere(beside, trained),
        _more_labels(beside, trained, several, steps),
        _with_section("Are its probabilities reliable?", beside.trusted, "calibration"),
        _with_section("Is it equally good in all subgroups?", beside.slices, "subgroups"),
        _chosen(facts),
    ]
    return [one for one in found if one is not None]


def _with_section(question: str, found: tuple[str, str] | None, section: str) -> SummaryItem | None:
    """An answer that a section of the page says more on."""
    return None if found is None else SummaryItem(question, found[1], found[0], section=section)


def _how_good(
    figures: ClassificationMetrics | MultilabelMetrics,
    intervals: Mapping[str, Interval],
    facts: ReportMetadata,
) -> SummaryItem:
    question = "How good is it?"
    on = f"On {evaluated_images(figures.pictures, facts)}{': optimistic.' if facts.optimistic else '.'}"
    if figures.pictures < SMALL_SLICE:
        on += " So few images say little beyond the interval."
    if isinstance(figures, MultilabelMetrics):
        reach = _reach(intervals.get("mean_average_precision"))
        return SummaryItem(
            question,
            f"{on}{_without(figures)}",
            f"Mean average precision {percent(figures.mean_average_precision)}{reach}.",
            section="per-class-metrics",
        )
    verdict = f"Macro-F1 {percent(figures.macro_f1)}{_reach(intervals.get('macro_f1'))}."
    words = f"{on} Each class counts alike in it. {_weakest(figures, intervals)}"
    return SummaryItem(question, words, verdict, section="per-class-metrics")


def _without(figures: MultilabelMetrics) -> str:
    """How many pictures are given no label, though each has one."""
    if not figures.without:
        return ""
    if figures.without == figures.pictures:
        return " No class reaches a probability of 0.5, so no picture is given a label: it has learnt too little."
    verb = "is" if figures.without == 1 else "are"
    return f" {count_of(figures.without, 'picture')} {verb} given no label, for no class reaches 0.5."


def _weakest(figures: ClassificationMetrics, intervals: Mapping[str, Interval]) -> str:
    measured = {name: one for name, one in figures.per_class.items() if one.f1 is not None}
    never = [name for name, one in measured.items() if not one.f1]
    if len(never) > 1:
        return (
            f"No image of {len(never)} of the {len(measured)} classes is classified correctly: "
            f"{quote_classes(never, 3)}."
        )
    weakest = min(measured, key=lambda name: measured[name].f1 or 0.0)
    return (
        f"The weakest class is '{weakest}', with F1 {percent(measured[weakest].f1)}"
        f"{_reach(intervals.get(f'f1:{weakest}'))} on {count_of(measured[weakest].support, 'image')}."
    )


def _reach(interval: Interval | None) -> str:
    return "" if interval is None else f" ({100 * interval[0]:.1f} to {percent(interval[1])})"


def _kept(facts: ReportMetadata) -> SummaryItem | None:
    """Which model of the run the file has, and why; None of what is no run."""
    if not facts.kept_reason:
        return None
    verdicts = {"start": "The model before training.", "trained": "A trained model.", None: "The last one."}
    return SummaryItem("Which model was kept?", facts.kept_reason, verdicts[facts.kept_model])


def _over_probe(
    facts: ReportMetadata, probe: PairedDifference | None, trained: bool, several: bool
) -> SummaryItem | None:
    question = "Is it better than a linear probe?"
    if probe is not None:
        fewer = probe_training_images(facts)
        own = "all" if not facts.train_lost else f"{facts.train_pictures:,}"
        learnt = "" if fewer is None else f"It learnt from {fewer}, the network from {own}. "
        return SummaryItem(
            question,
            f"The probe is a linear classifier on what the given weights see as they came. {learnt}{_apart(probe)}",
            _verdict(probe),
        )
    if facts.linear_probe is not None or not trained:
        return None
    if several:
        why = "a linear probe answers one label, and these pictures have several."
    elif (facts.recipe or {}).get("weights", "none") != "none":
        why = "no probe was asked for."
    else:
        why = "the run began without weights whose features could be probed."
    return SummaryItem(question, f"{why[0].upper()}{why[1:]}", "Not measured.")


def _over_last(
    facts: ReportMetadata, last: tuple[str, PairedDifference] | None, trained: bool
) -> SummaryItem | None:
    if last is not None:
        return SummaryItem(f"Is it better than {last[0]}?", _apart(last[1]), _verdict(last[1]))
    if not trained:
        return None
    folds = facts.evaluated_on == "out-of-fold"
    what = "cross-validation by the same rule" if folds else "run"
    words = (
        f"No finished {what} beside this one answered the same pictures without having learnt from them. "
        "To compare with another:"
    )
    return SummaryItem("Is it better than the last run?", words, "Not known.", "effnetv2 compare RUN RUN")


def _over_one_view(views: PairedDifference) -> SummaryItem:
    verdict = _verdict(views)  # eight views of each image against one
    if verdict != "Yes.":
        return SummaryItem(_VIEWS, _apart(views), verdict)
    words = f"{_apart(views)} The model file of one network keeps these views:"
    return SummaryItem(_VIEWS, words, verdict, "effnetv2 convert MODEL OUT --views symmetries")


def _verdict(found: PairedDifference) -> str:
    clear = [one.value > 0 for one in (found.top1, found.macro_f1) if one.certain]
    if not clear:
        return "Not clearly."
    if all(clear):
        return "Yes."
    return "No, worse." if not any(clear) else "In one metric yes, in the other no."


def describe_difference(found: PairedDifference) -> str:
    """Whether it is better, how much, and how sure that is; to follow a question."""
    return f"{_verdict(found)} {_apart(found)}"


def _apart(found: PairedDifference) -> str:
    def points(one: Difference) -> str:
        return f"{100 * one.value:+.1f} points ({100 * one.low:+.1f} to {100 * one.high:+.1f})"

    whole = "" if found.together is None else f", in {found.together:,} clusters that chance draws whole"
    further = few_clusters_note(found.together) + "".join(
        f" {one}" for one in (found.by_name, found.optimistic) if one
    )
    return (
        f"On the same {found.pictures:,} pictures{whole}: top-1 {points(found.top1)}, "
        f"macro-F1 {points(found.macro_f1)}; 95 % intervals.{further}"
    )


def _elsewhere(beside: ReportContext, trained: bool) -> SummaryItem | None:
    """New locations or groups are asked about only where the data has some."""
    if (there := beside.elsewhere) is not None:
        return SummaryItem(QUESTIONS[there.about], there.words, there.verdict, there.command)
    if not trained or beside.apart is None:
        return None
    return _held_out(QUESTIONS["locations" if beside.apart.by == "place" else "groups"], beside.apart)


def _held_out(question: str, apart: TrainDistance) -> SummaryItem:
    """What one hold-out says of new places, of new groups, or of both."""
    command = f"effnetv2 crossval DATA --by {apart.by}"  # by place, groups stay whole too
    both = [apart] if apart.groups is None else [apart, apart.groups]
    said = " ".join(_nearness(one) for one in both)
    if apart.new:
        whose = " and ".join(f"{one.by}s" for one in both)
        words = f"{said} Cross-validation asks about all {whose}, not only these:"
        return SummaryItem(question, words, f"These are new {whose}.", command)
    by = apart.by if apart.groups is None else f"{apart.by}, groups whole,"
    return SummaryItem(question, f"{said} Cross-validation by {by} says how much:", "Not measured.", command)


def _nearness(apart: TrainDistance) -> str:
    """How many of the pictures are near to, or of a group with, one that was learnt from."""
    km = apart.median_km
    if not apart.near:
        if km is None:
            return "None of these pictures is of a group that it learnt from."
        far = f"Half of them are {number(float(f'{km:.2g}'))} km from it or farther."
        return f"None of these pictures lies within {NEAR_KM:g} km of one that it learnt from. {far}"
    what = "are of a group" if km is None else f"lie within {NEAR_KM:g} km of one"
    return f"{percent(apart.near / apart.known)} of these pictures {what} that it learnt from, which may flatter."


def _more_labels(
    beside: ReportContext, trained: bool, several: bool, steps: Sequence[NextStep]
) -> SummaryItem | None:
    question = "Would more labels help?"
    if beside.labels is not None:
        verdict, words = beside.labels
        if first := [
            f"{step.action[0].lower()}{step.action[1:]}" for step in steps if step.topic in CHANGE_THE_PROBE
        ]:
            words += f" Other steps come first and change this estimate: {', '.join(first)}."
        return SummaryItem(question, words, verdict, section="learning-curve")
    if not trained:
        return None
    return SummaryItem(
        question,
        "A linear probe on parts of the labels would tell, which takes "
        + ("one label for each picture." if several else "given weights and classes of enough pictures."),
        "Not measured.",
    )


def _chosen(facts: ReportMetadata) -> SummaryItem | None:
    said = [one for one in facts.chosen if one]
    if not said:
        return None
    # Most sentences begin with what they are about: "Network: efficientnetv2_b0, ...".
    topics = dict.fromkeys(topic.lower() for one in said if (topic := _topic(one)))
    among = f"Among them {', '.join(topics)}. " if topics else ""
    words = f"{among}Each has its sentence below."
    return SummaryItem(
        "What was chosen automatically?",
        words,
        f"{count_of(len(said), 'choice')}.",
        section="automatic-choices",
    )


def _topic(text: str) -> str | None:
    start, colon, _ = text.partition(": ")
    return start if colon and start.replace(" ", "").isalpha() and len(start) <= 24 else None


def summary_lines(beside: ReportContext) -> list[str]:
    """The answers that a screen shows below the figures."""
    found = [] if beside.unseen is None else [beside.unseen]
    if beside.views is not None:
        found.append(f"{_VIEWS} {describe_difference(beside.views)}")
    if beside.probe is not None:
        found.append(f"Better than the linear probe? {describe_difference(beside.probe)}")
    if beside.last is not None:
        name, over = beside.last
        found.append(f"Better than {name}? {describe_difference(over)}")
    if beside.labels is not None:
        found.append(f"Would more labels help? {' '.join(beside.labels)}")
    return [*found, *(each[1] for each in (beside.trusted, beside.slices) if each is not None)]


def quote_classes(names: Sequence[str], most: int = 5) -> str:
    """Names of classes in a sentence; of many the first, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {count_of(len(names) - most, 'more class')}"


def limitations(
    figures: ClassificationMetrics | MultilabelMetrics,
    intervals: Mapping[str, Interval],
    facts: ReportMetadata,
    beside: ReportContext,
) -> list[str]:
    """What the figures do not say, in sentences.

    Args:
        figures: of the pictures evaluated on.
        intervals: of them, with top-1's.
        facts: of the report.
        beside: what else is known.
    """
    low, high = intervals["top1"]
    whole, belong = "", "belong together (of one place, one day)"
    if beside.drawn_whole is not None:
        whole, belong = (
            f", {beside.drawn_whole} drawn as a whole",
            "belong together otherwise (of one day, one camera)",
        )
    found = [
        f"The intervals say what chance in the choice of these {figures.pictures:,} pictures leaves open{whole}: top-1 "
        f"may lie from {100 * low:.1f} to {percent(high)}. Another seed in training, labels that are wrong, and "
        f"pictures that {belong} add to that."
    ]
    few = [name for name, one in figures.per_class.items() if 0 < one.support < SMALL_SLICE]
    if few:
        named = quote_classes(few)
        found.append(f"Fewer than {SMALL_SLICE} pictures stand behind each figure of {named}.")
    new = (beside.elsewhere is not None and beside.elsewhere.known) or (
        beside.apart is not None and beside.apart.new and beside.apart.by == "place"
    )
    found.append(
        f"Nothing here says how it does on pictures of other {'seasons' if new else 'places, seasons'} or cameras "
        "than those it was trained and evaluated on."
    )
    if not isinstance(figures, MultilabelMetrics):
        found.append(
            "Overall figures hold for pictures with this mix of classes; with another mix, precision and top-1 "
            "change, recall does not."
        )
    if facts.optimistic:
        both = ((facts.training_images, "trained"), (facts.selection_images, "chose"))
        told = " and ".join(f"{who} {what} the network" for who, what in both if who)
        found.append(f"{told[0].upper()}{told[1:]}, so the figures are optimistic.")
    if facts.skipped:
        found.append(f"{count_of(facts.skipped, 'picture')} could not be read; nothing is known of them.")
    return found
