"""Leakage between splits: images of one location, one group or one time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from efficientnetv2.checks.issues import CheckSection, Issue, Severity, issue, share_text, single_rows, split_names
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import format_time, time_column, times_of
from efficientnetv2.data.records import copy_groups
from efficientnetv2.data.sampler import class_members
from efficientnetv2.data.splits import image_labels
from efficientnetv2.evaluation.distribution_shift import DEGREES, NEAR_KM, Bools, Places
from efficientnetv2.utils.errors import InputError, pluralize, shorten

# Times of day this close may be one burst of a camera. Ours.
_NEAR = pd.Timedelta(hours=1)
# A time with an offset from UTC, as ISO 8601 writes it; group 1 is the time.
_OFFSET = r"(\d:\d\d.*?)(?:Z|[+-]\d\d:?(?:\d\d)?)$"


def location_section(dataset: ImageDataset, *, near_km: float = NEAR_KM) -> CheckSection:
    """Images with another one within ``near_km`` on the sphere, with the same label, and in another split."""
    places = Places.of(dataset)
    if places is None or not len(places.rows):
        return CheckSection({}, list(_incomplete_locations(dataset)))
    labels, split = dataset.labels[places.rows], split_names(dataset)[places.rows]
    everyone = np.ones(len(places.rows), dtype=bool)
    nearest = places.nearest_km(everyone, everyone)
    nearest_of_label = np.full(len(nearest), np.inf)
    labeled = np.flatnonzero(labels >= 0)
    for members in class_members(labels[labeled], len(dataset.class_names)):
        rows = labeled[members]
        of_label = Places(places.radians[rows], places.rows[rows])
        nearest_of_label[rows] = of_label.nearest_km(everyone[rows], everyone[rows])
    close = nearest <= near_km
    near, alike = int(close.sum()), int((close & (nearest_of_label <= nearest)).sum())
    leaking, issues = {}, []
    for name in sorted(set(split) - {"train"}):
        held_out = split == name
        leaking[name] = int(((places.nearest_km(held_out, split == "train") <= near_km) & held_out).sum())
        if leaking[name]:
            share = share_text(leaking[name], int(held_out.sum()))
            sentence = f"{share} in {name} are within {near_km:g} km of a training image."
            issues.append(issue("place_across_splits", sentence))
    if near:
        sentence = (
            f"{share_text(near, len(places.rows))} have another within {near_km:g} km. For {alike:,} of these the "
            "nearest has the same label."
        )
        issues.append(issue("place", sentence, severity="note" if leaking else "doubtful"))
    lost = np.setdiff1d(np.arange(len(dataset)), places.rows)
    if len(lost):
        sentence = f"{share_text(len(lost), len(dataset))} have no latitude or longitude; the others do."
        issues.append(issue("no_place", sentence, single_rows(lost)))
    facts = {
        "near_km": near_km,
        "placed": len(places.rows),
        "near_another": near,
        "nearest_of_its_label": alike,
        "near_training_images": leaking,
        "median_km_to_nearest": float(np.median(nearest)) if len(nearest) > 1 else None,
    }
    return CheckSection(facts, issues)


def _incomplete_locations(dataset: ImageDataset) -> Iterator[Issue]:
    """What is wrong if no image has a location: nothing, unless training would refuse it."""
    table = dataset.table
    filled = [name for name in DEGREES if name in table and table[name].notna().any()]
    if len(filled) == 2:
        yield issue("no_place", "No image has both a latitude and a longitude: each has one of them at most.")
    elif filled:
        (name,), (other,) = filled, set(DEGREES) - set(filled)
        advice = f"Add the {other}, or remove the column {name}: training refuses one without the other."
        yield issue("half_a_place", f"There is a {name}, but no {other}: a location needs both.", advice=advice)


def group_members(dataset: ImageDataset) -> list[list[int]]:
    """Rows of each group in the column ``group``, if there is one."""
    if "group" not in dataset.table:
        return []
    return [np.asarray(rows).tolist() for rows in dataset.table.groupby("group").indices.values()]


def augmentation_families(dataset: ImageDataset) -> list[list[int]]:
    """Rows of each image with its augmented copies (``data.records``), two or more each."""
    family = copy_groups(dataset)
    if family is None:
        return []
    rows = pd.Series(np.arange(len(dataset))).groupby(family).agg(list)
    return [members for members in rows if len(members) > 1]


def group_section(dataset: ImageDataset) -> CheckSection:
    """Groups that are split, and groups that determine the label."""
    if "group" not in dataset.table or not dataset.table["group"].notna().any():
        return CheckSection({})
    table = pd.DataFrame({"group": dataset.table["group"], "split": split_names(dataset)})
    known = table.dropna(subset="group")
    groups = known.groupby("group")
    num_splits = groups["split"].nunique()
    across = num_splits[num_splits > 1].index
    several = groups.size() > 1
    images, labels = image_labels(dataset)
    labeled = pd.DataFrame({"group": table["group"].to_numpy()[images], "label": labels}).dropna(subset="group")
    pure = labeled.groupby("group")["label"].nunique().reindex(several[several].index) == 1
    issues = []
    if len(across):
        count = f"{pluralize(len(across), 'group')} of {len(several):,}"
        members = [groups.groups[name].tolist() for name in across]
        issues.append(issue("group_across_splits", f"{count} are in two splits: {shorten(across)}.", members))
    if len(pure) > 1 and pure.all() and labeled["label"].nunique() > 1:
        sentence = f"Each of the {len(pure):,} groups of several images has one label only."
        issues.append(issue("group_tells_label", sentence))
    lost = table.index[table["group"].isna()]
    if len(lost):
        sentence = f"{share_text(len(lost), len(table))} have no group; each counts as a separate group."
        issues.append(issue("no_group", sentence, single_rows(lost)))
    facts = {
        "groups": len(several),
        "of_one_image": int((~several).sum()),
        "across_splits": [str(name) for name in across],
        "of_one_label": int(pure.sum()),
    }
    return CheckSection(facts, issues)


def check_time_column(dataset: ImageDataset, column: str | None) -> None:
    """Refuse a requested column without times, before the images are read."""
    name = time_column(dataset, column)
    if column is not None and name is not None and not times_of(dataset, name).notna().any():
        raise InputError(
            f"`time_column` {column}: no value is a number, such as a year, or a date such as 2016-05-31. Name another "
            "column."
        )


def time_section(dataset: ImageDataset, *, column: str | None = None) -> CheckSection:
    """Images of one time, and splits with common times. ``column`` None takes a likely column."""
    check_time_column(dataset, column)
    name = time_column(dataset, column)
    if name is None or not (given := dataset.table[name].dropna().astype(str)).size:
        return CheckSection({})
    if not (known := times_of(dataset, name).notna().to_numpy()).any():
        sentence = f"No value of {name} is a number or a date such as 2016-05-31. The first is '{given.iloc[0]}'."
        return CheckSection({}, [issue("no_time", sentence, advice="To check and split by time, change the values.")])
    times, split = times_of(dataset, name), split_names(dataset)
    timed = known & _has_time_of_day(dataset.table[name], times)
    dated = known & ~timed
    days = _local_times(dataset.table[name]).dt.normalize() if timed.any() else times
    issues, shared = [], dict.fromkeys(sorted(set(split) - {"train"}), 0)
    for part, by_hour in itertools.product(shared, (True, False) if timed.any() else (False,)):
        held_out = (split == part) & (timed if by_hour else dated)
        if by_hour:
            found = _num_shared(times[held_out], times[(split == "train") & timed], by_hour=True)
        else:  # with all training images of the day
            found = _num_shared(days[held_out], days[(split == "train") & known], by_hour=False)
        shared[part] += found
        if found:
            text = f"were taken within an hour of a training image, by column {name}"
            advice = "Put each burst into one split, or split by time: a burst in two splits leaks training images."
            if not by_hour:
                text = f"share their {name} with training images"
                advice = f"Their metrics do not hold for a later {name}. To measure that, split by time."
            sentence = f"{share_text(found, int(held_out.sum()))} in {part} {text}."
            severity: Severity = "doubtful" if by_hour else "note"
            issues.append(issue("time_across_splits", sentence, advice=advice, severity=severity))
    in_bursts = _num_in_bursts(times[timed]) if timed.any() else 0
    if in_bursts:
        images = share_text(in_bursts, len(dataset))
        issues.append(issue("time", f"{images} were taken within an hour of another, by column {name}."))
    lost = np.flatnonzero(~known)
    if len(lost):
        images = share_text(len(lost), len(dataset))
        issues.append(issue("no_time", f"{images} have no {name}.", single_rows(lost)))
    facts = {
        "column": name,
        "first": format_time(times[known].min()),
        "last": format_time(times[known].max()),
        "known": int(known.sum()),
        "shared_with_training": shared,
        "within_an_hour": in_bursts,
    }
    return CheckSection(facts, issues)


def _has_time_of_day(given: pd.Series[Any], times: pd.Series[Any]) -> Bools:
    """(N,) whether the time of day is known: a date alone reads like midnight, where the image was taken."""
    if not pd.api.types.is_datetime64_any_dtype(times):
        return np.zeros(len(times), dtype=bool)
    local = _local_times(given)
    return np.asarray(local.notna() & (local != local.dt.normalize()), dtype=bool)


def _local_times(given: pd.Series[Any]) -> pd.Series[Any]:
    """(N,) dates as on a clock where the image was taken."""
    if pd.api.types.is_datetime64_any_dtype(given):
        naive: pd.Series[Any] = given.dt.tz_localize(None)
        return naive
    texts = given.astype("string").str.replace(_OFFSET, r"\1", regex=True)
    return pd.to_datetime(texts, errors="coerce", format="ISO8601", utc=True)


def _num_shared(held_out: pd.Series[Any], training: pd.Series[Any], *, by_hour: bool) -> int:
    """Number of images with the time of a training image, or within an hour of one."""
    if not by_hour:
        return int(held_out.isin(training).sum())
    moments = np.sort(training.dt.tz_localize(None).to_numpy())
    queried = held_out.dt.tz_localize(None).to_numpy()
    first = np.searchsorted(moments, queried - _NEAR.to_timedelta64(), side="left")
    last = np.searchsorted(moments, queried + _NEAR.to_timedelta64(), side="right")
    return int((last > first).sum())


def _num_in_bursts(times: pd.Series[Any]) -> int:
    gaps = (times.sort_values().diff() <= _NEAR).to_numpy()
    return int((gaps | np.append(gaps[1:], False)).sum())
