"""A dataset as new files: packed into shards, or balanced: `efficientnetv2.pack` and `efficientnetv2.balance`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack, cast, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image

from efficientnetv2.data.config import DataConfig, report_notes
from efficientnetv2.data.csv_dialect import write_table
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.prepared_data import decode_all, prepare_data
from efficientnetv2.data.readers import source_reader
from efficientnetv2.data.records import AUGMENTED_FROM, Ints, is_copy
from efficientnetv2.data.sampler import ClassSampling, class_members, target_counts
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.data.shards.writer import PackOptions, PackResult, write_shards
from efficientnetv2.evaluation.predictions import SKIPPED
from efficientnetv2.preprocessing import RGB
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.transforms.pipeline import AugmentPlan, augment_images, cache_sized_slices
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import InputError, pluralize, shorten
from efficientnetv2.utils.io import entry_names
from efficientnetv2.utils.logs import progress, silenced
from efficientnetv2.utils.random_key import Key
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.arguments import (
    LabelArguments,
    PathLike,
    TableArguments,
    api,
    choice,
    is_inside_data,
    number,
    path_text,
    refuse_unknown,
    settings_of,
    source_of,
)

_logger = logging.getLogger(__name__)

TABLE = "dataset.csv"
_COPIES = "augmented"  # the folder of copies
_LOGGED = 5  # skipped images that get a line each. Ours.
_QUALITY = 95  # of the JPEG, its colors at full resolution: a copy of a copy should not look like one. Ours.
_INSTEAD = "Use `fewer=True`, or let training draw rare classes more often: `class_sampling=equal`."


@dataclass(frozen=True)
class BalancedTable:
    """A balanced dataset, as `balance` wrote it.

    Example::

        import efficientnetv2 as ev2

        balanced = ev2.balance("photos/", "balanced/")
        print(balanced.counts)

    Attributes:
        table: CSV file of all images, which `train` takes as data.
        copies: Number of augmented copies.
        counts: Training images of each class before and after.
    """

    table: Path
    copies: int
    counts: dict[str, tuple[int, int]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        classes = {name: {"before": before, "after": after} for name, (before, after) in self.counts.items()}
        return {"table": str(self.table), "copies": self.copies, "train": classes}


@api
def balance(
    data: PathLike,
    output: PathLike,
    *,
    to: ClassSampling = "equal",
    fewer: bool = False,
    recipe: PathLike = "finetune",
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    strict: bool = False,
    **table: Unpack[TableArguments],
) -> BalancedTable:
    """Write a balanced training set, with augmented copies or fewer images.

    Validation and test images stay as they are. Training does not need this: ``settings={"class_sampling": "equal"}``
    of `train` draws rare classes more often.

    Example::

        import efficientnetv2 as ev2

        balanced = ev2.balance("photos/", "balanced/", settings={"progressive.randaugment": 5})
        ev2.train(balanced.table, settings={"class_sampling": None})

    Args:
        data: Dataset with one label per image, see `train`.
        output: New or empty folder for the table and the copies; with ``fewer`` a .csv file.
        to: Class proportions: "equal", square roots of the counts ("sqrt"), or effective numbers ("effective").
        fewer: Leave out images of frequent classes instead of writing copies.
        recipe: Recipe of the augmentation: a name or a file.
        settings: Other fields of the recipe, such as {"progressive.randaugment": 5}. "augment.flip" is "d4" for
            square images only.
        seed: Random seed of the choices.
        strict: Stop at the first unreadable image instead of leaving it out.
        table: How the labels are read, see `train`.

    Raises:
        InputError: An argument or a file that the caller can fix.
    """
    refuse_unknown(balance, table, TableArguments)
    return write_balanced(
        source_of(data, table),
        Path(path_text("output", output)),
        to=to,
        fewer=fewer,
        recipe=path_text("recipe", recipe),
        settings=settings_of(settings or {}),
        seed=number("seed", seed, -math.inf, default=0),
        strict=strict,
    )


def write_balanced(
    source: DataConfig,
    out: Path,
    *,
    to: str,
    fewer: bool,
    recipe: str,
    settings: tuple[str, ...],
    seed: int,
    strict: bool,
) -> BalancedTable:
    """Write a table of images with balanced classes, and the augmented copies that it needs.

    With ``fewer``, images of frequent classes are left out instead. The recipe has the augmentation.
    """
    choice("to", to, get_args(ClassSampling))
    if source.label_separator is not None:
        raise InputError(
            f"balance needs one label per image, not `label_separator={source.label_separator}`. Let training draw "
            f"rare labels more often: effnetv2 train {shell_join(source.words)} --set class_sampling=sqrt"
        )
    without_effect = {
        "seed": "Give the seed as `seed`.",
        "minority_randaugment_scale": "All copies are of rare classes: set `progressive.randaugment`.",
    }
    for setting in settings:
        if fix := without_effect.get(setting.partition("=")[0].strip()):
            raise InputError(f"The hyperparameter {setting} has no effect in balance. {fix}")
    _check_out(out, fewer)
    if not fewer:  # a table has no images
        _refuse_inside(source, out)
    overrides = TrainOverrides(recipe=recipe, weights="none", seed=seed, settings=settings)
    with silenced():
        requested, _ = requested_recipe(overrides, pick_device("cpu"))
    last, augment = requested.progressive.last, requested.augment
    if not fewer and last.randaugment is None and not (augment.autoaugment or augment.color or last.cutout):
        _logger.warning(
            f"The recipe {recipe} only flips images (flip={augment.flip}): copies are equal to other images or mirror "
            "them. For other copies, set `progressive.randaugment=5`."
        )
    prepared = prepare_data(source, val_fraction=requested.val_fraction, seed=seed, strict=strict)
    dataset = prepared.dataset
    _check_dataset(dataset, fewer)
    _logger.info(prepared.split_note)
    train = np.flatnonzero(dataset.split == "train")
    if not fewer and (bad := decode_all(dataset, train, strict=strict)):  # each could be copied
        dataset = dataset.select(np.setdiff1d(np.arange(len(dataset)), list(bad)))
        train = np.flatnonzero(dataset.split == "train")
    before = np.bincount(dataset.labels[train], minlength=len(dataset.class_names))
    after = target_counts(before, cast(ClassSampling, to), fewer=fewer, beta=requested.effective_beta)
    file = out if fewer else out / TABLE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        table = dataset.relative_to(file)
        if fewer:
            table = _without_frequent(dataset, train, after, seed, table)
        else:
            table = _with_copies(dataset, train, after, out, requested, seed, table)
        write_table(file, table)
    except OSError as error:
        raise InputError(f"`output` {out}: {error.strerror or error}. Give another place.") from error
    copies = 0 if fewer else int((table[AUGMENTED_FROM] != "").sum())
    pairs = zip(before.tolist(), after.tolist(), strict=True)
    return BalancedTable(file, copies, dict(zip(dataset.class_names, pairs, strict=True)))


def _check_out(out: Path, fewer: bool) -> None:
    if fewer != (out.suffix.lower() == ".csv"):
        fix = "with `fewer=True` give a file that ends in .csv, else a folder"
        raise InputError(f"`output` {out} is {'not a table' if fewer else 'a table'}: {fix}.")
    names = entry_names(out)
    # The copies of a stopped command are written again.
    if (fewer and out.exists()) or out.is_file() or [name for name in names if name != _COPIES]:
        content = f" and is not empty ({shorten(names, 3)})" if names else ""
        raise InputError(f"`output` {out} exists{content}. Give another place.")


def _check_dataset(dataset: ImageDataset, fewer: bool) -> None:
    if is_copy(dataset).any():
        raise InputError(f"{dataset.source} has copies (column {AUGMENTED_FROM}). Balance the original dataset.")
    if not fewer and dataset.channels != RGB:
        bands = pluralize(dataset.channels, "band")
        raise InputError(f"Copies are JPEG files of {RGB} channels, but these rasters have {bands}. {_INSTEAD}")
    if not fewer and dataset.shards is not None:
        raise InputError(f"Copies are files, but {dataset.source} is in shards. {_INSTEAD}")


def _without_frequent(dataset: ImageDataset, train: Ints, counts: Ints, seed: int, table: pd.DataFrame) -> pd.DataFrame:
    kept = np.ones(len(dataset), dtype=bool)
    for label, places in enumerate(class_members(dataset.labels[train], len(counts))):
        rows = train[places]
        kept[Key.of(seed).fold("fewer", label).generator().permutation(rows)[counts[label] :]] = False
    return table[kept].reset_index(drop=True)


def _with_copies(
    dataset: ImageDataset, train: Ints, counts: Ints, out: Path, recipe: Recipe, seed: int, table: pd.DataFrame
) -> pd.DataFrame:
    key = Key.of(seed)
    copies = np.zeros(len(dataset), dtype=np.int64)
    copies[train] = spread_copies(dataset.labels[train], counts, key=key)
    setting, plan = recipe.progressive.last, recipe.augment
    with progress("augmenting", int(copies.sum())) as counted:
        try:
            made = write_copies(
                dataset, copies, out, setting=setting, plan=plan, key=key.fold("augment"), progress=counted
            )
        except UnreadableImageError as error:
            raise InputError(f"{error}. Repair it, or leave it out.") from error
    made[AUGMENTED_FROM] = made[AUGMENTED_FROM].map(dict(zip(dataset.paths, table["path"], strict=True)))
    return pd.concat([table.assign(**{AUGMENTED_FROM: ""}), made], ignore_index=True)


def spread_copies(labels: Ints, wanted: Ints, *, key: Key) -> Ints:
    """How many copies each of (N,) images gets, so that each class has ``wanted``; within a class one more at most."""
    copies = np.zeros(len(labels), dtype=np.int64)
    for label, (count, rows) in enumerate(zip(wanted, class_members(labels, len(wanted)), strict=True)):
        if len(rows):
            each, more = divmod(int(count) - len(rows), len(rows))
            copies[rows] = each
            copies[key.fold("copies", label).generator().permutation(rows)[:more]] += 1
    return copies


def augmented_copies_of(
    image: npt.NDArray[np.uint8], *, row: int, count: int, setting: StepSettings, plan: AugmentPlan, key: Key
) -> Iterator[npt.NDArray[np.uint8]]:
    """Copies of an image (H, W, 3), each augmented as in training, but neither cropped nor mixed.

    ``row`` and ``key`` decide what is drawn. All copies of a large photograph at once would not fit into memory.
    """
    ids = (np.arange(count, dtype=np.int64) << 32) | row  # as data.sampler.BatchRequest counts draws
    images = torch.from_numpy(image.transpose(2, 0, 1).copy()).expand(count, -1, -1, -1)  # a view
    for part in cache_sized_slices(images):
        changed = augment_images(images[part].contiguous(), setting, key, ids[part], plan)
        yield from changed.permute(0, 2, 3, 1).contiguous().numpy()


def write_copies(
    dataset: ImageDataset,
    copies: Ints,
    folder: Path,
    *,
    setting: StepSettings,
    plan: AugmentPlan,
    key: Key,
    progress: Callable[[int], object] = lambda written: None,
) -> pd.DataFrame:
    """Write (N,) ``copies`` of the images into ``folder/augmented``, at the strength of ``setting``.

    Returns a row for each copy as in the dataset, with the original's path in ``augmented_from``.
    """
    reader = source_reader(dataset)
    if copies.any():
        (folder / _COPIES).mkdir(parents=True, exist_ok=True)
    rows: list[int] = []
    paths: list[str] = []
    for row in np.flatnonzero(copies).tolist():
        image, count = np.asarray(load_image(reader.source(row))), int(copies[row])
        made = augmented_copies_of(image, row=row, count=count, setting=setting, plan=plan, key=key)
        for place, copy in enumerate(made, start=1):
            paths.append(f"{_COPIES}/{row:06d}_{place}.jpg")
            save = partial(Image.fromarray(copy).save, format="JPEG", quality=_QUALITY, subsampling=0)
            save(folder / paths[-1])  # a stopped command writes all copies again, and the table last
            rows.append(row)
            progress(len(rows))
    table = dataset.table.iloc[rows].reset_index(drop=True)
    table[AUGMENTED_FROM] = table["path"].astype(object)
    return table.assign(path=paths)


def _refuse_inside(source: DataConfig, out: Path) -> None:
    """Refuse images in DATA, which would be read with it, or make its folders ambiguous."""
    if is_inside_data(source.data, out):
        raise InputError(f"`output` {out} is in DATA {source.data}. Give a folder outside it.")


@api
def pack(
    data: PathLike,
    output: PathLike,
    *,
    shard_mb: float = 1000.0,
    shard_images: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    strict: bool = False,
    **table: Unpack[LabelArguments],
) -> PackResult:
    """Pack labeled images into WebDataset tars with an index.

    The folder is then a dataset, here or on a web server or object store. Without ``image_size``, a run on it equals
    the run on the files.

    Example::

        import efficientnetv2 as ev2

        packed = ev2.pack("images.csv", "shards/", image_size=384)
        print(len(packed.skipped))
        ev2.train("shards/")

    Args:
        data: Dataset, see `train`.
        output: New or empty folder for the shards.
        shard_mb: Largest shard, in millions of bytes.
        shard_images: Most images of a shard. None: as many as fit.
        image_size: Shorter side in pixels that larger images are shrunk to. None keeps the files.
        seed: Random seed of the order of the images.
        strict: Stop at the first unreadable image instead of leaving it out.
        table: How the labels are read, see `train`.

    Raises:
        InputError: An argument or a file that the caller can fix.
    """
    refuse_unknown(pack, table, LabelArguments)
    packing = PackOptions(
        round(number("shard_mb", shard_mb, 0.1, 1_000_000, whole=False) * 1_000_000),
        number("shard_images", shard_images, 1),
        number("image_size", image_size, 2),
        number("seed", seed, -math.inf, default=0),
        strict,
    )
    return pack_shards(source_of(data, table), Path(path_text("output", output)), packing)[1]


def pack_shards(source: DataConfig, out: Path, packing: PackOptions) -> tuple[ImageDataset, PackResult]:
    """Pack labeled images into shards in a new folder outside the dataset; returns the dataset and the result."""
    if is_url(str(out).replace(":/", "://", 1)):
        raise InputError(f"`output` {out}: shards are written to this machine. Give a folder, then upload it.")
    folder = out.resolve()
    if folder.exists() and (not folder.is_dir() or entry_names(folder)):
        problem = "not empty" if folder.is_dir() else "a file"
        raise InputError(f"`output` {out} is {problem}. Give a new or empty folder.")
    _refuse_inside(source, out)
    dataset = source.read(for_training=False)
    report_notes(dataset, strict=packing.strict)
    with progress("packing", len(dataset)) as update:
        packed = write_shards(dataset, folder, packing, progress=update, called=source.words)
    for path, reason in packed.skipped[:_LOGGED]:
        _logger.info(f"Left out {path}: {reason}.")
    if (more := len(packed.skipped) - _LOGGED) > 0:
        _logger.info(f"Left out {more:,} more, see {out / SKIPPED}.")
    return dataset, packed
