"""The options of a dataset, and how its rasters are read."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np

from efficientnetv2.data.bands import measure_bands
from efficientnetv2.data.csv_dialect import read_header
from efficientnetv2.data.dataset import ImageDataset, load_dataset, validate_choices
from efficientnetv2.data.raster_checks import dtype_group, is_raster
from efficientnetv2.data.records import SPLITS
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.data.shards.reader import ShardDamage, find_damage
from efficientnetv2.preprocessing import RGB, Bands
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.shell import option_args

_logger = logging.getLogger(__name__)

# Damaged shards that get a line each. Ours.
_MAX_SHARDS = 20


@dataclass(frozen=True)
class DataConfig:
    """Data and the options of the same names for reading it.

    ``bands`` become the channels of rasters: "4,3,2" or "all"; None takes those of the first raster. ``nodata`` are
    values of missing data: "-9999", several values with commas, or "none"; None finds an undeclared value.
    """

    data: str
    path_column: str = "path"
    label_column: str = "label"
    group_column: str | None = None
    labels: str = "exact"
    label_separator: str | None = None
    bands: str | None = None
    layout: str = "auto"
    min_images_per_class: int = 0
    nodata: str | None = None

    @property
    def words(self) -> list[str]:
        """Data and options as typed on the command line."""
        options = {field: getattr(self, field.name) for field in fields(self)[1:]}
        given = {field.name: value for field, value in options.items() if value != field.default}
        return [self.data, *option_args(**given)]

    def validate(self) -> None:
        """Refuse wrong values before anything is read or downloaded. Raises InputError."""
        validate_choices(self.labels, self.layout)
        if self.nodata is not None:
            parse_nodata(self.nodata)
        if self.bands is not None:
            parse_bands(self.bands)

    def read_any(self) -> ImageDataset:
        """Load images with or without labels; see ``read``. What keeps a dataset from training is not refused."""
        return self.read(require_labels=False, for_training=False, strict_labels=True)

    def read(
        self,
        *,
        require_labels: bool = True,
        for_training: bool = True,
        strict_labels: bool | None = None,
        use_splits: Sequence[str] = SPLITS,
    ) -> ImageDataset:
        """Load the dataset; see ``dataset.load_dataset``. Raises InputError."""
        self.validate()
        if is_url(self.data):
            _logger.warning(f"Reading shards from {self.data}.")
        folder = Path(os.path.expanduser(self.data))
        if os.path.isfile(folder / "recipe.yaml") and os.path.isfile(folder / "run.json"):
            raise InputError(f"{self.data} is a run, not images. Give {self.data.rstrip('/')}/dataset.csv")
        if require_labels and self.label_column == "label" and _holds_predictions(folder):
            listed = folder.parent / "dataset.csv"
            fix = f"the images of the run: {listed}" if listed.is_file() else "the table of the images"
            raise InputError(f"{self.data} holds the predictions of a model. Give {fix}")
        options = asdict(self)
        for name in ("data", "bands", "nodata"):
            del options[name]
        return load_dataset(
            self.data,
            **options,
            require_labels=require_labels,
            for_training=for_training,
            strict_labels=strict_labels,
            use_splits=use_splits,
        )


def with_bands(dataset: ImageDataset, source: DataConfig, *, seed: int) -> ImageDataset:
    """The dataset with the rule by which its rasters are read, measured on training images drawn by the seed.

    Raises InputError as ``bands.measure_bands``, and if bands or missing data are given for ordinary images.
    """
    selection = None if source.bands is None else parse_bands(source.bands)
    nodata = None if source.nodata is None else parse_nodata(source.nodata)
    if dataset.shards is not None:
        if selection is not None:
            raise InputError(
                f"`bands={source.bands}`: {dataset.source} holds shards, which have no bands. Give raster files."
            )
        if nodata:
            raise InputError(
                f"`nodata={source.nodata}`: {dataset.source} holds shards, whose images have 8 bits. Leave it out."
            )
        return dataset
    # A check may be of test images alone.
    in_train = dataset.in_train if dataset.in_train.any() else np.ones(len(dataset), dtype=bool)
    train, others = (
        [dataset.file(row) for row in np.flatnonzero(in_train == is_train).tolist()] for is_train in (True, False)
    )
    bands = measure_bands(train, selection, seed=seed, others=others, nodata=nodata)
    if bands is None:
        if nodata:
            fix = "Leave it out."
            if any(map(is_raster, train)):
                fix = "To read them as rasters, set `bands=1,2,3` (gray: 1,1,1). Or leave it out."
            raise InputError(f"`nodata={source.nodata}`: the training images are 8-bit images. {fix}")
        return dataset
    _logger.info(describe_bands(bands, given=selection is not None))
    if nodata is None and bands.nodata:
        values = " and ".join(f"{value:g}" for value in bands.nodata)
        _logger.info(
            f"Missing data: pixels of {values}, which no file declares, are read as missing. If they are measurements, "
            "use `nodata=none`."
        )
    if len(set(map(dtype_group, bands.kinds))) > 1:
        _logger.info(
            f"Rasters of {' and '.join(bands.kinds)} are read by one rule, which may make some of them dark. Scale all "
            "of them alike: gdal_translate -ot TYPE -scale FROM TO LOW HIGH."
        )
    return replace(dataset, bands=bands)


def describe_bands(bands: Bands, *, given: bool) -> str:
    """How rasters are read. ``given``: the user has selected the bands."""
    each = [f"{low:g} to {high:g}" for low, high in zip(bands.low, bands.high, strict=True)]
    ranges = ", ".join(each if len(set(each)) > 1 else each[:1])
    seen = f"bands {bands.listed} as red, green and blue"
    if bands.channels != RGB:
        seen = f"{pluralize(bands.channels, 'band')} ({bands.listed}), each a channel"
    elif len(set(bands.numbers)) == 1:
        seen = f"band {bands.listed.partition(', ')[0]} as gray"
    others = "" if given else " (others with `bands`)"
    shown = f" Plots show bands {bands.shown.listed} as red, green and blue." if bands.channels > RGB else ""
    return f"Rasters: {seen}{others}; values {ranges} become 0 to 255.{shown}"


def _holds_predictions(file: Path) -> bool:
    if file.suffix.lower() != ".csv" or not file.is_file():
        return False
    try:
        header = read_header(file)[1]
    except (OSError, ValueError):
        return False
    return [name for name in header if name != "probability"][:3] == ["path", "predicted_label", "true_label"]


def parse_nodata(text: str) -> tuple[float, ...]:
    """The values of "-9999,-32768", none of "none". Raises InputError."""
    if text.strip().lower() == "none":
        return ()
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise InputError(f"`nodata` is '{text}', but must be numbers, such as -9999,0, or none.")
    return values


def parse_bands(text: str) -> tuple[int, ...] | Literal["all"]:
    """The numbers of "4,3,2", or "all". Raises InputError."""
    if text.strip().lower() == "all":
        return "all"
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1:
        raise InputError(f"`bands` is '{text}', but must be numbers from 1, such as 4,3,2, or all.")
    return numbers


def report_notes(dataset: ImageDataset, *, strict: bool) -> ShardDamage:
    """Log the notes of a dataset and its damaged shards, and return the damage.

    Raises InputError if a shard was replaced, or with ``strict`` is damaged.
    """
    for note in dataset.notes:
        _logger.info(note)
    damage = find_damage(dataset, strict=strict)
    for note in damage.notes[:_MAX_SHARDS]:
        _logger.info(note)
    if len(damage.notes) > _MAX_SHARDS:
        _logger.info(f"And {len(damage.notes) - _MAX_SHARDS:,} more damaged shards.")
    return damage


def default_check_dir(data: str) -> Path:
    """Where a check writes its page unless a folder is given: ``inspection/NAME``."""
    path = Path(os.path.abspath(os.path.expanduser(data)))  # `.` and `..` have names too
    # A folder's name may have dots: photos.v1 and photos.v2 are two datasets.
    return Path("inspection") / ((path.name if os.path.isdir(path) else path.stem) or "images")
