"""The report section on calibration and selective prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from efficientnetv2.evaluation.html import TemplateSection, percent
from efficientnetv2.evaluation.next_steps import suspect_labels
from efficientnetv2.evaluation.plot_style import COLORS, GRID, INK, WIDTH_IN, draw_band, single_plot, style_axes
from efficientnetv2.metrics.calibration import (
    CoverageCurve,
    ReliabilityBin,
    calibration_error_by_chance,
    coverage_curve,
    expected_calibration_error,
    reliability_bins,
)
from efficientnetv2.metrics.confidence_intervals import Interval, wilson_interval
from efficientnetv2.metrics.multilabel import is_correct
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.utils.errors import pluralize
from efficientnetv2.utils.probability import Activation
from efficientnetv2.utils.random_key import Key

# Difference of mean probability and accuracy that is not worth a word. Ours.
_EQUAL = 0.01
# Width of an interval of the accuracy above which the images are too few to call probabilities reliable. Ours.
_WIDE = 0.3
# Coverages of the table. Ours.
_COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3)
# Accuracies that users ask for, and the minimum number of images that reach one. Ours.
_TARGETS, _MIN_IMAGES = (0.8, 0.9, 0.95, 0.99), 10
_CALIBRATE = "`effnetv2 evaluate MODEL DATA --calibrate NEW.safetensors`"
# Points of the drawn curve: more than pixels. Ours.
_POINTS = 500


def calibration_section(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    scaled: Calibration | None = None,
    before: npt.ArrayLike | None = None,
    members: Sequence[Calibration | None] = (),
    how_to_scale: str | None = None,
    top1_interval: Interval | None = None,
    training_images: str = "",
    optimism: str = "",
    abstain_below: float | None = None,
    activation: Activation = "softmax",
) -> TemplateSection:
    """The section for (N,) or (N, M) labels and (N, K) probabilities.

    ``scaled`` is their temperature, ``before`` (N, K) probabilities without it, ``members`` the temperatures of an
    ensemble. ``how_to_scale`` is how to fit a temperature, if not as usual. Without ``top1_interval``, of 95 %, images
    count as independent. ``training_images`` and ``optimism`` are those of ``ReportMetadata``. The threshold
    ``abstain_below`` gets a row of its own.
    """
    scores = np.asarray(probabilities)
    predicted, confidence = scores.argmax(axis=1), scores.max(axis=1)
    correct = is_correct(labels, predicted)
    true = np.where(correct, predicted, -1)
    bins = reliability_bins(true, scores)
    calibration = _calibration(true, scores, bins, scaled, before, members)
    shared = np.ndim(labels) > 1 and activation == "softmax"  # labels of an image share its probability
    if shared:
        text, verdict = ("The labels of an image share its probability: they rank predictions only.", "Not measured.")
    else:
        accuracy = float(correct.mean())
        interval = top1_interval or wilson_interval(accuracy, len(correct))
        bias, verdict = _bias(calibration, accuracy, interval, training_images)
        if verdict.startswith("No,"):  # the mean probability shows what is within chance by bins
            calibration["ece_within_chance"] = False
        text = (
            f"The mean probability of the most probable class is {percent(calibration['mean_probability'])}. It is "
            f"correct for {percent(accuracy)} of {pluralize(len(correct), 'image')}{bias}."
        )
        if activation == "softmax":
            text += f" {_temperature(calibration, members, how_to_scale, training_images)}"
    curve = coverage_curve(correct, confidence)
    targets = _targets(curve)
    abstention = {
        "aurc": curve.aurc,
        "points": _points(curve, abstain_below),
        "targets": targets,
        "optimistic": bool(optimism),
        "suspect_labels": 0 if shared else suspect_labels(curve),
    }
    values = {
        **abstention,
        "calibration": calibration,
        "calibrated": text,
        "verdict": verdict,
        "least": _MIN_IMAGES,
        "highest": None if all(each["num_images"] for each in targets) else _highest_accuracy(curve),
        "optimism": optimism,
        "diagram": None if shared else draw_reliability(bins),
        "curve": draw_coverage(curve),
    }
    return TemplateSection("trust.html.j2", values, {"calibration": calibration, "abstention": abstention})


def _calibration(
    true: npt.NDArray[np.int64],
    scores: npt.NDArray[np.floating[Any]],
    bins: Sequence[ReliabilityBin],
    scaled: Calibration | None,
    before: npt.ArrayLike | None,
    members: Sequence[Calibration | None],
) -> dict[str, Any]:
    ece = expected_calibration_error(true, scores)
    by_chance = calibration_error_by_chance(bins, key=Key.of(0).fold("calibration"))
    values: dict[str, Any] = {
        "ece": ece,
        "ece_by_chance": by_chance,
        # As both are shown; of few images they take few values and often differ by rounding only.
        "ece_within_chance": round(ece, 3) <= round(by_chance, 3),
        "mean_probability": float(scores.max(axis=1).mean()),
        "bins": [asdict(each) for each in bins],
    }
    if scaled is not None and before is not None:
        values |= {**_fitted(scaled), "ece_before": expected_calibration_error(true, before)}
    if any(members):
        values["members"] = [each and _fitted(each) for each in members]
    return values


def _fitted(one: Calibration) -> dict[str, Any]:
    return {"temperature": one.temperature, "fitted_on": one.fitted_on, "num_fitted_images": one.num_images}


def _bias(values: Mapping[str, Any], accuracy: float, interval: Interval, training_images: str) -> tuple[str, str]:
    """Over- or underconfident, as the end of a sentence and as a verdict; certain outside the interval of top-1."""
    if training_images:
        return f", but {training_images} trained the model, so this does not hold for new images", "Not known."
    mean, within_chance = values["mean_probability"], values["ece_within_chance"]
    word = "overconfident" if mean > accuracy else "underconfident"
    if abs(mean - accuracy) < _EQUAL:
        equal = "Yes." if interval[1] - interval[0] <= _WIDE else "Too few images."
        return "", equal if within_chance else "In part."
    if not interval[0] <= mean <= interval[1]:
        return f": the model is {word}", f"No, {word}."
    verdict = "Too few images." if within_chance else "In part."
    return f", too few images to decide whether the model is {word}", verdict


def _temperature(
    values: Mapping[str, Any], members: Sequence[Calibration | None], how_to_scale: str | None, training_images: str
) -> str:
    """What a temperature changed, or whether one is needed. On training images nothing is concluded."""
    if known := [each for each in members if each is not None]:
        temperatures = sorted(each.temperature for each in known)
        images = sorted(each.num_images for each in known)
        return (
            f"{len(known)} of {len(members)} models have a temperature ({temperatures[0]:.3g} to "
            f"{temperatures[-1]:.3g}), fitted on {images[0]:,} to {images[-1]:,} images of "
            f"{' or '.join(dict.fromkeys(each.fitted_on for each in known))}."
        )
    ece, by_chance = percent(values["ece"]), percent(values["ece_by_chance"])
    if "temperature" in values:
        text = (
            f"The temperature is {values['temperature']:.3g}, fitted on {values['num_fitted_images']} images of "
            f"{values['fitted_on']}."
        )
        before = percent(values["ece_before"])
        return text if training_images else f"{text} Calibration error: {before} before, {ece} after."
    if training_images:
        return "No temperature was fitted."
    if values["ece_within_chance"]:
        return f"The calibration error, {ece}, is within chance (up to {by_chance})."
    usual = "train its models with `minival=0.1`" if members else _CALIBRATE
    is_more = round(values["ece"], 3) > round(values["ece_by_chance"], 3)
    error = f"{ece}, is more than chance explains (up to {by_chance})" if is_more else f"is {ece}"
    fix = f"A temperature that is fitted on other images can lower it: {how_to_scale or usual}."
    return f"The calibration error{', ' if is_more else ' '}{error}. {fix}"


def _targets(curve: CoverageCurve) -> list[dict[str, Any]]:
    """For each target accuracy the lowest threshold that reaches it, with its coverage; None if never."""
    rows: list[dict[str, Any]] = []
    for target in _TARGETS:
        reached = np.flatnonzero((curve.accuracy >= target) & _enough(curve))
        threshold, coverage = None, 0.0
        if len(reached):
            coverage = float(curve.coverage[reached[-1]])
            threshold = 0.0 if coverage == curve.coverage[-1] else float(curve.threshold[reached[-1]])
        count = round(coverage * curve.num_images)
        rows.append({"target": target, "threshold": threshold, "coverage": coverage, "num_images": count})
    return rows


def _highest_accuracy(curve: CoverageCurve) -> dict[str, Any] | None:
    """The highest accuracy of enough images, with its threshold; None with too few images."""
    enough = np.flatnonzero(_enough(curve))
    if not len(enough):
        return None
    threshold = float(curve.threshold[enough[np.argmax(curve.accuracy[enough])]])
    count, accuracy, _ = curve.at_threshold(threshold)
    return {"accuracy": accuracy, "threshold": threshold, "num_images": count}


def _enough(curve: CoverageCurve) -> npt.NDArray[np.bool_]:
    """(P,) whether a point has enough images that chance does not decide its accuracy."""
    enough: npt.NDArray[np.bool_] = curve.coverage * curve.num_images >= _MIN_IMAGES - 0.5
    return enough


def _points(curve: CoverageCurve, abstain_below: float | None) -> list[dict[str, Any]]:
    thresholds = {float(curve.threshold[curve.at_coverage(coverage)]): False for coverage in _COVERAGES}
    rows = [*thresholds.items(), *([] if abstain_below is None else [(abstain_below, True)])]
    points: list[dict[str, Any]] = []
    for threshold, requested in rows:
        count, accuracy, interval = curve.at_threshold(threshold)
        low, high = interval or (None, None)
        points.append(
            {"coverage": count / curve.num_images, "threshold": threshold, "accuracy": accuracy, "low": low,
             "high": high, "requested": requested}
        )  # fmt: skip
    return sorted(points, key=lambda row: -float(row["coverage"]))


def draw_reliability(bins: Sequence[ReliabilityBin]) -> Figure:
    """Accuracy against probability with 95 % intervals; below, the number of images in each bin."""
    figure = Figure(figsize=(WIDTH_IN, 3.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    accuracy = np.array([100 * each.right for each in bins])
    ends = np.array([[100 * each.interval[0], 100 * each.interval[1]] for each in bins]).T
    upper.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
    upper.errorbar(
        [100 * each.confidence for each in bins], accuracy, yerr=np.abs(ends - accuracy), color=COLORS[0], marker="o",
        markersize=4, linewidth=1.2, elinewidth=0.8,
    )  # fmt: skip
    upper.set_ylim(0, 103)
    style_axes(upper, "accuracy, %")
    lower.bar(
        [100 * each.low for each in bins], [each.num_images for each in bins],
        width=[100 * (each.high - each.low) for each in bins], align="edge", color=COLORS[0],
        edgecolor=GRID, linewidth=0.4,
    )  # fmt: skip
    lower.set_xlim(0, 100)
    lower.set_xlabel("predicted probability, %", color=INK)
    style_axes(lower, "images")
    lower.locator_params(axis="y", nbins=3, integer=True)
    return figure


def draw_coverage(curve: CoverageCurve) -> Figure:
    """Accuracy against coverage with its 95 % interval."""
    figure, ax = single_plot(2.6)
    # The accuracy of fewer than ten images jumps with each image.
    points = np.flatnonzero(_enough(curve)).tolist() or [len(curve.coverage) - 1]
    if len(points) > _POINTS:
        points = [points[place] for place in np.linspace(0, len(points) - 1, _POINTS).round().astype(int)]
    accuracy = [float(curve.accuracy[point]) for point in points]
    counts = [round(curve.coverage[point] * curve.num_images) for point in points]
    rows = [(value, *wilson_interval(value, count)) for value, count in zip(accuracy, counts, strict=True)]
    draw_band(ax, 100 * curve.coverage[points], rows, linewidth=1.5)
    ax.set_xlim(0, 101)
    ax.set_xlabel("predicted images, %, the most confident first", color=INK)
    style_axes(ax, "accuracy of these, %, with its 95 % interval")
    return figure
