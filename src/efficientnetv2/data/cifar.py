"""CIFAR's binary files: a label byte or two and 3,072 bytes of picture per record.

Source of the layout: https://www.cs.toronto.edu/~kriz/cifar.html ("binary version").
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efficientnetv2.base.errors import InputError
from efficientnetv2.data.listing import Listing, frame

PIXELS = 3072  # 32 × 32 × 3: the red plane, the green, the blue
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """How one of the two sets lies on disk; its last label byte is the class."""

    standard: str
    label_bytes: int
    train: tuple[str, ...]
    test: str
    names: str

    @property
    def record(self) -> int:
        """Bytes of a picture and its labels."""
        return self.label_bytes + PIXELS


CIFAR10 = Layout(
    "cifar10", 1, tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt"
)
CIFAR100 = Layout("cifar100", 2, ("train.bin",), "test.bin", "fine_label_names.txt")


def layout_of(file: str) -> Layout:
    """The layout of a packed file, by its name."""
    return CIFAR100 if Path(file).name in (*CIFAR100.train, CIFAR100.test) else CIFAR10


def is_packed(folder: Path) -> bool:
    """Whether a folder holds CIFAR's binary training files; ``train.bin`` beside class folders is somebody else's."""
    if any(folder.glob("data_batch_*.bin")):
        return True
    if not (folder / CIFAR100.train[0]).is_file():
        return False
    return (folder / CIFAR100.names).is_file() or not any(one.is_dir() for one in folder.iterdir())


def read_packed(folder: Path, source: str) -> Listing:
    """List the records of a folder of binary files, ``data_batch_1.bin#0`` and so on.

    Raises:
        InputError: a file is cut short, the class names are missing, or a label has no name.
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
        ids = records(folder / name)[:, layout.label_bytes - 1]
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
    return Listing(root=folder, source=source, table=frame(paths, labels, splits), standard=layout.standard)


def records(file: Path) -> Bytes:
    """(N, label bytes + 3072) of a packed file, mapped, not read.

    Raises:
        InputError: it does not consist of whole records.
    """
    record, size = layout_of(file.name).record, file.stat().st_size
    if size % record:
        raise InputError(
            f"{file.name} has {size} bytes, no multiple of a record's {record}: it is cut short. Get it anew."
        )
    if not size:
        return np.empty((0, record), dtype=np.uint8)
    return np.memmap(file, dtype=np.uint8, mode="r").reshape(-1, record)


def write_packed(
    folder: Path,
    layout: Layout,
    names: Sequence[str],
    *,
    train: tuple[Bytes, Bytes],
    test: tuple[Bytes, Bytes],
) -> None:
    """Write the binary layout, the folder appearing only once it is whole.

    Args:
        folder: to make; nothing is done where it is there already.
        layout: which of the two sets.
        names: of the classes, by id.
        train: (N, 32, 32, 3) pictures and (N,) class ids; CIFAR-100's coarse labels are written as 0.
        test: the same.
    """
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    partial.mkdir()  # not tempfile's, which nobody else may read
    try:
        (partial / layout.names).write_text("\n".join(names) + "\n", encoding="utf-8")
        pieces = np.array_split(np.arange(len(train[1])), len(layout.train))
        parts = [
            (name, train[0][piece], train[1][piece]) for name, piece in zip(layout.train, pieces, strict=True)
        ]
        for name, pictures, ids in [*parts, (layout.test, *test)]:
            rows = np.zeros((len(ids), layout.record), dtype=np.uint8)
            rows[:, layout.label_bytes - 1] = ids
            rows[:, layout.label_bytes :] = pictures.transpose(0, 3, 1, 2).reshape(len(ids), PIXELS)
            rows.tofile(partial / name)
        if not folder.exists():
            try:
                os.replace(partial, folder)
            except OSError:
                if not folder.is_dir():  # else another process has made it meanwhile
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
