"""Standard data sets by name, where they lie on disk. Nothing is ever downloaded.

torchvision knows their layouts and checks their files; what is taken from it is the list of files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.extras import of_torchvision
from efficientnetv2.data import cifar
from efficientnetv2.data.listing import Listing, frame

VARIABLE = "EFFNETV2_DATA"


class NotAtHandError(InputError):
    """There is no folder in which a standard set could lie."""


@dataclass(frozen=True)
class _Set:
    """A class of torchvision's, and what it calls our splits."""

    name: str
    splits: Mapping[str, str] = field(default_factory=dict)  # theirs -> ours; none: the set has no splits
    choices: tuple[Mapping[str, str], ...] = (
        MappingProxyType({}),
    )  # further arguments, the first that is there
    available: bool = True


_TRAIN_TEST = {"train": "train", "test": "test"}
_TRAIN_VAL_TEST = {"train": "train", "val": "val", "test": "test"}
_SETS = MappingProxyType({
    "cifar10": _Set("CIFAR10", _TRAIN_TEST),
    "cifar100": _Set("CIFAR100", _TRAIN_TEST),
    "dtd": _Set("DTD", _TRAIN_VAL_TEST),  # the first of its ten partitions
    "eurosat": _Set("EuroSAT"),
    "fgvc_aircraft": _Set("FGVCAircraft", _TRAIN_VAL_TEST),
    "flowers102": _Set("Flowers102", _TRAIN_VAL_TEST),
    "food101": _Set("Food101", _TRAIN_TEST),
    "imagenette": _Set(
        "Imagenette",
        {"train": "train", "val": "val"},
        ({"size": "full"}, {"size": "320px"}, {"size": "160px"}),
    ),
    "oxford_iiit_pet": _Set("OxfordIIITPet", {"trainval": "train", "test": "test"}),
    "stanford_cars": _Set("StanfordCars", _TRAIN_TEST, available=False),
})  # fmt: skip

NAMES = tuple(_SETS)


def read_standard(name: str) -> Listing:
    """List a standard set that lies in the folder of ``EFFNETV2_DATA`` or in ``data/``.

    Args:
        name: one of ``NAMES``.

    Raises:
        NotAtHandError: there is neither folder.
        InputError: it lies in neither, or torchvision finds its files damaged. The message gives
            torchvision's call that fetches it.
    """
    told: list[str] = []
    for place in _places():
        if not place.is_dir():
            continue
        try:
            if name in ("cifar10", "cifar100"):
                return _cifar(place, name)
            return _listed(place, name, _SETS[name])
        except (RuntimeError, FileNotFoundError) as error:
            told.append(f"{place}: {error}")
    raise (InputError if told else NotAtHandError)(_not_found(name, told))


def _places() -> list[Path]:
    given = os.environ.get(VARIABLE)
    return [Path(os.path.expanduser(place)).absolute() for place in ([given] if given else []) + ["data"]]


def _listed(place: Path, name: str, known: _Set) -> Listing:
    if name == "oxford_iiit_pet":
        found = [row for theirs, ours in known.splits.items() for row in _pets(place, theirs, ours)]
    else:
        found = [
            (Path(path).relative_to(place).as_posix(), label, split)
            for path, label, split in _torchvision_rows(place, known)
        ]
    paths, labels, splits = zip(*found, strict=True)
    return Listing(root=place, source=name, table=frame(paths, labels, splits), standard=name)


def _torchvision_rows(place: Path, known: _Set) -> list[tuple[str, str, str]]:
    datasets = of_torchvision("datasets")  # heavy: only where a standard set is asked for
    make: Callable[..., Any] = getattr(datasets, known.name)
    problem: Exception | None = None
    for choice in known.choices:
        try:
            rows = []
            for theirs, ours in known.splits.items() or [("", "")]:
                split = {"split": theirs} if theirs else {}
                # A loader that hands on the path: items are then (path, class id), and nothing is decoded.
                pictures = make(place, loader=str, **split, **choice)
                names = [n if isinstance(n, str) else n[0] for n in pictures.classes]
                rows += [
                    (path, names[label], ours) for path, label in (pictures[i] for i in range(len(pictures)))
                ]
            return rows
        except (RuntimeError, FileNotFoundError) as error:
            problem = error
    assert problem is not None
    raise problem


def _pets(place: Path, theirs: str, ours: str) -> list[tuple[str, str, str]]:
    """Lines of ``annotations/trainval.txt``: ``Abyssinian_100 1 1 1``, file and numbers of its kind."""
    folder = Path("oxford-iiit-pet")
    lines = (place / folder / "annotations" / f"{theirs}.txt").read_text(encoding="utf-8").splitlines()
    files = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    return [((folder / "images" / f"{file}.jpg").as_posix(), file.rpartition("_")[0], ours) for file in files]


def _cifar(place: Path, name: str) -> Listing:
    """The binary version; made once from the Python version, whose sums torchvision checks first."""
    layout = cifar.CIFAR10 if name == "cifar10" else cifar.CIFAR100
    folder = place / ("cifar-10-batches-bin" if name == "cifar10" else "cifar-100-binary")
    if not cifar.is_packed(folder):
        datasets = of_torchvision("datasets")
        make: Callable[..., Any] = getattr(datasets, _SETS[name].name)
        parts = [make(place, train=train) for train in (True, False)]
        train, test = ((part.data, np.asarray(part.targets, dtype=np.uint8)) for part in parts)
        try:
            cifar.write_packed(folder, layout, parts[0].classes, train=train, test=test)
        except PermissionError:
            raise InputError(
                f"{place} may not be written to, but {name}'s binary version has to be made there once. "
                f"Change its permissions, or put the binary version into {folder}."
            ) from None
    return cifar.read_packed(folder, name)


def _not_found(name: str, told: list[str]) -> str:
    known = _SETS[name]
    given = os.environ.get(VARIABLE)
    places = f"data/ ({Path('data').absolute()}) nor under {VARIABLE} ({given or 'not set'})"
    what = f" torchvision says: {'; '.join(told)}." if told else ""
    if not known.available:
        call = (
            f"Its first address is gone; put a copy where torchvision.datasets.{known.name}('data') finds it."
        )
    else:
        size = ", size='160px'" if name == "imagenette" else ""
        call = f"Get it with torchvision.datasets.{known.name}('data'{size}, download=True)."
    return (
        f"The standard set '{name}' is neither under {places}.{what} It is never downloaded unasked. {call}"
    )
