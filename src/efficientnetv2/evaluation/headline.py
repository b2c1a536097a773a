"""The opening of a report: the headline, the evaluated images, and comparisons with trivial baselines."""

from __future__ import annotations

from collections.abc import Mapping

from efficientnetv2.evaluation.html import percent
from efficientnetv2.evaluation.predictions import PairedDifference
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.multilabel import Metrics, MultilabelMetrics
from efficientnetv2.utils.errors import pluralize, shorten


def headline(metrics: Metrics) -> str:
    """The first line of a report: ``Correctly classified: 90 of 100 images (90.0 %)``."""
    images = pluralize(metrics.num_images, "image")
    correct = f"{round(metrics.top1 * metrics.num_images):,} of {images} ({percent(metrics.top1)})"
    if isinstance(metrics, MultilabelMetrics):  # with sigmoid maybe without an assigned label
        return f"The most probable class is a label of {correct}."
    return f"Correctly classified: {correct}."


def describe_split(metadata: ReportMetadata) -> str:
    """The evaluated images: ``validation images (val), kept out of training``."""
    models = f"{metadata.ensemble_size} models together" if (metadata.ensemble_size or 1) > 1 else "a model"
    splits = {
        "val": "validation images (val)"
        + (", kept out of training" if metadata.num_train_images is not None else ""),
        "test": "test images",
        "minival": "selection images (minival)",
        "all pictures": "all images",
        "out-of-fold": f"all images, each predicted by {models} not trained on it (out-of-fold)",
        **({"train": "training images"} if metadata.on_training_split else {}),
    }
    return splits.get(metadata.evaluated_on, f"images of split {metadata.evaluated_on}")


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
        f"classes: balanced accuracy is {percent(metrics.balanced_accuracy)}, against {percent(1 / classes)} of a "
        "constant prediction."
    )


def dataset_notes(metrics: Metrics, metadata: ReportMetadata) -> list[str]:
    """Sentences on the training and evaluation images."""
    trained = "" if metadata.num_train_images is None else f"Training images: {metadata.num_train_images:,}. "
    notes = [
        f"{trained}Evaluated images: {metrics.num_images:,} ({metadata.evaluated_on}). "
        f"Classes: {len(metrics.class_names):,}.",
        _class_sizes(metrics, metadata),
    ]
    if metadata.tta == "d4":
        notes.append(
            "Predictions are means over the eight flips and rotations of each image (test-time augmentation)."
        )
    notes += [*metadata.notes, *metadata.check_notes]
    if metadata.num_skipped:
        lost = f", {metadata.num_train_lost:,} of them during training" if metadata.num_train_lost else ""
        notes.append(f"Unreadable and left out: {pluralize(metadata.num_skipped, 'image')}{lost}.")
    return [note for note in notes if note]


def _class_sizes(metrics: Metrics, metadata: ReportMetadata) -> str:
    """``Training images per class: 3 ('elm') to 12 ('oak'), a ratio of 4.0`` and absent classes; '' for one class."""
    training = metadata.train_images_per_class
    counts = {  # pandas counts in its own integers, and only classes with images
        name: int(training.get(name, 0) if training else each.support)
        for name, each in metrics.per_class.items()
    }
    present = {name: count for name, count in counts.items() if count}
    if len(counts) < 2 or not present:
        return ""
    absent = [name for name in counts if name not in present]
    fewest, most = min(present, key=lambda name: present[name]), max(present, key=lambda name: present[name])
    return (
        f"{'Training' if training else 'Evaluated'} images per class: {present[fewest]:,} ('{fewest}') to "
        f"{present[most]:,} ('{most}'), a ratio of {present[most] / present[fewest]:.1f}."
        f"{f' No image of {shorten(absent)}.' if absent else ''}"
    )


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
        f"Training has not beaten the linear probe in {' or '.join(lost)}. The probe is a linear classifier on the "
        f"features of the pretrained weights, trained on {probe_training_images(metadata) or 'the same images'}."
    )
