"""Whether a network can be taken at its word: reliability diagram, temperature, and what silence is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from efficientnetv2.evaluation.html import percent
from efficientnetv2.evaluation.next_steps import suspect_labels
from efficientnetv2.evaluation.plot_style import COLORS, GRID, INK, WIDTH_IN, style_axes
from efficientnetv2.evaluation.sections import TemplateSection
from efficientnetv2.metrics.calibration import (
    ReliabilityBin,
    calibration_error_by_chance,
    expected_calibration_error,
    reliability_bins,
)
from efficientnetv2.metrics.confidence_intervals import Interval, wilson_interval
from efficientnetv2.metrics.multilabel import is_correct
from efficientnetv2.metrics.selective import CoverageCurve, coverage_curve
from efficientnetv2.models.temperature import Calibration
from efficientnetv2.utils.errors import count_of
from efficientnetv2.utils.probability import Answer
from efficientnetv2.utils.rng import Key

# Between the probability stated and the share right, what is not worth a word. Ours.
_EQUAL = 0.01
# Of pictures with several labels, by softmax.
SOFTMAX_SHARES_TEXT = (
    "Its probabilities are shares that the labels of a picture have among them: with two labels, half each at best. "
    "They put answers in order, but do not say how often these are right."
)


@dataclass(frozen=True)
class TemperatureScaling:
    """The temperature that these probabilities have, and those that they would have without it.

    Args:
        temperature: that the logits were divided by.
        pictures: that it was fitted on.
        fitted_on: what these are called.
        before: (N, K) probabilities without it.
    """

    temperature: float
    pictures: int
    fitted_on: str
    before: npt.NDArray[np.floating[Any]]


def calibration_text(
    stated: float,
    hits: npt.NDArray[np.bool_],
    ece: float,
    scaled: TemperatureScaling | None,
    before: float | None,
    members: Sequence[Calibration | None] = (),
    reach: Interval | None = None,
    trainers: str = "",
    *,
    by_chance: float,
) -> str:
    """What the network says of itself and what is so, in sentences.

    That it is too sure, or less sure than it might be, is said of a difference of a point or more that chance in the
    choice of pictures does not explain: what is stated lies outside the 95 % interval of what is right.
    Of pictures that trained it nothing is concluded: it is right of them more often than of new ones, however sure.

    Args:
        stated: mean probability of its answers.
        hits: (N,) whether each is right.
        ece: expected calibration error.
        scaled: the temperature, if there is one.
        before: the error without it.
        members: as ``reliability_section`` takes them.
        reach: likewise.
        trainers: likewise.
        by_chance: Calibration error that chance alone gives with as many images.
    """
    sentence = (
        f"The mean probability of its predictions is {percent(stated)}, "
        f"and {percent(float(hits.mean()))} of them are right{_judged(stated, hits, reach, trainers)}."
    )
    if any(members):
        return f"{sentence} {_of_members(members)}"
    if scaled is None or before is None:
        return f"{sentence} {_without_temperature(ece, by_chance, trainers)}"
    change = f"from {percent(before)} to {percent(ece)}"
    came = (
        f"brought the calibration error {change}"
        if ece < before
        else (f"was to lower the calibration error, which went {change}")
    )
    temperature = (
        f"temperature of {scaled.temperature:.3g}, fitted on {scaled.pictures} pictures of {scaled.fitted_on}"
    )
    if trainers:
        return f"{sentence} It has a {temperature}; no answer is another by it."
    return f"{sentence} Its {temperature}, {came}; no answer is another by it."


def _without_temperature(ece: float, by_chance: float, trainers: str) -> str:
    """Whether a temperature promises anything: not where chance explains the calibration error."""
    if trainers:
        return "No temperature was fitted."
    if within_chance(ece, by_chance):
        return (
            f"The calibration error, {percent(ece)}, is within chance (up to {percent(by_chance)}). "
            "No temperature is needed."
        )
    return (
        f"The calibration error is {percent(ece)}, more than chance explains (up to {percent(by_chance)}). "
        "A temperature fitted on a selection set lowers it (--set minival=0.1)."
    )


def within_chance(ece: float, by_chance: float) -> bool:
    """Whether chance explains a calibration error.

    Args:
        ece: Expected calibration error.
        by_chance: Calibration error that chance alone gives with as many images.
    """
    # As both are shown; of very few images both take few values, and are often the same but for rounding.
    return round(ece, 3) <= round(by_chance, 3)


def calibration_verdict(
    stated: float,
    hits: npt.NDArray[np.bool_],
    reach: Interval | None,
    trainers: str,
    *,
    ece: float,
    by_chance: float,
) -> str:
    """Whether the probabilities are reliable, in a word or two.

    Args:
        stated: Mean probability of the predictions.
        hits: (N,) whether each is right.
        reach: The 95 % interval of the share right; None takes images for independent.
        trainers: The images that trained the model, in words; '' for none.
        ece: Expected calibration error.
        by_chance: Calibration error that chance alone gives with as many images.
    """
    if trainers:
        return "Not known."
    said = _verdict(stated, hits, reach)
    if said.startswith(":"):
        return "No, overconfident." if stated > float(hits.mean()) else "No, underconfident."
    if not within_chance(ece, by_chance):
        return "In part."
    return "Too few images to tell." if said else "Yes."


def sigmoid_calibration_text(
    stated: float, hits: npt.NDArray[np.bool_], reach: Interval | None, trainers: str
) -> str:
    """The same of a network that answers each class by itself, which no temperature is fitted to."""
    return (
        f"The mean probability of the most probable class is {percent(stated)}, and for "
        f"{percent(float(hits.mean()))} of the images that class is one of their labels"
        f"{_judged(stated, hits, reach, trainers)}."
    )


def _judged(stated: float, hits: npt.NDArray[np.bool_], reach: Interval | None, trainers: str) -> str:
    """What follows from both figures, to follow them in a sentence."""
    if trainers:
        return (
            f". But {trainers} trained the network, so that says nothing of new ones: evaluate it on pictures that did "
            "not train it"
        )
    return _verdict(stated, hits, reach)


def _verdict(stated: float, hits: npt.NDArray[np.bool_], reach: Interval | None) -> str:
    """Whether it is too sure or not sure enough, to follow both figures; '' where they are as good as equal."""
    is_right = float(hits.mean())
    if abs(stated - is_right) < _EQUAL:
        return ""
    how = "overconfident" if stated > is_right else "underconfident"
    low, high = reach or wilson_interval(is_right, len(hits))
    if low <= stated <= high:
        few = f"{count_of(len(hits), 'image')} {'is' if len(hits) == 1 else 'are'} too few"
        return f"; {few} to tell whether it is {how}"
    return f": it is {how}"


def _of_members(members: Sequence[Calibration | None]) -> str:
    """Which of the networks have temperatures, which ones, and what fitted them."""
    known = [one for one in members if one is not None]
    temperatures = _span([f"{one:.3g}" for one in sorted(one.temperature for one in known)])
    pictures = _span([f"{one:,}" for one in sorted(one.pictures for one in known)])
    names = " or ".join(dict.fromkeys(one.fitted_on for one in known))
    fitted = f"({temperatures}), fitted on {pictures} pictures of {names}"
    if len(known) == len(members):
        return f"Each of the {len(members)} networks has a temperature of its own {fitted}."
    have = "has" if len(known) == 1 else "have"
    return (
        f"Of the {len(members)} networks {len(known)} {have} a temperature {fitted}; the probabilities of the rest are "
        "as training left them."
    )


def _span(values: Sequence[str]) -> str:
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


# Shares of the pictures answered that the table shows. Ours.
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3)
# Accuracies that users ask for, and the images that have to reach one at least: of fewer, chance decides. Ours.
_TARGETS, _LEAST = (0.8, 0.9, 0.95, 0.99), 10
# Of the drawn curve: more than there are pixels for. Ours.
_POINTS = 500


def reliability_section(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    scaled: TemperatureScaling | None = None,
    members: Sequence[Calibration | None] = (),
    reach: Interval | None = None,
    trainers: str = "",
    choosers: str = "",
    abstain_below: float | None = None,
    answer: Answer = "softmax",
) -> TemplateSection:
    """The section of a report. An answer is the most probable class of a picture; of several labels it is right as one.

    Args:
        labels: (N,) true classes; of several labels each (N, M), -1 behind the last.
        probabilities: (N, K), as the network gives them.
        scaled: what a temperature has changed; None where there is none.
        members: of the networks that have answered, where they are several: the temperature of each, None where one
            has none.
        reach: the 95 % interval of the share right; None takes pictures for independent.
        trainers: those of the pictures that trained the network, in words; '' where none did.
        choosers: likewise those that chose it.
        abstain_below: a threshold that was asked for; it gets a row of its own.
        answer: what the probabilities are.
    """
    shares = np.asarray(probabilities)
    shared = np.ndim(labels) > 1 and answer == "softmax"
    predicted = shares.argmax(axis=1)
    hits = is_correct(labels, predicted)
    true = np.where(hits, predicted, -1)
    bins, ece = reliability_bins(true, shares), expected_calibration_error(true, shares)
    by_chance = calibration_error_by_chance(bins, key=Key.of(0).fold("calibration"))
    curve = coverage_curve(hits, shares.max(axis=1))
    before = None if scaled is None else expected_calibration_error(true, scaled.before)
    points = _points(curve, abstain_below)
    stated = float(shares.max(axis=1).mean())
    targets = _targets(curve)
    calibration = {
        "ece": ece,
        "ece_by_chance": by_chance,
        "ece_within_chance": within_chance(ece, by_chance),
        "mean_probability": stated,
        "bins": [asdict(one) for one in bins],
    }
    if scaled is not None:
        calibration |= {
            "temperature": scaled.temperature, "fitted_on": scaled.fitted_on, "fitted_pictures": scaled.pictures,
            "ece_before": before,
        }  # fmt: skip
    if any(members):
        calibration["members"] = [_told(one) for one in members]
    return TemplateSection(
        "trust.html.j2",
        {
            "calibration": calibration,
            "aurc": curve.aurc,
            "calibrated": SOFTMAX_SHARES_TEXT
            if shared
            else sigmoid_calibration_text(stated, hits, reach, trainers)
            if answer == "sigmoid"
            else calibration_text(
                stated, hits, ece, scaled, before, members, reach, trainers, by_chance=by_chance
            ),
            "verdict": "Not measured."
            if shared
            else calibration_verdict(stated, hits, reach, trainers, ece=ece, by_chance=by_chance),
            "targets": targets,
            "least": _LEAST,
            "highest": None if all(one["pictures"] for one in targets) else _highest(curve),
            "abstaining": _abstaining(curve, abstain_below),
            "flattered": _flattered(trainers, choosers),
            "points": points,
            "diagram": None if shared else draw_reliability(bins),
            "curve": draw_coverage(curve),
        },
        {
            "calibration": calibration,
            "abstention": {
                "aurc": curve.aurc,
                "points": points,
                "targets": targets,
                "optimistic": bool(trainers or choosers),
                "suspect_labels": 0 if shared else suspect_labels(curve),
            },
        },
    )


def _told(one: Calibration | None) -> dict[str, Any] | None:
    """As the report has the temperature of one network."""
    if one is None:
        return None
    return {"temperature": one.temperature, "fitted_on": one.fitted_on, "fitted_pictures": one.pictures}


def _abstaining(curve: CoverageCurve, abstain_below: float | None) -> str:
    half = curve.at_share(0.5)
    words = (
        f"Of the {percent(float(curve.answered[half]))} most confident predictions, "
        f"{percent(float(curve.accuracy[half]))} are right; of all, {percent(float(curve.accuracy[-1]))}."
    )
    if abstain_below is None:
        return words
    count, share, interval = curve.answered_at(abstain_below)
    if interval is None:
        return f"No prediction reaches the threshold of {percent(abstain_below)} (--abstain-below). {words}"
    return (
        f"{count} of {curve.pictures} predictions reach the threshold of {percent(abstain_below)} (--abstain-below). "
        f"Of these, {percent(share)} are right ({100 * interval[0]:.1f} to {percent(interval[1])}). {words}"
    )


def _flattered(trainers: str, choosers: str) -> str:
    """That silence is worth less on new pictures than on these, in a sentence or two; '' where nothing says so."""
    said = " and ".join(
        f"{who} {did} the network" for who, did in ((trainers, "trained"), (choosers, "chose")) if who
    )
    if not said:
        return ""
    return (
        f"{said[0].upper()}{said[1:]}, so it is right of them more often than of new ones, and all that follows is "
        "optimistic. Choose a threshold by pictures that did neither."
    )


def _targets(curve: CoverageCurve) -> list[dict[str, Any]]:
    """For each accuracy asked for: the lowest threshold that reaches it, and how many images are left; None: never."""
    found = []
    for target in _TARGETS:
        reached = np.flatnonzero(
            (curve.accuracy >= target) & (curve.answered * curve.pictures >= _LEAST - 0.5)
        )
        row: dict[str, Any] = {"target": target, "threshold": None, "answered": 0.0, "pictures": 0}
        if len(reached):
            point = int(reached[-1])
            row = {
                "target": target,
                "threshold": 0.0 if point == len(curve.answered) - 1 else float(curve.threshold[point]),
                "answered": float(curve.answered[point]),
                "pictures": round(curve.answered[point] * curve.pictures),
            }
        found.append(row)
    return found


def _highest(curve: CoverageCurve) -> dict[str, Any] | None:
    """The highest accuracy of enough images, with its threshold; None where there are too few images."""
    enough = np.flatnonzero(curve.answered * curve.pictures >= _LEAST - 0.5)
    if not len(enough):
        return None
    point = int(enough[np.argmax(curve.accuracy[enough])])
    return {
        "accuracy": float(curve.accuracy[point]),
        "threshold": float(curve.threshold[point]),
        "pictures": round(curve.answered[point] * curve.pictures),
    }


def _points(curve: CoverageCurve, abstain_below: float | None) -> list[dict[str, Any]]:
    """Rows of the table, by falling share of pictures answered."""
    found: dict[float, dict[str, Any]] = {}
    for share in _SHARES:
        point = curve.at_share(share)
        row = _row(curve, float(curve.threshold[point]), asked=False)
        found[row["answered"]] = row
    rows = list(found.values())
    if abstain_below is not None:
        rows.append(_row(curve, abstain_below, asked=True))
    return sorted(rows, key=lambda row: -float(row["answered"]))


def _row(curve: CoverageCurve, threshold: float, *, asked: bool) -> dict[str, Any]:
    count, accuracy, interval = curve.answered_at(threshold)
    low, high = interval or (None, None)
    answered = count / curve.pictures
    return {
        "answered": answered, "threshold": threshold, "accuracy": accuracy, "low": low, "high": high, "asked": asked,
    }  # fmt: skip


def draw_reliability(bins: Sequence[ReliabilityBin]) -> Figure:
    """Share right against probability stated, with the 95 % interval of each bin; below, how many pictures it has.

    Args:
        bins: as ``metrics.calibration.reliability_bins`` gives them.
    """
    figure = Figure(figsize=(WIDTH_IN, 3.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    stated = [100 * one.confidence for one in bins]
    shares = np.array([100 * one.right for one in bins])
    ends = np.array([[100 * one.interval[0], 100 * one.interval[1]] for one in bins]).T
    upper.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
    upper.errorbar(
        stated, shares, yerr=np.abs(ends - shares), color=COLORS[0], marker="o", markersize=4, linewidth=1.2,
        elinewidth=0.8,
    )  # fmt: skip
    upper.set_ylim(0, 103)
    style_axes(upper, "accuracy, %")
    lower.bar(
        [100 * one.low for one in bins], [one.pictures for one in bins],
        width=[100 * (one.high - one.low) for one in bins], align="edge", color=COLORS[0],
        edgecolor=GRID, linewidth=0.4,
    )  # fmt: skip
    lower.set_xlim(0, 100)
    lower.set_xlabel("predicted probability, %", color=INK)
    style_axes(lower, "images")
    lower.locator_params(axis="y", nbins=3, integer=True)
    return figure


def draw_coverage(curve: CoverageCurve) -> Figure:
    """Accuracy against the share of pictures answered, with its 95 % interval.

    Args:
        curve: to draw.
    """
    figure = Figure(figsize=(WIDTH_IN, 2.6), layout="constrained")
    ax = figure.subplots()
    # Of the few surest pictures the share jumps with each; from the tenth picture on it says something.
    points = [point for point in range(len(curve.answered)) if curve.answered[point] * curve.pictures >= 10]
    points = points or [len(curve.answered) - 1]
    if len(points) > _POINTS:  # a page that can be sent, however many pictures there are
        points = [points[place] for place in np.linspace(0, len(points) - 1, _POINTS).round().astype(int)]
    x = 100 * curve.answered[points]
    ends = [
        wilson_interval(float(curve.accuracy[point]), round(curve.answered[point] * curve.pictures))
        for point in points
    ]
    ax.fill_between(
        x, [100 * low for low, _ in ends], [100 * high for _, high in ends], color=COLORS[0], alpha=0.2,
        linewidth=0,
    )  # fmt: skip
    ax.plot(x, 100 * curve.accuracy[points], color=COLORS[0], linewidth=1.5)
    ax.set_xlim(0, 101)
    ax.set_xlabel("images left, %, the most confident first", color=INK)
    style_axes(ax, "accuracy of these, %, with its 95 % interval")
    return figure
