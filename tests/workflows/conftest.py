"""A tiny dataset, and a run of the Python API on it."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from types import MappingProxyType

import pytest
from tests.command_line import NETWORK
from tests.conftest import COLORS, paint
from tests.pages import PAGES, ROOT

import efficientnetv2 as ev2

# The smallest complete training, and the same arguments for the command line.
TINY = MappingProxyType(
    {"model": NETWORK, "weights": "none", "recipe": "quick", "epochs": 3, "image_size": 32, "batch_size": 8,
     "workers": 0, "device": "cpu"}
)  # fmt: skip
TINY_WORDS = (
    "--model", NETWORK, "--weights", "none", "--recipe", "quick", "--epochs", "3", "--image-size", "32",
    "--batch-size", "8", "--workers", "0", "--device", "cpu",
)  # fmt: skip
MACHINE = MappingProxyType({"workers": 0, "device": "cpu"})
MACHINE_WORDS = ("--workers", "0", "--device", "cpu")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Three classes of 16 images each, a folder per class."""
    folder = tmp_path_factory.mktemp("workflows") / "photos"
    for name, color in COLORS.items():
        for number in range(16):
            paint(folder / name / f"{name}_{number:02d}.jpg", color, number)
    return folder


@pytest.fixture(scope="session")
def run(photos) -> ev2.Run:
    return ev2.train(
        photos,
        output=photos.with_name("run"),
        seed=1,
        lr=0.01,
        crop_mode="center",
        settings={"progressive.stages": 2, "progressive.image_size": {"start": 32, "end": 40}},
        **TINY,
    )


@pytest.fixture(scope="session")
def documented(tmp_path_factory, photos, run) -> Path:
    """The files that pages and docstrings name: part of a clone, images and runs. Tests copy the folder."""
    folder, land_cover = tmp_path_factory.mktemp("documented"), ROOT / "examples/land_cover"
    (folder / "examples/land_cover/images").mkdir(parents=True)
    (folder / "examples/weights").symlink_to(ROOT / "examples/weights")
    shown = {found for page in PAGES for found in re.findall(r"images/\d+\.jpg", page.read_text("utf-8"))}
    with open(land_cover / "images.csv", newline="") as file:
        header, *rows = csv.reader(file)
    saved = [row for number, row in enumerate(rows) if number < 40 or row[0] in shown]
    with open(folder / "examples/land_cover/images.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *saved])
    for path, *_ in saved:
        shutil.copy(land_cover / path, folder / "examples/land_cover" / path)
    for images in ("photos", "test"):
        shutil.copytree(photos, folder / images)
    for images in ("new_photos", "unlabeled"):
        (folder / images).mkdir()
        for number, image in enumerate(sorted(photos.rglob("*.jpg"))[::6], start=1):
            shutil.copy(image, folder / images / f"{number:04d}.jpg")
    for name in ("mine", "notebook"):
        shutil.copytree(run.path, folder / "runs" / name)
    return folder
