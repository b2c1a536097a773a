"""The opening of a report: the headline, the evaluated data, and comparisons with trivial baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from efficientnetv2.evaluation.html import number, percent
from efficientnetv2.evaluation.predictions import PairedDifference
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.multilabel import Metrics, MultilabelMetrics
from efficientnetv2.utils.errors import pluralize, shorten

# Images below which the headline counts: "4 of 5" says more than "80.0 %". Ours.
_COUNTED = 100


@dataclass(frozen=True)
class DataPhrase:
    """The evaluated images, as text before and behind the name of the data."""

    before: str
    behind: str = ""


def data_phrase(metadata: ReportMetadata) -> DataPhrase:
    """``the validation images (val) of``, data, ``, kept out of training``."""
    split = metadata.evaluated_on
    phrases = {
        "val": DataPhrase("the validation images (val) of", _if_trained(metadata, ", kept out of training")),
        "test": DataPhrase("the test images of"),
        "minival": DataPhrase("the selection images (minival) of"),
        "all pictures": DataPhrase("all images of"),
        "out-of-fold": DataPhrase("the images of", f", each predicted by {_fold_models(metadata)}"),
    }
    if metadata.on_training_split:
        phrases["train"] = DataPhrase("the training images of")
    return phrases.get(split, DataPhrase(f"the images ({split}) of"))


def evaluated_images(count: int, metadata: ReportMetadata) -> str:
    """``120 images kept out of training (val)``."""
    split = metadata.evaluated_on
    uses = {
        "val": _if_trained(metadata, " kept out of training (val)") or " for validation (val)",
        "test": " for the test",
        "minival": " for selection (minival)",
        "all pictures": " (all)",
        "out-of-fold": f", each predicted by {_fold_models(metadata)}",
    }
    if metadata.on_training_split:
        uses["train"] = " that it was trained on"
    selected = ", which selected it" if metadata.selected_on == split != "train" else ""
    return f"{pluralize(count, 'image')}{uses.get(split, f' ({split})')}{selected}"


def _if_trained(metadata: ReportMetadata, text: str) -> str:
    return "" if metadata.num_train_images is None else text


def _fold_models(metadata: ReportMetadata) -> str:
    models = f"{metadata.ensemble_size} models together" if (metadata.ensemble_size or 1) > 1 else "a model"
    return f"{models} not trained on it (out-of-fold)"


def headline(metrics: Metrics) -> str:
    """``93.2 % of 120 images are classified correctly.``; a count for few images."""
    correct = round(metrics.top1 * metrics.num_images)
    counted = metrics.num_images < _COUNTED
    share = f"{correct if counted else percent(metrics.top1)} of {pluralize(metrics.num_images, 'image')}"
    # With sigmoid an image may have no assigned label, though its most probable class is one of its labels.
    if isinstance(metrics, MultilabelMetrics) and metrics.answer == "sigmoid":
        return f"The most probable class is right for {share}."
    verb = "is" if metrics.num_images == 1 or (counted and correct == 1) else "are"
    if not isinstance(metrics, MultilabelMetrics):
        return f"{share} {verb} classified correctly."
    return f"{share} {verb} given one of {'its' if metrics.num_images == 1 else 'their'} labels."


def majority_phrase(metrics: Metrics) -> str:
    """What the majority class is among the others; several may be equally frequent."""
    supports = [each.support for each in metrics.per_class.values()]
    if supports.count(max(supports)) == 1:
        return "the most frequent class"
    return "as any other class" if min(supports) == max(supports) else "one of the most frequent classes"


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
    balanced, constant = metrics.balanced_accuracy, 1 / classes
    if balanced <= constant:
        return "The model is worse than that: it has learned nothing useful."
    compared = (
        f"balanced accuracy is {percent(balanced)}, against {percent(constant)} of a constant prediction"
    )
    if intervals["balanced_accuracy"][0] <= constant:
        return f"The model is worse than that. It may not separate the classes: {compared}, within chance."
    return f"The model is worse than that, but it separates the classes: {compared}."


def dataset_notes(metrics: Metrics, metadata: ReportMetadata) -> list[str]:
    """Sentences on the training and evaluation images."""
    trained = _if_trained(
        metadata, f"Trained on {pluralize(metadata.num_train_images or 0, 'image')}, evaluated"
    )
    classes = pluralize(len(metrics.class_names), "class")
    notes = [
        f"{trained or 'Evaluated'} on {pluralize(metrics.num_images, 'image')} ({metadata.evaluated_on}), in {classes}."
    ]
    if metadata.tta == "d4":
        notes.append(
            "Predictions are averaged over the eight flips and rotations of each image (test-time augmentation)."
        )
    notes += [
        *_class_sizes(metrics, metadata),
        *(note for note in metadata.notes if note),
        *metadata.check_notes,
    ]
    if metadata.num_skipped:
        notes.append(_skipped(metadata.num_skipped, metadata.num_train_lost))
    return notes


def _class_sizes(metrics: Metrics, metadata: ReportMetadata) -> list[str]:
    """Sizes of the smallest and the largest class."""
    training = metadata.train_images_per_class
    purpose = "training" if training else "evaluation"
    counts = {  # pandas counts in its own integers, and only classes with images
        name: int(training.get(name, 0) if training else each.support)
        for name, each in metrics.per_class.items()
    }
    present = {name: count for name, count in counts.items() if count}
    if len(counts) < 2 or not present:
        return []
    absent = [name for name in counts if name not in present]
    none = f" There is none of {shorten(absent)}." if absent else ""
    fewest, most = min(present, key=lambda name: present[name]), max(present, key=lambda name: present[name])
    if present[fewest] == present[most]:
        return [f"Each class has {pluralize(present[most], 'image')} for {purpose}.{none}"]
    ratio = present[most] / present[fewest]
    times = f", {number(float(f'{ratio:.2g}'))} times as many" if ratio >= 2 else ""
    return [
        f"Classes have from {pluralize(present[fewest], 'image')} ('{fewest}') to {present[most]:,} ('{most}') for "
        f"{purpose}{times}.{none} The per-class metrics list all counts."
    ]


def _skipped(count: int, lost: int) -> str:
    text = f"{pluralize(count, 'image')} could not be read and {'was' if count == 1 else 'were'} left out."
    if not lost:
        return text
    place = "its place" if lost == 1 else "their places"
    return f"{text} {lost:,} became unreadable during training; other images of the class took {place}."


def probe_training_images(metadata: ReportMetadata) -> str | None:
    """``5,000 of 40,000 training images``, if the linear probe was trained on fewer than there are."""
    used, available = metadata.linear_probe_num_images, metadata.linear_probe_num_available
    if used is None or available is None or used >= available:
        return None
    mean = " (means over the folds)" if metadata.evaluated_on == "out-of-fold" else ""
    return f"{used:,} of {pluralize(available, 'training image')}{mean}"


def probe_evaluated_images(metrics: Metrics, difference: PairedDifference | None) -> str | None:
    """``500 of these images``, if the linear probe was evaluated on fewer."""
    if difference is None or difference.num_images >= metrics.num_images:
        return None
    return f"{difference.num_images:,} of these images"


def probe_warning(
    metrics: Metrics, metadata: ReportMetadata, difference: PairedDifference | None = None
) -> str | None:
    """A sentence if the model does not beat the linear probe in both metrics, or if training was discarded.

    ``difference`` is of model and probe on the images that both predicted.
    """
    probe_top1, probe_f1 = metadata.linear_probe_top1, metadata.linear_probe_macro_f1
    if probe_top1 is None or probe_f1 is None or isinstance(metrics, MultilabelMetrics):
        return None
    if metadata.kept_model == "start":
        return metadata.kept_reason
    top1, f1, images = metrics.top1, metrics.macro_f1, ""
    if difference is not None and difference.num_images < metrics.num_images:
        top1, f1 = probe_top1 + difference.top1.value, probe_f1 + difference.macro_f1.value
        images = f" on the {difference.num_images:,} images that both predicted"
    compared = {
        f"top-1 ({percent(top1)} against {percent(probe_top1)}{images})": top1 > probe_top1,
        f"macro-F1 ({percent(f1)} against {percent(probe_f1)}{images})": f1 > probe_f1,
    }
    lost = " or ".join(metric for metric, beaten in compared.items() if not beaten)
    won = "".join(f", but it has in {metric}" for metric, beaten in compared.items() if beaten)
    if not lost:
        return None
    subset = probe_training_images(metadata)
    trained = " trains in seconds" if subset is None else f" was trained on {subset}"
    return (
        f"Training has not beaten the linear probe in {lost}{won}. The probe, a linear classifier on the features of "
        f"the pretrained weights,{trained}."
    )
