"""Sections of a report beyond the metrics: calibration, costs, subgroups, learning curve, comparisons."""

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
from efficientnetv2.evaluation.bootstrap_clusters import Clusters
from efficientnetv2.evaluation.calibration_section import calibration_section
from efficientnetv2.evaluation.distribution_shift import NewPlaceEstimate
from efficientnetv2.evaluation.html import TemplateSection, format_interval, number, percent
from efficientnetv2.evaluation.next_steps import LITTLE, WORTH
from efficientnetv2.evaluation.plot_style import COLORS, INK, draw_band, single_plot, style_axes
from efficientnetv2.evaluation.predictions import PairedDifference, compare_predictions, optimistic_warning
from efficientnetv2.evaluation.report_metadata import ReportContext, ReportMetadata, Verdict
from efficientnetv2.evaluation.run_comparison import PreviousRun, find_previous_run
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.cost_sensitive import ABSTAIN, ErrorCosts, calibrated_cost_p_value, cost_metrics
from efficientnetv2.metrics.multilabel import is_correct
from efficientnetv2.metrics.subgroups import SMALL_SLICE, SliceMetrics, slice_metrics, slice_values
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.utils import probability
from efficientnetv2.utils.errors import InputError, did_you_mean, pluralize, shorten
from efficientnetv2.utils.random_key import Key

if TYPE_CHECKING:  # loads scikit-learn, which takes a second
    from efficientnetv2.inference.learning_curve import LearningCurve

# Columns of a dataset that are no property of an image.
_NO_PROPERTY = ("path", "label", "split", KEPT_WHOLE, *PLACE, CONTENT, CHECKSUM)
#: Column of image sizes, by which images form subgroups even without a column in their table.
SIZE = "longer_side_px"
# One-sided significance level, as of a 95 % interval.
_CHANCE = 0.025
# Rows of the table that are shown; the rest unfolds. Ours.
_SLICES_OPEN = 15
# Width of a letter of a tick label, as a fraction of the plot. Ours.
_LETTER = 0.016


@dataclass(frozen=True, eq=False)
class ReportOptions:
    """What the user wants of a report beyond the metrics."""

    slices: tuple[str, ...] | None = None  # columns of subgroups; None takes all suitable ones
    costs: ErrorCosts | None = None
    abstain_below: float | None = None  # probability below which a person decides
    baseline: PreviousRun | None = None  # to compare with; None takes the previous run


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """What is known besides the predictions. None: unknown."""

    calibration: Calibration | None = None  # temperature of the predictions
    members: tuple[Calibration | None, ...] = ()  # temperatures of an ensemble
    how_to_scale: str | None = None  # how to fit a temperature, if not as usual
    probe: pd.DataFrame | None = None  # predictions of the linear probe, as of ``load_predictions``
    more_labels: Verdict | None = None
    new_places: NewPlaceEstimate | None = None  # of a run or a cross-validation
    tta: PairedDifference | None = None  # with test-time augmentation minus without
    unseen: str | None = None  # metrics of the images that did not train the model, as a sentence
    sections: tuple[TemplateSection, ...] = ()  # further sections
    folder: Path | None = None  # run directory, among whose siblings the previous run is
    split_by: str | None = None  # rule of the folds of a cross-validation
    clusters: Clusters | None = None  # of the predicted images


def build_sections(
    predictions: Predictions,
    dataset: ImageDataset,
    class_names: Sequence[str],
    metadata: ReportMetadata,
    options: ReportOptions,
    inputs: ReportInputs,
    top1_interval: Interval,
) -> tuple[tuple[TemplateSection, ...], ReportContext]:
    """Sections of the page, and the context of its questions: all that a report states beyond the metrics.

    Raises InputError if the other run has no prediction of these images.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    shown = dataset.select(predictions.samples)
    before = None
    if (scaled := inputs.calibration) is not None:
        before = probability.probabilities(scaled.temperature * predictions.logits, predictions.activation).numpy()
    calibration = calibration_section(
        labels,
        probabilities,
        scaled=scaled,
        before=before,
        members=inputs.members,
        how_to_scale=inputs.how_to_scale,
        top1_interval=top1_interval,
        training_images=metadata.training_images,
        optimism=metadata.optimism,
        abstain_below=options.abstain_below,
        activation=predictions.activation,
    )
    sections: list[TemplateSection] = [calibration]
    correct = "are correct" if labels.ndim == 1 else "have a correct most probable label"
    requested = [
        f"Of the images, {percent(point['coverage'])} have a probability of {options.abstain_below:g} or more"
        + (f", of which {percent(point['accuracy'])} {correct}." if point["coverage"] else ".")
        for point in calibration.points
        if point["requested"]
    ]
    predicted = probabilities.argmax(axis=1)
    columns, note = _slice_columns(shown, options.slices)
    slices = slice_metrics(columns, labels, predicted, is_correct(labels, predicted))
    subgroups = ("Not measured.", note) if note else None
    if slices:
        sections.append(subgroup_section(slices))
        subgroups = (subgroup_verdict(slices), f"{worst_slice(slices)} {note}".strip())
    if options.costs is not None:
        key = Key.of(metadata.seed or 0).fold("findings").fold("costs")
        sections.append(cost_section(labels, probabilities, options.costs, class_names, key=key))
        costs = sections[-1].costs
        requested.append(
            f"The mean cost of an image is {number(costs.cheapest)} with predictions of least expected cost, and "
            f"{number(costs.most_probable)} with the most probable class."
        )
    probe = last = None
    if labels.ndim == 1:
        table = predictions_frame(predictions, dataset, class_names)
        clusters = None if inputs.clusters is None else inputs.clusters.by_path(shown.paths)
        if inputs.probe is not None:
            probe = compare_predictions(table, inputs.probe, clusters=clusters)
        last = _last_run(table, options.baseline, inputs, clusters, is_optimistic=metadata.optimistic)
    context = ReportContext(
        probe=probe,
        last=last,
        tta=inputs.tta,
        is_ensemble=bool(inputs.members),
        unseen=inputs.unseen,
        more_labels=inputs.more_labels,
        new_places=inputs.new_places,
        bootstrap_unit=None if inputs.clusters is None else inputs.clusters.unit,
        calibration=(calibration.verdict, calibration.calibrated),
        subgroups=subgroups,
        requested=tuple(requested),
    )
    return (*sections, *inputs.sections), context


def predictions_frame(predictions: Predictions, dataset: ImageDataset, class_names: Sequence[str]) -> pd.DataFrame:
    """Predictions of images with one label as ``evaluation.predictions.load_predictions`` gives saved ones."""
    shown = dataset.select(predictions.samples)
    predicted = [class_names[label] for label in predictions.probabilities.argmax(axis=1)]
    columns = {"predicted_label": predicted, "true_label": list(shown.table["label"])}
    return pd.DataFrame(columns, index=pd.Index(shown.paths))


def _with_image_sizes(dataset: ImageDataset, slices: tuple[str, ...] | None) -> pd.DataFrame:
    """The table with a column of image sizes, if it may be used and is known; an existing column stays."""
    if SIZE in dataset.table or not (slices is None or SIZE in slices):
        return dataset.table
    sides = longer_sides(dataset)
    return dataset.table if sides is None else dataset.table.assign(**{SIZE: sides})


def validate_slices(dataset: ImageDataset, slices: tuple[str, ...]) -> None:
    """Check columns of subgroups before an image is predicted; raises InputError for an unsuitable one."""
    table = _with_image_sizes(dataset, slices)
    columns = [str(name) for name in table.columns if name not in _NO_PROPERTY]
    for name in slices:
        if name not in columns:
            if name == SIZE:
                reason = f"image sizes are read of up to {MAX_MEASURED:,} files, not of shards, records and rasters."
            else:
                reason = f"{dataset.source} has no such column{did_you_mean(name, columns)}"
            raise InputError(f"`slices` {name}: {reason} Choose from {shorten(columns, 20) or 'no column'}.")
        if slice_values(table[name]) is None:
            raise InputError(
                f"`slices` {name}: subgroups need a few values, or numbers that differ. Choose another column, such as "
                "a year or a region."
            )


def _slice_columns(dataset: ImageDataset, slices: tuple[str, ...] | None) -> tuple[pd.DataFrame, str]:
    """The columns of subgroups, and a note on those that are unsuitable without the unreadable images."""
    table = _with_image_sizes(dataset, slices)
    if slices is None:  # without the row numbers that pandas has written
        names = [name for name in table.columns if name not in _NO_PROPERTY and not str(name).startswith("Unnamed: ")]
        return table[names], ""
    lost = [name for name in slices if slice_values(table[name]) is None]
    note = f"The readable images form no subgroups by {shorten(lost)}." if lost else ""
    return table[[name for name in slices if name not in lost]], note


def _last_run(
    table: pd.DataFrame,
    baseline: PreviousRun | None,
    inputs: ReportInputs,
    clusters: pd.Series[int] | None,
    *,
    is_optimistic: bool,
) -> tuple[str, PairedDifference] | None:
    """Name of the baseline, or else of the previous run, and this one minus that one."""
    # Optimistic metrics are compared with a given baseline only, and with a warning.
    if baseline is not None and is_optimistic:
        names = ["this model", *([baseline.name] if baseline.optimistic else [])]
        baseline = replace(baseline, optimistic=optimistic_warning(names))
    if baseline is None and inputs.folder is not None and not is_optimistic:
        found = find_previous_run(inputs.folder, table, split_by=inputs.split_by)
        baseline = None if found is None else PreviousRun(f"the last run, {found[0]}", found[1])
    if baseline is None:
        return None
    difference = compare_predictions(table, baseline.predictions, clusters=clusters)
    return None if difference is None else (baseline.name, baseline.qualified(difference))


def subgroup_section(slices: Sequence[SliceMetrics]) -> TemplateSection:
    """The section on one or more subgroups."""
    values = {
        "text": worst_slice(slices),
        "shown": slices[:_SLICES_OPEN],
        "more": slices[_SLICES_OPEN:],
        "small": SMALL_SLICE,
        "count": len(slices),
    }
    return TemplateSection("slices.html.j2", values, {"slices": [asdict(each) for each in slices]})


def worst_slice(slices: Sequence[SliceMetrics]) -> str:
    """A sentence on the worst subgroup."""
    below = sum(each.below for each in slices)
    candidates = [each for each in slices if (each.below if below else not each.small)]
    if not candidates:
        return f"Each subgroup has fewer than {SMALL_SLICE} images, too few to compare."
    worst = min(candidates, key=lambda each: each.top1)
    found = f"{percent(worst.top1)}, of {pluralize(worst.num_images, 'image')} with {worst.column} {worst.value}"
    if not below:
        of = f"Of the subgroups of {SMALL_SLICE} images or more, the lowest top-1 is {found}"
        return f"{of}. No subgroup is worse by more than chance explains."
    return f"Subgroups worse than the rest by more than chance explains: {below}. Their lowest top-1 is {found}."


def subgroup_verdict(slices: Sequence[SliceMetrics]) -> str:
    """Whether the model is equally good in all subgroups, in a few words."""
    if below := sum(each.below for each in slices):
        return f"No, {below} of {len(slices)} worse."
    return "Too few images." if all(each.small for each in slices) else "No clear difference."


def cost_section(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, costs: ErrorCosts, class_names: Sequence[str], *, key: Key
) -> TemplateSection:
    """The section on costs of (N, K) probabilities for (N,) labels."""
    found = cost_metrics(labels, probabilities, costs)
    constant = None if found.constant_prediction == ABSTAIN else class_names[found.constant_prediction]
    uncalibrated = (
        found.cheapest > found.most_probable
        and calibrated_cost_p_value(labels, probabilities, costs, key=key) < _CHANCE
    )
    values = {
        "costs": found, "constant": constant, "abstains": costs.abstain is not None, "uncalibrated": uncalibrated,
    }  # fmt: skip
    return TemplateSection("costs.html.j2", values, {"costs": asdict(found) | {"constant_prediction": constant}})


def label_efficiency_verdict(curve: LearningCurve, *, note: str = "") -> Verdict:
    """Whether more labels would help: a verdict, and its sentences with a note on the images."""
    verdict = "Probably." if curve.gain_low > WORTH else "Little." if curve.gain_high < LITTLE else "Perhaps."
    half, last = curve.points[-2:]
    text = (
        f"A linear probe on pretrained features reaches macro-F1 {percent(half.macro_f1)} with {half.num_images:,} "
        f"labeled images and {percent(last.macro_f1)} with {last.num_images:,}"
    )
    gain = f"{100 * curve.gain:+.1f} points"
    if verdict == "Perhaps." and curve.gain <= 0:  # an extrapolation would mean that labels do harm
        verdict, text = "Not known.", f"{text}. It does not rise, so the effect of more labels is not known."
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
    return verdict, f"{text} {note}".strip()


def learning_curve_section(curve: LearningCurve, *, note: str = "") -> TemplateSection:
    """The section of a report; arguments as for ``label_efficiency_verdict``."""
    values = {
        "text": " ".join(label_efficiency_verdict(curve, note=note)),
        "curve": draw_label_curve(curve),
        "draws": curve.points[0].draws,
        "sample": None if curve.carried is None else curve.points[-1].num_images,
    }
    return TemplateSection("more_labels.html.j2", values, {"data_scaling_curve": asdict(curve)})


def draw_label_curve(curve: LearningCurve) -> Figure:
    """Macro-F1 against the number of labels on a log axis; the extrapolation is dotted."""
    figure, ax = single_plot(2.6)
    points, color = curve.points, COLORS[0]
    extrapolated = [each for each in (curve.carried, curve.forecast) if each is not None]
    sizes = [each.num_images for each in points]
    rows = [(each.macro_f1, each.low, each.high) for each in points]
    draw_band(ax, sizes, rows, marker="o", markersize=4)
    dotted = [(each.num_images, 100 * each.macro_f1) for each in (points[-1], *extrapolated)]
    ax.plot(*zip(*dotted, strict=True), color=color, linestyle=":")
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
    width, ticks = math.log2(sizes[-1] / sizes[0]), [sizes[-1]]
    for size in reversed(sizes[:-1]):
        if math.log2(ticks[0] / size) >= _LETTER * len(f"{ticks[0]:,}") * width:
            ticks.insert(0, size)
    return ticks
