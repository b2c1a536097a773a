"""Built-in datasets by name, found on disk by torchvision and never downloaded."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from efficientnetv2.data.image_folder import read_folder
from efficientnetv2.data.records import ImageRecords, ReadOptions, records_table
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import hint_for_os_error
from efficientnetv2.utils.logs import progress
from efficientnetv2.utils.optional_deps import import_torchvision

VARIABLE = "EFFNETV2_DATA"


class DatasetNotFoundError(InputError):
    """There is no folder that could hold a built-in dataset."""


@dataclass(frozen=True)
class _TorchvisionDataset:
    """A dataset class of torchvision: its name, and torchvision's name of a split -> ours."""

    name: str
    splits: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[Mapping[str, str], ...] = (MappingProxyType({}),)  # further arguments: the first on disk counts
    available: bool = True  # torchvision can download it


_TRAIN_TEST = {"train": "train", "test": "test"}
_TRAIN_VAL_TEST = {"train": "train", "val": "val", "test": "test"}
_SIZES = ({"size": "full"}, {"size": "320px"}, {"size": "160px"})
_DATASETS = {
    "cifar10": _TorchvisionDataset("CIFAR10", _TRAIN_TEST),
    "cifar100": _TorchvisionDataset("CIFAR100", _TRAIN_TEST),
    "dtd": _TorchvisionDataset("DTD", _TRAIN_VAL_TEST),  # the first of its ten partitions
    "eurosat": _TorchvisionDataset("EuroSAT"),
    "fgvc_aircraft": _TorchvisionDataset("FGVCAircraft", _TRAIN_VAL_TEST),
    "flowers102": _TorchvisionDataset("Flowers102", _TRAIN_VAL_TEST),
    "food101": _TorchvisionDataset("Food101", _TRAIN_TEST),
    "imagenette": _TorchvisionDataset("Imagenette", {"train": "train", "val": "val"}, _SIZES),
    "oxford_iiit_pet": _TorchvisionDataset("OxfordIIITPet", {"trainval": "train", "test": "test"}),
    "stanford_cars": _TorchvisionDataset("StanfordCars", _TRAIN_TEST, available=False),
}
BUILTIN_NAMES = tuple(_DATASETS)


def read_builtin(name: str) -> ImageRecords:
    """List a dataset of ``BUILTIN_NAMES`` in the folder ``EFFNETV2_DATA`` or in ``data/``.

    Raises:
        DatasetNotFoundError: There is neither folder.
        InputError: The dataset is missing or damaged.
    """
    given, known = os.environ.get(VARIABLE), _DATASETS[name]
    errors: list[str] = []
    for folder in ([given] if given else []) + ["data"]:
        place = Path(os.path.expanduser(folder)).absolute()
        if not place.is_dir():
            continue
        try:
            if name in ("cifar10", "cifar100"):
                return _read_cifar(place, name)
            list_rows = _list_pets if name == "oxford_iiit_pet" else _list_torchvision
            table = records_table(*zip(*list_rows(place, known), strict=True))
            return ImageRecords(root=place, source=name, table=table, published=name)
        except (RuntimeError, FileNotFoundError) as error:
            errors.append(f"{place}: {error}")
    size = ", size='160px'" if name == "imagenette" else ""
    call = f"torchvision.datasets.{known.name}('data'{size}, download=True)"
    fix = f"Get it with {call}." if known.available else f"Put a copy where {call} would."
    reported = f" ({'; '.join(errors)})" if errors else ""
    raise (InputError if errors else DatasetNotFoundError)(
        f"The built-in dataset '{name}' is neither under data/ ({Path('data').absolute()}) nor under {VARIABLE} "
        f"({given or 'not set'}){reported}. {fix}"
    )


def _list_torchvision(place: Path, known: _TorchvisionDataset) -> list[tuple[str, str, str]]:
    make: Callable[..., Any] = getattr(import_torchvision("datasets"), known.name)  # a heavy import
    problem: Exception | None = None
    for choice in known.choices:
        try:
            rows = []
            for theirs, ours in known.splits.items() or [("", "")]:
                # With this loader items are (path, class id), and nothing is decoded.
                images = make(place, loader=str, **({"split": theirs} if theirs else {}), **choice)
                names = [n if isinstance(n, str) else n[0] for n in images.classes]
                found = (images[index] for index in range(len(images)))
                rows += [(Path(p).relative_to(place).as_posix(), names[label], ours) for p, label in found]
            return rows
        except (RuntimeError, FileNotFoundError) as error:
            problem = error
    assert problem is not None
    raise problem


def _list_pets(place: Path, known: _TorchvisionDataset) -> list[tuple[str, str, str]]:
    """Images of ``annotations/trainval.txt``, whose lines are like ``Abyssinian_100 1 1 1``."""
    folder = place / "oxford-iiit-pet"
    rows = []
    for theirs, ours in known.splits.items():
        lines = (folder / "annotations" / f"{theirs}.txt").read_text(encoding="utf-8").splitlines()
        files = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
        rows += [(f"{folder.name}/images/{file}.jpg", file.rpartition("_")[0], ours) for file in files]
    return rows


def _read_cifar(place: Path, name: str) -> ImageRecords:
    """PNG files, made once from the Python version, whose checksums torchvision checks."""
    folder = place / f"{name}-images"
    if not folder.is_dir():
        make: Callable[..., Any] = getattr(import_torchvision("datasets"), _DATASETS[name].name)
        parts = {split: make(place, train=split == "train") for split in _TRAIN_TEST}
        partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            for split, images in parts.items():
                _write_images(partial / split, images, f"converting {name}, {split}")
            os.replace(partial, folder)
        except OSError as error:
            if not folder.is_dir():  # otherwise another process has made it
                raise InputError(
                    f"{folder} must be made once, but can't be written ({error.strerror or error}). "
                    f"{hint_for_os_error(error)}."
                ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return replace(read_folder(folder, name, ReadOptions(layout="splits")), published=name)


def _write_images(folder: Path, images: Any, description: str) -> None:
    """Write a dataset of torchvision as PNG files in class folders."""
    classes = [folder / name for name in images.classes]
    for class_folder in classes:
        class_folder.mkdir(parents=True)
    with progress(description, len(images)) as update:
        for number, (image, label) in enumerate(images):
            image.save(classes[label] / f"{number:05d}.png")
            update(number + 1)
