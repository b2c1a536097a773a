"""Would it be as good in a new place: what a cross-validation says of it, by its folds or by others beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import has_groups
from efficientnetv2.data.records import Ints
from efficientnetv2.evaluation.html import number, percent
from efficientnetv2.evaluation.split_leakage import NEAR_KM, Bools, Places
from efficientnetv2.metrics.bootstrap import Difference
from efficientnetv2.utils.errors import count_of


@dataclass(frozen=True)
class TrainDistance:
    """What the pictures evaluated on have to do with those learnt from.

    Args:
        by: what is known of them, where they were taken or to which group they belong.
        known: pictures evaluated on of which it is known; of groups all, for one without counts as a group of its own.
        near: how many of these have one that was learnt from within ``NEAR_KM``; or in their group.
        median_km: of their distances to the nearest that was learnt from; None of groups.
        groups: the same by group, where both are known.
    """

    by: Literal["place", "group"]
    known: int
    near: int
    median_km: float | None = None
    groups: TrainDistance | None = None

    @property
    def new(self) -> bool:
        """Whether none of the pictures is near to, or of a group with, one that was learnt from."""
        return not self.near and (self.groups is None or self.groups.new)


def train_distance(dataset: ImageDataset, split: str) -> TrainDistance | None:
    """Of a split from the training pictures; None where nothing is known of places or groups.

    Args:
        dataset: of all pictures, with columns ``latitude`` and ``longitude``, or ``group``, or all of them.
        split: whose pictures are evaluated on.
    """
    return _apart(dataset, [(dataset.in_train, dataset.split == split)])


def fold_train_distance(dataset: ImageDataset, parts: Sequence[tuple[Ints, Ints]]) -> TrainDistance | None:
    """Likewise of a cross-validation: each picture from those that the network learnt from which answers it.

    Args:
        dataset: of all pictures.
        parts: of each fold the rows that teach, and those that are answered.
    """
    everyone = np.arange(len(dataset))
    return _apart(dataset, [(np.isin(everyone, one), np.isin(everyone, other)) for one, other in parts])


def _apart(dataset: ImageDataset, pairs: Sequence[tuple[Bools, Bools]]) -> TrainDistance | None:
    """Over pairs of (N,) pictures learnt from and asked about."""
    by_place, by_group = _by_place_apart(dataset, pairs), _by_group(dataset, pairs)
    return by_group if by_place is None else replace(by_place, groups=by_group)


def _by_place_apart(dataset: ImageDataset, pairs: Sequence[tuple[Bools, Bools]]) -> TrainDistance | None:
    places = Places.of(dataset)
    if places is None:
        return None
    placed = [(learnt[places.rows], asked[places.rows]) for learnt, asked in pairs]
    found = [
        places.nearest_km(asked, learnt)[asked] for learnt, asked in placed if learnt.any() and asked.any()
    ]
    if not found:
        return None
    km = np.concatenate(found)
    return TrainDistance("place", len(km), int((km <= NEAR_KM).sum()), float(np.median(km)))


def _by_group(dataset: ImageDataset, pairs: Sequence[tuple[Bools, Bools]]) -> TrainDistance | None:
    if not has_groups(dataset):
        return None
    named = dataset.table["group"].astype(object).fillna("").astype(str)
    known = (named != "").to_numpy(dtype=bool)
    # As numbers: text numpy would compare all with all, which takes an hour of a million pictures.
    groups = pd.factorize(named)[0]
    if not any((known & asked).any() for _, asked in pairs):
        return None
    near = sum(int(np.isin(groups[known & asked], groups[known & learnt]).sum()) for learnt, asked in pairs)
    return TrainDistance("group", sum(int(asked.sum()) for _, asked in pairs), near)


# Of a figure, what matters if it is lost in a new place. Ours, as evaluation.more_labels calls less of it little.
_MATTERS = 0.02
#: The name of the linear probe among those that have answered by two sets of folds.
PROBE = "the linear probe"


About = Literal["locations", "groups", "period"]
#: The question of a report by what is new.
QUESTIONS: Mapping[About, str] = {
    "locations": "Is it as good in new locations?",
    "groups": "Is it as good for new groups?",
    "period": "Is it as good in the next period?",
}


@dataclass(frozen=True)
class NewPlaceEstimate:
    """The answer.

    Args:
        verdict: in a few words.
        words: the sentences behind it.
        known: whether it is an answer for new places at all.
        command: that would answer it, or answer it better.
        about: What is new: locations, groups, or the next period.
    """

    verdict: str
    words: str
    known: bool
    command: str | None = None
    about: About = "locations"


@dataclass(frozen=True)
class SplitComparison:
    """The same pictures answered with folds dealt at random and with folds by place.

    Args:
        what: did it: ``PROBE``, ``the trained networks``.
        at_random: figures with random folds: name → value.
        by_place: likewise, with spatial blocks.
        difference: of each figure, at random less by place.
    """

    what: str
    at_random: Mapping[str, float]
    by_place: Mapping[str, float]
    difference: Mapping[str, Difference]

    @property
    def flattering(self) -> bool:
        """Whether neighbours make the random figure better than chance explains."""
        return any(one.low > 0 for one in self._both)

    @property
    def alike(self) -> bool:
        """Whether the random figures are better by no more than is of no matter, chance included."""
        return all(one.high < _MATTERS for one in self._both)

    def sentence(self) -> str:
        """What the user has to know of it."""
        said = "; ".join(
            f"{words} {percent(self.at_random[name])} at random, {percent(self.by_place[name])} by place, difference "
            f"{100 * self.difference[name].value:+.1f} points ({100 * self.difference[name].low:+.1f} to "
            f"{100 * self.difference[name].high:+.1f})"
            for name, words in (("macro_f1", "macro-F1"), ("top1", "top-1"))
        )
        if self.flattering:
            # The probe says how much neighbours flatter, and what is trained is the network.
            quoted = "the network's figure" if self.what == PROBE else "the figure"
            return (
                f"Neighbours flatter: figures of {self.what} are better where pictures are dealt at random than by "
                f"place ({said}). For pictures from new places {quoted} by place is the one to quote."
            )
        if any(one.high < 0 for one in self._both):
            return (
                f"Neighbours do not flatter: figures of {self.what} are better by place than at random ({said}), by "
                "more than chance in the choice of pictures explains; that of how they are dealt may explain it."
            )
        return f"Dealt at random or by place, figures of {self.what} differ by no more than chance explains: {said}."

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"flattering": self.flattering}

    @property
    def _both(self) -> list[Difference]:
        return [self.difference[name] for name in ("top1", "macro_f1")]


def new_place_estimate(
    by: str, beside: Sequence[SplitComparison], apart: TrainDistance | None
) -> NewPlaceEstimate | None:
    """What folds say of new places, groups or periods; None where the data has none of them.

    Args:
        by: the rule of the folds, as ``data.folds.Folds.rule`` has it.
        beside: folds dealt otherwise; the first of them counts. Empty where there are none.
        apart: how far the pictures are from those that their networks learnt from; None where nothing is known of it.
    """
    compared = beside[0] if beside else None
    if by == "place" and apart is not None:
        return _by_place(apart, compared)
    if compared is not None:
        return _by_comparison(compared)
    if by == "time":
        period = "What is measured is the next period: each network answered the one that follows those it learnt from."
        if apart is None:
            return NewPlaceEstimate("That is what is measured here.", period, known=False, about="period")
        found = _by_distance(by, apart)
        return replace(found, words=f"{period} {found.words}", command=None)
    return None if apart is None else _by_distance(by, apart)


def _by_distance(by: str, apart: TrainDistance) -> NewPlaceEstimate:
    """Folds that were not dealt by place: what is known of the pictures' places and groups."""
    about: About = "locations" if apart.by == "place" else "groups"
    said, groups = _nearness(apart), apart if apart.by == "group" else apart.groups
    if apart.new:
        whose = " and ".join(f"{one.by}s" for one in (apart, apart.groups) if one is not None)
        return NewPlaceEstimate(f"These are new {whose}.", said, known=apart.by == "place", about=about)
    if groups is not None and not groups.near:
        return NewPlaceEstimate("These are new groups.", said, known=False, about=about)
    # By auto they would be kept whole if that could be: the sentence on the folds says why they are not.
    if by != "class":
        return NewPlaceEstimate("Not measured.", said, known=False, about=about)
    asking = f"{said} Cross-validation by {apart.by} says how much:"
    return NewPlaceEstimate(
        "Not measured.", asking, known=False, command=f"effnetv2 crossval DATA --by {apart.by}", about=about
    )


def _by_place(apart: TrainDistance, compared: SplitComparison | None) -> NewPlaceEstimate:
    """Blocks have borders: pictures on two sides of one are neighbours, though of two places."""
    words = [_nearness(apart), *([] if compared is None else [compared.sentence()])]
    if not apart.near:
        return NewPlaceEstimate("That is what is measured here.", " ".join(words), known=True)
    # all of them right by their neighbours alone would be of no matter
    if apart.near < _MATTERS * apart.known:
        but = f"That is what is measured here, but for {count_of(apart.near, 'picture')}."
        return NewPlaceEstimate(but, " ".join(words), known=True)
    words.insert(1, "Larger blocks (--block-degrees) have fewer borders.")
    half = 2 * apart.near > apart.known
    verdict = "Not measured." if half else "That is measured here in part."
    return NewPlaceEstimate(verdict, " ".join(words), known=not half)


def _by_comparison(compared: SplitComparison) -> NewPlaceEstimate:
    """Folds at random, with folds by place beside them; what a probe loses, trained networks may not."""
    words = compared.sentence()
    if compared.what == PROBE:
        found = "does not tell"
        if compared.flattering:
            found = "is less good"
        elif compared.alike:
            found = "is no worse beyond chance"
        return NewPlaceEstimate(
            f"Not measured of the network; the probe {found}.",
            f"{words} A trained network may lose more than the probe, or less. Training by both says it:",
            known=False,
            command="effnetv2 crossval DATA --compare-splits",
        )
    if compared.flattering:
        return NewPlaceEstimate("Less good.", words, known=True)
    if compared.alike:
        return NewPlaceEstimate("No worse beyond chance.", words, known=True)
    return NewPlaceEstimate("Not clear: too few pictures to tell.", words, known=False)


def _nearness(apart: TrainDistance) -> str:
    """How many of the pictures are near to, or of a group with, one that their network learnt from."""
    said = []
    if apart.by == "place":
        near, km = f"within {NEAR_KM:g} km of one that", apart.median_km
        if apart.near:
            lie, whose = ("lies", "its") if apart.near == 1 else ("lie", "their")
            share = (
                f"{count_of(apart.near, 'picture')} of {apart.known:,} ({percent(apart.near / apart.known)})"
            )
            said.append(f"{share} {lie} {near} {whose} network learnt from, which may flatter.")
        else:
            far = (
                "" if km is None else f" Half of them are {number(float(f'{km:.2g}'))} km from it or farther."
            )
            said.append(f"None of these pictures lies {near} its network learnt from.{far}")
    groups = apart if apart.by == "group" else apart.groups
    if groups is not None and groups.near:
        share = percent(groups.near / groups.known)
        said.append(
            f"{share} of these pictures are of a group that their network learnt from, which may flatter."
        )
    elif groups is not None:
        said.append("Every group that was answered was new to its network.")
    return " ".join(said)
