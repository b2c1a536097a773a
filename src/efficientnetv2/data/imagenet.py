"""Whether pictures are the published set that a recipe is made for, whole: its classes, its counts.

A folder that was unpacked in part trains as well as any other, for days, and then misses the published figure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.utils.errors import InputError, count_of, some

Published = Literal["imagenet1k", "imagenet21k"]


@dataclass(frozen=True)
class _Facts:
    """What is known of a published set. None is not known.

    Args:
        title: as people call it.
        classes: how many; of two, either.
        train: its training pictures.
        of_a_class: the fewest and the most of them in a class.
        val: validation pictures of each class.
    """

    title: str
    classes: tuple[int, ...]
    train: int | None = None
    of_a_class: tuple[int, int] | None = None
    val: int | None = None


# ILSVRC 2012 as its organisers describe it (arXiv:1409.0575, Table 2). ImageNet-21k: 21,841 classes in
# arXiv:2104.00298, section 5.2, 21,843 in the released code; how many pictures depends on when it was downloaded.
_FACTS = {
    "imagenet1k": _Facts("ImageNet-1k", (1000,), 1_281_167, (732, 1300), 50),
    "imagenet21k": _Facts("ImageNet-21k", (21_841, 21_843)),
}
_WORDNET_ID = re.compile(r"n\d{8}")
# WordNet's classes in fewer than this share of a set's number are another set, a later or cleaned choice of them. Ours.
_PART = 0.9


def compare(dataset: ImageDataset, published: Published, *, strict: bool) -> tuple[str, ...]:
    """Name what is missing of a published set, or too much.

    Args:
        dataset: labelled; pictures without a split, and those of minival, count as train.
        published: the set that the recipe is made for.
        strict: wrong counts are an error too.

    Returns:
        A sentence for each thing that differs. Other pictures altogether (no class is called as one of the set) are
        no error, for a recipe may serve them too.

    Raises:
        InputError: some classes of the set are there and others are not; or, if strict, a count is wrong, that of the
            classes too where it is not known which they are.
    """
    facts = _FACTS[published]
    known, here = _ids(published), set(dataset.class_names)
    ids = _wordnet(here)
    counts: list[str] = []
    if known & here:
        _refuse_other_classes(dataset, facts, missing=known - here, strange=here - known)
    elif not known and _is_most(ids, facts):
        counts = _wrong_classes(facts, len(ids), strange=here - ids)
    elif len(here) not in facts.classes:
        return (
            f"The recipe is made for {facts.title}, of {facts.classes[0]:,} classes. These pictures are another "
            f"set, of {len(here):,}: what it says of cost and result does not hold for them.",
        )
    notes = (*counts, *_wrong_counts(dataset, facts))
    if notes and strict:
        raise InputError(f"{dataset.source}: {' '.join(notes)} {_fix(facts)}")
    return notes


def recognised(dataset: ImageDataset) -> str | None:
    """The title of the published set whose classes these are, whatever recipe they are for; None if of none.

    Of ImageNet-1k all its classes and no other, of ImageNet-21k most of them.
    """
    here = set(dataset.class_names)
    if here == _ids("imagenet1k"):
        return _FACTS["imagenet1k"].title
    facts = _FACTS["imagenet21k"]
    return facts.title if _is_most(_wordnet(here), facts) else None


def _wordnet(names: set[str]) -> set[str]:
    return {name for name in names if _WORDNET_ID.fullmatch(name)}


def _is_most(ids: set[str], facts: _Facts) -> bool:
    return len(ids) >= _PART * facts.classes[0]


def _ids(published: Published) -> set[str]:
    """The WordNet ids of the classes; of ImageNet-21k none, which are too many to carry along."""
    if published == "imagenet21k":
        return set()
    return set(files("efficientnetv2.data").joinpath("imagenet1k.txt").read_text(encoding="ascii").split())


def _refuse_other_classes(
    dataset: ImageDataset, facts: _Facts, *, missing: set[str], strange: set[str]
) -> None:
    wrong = [
        f"{len(names):,} {what} ({some(sorted(names), 3)})"
        for names, what in (
            (missing, f"of {facts.title}'s {facts.classes[0]:,} classes are missing"),
            (strange, "of the classes are none of its"),
        )
        if names
    ]
    if wrong:
        raise InputError(f"{dataset.source}: {', and '.join(wrong)}. {_fix(facts)}")


def _wrong_classes(facts: _Facts, there: int, *, strange: set[str]) -> list[str]:
    """What is wrong with the number of classes, where it is not known which there are.

    Args:
        facts: of the set.
        there: classes that are called by a WordNet id.
        strange: the others.
    """
    notes: list[str] = []
    least, most = min(facts.classes), max(facts.classes)
    if there < least:
        verb = "is" if least - there == 1 else "are"
        notes.append(
            f"{least - there:,} of {facts.title}'s {least:,} classes {verb} missing ({most:,} as released)."
        )
    elif there not in facts.classes:
        notes.append(f"There are {there:,} classes, but {facts.title} has {least:,} ({most:,} as released).")
    if strange:
        names = some(sorted(strange), 3)
        notes.append(f"{count_of(len(strange), 'class')} not called by a WordNet id: {names}.")
    return notes


def _wrong_counts(dataset: ImageDataset, facts: _Facts) -> list[str]:
    notes = []
    trained = dataset.in_train | (dataset.split == "minival")
    names = np.array(dataset.class_names, dtype=object)
    train, val = (
        np.bincount(dataset.labels[rows & (dataset.labels >= 0)], minlength=len(names))
        for rows in (trained, dataset.split == "val")
    )
    if facts.train is not None and train.sum() != facts.train:
        notes.append(f"Train has {train.sum():,} pictures, but {facts.title} has {facts.train:,}.")
    # Too few of one class and too many of another can come to the right sum.
    if facts.of_a_class is not None:
        least, most = facts.of_a_class
        notes += _not_so(f"Train of {facts.title} has {least:,} to {most:,}", names, train, least, most)
    if facts.val is not None and val.any():
        notes += _not_so(f"Val of {facts.title} has {facts.val}", names, val, facts.val, facts.val)
    return notes


def _not_so(rule: str, names: np.ndarray, counts: np.ndarray, least: int, most: int) -> list[str]:
    """A sentence on the classes that have other numbers of pictures; none where all are as they are to be."""
    odd = np.flatnonzero((counts < least) | (counts > most))
    shown = some([f"{names[one]}: {counts[one]:,}" for one in odd], 3)
    return [f"{rule} pictures of each class; not so {shown}."] if len(odd) else []


def _fix(facts: _Facts) -> str:
    return (
        f"Complete it (each class is a folder called by its WordNet id), or, if it is not meant to be {facts.title}, "
        "say so: --set made_for=null"
    )
