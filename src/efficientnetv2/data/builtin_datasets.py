"""Built-in datasets by name, found on disk and never downloaded; and the binary files of CIFAR.

torchvision knows their layouts and checks their files; only the list of files is taken from it.
"""

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
    """A dataset class of torchvision.

    Args:
        name: Name of the class.
        splits: torchvision's name of a split -> ours. Empty without splits.
        choices: Further arguments. The first choice that is on disk counts.
        available: Whether torchvision can download it.
    """

    name: str
    splits: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[Mapping[str, str], ...] = (MappingProxyType({}),)
    available: bool = True


_TRAIN_TEST = {"train": "train", "test": "test"}
_TRAIN_VAL_TEST = {"train": "train", "val": "val", "test": "test"}
_DATASETS = MappingProxyType({
    "cifar10": _TorchvisionDataset("CIFAR10", _TRAIN_TEST),
    "cifar100": _TorchvisionDataset("CIFAR100", _TRAIN_TEST),
    "dtd": _TorchvisionDataset("DTD", _TRAIN_VAL_TEST),  # the first of its ten partitions
    "eurosat": _TorchvisionDataset("EuroSAT"),
    "fgvc_aircraft": _TorchvisionDataset("FGVCAircraft", _TRAIN_VAL_TEST),
    "flowers102": _TorchvisionDataset("Flowers102", _TRAIN_VAL_TEST),
    "food101": _TorchvisionDataset("Food101", _TRAIN_TEST),
    "imagenette": _TorchvisionDataset(
        "Imagenette",
        {"train": "train", "val": "val"},
        ({"size": "full"}, {"size": "320px"}, {"size": "160px"}),
    ),
    "oxford_iiit_pet": _TorchvisionDataset("OxfordIIITPet", {"trainval": "train", "test": "test"}),
    "stanford_cars": _TorchvisionDataset("StanfordCars", _TRAIN_TEST, available=False),
})  # fmt: skip

BUILTIN_NAMES = tuple(_DATASETS)


def read_builtin(name: str) -> ImageRecords:
    """List a dataset of ``BUILTIN_NAMES`` in the folder ``EFFNETV2_DATA`` or in ``data/``.

    Raises:
        DatasetNotFoundError: There is neither folder.
        InputError: The dataset is missing or damaged. The message has torchvision's call that downloads it.
    """
    errors: list[str] = []
    for place in _candidate_folders():
        if not place.is_dir():
            continue
        try:
            if name in ("cifar10", "cifar100"):
                return _read_cifar(place, name)
            return _list_torchvision(place, name, _DATASETS[name])
        except (RuntimeError, FileNotFoundError) as error:
            errors.append(f"{place}: {error}")
    raise (InputError if errors else DatasetNotFoundError)(_not_found(name, errors))


def _candidate_folders() -> list[Path]:
    given = os.environ.get(VARIABLE)
    return [Path(os.path.expanduser(place)).absolute() for place in ([given] if given else []) + ["data"]]


def _list_torchvision(place: Path, name: str, known: _TorchvisionDataset) -> ImageRecords:
    if name == "oxford_iiit_pet":
        found = [row for theirs, ours in known.splits.items() for row in _list_pets(place, theirs, ours)]
    else:
        found = [
            (Path(path).relative_to(place).as_posix(), label, split)
            for path, label, split in _torchvision_rows(place, known)
        ]
    paths, labels, splits = zip(*found, strict=True)
    return ImageRecords(root=place, source=name, table=records_table(paths, labels, splits), published=name)


def _torchvision_rows(place: Path, known: _TorchvisionDataset) -> list[tuple[str, str, str]]:
    datasets = import_torchvision("datasets")  # a heavy import
    make: Callable[..., Any] = getattr(datasets, known.name)
    problem: Exception | None = None
    for choice in known.choices:
        try:
            rows = []
            for theirs, ours in known.splits.items() or [("", "")]:
                split = {"split": theirs} if theirs else {}
                # With this loader items are (path, class id), and nothing is decoded.
                images = make(place, loader=str, **split, **choice)
                names = [n if isinstance(n, str) else n[0] for n in images.classes]
                rows += [
                    (path, names[label], ours) for path, label in (images[i] for i in range(len(images)))
                ]
            return rows
        except (RuntimeError, FileNotFoundError) as error:
            problem = error
    assert problem is not None
    raise problem


def _list_pets(place: Path, theirs: str, ours: str) -> list[tuple[str, str, str]]:
    """Images of ``annotations/trainval.txt``, whose lines are like ``Abyssinian_100 1 1 1``."""
    folder = Path("oxford-iiit-pet")
    lines = (place / folder / "annotations" / f"{theirs}.txt").read_text(encoding="utf-8").splitlines()
    files = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    return [((folder / "images" / f"{file}.jpg").as_posix(), file.rpartition("_")[0], ours) for file in files]


def _read_cifar(place: Path, name: str) -> ImageRecords:
    """The binary version, made once from the Python version, whose checksums torchvision checks."""
    layout = CIFAR10 if name == "cifar10" else CIFAR100
    folder = place / ("cifar-10-batches-bin" if name == "cifar10" else "cifar-100-binary")
    if not is_cifar_folder(folder):
        datasets = import_torchvision("datasets")
        make: Callable[..., Any] = getattr(datasets, _DATASETS[name].name)
        parts = [make(place, train=train) for train in (True, False)]
        train, test = ((part.data, np.asarray(part.targets, dtype=np.uint8)) for part in parts)
        try:
            write_cifar_folder(folder, layout, parts[0].classes, train=train, test=test)
        except PermissionError:
            raise InputError(
                f"{place} may not be written to, but {name}'s binary version has to be made there once. "
                f"Change its permissions, or put the binary version into {folder}."
            ) from None
    return read_cifar_folder(folder, name)


def _not_found(name: str, errors: list[str]) -> str:
    known = _DATASETS[name]
    given = os.environ.get(VARIABLE)
    places = f"data/ ({Path('data').absolute()}) nor under {VARIABLE} ({given or 'not set'})"
    what = f" torchvision reports: {'; '.join(errors)}." if errors else ""
    if not known.available:
        call = (
            f"Its first address is gone; put a copy where torchvision.datasets.{known.name}('data') finds it."
        )
    else:
        size = ", size='160px'" if name == "imagenette" else ""
        call = f"Get it with torchvision.datasets.{known.name}('data'{size}, download=True)."
    return f"The built-in dataset '{name}' is neither under {places}.{what} It is never downloaded unasked. {call}"


PIXELS = 3072  # 32 × 32 × 3: the red plane, the green, the blue
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Binary layout of CIFAR-10 or CIFAR-100. The last label byte is the class."""

    published: str
    label_bytes: int
    train: tuple[str, ...]
    test: str
    names: str

    @property
    def record(self) -> int:
        """Bytes of an image and its labels."""
        return self.label_bytes + PIXELS


CIFAR10 = Layout(
    "cifar10", 1, tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt"
)
CIFAR100 = Layout("cifar100", 2, ("train.bin",), "test.bin", "fine_label_names.txt")


def layout_of(file: str) -> Layout:
    """The layout of a binary file, by its name."""
    return CIFAR100 if Path(file).name in (*CIFAR100.train, CIFAR100.test) else CIFAR10


def is_cifar_folder(folder: Path) -> bool:
    """Whether a folder has CIFAR's binary training files. ``train.bin`` next to class folders is another file."""
    if any(folder.glob("data_batch_*.bin")):
        return True
    if not (folder / CIFAR100.train[0]).is_file():
        return False
    return (folder / CIFAR100.names).is_file() or not any(one.is_dir() for one in folder.iterdir())


def read_cifar_folder(folder: Path, source: str) -> ImageRecords:
    """List the records of a folder of binary files, ``data_batch_1.bin#0`` and so on.

    Raises InputError if a file is truncated, the class names are missing, or a label has no name.
    """
    layout = CIFAR10 if any(folder.glob("data_batch_*.bin")) else CIFAR100
    names = _class_names(folder / layout.names, source)
    train = [name for name in layout.train if (folder / name).is_file()]
    parts = [(name, "train") for name in train]
    if (folder / layout.test).is_file():
        parts.append((layout.test, "test"))
    paths: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    for name, split in parts:
        ids = cifar_records(folder / name)[:, layout.label_bytes - 1]
        if len(ids) and ids.max() >= len(names):
            at = int(ids.argmax())
            raise InputError(
                f"{name}#{at}: label {ids[at]} has no name in {layout.names} ({len(names)} names)."
            )
        paths += [f"{name}#{index}" for index in range(len(ids))]
        labels += [names[label] for label in ids]
        splits += [split] * len(ids)
    if not paths:
        raise InputError(f"{source} holds CIFAR binary files without a record. Get them again.")
    return ImageRecords(
        root=folder, source=source, table=records_table(paths, labels, splits), published=layout.published
    )


def cifar_records(file: Path) -> Bytes:
    """(N, label bytes + 3072) of a binary file, mapped into memory. Raises InputError if it is truncated."""
    record, size = layout_of(file.name).record, file.stat().st_size
    if size % record:
        raise InputError(
            f"{file.name} has {size} bytes, no multiple of a record's {record}: it is cut short. Get it anew."
        )
    if not size:
        return np.empty((0, record), dtype=np.uint8)
    return np.memmap(file, dtype=np.uint8, mode="r").reshape(-1, record)


def write_cifar_folder(
    folder: Path,
    layout: Layout,
    names: Sequence[str],
    *,
    train: tuple[Bytes, Bytes],
    test: tuple[Bytes, Bytes],
) -> None:
    """Write the binary layout atomically, unless the folder exists.

    Args:
        folder: Folder to create.
        layout: Layout of the dataset.
        names: Class names, by id.
        train: (N, 32, 32, 3) images and (N,) class ids. CIFAR-100's coarse labels become 0.
        test: The same for test.
    """
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    partial.mkdir()  # a folder of tempfile would be private
    try:
        (partial / layout.names).write_text("\n".join(names) + "\n", encoding="utf-8")
        pieces = np.array_split(np.arange(len(train[1])), len(layout.train))
        parts = [
            (name, train[0][piece], train[1][piece]) for name, piece in zip(layout.train, pieces, strict=True)
        ]
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


def _class_names(file: Path, source: str) -> list[str]:
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise InputError(
            f"{source} lacks {file.name}, CIFAR's class names. Copy it there from the archive."
        ) from None
    return names
