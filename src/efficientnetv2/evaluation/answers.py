"""What a report opens with: the questions that a person has, answered in a sentence or two each; and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efficientnetv2.base.errors import count_of
from efficientnetv2.evaluation.answered import Over
from efficientnetv2.evaluation.page import percent
from efficientnetv2.metrics.classification import Figures
from efficientnetv2.metrics.intervals import Interval
from efficientnetv2.metrics.resampling import Difference
from efficientnetv2.metrics.several import SeveralFigures
from efficientnetv2.metrics.slices import SMALL

if TYPE_CHECKING:
    from efficientnetv2.evaluation.report import Facts


@dataclass(frozen=True)
class Answer:
    """A question and its answer.

    Args:
        question: as a person asks it.
        words: the answer, in sentences.
        verdict: the same in a word or a figure, said first.
        command: that would answer it, or answer it better.
    """

    question: str
    words: str
    verdict: str | None = None
    command: str | None = None


@dataclass(frozen=True)
class Beside:
    """What the answers are made from beside the figures; None and empty: not known, or not asked.

    Args:
        probe: what the network has over the linear probe, on the same pictures.
        last: name of another run, and what the network has over it.
        elsewhere: verdict and words on pictures from new places, by cross-validation.
        placed: whether it is known where the pictures were taken.
        labels: verdict and words on whether more labels would help.
        trusted: words on its probabilities.
        slices: words on the slice that is worst.
    """

    probe: Over | None = None
    last: tuple[str, Over] | None = None
    elsewhere: tuple[str, str] | None = None
    placed: bool = False
    labels: tuple[str, str] | None = None
    trusted: str | None = None
    slices: str | None = None


def answers(
    figures: Figures | SeveralFigures, intervals: Mapping[str, Interval], facts: Facts, beside: Beside
) -> list[Answer]:
    """The answers, in the order in which they are read.

    Args:
        figures: of the pictures evaluated on.
        intervals: of them.
        facts: of the report.
        beside: what else is known.
    """
    trained = facts.train_pictures is not None
    found = [
        _how_good(figures, intervals, facts),
        _over_probe(facts, beside.probe, trained),
        None if beside.last is None else _over_last(*beside.last),
        _elsewhere(facts, beside, trained),
        _more_labels(beside, facts, trained),
        None if beside.trusted is None else Answer("Can it be taken at its word?", beside.trusted),
        None if beside.slices is None else Answer("Is it as good for all of them?", beside.slices),
        _chosen(facts),
    ]
    return [one for one in found if one is not None]


def _how_good(figures: Figures | SeveralFigures, intervals: Mapping[str, Interval], facts: Facts) -> Answer:
    whose = f"On {figures.pictures:,} pictures of {facts.evaluated_on}"
    whose += ", which it was selected or trained on: optimistic." if facts.optimistic else "."
    if isinstance(figures, SeveralFigures):
        verdict = f"Mean average precision {percent(figures.mean_average_precision)}."
        return Answer("How good is it, and on whose pictures?", whose, verdict)
    verdict = f"Macro-F1 {percent(figures.macro_f1)}{_reach(intervals.get('macro_f1'))}."
    measured = {name: one for name, one in figures.per_class.items() if one.f1 is not None}
    weakest = min(measured, key=lambda name: measured[name].f1 or 0.0)
    return Answer(
        "How good is it, and on whose pictures?",
        f"{whose} The weakest class is '{weakest}', with F1 {percent(measured[weakest].f1)}"
        f"{_reach(intervals.get(f'f1:{weakest}'))} on {measured[weakest].support} of them.",
        verdict,
    )


def _reach(interval: Interval | None) -> str:
    return "" if interval is None else f" ({100 * interval[0]:.1f} to {percent(interval[1])})"


def _over_probe(facts: Facts, probe: Over | None, trained: bool) -> Answer | None:
    question = "Is it better than a linear probe?"
    if probe is not None:
        return Answer(
            question,
            f"The probe is a linear classifier on the untrained features. {_apart(probe)}",
            _verdict(probe),
        )
    if facts.linear_probe is not None or not trained:
        return None
    return Answer(question, "Not measured: the run began without weights whose features could be probed.")


def _over_last(name: str, found: Over) -> Answer:
    return Answer(f"Is it better than {name}?", _apart(found), _verdict(found))


def _verdict(found: Over) -> str:
    clear = [one.value > 0 for one in (found.top1, found.macro_f1) if one.certain]
    if not clear:
        return "Not clearly."
    if all(clear):
        return "Yes."
    return "No, worse." if not any(clear) else "In one figure yes, in the other no."


def _apart(found: Over) -> str:
    def points(one: Difference) -> str:
        return f"{100 * one.value:+.1f} points ({100 * one.low:+.1f} to {100 * one.high:+.1f})"

    return (
        f"On the same {found.pictures:,} pictures: top-1 {points(found.top1)}, macro-F1 {points(found.macro_f1)}; "
        "95 % intervals."
    )


def _elsewhere(facts: Facts, beside: Beside, trained: bool) -> Answer | None:
    question = "Would it be as good in a new place?"
    if beside.elsewhere is not None:
        return Answer(question, beside.elsewhere[1], beside.elsewhere[0])
    if not trained:
        return None
    if beside.placed:
        words = "Not measured by one hold-out. Cross-validation by places says it:"
        return Answer(question, words, command="effnetv2 crossval DATA --by place")
    return Answer(
        question,
        "Not known: nothing says where the pictures come from. A table with latitude and longitude, or with a "
        "group for each picture, would let cross-validation say it.",
    )


def _more_labels(beside: Beside, facts: Facts, trained: bool) -> Answer | None:
    if beside.labels is not None:
        return Answer("Would more labels help?", beside.labels[1], beside.labels[0])
    if not trained:
        return None
    return Answer(
        "Would more labels help?",
        "Not measured: that takes weights whose features can be probed with fewer labels, and classes of enough "
        "pictures.",
    )


def _chosen(facts: Facts) -> Answer | None:
    count = sum(bool(sentence) for sentence in facts.chosen)
    if not count:
        return None
    words = "Each has its sentence below, under what was chosen."
    return Answer("What was chosen for me?", words, f"{count_of(count, 'thing')}.")


def lines(beside: Beside) -> list[str]:
    """The answers that a screen shows below the figures."""
    found = []
    if beside.probe is not None:
        found.append(f"Better than the linear probe? {_verdict(beside.probe)} {_apart(beside.probe)}")
    if beside.last is not None:
        name, over = beside.last
        found.append(f"Better than {name}? {_verdict(over)} {_apart(over)}")
    if beside.labels is not None:
        found.append(f"Would more labels help? {' '.join(beside.labels)}")
    return [*found, *(words for words in (beside.trusted, beside.slices) if words)]


def limits(
    figures: Figures | SeveralFigures, intervals: Mapping[str, Interval], facts: Facts, beside: Beside
) -> list[str]:
    """What the figures do not say, in sentences."""
    low, high = intervals["top1"]
    found = [
        f"The intervals say what chance in the choice of these {figures.pictures:,} pictures leaves open: top-1 may "
        f"lie from {100 * low:.1f} to {percent(high)}. Another seed in training, labels that are wrong, and pictures "
        "that belong together (of one place, one day) add to that."
    ]
    few = [name for name, one in figures.per_class.items() if 0 < one.support < SMALL]
    if few:
        named = _listed(few)
        found.append(f"Fewer than {SMALL} pictures stand behind each figure of {named}.")
    if beside.elsewhere is None:
        found.append(
            "Nothing here says how it does on pictures of other places, seasons or cameras than those it was trained "
            "and evaluated on."
        )
    if not isinstance(figures, SeveralFigures):
        found.append(
            "Overall figures hold for pictures with this mix of classes; with another mix, precision and top-1 "
            "change, recall does not."
        )
    if facts.optimistic:
        found.append("These pictures trained or chose the network, so the figures are optimistic.")
    if facts.skipped:
        found.append(f"{facts.skipped} pictures could not be read; nothing is known of them.")
    return found


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more classes"
