"""What ``balance`` does: count, decide how many, copy or leave out, write the table."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.augmented_copies import AUGMENTED_FROM, is_copy
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.csv_dialect import write_table
from efficientnetv2.data.data_module import prepare_data
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.records import Ints
from efficientnetv2.data.sampler import ClassSampling, target_counts
from efficientnetv2.preprocessing import RGB
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.transforms.export import FOLDER, spread_copies, write_copies
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import InputError, did_you_mean, pluralize, shorten
from efficientnetv2.utils.logs import silenced
from efficientnetv2.utils.progress import progress
from efficientnetv2.utils.rng import Key
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.output_paths import refuse_inside_data

_logger = logging.getLogger(__name__)

TABLE = "pictures.csv"
# What else there is where no copies can be made.
_INSTEAD = (
    "Leave pictures out instead (--fewer), or let training draw rare classes more often: effnetv2 train DATA --set "
    "class_sampling=equal"
)


@dataclass(frozen=True)
class Balanced:
    """A table of pictures that has been written.

    Args:
        table: the file.
        copies: augmented pictures that were written.
        counts: training pictures of each class before and after.
    """

    table: Path
    copies: int
    counts: dict[str, tuple[int, int]]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        classes = {name: {"before": before, "after": after} for name, (before, after) in self.counts.items()}
        return {"table": str(self.table), "copies": self.copies, "train": classes}


def balance_and_write(
    source: DataConfig,
    out: Path,
    *,
    to: str,
    fewer: bool,
    recipe: str,
    settings: tuple[str, ...],
    seed: int,
    strict: bool,
) -> Balanced:
    """Write a table of pictures whose classes are drawn alike, and the augmented pictures that it takes.

    Raises:
        InputError: anything a user can mend.
    """
    if to not in get_args(ClassSampling):
        hint = did_you_mean(to, get_args(ClassSampling))
        raise InputError(f"--to is '{to}', but is one of {', '.join(get_args(ClassSampling))}{hint}")
    if source.label_separator is not None:
        raise InputError(
            f"balance counts pictures of one label each, but --label-separator {shell_join([source.label_separator])} "
            "says that these have several. Let training draw rare labels more often: "
            f"effnetv2 train {shell_join(source.words)} --set class_sampling=sqrt"
        )
    _check_out(out, fewer)
    if not fewer:  # a table holds no pictures
        refuse_inside_data(source.data, out, "OUT")
    words = TrainOverrides(recipe=recipe, weights="none", seed=seed, settings=settings)
    with silenced():
        decided, _ = requested_recipe(words, pick_device("cpu"))
    prepared = prepare_data(
        source,
        val_fraction=decided.val_fraction,
        seed=seed,
        strict=strict,
    )
    dataset = prepared.dataset
    _refuse_unfit(dataset, fewer)
    _logger.info(prepared.split_note)
    teach = np.flatnonzero(dataset.split == "train")
    before = np.bincount(dataset.labels[teach], minlength=len(dataset.class_names))
    wanted = target_counts(before, cast(ClassSampling, to), fewer=fewer, beta=decided.effective_beta)
    file = out if fewer else out / TABLE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"OUT {out}: {error.strerror or error}. Give another place.") from error
    called = dataset.relative_to(file)
    if fewer:
        table = called[_kept(dataset, teach, wanted, seed)].reset_index(drop=True)
    else:
        table = _more(dataset, called, teach, wanted, out, decided, seed)
    try:
        write_table(file, table)
    except OSError as error:
        raise InputError(f"OUT {out}: {error.strerror or error}. Give another place.") from error
    made = 0 if fewer else int((table[AUGMENTED_FROM] != "").sum())
    counts = {name: (int(b), int(a)) for name, b, a in zip(dataset.class_names, before, wanted, strict=True)}
    return Balanced(file, made, counts)


def _check_out(out: Path, fewer: bool) -> None:
    is_table = out.suffix.lower() == ".csv"
    if fewer and not is_table:
        raise InputError(f"OUT is {out}, but --fewer writes a table alone. Give a file that ends in .csv.")
    if not fewer and is_table:
        raise InputError(
            f"OUT is {out}, but copies need a folder. Give one; or leave pictures out instead (--fewer); or let "
            "training draw rare classes more often: effnetv2 train DATA --set class_sampling=equal"
        )
    if fewer and out.exists():
        raise InputError(f"OUT {out} exists. Give another file, or remove it.")
    there = [file.name for file in out.iterdir()] if out.is_dir() else []
    # What a stopped run has left is written again.
    if not fewer and (out.is_file() or [name for name in there if name != FOLDER]):
        raise InputError(f"OUT {out} is not an empty folder ({shorten(there, 3)}). Give another one.")


def _refuse_unfit(dataset: ImageDataset, fewer: bool) -> None:
    if is_copy(dataset).any():
        raise InputError(
            f"{dataset.source} holds augmented copies already (column {AUGMENTED_FROM}). Balance the set that "
            "it was made from."
        )
    if not fewer and dataset.channels != RGB:
        raise InputError(
            f"Copies are written as JPEG, which holds {RGB} channels, but these rasters have "
            f"{pluralize(dataset.channels, 'band')}. {_INSTEAD}"
        )
    if not fewer and dataset.shards is not None:
        raise InputError(
            f"Copies are written as files, but the pictures of {dataset.source} stand in shards, and a table lists "
            f"either. {_INSTEAD}"
        )


def _kept(dataset: ImageDataset, teach: Ints, wanted: Ints, seed: int) -> npt.NDArray[np.bool_]:
    """(N,) all but some training pictures of frequent classes."""
    kept = np.ones(len(dataset), dtype=bool)
    for label, number in enumerate(wanted):
        rows = teach[dataset.labels[teach] == label]
        kept[Key.of(seed).fold("fewer", label).generator().permutation(rows)[number:]] = False
    return kept


def _more(
    dataset: ImageDataset,
    called: pd.DataFrame,
    teach: Ints,
    wanted: Ints,
    out: Path,
    recipe: Recipe,
    seed: int,
) -> pd.DataFrame:
    """The table, as it is ``called``, and behind it copies of rare classes' pictures, which are written."""
    key = Key.of(seed)
    copies = np.zeros(len(dataset), dtype=np.int64)
    copies[teach] = spread_copies(dataset.labels[teach], wanted, key=key)
    with progress("augmenting", int(copies.sum())) as counted:
        try:
            made = write_copies(
                dataset,
                copies,
                out,
                setting=recipe.progressive.last,
                plan=recipe.augment,
                key=key.fold("augment"),
                progress=counted,
            )
        except UnreadableImageError as error:
            raise InputError(f"{error}. Repair it, or leave it out.") from error
    made[AUGMENTED_FROM] = made[AUGMENTED_FROM].map(dict(zip(dataset.paths, called["path"], strict=True)))
    return pd.concat([called.assign(**{AUGMENTED_FROM: ""}), made], ignore_index=True)
