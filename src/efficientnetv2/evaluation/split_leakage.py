"""Leakage between splits: images of one location, one group or one time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.augmented_copies import copy_groups
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import format_time, time_column, times_of
from efficientnetv2.data.records import Ints
from efficientnetv2.evaluation.data_issues import CheckSection, Finding, share_text, split_names
from efficientnetv2.utils.errors import InputError, count_of, some

NEAR_KM = 5.0
_DEGREES = ("latitude", "longitude")
# Mean radius of the Earth: IUGG, GRS 80.
EARTH_KM = 6371.0088

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Places:
    """Locations of images: (n, 2) latitude and longitude in radians, and (n,) the rows that have one."""

    radians: Floats
    rows: Ints

    @classmethod
    def of(cls, dataset: ImageDataset) -> Places | None:
        """From the columns latitude and longitude; None without both."""
        if not set(_DEGREES) <= set(dataset.table.columns):
            return None
        degrees = dataset.table[list(_DEGREES)].to_numpy(dtype=np.float64)
        known = ~np.isnan(degrees).any(axis=1)
        return cls(np.radians(degrees[known]), np.flatnonzero(known).astype(np.int64))

    @cached_property
    def _spots(self) -> tuple[Floats, Ints]:
        """(m, 2) distinct locations, and (n,) the location of each image: a ball tree of equal points is slow."""
        spots, spot = np.unique(self.radians, axis=0, return_inverse=True)
        return spots, spot.reshape(-1).astype(np.int64)

    def nearest_km(self, asking: Bools, among: Bools) -> Floats:
        """(n,) kilometers from each ``asking`` image to the nearest other ``among`` image; infinite for the rest."""
        from sklearn.neighbors import BallTree  # takes a second to load

        distances = np.full(len(self.rows), np.inf)
        if among.any() and asking.any():
            spots, spot = self._spots
            there = np.bincount(spot[among], minlength=len(spots))
            taken, asked = np.flatnonzero(there), np.unique(spot[asking])
            tree = BallTree(spots[taken], metric="haversine")
            nearest = np.full((len(spots), 2), np.inf)
            many = min(2, len(taken))
            nearest[asked, :many], _ = tree.query(spots[asked], k=many)
            # Who is alone where he is, and asks among his own kind, finds himself first.
            alone = among & (there[spot] == 1)
            distances[asking] = nearest[spot[asking], alone[asking].astype(np.int64)]
        return distances * EARTH_KM


def location_section(dataset: ImageDataset, *, near_km: float = NEAR_KM) -> CheckSection:
    """Images with another one nearby, with the same label, and in another split. ``near_km`` is on the sphere."""
    places = Places.of(dataset)
    if places is None or not len(places.rows):
        return _without_places(dataset)
    labels, split = dataset.labels[places.rows], split_names(dataset)[places.rows]
    everyone = np.ones(len(places.rows), dtype=bool)
    nearest = places.nearest_km(everyone, everyone)
    like = np.full(len(nearest), np.inf)
    for label in np.unique(labels[labels >= 0]):
        own = labels == label
        like[own] = places.nearest_km(own, own)[own]
    close = nearest <= near_km
    near, alike = int(close.sum()), int((close & (like <= nearest)).sum())
    across = {}
    for name in sorted(set(split) - {"train"}):
        asking = split == name
        beside = (places.nearest_km(asking, split == "train") <= near_km) & asking
        across[name] = (int(beside.sum()), int(asking.sum()))
    facts = {
        "near_km": near_km,
        "placed": len(places.rows),
        "near_another": near,
        "nearest_of_its_label": alike,
        "near_training_pictures": {name: close for name, (close, _) in across.items()},
        "median_km_to_nearest": float(np.median(nearest)) if len(nearest) > 1 else None,
    }
    findings = [
        *_crossing_places(across, near_km),
        *_close(near, alike, len(places.rows), near_km, given=bool(across)),
    ]
    return CheckSection(facts, [*findings, *_unplaced(dataset, places)])


def _crossing_places(across: dict[str, tuple[int, int]], near_km: float) -> list[Finding]:
    return [
        Finding(
            "place_across_splits",
            "doubtful",
            f"{share_text(close, of)} in {name} lie within {near_km:g} km of a training picture.",
            "The figure on them says little of a new place. Leave the split out, and effnetv2 train holds out "
            "spatial blocks.",
        )
        for name, (close, of) in across.items()
        if close
    ]


def _close(near: int, alike: int, placed: int, near_km: float, *, given: bool) -> list[Finding]:
    if not near:
        return []
    return [
        Finding(
            "place",
            "note" if given else "doubtful",
            f"{share_text(near, placed)} have another within {near_km:g} km; "
            f"the nearest of {alike:,} has the same label.",
            "A random split would put neighbours on both sides. effnetv2 train holds out spatial blocks instead, "
            "where every picture has its place.",
        )
    ]


def _without_places(dataset: ImageDataset) -> CheckSection:
    """What is wrong if no image has a location: nothing, unless training would reject it."""
    table = dataset.table
    have = [name for name in _DEGREES if name in table and table[name].notna().any()]
    if not have:
        return CheckSection({})
    if len(have) == 2:
        found = Finding(
            "no_place",
            "wrong",
            "No picture has both a latitude and a longitude: some have the one, some the other.",
            "Fill them in, or remove both columns: training refuses a set that is half placed.",
        )
        return CheckSection({}, [found])
    (name,), (other,) = have, set(_DEGREES) - set(have)
    found = Finding(
        "half_a_place",
        "wrong",
        f"There is a {name}, but "
        + (f"the column {other} is empty throughout" if other in table else f"no {other}")
        + ": a place needs both.",
        f"Add the {other}, or remove the column {name}; training refuses the one without the other.",
    )
    return CheckSection({}, [found])


def _unplaced(dataset: ImageDataset, places: Places) -> list[Finding]:
    lost = np.setdiff1d(np.arange(len(dataset)), places.rows)
    if not len(lost):
        return []
    return [
        Finding(
            "no_place",
            "wrong",
            f"{share_text(len(lost), len(dataset))} have no latitude or longitude; the others do.",
            "Fill them in, or remove both columns: training refuses a set that is half placed.",
            tuple((int(row),) for row in lost),
        )
    ]


_SHOWN = 100  # groups listed picture by picture


def group_members(dataset: ImageDataset) -> list[list[int]]:
    """Rows of each group in the column ``group``, if there is one."""
    if "group" not in dataset.table:
        return []
    return [np.asarray(rows).tolist() for rows in dataset.table.groupby("group").indices.values()]


def augmentation_families(dataset: ImageDataset) -> list[list[int]]:
    """Rows of each image with its augmented copies (``data.augmented_copies``), two or more each."""
    family = copy_groups(dataset)
    if family is None:
        return []
    rows = pd.Series(np.arange(len(dataset))).groupby(family).agg(list)
    return [together for together in rows if len(together) > 1]


def group_section(dataset: ImageDataset) -> CheckSection:
    """Groups that are split, and groups that determine the label."""
    if "group" not in dataset.table or not dataset.table["group"].notna().any():
        return CheckSection({})
    table = pd.DataFrame(
        {"group": dataset.table["group"], "label": dataset.labels, "split": split_names(dataset)}
    )
    known = table.dropna(subset="group")
    groups = known.groupby("group")
    parted = groups["split"].nunique()
    parted = parted[parted > 1]
    several = groups.size() > 1
    labelled = known[known["label"] >= 0]
    pure = labelled.groupby("group")["label"].nunique().reindex(several[several].index) == 1
    facts = {
        "groups": len(several),
        "of_one_picture": int((~several).sum()),
        "across_splits": [str(name) for name in parted.index],
        "of_one_label": int(pure.sum()),
    }
    findings = []
    if len(parted):
        rows = tuple(tuple(known.index[known["group"] == name].tolist()) for name in parted.index[:_SHOWN])
        findings.append(
            Finding(
                "group_across_splits",
                "wrong",
                f"{count_of(len(parted), 'group')} of {len(several):,} lie in two splits: {some(parted.index)}.",
                "Put each whole into one split: its pictures are not independent, so the figure is too good.",
                rows,
            )
        )
    if len(pure) > 1 and pure.all() and labelled["label"].nunique() > 1:
        findings.append(
            Finding(
                "group_tells_label",
                "note",
                f"Each of the {len(pure):,} groups of several pictures has one label only.",
                "Whether a network knows the class or recognises the group shows only on groups that it has not seen: "
                "keep them whole when pictures are held out.",
            )
        )
    if len(known) < len(table):
        lost = table.index[table["group"].isna()]
        findings.append(
            Finding(
                "no_group",
                "note",
                f"{share_text(len(lost), len(table))} have no group; each counts as one of its own.",
                "",
                tuple((int(row),) for row in lost),
            )
        )
    return CheckSection(facts, findings)


# Times of day that are so close may be one burst of a camera. Ours.
_NEAR = pd.Timedelta(hours=1)

Bools_times = npt.NDArray[np.bool_]


def check_time_column(dataset: ImageDataset, column: str | None) -> None:
    """Reject a column without times before the images are read.

    Raises:
        InputError: The column was requested and is missing, or nothing in it is a time.
    """
    name = time_column(dataset, column)
    if column is not None and name is not None and not times_of(dataset, name).notna().any():
        raise InputError(
            f"--time-column {column}: nothing in it is a number, such as a year, or a date such as 2016-05-31. Name "
            "another column."
        )


def time_section(dataset: ImageDataset, *, column: str | None = None) -> CheckSection:
    """Images of one time, and splits with common times. ``column`` None takes a likely column.

    Raises:
        InputError: As of ``check_time_column``.
    """
    check_time_column(dataset, column)
    name = time_column(dataset, column)
    if name is None:
        return CheckSection({})
    times = times_of(dataset, name)
    known = times.notna().to_numpy()
    if not known.any():
        return CheckSection({})
    split = split_names(dataset)
    timed = known & _of_day(times)
    of_day = bool(timed.any())
    heeded = timed if of_day else known
    findings = []
    shared = {}
    for part in sorted(set(split) - {"train"}):
        asking = (split == part) & heeded
        shared[part] = _shared(times[asking], times[(split == "train") & heeded], of_day=of_day)
        if shared[part]:
            findings.append(_across(part, name, share_text(shared[part], int(asking.sum())), of_day=of_day))
    burst = _in_bursts(times[timed]) if of_day else 0
    if burst:
        findings.append(
            Finding(
                "time",
                "doubtful",
                f"{share_text(burst, len(dataset))} were taken within an hour of another, by column {name}.",
                "Those of one scene belong to one side of a split: name what they share with --group-column.",
            )
        )
    if not known.all():
        findings.append(_timeless(dataset, name, known))
    facts = {
        "column": name,
        "first": format_time(times[known].min()),
        "last": format_time(times[known].max()),
        "known": int(known.sum()),
        "shared_with_training": shared,
        "within_an_hour": burst,
    }
    return CheckSection(facts, findings)


def _of_day(times: pd.Series[Any]) -> Bools_times:
    """(N,) whether the time of day is known: a date alone reads like midnight."""
    if not pd.api.types.is_datetime64_any_dtype(times):
        return np.zeros(len(times), dtype=bool)
    return np.asarray(times.notna() & (times != times.dt.normalize()), dtype=bool)


def _shared(asking: pd.Series[Any], training: pd.Series[Any], *, of_day: bool) -> int:
    """Number of images with the time of a training image, or within an hour of one if times of day are known."""
    if not of_day:
        return int(asking.isin(list(set(training))).sum())
    moments = np.sort(training.dt.tz_localize(None).to_numpy())
    asked = asking.dt.tz_localize(None).to_numpy()
    first = np.searchsorted(moments, asked - _NEAR.to_timedelta64(), side="left")
    last = np.searchsorted(moments, asked + _NEAR.to_timedelta64(), side="right")
    return int((last > first).sum())


def _in_bursts(times: pd.Series[Any]) -> int:
    """Number of images within an hour of another one."""
    gaps = (times.sort_values().diff() <= _NEAR).to_numpy()
    return int((gaps | np.append(gaps[1:], False)).sum())


def _across(part: str, name: str, pictures: str, *, of_day: bool) -> Finding:
    if of_day:
        return Finding(
            "time_across_splits",
            "doubtful",
            f"{pictures} in {part} were taken within an hour of a training picture, by column {name}.",
            "A burst in two splits is learnt and then asked for: put each whole into one, or split by time.",
        )
    return Finding(
        "time_across_splits",
        "note",
        f"{pictures} in {part} share their {name} with training pictures.",
        f"The figure on them says nothing of a later {name}. To ask for that, split by time.",
    )


def _timeless(dataset: ImageDataset, name: str, known: Bools_times) -> Finding:
    lost = np.flatnonzero(~known)
    return Finding(
        "no_time",
        "note",
        f"{share_text(len(lost), len(dataset))} have no {name}.",
        "To split by time, fill it in.",
        tuple((int(row),) for row in lost),
    )
