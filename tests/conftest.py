"""What tests share: small pictures on disk; the command line is in ``command_line``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

# How long an example takes says more about the machine than about the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# Tests run beside each other and beside data workers: a thread each is fastest, and exact.
torch.set_num_threads(1)


def paint(path: Path, colour: tuple[int, int, int], number: int = 0, px: int = 48) -> Path:
    """A noisy picture of one colour: easy to learn, different for every number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(abs(hash((colour, number))) % 2**32).integers(-40, 40, (px, px, 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


COLOURS = {"red": (200, 60, 60), "green": (60, 190, 60), "blue": (50, 70, 200)}


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Three classes of 16 pictures each, a folder per class."""
    for name, colour in COLOURS.items():
        for number in range(16):
            paint(tmp_path / "pictures" / name / f"{name}_{number:02d}.jpg", colour, number)
    return tmp_path / "pictures"
