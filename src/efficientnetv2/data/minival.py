"""Minival: training pictures that are set aside to choose by, so that val chooses nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import groupings
from efficientnetv2.data.records import Ints
from efficientnetv2.data.splits import describe_split, split_by_groupings, validate_two_per_class
from efficientnetv2.utils.errors import InputError, count_of, some
from efficientnetv2.utils.rng import Key

# What "auto" sets aside: this share of the training images, at least and at most so many. Fewer than 100 choose by
# chance: 50 images of the demo kept a start whose top-1 on val was 12.5 points below that of the trained model. More
# than 1,000 cost training more than they tell. Ours.
_SHARE, _FEWEST, _MOST = 0.05, 100, 1_000
# "auto" takes at most this share of the images from training, and none of a class with fewer than 10. Ours.
_LARGEST_SHARE, _RARE = 1 / 8, 10


def with_minival(
    dataset: ImageDataset, *, size: int | float, contents: Ints | None = None
) -> tuple[ImageDataset, str]:
    """Set train pictures aside as minival, by which a run chooses the weights that it keeps; val chooses nothing.

    The rule: each class gives its share of them, to the picture (largest remainders first, at least one), under the
    rules of ``splits.with_holdout`` on what stays together. Which they are depends on the pictures' own paths alone,
    neither on a seed nor on an order: runs of other seeds choose by the same ones, and so does the same data in shards.

    Args:
        dataset: after ``splits.with_holdout``.
        size: a number of pictures (int), or a share of those in train (float, between 0 and 1).
        contents: as for ``splits.with_holdout``.

    Returns:
        The dataset with these pictures in minival, and a sentence. Pictures given as minival are taken instead.

    Raises:
        InputError: there are fewer than a class needs, more than train can spare, or a class has one picture; or
            pictures have several labels, so that those of a class cannot be counted out.
    """
    if dataset.separator is not None:
        raise InputError(
            f"minival is {size}, which counts out pictures of each class, but these have several labels each. Train "
            "without it (--set minival=null)."
        )
    if given := int((dataset.split == "minival").sum()):
        return dataset, f"The {given} pictures given as minival choose the weights to keep."
    rows = _train_by_path(dataset)
    return _set_aside(dataset, rows, round(size * len(rows)) if isinstance(size, float) else size, contents)


def with_auto_minival(
    dataset: ImageDataset, *, contents: Ints | None = None
) -> tuple[ImageDataset, str, bool]:
    """Set a twentieth of the train images aside as minival where there are enough of them.

    A class of fewer than 10 train images keeps them all in train, and so do the images that stay together with them.
    Of the other classes each gives at least one image. Of fewer than 800 images none is set aside.

    Args:
        dataset: after ``splits.with_holdout``.
        contents: as for ``splits.with_holdout``.

    Returns:
        The dataset, a sentence, and whether it has images to choose by. Images given as minival are taken instead.

    Example::

        dataset, note, chooses = with_auto_minival(dataset)
    """
    if dataset.separator is not None:
        return dataset, _none_chooses("the images have several labels each", fix=""), False
    if (dataset.split == "minival").any():
        return *with_minival(dataset, size=1), True
    rows = _train_by_path(dataset)
    part = dataset.select(rows)
    counts = np.bincount(part.labels, minlength=len(part.class_names))
    rare = counts[part.labels] < _RARE
    for level in groupings(part, None if contents is None else np.asarray(contents)[rows]):
        free = rows[~np.isin(level.clusters, level.clusters[rare])]
        classes = len(np.unique(dataset.labels[free]))
        size = max(min(max(round(_SHARE * len(free)), _FEWEST), _MOST), classes)
        if classes < 2 or size > _LARGEST_SHARE * len(free):
            continue
        try:
            parted, note = _set_aside(dataset, free, size, contents)
        except InputError:
            continue
        # Groups are dealt whole, so that they may come to far more, or far fewer, than asked for.
        if not _FEWEST / 2 <= (parted.split == "minival").sum() <= _LARGEST_SHARE * len(rows):
            continue
        few = np.unique(part.labels[rare])
        if len(few):
            named = some([part.class_names[label] for label in few])
            note += f" Classes with fewer than {_RARE} training images give none of them: {named}."
        return parted, note, True
    few_images = f"the {count_of(len(rows), 'training image')} are too few, or their groups too large"
    return dataset, _none_chooses(few_images, fix=" Set some aside with --set minival=0.1."), False


def _none_chooses(why: str, *, fix: str) -> str:
    return f"No images are set aside to choose the model or to fit a temperature: {why}.{fix}"


def _train_by_path(dataset: ImageDataset) -> Ints:
    """Rows of train in the order of the pictures' own paths."""
    train = np.flatnonzero(dataset.in_train)
    names = [dataset.paths[row].rpartition(".tar#")[2] for row in train]
    ordered: Ints = train[np.argsort(names, kind="stable")]
    return ordered


def _set_aside(
    dataset: ImageDataset, rows: Ints, size: int, contents: Ints | None
) -> tuple[ImageDataset, str]:
    """Give so many of these rows of train to minival, by class; and a sentence.

    Raises:
        InputError: see ``with_minival``.
    """
    part = dataset.select(rows)
    there = np.unique(part.labels)
    if len(there) < len(part.class_names):
        part = replace(part, class_names=tuple(part.class_names[label] for label in there))
    levels = groupings(part, None if contents is None else np.asarray(contents)[rows])
    without = "train without minival (--set minival=null)"
    validate_two_per_class(part, levels[-1].clusters, "choose by", without)
    quotas = _quotas(part, size)
    target = np.stack([np.bincount(part.labels) - quotas, quotas]).astype(np.float64)
    both = "both in train and in minival"
    level, parts = split_by_groupings(
        part, levels, target, Key.of(0).fold("minival"), both=both, instead=without
    )
    split = dataset.split.copy()
    split[rows[parts == 1]] = "minival"
    held, how = int((parts == 1).sum()), describe_split(levels, level, parts == 1)
    return dataset.with_split(split), (
        f"Minival: {held} of {int(dataset.in_train.sum())} training pictures, {how}, are not trained on but choose "
        "the weights to keep."
    )


def _quotas(part: ImageDataset, count: int) -> Ints:
    """(K,) how many of so many pictures each class gives: its share, but at least one and not all.

    Raises:
        InputError: there are not so many, or not enough for each class.
    """
    sizes, classes = np.bincount(part.labels), len(part.class_names)
    if not classes <= count <= len(part) - classes:
        raise InputError(
            f"{part.source}: minival would be {count} of {len(part)} training pictures, but of each of the {classes} "
            "classes at least one has to stand in minival and one to stay in train. Give a number from "
            f"{classes} to {len(part) - classes} or a share (--set minival=0.1), or none (--set minival=null)."
        )
    ideal = count * sizes / len(part)
    quotas = np.clip(np.floor(ideal).astype(np.int64), 1, sizes - 1)
    while rest := count - int(quotas.sum()):
        able = quotas < sizes - 1 if rest > 0 else quotas > 1
        step = 1 if rest > 0 else -1
        quotas[np.argmax(np.where(able, step * (ideal - quotas), -np.inf))] += step
    return quotas
