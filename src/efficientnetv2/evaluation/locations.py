"""Locations of images, and the distance to the nearest other one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints

#: Distance within which images count as neighbors. Ours.
NEAR_KM = 5.0
#: Columns of a location, in degrees.
DEGREES = ("latitude", "longitude")
# Mean radius of the Earth. Source: IUGG, GRS 80.
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

    def nearest_km(self, asking: Bools, among: Bools) -> Floats:
        """(n,) kilometers from each ``asking`` image to the nearest other ``among`` image; infinite for the rest."""
        from sklearn.neighbors import BallTree  # takes a second to load

        distances = np.full(len(self.rows), np.inf)
        if among.any() and asking.any():
            points, point = self._distinct
            counts = np.bincount(point[among], minlength=len(points))
            targets, queries = np.flatnonzero(counts), np.unique(point[asking])
            tree = BallTree(points[targets], metric="haversine")
            nearest = np.full((len(points), 2), np.inf)
            neighbors = min(2, len(targets))
            nearest[queries, :neighbors], _ = tree.query(points[queries], k=neighbors)
            # An image that is alone at its location and among the targets finds itself first.
            alone = among & (counts[point] == 1)
            distances[asking] = nearest[point[asking], alone[asking].astype(np.int64)]
        return distances * EARTH_KM
