"""Built-in datasets by name, found on disk by torchvision and never downloaded; and the binary files of CIFAR."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.records import ImageRecords, records_table
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.optional_deps import import_torchvision

VARIABLE = "EFFNETV2_DATA"


class DatasetNotFoundError(InputError):
    """There is no folder that could hold a built-in dataset."""


@dataclass(frozen=True)
class _TorchvisionDataset:
    """A dataset class of torchvision: its name, and torchvision's name of a split -> ours.

    ``choices`` are further arguments, the first choice on disk counts. ``available``: torchvision can download it.
    """

    name: str
    splits: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[Mapping[str, str], ...] = (MappingProxyType({}),)
    available: bool = True


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
            if name in _LAYOUTS:
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


PIXELS = 3072  # 32 × 32 × 3: the red plane, the green, the blue
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Binary layout of CIFAR-10 or CIFAR-100. The last label byte is the class."""

    published: str
    folder: str
    label_bytes: int
    train: tuple[str, ...]
    test: str
    names: str

    @property
    def record(self) -> int:
        """Bytes of an image and its labels."""
        return self.label_bytes + PIXELS


_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR10 = Layout("cifar10", "cifar-10-batches-bin", 1, _BATCHES, "test_batch.bin", "batches.meta.txt")
CIFAR100 = Layout("cifar100", "cifar-100-binary", 2, ("train.bin",), "test.bin", "fine_label_names.txt")
_LAYOUTS = {layout.published: layout for layout in (CIFAR10, CIFAR100)}


def _read_cifar(place: Path, name: str) -> ImageRecords:
    """The binary version, made once from the Python version, whose checksums torchvision checks."""
    layout = _LAYOUTS[name]
    folder = place / layout.folder
    if not is_cifar_folder(folder):
        make: Callable[..., Any] = getattr(import_torchvision("datasets"), _DATASETS[name].name)
        parts = [make(place, train=train) for train in (True, False)]
        train, test = ((part.data, np.asarray(part.targets, dtype=np.uint8)) for part in parts)
        try:
            write_cifar_folder(folder, layout, parts[0].classes, train=train, test=test)
        except PermissionError:
            raise InputError(
                f"{place} may not be written to, but {folder.name} must be made there once. Change its permissions."
            ) from None
    return read_cifar_folder(folder, name)


def is_cifar_folder(folder: Path) -> bool:
    """Whether a folder has CIFAR's binary training files. ``train.bin`` next to class folders is another file."""
    if any(folder.glob("data_batch_*.bin")):
        return True
    if not (folder / CIFAR100.train[0]).is_file():
        return False
    return (folder / CIFAR100.names).is_file() or not any(entry.is_dir() for entry in folder.iterdir())


def read_cifar_folder(folder: Path, source: str) -> ImageRecords:
    """List the records of a folder of binary files, ``data_batch_1.bin#0`` and so on.

    Raises InputError if a file is truncated, the class names are missing, or a label has no name.
    """
    layout = CIFAR10 if any(folder.glob("data_batch_*.bin")) else CIFAR100
    try:
        lines = (folder / layout.names).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{source} lacks {layout.names}. Copy it there from CIFAR's archive.") from None
    names = [line.strip() for line in lines if line.strip()]
    rows: list[tuple[str, str, str]] = []
    for file in (*layout.train, layout.test):
        if not (folder / file).is_file():
            continue
        ids = cifar_records(folder / file)[:, layout.label_bytes - 1]
        if len(ids) and ids.max() >= len(names):
            row = int(ids.argmax())
            raise InputError(f"{file}#{row}: label {ids[row]} is not one of the {len(names)} in {layout.names}.")
        split = "test" if file == layout.test else "train"
        rows += [(f"{file}#{index}", names[label], split) for index, label in enumerate(ids)]
    if not rows:
        raise InputError(f"{source} holds CIFAR binary files without a record. Get them again.")
    table = records_table(*zip(*rows, strict=True))
    return ImageRecords(root=folder, source=source, table=table, published=layout.published)


def cifar_records(file: Path) -> Bytes:
    """(N, label bytes + 3072) of a binary file, mapped into memory. Raises InputError if it is truncated."""
    layout = CIFAR100 if file.name in (*CIFAR100.train, CIFAR100.test) else CIFAR10
    record, size = layout.record, file.stat().st_size
    if size % record:
        raise InputError(f"{file.name} has {size} bytes, not a multiple of {record}: it is cut short. Get it again.")
    if not size:
        return np.empty((0, record), dtype=np.uint8)
    return np.memmap(file, dtype=np.uint8, mode="r").reshape(-1, record)


def write_cifar_folder(
    folder: Path, layout: Layout, names: Sequence[str], *, train: tuple[Bytes, Bytes], test: tuple[Bytes, Bytes]
) -> None:
    """Write the binary layout atomically, unless the folder exists.

    ``train`` and ``test`` are (N, 32, 32, 3) images and (N,) class ids. CIFAR-100's coarse labels become 0.
    """
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    partial.mkdir()  # a folder of tempfile would be private
    try:
        (partial / layout.names).write_text("\n".join(names) + "\n", encoding="utf-8")
        pieces = np.array_split(np.arange(len(train[1])), len(layout.train))
        parts = [(name, train[0][rows], train[1][rows]) for name, rows in zip(layout.train, pieces, strict=True)]
        for name, images, ids in [*parts, (layout.test, *test)]:
            rows = np.zeros((len(ids), layout.record), dtype=np.uint8)
            rows[:, layout.label_bytes - 1] = ids
            rows[:, layout.label_bytes :] = images.transpose(0, 3, 1, 2).reshape(len(ids), PIXELS)
            rows.tofile(partial / name)
        if not folder.exists():
            try:
                os.replace(partial, folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process has made it
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
