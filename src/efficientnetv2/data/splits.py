"""Random, stratified splits that keep similar images together.

Images of one group, one place or identical content are not independent. With one in train and another in val, metrics
would be too good. Such images form clusters, and a split assigns whole clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.augmented_copies import is_copy
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import (
    BLOCKS,
    Grouping,
    SplitBy,
    groupings,
    has_groups,
    select_groupings,
)
from efficientnetv2.data.records import SPLITS, Ints
from efficientnetv2.data.stratified_split import class_counts, keeps_every_class, stratified_group_split
from efficientnetv2.utils.errors import InputError, pluralize, shorten
from efficientnetv2.utils.rng import Floats, Key

# A part held out by blocks should have between 0.5 and 1.5 times the wanted size. Else smaller blocks are tried. Ours.
_SIZE_RANGE = (0.5, 1.5)

_OWN_VAL = "give a val split of your own"
_VALIDATE = "validate on"

#: Split that a run is evaluated on: val, held out of train or given, or the given test.
EvalSplit = Literal["val", "test"]


def with_holdout(
    dataset: ImageDataset,
    *,
    fraction: float = 0.2,
    seed: int,
    contents: Ints | None = None,
    by: SplitBy = "auto",
    blocks: Sequence[float] = BLOCKS,
    instead: str = _OWN_VAL,
) -> tuple[ImageDataset, str]:
    """Hold out a val split from the training images, unless there is one. Test images stay.

    Images without a split are training images. Groups (column ``group``) and places (``latitude``, ``longitude``) stay
    together. If a class would vanish from train or val, spatial blocks shrink from 1° to 1/32°, then places and last
    groups are divided. Identical files always stay together.

    Args:
        dataset: Labeled images.
        fraction: Part of the training images to hold out, between 0 and 1. Or about their number, from 2.
        seed: Seed of the split.
        contents: (N,) ids, equal for identical files (``validate_images``). None if unknown.
        by: What stays together.
        blocks: Sides of spatial blocks in degrees, in the order of trying.
        instead: Alternative for the user in error messages.

    Returns:
        The dataset with every image in train, val or test, and a sentence on how it was split.

    Raises:
        InputError: A class has fewer than two distinct training images, the fraction is out of range, or groups or
            places are unknown or cannot stay together.
    """
    train = np.flatnonzero(dataset.in_train)
    split = dataset.split.copy()
    split[train] = "train"
    unmarked = int((dataset.split == "").sum())
    note = f" {unmarked} without a split count as train." if unmarked and unmarked < len(dataset) else ""
    if "val" in split:
        given = pluralize(int((split == "val").sum()), "image")
        return dataset.with_split(split), f"Validating on the {given} given as val.{note}"
    fraction = _as_fraction(fraction, len(train))
    part = dataset.select(train)
    available = groupings(part, None if contents is None else np.asarray(contents)[train], blocks)
    validate_two_per_class(part, available[-1].clusters, instead=instead)
    available = select_groupings(part, available, by)
    target = class_targets(part, np.array([1 - fraction, fraction]))
    key = Key.of(seed).fold("holdout")
    grouping, parts = split_by_groupings(part, available, target, key, instead=instead)
    split[train[parts == 1]] = "val"
    how = describe_split(available, grouping, parts == 1)
    held, total = int((parts == 1).sum()), len(train)
    return dataset.with_split(split), (
        f"Held out {held} of {total} images ({100 * held / total:.0f} %) as val, {how}, seed {seed}.{note}"
    )


def evaluate_on_test(dataset: ImageDataset) -> tuple[ImageDataset, str]:
    """Train on all images but test and minival, also on those given as val, and describe it in a sentence."""
    split = dataset.split.copy()
    given = split == "val"
    split[dataset.in_train | given] = "train"
    test, train = (int((split == name).sum()) for name in ("test", "train"))
    too = f", the {int(given.sum()):,} given as val among them" if given.any() else ""
    return dataset.with_split(split), (
        f"Evaluating on the {pluralize(test, 'image')} given as test, by which nothing is chosen; training on "
        f"{pluralize(train, 'image')}{too}."
    )


def _as_fraction(fraction: float, images: int) -> float:
    is_count = fraction >= 2 and fraction == int(fraction)
    if is_count and fraction >= images:
        raise InputError(
            f"{fraction:,.0f} images are to be held out, but there are {images:,} in train. Say fewer, or a fraction "
            "(--set holdout=0.2); or give a val split."
        )
    if not is_count and not 0 < fraction < 1:
        raise InputError(
            f"the fraction to hold out is {fraction}, but must be between 0 and 1, both excluded, or a number of "
            "images from 2."
        )
    return fraction / images if is_count else fraction


def class_targets(part: ImageDataset, fractions: Floats) -> Floats:
    """(P, K) images of each class for parts of these (P,) sizes."""
    target: Floats = fractions[:, None] * np.bincount(part.labels, minlength=len(part.class_names))
    return target


def split_by_groupings(
    part: ImageDataset,
    available: list[Grouping],
    target: Floats,
    key: Key,
    *,
    both: str = "both in train and in val",
    instead: str = _OWN_VAL,
) -> tuple[Grouping, Ints]:
    """Split by the first grouping with every class and about the wanted sizes, else the first with every class.

    Args:
        part: Images to split.
        available: Groupings, the strictest first.
        target: (P, K) wanted images of each class in each part.
        key: Random key.
        both: Where every class must be, for error messages.
        instead: Alternative for the user in error messages.

    Returns:
        The grouping, and the (N,) part of each image.

    Raises:
        InputError: Every grouping loses a class.
    """
    fallback: tuple[Grouping, Ints] | None = None
    images, classes = _image_labels(part)
    for grouping in available:
        parts = stratified_group_split(grouping.clusters, part.labels, target=target, key=key)
        if keeps_every_class(class_counts(parts[images], classes, *target.shape)):
            fallback = fallback or (grouping, parts)
            size = np.bincount(parts, minlength=len(target)) / target.sum(axis=1)
            if grouping.block is None or (size.min() >= _SIZE_RANGE[0] and size.max() <= _SIZE_RANGE[1]):
                # Without blocks, uneven sizes do not justify dividing blocks or groups.
                return (grouping, parts) if grouping.block is not None else fallback
    if fallback is None:
        raise InputError(_lost_class(part, available[-1], both, instead))
    return fallback


def _lost_class(part: ImageDataset, grouping: Grouping, both: str, instead: str) -> str:
    names = grouping.names
    if not names:
        why = "identical files with different labels leave" if part.separator is None else "there was found"
        return f"{part.source}: {why} no way to have every class {both}. Correct their labels, or {instead}."
    images, classes = _image_labels(part)
    clusters = pd.Series(grouping.clusters[images]).groupby(classes).nunique()
    single = [part.class_names[label] for label in clusters.index[clusters == 1]]
    whole, one = " and ".join(names), " and ".join(name.removesuffix("s") for name in names)
    where = f"lie in one {one}" if len(names) == 1 else "are connected, by place or by group"
    why = f" All images of class {shorten(single)} {where}." if single else ""
    return (
        f"{part.source}: with {whole} kept whole, a class would vanish from a part.{why} Add images of it from "
        f"another {one}, or leave the class out; or do not keep {whole} whole (--by class)."
    )


def _image_labels(part: ImageDataset) -> tuple[Ints, Ints]:
    """Image row and class id of every label."""
    targets = part.targets.reshape(len(part), -1)
    images, places = np.nonzero(targets >= 0)
    return images, targets[images, places]


def validate_two_per_class(
    part: ImageDataset, clusters: Ints, purpose: str = _VALIDATE, instead: str = _OWN_VAL
) -> None:
    """Every class has two distinct images, one to train on and one for the purpose.

    Args:
        part: Images to split.
        clusters: (N,) numbers, equal for identical files.
        purpose: Use of the other image, for error messages.
        instead: Alternative for the user in error messages.

    Raises:
        InputError: A class has no, one, or one repeated image.
    """
    images, classes = _image_labels(part)
    pairs = pd.DataFrame({"label": classes, "cluster": clusters[images]}).drop_duplicates()
    distinct = np.bincount(pairs["label"], minlength=len(part.class_names))
    scarce = np.flatnonzero(distinct < 2)
    if not len(scarce):
        return
    label = int(scarce[0])
    name, rows = part.class_names[label], images[classes == label]
    more = ""
    if len(scarce) > 1:
        others = [part.class_names[one] for one in scarce[1:]]
        more = f" So it is with {pluralize(len(others), 'more class')}: {shorten(others)}."
    if not len(rows):
        raise InputError(
            f"{part.source}: class '{name}' has no readable image in train.{more} Add images, or leave the class out."
        )
    least = int(np.bincount(classes, minlength=len(distinct))[scarce].max()) + 1
    if purpose != _VALIDATE:  # one image of each class may have been held out already
        least += 1
    copies = is_copy(part)[rows]
    first = int(rows[np.argmin(copies)])  # an original, if there is one
    what = _repeated(int((~copies).sum()), int(copies.sum()))
    raise InputError(
        f"{part.where(first)}: class '{name}' has {what} ('{part.paths[first]}'), but one is needed to train on and "
        f"another to {purpose}.{more} Add images, pass --min-images-per-class {least} to leave such classes out; or "
        f"{instead}."
    )


def _repeated(originals: int, copies: int) -> str:
    """Images that count as one distinct image, in words."""
    if not copies:
        return "one image only" if originals == 1 else f"{originals} images, all of them the same file"
    made = "1 copy" if copies == 1 else f"{copies} copies"
    if originals > 1:
        return f"{originals} images, all of them the same file, and {made} made from it"
    return f"one image only, and {made} made from it" if originals else f"{made} of one image only"


def describe_split(
    available: list[Grouping],
    used: Grouping,
    held_out: npt.NDArray[np.bool_] | None,
    *,
    folds: int | None = None,
) -> str:
    """``by spatial blocks of 1° (37 of 210 blocks), groups whole, stratified by class``, and what was divided.

    Args:
        available: All groupings.
        used: The one of the split.
        held_out: (N,) images that were held out. None for folds.
        folds: Number of folds, if any.
    """
    words = []
    if used.blocks is not None and used.block is not None:
        total = len(np.unique(used.blocks))
        count = f"{total} blocks"
        if held_out is not None:
            count = f"{len(np.unique(used.blocks[held_out]))} of {count}"
        why = ""
        if used is not available[0]:
            why = "; with larger ones a class would vanish from a part, or a part be far from its share"
        words.append(f"by spatial blocks of {used.block:g}° ({count}{why})")
    if used.groups:
        words.append("groups whole")
    return ", ".join([*words, "stratified by class", *_divided(available, used, folds)])


def _divided(available: list[Grouping], used: Grouping, folds: int | None) -> list[str]:
    """What is known but not kept together, and why."""
    places = [one for one in available if one.block is not None][-1:] if used.block is None else []
    groups = [one for one in available if one.groups and one.block is None] if not used.groups else []
    reasons: dict[str, list[str]] = {}
    for what, loosest in [*(("places", one) for one in places), *(("groups", one) for one in groups)]:
        is_empty = folds is not None and loosest.count < folds
        reason = "a part would be empty" if is_empty else "a class would vanish from a part"
        reasons.setdefault(reason, []).append(what)
    return [f"{' and '.join(names)} not kept whole, since {why}" for why, names in reasons.items()]


def split_groups_warning(dataset: ImageDataset) -> str:
    """A sentence on groups in several splits, starting with a space. Empty for none."""
    if not has_groups(dataset):
        return ""
    splits = np.where(dataset.in_train, "train", dataset.split)
    known = pd.DataFrame({"group": dataset.table["group"], "split": splits}).dropna(subset="group")
    counts = known.groupby("group", sort=False)["split"].nunique()
    divided = counts.index[counts > 1]
    if not len(divided):
        return ""
    first = set(known["split"][known["group"] == divided[0]])
    named = f"'{divided[0]}', in {' and '.join(name for name in SPLITS if name in first)}"
    return (
        f" {len(divided):,} of {pluralize(len(counts), 'group')} {'lies' if len(divided) == 1 else 'lie'} in more than "
        f"one split (the first: {named}): their images are not independent, so metrics may be too good. Put each whole "
        "into one split."
    )
