"""Pictures of one place: what was learnt of one answers for its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.listing import Ints
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation.inspect.found import Finding, Section, share, splits_of

NEAR_KM = 5.0
_DEGREES = ("latitude", "longitude")
# Mean radius of the Earth: IUGG, GRS 80.
EARTH_KM = 6371.0088

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
        if not set(_DEGREES) <= set(manifest.table.columns):
            return None
        degrees = manifest.table[list(_DEGREES)].to_numpy(dtype=np.float64)
        known = ~np.isnan(degrees).any(axis=1)
        return cls(np.radians(degrees[known]), np.flatnonzero(known).astype(np.int64))

    @cached_property
    def _spots(self) -> tuple[Floats, Ints]:
        """(m, 2) different places, and (n,) at which of them each picture is: a tree of equal points has no branches.

        It would compare all pictures of a place with all of them.
        """
        spots, spot = np.unique(self.radians, axis=0, return_inverse=True)
        return spots, spot.reshape(-1).astype(np.int64)

    def nearest_km(self, asking: Bools, among: Bools) -> Floats:
        """(n,) kilometres to the nearest other place of ``among``, of those that ask; infinite for the rest.

        Args:
            asking: (n,) of which pictures.
            among: (n,) likewise.
        """
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


def by_place(manifest: Manifest, *, near_km: float = NEAR_KM) -> Section:
    """Pictures with another close by, with the same label, and across splits.

    Args:
        manifest: of the pictures.
        near_km: what counts as close, on the sphere.
    """
    places = Places.of(manifest)
    if places is None or not len(places.rows):
        return _without_places(manifest)
    labels, split = manifest.labels[places.rows], splits_of(manifest)[places.rows]
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
    """What is wrong where no picture has a place: nothing, unless training would refuse it."""
    table = manifest.table
    have = [name for name in _DEGREES if name in table and table[name].notna().any()]
    if not have:
        return Section({})
    if len(have) == 2:
        found = Finding(
            "no_place",
            "wrong",
            "No picture has both a latitude and a longitude: some have the one, some the other.",
            "Fill them in, or remove both columns: training refuses a set that is half placed.",
        )
        return Section({}, [found])
    (name,), (other,) = have, set(_DEGREES) - set(have)
    found = Finding(
        "half_a_place",
        "wrong",
        f"There is a {name}, but "
        + (f"the column {other} is empty throughout" if other in table else f"no {other}")
        + ": a place needs both.",
        f"Add the {other}, or remove the column {name}; training refuses the one without the other.",
    )
    return Section({}, [found])


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
