"""What ``area`` does: count the map, read the sample, correct the one by the other."""

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
from efficientnetv2.geospatial import map_file as mapfile
from efficientnetv2.geospatial.pixel_area import distortion_warning
from efficientnetv2.metrics.area import AdjustedAreas, adjusted_areas
from efficientnetv2.utils.errors import InputError, did_you_mean, pluralize, shorten

_logger = logging.getLogger(__name__)

Counts = npt.NDArray[np.int64]
_COORDINATES = (("x", "y"), ("longitude", "latitude"))


@dataclass(frozen=True, eq=False)
class MapAreas:
    """The areas of a map's classes.

    Args:
        found: as shares of the map.
        pixels: of the map.
        hectares: of the map; None where the size of its pixels is not known.
        left_out: places of the sample that are not on the map.
    """

    found: AdjustedAreas
    pixels: int
    hectares: float | None
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """As plain values; hectares beside shares where they are known."""
        return _plain(self.found, self.hectares) | {"left_out": self.left_out}


def estimate_areas(map_file: Path, sample: Path, *, label_column: str) -> MapAreas:
    """Estimate the area of each class of a map from a sample whose truth is known.

    Raises:
        InputError: anything a user can mend.
    """
    names, pixels, hectares = mapfile.count_classes(map_file)
    if not pixels.sum():
        raise InputError(f"{map_file} has no data anywhere, so there is no area to estimate.")
    with open_raster(map_file) as dataset:
        if fault := distortion_warning(dataset):
            _logger.info(fault)
    file = sample / "report.json" if sample.is_dir() else sample
    if file.suffix == ".json":
        counts, lost = _of_report(file, names, map_file), 0
        _logger.info(
            f"{file} tells of pictures that were not drawn from this map. The areas are right as far as these pictures "
            "are a random sample of what the map calls each class."
        )
    else:
        counts, lost = _of_table(file, label_column, names, map_file)
    mapped = pixels if hectares is None else hectares
    found = adjusted_areas(counts, mapped, names)
    total = None if hectares is None else float(hectares.sum())
    return MapAreas(found, int(pixels.sum()), total, lost)


def _of_report(file: Path, names: Sequence[str], map_file: Path) -> coo_array:
    """(K, K) of an evaluation, rows as answered, columns as it is.

    Raises:
        InputError: it is no such report, of other classes, or of pictures that trained or chose the model: on these it
            is wrong less often than on the map, and the areas would look far surer than they are.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        classes = list(report["class_names"])
        true, answered, counts = _confusion(report)
    except FileNotFoundError:
        raise InputError(
            f"{file} does not exist. Give an evaluation: effnetv2 evaluate MODEL DATA --out FOLDER"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} is no report with a confusion matrix of single labels ({error!r}). Give one of "
            "effnetv2 evaluate MODEL DATA --out FOLDER."
        ) from None
    if report.get("optimistic"):
        raise InputError(
            f"{file} says that it is optimistic: some of its pictures trained or chose the model, which is wrong on "
            "these less often than on the map, but areas are corrected by pictures that did neither. Evaluate it on "
            "such: effnetv2 evaluate MODEL OTHERS --out FOLDER. Or give a CSV of places whose truth is known."
        )
    if sorted(classes) != sorted(names):
        raise InputError(
            f"{file} is of the classes {shorten(classes)}, but {map_file} of {shorten(names)}. Give an evaluation "
            "of the model that made the map."
        )
    of_name = {name: place for place, name in enumerate(names)}
    place = np.array([of_name[name] for name in classes])
    return coo_array((counts, (place[answered], place[true])), shape=(len(names), len(names)))


def _confusion(report: dict[str, Any]) -> tuple[Counts, Counts, Counts]:
    """True classes, answered ones and how many; of many classes a report lists the cells that are not 0."""
    if "confusion_cells" in report:
        true, answered, counts = np.array(report["confusion_cells"], dtype=np.int64).reshape(-1, 3).T
        return true, answered, counts
    whole = coo_array(np.array(report["confusion"], dtype=np.int64))
    return whole.row, whole.col, whole.data


def _of_table(file: Path, label_column: str, names: Sequence[str], map_file: Path) -> tuple[coo_array, int]:
    """(K, K) of places whose truth is known, and how many were left out."""
    if not file.is_file():
        raise InputError(f"{file} does not exist. Give a CSV of places, or the folder of an evaluation.")
    try:
        table = read_cells(file)
    except ValueError as error:  # pandas' own errors, and bytes that are no UTF-8, are such
        raise InputError(
            f"{file} is no CSV in UTF-8 ({error}). Give a table of places with a label each."
        ) from error
    if label_column not in table:
        raise InputError(
            f"{file} has no column '{label_column}'{did_you_mean(label_column, table.columns)} Say by --label-column "
            "which one holds what is truly there."
        )
    true = _classes(table[label_column], names, file, label_column)
    if "map" in table:
        return _crossed(_classes(table["map"], names, file, "map"), true, len(names)), 0
    columns = next((pair for pair in _COORDINATES if set(pair) <= set(table.columns)), None)
    if columns is None:
        raise InputError(
            f"{file} says of no place where it is: it has the columns {shorten(table.columns)}. Give x and y in "
            "the map's coordinates, longitude and latitude, or the mapped class as map."
        )
    values = _sampled(
        map_file, len(names), _numbers(table, columns, file), in_degrees=columns[0] == "longitude"
    )
    on_map = values > 0
    if not on_map.any():
        raise InputError(
            f"None of the {len(table)} places of {file} lies on {map_file} where it has data. Are {columns[0]} and "
            f"{columns[1]} exchanged, or of another coordinate system?"
        )
    if lost := int((~on_map).sum()):
        _logger.info(
            f"{pluralize(lost, 'place')} of {len(table)} left out: not on the map, or without data there."
        )
    return _crossed(values[on_map] - 1, true[on_map], len(names)), lost


def _classes(column: pd.Series[str], names: Sequence[str], file: Path, called: str) -> Counts:
    """(n,) class ids of a column, indexed by row."""
    known = {name: place for place, name in enumerate(names)}
    column = pd.Series(match_names(column, names), index=column.index)
    for row, value in column.items():
        if value not in known:
            found = f"'{value}'" if value else "empty"
            raise InputError(
                f"{file}, row {row}: {called} is {found}, but is one of the map's classes {shorten(names, 10)}"
                f"{did_you_mean(str(value), names)}"
            )
    return np.array([known[value] for value in column], dtype=np.int64)


def _numbers(table: pd.DataFrame, columns: tuple[str, str], file: Path) -> npt.NDArray[np.float64]:
    """(n, 2) coordinates, all finite."""
    places = np.stack(
        [pd.to_numeric(table[name], errors="coerce").to_numpy(float) for name in columns], axis=1
    )
    wrong = np.argwhere(~np.isfinite(places))
    if len(wrong):
        row, column = (int(value) for value in wrong[0])
        name = columns[column]
        found = repr(str(table[name].iloc[row])) if str(table[name].iloc[row]) else "empty"
        raise InputError(
            f"{file}, row {table.index[row]}: {name} is {found}, not a number. Correct it (decimals stand behind a "
            "point), or leave the row out."
        )
    for column, most in enumerate((180, 90)) if columns[0] == "longitude" else ():
        if len(beyond := np.flatnonzero(np.abs(places[:, column]) > most)):
            row = int(beyond[0])
            raise InputError(
                f"{file}, row {table.index[row]}: {columns[column]} is {places[row, column]:g}, but lies in -{most} to "
                f"{most}."
            )
    return places


def _sampled(map_file: Path, classes: int, places: npt.NDArray[np.float64], *, in_degrees: bool) -> Counts:
    """(n,) values of the map at places; 0 beside it, and where it has no data."""
    with open_raster(map_file) as dataset:
        if in_degrees:
            if dataset.crs is None:
                raise InputError(
                    f"{map_file} has no coordinate system, so longitude and latitude lead nowhere. Give x and y."
                )
            places = _projected(places, dataset.crs)
        values = np.zeros(len(places), dtype=np.int64)
        there = np.isfinite(places).all(axis=1)
        if there.any():
            with read_errors(dataset):
                sampled = dataset.sample(places[there].tolist(), indexes=1, masked=True)
                stored = np.concatenate([np.ma.filled(value, mapfile.NODATA) for value in sampled])
            values[there] = mapfile.to_class_values(stored, classes, map_file)
        return values


def _projected(places: npt.NDArray[np.float64], crs: Any) -> npt.NDArray[np.float64]:
    """(n, 2) longitudes and latitudes in a map's coordinates; infinite where its projection does not reach."""
    from rasterio._err import CPLE_BaseError  # named nowhere else
    from rasterio.warp import transform

    def projected(part: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.stack(transform("EPSG:4326", crs, part[:, 0].tolist(), part[:, 1].tolist()), axis=1)

    try:
        return projected(places)
    except CPLE_BaseError:  # one such place fails the whole call
        found = np.full(places.shape, np.inf)
        for row in range(len(places)):
            with suppress(CPLE_BaseError):
                found[row] = projected(places[row : row + 1])[0]
        return found


def _crossed(mapped: Counts, true: Counts, classes: int) -> coo_array:
    return coo_array((np.ones(len(true), dtype=np.int64), (mapped, true)), shape=(classes, classes))


def _plain(found: AdjustedAreas, hectares: float | None) -> dict[str, Any]:
    """All of it as JSON values; hectares beside shares where they are known."""
    classes = {name: asdict(one) for name, one in found.classes.items()}
    for one in classes.values():
        share = one["share"]
        known = None if hectares is None else {key: value * hectares for key, value in share.items()}
        one["hectares"] = known
    return {"classes": classes, "accuracy": asdict(found.accuracy), "hectares": hectares}
