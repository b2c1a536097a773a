"""Minival: training images that select the model, so that val selects nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import groupings
from efficientnetv2.data.records import Ints
from efficientnetv2.data.splits import describe_split, split_by_groupings, validate_two_per_class
from efficientnetv2.utils.errors import InputError, pluralize, shorten
from efficientnetv2.utils.rng import Key

# Automatic minival: fraction of the training images, minimum and maximum. Fewer than 100 select by chance: 50
# images of the demo kept a start whose top-1 on val was 12.5 points below that of the trained model. More than 1,000
# cost training more than they tell. Ours.
_FRACTION, _MIN, _MAX = 0.05, 100, 1_000
# Maximum fraction of an automatic minival, which takes no image of classes with fewer than 10. Ours.
_MAX_FRACTION, _RARE = 1 / 8, 10


def with_minival(
    dataset: ImageDataset, *, size: int | float, contents: Ints | None = None
) -> tuple[ImageDataset, str]:
    """Hold out training images as minival, which selects the weights to keep, and describe it in a sentence.

    Each class gives its exact share (largest remainders first, at least one), with the groups of
    ``splits.with_holdout`` kept together. The images depend only on their own paths, not on a seed or an order: runs
    with other seeds, and the same data in shards, select by the same images. Images given as minival are used instead.

    ``size`` is a number of images (int), or a fraction of the training images (float). Raises InputError if it is too
    small or too large for the classes, a class has one image, or images have several labels.
    """
    if dataset.separator is not None:
        raise InputError(
            f"minival is {size}, which counts images of each class, but these have several labels each. Train "
            "without it (--set minival=null)."
        )
    if given := int((dataset.split == "minival").sum()):
        return dataset, f"The {given} images given as minival choose the weights to keep."
    rows = _train_by_path(dataset)
    return _hold_out(dataset, rows, round(size * len(rows)) if isinstance(size, float) else size, contents)


def with_auto_minival(
    dataset: ImageDataset, *, contents: Ints | None = None
) -> tuple[ImageDataset, str, bool]:
    """Hold out a twentieth of the training images as minival, if there are 800. Also returns whether there is one.

    Classes with fewer than 10 training images, and images that stay together with theirs, stay in train. Other classes
    give at least one image. Images given as minival are used instead.
    """
    none = "No images are set aside to choose the model or to fit a temperature"
    if dataset.separator is not None:
        return dataset, f"{none}: the images have several labels each.", False
    if (dataset.split == "minival").any():
        return *with_minival(dataset, size=1), True
    rows = _train_by_path(dataset)
    part = dataset.select(rows)
    counts = np.bincount(part.labels, minlength=len(part.class_names))
    rare = counts[part.labels] < _RARE
    for level in groupings(part, None if contents is None else np.asarray(contents)[rows]):
        free = rows[~np.isin(level.clusters, level.clusters[rare])]
        classes = len(np.unique(dataset.labels[free]))
        size = max(min(max(round(_FRACTION * len(free)), _MIN), _MAX), classes)
        if classes < 2 or size > _MAX_FRACTION * len(free):
            continue
        try:
            result, note = _hold_out(dataset, free, size, contents)
        except InputError:
            continue
        # Groups stay together, so that the size may be far from the wanted one.
        if not _MIN / 2 <= (result.split == "minival").sum() <= _MAX_FRACTION * len(rows):
            continue
        few = np.unique(part.labels[rare])
        if len(few):
            named = shorten([part.class_names[label] for label in few])
            note += f" Classes with fewer than {_RARE} training images give none of them: {named}."
        return result, note, True
    images = pluralize(len(rows), "training image")
    why = f"the {images} are too few, or their groups too large"
    return dataset, f"{none}: {why}. Set some aside with --set minival=0.1.", False


def _train_by_path(dataset: ImageDataset) -> Ints:
    """Training rows, sorted by the images' own paths."""
    train = np.flatnonzero(dataset.in_train)
    names = [dataset.paths[row].rpartition(".tar#")[2] for row in train]
    ordered: Ints = train[np.argsort(names, kind="stable")]
    return ordered


def _hold_out(
    dataset: ImageDataset, rows: Ints, size: int, contents: Ints | None
) -> tuple[ImageDataset, str]:
    """Move ``size`` of these training rows to minival, by class, and describe it. Raises as ``with_minival``."""
    part = dataset.select(rows)
    present = np.unique(part.labels)
    if len(present) < len(part.class_names):
        part = replace(part, class_names=tuple(part.class_names[label] for label in present))
    levels = groupings(part, None if contents is None else np.asarray(contents)[rows])
    try:
        validate_two_per_class(part, levels[-1].clusters, held_out=1)  # for val
        quotas = _quotas(part, size)
        target = np.stack([np.bincount(part.labels) - quotas, quotas]).astype(np.float64)
        level, parts = split_by_groupings(part, levels, target, Key.of(0).fold("minival"))
    except InputError as error:
        raise InputError(f"{error} Or train without minival (--set minival=null).") from error
    split = dataset.split.copy()
    split[rows[parts == 1]] = "minival"
    held, how = int((parts == 1).sum()), describe_split(levels, level, parts == 1)
    return dataset.with_split(split), (
        f"Minival: {held} of {int(dataset.in_train.sum())} training images, {how}, are not trained on but choose "
        "the weights to keep."
    )


def _quotas(part: ImageDataset, count: int) -> Ints:
    """(K,) images that each class gives: its share of ``count``, at least one and not all."""
    sizes, classes = np.bincount(part.labels), len(part.class_names)
    if not classes <= count <= len(part) - classes:
        raise InputError(
            f"{part.source}: minival would be {count} of {len(part)} training images, but of each of the {classes} "
            "classes at least one must be in minival and one in train. Give a number from "
            f"{classes} to {len(part) - classes} or a share (--set minival=0.1)."
        )
    ideal = count * sizes / len(part)
    quotas = np.clip(np.floor(ideal).astype(np.int64), 1, sizes - 1)
    while rest := count - int(quotas.sum()):
        possible = quotas < sizes - 1 if rest > 0 else quotas > 1
        step = 1 if rest > 0 else -1
        quotas[np.argmax(np.where(possible, step * (ideal - quotas), -np.inf))] += step
    return quotas
