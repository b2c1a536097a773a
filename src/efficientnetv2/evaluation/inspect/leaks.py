"""Pictures that know each other: of one place, of one moment, of one group.

A network that has learnt the one answers the other from memory; with one on either side of a split, the figure says
less than it seems to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.neighbors import BallTree

from efficientnetv2.base.errors import InputError, count_of, did_you_mean, some
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation.inspect.findings import Finding, Section, share

NEAR_KM = 5.0
# Mean radius of the Earth: IUGG, GRS 80.
EARTH_KM = 6371.0088
# Columns that are taken for the time unasked, in any case; the first that there is. Ours.
TIMES = ("year", "date", "datetime", "timestamp", "time")
# Times of day that are so close may be one burst of a camera. Ours.
_NEAR = pd.Timedelta(hours=1)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Places:
    """Where pictures were taken.

    Args:
        radians: (n, 2) latitude and longitude of those with a place.
        rows: (n,) which they are.
    """

    radians: Floats
    rows: Ints

    @classmethod
    def of(cls, manifest: Manifest) -> Places | None:
        """Those that the columns latitude and longitude give; None without both columns."""
        if not {"latitude", "longitude"} <= set(manifest.table.columns):
            return None
        degrees = manifest.table[["latitude", "longitude"]].to_numpy(dtype=np.float64)
        known = ~np.isnan(degrees).any(axis=1)
        return cls(np.radians(degrees[known]), np.flatnonzero(known).astype(np.int64))

    def nearest_km(self, asking: Bools, among: Bools) -> Floats:
        """(n,) kilometres to the nearest other place of ``among``, of those that ask; infinite for the rest.

        Args:
            asking: (n,) of which pictures.
            among: (n,) likewise.
        """
        distances = np.full(len(self.rows), np.inf)
        if among.any() and asking.any():
            tree = BallTree(self.radians[among], metric="haversine")
            found, _ = tree.query(self.radians[asking], k=min(2, int(among.sum())))
            # Who asks among his own kind finds himself first.
            own = among[asking]
            second = found[:, 1] if found.shape[1] == 2 else np.full(len(found), np.inf)
            distances[asking] = np.where(own, second, found[:, 0])
        return distances * EARTH_KM


def by_place(manifest: Manifest, *, near_km: float = NEAR_KM) -> Section:
    """Pictures with another close by, with the same label, and across splits.

    Args:
        manifest: of the pictures.
        near_km: what counts as close, on the sphere.
    """
    places = Places.of(manifest)
    if places is None or not len(places.rows):
        return _without_places(manifest)
    labels, split = manifest.labels[places.rows], _split_of(manifest)[places.rows]
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
    return Section(facts, [*findings, *_unplaced(manifest, places)])


def _crossing_places(across: dict[str, tuple[int, int]], near_km: float) -> list[Finding]:
    return [
        Finding(
            "place_across_splits",
            "doubtful",
            f"{share(close, of)} in {name} lie within {near_km:g} km of a training picture.",
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
            f"{share(near, placed)} have another within {near_km:g} km; of {alike:,} the nearest has the same label.",
            "A random split would put neighbours on both sides. effnetv2 train holds out spatial blocks instead, "
            "where every picture has its place.",
        )
    ]


def _without_places(manifest: Manifest) -> Section:
    half = [name for name in ("latitude", "longitude") if name in manifest.table]
    if len(half) == 1:
        other = "longitude" if half == ["latitude"] else "latitude"
        found = Finding(
            "half_a_place",
            "wrong",
            f"There is a column {half[0]} but no {other}: a place needs both.",
            f"Add the {other}, or remove the column {half[0]}; training refuses the one without the other.",
        )
        return Section({}, [found])
    return Section({})


def _unplaced(manifest: Manifest, places: Places) -> list[Finding]:
    lost = np.setdiff1d(np.arange(len(manifest)), places.rows)
    if not len(lost):
        return []
    return [
        Finding(
            "no_place",
            "wrong",
            f"{share(len(lost), len(manifest))} have no latitude or longitude; the others do.",
            "Fill them in, or remove both columns: training refuses a set that is half placed.",
            tuple((int(row),) for row in lost),
        )
    ]


def by_time(manifest: Manifest, *, column: str | None = None) -> Section:
    """Pictures of one moment, and splits that share their times.

    Args:
        manifest: of the pictures.
        column: that holds the time: numbers such as years, or dates. None takes the first of ``TIMES`` there is.

    Raises:
        InputError: there is no such column, or nothing in it is a time.
    """
    name = time_column(manifest, column)
    if name is None:
        return Section({})
    times = times_of(manifest, name)
    known = times.notna().to_numpy()
    if not known.any():
        if column is None:
            return Section({})
        raise InputError(
            f"--time-column {column}: nothing in it is a number, such as a year, or a date such as 2016-05-31. Name "
            "another column."
        )
    split = _split_of(manifest)
    findings = []
    shared = {}
    for part in sorted(set(split) - {"train"}):
        asking = (split == part) & known
        moments = set(times[(split == "train") & known])
        shared[part] = int(times[asking].isin(list(moments)).sum())
        if shared[part]:
            findings.append(
                Finding(
                    "time_across_splits",
                    "note",
                    f"{share(shared[part], int(asking.sum()))} in {part} share their {name} with training pictures.",
                    f"The figure on them says nothing of a later {name}. To ask for that, split by time.",
                )
            )
    burst = _in_bursts(times[known])
    if burst:
        findings.append(
            Finding(
                "time",
                "doubtful",
                f"{share(burst, len(manifest))} were taken within an hour of another, by column {name}.",
                "Those of one scene belong to one side of a split: name what they share with --group-column.",
            )
        )
    if not known.all():
        findings.append(_timeless(manifest, name, known))
    facts = {
        "column": name,
        "first": _said(times[known].min()),
        "last": _said(times[known].max()),
        "known": int(known.sum()),
        "shared_with_training": shared,
        "within_an_hour": burst,
    }
    return Section(facts, findings)


def time_column(manifest: Manifest, column: str | None) -> str | None:
    """The column of the time: as asked for, else the first that is called so; None if there is none.

    Raises:
        InputError: it was asked for and is not there.
    """
    columns = [str(name) for name in manifest.table.columns]
    if column is not None:
        if column not in columns:
            raise InputError(
                f"{manifest.source} has no column '{column}'{did_you_mean(column, columns)} Its columns are "
                f"{some(columns, 20)}. Name the one that holds the time with --time-column."
            )
        return column
    spelled = {name.strip().casefold(): name for name in reversed(columns)}
    return next((spelled[name] for name in TIMES if name in spelled), None)


def times_of(manifest: Manifest, column: str) -> pd.Series[Any]:
    """Numbers or dates, missing where a cell is neither."""
    given = manifest.table[column]
    numbers = pd.to_numeric(given, errors="coerce")
    if numbers.notna().any() or not given.notna().any():
        return numbers
    return pd.to_datetime(given, errors="coerce", format="ISO8601", utc=True)


def _in_bursts(times: pd.Series[Any]) -> int:
    """How many pictures have another within an hour; 0 where times of day are not known."""
    if not pd.api.types.is_datetime64_any_dtype(times) or (times == times.dt.normalize()).all():
        return 0
    gaps = (times.sort_values().diff() <= _NEAR).to_numpy()
    return int((gaps | np.append(gaps[1:], False)).sum())


def _timeless(manifest: Manifest, name: str, known: Bools) -> Finding:
    lost = np.flatnonzero(~known)
    return Finding(
        "no_time",
        "note",
        f"{share(len(lost), len(manifest))} have no {name}.",
        "To split by time, fill it in.",
        tuple((int(row),) for row in lost),
    )


def _said(moment: object) -> str:
    if isinstance(moment, pd.Timestamp):
        return moment.date().isoformat()
    return f"{moment:g}" if isinstance(moment, float) else str(moment)


def by_group(manifest: Manifest) -> Section:
    """Groups that splits part, and groups that tell the label.

    Args:
        manifest: its column ``group`` counts, if it has one.
    """
    if "group" not in manifest.table or not manifest.table["group"].notna().any():
        return Section({})
    table = pd.DataFrame(
        {"group": manifest.table["group"], "label": manifest.labels, "split": _split_of(manifest)}
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
                f"{share(len(lost), len(table))} have no group; each counts as one of its own.",
                "",
                tuple((int(row),) for row in lost),
            )
        )
    return Section(facts, findings)


_SHOWN = 100  # groups listed picture by picture


def _split_of(manifest: Manifest) -> npt.NDArray[np.object_]:
    """(N,) splits, where none was given ``train``, since nothing set the picture aside."""
    return np.where(manifest.in_train, "train", manifest.split)
