"""DATA as somebody types it, and how its pictures are read."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from efficientnetv2.data.bands import measure_bands
from efficientnetv2.data.csv_dialect import read_header
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.raster_checks import count_dtypes, dtype_group
from efficientnetv2.data.records import SPLITS, Layout
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.data.shards.reader import ShardDamage, find_damage
from efficientnetv2.data.tiff_tags import is_raster
from efficientnetv2.data.validate import refuse_damage
from efficientnetv2.preprocessing import RGB, Bands
from efficientnetv2.utils.errors import InputError, did_you_mean, pluralize

_logger = logging.getLogger(__name__)

# Damaged shards that get a line each. Ours.
_SHARDS_NAMED = 20
# The brightest level of pictures in which nobody sees anything. Ours.
_DARK = 64


@dataclass(frozen=True)
class DataConfig:
    """DATA and how to read it; the options of those names.

    Args:
        data: folder, table or name.
        path_column, label_column, group_column: of a table.
        labels: ``exact`` or ``casefold``.
        label_separator: of several labels of a picture; None where it has one.
        bands: of rasters, the channels of a picture: "4,3,2", "1,2,3,4,8" or "all"; None lets the first say it.
        nodata: Missing data of rasters: "-9999", several values with commas, or "none"; None finds an undeclared value.
        layout: Meaning of sub-folders: ``auto``, ``classes`` or ``splits``.
        min_images_per_class: Classes with fewer training images are left out.
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
        """DATA and how to read it, as one types it."""
        options = {f"--{one.name.replace('_', '-')}": one for one in fields(self) if one.name != "data"}
        said = {name: getattr(self, one.name) for name, one in options.items()}
        given = [(name, value) for name, value in said.items() if value != options[name].default]
        return [self.data, *(str(word) for pair in given for word in pair)]

    def read_any(self) -> ImageDataset:
        """The dataset of pictures with labels or without: what keeps it from training alone is not refused.

        Raises:
            InputError: what is wrong with the data.
        """
        # Cells of several labels can be taken apart only if there are any.
        several = self.label_separator is not None
        return self.read(require_labels=several, for_training=False, strict_labels=True)

    def read(
        self,
        *,
        require_labels: bool = True,
        for_training: bool = True,
        strict_labels: bool | None = None,
        use_splits: Sequence[str] = SPLITS,
    ) -> ImageDataset:
        """The dataset; see ``data.dataset.read``.

        Raises:
            InputError: what is wrong with the data.
        """
        if self.labels not in {"exact", "casefold"}:
            hint = did_you_mean(self.labels, ["exact", "casefold"])
            raise InputError(f"--labels is '{self.labels}', but is exact or casefold{hint}")
        if self.layout not in get_args(Layout):
            raise InputError(
                f"--layout: invalid value '{self.layout}' (choose from {', '.join(get_args(Layout))})"
                f"{did_you_mean(self.layout, get_args(Layout))}"
            )
        if self.nodata is not None:
            nodata_asked(self.nodata)
        if self.bands is not None:
            bands_asked(self.bands)  # wrong numbers are refused before an image is read
        if is_url(self.data):
            _logger.warning(f"Reading shards from {self.data}. This stops after 30 s without an answer.")
        folder = Path(os.path.expanduser(self.data))
        if (folder / "recipe.yaml").is_file() and (folder / "beginning.json").is_file():
            raise InputError(
                f"DATA {self.data} is the folder of a run, not images. The images of the run are listed in "
                f"{self.data.rstrip('/')}/manifest.csv"
            )
        if require_labels and self.label_column == "label" and _holds_predictions(folder):
            there = folder.with_name("manifest.csv")
            instead = f"the images of the run: {there}" if there.is_file() else "the table of the images"
            raise InputError(
                f"DATA {self.data} holds predictions: its column label is what a model predicted. Give {instead}"
            )
        return load_dataset(
            self.data,
            path_column=self.path_column,
            label_column=self.label_column,
            group_column=self.group_column,
            labels=cast(Literal["exact", "casefold"], self.labels),
            label_separator=self.label_separator,
            require_labels=require_labels,
            for_training=for_training,
            strict_labels=strict_labels,
            use_splits=use_splits,
            layout=cast(Layout, self.layout),
            min_images_per_class=self.min_images_per_class,
        )


def with_bands(dataset: ImageDataset, source: DataConfig, *, seed: int) -> ImageDataset:
    """The same pictures, their rasters to be read by a rule that the training ones have given.

    Args:
        dataset: its pictures are read as ordinary ones.
        source: which bands were asked for.
        seed: of which rasters are measured.

    Raises:
        InputError: see ``data.bands.rule_of``.
    """
    asked = None if source.bands is None else bands_asked(source.bands)
    if dataset.shards is not None:
        if asked is not None:
            raise InputError(
                f"--bands {source.bands}: {dataset.source} holds shards, whose pictures are read as ordinary ones of "
                "three channels. Give the rasters as files: a folder, or a table of them."
            )
        return dataset
    files = {
        learning: [dataset.file(int(row)) for row in np.flatnonzero(dataset.in_train == learning)]
        for learning in (True, False)
    }
    missing = None if source.nodata is None else nodata_asked(source.nodata)
    bands = measure_bands(files[True], asked, seed=seed, others=files[False], nodata=missing)
    if bands is None:
        if missing:
            raise InputError(
                f"--nodata {source.nodata}: the training images are ordinary 8-bit images, which lack no data. "
                "Leave it out."
            )
        return dataset
    for line in _told(bands, given=asked is not None):
        _logger.info(line)
    if missing is None and bands.nodata:
        values = " and ".join(f"{value:g}" for value in bands.nodata)
        _logger.info(
            f"Missing data: {values}, which no file declares, fills connected areas far from all other values. Pixels "
            "of this value are read as missing. Pass --nodata none if the value is a measurement."
        )
    if len(set(map(dtype_group, bands.kinds))) > 1:
        _logger.info(_told_kinds(bands, count_dtypes(filter(is_raster, files[True]), bands)))
    return replace(dataset, bands=bands)


def _told(bands: Bands, *, given: bool) -> list[str]:
    """How rasters are seen, a sentence each."""
    each = [f"{low:g} to {high:g}" for low, high in zip(bands.low, bands.high, strict=True)]
    ranges = ", ".join(each if len(set(each)) > 1 else each[:1])
    if len(set(bands.numbers)) == 1 and bands.channels == RGB:
        seen = f"band {bands.listed.partition(', ')[0]} as grey"
    elif bands.channels == RGB:
        seen = f"bands {bands.listed} as red, green and blue"
    else:
        seen = f"{pluralize(bands.channels, 'band')} ({bands.listed}), each a channel"
    chosen = "" if given else " (others by --bands)"
    lines = [f"Rasters: {seen}{chosen}; values {ranges} become 0 to 255. The model file keeps this."]
    if bands.channels > RGB:
        lines.append(
            f"Normalised by each band's mean and deviation over the training pictures. Shown to people: bands "
            f"{bands.shown.listed} as red, green and blue."
        )
    return lines


def _told_kinds(bands: Bands, counts: Mapping[str, int]) -> str:
    """That rasters whose numbers mean different things are seen by one rule, and what becomes of the darkest."""
    kinds = " and ".join(f"{count:,} of {kind}" for kind, count in sorted(counts.items()))
    told = f"Rasters of different types train together, {kinds}, and are seen by this one rule"
    if any(kind.endswith("int8") for kind in counts):
        brightest = max(
            (255 - low) * 255 / (high - low) for low, high in zip(bands.low, bands.high, strict=True)
        )
        level = round(min(max(brightest, 0), 255))
        told += f", which makes {level} of 255 of the largest value of 8 bits"
        told += ": those will look all but black" if level < _DARK else ""
    return f"{told}. Scale all of them alike, with GDAL by gdal_translate -ot TYPE -scale FROM TO LOW HIGH."


def _holds_predictions(file: Path) -> bool:
    """Whether a file is ``predictions.csv`` of labeled images, by its header."""
    if not file.is_file() or file.suffix.lower() != ".csv":
        return False
    try:
        header = read_header(file)[1]
    except (OSError, ValueError):
        return False
    return [name for name in header if name != "probability"][:3] == ["path", "label", "true_label"]


def nodata_asked(text: str) -> tuple[float, ...]:
    """The values of ``--nodata -9999,-32768``; none of "none".

    Raises:
        InputError: they are no finite numbers.
    """
    if text.strip().lower() == "none":
        return ()
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise InputError(
            f"--nodata: invalid value '{text}'. Give a number, as -9999, numbers with commas, or none."
        )
    return values


def bands_asked(text: str) -> tuple[int, ...] | Literal["all"]:
    """The numbers of ``--bands 4,3,2``, or "all".

    Raises:
        InputError: they are no whole numbers from 1.
    """
    if text.strip().lower() == "all":
        return "all"
    try:
        numbers = tuple(int(part) for part in text.split(","))
        if min(numbers) < 1:
            raise ValueError
    except ValueError:
        raise InputError(
            f"--bands is '{text}', but is numbers of bands, from 1, with commas between, as 4,3,2 or 1,2,3,4,8; or all."
        ) from None
    return numbers


def report_notes(dataset: ImageDataset, *, strict: bool) -> ShardDamage:
    """Say what was noted on the way to a dataset, and which of its shards are damaged; no picture is read.

    Returns:
        What is wrong with the shards: nothing where the pictures are files.

    Raises:
        InputError: a shard is damaged, with ``strict``; or is not the one its index was written for.
    """
    for note in dataset.notes:
        _logger.info(note)
    if dataset.shards is None:
        return ShardDamage({}, ())
    damage = find_damage(dataset.table, dataset.shards)
    refuse_damage(dataset, damage, strict)
    for note in damage.notes[:_SHARDS_NAMED]:
        _logger.info(note)
    if len(damage.notes) > _SHARDS_NAMED:
        _logger.info(f"And {len(damage.notes) - _SHARDS_NAMED:,} more damaged shards.")
    return damage
