"""Generalization to new locations, groups and periods: distance to the training images, and folds by location."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import has_groups
from efficientnetv2.data.records import Ints
from efficientnetv2.evaluation.html import number, percent
from efficientnetv2.metrics.confidence_intervals import Difference
from efficientnetv2.metrics.multilabel import METRIC_NAMES
from efficientnetv2.utils.errors import pluralize

# Loss of a metric in new locations that matters. Ours.
_MATTERS = 0.02
#: The linear probe as the model of a ``SplitComparison``.
PROBE = "the linear probe"

About = Literal["locations", "groups", "period"]
_QUESTIONS: Mapping[About, str] = {
    "locations": "Is it as good in new locations?",
    "groups": "Is it as good for new groups?",
    "period": "Is it as good in the next period?",
}
_NOUNS: Mapping[str, About] = {"place": "locations", "group": "groups"}
#: Distance within which images count as neighbors. Ours.
NEAR_KM = 5.0
#: Columns of a location, in degrees.
DEGREES = ("latitude", "longitude")
# Mean radius of the Earth. Source: IUGG, GRS 80.
EARTH_KM = 6371.0088
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TrainDistance:
    """Distance of the evaluated images from the training images. The fields are keys of ``report.json``."""

    by: Literal["place", "group"]
    known: int  # images with a location; all images for groups, as each without a group is its own group
    near: int  # images within ``NEAR_KM`` of a training image, or of a group with training images
    median_km: float | None = None  # to the nearest training image; None for groups
    groups: TrainDistance | None = None  # the same by group, if both are known

    @property
    def new(self) -> bool:
        """Whether no image is near a training image or of its group."""
        return not self.near and (self.groups is None or self.groups.new)

    @property
    def nouns(self) -> str:
        """``locations``, ``groups``, or both."""
        return " and ".join(_NOUNS[each.by] for each in (self, self.groups) if each is not None)

    @property
    def group_distance(self) -> TrainDistance | None:
        """The distance by group, if groups are known."""
        return self if self.by == "group" else self.groups

    def describe(self) -> str:
        """Sentences on both distances."""
        sentences = []
        if self.by == "place":
            near = "no image"
            if self.near:
                near = f"{pluralize(self.near, 'image')} of {self.known:,} ({percent(self.near / self.known)})"
            elif self.median_km is not None:
                near += f"; half of them are {number(float(f'{self.median_km:.2g}'))} km away or farther"
            sentences.append(f"Within {NEAR_KM:g} km of a training image: {near}.")
        if (groups := self.group_distance) is not None:
            share = f"{percent(groups.near / groups.known)} of the images are" if groups.near else "No image is"
            sentences.append(f"{share} of a group with training images.")
        if not self.new:
            sentences.append("The metrics may be optimistic.")
        return " ".join(sentences)


def train_distance(dataset: ImageDataset, split: str) -> TrainDistance | None:
    """Distance of a split from the training images; None without known locations or groups."""
    return _distance(dataset, [(dataset.in_train, dataset.split == split)])


def fold_train_distance(dataset: ImageDataset, parts: Sequence[tuple[Ints, Ints]]) -> TrainDistance | None:
    """Distance of each image from the training images of its fold; ``parts`` are training and test rows of folds."""
    rows = np.arange(len(dataset))
    return _distance(dataset, [(np.isin(rows, train), np.isin(rows, test)) for train, test in parts])


def _distance(dataset: ImageDataset, pairs: Sequence[tuple[Bools, Bools]]) -> TrainDistance | None:
    """Over pairs of (N,) training and evaluated images."""
    by_group = _group_distance(dataset, pairs)
    places = Places.of(dataset)
    if places is None:
        return by_group
    located = [(train[places.rows], test[places.rows]) for train, test in pairs]
    found = [places.nearest_km(test, train)[test] for train, test in located if train.any() and test.any()]
    if not found:
        return by_group
    km = np.concatenate(found)
    return TrainDistance("place", len(km), int((km <= NEAR_KM).sum()), float(np.median(km)), by_group)


def _group_distance(dataset: ImageDataset, pairs: Sequence[tuple[Bools, Bools]]) -> TrainDistance | None:
    if not has_groups(dataset):
        return None
    names = dataset.table["group"].astype(object).fillna("").astype(str)
    known = (names != "").to_numpy(dtype=bool)
    # As numbers: numpy compares all text with all, an hour for a million images.
    groups = pd.factorize(names)[0]
    if not any((known & test).any() for _, test in pairs):
        return None
    near = sum(int(np.isin(groups[known & test], groups[known & train]).sum()) for train, test in pairs)
    return TrainDistance("group", sum(int(test.sum()) for _, test in pairs), near)


@dataclass(frozen=True)
class SplitComparison:
    """Metrics of the same images with random folds and with folds by location, by name."""

    model: str  # ``PROBE`` or "the trained models"
    at_random: Mapping[str, float]
    by_place: Mapping[str, float]
    difference: Mapping[str, Difference]  # random minus by location

    @property
    def is_optimistic(self) -> bool:
        """Whether random folds give significantly higher metrics."""
        return any(each.low > 0 for each in self._main)

    @property
    def alike(self) -> bool:
        """Whether the 95 % interval of the difference is below 0.02."""
        return all(each.high < _MATTERS for each in self._main)

    def sentence(self) -> str:
        """The comparison in one or two sentences."""
        values = "; ".join(
            f"{METRIC_NAMES[name]} {percent(self.at_random[name])} random, {percent(self.by_place[name])} by location, "
            f"difference {self.difference[name].points}"
            for name in ("macro_f1", "top1")
        )
        if self.is_optimistic:
            # The probe shows the bias, but the trained model is what the user quotes.
            quoted = "the metrics of the trained model" if self.model == PROBE else "the metrics"
            return (
                f"Random folds are optimistic: metrics of {self.model} are lower by location ({values}). For new "
                f"locations, quote {quoted} by location."
            )
        if any(each.high < 0 for each in self._main):
            return f"Random folds are not optimistic: metrics of {self.model} are higher by location ({values})."
        if not self.alike:
            return (
                f"Random folds and folds by location do not differ significantly for {self.model}, but a loss of "
                f"{100 * _MATTERS:g} points by location is not excluded: {values}."
            )
        return f"Random folds and folds by location differ only within chance for {self.model}: {values}."

    @property
    def _main(self) -> list[Difference]:
        return [self.difference[name] for name in ("top1", "macro_f1")]


@dataclass(frozen=True)
class NewPlaceEstimate:
    """What is known of new locations, groups or periods: a verdict in a few words, and its sentences."""

    verdict: str
    text: str
    known: bool  # whether the metrics hold for new locations
    command: str | None = None  # which would measure it, or measure it better
    about: About = "locations"

    @property
    def question(self) -> str:
        """The question of the report about it."""
        return _QUESTIONS[self.about]


def hold_out_estimate(distance: TrainDistance) -> NewPlaceEstimate:
    """The estimate for new locations or groups from a single held-out split."""
    about, command = _NOUNS[distance.by], f"effnetv2 crossval DATA --by {distance.by}"
    if distance.new:
        text = f"{distance.describe()} To evaluate all {distance.nouns}, not only these, cross-validate:"
        verdict = f"These are new {distance.nouns}."
        return NewPlaceEstimate(verdict, text, about == "locations", command, about)
    by = about[:-1] + (" with whole groups" if distance.groups is not None else "")
    text = f"{distance.describe()} Cross-validation by {by} measures it:"
    return NewPlaceEstimate("Not measured.", text, False, command, about)


def new_place_estimate(
    by: str, comparisons: Sequence[SplitComparison], distance: TrainDistance | None
) -> NewPlaceEstimate | None:
    """The estimate for new locations, groups or periods from folds; None if the data has none of them.

    ``by`` is the rule of the folds, ``data.folds.Folds.rule``. Of the comparisons the first counts.
    """
    compared = comparisons[0] if comparisons else None
    if by == "place" and distance is not None:
        return _spatial_estimate(distance, compared)
    if compared is not None:
        return _compared_estimate(compared)
    found = None if distance is None else _distance_estimate(by, distance)
    if by != "time":
        return found
    period = "Each model predicted the period that follows its training images."
    if found is None:
        return NewPlaceEstimate("That is what is measured here.", period, known=False, about="period")
    return replace(found, text=f"{period} {found.text}", command=None)


def _distance_estimate(by: str, distance: TrainDistance) -> NewPlaceEstimate:
    """For folds that ignore locations."""
    about, text, command = _NOUNS[distance.by], distance.describe(), None
    groups = distance.group_distance
    if distance.new:
        return NewPlaceEstimate(f"These are new {distance.nouns}.", text, about == "locations", about=about)
    if groups is not None and not groups.near:
        return NewPlaceEstimate("These are new groups.", text, known=False, about=about)
    if by == "class":  # the rule auto keeps groups whole if it can, and the notes on the folds give the reason
        text += f" Cross-validation by {about[:-1]} measures it:"
        command = f"effnetv2 crossval DATA --by {distance.by}"
    return NewPlaceEstimate("Not measured.", text, known=False, command=command, about=about)


def _spatial_estimate(distance: TrainDistance, compared: SplitComparison | None) -> NewPlaceEstimate:
    """For spatial folds: images on two sides of the border of a block are neighbors."""
    suffix = "" if compared is None else f" {compared.sentence()}"
    if distance.near < _MATTERS * distance.known:  # too few to change a metric by what matters
        exception = f", except for {pluralize(distance.near, 'image')}" if distance.near else ""
        verdict = f"That is what is measured here{exception}."
        return NewPlaceEstimate(verdict, f"{distance.describe()}{suffix}", known=True)
    most = 2 * distance.near > distance.known
    verdict = "Not measured." if most else "That is measured here in part."
    text = f"{distance.describe()} Larger blocks (`block_degrees`) have fewer borders.{suffix}"
    return NewPlaceEstimate(verdict, text, known=not most)


def _compared_estimate(compared: SplitComparison) -> NewPlaceEstimate:
    """For random folds compared with spatial ones. A trained model may lose more or less than the probe."""
    case = 0 if compared.is_optimistic else 1 if compared.alike else 2
    if compared.model != PROBE:
        verdict = ("Worse.", "No worse beyond chance.", "Too few images.")[case]
        return NewPlaceEstimate(verdict, compared.sentence(), known=case != 2)
    probe = ("is worse there", "is no worse there beyond chance", "is not conclusive")[case]
    return NewPlaceEstimate(
        f"Not measured for the model; the probe {probe}.",
        f"{compared.sentence()} A trained model may lose more or less. To measure it, train with both rules of folds:",
        known=False,
        command="effnetv2 crossval DATA --compare-splits",
    )


@dataclass(frozen=True, eq=False)
class Places:
    """Locations of images: (n, 2) latitude and longitude in radians, and (n,) the rows that have one."""

    radians: Floats
    rows: Ints

    @classmethod
    def of(cls, dataset: ImageDataset) -> Places | None:
        """From the columns latitude and longitude; None without both."""
        if not set(DEGREES) <= set(dataset.table.columns):
            return None
        degrees = dataset.table[list(DEGREES)].to_numpy(dtype=np.float64)
        known = ~np.isnan(degrees).any(axis=1)
        return cls(np.radians(degrees[known]), np.flatnonzero(known).astype(np.int64))

    @cached_property
    def _distinct(self) -> tuple[Floats, Ints]:
        """(m, 2) distinct locations, and (n,) the location of each image: a ball tree of equal points is slow."""
        points, point = np.unique(self.radians, axis=0, return_inverse=True)
        return points, point.reshape(-1).astype(np.int64)

    def nearest_km(self, queried: Bools, among: Bools) -> Floats:
        """(n,) kilometers from each ``queried`` image to the nearest other ``among`` image; infinite for the rest."""
        from sklearn.neighbors import BallTree  # takes a second to load

        distances = np.full(len(self.rows), np.inf)
        if among.any() and queried.any():
            points, point = self._distinct
            counts = np.bincount(point[among], minlength=len(points))
            targets, queries = np.flatnonzero(counts), np.unique(point[queried])
            tree = BallTree(points[targets], metric="haversine")
            nearest = np.full((len(points), 2), np.inf)
            neighbors = min(2, len(targets))
            nearest[queries, :neighbors], _ = tree.query(points[queries], k=neighbors)
            # An image that is alone at its location and among the targets finds itself first.
            alone = among & (counts[point] == 1)
            distances[queried] = nearest[point[queried], alone[queried].astype(np.int64)]
        return distances * EARTH_KM
