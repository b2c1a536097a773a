"""How sure a network is of its answers and how sure it may be, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.base.errors import count_of
from efficientnetv2.evaluation.page import percent
from efficientnetv2.metrics.intervals import Interval, wilson
from efficientnetv2.models.calibrated import Calibration

# Between the probability stated and the share right, what is not worth a word. Ours.
_EQUAL = 0.01
# Of pictures with several labels, by softmax.
SHARED = (
    "Its probabilities are shares that the labels of a picture have among them: with two labels, half each at best. "
    "They put answers in order, but do not say how often these are right."
)


@dataclass(frozen=True)
class Scaled:
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


def calibrated(
    stated: float,
    hits: npt.NDArray[np.bool_],
    ece: float,
    scaled: Scaled | None,
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
        members: as ``trust`` takes them.
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


def verdict(
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


def of_most_probable(
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
    low, high = reach or wilson(is_right, len(hits))
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
