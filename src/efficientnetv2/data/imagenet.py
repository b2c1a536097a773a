"""Check that a dataset is the complete ImageNet that a recipe is for: its classes and counts."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Literal, NamedTuple

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.utils.errors import InputError, pluralize, shorten

Published = Literal["imagenet1k", "imagenet21k"]


class _Facts(NamedTuple):
    """Facts of a published dataset: possible numbers of classes, and numbers of images, None if unknown."""

    title: str
    classes: tuple[int, ...]
    train: int | None = None
    train_per_class: tuple[int, int] | None = None
    val_per_class: int | None = None


# ILSVRC 2012 as its organizers describe it (arXiv:1409.0575, Table 2). ImageNet-21k: 21,841 classes in
# arXiv:2104.00298, section 5.2, 21,843 in the released code; the number of images depends on the time of download.
_FACTS = {
    "imagenet1k": _Facts("ImageNet-1k", (1000,), 1_281_167, (732, 1300), 50),
    "imagenet21k": _Facts("ImageNet-21k", (21_841, 21_843)),
}
_WORDNET_ID = re.compile(r"n\d{8}")
# With a smaller fraction of its WordNet classes, a dataset is a later or cleaned version. Ours.
_MIN_FRACTION = 0.9


def compare(dataset: ImageDataset, published: Published, *, strict: bool) -> tuple[str, ...]:
    """A sentence for each difference to the published dataset that a recipe is for.

    Images without a split, and minival, count as train. A different dataset, without any class of the published one, is
    no error.

    Raises:
        InputError: Only some classes of the published dataset are there. Or, if strict, a count is wrong.
    """
    facts = _FACTS[published]
    known, here = _ids(published), set(dataset.class_names)
    fix = f"Complete it, or, if it is not meant to be {facts.title}, use `expected_dataset=null`."
    notes: list[str] = []
    if known & here:
        missing = f"of {facts.title}'s {facts.classes[0]:,} classes are missing"
        each = {missing: known - here, "of the classes are none of its": here - known}
        wrong = [f"{len(ids):,} {what} ({shorten(sorted(ids), 3)})" for what, ids in each.items() if ids]
        if wrong:
            raise InputError(f"{dataset.source}: {', and '.join(wrong)}. {fix}")
    elif not known and _is_most_of_21k(here):
        ids = {name for name in here if _WORDNET_ID.fullmatch(name)}
        if len(ids) not in facts.classes:
            paper, released = facts.classes
            notes.append(
                f"There are {len(ids):,} classes, but {facts.title} has {paper:,} ({released:,} as released)."
            )
        if others := here - ids:
            classes = pluralize(len(others), "class")
            notes.append(f"{classes} not called by a WordNet id ({shorten(sorted(others), 3)}).")
    elif len(here) not in facts.classes:
        return (
            f"The recipe is made for {facts.title}, of {facts.classes[0]:,} classes. These images are another dataset, "
            f"of {len(here):,}.",
        )
    notes += _count_notes(dataset, facts)
    if notes and strict:
        raise InputError(f"{dataset.source}: {' '.join(notes)} {fix}")
    return tuple(notes)


def recognized(dataset: ImageDataset) -> str | None:
    """Title of the published dataset with these classes: exactly those of ImageNet-1k, or most of ImageNet-21k."""
    here = set(dataset.class_names)
    if here == _ids("imagenet1k"):
        return _FACTS["imagenet1k"].title
    return _FACTS["imagenet21k"].title if _is_most_of_21k(here) else None


def _is_most_of_21k(names: set[str]) -> bool:
    known = sum(_WORDNET_ID.fullmatch(name) is not None for name in names)
    return known >= _MIN_FRACTION * _FACTS["imagenet21k"].classes[0]


def _ids(published: Published) -> set[str]:
    """WordNet ids of the classes. Empty for ImageNet-21k, which has too many to include."""
    if published == "imagenet21k":
        return set()
    return set(files("efficientnetv2.data").joinpath("imagenet1k.txt").read_text(encoding="ascii").split())


def _count_notes(dataset: ImageDataset, facts: _Facts) -> list[str]:
    notes = []
    trained = dataset.in_train | (dataset.split == "minival")
    train, val = (
        np.bincount(dataset.labels[rows & (dataset.labels >= 0)], minlength=len(dataset.class_names))
        for rows in (trained, dataset.split == "val")
    )
    if facts.train is not None and train.sum() != facts.train:
        notes.append(f"Train has {train.sum():,} images, but {facts.title} has {facts.train:,}.")
    # Too few of one class and too many of another may give the right sum.
    rules = []
    if facts.train_per_class is not None:
        least, most = facts.train_per_class
        rules.append((f"Train of {facts.title} has {least:,} to {most:,}", train, least, most))
    if facts.val_per_class is not None and val.any():
        count = facts.val_per_class
        rules.append((f"Val of {facts.title} has {count}", val, count, count))
    for rule, counts, least, most in rules:
        odd = np.flatnonzero((counts < least) | (counts > most))
        if len(odd):
            shown = shorten([f"{dataset.class_names[index]}: {counts[index]:,}" for index in odd], 3)
            notes.append(f"{rule} images of each class; not so {shown}.")
    return notes
