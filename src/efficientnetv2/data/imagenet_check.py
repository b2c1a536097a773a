"""Check that a dataset is the complete ImageNet that a recipe is for: its classes and counts."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Literal

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.utils.errors import InputError, pluralize, shorten

Published = Literal["imagenet1k", "imagenet21k"]


# Title, and possible numbers of classes. ImageNet-21k: 21,841 in arXiv:2104.00298, section 5.2, 21,843 in the released
# code; the number of its images depends on the time of download.
_TITLES: dict[Published, str] = {"imagenet1k": "ImageNet-1k", "imagenet21k": "ImageNet-21k"}
_CLASSES: dict[Published, tuple[int, ...]] = {"imagenet1k": (1000,), "imagenet21k": (21_841, 21_843)}
# Images of ILSVRC 2012: train, and of each class in train and val. Source: arXiv:1409.0575, Table 2.
_TRAIN_IMAGES = 1_281_167
_PER_CLASS = {"train": (732, 1300), "val": (50, 50)}
_WORDNET_ID = re.compile(r"n\d{8}")
# With a smaller fraction of its WordNet classes, a dataset is a later or cleaned version. Ours.
_MIN_FRACTION = 0.9


def compare(dataset: ImageDataset, published: Published, *, strict: bool) -> tuple[str, ...]:
    """A sentence for each difference to the published dataset that a recipe is for.

    Images without a split, and minival, count as train. A different dataset, without any class of the published one, is
    no error.
    Raises InputError: only some classes of the published dataset are there. Or, if strict, a count is wrong.
    """
    title, counts = _TITLES[published], _CLASSES[published]
    known, here = _ids(published), set(dataset.class_names)
    fix = f"Complete it, or, if it is not meant to be {title}, use `expected_dataset=null`."
    notes: list[str] = []
    if known & here:
        differences = {
            f"of {title}'s {counts[0]:,} classes are missing": known - here,
            "classes are not in it": here - known,
        }
        wrong = [f"{len(ids):,} {what} ({shorten(sorted(ids), 3)})" for what, ids in differences.items() if ids]
        if wrong:
            raise InputError(f"{dataset.source}: {', and '.join(wrong)}. {fix}")
    elif not known and _is_most_of_21k(here):
        ids = {name for name in here if _WORDNET_ID.fullmatch(name)}
        if len(ids) not in counts:
            numbers = " or ".join(f"{count:,}" for count in counts)
            notes.append(f"There are {len(ids):,} classes, but {title} has {numbers}.")
        if others := here - ids:
            classes = pluralize(len(others), "class")
            notes.append(f"{classes} not called by a WordNet id ({shorten(sorted(others), 3)}).")
    elif len(here) not in counts:
        return (
            f"The recipe is made for {title}, of {counts[0]:,} classes. These images are another dataset, of "
            f"{len(here):,}.",
        )
    if published == "imagenet1k":
        notes += _count_notes(dataset)
    if notes and strict:
        raise InputError(f"{dataset.source}: {' '.join(notes)} {fix}")
    return tuple(notes)


def recognized(dataset: ImageDataset) -> str | None:
    """Title of the published dataset with these classes: exactly those of ImageNet-1k, or most of ImageNet-21k."""
    here = set(dataset.class_names)
    if here == _ids("imagenet1k"):
        return _TITLES["imagenet1k"]
    return _TITLES["imagenet21k"] if _is_most_of_21k(here) else None


def _is_most_of_21k(names: set[str]) -> bool:
    known = sum(_WORDNET_ID.fullmatch(name) is not None for name in names)
    return known >= _MIN_FRACTION * _CLASSES["imagenet21k"][0]


def _ids(published: Published) -> set[str]:
    """WordNet ids of the classes. Empty for ImageNet-21k, which has too many to include."""
    return set() if published == "imagenet21k" else set(imagenet_ids())


def imagenet_ids() -> tuple[str, ...]:
    """WordNet ids of the 1,000 classes of ImageNet-1k, sorted, which is the order of the outputs of its models."""
    return tuple(files("efficientnetv2.data").joinpath("imagenet1k.txt").read_text(encoding="ascii").split())


def _count_notes(dataset: ImageDataset) -> list[str]:
    notes = []
    trained = dataset.in_train | (dataset.split == "minival")
    for split, rows in (("train", trained), ("val", dataset.split == "val")):
        labels = dataset.labels[rows & (dataset.labels >= 0)]
        counts = np.bincount(labels, minlength=len(dataset.class_names))
        if split == "train" and len(labels) != _TRAIN_IMAGES:
            notes.append(f"Train has {len(labels):,} images, but ImageNet-1k has {_TRAIN_IMAGES:,}.")
        least, most = _PER_CLASS[split]
        odd = np.flatnonzero((counts < least) | (counts > most))
        if len(labels) and len(odd):
            shown = shorten([f"{dataset.class_names[index]}: {counts[index]:,}" for index in odd], 3)
            numbers = f"{least:,}" if least == most else f"{least:,} to {most:,}"
            notes.append(f"ImageNet-1k has {numbers} images of each class in {split}; these classes differ: {shown}.")
    return notes
