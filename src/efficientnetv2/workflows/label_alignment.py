"""The labels of pictures, counted as a model counts its classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.label_rules import normalize_label
from efficientnetv2.models.ensemble import ensemble_members
from efficientnetv2.utils.errors import InputError, did_you_mean, pluralize, shorten
from efficientnetv2.utils.shell import shell_join


def align_labels(
    dataset: ImageDataset, class_names: tuple[str, ...], model: str, *, merge: bool
) -> ImageDataset:
    """The same pictures, their labels counted as the model counts its classes.

    Args:
        dataset: labelled.
        class_names: of the model.
        model: for the message.
        merge: Match labels by ``normalize_label``. A label that is a class as it stands stays that class.

    Raises:
        InputError: a label that is no class of the model, or maybe two of it, or a model whose classes have no names.
    """
    if merge:
        _refuse_two(dataset, class_names, model)
        spelled = {normalize_label(name): name for name in class_names} | {name: name for name in class_names}
        dataset = dataset.map_classes(
            lambda label: spelled.get(label, spelled.get(normalize_label(label), label))
        )
    call = shell_join(["effnetv2", "convert", model, "NAMED.safetensors", "--class-names", "NAMES.txt"])
    known = set(class_names)
    present = {dataset.class_names[label] for label in np.unique(dataset.targets) if label >= 0}
    strange = sorted(present - known)
    if strange:
        place = dataset.class_names.index(strange[0])
        row = int(np.argwhere(dataset.targets == place)[0, 0])
        if class_names == tuple(str(number) for number in range(len(class_names))):
            raise InputError(
                f"{dataset.where(row)}: label {shorten(strange)}, but the outputs of {model} have no names, only "
                f"numbers ('0' to '{len(class_names) - 1}'). Name them, in their order: {call} (a name on each line)"
            )
        named = np.isin(dataset.targets, [dataset.class_names.index(name) for name in strange])
        asked = int(named.reshape(len(dataset), -1).any(axis=1).sum())
        fix = (
            f"Correct the labels of the {pluralize(asked, 'picture')} so called, or leave them out: in a table their "
            "rows, else their folders."
        )
        if {normalize_label(name) for name in strange} <= {normalize_label(name) for name in known}:
            fix = "They differ only by case, space or how their letters are encoded: --labels casefold merges them."
        elif known.isdisjoint(present):
            fix = "No label is; so this model answers something else, or its classes are called wrongly. " + (
                # Of several networks that answer together convert takes none, for a file holds one.
                "Call the labels of the table as it does."
                if ensemble_members(Path(model))
                else f"To call them otherwise: {call} (a name on each line)"
            )
        raise InputError(
            f"{dataset.where(row)}: label {shorten(strange)} is no class of {model}, which knows "
            f"{shorten(class_names, 10)}{did_you_mean(strange[0], known)} {fix}"
        )
    return replace(dataset, class_names=class_names)


def _refuse_two(dataset: ImageDataset, class_names: tuple[str, ...], model: str) -> None:
    """Refuse a label that is none of the model's classes as it stands, but is folded like two of them."""
    spellings: dict[str, list[str]] = {}
    for name in class_names:
        spellings.setdefault(normalize_label(name), []).append(name)
    for place, label in enumerate(dataset.class_names):
        alike = spellings.get(normalize_label(label), [])
        if label in alike or len(alike) < 2 or not (dataset.targets == place).any():
            continue
        row = int(np.argwhere(dataset.targets == place)[0, 0])
        raise InputError(
            f"{dataset.where(row)}: label '{label}' may be {shorten(alike)}, which {model} tells apart, so --labels "
            "casefold does not say which. Correct the label to one of them."
        )
