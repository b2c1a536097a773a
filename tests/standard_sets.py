"""Small versions of standard datasets in their original layouts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from tests.conftest import paint
from torchvision import datasets


def write_cifar(folder: Path, *, train: int, test: int) -> None:
    """Write CIFAR as the PNG files that are made from it, with three alternating classes.

    Args:
        folder: Folder to create.
        train: Number of training images, which are noise.
        test: Number of test images.
    """
    names = ["airplane", "automobile", "bird"]
    for number in range(train + test):
        split = "train" if number < train else "test"
        paint(folder / split / names[number % 3] / f"{number:05d}.png", (60, 90, 160), number, px=32)


def write_flowers(place: Path, monkeypatch: pytest.MonkeyPatch, labels: list[int], **splits: list[int]) -> None:
    """Write Flowers-102 and replace the checksums of its small files.

    Args:
        place: Parent of its folder.
        monkeypatch: Fixture that replaces the checksums.
        labels: Label of each image, from 1.
        splits: Numbers of images, from 1, in ``trnid``, ``valid`` and ``tstid``.
    """
    folder = place / "flowers-102"
    for number in range(1, len(labels) + 1):
        paint(folder / f"jpg/image_{number:05}.jpg", (200, 60, 60), number, px=32)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([labels])})
    scipy.io.savemat(folder / "setid.mat", {name: [numbers] for name, numbers in splits.items()})
    files = {
        key: (name, hashlib.md5((folder / name).read_bytes()).hexdigest())
        for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", {**datasets.Flowers102._file_dict, **files})
