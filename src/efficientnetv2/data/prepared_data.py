"""Load a dataset, check its images, split it and find the bands of its rasters, with a log line on each."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np

from efficientnetv2.data.config import DataConfig, with_bands
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.data.file_probe import map_chunks
from efficientnetv2.data.image_checks import refuse_unreadable, validate_images
from efficientnetv2.data.image_io import UnreadableImageError, max_level
from efficientnetv2.data.image_metadata import median_shorter_side
from efficientnetv2.data.imagenet_check import Published, compare
from efficientnetv2.data.readers import eval_reader, source_reader
from efficientnetv2.data.records import Ints, is_copy, validate_copies
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.data.splits import (
    MINIVAL_USE,
    EvalSplit,
    evaluate_on_test,
    split_groups_warning,
    with_auto_minival,
    with_holdout,
    with_minival,
)
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError, escape_controls, pluralize, shorten
from efficientnetv2.utils.logs import progress

_logger = logging.getLogger(__name__)

# Images of the evaluated parts that are decoded before a run: half a minute of one core. Ours.
_MOST_DECODED = 10_000
_MOST_TRIED = 8  # images of which a machine must have one, as others may be damaged. Ours.


@dataclass(frozen=True, eq=False)
class SharedDataset:
    """Images that all runs of a cross-validation train on, by path, so that one cache on disk serves each of them.

    ``rows`` are (n,) rows of the run's images in ``images``, -1 for those that no run trains on.
    """

    images: ImageDataset
    run_images: ImageDataset
    rows: Ints

    @classmethod
    def of(
        cls, dataset: ImageDataset, train_rows: Sequence[Ints], run_images: ImageDataset, rows: Ints
    ) -> SharedDataset:
        """From all images, the rows that each fold trains on, and the images of a run with their (n,) rows."""
        trained = np.unique(np.concatenate(train_rows))
        names = np.array(dataset.paths, dtype=object)[trained]
        trained = trained[np.argsort(names, kind="stable")]
        places = np.full(len(dataset), -1, dtype=np.int64)
        places[trained] = np.arange(len(trained))
        return cls(dataset.select(trained), run_images, places[rows])


@dataclass(frozen=True)
class PreparedData:
    """Images ready for a run: ``dataset`` has every readable image with its split, ``skipped`` the others.

    ``holdout_drawn``: val was drawn here by the seed. ``has_selection_set``: minival selects the weights. ``contents``
    are (N,) ids, equal for identical files. ``label_conflicts`` counts pairs of identical images with other labels.
    """

    dataset: ImageDataset
    split_note: str
    skipped: tuple[tuple[str, str], ...]
    holdout_drawn: bool
    has_selection_set: bool
    contents: Ints
    eval_split: EvalSplit = "val"
    common: SharedDataset | None = None
    check_notes: tuple[str, ...] = ()
    label_conflicts: int = 0

    def __getstate__(self) -> dict[str, Any]:
        # Without the cached subsets: every process makes its own.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def train(self) -> ImageDataset:
        """The training images."""
        return self.dataset.subset("train")

    @cached_property
    def val(self) -> ImageDataset:
        """The images that are evaluated: val, or test (``eval_split``)."""
        return self.dataset.subset(self.eval_split)

    @cached_property
    def stored_size(self) -> float | None:
        """Median of the shorter sides of the stored training images, in pixels. None if it is not known."""
        return median_shorter_side(self.train)

    @cached_property
    def minival(self) -> ImageDataset | None:
        """The images that select the weights. None if nothing is selected."""
        return self.dataset.subset("minival") if self.has_selection_set else None

    def without_selection(self) -> Self:
        """The same with a minival that selects nothing, as it trained the initial weights."""
        note = self.split_note.replace(MINIVAL_USE, "They are not used, since they trained the weights.")
        return replace(self, has_selection_set=False, split_note=note)

    @property
    def trainable(self) -> ImageDataset:
        """Every image that some run trains on, with another seed or without minival."""
        parts = ("train", "minival", "val") if self.holdout_drawn else ("train", "minival")
        return self.dataset.select(np.flatnonzero(np.isin(self.dataset.split, parts)))


def prepare_data(
    source: DataConfig,
    *,
    val_fraction: float,
    seed: int,
    strict: bool,
    minival: int | float | Literal["auto"] | None = None,
    expected_dataset: Published | None = None,
    eval_split: EvalSplit = "val",
) -> PreparedData:
    """Load a dataset, check every file, skip unreadable files, and split it unless splits are given.

    ``val_fraction`` is the fraction of train that becomes val if none is given. ``minival`` is as in ``Recipe``.
    ``eval_split`` is the split to evaluate; test counts only if there are test images.
    Raises InputError where too much is unreadable, an image is in two splits, or classes are too small or missing.
    """
    dataset = source.read()
    validate_copies(dataset)
    others = () if expected_dataset is None else compare(dataset, expected_dataset, strict=strict)
    for note in (*dataset.notes, *others):
        _logger.info(note)
    _logger.debug(f"Checking {pluralize(len(dataset), 'image')}.")
    with progress("looking", len(dataset)) as counted:
        found = validate_images(dataset, strict=strict, progress=counted)
    for note in found.notes:
        _logger.info(note)
    evaluated: EvalSplit = "test" if eval_split == "test" and (dataset.split == "test").any() else "val"
    skipped = [(dataset.paths[row], reason) for row, reason in found.unreadable.items()]
    if skipped:
        dataset = _readable(dataset, found.readable, evaluated)
        _logger.info(
            f"Skipped {pluralize(len(skipped), 'unreadable image')}, the first: "
            f"{escape_controls(' '.join(skipped[0]))}."
        )
    holdout_drawn = evaluated == "val" and not (dataset.split == "val").any()
    contents = found.contents[found.readable]
    if evaluated == "test":
        dataset, note = evaluate_on_test(dataset)
        divided = split_groups_warning(dataset)
    else:
        divided = split_groups_warning(dataset)  # by the given splits
        dataset, note = with_holdout(dataset, fraction=val_fraction, seed=seed, contents=contents)
    if evaluated != eval_split:
        note = f"No images are given as test, which the recipe would evaluate. {note}"
    dataset, minival_note, has_selection_set = _with_minival(dataset, minival, contents)
    copies, copies_note = is_copy(dataset) & ~dataset.in_train, ""
    if copies.any():  # metrics are of originals only
        copies_note = f" Left out: {pluralize(int(copies.sum()), 'image')} made from those held out."
        dataset, contents = dataset.select(np.flatnonzero(~copies)), contents[~copies]
    dataset = with_bands(dataset, source, seed=seed)
    parts = ("minival", evaluated) if has_selection_set else (evaluated,)
    rows = np.flatnonzero(np.isin(dataset.split, parts))
    if bad := decode_evaluated(dataset, rows, _alone(dataset), strict=strict):
        skipped += [(dataset.paths[row], reason) for row, reason in bad.items()]
        kept = np.setdiff1d(np.arange(len(dataset)), list(bad))
        dataset, contents = _readable(dataset, kept, evaluated), contents[kept]
    return PreparedData(
        dataset,
        f"{note}{divided}{minival_note}{copies_note}",
        tuple(skipped),
        holdout_drawn,
        has_selection_set,
        contents,
        evaluated,
        check_notes=found.notes,
        label_conflicts=found.label_conflicts,
    )


def _with_minival(
    dataset: ImageDataset, minival: int | float | Literal["auto"] | None, contents: Ints
) -> tuple[ImageDataset, str, bool]:
    """The dataset with minival, a sentence starting with a space, and whether minival selects the weights."""
    given, has_several_labels = int((dataset.split == "minival").sum()), dataset.separator is not None
    if minival is None or (minival == "auto" and given and has_several_labels):
        fix = f"To select the model on them: `minival={given}`."
        if has_several_labels:
            fix = "Images with several labels cannot select the model. To train on them, give them the split train."
        return dataset, f" The {given} images given as minival are not used. {fix}" if given else "", False
    if minival == "auto":
        dataset, note, has_selection_set = with_auto_minival(dataset, contents=contents)
    else:
        (dataset, note), has_selection_set = with_minival(dataset, size=minival, contents=contents), True
    return dataset, f" {note}", has_selection_set


def _alone(dataset: ImageDataset) -> Ints:
    """Training images that no other image of their class can replace."""
    rows = np.flatnonzero(dataset.in_train & (dataset.labels >= 0))
    labels = dataset.labels[rows]
    alone: Ints = rows[np.bincount(labels)[labels] == 1]
    return alone


def decode_evaluated(
    dataset: ImageDataset, rows: Ints, further: Sequence[int] | Ints = (), *, strict: bool
) -> dict[int, str]:
    """Decode the images that are evaluated, so that damage is known before the first step and not after the last.

    Of very many a part is decoded, but all ``further`` ones; none from a remote store. Returns the reason of each
    damaged image, by its row. Raises InputError if more than 5 % of all images, or with ``strict`` any, cannot be
    decoded.
    """
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_DECODED)).astype(np.int64))]
    rows = np.union1d(rows, np.asarray(further, dtype=np.int64))
    if dataset.shards is not None and is_url(dataset.shards.base):
        rows = rows[:0]
    _logger.debug(f"Decoding {pluralize(len(rows), 'image')} to be evaluated.")
    return decode_all(dataset, rows, strict=strict)


def decode_all(dataset: ImageDataset, rows: Ints, *, strict: bool) -> dict[int, str]:
    """Decode images at their smallest scale, since ``validate_images`` decodes few JPEGs.

    Returns the reason of each damaged one, by its row. Raises InputError as ``decode_evaluated``.
    """
    reader = source_reader(dataset)

    def decode_chunk(chunk: Sequence[int]) -> list[str]:
        ahead, faults = reader.ahead(chunk), []
        for row in chunk:
            try:
                max_level(ahead.source(row))
                faults.append("")
            except UnreadableImageError as error:
                faults.append(error.reason)
        return faults

    with progress("decoding", len(rows)) as counted:
        faults = map_chunks(decode_chunk, rows.tolist(), counted)
        bad = {row: reason for row, reason in zip(rows.tolist(), faults, strict=True) if reason}
        refuse_unreadable(dataset, bad, strict)
    if bad:
        row, reason = next(iter(bad.items()))
        _logger.info(
            f"Skipped {pluralize(len(bad), 'image')} that cannot be decoded, the first: "
            f"{escape_controls(dataset.paths[row])} {reason}."
        )
    return bad


def require_images_here(images: ImageDataset, world: World) -> None:
    """Raise InputError on a machine that lacks the images, which the first process has checked on its own."""
    if world.local_rank or world.is_main_process or not len(images):
        return
    reader = eval_reader(images)
    for sample in np.unique(np.linspace(0, len(images) - 1, _MOST_TRIED).astype(np.int64)).tolist():
        try:
            load_eval_image(reader.source(sample), Preprocessing(image_size=8).seeing(images.bands))
            return
        except UnreadableImageError as error:
            unreadable = error
    raise InputError(
        f"{reader.name(sample)} cannot be read on {platform.node()} ({unreadable.reason}), where process {world.rank} "
        "runs. Put the images under the same path on every machine."
    ) from unreadable


def _readable(dataset: ImageDataset, rows: Ints, evaluated: EvalSplit) -> ImageDataset:
    """The readable images. Raises InputError if the evaluated split, or a class of train, has none left."""
    readable = dataset.select(rows)
    gone = np.setdiff1d(dataset.targets[dataset.in_train], np.append(readable.targets[readable.in_train], -1))
    lost = f"training images of class {shorten(dataset.class_names[label] for label in gone)}"
    if (dataset.split == evaluated).any() and not (readable.split == evaluated).any():
        lost = f"images given as {evaluated}"
    elif not len(gone):
        return readable
    raise InputError(f"{dataset.source}: none of the {lost} can be read. Repair them, or leave them out.")
