"""Sections of a report beyond the metrics: reliability, costs, subgroups, more labels, comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import KEPT_WHOLE
from efficientnetv2.data.image_metadata import MAX_MEASURED, longer_sides
from efficientnetv2.data.shards.index import CHECKSUM, CONTENT, PLACE
from efficientnetv2.evaluation.clusters import Clusters
from efficientnetv2.evaluation.compare import PreviousRun, find_previous_run
from efficientnetv2.evaluation.generalization import NewPlaceEstimate, TrainDistance
from efficientnetv2.evaluation.html import TemplateSection, format_interval, percent
from efficientnetv2.evaluation.plot_style import COLORS, INK, draw_band, single_plot, style_axes
from efficientnetv2.evaluation.predictions import PairedDifference, compare_predictions
from efficientnetv2.evaluation.reliability import TemperatureScaling, reliability_section
from efficientnetv2.evaluation.summary import ReportContext
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.cost_sensitive import ABSTAIN, ErrorCosts, calibrated_cost_p_value, cost_metrics
from efficientnetv2.metrics.multilabel import is_correct
from efficientnetv2.metrics.subgroups import (
    SMALL_SLICE,
    SliceMetrics,
    slice_metrics,
    slice_values,
    sliceable_columns,
)
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.utils import probability
from efficientnetv2.utils.errors import InputError, did_you_mean, pluralize, shorten
from efficientnetv2.utils.rng import Key

if TYPE_CHECKING:  # loads scikit-learn, which takes a second
    from efficientnetv2.inference.learning_curve import LearningCurve

# Columns of a dataset that say no property of a picture.
_OTHERWISE = ("path", "label", "split", KEPT_WHOLE, *PLACE, CONTENT, CHECKSUM)
#: By which pictures are cut beside the columns of their table: see ``data.image_metadata``.
SIZE = "longer_side_px"
# One-sided significance level, as of a 95 % interval.
_CHANCE = 0.025
# Rows of the table that are shown; the rest unfolds. Ours.
_SLICES_OPEN = 15
# Gain of macro-F1 from which labels are worth it, and below which they bring little. Ours.
_WORTH, _LITTLE = 0.005, 0.02
# Width of a letter of a tick label, as a fraction of the plot. Ours.
_LETTER = 0.016


@dataclass(frozen=True, eq=False)
class ReportOptions:
    """What the user wants of a report beyond the metrics."""

    # Columns of subgroups; None takes all that are suitable, empty none
    slices: tuple[str, ...] | None = None
    costs: ErrorCosts | None = None  # Costs of errors; None if they are not known
    abstain_below: float | None = None  # Probability below which a person decides; None never
    against: PreviousRun | None = None  # Run or evaluation to compare with; None takes the previous one


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """What is known besides the predictions."""

    calibration: Calibration | None = None  # Temperature of the predictions
    # Temperatures of the members of an ensemble; None of one without
    members: tuple[Calibration | None, ...] = ()
    # Predictions of the linear probe, see ``evaluation.predictions.load_predictions``
    probe: pd.DataFrame | None = None
    labels: tuple[str, str] | None = None  # Verdict and text on more labels
    elsewhere: NewPlaceEstimate | None = None  # Estimate for new places, from a cross-validation
    apart: TrainDistance | None = None  # Distance of the images from the training images
    tta: PairedDifference | None = None  # Difference made by test-time augmentation
    unseen: str | None = None  # Text on the images that did not train the model
    sections: tuple[TemplateSection, ...] = ()  # Further sections
    folder: Path | None = None  # Run directory, beside which earlier runs are; None without
    split_by: str | None = None  # Rule of the folds of a cross-validation; None without
    whole: Clusters | None = None  # Clusters of the predicted images; None without


@dataclass(frozen=True, eq=False)
class ReportFindings:
    """Sections of the page, and the context of its summary."""

    sections: tuple[TemplateSection, ...]
    context: ReportContext


def build_sections(
    predictions: Predictions,
    dataset: ImageDataset,
    class_names: Sequence[str],
    wanted: ReportOptions,
    known: ReportInputs,
    *,
    trainers: str = "",
    choosers: str = "",
    reach: Interval,
    key: Key,
) -> ReportFindings:
    """Everything that a report says of predictions beyond the metrics.

    Args:
        predictions: Predictions of labeled images.
        dataset: Dataset of the images.
        class_names: Classes of the model.
        wanted: What the user wants.
        known: What is known besides.
        trainers: See ``reliability_section``.
        choosers: See ``reliability_section``.
        reach: 95 % interval of top-1.
        key: Key of the bootstrap.

    Raises:
        InputError: The other run predicted other images.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    shown = dataset.select(predictions.samples)
    trusted = reliability_section(
        labels,
        probabilities,
        scaled=_scaled(predictions, known),
        members=known.members,
        top1_interval=reach,
        training_images=trainers,
        selection_images=choosers,
        abstain_below=wanted.abstain_below,
        answer=predictions.answer,
    )
    sections: list[TemplateSection] = [trusted]
    predicted = probabilities.argmax(axis=1)
    columns, uncut = _cut(shown, wanted.slices)
    parts = slice_metrics(columns, labels, predicted, is_correct(labels, predicted))
    if parts:
        sections.append(subgroup_section(parts))
    if wanted.costs is not None:
        sections.append(cost_section(labels, probabilities, wanted.costs, class_names, key=key.fold("costs")))
    probe = last = None
    if labels.ndim == 1:
        answers = predictions_frame(predictions, dataset, class_names)
        whole = None if known.whole is None else known.whole.by_path(shown.paths)
        if known.probe is not None:
            probe = compare_predictions(answers, known.probe, clusters=whole)
        last = _last(answers, wanted, known, whole)
    return ReportFindings(
        (*sections, *known.sections),
        ReportContext(
            probe=probe,
            last=last,
            train_distance=known.apart,
            tta=known.tta,
            unseen=known.unseen,
            more_labels=known.labels,
            new_places=known.elsewhere,
            bootstrap_unit=None if known.whole is None else known.whole.what,
            calibration=(trusted.verdict, trusted.calibrated),
            subgroups=_of_slices(parts, uncut),
        ),
    )


def _of_slices(parts: Sequence[SliceMetrics], uncut: Sequence[str]) -> tuple[str, str] | None:
    """Verdict and text on the subgroups; None without."""
    if not parts:
        return ("Not measured.", " ".join(uncut)) if uncut else None
    return subgroup_verdict(parts), " ".join([worst_slice(parts), *uncut])


def predictions_frame(
    predictions: Predictions, dataset: ImageDataset, class_names: Sequence[str]
) -> pd.DataFrame:
    """Predictions of images with one label as ``evaluation.predictions.load_predictions`` gives saved ones."""
    shown = dataset.select(predictions.samples)
    called = predictions.probabilities.argmax(axis=1)
    return pd.DataFrame(
        {"predicted_label": [class_names[one] for one in called], "true_label": list(shown.table["label"])},
        index=pd.Index(shown.paths),
    )


def with_image_sizes(dataset: ImageDataset, wanted: tuple[str, ...] | None) -> ImageDataset:
    """The dataset with a column of image sizes, if it may be used and is known; an own column stays."""
    if SIZE in dataset.table or not (wanted is None or SIZE in wanted):
        return dataset
    sides = longer_sides(dataset)
    return dataset if sides is None else replace(dataset, table=dataset.table.assign(**{SIZE: sides}))


def validate_slices(dataset: ImageDataset, wanted: tuple[str, ...]) -> None:
    """Check columns of subgroups before an image is predicted.

    Raises:
        InputError: A column does not exist, or is not suitable.
    """
    table = with_image_sizes(dataset, wanted).table
    there = [str(name) for name in table.columns if name not in _OTHERWISE]
    for name in wanted:
        if name == SIZE and name not in there:
            raise InputError(
                f"--slices {SIZE}: the size of these pictures is not known. It is read off the headers of up to "
                f"{MAX_MEASURED:,} files, and not of more, nor of shards, packed records and rasters. Leave it out, "
                "or write it into a column of that name."
            )
        if name not in there:
            having = (
                f"It has {shorten(there, 20)}." if there else "It has no other than path, label and split."
            )
            raise InputError(
                f"--slices {name}: {dataset.source} has no such column{did_you_mean(name, there)} {having}"
            )
        if slice_values(table[name]) is None:
            raise InputError(
                f"--slices {name}: the column has one value, or many that are no numbers, or numbers most of which "
                "are equal, so it cuts the pictures into nothing of use. Give one of a few values, such as a year or a "
                "region, or of numbers."
            )


def _cut(dataset: ImageDataset, wanted: tuple[str, ...] | None) -> tuple[pd.DataFrame, list[str]]:
    """The columns of subgroups, and a note on those that are not suitable any more without unreadable images."""
    table = with_image_sizes(dataset, wanted).table
    if wanted is None:
        return table[sliceable_columns(table, without=_OTHERWISE)], []
    lost = [name for name in wanted if slice_values(table[name]) is None]
    kept = table[[name for name in wanted if name not in lost]]
    return kept, [
        f"By {shorten(lost)} those that could be read are not cut: most are alike in it."
    ] if lost else []


def _scaled(predictions: Predictions, known: ReportInputs) -> TemperatureScaling | None:
    found = known.calibration
    if found is None:
        return None
    before = probability.probabilities(found.temperature * predictions.logits, predictions.answer).numpy()
    return TemperatureScaling(found.temperature, found.pictures, found.fitted_on, before)


def _last(
    answers: pd.DataFrame, wanted: ReportOptions, known: ReportInputs, whole: pd.Series[int] | None
) -> tuple[str, PairedDifference] | None:
    """The run that was asked for, or else the last one before this; and what this one has over it."""
    other = wanted.against
    if other is None:
        found = None
        if known.folder is not None:
            found = find_previous_run(known.folder, answers, split_by=known.split_by)
        if found is None:
            return None
        other = PreviousRun(f"the last run, {found[0]}", found[1])
    # The other may have answered more pictures, or fewer; those of both count.
    gained = compare_predictions(answers, other.predictions, clusters=whole)
    return None if gained is None else (other.name, other.qualified(gained))


def subgroup_section(found: Sequence[SliceMetrics]) -> TemplateSection:
    """The section on one or more subgroups."""
    values = {
        "words": worst_slice(found),
        "shown": found[:_SLICES_OPEN],
        "more": found[_SLICES_OPEN:],
        "small": SMALL_SLICE,
        "count": len(found),
    }
    return TemplateSection("slices.html.j2", values, {"slices": [asdict(each) for each in found]})


def worst_slice(slices: Sequence[SliceMetrics]) -> str:
    """A sentence on the worst subgroup."""
    below = sum(each.below for each in slices)
    candidates = [each for each in slices if (each.below if below else not each.small)]
    if not candidates:
        return f"Each subgroup has fewer than {SMALL_SLICE} images: too few to say."
    worst = min(candidates, key=lambda each: each.top1)
    text = (
        f"The lowest top-1 is {percent(worst.top1)}, of {pluralize(worst.num_images, 'image')} with {worst.column} "
        f"{worst.value}"
    )
    if not below:
        return f"{text}. No subgroup is worse by more than chance explains."
    return f"{text}. Subgroups worse than the rest by more than chance explains: {below}."


def subgroup_verdict(found: Sequence[SliceMetrics]) -> str:
    """Whether the model is equally good in all subgroups, in a word or two."""
    if below := sum(each.below for each in found):
        return f"No, {below} of {len(found)} worse."
    return "Too few images to tell." if all(each.small for each in found) else "Yes."


def cost_section(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    costs: ErrorCosts,
    class_names: Sequence[str],
    *,
    key: Key,
) -> TemplateSection:
    """The section on costs of (N, K) probabilities for (N,) labels."""
    found = cost_metrics(labels, probabilities, costs)
    constant = None if found.constant_answer == ABSTAIN else class_names[found.constant_answer]
    uncalibrated = (
        found.cheapest > found.most_probable
        and calibrated_cost_p_value(labels, probabilities, costs, key=key) < _CHANCE
    )
    values = {
        "figures": found, "constant": constant, "abstains": costs.no_answer is not None, "uncalibrated": uncalibrated,
    }  # fmt: skip
    return TemplateSection("costs.html.j2", values, {"costs": asdict(found) | {"constant_answer": constant}})


def label_efficiency_verdict(curve: LearningCurve, *, note: str = "") -> tuple[str, str]:
    """A verdict in a word or two, and its sentences, followed by a note on the images."""
    word = "Probably." if curve.gain_low > _WORTH else "Little." if curve.gain_high < _LITTLE else "Perhaps."
    half, last = curve.points[-2:]
    text = (
        f"A linear probe on the pretrained weights reaches macro-F1 {percent(half.macro_f1)} with {half.num_images:,} "
        f"labeled images and {percent(last.macro_f1)} with {last.num_images:,}"
    )
    gain = f"{100 * curve.gain:+.1f} points"
    if word == "Perhaps." and curve.gain <= 0:  # an extrapolation would say that labels do harm
        word, text = "Not known.", f"{text}. It does not rise, so the effect of more labels is not known."
    else:
        if curve.carried is not None:
            text += f", a sample of the {curve.carried.num_images:,} training images"
            gain += f" ({100 * curve.gain_low:+.1f} to {100 * curve.gain_high:+.1f})"
        points = [
            f"{point.num_images:,} give {percent(point.macro_f1)} ({format_interval((point.low, point.high))})"
            for point in (curve.carried, curve.forecast)
            if point is not None
        ]
        text += f". Extrapolated, {' and '.join(points)}, {gain}."
    return word, f"{text} {note}".strip()


def learning_curve_section(curve: LearningCurve, *, note: str = "") -> TemplateSection:
    """The section of a report; arguments as for ``label_efficiency_verdict``."""
    return TemplateSection(
        "more_labels.html.j2",
        {
            "words": " ".join(label_efficiency_verdict(curve, note=note)),
            "curve": draw_label_curve(curve),
            "draws": curve.points[0].draws,
            "sample": None if curve.carried is None else curve.points[-1].num_images,
        },
        {"data_scaling_curve": asdict(curve)},
    )


def draw_label_curve(curve: LearningCurve) -> Figure:
    """Macro-F1 against the number of labels on a log axis; the extrapolation is dotted."""
    figure, ax = single_plot(2.6)
    points, extrapolated = (
        curve.points,
        [each for each in (curve.carried, curve.forecast) if each is not None],
    )
    sizes, color = [each.num_images for each in points], COLORS[0]
    rows = [(each.macro_f1, each.low, each.high) for each in points]
    draw_band(ax, sizes, rows, marker="o", markersize=4)
    dotted = [points[-1], *extrapolated]
    ax.plot(
        [each.num_images for each in dotted],
        [100 * each.macro_f1 for each in dotted],
        color=color,
        linestyle=":",
    )
    for each in extrapolated:
        ax.errorbar(
            [each.num_images], [100 * each.macro_f1],
            yerr=[[max(0.0, 100 * (each.macro_f1 - each.low))], [max(0.0, 100 * (each.high - each.macro_f1))]],
            color=color, marker="o", markerfacecolor="none", markersize=5, capsize=3, linewidth=1,
        )  # fmt: skip
    ax.set_xscale("log", base=2)
    ticks = _ticks([*sizes, *(each.num_images for each in extrapolated)])
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("labeled images", color=INK)
    style_axes(ax, "macro-F1 of the linear probe, %")
    return figure


def _ticks(sizes: Sequence[int]) -> list[int]:
    """The increasing sizes whose tick labels have room on a log axis; the last always has."""
    width, kept = math.log2(sizes[-1] / sizes[0]), [sizes[-1]]
    for size in reversed(sizes[:-1]):
        if math.log2(kept[0] / size) >= _LETTER * len(f"{kept[0]:,}") * width:
            kept.insert(0, size)
    return kept
