"""Check that a dataset is the complete ImageNet that a recipe is for: its classes and counts.

A partly unpacked folder trains for days, and then misses the published metrics.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.utils.errors import InputError, pluralize, shorten

Published = Literal["imagenet1k", "imagenet21k"]


@dataclass(frozen=True)
class _Facts:
    """Facts of a published dataset, None if unknown.

    Args:
        title: Name.
        classes: Number of classes, or several possible numbers.
        train: Training images.
        of_a_class: Minimum and maximum training images of a class.
        val: Validation images of each class.
    """

    title: str
    classes: tuple[int, ...]
    train: int | None = None
    of_a_class: tuple[int, int] | None = None
    val: int | None = None


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
    ids = _wordnet(here)
    counts: list[str] = []
    if known & here:
        _validate_classes(dataset, facts, missing=known - here, unknown=here - known)
    elif not known and _is_most(ids, facts):
        counts = _class_notes(facts, len(ids), unknown=here - ids)
    elif len(here) not in facts.classes:
        return (
            f"The recipe is made for {facts.title}, of {facts.classes[0]:,} classes. These images are another "
            f"dataset, of {len(here):,}: the recipe's cost and metrics do not hold for them.",
        )
    notes = (*counts, *_count_notes(dataset, facts))
    if notes and strict:
        raise InputError(f"{dataset.source}: {' '.join(notes)} {_fix(facts)}")
    return notes


def recognized(dataset: ImageDataset) -> str | None:
    """Title of the published dataset with these classes: exactly those of ImageNet-1k, or most of ImageNet-21k."""
    here = set(dataset.class_names)
    if here == _ids("imagenet1k"):
        return _FACTS["imagenet1k"].title
    facts = _FACTS["imagenet21k"]
    return facts.title if _is_most(_wordnet(here), facts) else None


def _wordnet(names: set[str]) -> set[str]:
    return {name for name in names if _WORDNET_ID.fullmatch(name)}


def _is_most(ids: set[str], facts: _Facts) -> bool:
    return len(ids) >= _MIN_FRACTION * facts.classes[0]


def _ids(published: Published) -> set[str]:
    """WordNet ids of the classes. Empty for ImageNet-21k, which has too many to include."""
    if published == "imagenet21k":
        return set()
    return set(files("efficientnetv2.data").joinpath("imagenet1k.txt").read_text(encoding="ascii").split())


def _validate_classes(dataset: ImageDataset, facts: _Facts, *, missing: set[str], unknown: set[str]) -> None:
    wrong = [
        f"{len(names):,} {what} ({shorten(sorted(names), 3)})"
        for names, what in (
            (missing, f"of {facts.title}'s {facts.classes[0]:,} classes are missing"),
            (unknown, "of the classes are none of its"),
        )
        if names
    ]
    if wrong:
        raise InputError(f"{dataset.source}: {', and '.join(wrong)}. {_fix(facts)}")


def _class_notes(facts: _Facts, there: int, *, unknown: set[str]) -> list[str]:
    """Notes on the number of classes with a WordNet id, where their names are not known, and on other classes."""
    notes: list[str] = []
    least, most = min(facts.classes), max(facts.classes)
    if there < least:
        verb = "is" if least - there == 1 else "are"
        notes.append(
            f"{least - there:,} of {facts.title}'s {least:,} classes {verb} missing ({most:,} as released)."
        )
    elif there not in facts.classes:
        notes.append(f"There are {there:,} classes, but {facts.title} has {least:,} ({most:,} as released).")
    if unknown:
        names = shorten(sorted(unknown), 3)
        notes.append(f"{pluralize(len(unknown), 'class')} not called by a WordNet id: {names}.")
    return notes


def _count_notes(dataset: ImageDataset, facts: _Facts) -> list[str]:
    notes = []
    trained = dataset.in_train | (dataset.split == "minival")
    names = np.array(dataset.class_names, dtype=object)
    train, val = (
        np.bincount(dataset.labels[rows & (dataset.labels >= 0)], minlength=len(names))
        for rows in (trained, dataset.split == "val")
    )
    if facts.train is not None and train.sum() != facts.train:
        notes.append(f"Train has {train.sum():,} images, but {facts.title} has {facts.train:,}.")
    # Too few of one class and too many of another may give the right sum.
    if facts.of_a_class is not None:
        least, most = facts.of_a_class
        notes += _per_class_note(
            f"Train of {facts.title} has {least:,} to {most:,}", names, train, least, most
        )
    if facts.val is not None and val.any():
        notes += _per_class_note(f"Val of {facts.title} has {facts.val}", names, val, facts.val, facts.val)
    return notes


def _per_class_note(rule: str, names: np.ndarray, counts: np.ndarray, least: int, most: int) -> list[str]:
    """A sentence on classes with other numbers of images, if any."""
    odd = np.flatnonzero((counts < least) | (counts > most))
    shown = shorten([f"{names[one]}: {counts[one]:,}" for one in odd], 3)
    return [f"{rule} images of each class; not so {shown}."] if len(odd) else []


def _fix(facts: _Facts) -> str:
    return (
        f"Complete it (each class is a folder called by its WordNet id), or, if it is not meant to be {facts.title}, "
        "say so: --set made_for=null"
    )
