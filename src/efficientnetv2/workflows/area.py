"""Areas of a map's classes, corrected by a sample of known labels: `efficientnetv2.estimate_areas`.

Counting pixels repeats the errors of the map.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array

from efficientnetv2.data.csv_dialect import match_names, read_cells
from efficientnetv2.data.geotiff import open_raster, read_errors
from efficientnetv2.data.records import Ints
from efficientnetv2.geospatial.map_file import NODATA, count_classes, distortion_warning, to_class_values
from efficientnetv2.metrics.confidence_intervals import Z95
from efficientnetv2.utils.errors import InputError, did_you_mean, pluralize, shorten
from efficientnetv2.workflows.arguments import PathLike, api, path_text

_logger = logging.getLogger(__name__)

# Pairs of coordinate columns, and the largest absolute values of the second.
_COORDINATES = (("x", "y"), ("longitude", "latitude"))
_DEGREES = np.array([180.0, 90.0])


@dataclass(frozen=True)
class Estimate:
    """A fraction and the half-width of its 95 % interval."""

    value: float
    margin: float


@dataclass(frozen=True)
class ClassArea:
    """One class on the map and in truth."""

    mapped: float  # fraction of the map
    share: Estimate  # true fraction of the area
    users_accuracy: Estimate | None  # precision of the map; None if nothing is mapped as the class
    producers_accuracy: Estimate | None  # recall of the map; None if sampled is no true area of the class
    samples: int  # in the area mapped as the class


_ABSENT = ClassArea(0.0, Estimate(0.0, 0.0), None, None, 0)  # neither on the map nor in the sample


@dataclass(frozen=True)
class AdjustedAreas:
    """Areas by class name, and the fraction of the whole area that is mapped correctly."""

    classes: dict[str, ClassArea]
    accuracy: Estimate

    def flawless_warning(self) -> str | None:
        """Sentences on mapped classes without an error in the sample, whose intervals are too narrow."""
        flawless = {
            name: one.samples
            for name, one in self.classes.items()
            if one.users_accuracy is not None and one.mapped and one.users_accuracy.value == 1
        }
        if not flawless:
            return None
        # The rule of three: of n draws without an event, its share is below 3 / n with 95 % confidence.
        bounds = [f"{name} {min(1.0, 3 / samples):.1%}" for name, samples in flawless.items()]
        shown = ", ".join(bounds[:5]) + (", ..." if len(bounds) > 5 else "")
        return (
            f"The sample has no error where the map has {shorten(flawless)}, so its intervals there are too narrow. "
            f"With this few samples, the error may be up to: {shown}."
        )


def adjusted_areas(
    counts: npt.ArrayLike | coo_array, mapped: npt.ArrayLike, class_names: Sequence[str]
) -> AdjustedAreas:
    """Error-adjusted area of each class by the stratified estimator; the strata are the mapped classes.

    ``counts`` are (K, K) numbers of samples, rows mapped, columns true, random within each mapped class or over the
    whole map; ``mapped`` is the (K,) mapped area in any unit. With fewer than about five errors in a stratum the
    interval is too short.

    Source: Olofsson et al., Good practices for estimating area and assessing accuracy of land change, Remote Sensing
    of Environment 148 (2014), equations 1 to 11.
    """
    cells, area = coo_array(counts), np.asarray(mapped, dtype=np.float64)
    # Only the classes of the map or the sample: a map shows a few of thousands.
    present = np.unique(np.concatenate([np.flatnonzero(area), cells.row, cells.col]))
    n, area = np.zeros((len(present), len(present))), area[present]
    np.add.at(n, (np.searchsorted(present, cells.row), np.searchsorted(present, cells.col)), cells.data)
    total = n.sum(axis=1)
    if few := [class_names[k] for k in present[(area > 0) & (total < 2)]]:
        raise InputError(f"fewer than two samples are in the area mapped as {shorten(few)}. Draw 50 or more per class.")
    weight, sampled = area / area.sum(), total > 0
    share = np.divide(n, total[:, None], out=np.zeros_like(n), where=sampled[:, None])  # (K, K) n_ij / n_i
    # A stratum that is not on the map has weight 0.
    spread = share * (1 - share) / np.maximum(total - 1, 1)[:, None]
    joint, joint_variance = weight[:, None] * share, weight[:, None] ** 2 * spread
    true, right = joint.sum(axis=0), share.diagonal()
    producers = np.divide(joint.diagonal(), true, out=np.zeros_like(true), where=true > 0)
    exact = joint_variance.diagonal()
    above = (1 - producers) ** 2 * exact + producers**2 * (joint_variance.sum(axis=0) - exact)
    producers_variance = np.divide(above, true**2, out=np.zeros_like(true), where=true > 0)

    def estimate(value: float, variance: float) -> Estimate:
        return Estimate(float(value), float(Z95 * np.sqrt(variance)))

    found = {
        class_names[of]: ClassArea(
            mapped=float(weight[k]),
            share=estimate(true[k], joint_variance[:, k].sum()),
            users_accuracy=estimate(right[k], spread[k, k]) if sampled[k] else None,
            producers_accuracy=estimate(producers[k], producers_variance[k]) if true[k] > 0 else None,
            samples=int(total[k]),
        )
        for k, of in enumerate(present)
    }
    classes = {name: found.get(name, _ABSENT) for name in class_names}
    accuracy = estimate(joint.trace(), joint_variance.trace())
    return AdjustedAreas(classes, accuracy)


@dataclass(frozen=True, eq=False)
class MapAreas:
    """Areas of a map's classes, as `estimate_areas` found them.

    Example::

        import efficientnetv2 as ev2

        areas = ev2.estimate_areas("cover.tif", "places.csv")
        print(areas.classes)

    Attributes:
        found: Fractions of the map by class, their 95 % intervals, and the accuracy of the map.
        pixels: Pixels of the map with data.
        hectares: Area of the map. None if the size of its pixels is not known.
        left_out: Sampled places that are not on the map.
    """

    found: AdjustedAreas  # as shares of the map
    pixels: int  # with data
    hectares: float | None  # of the map; None if the size of its pixels is not known
    left_out: int  # sampled locations that are not on the map

    @property
    def classes(self) -> pd.DataFrame:
        """A row per class: mapped and true fraction of the map, accuracies, and the half-width of each interval."""
        rows = {}
        for name, one in self.found.classes.items():
            rows[name] = {"mapped": one.mapped, "samples": one.samples}
            for column in ("share", "users_accuracy", "producers_accuracy"):
                estimate: Estimate = getattr(one, column) or Estimate(np.nan, np.nan)
                rows[name] |= {column: estimate.value, f"{column}_margin": estimate.margin}
        return pd.DataFrame.from_dict(rows, orient="index")

    def to_json(self) -> dict[str, Any]:
        """Plain values; hectares and fractions if they are known."""
        classes = {name: asdict(each) for name, each in self.found.classes.items()}
        for each in classes.values():
            each["hectares"] = None
            if self.hectares is not None:
                each["hectares"] = {key: value * self.hectares for key, value in each["share"].items()}
        return {
            "classes": classes,
            "accuracy": asdict(self.found.accuracy),
            "hectares": self.hectares,
            "left_out": self.left_out,
        }


@api
def estimate_areas(map_file: PathLike, sample: PathLike, *, label_column: str = "label") -> MapAreas:
    """Estimate the area of each class from a map and a labeled sample. Needs the extra ``geo``.

    Example::

        import efficientnetv2 as ev2

        areas = ev2.estimate_areas("cover.tif", "places.csv")
        print(areas.classes["share"] * areas.hectares)

    Args:
        map_file: A map of `predict_map`.
        sample: CSV file with the true label and the place: x and y in the coordinates of the map, longitude and
            latitude, or, without these, the mapped class as ``map``. Or the folder of an evaluation. The sample is
            drawn at random within each class of the map, with 50 places or more (Olofsson et al. 2014, Remote Sensing
            of Environment 148).
        label_column: Column of the label.

    Raises:
        InputError: An argument or a file that the caller can fix.
    """
    map_path = Path(path_text("map_file", map_file))
    names, pixels, hectares = count_classes(map_path)
    if not pixels.sum():
        raise InputError(f"{map_path} has no data anywhere, so there is no area to estimate.")
    with open_raster(map_path) as dataset:
        if warning := distortion_warning(dataset):
            _logger.info(warning)
        model_sha256 = dataset.tags().get("model_sha256")
    file = Path(path_text("sample", sample))
    file = file / "report.json" if file.is_dir() else file
    if file.suffix == ".json":
        counts, left_out = _from_report(file, names, map_path, model_sha256), 0
        _logger.info(
            f"{file} is of images that were not drawn from this map. The areas are right if these images are a random "
            "sample of what the map calls each class."
        )
    else:
        counts, left_out = _from_table(file, label_column, names, map_path)
    found = adjusted_areas(counts, pixels if hectares is None else hectares, names)
    total = None if hectares is None else float(hectares.sum())
    return MapAreas(found, int(pixels.sum()), total, left_out)


def _from_report(file: Path, names: Sequence[str], map_file: Path, model_sha256: str | None) -> coo_array:
    """(K, K) counts by mapped and true class, from the confusion matrix of an evaluation that is not optimistic."""
    form = "effnetv2 evaluate MODEL OTHERS --output FOLDER"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        classes = list(report["class_names"])
        if "confusion_cells" in report:  # many classes: non-zero cells only
            true, mapped, counts = np.array(report["confusion_cells"], dtype=np.int64).reshape(-1, 3).T
        else:
            matrix = coo_array(np.array(report["confusion"], dtype=np.int64))
            true, mapped, counts = matrix.row, matrix.col, matrix.data
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} is not a report with a confusion matrix of single labels ({error!r}). Give one of {form}."
        ) from None
    if report.get("optimistic"):
        raise InputError(
            f"{file} is optimistic: some of its images trained or chose the model. Evaluate it on others ({form}), or "
            "give a CSV of locations with their labels."
        )
    hashes = report.get("sha256") or {}
    if model_sha256 and hashes and report.get("evaluated_on") != "out-of-fold" and model_sha256 not in hashes.values():
        raise InputError(f"{file} is of another model file than {map_file}. Evaluate the model of the map ({form}).")
    if sorted(classes) != sorted(names):
        raise InputError(
            f"{file} has the classes {shorten(classes)}, but {map_file} has {shorten(names)}. Give an evaluation of "
            "the model that made the map."
        )
    place = {name: index for index, name in enumerate(names)}
    ids = np.array([place[name] for name in classes])
    return coo_array((counts, (ids[mapped], ids[true])), shape=(len(names), len(names)))


def _from_table(file: Path, label_column: str, names: Sequence[str], map_file: Path) -> tuple[coo_array, int]:
    """(K, K) counts by mapped and true class, and the number of locations that are not on the map."""
    try:
        table = read_cells(file)
    except (OSError, ValueError) as error:  # of pandas, and bytes that are not UTF-8
        raise InputError(f"{file} is not a CSV in UTF-8 ({error}). Give a table of locations with labels.") from error
    if label_column not in table:
        raise InputError(
            f"{file} has no column '{label_column}'{did_you_mean(label_column, table.columns)} Set `label_column` to "
            "the column of the true labels."
        )
    true, left_out = _class_ids(table[label_column], names, file), 0
    if "map" in table and not any(set(pair) <= set(table.columns) for pair in _COORDINATES):
        mapped = _class_ids(table["map"], names, file)
    else:
        values = _sample_map(map_file, len(names), table, file)
        on_map = values > 0
        if not on_map.any():
            raise InputError(
                f"none of the {len(table)} places of {file} is on {map_file} where it has data. Are the coordinates "
                "exchanged, or of another coordinate system?"
            )
        if left_out := int((~on_map).sum()):
            _logger.info(
                f"{pluralize(left_out, 'place')} of {len(table)} left out: not on the map, or without data there."
            )
        mapped, true = values[on_map] - 1, true[on_map]
    ones = np.ones(len(true), dtype=np.int64)
    return coo_array((ones, (mapped, true)), shape=(len(names), len(names))), left_out


def _class_ids(column: pd.Series[str], names: Sequence[str], file: Path) -> Ints:
    """(n,) class ids of a column, whose index is the row in the file."""
    ids = {name: place for place, name in enumerate(names)}
    values = match_names(column, names)
    for row, value in zip(column.index, values, strict=True):
        if value not in ids:
            cell = f"'{value}'" if value else "empty"
            raise InputError(
                f"{file}, row {row}: {column.name} is {cell}, not one of the map's classes {shorten(names, 10)}"
                f"{did_you_mean(str(value), names)}"
            )
    return np.array([ids[value] for value in values], dtype=np.int64)


def _sample_map(map_file: Path, num_classes: int, table: pd.DataFrame, file: Path) -> Ints:
    """(n,) values of the map at the places of a table; 0 outside, and where it has no data."""
    columns = next((pair for pair in _COORDINATES if set(pair) <= set(table.columns)), None)
    if columns is None:
        raise InputError(
            f"{file} has no columns of a place, only {shorten(table.columns)}. Give x and y in the map's coordinates, "
            "longitude and latitude, or the mapped class as map."
        )
    or_map = ". To use the column map instead, remove those of the place" if "map" in table else ""
    cells = table[list(columns)]
    places: npt.NDArray[np.float64] = cells.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    in_degrees = columns == _COORDINATES[1]
    limits = _DEGREES if in_degrees else np.array([np.inf, np.inf])
    for row, column in np.argwhere(~(np.isfinite(places) & (np.abs(places) <= limits))).tolist():
        cell = str(cells.iat[row, column])
        range_text = f" from {-limits[column]:g} to {limits[column]:g}" if in_degrees else ""
        raise InputError(
            f"{file}, row {table.index[row]}: {columns[column]} is {repr(cell) if cell else 'empty'}, not a number"
            f"{range_text}. Correct it (with a decimal point), or remove the row{or_map}."
        )
    with open_raster(map_file) as dataset:
        if dataset.crs is None and (dataset.gcps[0] or dataset.tags(ns="RPC")):
            raise InputError(
                f"{map_file} is located by ground control points or RPCs, so no place can be found on it. Project the "
                "scene first (gdalwarp -t_srs EPSG:32721, with the number of your zone) and map it again, or give the "
                "mapped class as map."
            )
        if in_degrees:
            if dataset.crs is None:
                raise InputError(
                    f"{map_file} has no coordinate system, so longitude and latitude can't be used. Give x and y."
                )
            places = _project(places, dataset.crs)
            if dataset.crs.is_geographic:  # the map may count from 0 to 360 degrees, or across the date line
                left = min(dataset.bounds.left, dataset.bounds.right)
                places[:, 0] = left + (places[:, 0] - left) % 360
        values = np.zeros(len(places), dtype=np.int64)
        finite = np.isfinite(places).all(axis=1)
        if finite.any():
            with read_errors(dataset):
                sampled = dataset.sample(places[finite].tolist(), indexes=1, masked=True)
                stored = np.concatenate([np.ma.filled(value, NODATA) for value in sampled])
            values[finite] = to_class_values(stored, num_classes, map_file)
        return values


def _project(places: npt.NDArray[np.float64], crs: Any) -> npt.NDArray[np.float64]:
    """(n, 2) longitudes and latitudes in a map's coordinates; infinite where its projection does not reach."""
    from rasterio._err import CPLE_BaseError  # exported nowhere else
    from rasterio.warp import transform

    def project(part: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.stack(transform("EPSG:4326", crs, part[:, 0].tolist(), part[:, 1].tolist()), axis=1)

    try:
        return project(places)
    except CPLE_BaseError:  # a single such place fails the whole call
        found = np.full(places.shape, np.inf)
        for row in range(len(places)):
            with suppress(CPLE_BaseError):
                found[row] = project(places[row : row + 1])[0]
        return found
