"""From DATA to checked training and validation parts, with what was found said in sentences."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np

from efficientnetv2.data.augmented_copies import excluded_copies, validate_copy_splits
from efficientnetv2.data.config import DataConfig, with_bands
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.image_metadata import median_shorter_side
from efficientnetv2.data.imagenet import Published, compare
from efficientnetv2.data.minival import with_auto_minival, with_minival
from efficientnetv2.data.readers import source_reader
from efficientnetv2.data.records import Ints
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.data.splits import EvalSplit, evaluate_on_test, split_groups_warning, with_holdout
from efficientnetv2.data.validate import find_undecodable, validate_images
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError, escape_controls, pluralize, shorten
from efficientnetv2.utils.progress import progress

_logger = logging.getLogger(__name__)

# Images of the evaluated parts that are decoded before a run: half a minute of one core. Ours.
_MOST_DECODED = 10_000


@dataclass(frozen=True, eq=False)
class SharedDataset:
    """What all runs of a cross-validation train on: kept decoded on disk, it serves each of them.

    Args:
        pictures: those that any of the runs may train on, in the order of their paths.
        own: the pictures of the run at hand, as its own table names them.
        rows: (n,) where each of these stands among ``pictures``; -1 for one that no run trains on.
    """

    pictures: ImageDataset
    own: ImageDataset
    rows: Ints

    @classmethod
    def of(
        cls, everything: ImageDataset, learning: Sequence[Ints], own: ImageDataset, rows: Ints
    ) -> SharedDataset:
        """What runs train on, as one of them names it.

        Args:
            everything: all pictures of the cross-validation.
            learning: rows of it that each fold learns from.
            own: the pictures of a run.
            rows: (n,) of these, in ``everything``.
        """
        learnt = np.unique(np.concatenate(learning))
        names = np.array(everything.paths, dtype=object)[learnt]
        learnt = learnt[np.argsort(names, kind="stable")]
        places = np.full(len(everything), -1, dtype=np.int64)
        places[learnt] = np.arange(len(learnt))
        return cls(everything.select(learnt), own, places[rows])


@dataclass(frozen=True)
class DataModule:
    """Pictures ready for a run.

    Args:
        dataset: every readable picture, with its split.
        split_note: how it was made, in a sentence.
        skipped: path and reason of each unreadable picture.
        holdout_drawn: val was drawn here, and is another for another seed; else it was given, or there is none.
        chooses: minival chooses the weights that are kept; else it is left aside, if there is one.
        contents: (N,) ids, equal for identical files.
        answered: the split that figures are of.
        common: what the runs of a cross-validation train on, if this is for one of them.
        check_notes: Sentences of the check of the files.
        label_conflicts: Number of pairs of identical images with different labels.
    """

    dataset: ImageDataset
    split_note: str
    skipped: tuple[tuple[str, str], ...]
    holdout_drawn: bool
    chooses: bool
    contents: Ints
    answered: EvalSplit = "val"
    common: SharedDataset | None = None
    check_notes: tuple[str, ...] = ()
    label_conflicts: int = 0

    def __getstate__(self) -> dict[str, Any]:
        # Without its parts, which every process takes out of the whole for itself.
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def train(self) -> ImageDataset:
        """The training pictures."""
        return self.dataset.subset("train")

    @cached_property
    def val(self) -> ImageDataset:
        """The pictures that figures are of: those of val, or of test (``answered``)."""
        return self.dataset.subset(self.answered)

    @cached_property
    def stored_px(self) -> float | None:
        """Median of the shorter sides of the stored training images, in pixels. None if it is not known."""
        return median_shorter_side(self.train)

    @cached_property
    def minival(self) -> ImageDataset | None:
        """The pictures that choose the weights to keep; None if nothing is chosen."""
        return self.dataset.subset("minival") if self.chooses else None

    @property
    def trainable(self) -> ImageDataset:
        """Every picture that some run trains on, of another seed or without minival."""
        parts = ("train", "minival", "val") if self.holdout_drawn else ("train", "minival")
        return self.dataset.select(np.flatnonzero(np.isin(self.dataset.split, parts)))


def prepare_data(
    source: DataConfig,
    *,
    holdout: float,
    seed: int,
    strict: bool,
    minival: int | float | Literal["auto"] | None = None,
    made_for: Published | None = None,
    answered: EvalSplit = "val",
    detail_level: int = logging.INFO,
) -> DataModule:
    """Look at every file, leave out what cannot be read, split if no split was given.

    Args:
        source: of the pictures.
        holdout: share of train that becomes val where none is given.
        seed: of that choice.
        strict: an unreadable picture is an error.
        minival: as ``Recipe.minival``: the training pictures that choose the weights to keep; None lets none.
        made_for: the published set that the pictures should be; None if they need not be any.
        answered: what figures are to be of; test where there is any of it.
        detail_level: of the line on how many images were decoded.

    Raises:
        InputError: too much is unreadable, a picture stands in two splits, a class is too small, or classes of the
            published set are missing.
    """
    dataset = source.read()
    validate_copy_splits(dataset)
    others = () if made_for is None else compare(dataset, made_for, strict=strict)
    for note in (*dataset.notes, *others):
        _logger.info(note)
    _logger.debug(f"Check: {pluralize(len(dataset), 'image')} (unreadable files, duplicates)")
    with progress("looking", len(dataset)) as counted:
        found = validate_images(dataset, strict=strict, progress=counted)
    for note in found.notes:
        _logger.info(note)
    asked: EvalSplit = "test" if answered == "test" and (dataset.split == "test").any() else "val"
    skipped = tuple(
        (dataset.paths[row], reason) for row, reason in zip(found.unreadable, found.reasons, strict=True)
    )
    if skipped:
        dataset = _readable(dataset, found.readable, asked)
        _logger.info(
            f"Skipped {pluralize(len(skipped), 'unreadable picture')}, the first: "
            f"{escape_controls(' '.join(skipped[0]))}."
        )
    holdout_drawn = asked == "val" and not (dataset.split == "val").any()
    contents = found.contents[found.readable]
    dataset, note, chooses = _parted(
        dataset, asked, holdout=holdout, minival=minival, seed=seed, contents=contents
    )
    if asked != answered:
        note = f"No pictures are given as test, which the recipe would answer. {note}"
    copies, further = excluded_copies(dataset, ~dataset.in_train)
    if copies.any():
        dataset, contents = dataset.select(np.flatnonzero(~copies)), contents[~copies]
    dataset = with_bands(dataset, source, seed=seed)
    parts = ("minival", asked) if chooses else (asked,)
    evaluated = np.flatnonzero(np.isin(dataset.split, parts))
    if bad := decode_evaluated(dataset, evaluated, strict=strict, detail_level=detail_level):
        skipped += tuple((dataset.paths[row], reason) for row, reason in bad.items())
        kept = np.setdiff1d(np.arange(len(dataset)), list(bad))
        dataset, contents = _readable(dataset, kept, asked), contents[kept]
    note = f"{note}{further}"
    return DataModule(
        dataset,
        note,
        skipped,
        holdout_drawn,
        chooses,
        contents,
        asked,
        check_notes=found.notes,
        label_conflicts=found.label_conflicts,
    )


def decode_evaluated(
    dataset: ImageDataset,
    rows: Ints,
    *,
    strict: bool,
    detail_level: int = logging.INFO,
) -> dict[int, str]:
    """Decode the images that are evaluated, so that damage is known before the first step and not after the last.

    Of very many a part is decoded. Images on another machine are not fetched for this. Images that train are decoded in
    each epoch, and another image stands in for a damaged one.

    Args:
        dataset: of the images.
        rows: that are evaluated.
        strict: an image that cannot be decoded is an error.
        detail_level: of the line on how many images were decoded.

    Returns:
        Why an image cannot be decoded, by its row.

    Raises:
        InputError: more than 5 % of all images, or with ``strict`` any, cannot be decoded.
    """
    if dataset.shards is not None and is_url(dataset.shards.base):
        rows = rows[:0]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_DECODED)).astype(np.int64))]
    with progress("decoding", len(rows)) as counted:
        bad = find_undecodable(dataset, rows.tolist(), strict=strict, progress=counted)
    _logger.log(
        detail_level,
        f"Checked {pluralize(len(dataset), 'image')}: {len(rows):,} to be evaluated were decoded; of the other "
        f"{len(dataset) - len(rows):,} the header and the end were read.",
    )
    if bad:
        row, reason = next(iter(bad.items()))
        _logger.info(
            f"Skipped {pluralize(len(bad), 'image')} that cannot be decoded, the first: "
            f"{escape_controls(dataset.paths[row])} {reason}."
        )
    return bad


def _parted(
    dataset: ImageDataset,
    answered: EvalSplit,
    *,
    holdout: float,
    minival: int | float | Literal["auto"] | None,
    seed: int,
    contents: Ints,
) -> tuple[ImageDataset, str, bool]:
    """The pictures in the parts of a run, in sentences how they came there, and whether minival chooses."""
    if answered == "test":
        dataset, note = evaluate_on_test(dataset)
        apart = split_groups_warning(dataset)
    else:
        apart = split_groups_warning(
            dataset
        )  # by the splits as given: what is held out here says itself what it parts
        dataset, note = with_holdout(dataset, fraction=holdout, seed=seed, contents=contents)
    note += apart
    chooses = minival is not None
    if minival == "auto":
        dataset, further, chooses = with_auto_minival(dataset, contents=contents)
        note = f"{note} {further}"
    elif minival is not None:
        dataset, further = with_minival(dataset, size=minival, contents=contents)
        note = f"{note} {further}"
    elif unused := int((dataset.split == "minival").sum()):
        note += f" The {unused} pictures given as minival are left aside; to choose by them, --set minival={unused}."
    return dataset, note, chooses


def require_images_here(train: ImageDataset, world: World) -> None:
    """The pictures, which the first process has looked at, are there on the others' machines too.

    Args:
        train: to be trained on.
        world: the processes.

    Raises:
        InputError: they are not, on this one.
    """
    if world.local_rank or world.is_main_process:
        return
    pictures = source_reader(train)
    try:
        load_eval_image(pictures.source(0), Preprocessing(image_px=8).seeing(train.bands))
    except UnreadableImageError as error:
        raise InputError(
            f"{pictures.name(0)} can't be read on {platform.node()} ({error.reason}), where process {world.rank} runs. "
            "Put the pictures under the same path on every machine, or where all of them can read."
        ) from error


def _readable(dataset: ImageDataset, rows: Ints, answered: EvalSplit) -> ImageDataset:
    """The readable pictures, if they still are what was asked for.

    Raises:
        InputError: those given to be answered, or a class of train, have none left.
    """
    readable = dataset.select(rows)
    if (dataset.split == answered).any() and not (readable.split == answered).any():
        raise InputError(
            f"{dataset.source}: none of the pictures given as {answered} can be read. Repair them."
        )
    gone = np.setdiff1d(dataset.targets[dataset.in_train], np.append(readable.targets[readable.in_train], -1))
    if len(gone):
        names = shorten(dataset.class_names[int(one)] for one in np.unique(gone))
        raise InputError(
            f"{dataset.source}: none of the training images of class {names} can be read. Repair them, or leave the "
            "class out."
        )
    return readable
