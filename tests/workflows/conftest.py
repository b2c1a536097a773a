"""A tiny dataset, and a run of the Python API on it."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest
from tests.command_line import NETWORK
from tests.conftest import COLORS, paint

import efficientnetv2 as ev2

# The least that goes the whole way, and the same words for the command line.
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
