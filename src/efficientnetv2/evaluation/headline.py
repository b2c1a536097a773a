"""What a report says first: the headline, of whose pictures it is, and which pictures these were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from efficientnetv2.evaluation.html import number, percent
from efficientnetv2.evaluation.predictions import PairedDifference
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.metrics.classification import ClassificationMetrics
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.multilabel import MultilabelMetrics
from efficientnetv2.utils.errors import count_of, some

# Pictures below which they are counted: "4 of 5" says more than "80.0 %". Ours.
_COUNTED = 100


@dataclass(frozen=True)
class DataPhrase:
    """The pictures that figures are of, in words around the name of the data.

    Args:
        before: "the validation pictures of".
        behind: what is to be known of them, with its comma; may be empty.
    """

    before: str
    behind: str = ""


def data_phrase(facts: ReportMetadata) -> DataPhrase:
    """Whose pictures the figures are of.

    Args:
        facts: of the report.
    """
    trained = facts.train_pictures is not None
    said = {
        "val": DataPhrase("the validation images (val) of", ", kept out of training" if trained else ""),
        "test": DataPhrase("the test images of"),
        "minival": DataPhrase("the selection images (minival) of"),
        "all pictures": DataPhrase("all images of"),
        "out-of-fold": DataPhrase("the images of", f", each predicted by {_answerers(facts)}"),
        **({"train": DataPhrase("the training images of")} if facts.on_training_split else {}),
    }
    return said.get(facts.evaluated_on, DataPhrase(f"the images ({facts.evaluated_on}) of"))


def evaluated_images(count: int, facts: ReportMetadata) -> str:
    """How many pictures were measured on, and which: ``120 images kept out of training (val)``.

    Args:
        count: of the pictures.
        facts: of the report.
    """
    trained = facts.train_pictures is not None
    behind = {
        "val": " kept out of training (val)" if trained else " for validation (val)",
        "test": " for the test",
        "minival": " for selection (minival)",
        "all pictures": " (all)",
        "out-of-fold": f", each predicted by {_answerers(facts)}",
        **({"train": " that it was trained on"} if facts.on_training_split else {}),
    }
    chose = ", which selected it" if facts.selected_on == facts.evaluated_on != "train" else ""
    return f"{count_of(count, 'image')}{behind.get(facts.evaluated_on, f' ({facts.evaluated_on})')}{chose}"


def _answerers(facts: ReportMetadata) -> str:
    """What has answered a picture in a cross-validation."""
    several = facts.members is not None and facts.members > 1
    who = f"{facts.members} models together" if several else "a model"
    return f"{who} not trained on it (out-of-fold)"


def headline(figures: ClassificationMetrics | MultilabelMetrics) -> str:
    """The share that is right, as a sentence; of a few pictures their number.

    Args:
        figures: of the pictures evaluated on.
    """
    # By itself each class is given or not: a picture may have no label, or others beside.
    if isinstance(figures, MultilabelMetrics) and figures.answer == "sigmoid":
        return f"The most probable class is right for {_share(figures)}."
    one = figures.pictures == 1
    what = (
        f"given one of {'its' if one else 'their'} labels"
        if isinstance(figures, MultilabelMetrics)
        else "classified correctly"
    )
    verb = "is" if one or _share(figures).startswith("1 ") else "are"
    return f"{_share(figures)} {verb} {what}."


def _share(figures: ClassificationMetrics | MultilabelMetrics) -> str:
    hits = round(figures.top1 * figures.pictures)
    share = str(hits) if figures.pictures < _COUNTED else percent(figures.top1)
    return f"{share} of {count_of(figures.pictures, 'image')}"


def majority_phrase(figures: ClassificationMetrics | MultilabelMetrics) -> str:
    """What the class is among the others that always answering is measured by; of several as frequent it is the first.

    Args:
        figures: of the pictures evaluated on.
    """
    supports = [one.support for one in figures.per_class.values()]
    most = max(supports)
    if supports.count(most) == 1:
        return "the most frequent class"
    return "as any other class" if min(supports) == most else "one of the most frequent classes"


def majority_warning(
    figures: ClassificationMetrics | MultilabelMetrics, intervals: Mapping[str, Interval]
) -> str | None:
    """A sentence where the network is not clearly better than always giving the most frequent class.

    Args:
        figures: of the pictures evaluated on.
        intervals: of them.
    """
    low, high = intervals["top1"]
    if low > figures.majority_top1:
        return None
    if high < figures.majority_top1:
        return _worse(figures, intervals)
    return "The model is not clearly better than that."


def _worse(figures: ClassificationMetrics | MultilabelMetrics, intervals: Mapping[str, Interval]) -> str:
    """Of rare classes that are told apart at the cost of the frequent one, top-1 says the wrong half."""
    worse = "The model is worse than that"
    classes = sum(one.support > 0 for one in figures.per_class.values())
    if isinstance(figures, MultilabelMetrics) or "balanced_accuracy" not in intervals or classes == 1:
        return f"{worse}."
    if figures.balanced_accuracy <= 1 / classes:  # that of the one answer
        return f"{worse}: it has learnt nothing of use."
    beside = (
        f"its balanced accuracy is {percent(figures.balanced_accuracy)}, and that of the one answer "
        f"{percent(1 / classes)}"
    )
    if intervals["balanced_accuracy"][0] <= 1 / classes:
        return (
            f"{worse}, and does not clearly tell the classes apart: {beside}, no more than chance explains."
        )
    return f"{worse}, but tells the classes apart: {beside}."


def dataset_notes(figures: ClassificationMetrics | MultilabelMetrics, facts: ReportMetadata) -> list[str]:
    """What there was to learn from and to measure on, in sentences.

    Args:
        figures: of the pictures evaluated on.
        facts: of the report.
    """
    measured = f"measured on {count_of(figures.pictures, 'picture')} ({facts.evaluated_on})"
    learnt = (
        ""
        if facts.train_pictures is None
        else f"Learnt from {count_of(facts.train_pictures, 'picture')}, then "
    )
    first = f"{learnt}{measured}, in {count_of(len(figures.class_names), 'class')}."
    return [
        first[0].upper() + first[1:],
        *_looked_at(facts),
        *_by_class(figures, facts),
        *(note for note in facts.notes if note),
        *facts.check_notes,
        *([_skipped(facts)] if facts.skipped else []),
    ]


def _looked_at(facts: ReportMetadata) -> list[str]:
    """How, where that was not simply once."""
    if facts.views != "symmetries":
        return []
    return [
        "Each was looked at in all eight flips and turns of the square, and the probabilities averaged (views: "
        "symmetries)."
    ]


def _by_class(figures: ClassificationMetrics | MultilabelMetrics, facts: ReportMetadata) -> list[str]:
    """From how few to how many pictures the classes have."""
    learnt, what = facts.train_support, "learn from" if facts.train_support else "measure on"
    counts = {  # pandas counts in its own integers, and only what there is
        name: int(learnt.get(name, 0) if learnt else one.support) for name, one in figures.per_class.items()
    }
    there = {name: count for name, count in counts.items() if count}
    if len(counts) < 2 or not there:
        return []
    lacking = [name for name in counts if name not in there]
    none = f", but of {some(lacking)} there is none" if lacking else ""
    fewest, most = min(there, key=lambda name: there[name]), max(there, key=lambda name: there[name])
    if there[fewest] == there[most]:
        return [f"Each class has {count_of(there[most], 'picture')} to {what}{none}."]
    times = there[most] / there[fewest]
    imbalance = f": {number(float(f'{times:.2g}'))} times as many" if times >= 2 else ""
    return [
        f"From {count_of(there[fewest], 'picture')} of '{fewest}' to {there[most]:,} of '{most}' to {what}{imbalance}"
        f"{none}. The numbers of all classes stand in the table by class."
    ]


def _skipped(facts: ReportMetadata) -> str:
    count, lost = facts.skipped, facts.train_lost
    words = f"{count_of(count, 'picture')} could not be read and {'was' if count == 1 else 'were'} left out."
    if not lost:
        return words
    which = "It" if lost == count == 1 else "All of them" if lost == count else f"{lost:,} of them"
    place = "its place" if lost == 1 else "their places"
    return f"{words} {which} became unreadable during training, and others of the class took {place}."


def probe_training_images(facts: ReportMetadata) -> str | None:
    """From how few pictures the linear probe learnt: ``5,000 of 40,000 training pictures``.

    None if from all that there were, or if that is not known.

    Args:
        facts: of the report.
    """
    learnt, there = facts.linear_probe_pictures, facts.linear_probe_of_pictures
    if learnt is None or there is None or learnt >= there:
        return None
    mean = " (means over the folds)" if facts.evaluated_on == "out-of-fold" else ""
    return f"{learnt:,} of {count_of(there, 'training picture')}{mean}"


def probe_evaluated_images(
    figures: ClassificationMetrics | MultilabelMetrics, over: PairedDifference | None
) -> str | None:
    """On how few of the pictures the linear probe was measured: ``500 of these pictures``; None if on all.

    Args:
        figures: of the network.
        over: what the network has over the probe on the pictures that both answered; None where that is not known.
    """
    if over is None or over.pictures >= figures.pictures:
        return None
    return f"{over.pictures:,} of these pictures"


def probe_warning(
    figures: ClassificationMetrics | MultilabelMetrics,
    facts: ReportMetadata,
    over: PairedDifference | None = None,
) -> str | None:
    """A sentence if training has not beaten the linear probe in both figures: in which not, and in which it has.

    That the model before training is kept, where it is. None if it has in both, or no probe was made.

    Args:
        figures: of the network.
        facts: with the probe's figures.
        over: what the network has over the probe on the pictures that both answered, which may be fewer; None where
            they are the same.
    """
    if (
        facts.linear_probe is None
        or facts.linear_probe_macro_f1 is None
        or isinstance(figures, MultilabelMetrics)
    ):
        return None
    if facts.kept_model == "start":
        return facts.kept_reason
    top1, macro_f1, on = figures.top1, figures.macro_f1, ""
    if over is not None and over.pictures < figures.pictures:
        top1, macro_f1 = (
            facts.linear_probe + over.top1.value,
            facts.linear_probe_macro_f1 + over.macro_f1.value,
        )
        on = f" on the {over.pictures:,} pictures that both answered"
    compared = {
        f"top-1 ({percent(top1)} against {percent(facts.linear_probe)}{on})": top1 > facts.linear_probe,
        f"macro-F1 ({percent(macro_f1)} against {percent(facts.linear_probe_macro_f1)}{on})": (
            macro_f1 > facts.linear_probe_macro_f1
        ),
    }
    lost = [figure for figure, beaten in compared.items() if not beaten]
    won = [figure for figure, beaten in compared.items() if beaten]
    if not lost:
        return None
    fewer = probe_training_images(facts)
    learnt = "" if fewer is None else f" and learnt from {fewer}"
    probe = (
        f"a linear classifier on the features of the given weights as they came, which takes seconds{learnt}"
    )
    if not won:
        return f"Training has not beaten {probe}, neither in {lost[0]} nor in {lost[1]}."
    return f"Training has not beaten, in {lost[0]}, {probe}. It has in {won[0]}."
