"""Holding out pictures to validate on: seeded, by class, keeping together what belongs together.

Pictures of one group, of one place, or of identical content say the same thing twice; with one in train
and the other in val the figure would flatter. What must not part is joined into *clusters*, and whole
clusters are dealt out so that each part gets its share of every class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.augmented_copies import is_copy
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import BLOCKS, Grouping, SplitBy, groupings, has_groups, select_groupings
from efficientnetv2.data.records import SPLITS, Ints
from efficientnetv2.data.stratified_split import class_counts, keeps_every_class, stratified_group_split
from efficientnetv2.utils.errors import InputError, count_of, some
from efficientnetv2.utils.rng import Key

# A part held out by blocks should hold between half and one and a half of what was asked for; else
# smaller blocks are tried. Ours.
_SHARE = (0.5, 1.5)

_OWN_VAL = "give a val split of your own"
_VALIDATE = "validate on"

#: Which pictures a run is judged by: held out of train, or those given as test.
EvalSplit = Literal["val", "test"]
Floats = npt.NDArray[np.float64]


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
    """Give a dataset a val split, where it has none, from its train pictures; test is never touched.

    A row without a split counts as train. Groups (column ``group``) and places (``latitude``,
    ``longitude``) stay whole. If a class would vanish from train or val, spatial blocks shrink from 1° to
    1/32°, then places, and last groups, are split up; the sentence says so. Identical files never part.

    Args:
        dataset: labelled.
        fraction: of the train pictures to hold out, 0 < fraction < 1; or, from 2, about how many of them.
        seed: the same seed holds out the same pictures.
        contents: (N,) ids, equal for identical files (``check``); None if not known.
        by: what is kept whole; see ``SplitBy``.
        blocks: sides of spatial blocks in degrees, tried in this order.
        instead: what else the user may do where there is no way.

    Returns:
        The dataset with every picture in train, val or test, and a sentence that says what was done.

    Raises:
        InputError: a class has no or one (distinct) picture in train; fraction is out of range or all there are; or
            what ``by`` names is not known, or can't be kept whole.
    """
    train = np.flatnonzero(dataset.in_train)
    split = dataset.split.copy()
    split[train] = "train"
    unmarked = int((dataset.split == "").sum())
    given = "val" in split
    aside = f" {unmarked} without a split count as train." if unmarked and unmarked < len(dataset) else ""
    if given:
        validating = count_of(int((split == "val").sum()), "picture")
        return dataset.with_split(split), f"Validating on the {validating} given as val.{aside}"
    fraction = _share(fraction, len(train))
    part = dataset.select(train)
    levels = groupings(part, None if contents is None else np.asarray(contents)[train], blocks)
    validate_two_per_class(part, levels[-1].clusters, instead=instead)
    levels = select_groupings(part, levels, by)
    target = class_targets(part, np.array([1 - fraction, fraction]))
    level, parts = split_by_groupings(part, levels, target, Key.of(seed).fold("holdout"), instead=instead)
    split[train[parts == 1]] = "val"
    how = describe_split(levels, level, parts == 1)
    held, of = int((parts == 1).sum()), len(train)
    note = f"Held out {held} of {of} pictures ({100 * held / of:.0f} %) as val, {how}, seed {seed}.{aside}"
    return dataset.with_split(split), note


def evaluate_on_test(dataset: ImageDataset) -> tuple[ImageDataset, str]:
    """Train on all that is set aside neither as test nor as minival, what was given as val too.

    Args:
        dataset: labelled, with pictures in test.

    Returns:
        The dataset with those pictures in train, and a sentence that says what was done.
    """
    split = dataset.split.copy()
    given = split == "val"
    split[dataset.in_train | given] = "train"
    asked, learnt = (int((split == name).sum()) for name in ("test", "train"))
    too = f", the {int(given.sum()):,} given as val among them" if given.any() else ""
    return dataset.with_split(split), (
        f"Answering the {count_of(asked, 'picture')} given as test, by which nothing is chosen; training on "
        f"{count_of(learnt, 'picture')}{too}."
    )


def _share(fraction: float, pictures: int) -> float:
    """What is to be held out, as a share."""
    whole = fraction >= 2 and fraction == int(fraction)
    if whole and fraction >= pictures:
        raise InputError(
            f"{fraction:,.0f} pictures are to be held out, but there are {pictures:,} in train. Say fewer, or a share "
            "(--set holdout=0.2); or give a val split."
        )
    if not whole and not 0 < fraction < 1:
        raise InputError(
            f"the fraction to hold out is {fraction}, but lies between 0 and 1, both excluded, or is a number of "
            "pictures from 2."
        )
    return fraction / pictures if whole else fraction


def class_targets(part: ImageDataset, shares: Floats) -> Floats:
    """(P, K) pictures of each class that parts of these shares should get.

    Args:
        part: the pictures to deal out.
        shares: (P,) of all.
    """
    target: Floats = shares[:, None] * np.bincount(part.labels, minlength=len(part.class_names))
    return target


def split_by_groupings(
    part: ImageDataset,
    levels: list[Grouping],
    target: Floats,
    key: Key,
    *,
    both: str = "both in train and in val",
    instead: str = _OWN_VAL,
) -> tuple[Grouping, Ints]:
    """Deal by the first level with every class and about the sizes asked for; else the first with every class.

    Args:
        part: the pictures to deal out.
        levels: the strictest first.
        target: (P, K) how many pictures of each class each part should get.
        key: the same key deals in the same way.
        both: where every class is to be.
        instead: what else the user may do where there is no way.

    Returns:
        The level, and (N,) the part of each picture.

    Raises:
        InputError: a class vanishes by all of them.
    """
    spare: tuple[Grouping, Ints] | None = None
    pictures, classes = _each_label(part)
    for level in levels:
        parts = stratified_group_split(level.clusters, part.labels, target=target, key=key)
        counts = class_counts(parts[pictures], classes, *target.shape)
        if keeps_every_class(counts):
            spare = spare or (level, parts)
            size = np.bincount(parts, minlength=len(target)) / target.sum(axis=1)
            if level.block is None or (size.min() >= _SHARE[0] and size.max() <= _SHARE[1]):
                # Without blocks, uneven sizes do not justify taking apart what blocks or groups join.
                return (level, parts) if level.block is not None else spare
    if spare is None:
        raise InputError(_no_way(part, levels[-1], both, instead))
    return spare


def _no_way(part: ImageDataset, level: Grouping, both: str, instead: str) -> str:
    """Why even the loosest way makes a class vanish."""
    kept = level.kept
    if not kept:
        why = "identical files with different labels leave" if part.separator is None else "there was found"
        return f"{part.source}: {why} no way to have every class {both}. Correct their labels, or {instead}."
    pictures, classes = _each_label(part)
    of_class = pd.Series(level.clusters[pictures]).groupby(classes).nunique()
    lone = [part.class_names[label] for label in of_class.index[of_class == 1]]
    whole, other = " and ".join(kept), " and ".join(one.removesuffix("s") for one in kept)
    lie = f"lie in one {other}" if len(kept) == 1 else "hang together, by place or by group"
    why = f" All pictures of class {some(lone)} {lie}." if lone else ""
    return (
        f"{part.source}: with {whole} kept whole, a class would vanish from a part.{why} Add pictures of it from "
        f"another {other}, or leave the class out; or do not keep {whole} whole (--by class)."
    )


def _each_label(part: ImageDataset) -> tuple[Ints, Ints]:
    """Of every label of every picture: the picture's row, and the class id."""
    targets = part.targets.reshape(len(part), -1)
    pictures, places = np.nonzero(targets >= 0)
    return pictures, targets[pictures, places]


def validate_two_per_class(
    part: ImageDataset,
    clusters: Ints,
    purpose: str = _VALIDATE,
    instead: str = _OWN_VAL,
) -> None:
    """Every class has two distinct pictures, one to train on and one for something else.

    Args:
        part: the pictures to deal out.
        clusters: (N,) equal for identical files.
        purpose: of the other one.
        instead: what else the user may do.

    Raises:
        InputError: a class has none, one, or the same one several times.
    """
    pictures, classes = _each_label(part)
    pairs = pd.DataFrame({"label": classes, "cluster": clusters[pictures]})
    distinct = (
        pairs.drop_duplicates().groupby("label").size().reindex(range(len(part.class_names)), fill_value=0)
    )
    scarce = np.flatnonzero(distinct.to_numpy() < 2)
    if not len(scarce):
        return
    label = int(scarce[0])
    name, rows = part.class_names[label], pictures[classes == label]
    more = ""
    if len(scarce) > 1:
        others = [part.class_names[one] for one in scarce[1:]]
        more = f" So it is with {count_of(len(others), 'more class')}: {some(others)}."
    least = int(np.bincount(classes, minlength=len(distinct))[scarce].max()) + 1
    if purpose != _VALIDATE:  # an image of each class may have been held out by then
        least += 1
    fix = f"Add images, pass --min-images-per-class {least} to leave such classes out"
    if not len(rows):
        raise InputError(
            f"{part.source}: class '{name}' has no readable picture in train.{more} Add images, or leave the class out."
        )
    made = is_copy(part)[rows]
    first = int(rows[np.argmin(made)])  # one that was taken, if it is there
    where, file = part.where(first), part.paths[first]
    what = _as_one(int((~made).sum()), int(made.sum()))
    raise InputError(
        f"{where}: class '{name}' has {what} ('{file}'), but one is needed to train on and another to "
        f"{purpose}.{more} {fix}; or {instead}."
    )


def _as_one(taken: int, made: int) -> str:
    """What a class has that comes to one distinct picture: pictures that were taken, and copies of them."""
    if not made:
        return "one picture only" if taken == 1 else f"{taken} pictures, all of them the same file"
    copies = "1 copy" if made == 1 else f"{made} copies"
    if taken > 1:
        return f"{taken} pictures, all of them the same file, and {copies} made from it"
    return f"one picture only, and {copies} made from it" if taken else f"{copies} of one picture only"


def describe_split(
    levels: list[Grouping], level: Grouping, held: npt.NDArray[np.bool_] | None, *, folds: int | None = None
) -> str:
    """``by spatial blocks of 1° (37 of 210 blocks), groups whole, stratified by class``; what gave way.

    Args:
        levels: that there were.
        level: by which it was done.
        held: (N,) those that were held out; None if all parts are alike.
        folds: how many parts there are, if all are alike.
    """
    words = []
    if level.blocks is not None and level.block is not None:
        total = len(np.unique(level.blocks))
        count = (
            f"{total} blocks" if held is None else f"{len(np.unique(level.blocks[held]))} of {total} blocks"
        )
        why = ""
        if level is not levels[0]:
            why = "; with larger ones a class would vanish from a part, or a part be far from its share"
        words.append(f"by spatial blocks of {level.block:g}° ({count}{why})")
    if level.groups:
        words.append("groups whole")
    return ", ".join([*words, "stratified by class", *_given_up(levels, level, folds)])


def _given_up(levels: list[Grouping], level: Grouping, folds: int | None) -> list[str]:
    """What is not kept whole though it is known, and why."""
    places = [one for one in levels if one.block is not None][-1:] if level.block is None else []
    groups = [one for one in levels if one.groups and one.block is None] if not level.groups else []
    reasons: dict[str, list[str]] = {}
    for what, loosest in [*(("places", one) for one in places), *(("groups", one) for one in groups)]:
        empty = folds is not None and loosest.count < folds
        reasons.setdefault(
            "a part would be empty" if empty else "a class would vanish from a part", []
        ).append(what)
    return [f"{' and '.join(names)} not kept whole, since {why}" for why, names in reasons.items()]


def split_groups_warning(dataset: ImageDataset) -> str:
    """A sentence on groups that the splits part, to follow another; empty for none.

    Args:
        dataset: its pictures without a split count as train.
    """
    if not has_groups(dataset):
        return ""
    sides = np.where(dataset.in_train, "train", dataset.split)
    known = pd.DataFrame({"group": dataset.table["group"], "side": sides}).dropna(subset="group")
    counts = known.groupby("group", sort=False)["side"].nunique()
    apart = counts.index[counts > 1]
    if not len(apart):
        return ""
    there = set(known["side"][known["group"] == apart[0]])
    named = f"'{apart[0]}', in {' and '.join(name for name in SPLITS if name in there)}"
    return (
        f" {len(apart):,} of {count_of(len(counts), 'group')} {'lies' if len(apart) == 1 else 'lie'} in more than one "
        f"split (the first: {named}): their pictures are not independent, so figures may be too good. Put each whole "
        "into one split."
    )
