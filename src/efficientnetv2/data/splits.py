"""Random, stratified splits that keep similar images together: val, and minival, which selects the model.

Images of one group, one place or identical content are not independent. With one in train and another in val, metrics
would be too good. Such images form clusters, and a split assigns whole clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import (
    BLOCKS,
    Grouping,
    SplitBy,
    class_counts,
    groupings,
    has_groups,
    keeps_every_class,
    select_groupings,
    stratified_group_split,
)
from efficientnetv2.data.records import SPLITS, Ints, copy_groups, is_copy
from efficientnetv2.utils.errors import InputError, pluralize, shorten
from efficientnetv2.utils.random_key import Floats, Key

# A part held out by blocks should have between 0.5 and 1.5 times the wanted size. Else smaller blocks are tried. Ours.
_SIZE_RANGE = (0.5, 1.5)
# Splits of images with several labels that are tried before a grouping counts as one that loses a label. Ours.
_LABEL_ATTEMPTS = 16

#: What an automatic minival is for. Part of the note on the split.
MINIVAL_USE = "They fit the temperature and can select the weights."
#: Split that a run is evaluated on: val, held out of train or given, or the given test.
EvalSplit = Literal["val", "test"]

# Automatic minival: fraction of the training images, minimum and maximum. Fewer than 100 give a rough temperature,
# and more than 1,000 cost training more than they gain. Ours.
_MINIVAL_FRACTION, _MIN_MINIVAL, _MAX_MINIVAL = 0.05, 100, 1_000
# Maximum fraction of an automatic minival, which takes no image of classes with fewer than 10. Ours.
_MAX_MINIVAL_FRACTION, _RARE_CLASS = 1 / 8, 10


class MinivalError(InputError):
    """Minival cannot be held out. ``reason`` is the message without the advice to train without it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason} Or train without minival: `minival=null`."


def with_holdout(
    dataset: ImageDataset,
    *,
    fraction: float = 0.2,
    seed: int,
    contents: Ints | None = None,
    by: SplitBy = "auto",
    blocks: Sequence[float] = BLOCKS,
) -> tuple[ImageDataset, str]:
    """Hold out a val split from the training images, unless there is one, and describe it. Test images stay.

    Images without a split are training images. Groups (column ``group``) and places (``latitude``, ``longitude``) stay
    together. If a class would vanish from train or val, spatial blocks shrink from 1° to 1/32°, then places and last
    groups are divided. Files with equal ids in ``contents`` always stay together. ``fraction`` from 2 is a number of
    images.
    Raises InputError where a class is too small, or groups or places are unknown or cannot stay together.
    """
    train = np.flatnonzero(dataset.in_train)
    split = dataset.split.copy()
    split[train] = "train"
    unmarked = int((dataset.split == "").sum())
    note = f" {unmarked} without a split count as train." if unmarked and unmarked < len(dataset) else ""
    if "val" in split:
        given = pluralize(int((split == "val").sum()), "image")
        return dataset.with_split(split), f"Validating on the {given} given as val.{note}"
    is_count = fraction >= 2 and fraction == int(fraction)
    if not (fraction < len(train) if is_count else 0 < fraction < 1):
        raise InputError(
            f"{fraction:,} of {len(train):,} training images cannot be held out. Use a fraction between 0 "
            "and 1, such as `val_fraction=0.2`, or fewer images."
        )
    fraction = fraction / len(train) if is_count else fraction
    part = dataset.select(train)
    available = groupings(part, None if contents is None else np.asarray(contents)[train], blocks)
    validate_two_per_class(part, available[-1].clusters)
    available = select_groupings(part, available, by)
    target = class_targets(part, np.array([1 - fraction, fraction]))
    grouping, parts = split_by_groupings(part, available, target, Key.of(seed).fold("holdout"))
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
    test, train = (pluralize(int((split == name).sum()), "image") for name in ("test", "train"))
    too = f", the {int(given.sum()):,} given as val among them" if given.any() else ""
    return dataset.with_split(split), (
        f"Evaluating on the {test} given as test, which select nothing; training on {train}{too}."
    )


def class_targets(part: ImageDataset, fractions: Floats) -> Floats:
    """(P, K) images of each class for parts of these (P,) sizes."""
    target: Floats = fractions[:, None] * np.bincount(part.labels, minlength=len(part.class_names))
    return target


def split_by_groupings(
    part: ImageDataset, available: list[Grouping], target: Floats, key: Key
) -> tuple[Grouping, Ints]:
    """Split by the first grouping with every class and about the wanted sizes, else the first with every class.

    ``available`` has the strictest grouping first. ``target`` is (P, K) images of each class in each part. Returns the
    grouping and the (N,) part of each image. Raises InputError if every grouping loses a class.
    """
    fallback: tuple[Grouping, Ints] | None = None
    images, classes = image_labels(part)
    for grouping in available:
        # Images are divided by their rarest label. Only then can another one be missing from a part.
        can_vary = part.separator is not None and len(images) > 0 and _fewest_clusters(grouping, images, classes) > 1
        for attempt in range(_LABEL_ATTEMPTS if can_vary else 1):
            own_key = key.fold("labels", attempt) if attempt else key
            parts = stratified_group_split(grouping.clusters, part.labels, target=target, key=own_key)
            counts = class_counts(parts[images], classes, *target.shape)
            if keeps_every_class(counts):
                break
        if keeps_every_class(counts):
            fallback = fallback or (grouping, parts)
            if grouping.block is None:  # uneven sizes do not justify dividing blocks or groups
                return fallback
            size = np.bincount(parts, minlength=len(target)) / target.sum(axis=1)
            if size.min() >= _SIZE_RANGE[0] and size.max() <= _SIZE_RANGE[1]:
                return grouping, parts
    if fallback is not None:
        return fallback
    if not (names := available[-1].names):
        if part.separator is not None:
            sizes, lacking = counts.sum(axis=0), (counts > 0).sum(axis=0) < 2
            least = int(sizes[lacking & (sizes > 0)].min(initial=sizes.max()))
            raise InputError(
                f"{part.source}: no random split was found that has every label in two parts. The rarest that is in "
                f"one part only has {pluralize(least, 'image')}. Leave out rare labels with "
                f"`min_images_per_class={least + 1}`, or try another `seed`."
            )
        raise InputError(
            f"{part.source}: no split has every class in two parts. Correct the labels of identical files, or leave a "
            "class out."
        )
    clusters = pd.Series(available[-1].clusters[images]).groupby(classes).nunique()
    single = [part.class_names[label] for label in clusters.index[clusters == 1]]
    together = " and ".join(names)
    which = f"class {shorten(single)}, all in one connected part," if single else "a class"
    raise InputError(
        f"{part.source}: with {together} kept together, {which} would vanish from a part. Add images of other "
        f"{together}, leave the class out, or use `by=class`."
    )


def _fewest_clusters(grouping: Grouping, images: Ints, classes: Ints) -> int:
    """Of all labels, the fewest clusters that have it: with one, no split has it in two parts."""
    return int(pd.Series(grouping.clusters[images]).groupby(classes).nunique().min())


def image_labels(part: ImageDataset) -> tuple[Ints, Ints]:
    """Row and class of each label of each image."""
    targets = part.targets.reshape(len(part), -1)
    images, places = np.nonzero(targets >= 0)
    return images, targets[images, places]


def validate_two_per_class(part: ImageDataset, clusters: Ints, *, held_out: int = 0) -> None:
    """Raise InputError unless every class has two distinct images, to train on and to evaluate.

    ``clusters`` are (N,) numbers, equal for identical files. ``held_out`` images of each class were held out before.
    """
    images, classes = image_labels(part)
    pairs = pd.DataFrame({"label": classes, "cluster": clusters[images]}).drop_duplicates()
    distinct = np.bincount(pairs["label"], minlength=len(part.class_names))
    scarce = np.flatnonzero(distinct < 2)
    if not len(scarce):
        return
    names = [part.class_names[label] for label in scarce]
    rows = images[classes == scarce[0]]
    more = f", as {pluralize(len(names) - 1, 'other class')} ({shorten(names[1:])})" if len(names) > 1 else ""
    if not len(rows):
        raise InputError(
            f"{part.source}: class '{names[0]}' has no readable image in train{more}. Add images, or leave it out."
        )
    minimum = int(np.bincount(classes, minlength=len(distinct))[scarce].max()) + 1 + held_out
    copies = is_copy(part)[rows]
    first = int(rows[np.argmin(copies)])  # an original, if there is one
    augmented = f", {copies.sum()} of them augmented copies" if copies.any() else ""
    among = f" among its {len(rows)} images{augmented}" if len(rows) > 1 else ""
    raise InputError(
        f"{part.where(first)}: class '{names[0]}' has only one distinct image{among} ('{part.paths[first]}'){more}. "
        "Training and evaluation need one each. Add images, or leave out such classes with "
        f"`min_images_per_class={minimum}` (more if DATA lists other images of them)."
    )


def describe_split(available: list[Grouping], used: Grouping, held_out: npt.NDArray[np.bool_] | None = None) -> str:
    """``by spatial blocks of 1° (37 of 210 blocks), groups whole, stratified by class``, and what was divided."""
    phrases = []
    if used.blocks is not None and used.block is not None:
        count = f"{len(np.unique(used.blocks))} blocks"
        if held_out is not None:
            count = f"{len(np.unique(used.blocks[held_out]))} of {count}"
        if used is not available[0]:
            count += "; with larger ones a class would vanish from a part, or a part be far from its share"
        phrases.append(f"by spatial blocks of {used.block:g}° ({count})")
    if used.groups:
        phrases.append("groups whole")
    phrases.append("stratified by class")
    known = {name for level in available for name in level.names}
    if divided := sorted(known - {*used.names}, reverse=True):
        phrases.append(f"{' and '.join(divided)} not kept whole, since a part would be empty or lack a class")
    return ", ".join(phrases)


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
    return (
        f" {len(divided):,} of {pluralize(len(counts), 'group')} are in more than one split, such as '{divided[0]}', "
        f"in {' and '.join(name for name in SPLITS if name in first)}: metrics may be too good. Put each group into "
        "one split."
    )


def with_minival(dataset: ImageDataset, *, size: int | float, contents: Ints | None = None) -> tuple[ImageDataset, str]:
    """Hold out training images as minival, which selects the weights to keep, and describe it in a sentence.

    Each class gives its exact share (largest remainders first, at least one), with the groups of
    ``with_holdout`` kept together. The images depend only on their own paths, not on a seed or an order: runs
    with other seeds, and the same data in shards, select by the same images. Images given as minival are used instead.

    ``size`` is a number of images (int), or a fraction of the training images (float), without augmented copies.
    Raises InputError if it is too small or too large for the classes, a class has one image, or images have several
    labels.
    """
    if dataset.separator is not None:
        raise InputError(
            f"minival is {size}, but the images have several labels each. Train without it: `minival=null`."
        )
    if given := int((dataset.split == "minival").sum()):
        return dataset, f"Minival: the {given} given images are not trained on. {MINIVAL_USE}"
    rows = _train_by_path(dataset)
    return _hold_out(dataset, rows, round(size * len(rows)) if isinstance(size, float) else size, contents)


def with_auto_minival(dataset: ImageDataset, *, contents: Ints | None = None) -> tuple[ImageDataset, str, bool]:
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
    rare = counts[part.labels] < _RARE_CLASS
    for level in groupings(part, None if contents is None else np.asarray(contents)[rows]):
        free = rows[~np.isin(level.clusters, level.clusters[rare])]
        classes = len(np.unique(dataset.labels[free]))
        size = max(min(max(round(_MINIVAL_FRACTION * len(free)), _MIN_MINIVAL), _MAX_MINIVAL), classes)
        if classes < 2 or size > _MAX_MINIVAL_FRACTION * len(free):
            continue
        try:
            result, note = _hold_out(dataset, free, size, contents)
        except InputError:
            continue
        # Groups stay together, so that the size may be far from the wanted one.
        if not _MIN_MINIVAL / 2 <= (result.split[rows] == "minival").sum() <= _MAX_MINIVAL_FRACTION * len(rows):
            continue
        few = [part.class_names[label] for label in np.unique(part.labels[rare])]
        if has_groups(result):
            group, held_out = result.table["group"], result.split == "minival"
            if set(group[held_out].dropna()) & set(group[result.in_train].dropna()):  # with images of rare classes
                note = note.replace("groups whole", "groups not kept whole")
        if few:
            note += f" Classes with fewer than {_RARE_CLASS} training images give none of them: {shorten(few)}."
        return result, note, True
    least = round(_MIN_MINIVAL / _MAX_MINIVAL_FRACTION)
    why = f"there are {pluralize(len(rows), 'training image')}, fewer than {least}"
    if len(rows) >= least:
        why = f"classes have fewer than {_RARE_CLASS} training images, or groups are too large"
    note, classes, tenth = f"{none}: {why}.", int(np.count_nonzero(counts)), round(len(rows) / 10)
    # One image of each class is set aside, and one of each stays in train.
    if counts[counts > 0].min(initial=2) > 1 and max(tenth, classes) <= len(rows) - classes:
        note += f" Set some aside with `minival={0.1 if tenth >= classes else classes}`."
    return dataset, note, False


def _train_by_path(dataset: ImageDataset) -> Ints:
    """Training rows without augmented copies, sorted by the images' own paths."""
    train = np.flatnonzero(dataset.in_train & ~is_copy(dataset))
    names = [dataset.paths[row].rpartition(".tar#")[2] for row in train]
    ordered: Ints = train[np.argsort(np.array(names, dtype=object), kind="stable")]  # of one width they take gigabytes
    return ordered


def _hold_out(dataset: ImageDataset, rows: Ints, size: int, contents: Ints | None) -> tuple[ImageDataset, str]:
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
        raise MinivalError(str(error)) from error
    split = dataset.split.copy()
    split[rows[parts == 1]] = "minival"
    if (families := copy_groups(dataset)) is not None:  # copies follow their original
        split[dataset.in_train & np.isin(families, families[split == "minival"])] = "minival"
    held, how = int((parts == 1).sum()), describe_split(levels, level, parts == 1)
    total = int((dataset.in_train & ~is_copy(dataset)).sum())
    return dataset.with_split(split), (
        f"Minival: {held} of {total} training images, {how}, are not trained on. {MINIVAL_USE}"
    )


def _quotas(part: ImageDataset, count: int) -> Ints:
    """(K,) images that each class gives: its share of ``count``, at least one and not all."""
    sizes, classes = np.bincount(part.labels), len(part.class_names)
    most = len(part) - classes
    if not 0 < classes <= count <= most:
        tenth = ", or `minival=0.1`" if classes <= round(0.1 * len(part)) <= most else ""
        raise InputError(
            f"{part.source}: minival would be {count} of {len(part)} training images. It must have one of each of the "
            f"{classes} classes and leave one in train: {classes} to {most}{tenth}."
        )
    ideal = count * sizes / len(part)
    quotas = np.clip(np.floor(ideal).astype(np.int64), 1, sizes - 1)
    while rest := count - int(quotas.sum()):
        possible = quotas < sizes - 1 if rest > 0 else quotas > 1
        step = 1 if rest > 0 else -1
        quotas[np.argmax(np.where(possible, step * (ideal - quotas), -np.inf))] += step
    return quotas
