"""Class ids of a dataset in the order of a model's classes."""

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
    """The labeled dataset with the class ids of a model.

    With ``merge`` labels match by ``normalize_label``; a label that is a class as it is spelled stays that class.

    Raises:
        InputError: A label is no class of the model, or matches two; or the model's classes have no names.
    """
    if merge:
        _refuse_ambiguous(dataset, class_names, model)
        spelled = {normalize_label(name): name for name in class_names} | {name: name for name in class_names}
        dataset = dataset.map_classes(
            lambda label: spelled.get(label, spelled.get(normalize_label(label), label))
        )
    known = set(class_names)
    present = {dataset.class_names[label] for label in np.unique(dataset.targets) if label >= 0}
    if unknown := sorted(present - known):
        raise _unknown_labels_error(
            dataset, class_names, model, unknown, none_known=known.isdisjoint(present)
        )
    return replace(dataset, class_names=class_names)


def _unknown_labels_error(
    dataset: ImageDataset, class_names: tuple[str, ...], model: str, unknown: list[str], *, none_known: bool
) -> InputError:
    where = f"{_first_with(dataset, unknown[0])}: label {shorten(unknown)}"
    rename = shell_join(["effnetv2", "convert", model, "NAMED.safetensors", "--class-names", "NAMES.txt"])
    if class_names == tuple(str(number) for number in range(len(class_names))):
        return InputError(
            f"{where}, but the outputs of {model} have no names, only numbers ('0' to '{len(class_names) - 1}'). Name "
            f"them, in their order: {rename} (a name on each line)"
        )
    if {normalize_label(name) for name in unknown} <= {normalize_label(name) for name in class_names}:
        fix = (
            "They differ only by case, space or how their letters are encoded: --labels casefold merges them."
        )
    elif none_known and ensemble_members(Path(model)):  # convert takes single networks
        fix = "No label is. Rename the labels of the table."
    elif none_known:
        fix = f"No label is. If its classes have other names: {rename} (a name on each line)"
    else:
        ids = [dataset.class_names.index(name) for name in unknown]
        count = int(np.isin(dataset.targets, ids).reshape(len(dataset), -1).any(axis=1).sum())
        fix = f"Correct the labels of these {pluralize(count, 'image')}, or remove their rows or folders."
    hint = did_you_mean(unknown[0], class_names)
    return InputError(f"{where} is no class of {model}, which knows {shorten(class_names, 10)}{hint} {fix}")


def _refuse_ambiguous(dataset: ImageDataset, class_names: tuple[str, ...], model: str) -> None:
    """Refuse a label that is no class as it is spelled, but normalizes like two of them."""
    spellings: dict[str, list[str]] = {}
    for name in class_names:
        spellings.setdefault(normalize_label(name), []).append(name)
    for place, label in enumerate(dataset.class_names):
        alike = spellings.get(normalize_label(label), [])
        if label not in alike and len(alike) > 1 and (dataset.targets == place).any():
            raise InputError(
                f"{_first_with(dataset, label)}: label '{label}' may be {shorten(alike)}, two classes of {model}, so "
                "--labels casefold does not say which. Correct the label to one of them."
            )


def _first_with(dataset: ImageDataset, label: str) -> str:
    """Where the first image with a label is."""
    place = dataset.class_names.index(label)
    return dataset.where(int(np.argwhere(dataset.targets == place)[0, 0]))
