"""A clean dataset, to which tests add problems."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from efficientnetv2.data.dataset import ImageDataset, load_dataset

EACH = 52  # images per class


def scene(number: int, px: int = 64) -> Image.Image:
    """Return an image of random color patches with detail at each scale, so that it is not detected as enlarged."""
    rng = np.random.default_rng(number)
    patches = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    values = np.asarray(patches.resize((px, px), Image.Resampling.BICUBIC), dtype=np.float64)
    for side in (16, 32, 64):
        detail = Image.fromarray(rng.normal(0, 12, (side, side)).astype(np.float32))
        values = values + np.asarray(detail.resize((px, px), Image.Resampling.BICUBIC))[:, :, None]
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def clean_dataset(folder: Path) -> pd.DataFrame:
    """Write images of two classes, each with its own location and day. Pairs share a group; the last days are val."""
    rows = []
    for number in range(2 * EACH):
        name = f"{number:03d}.jpg"
        scene(number).save(folder / name, quality=92)
        day = pd.Timestamp("2020-01-01") + pd.Timedelta(days=number)
        rows.append(
            {
                "path": name,
                "label": "ab"[number % 2],
                "split": "val" if number >= 80 else "train",
                "latitude": float(number // 10 * 2),
                "longitude": float(number % 10 * 2),
                "date": day.date().isoformat(),
                "group": f"g{number // 2}",
            }
        )
    return pd.DataFrame(rows)


@dataclass
class Planted:
    """Copy of the clean dataset that a test may change.

    Args:
        folder: Folder of the images.
        table: Table of the images. ``read`` writes it to the folder.
    """

    folder: Path
    table: pd.DataFrame

    @classmethod
    def of(cls, clean_folder: Path, table: pd.DataFrame, folder: Path) -> Planted:
        shutil.copytree(clean_folder, folder, dirs_exist_ok=True)
        return cls(folder, table.copy())

    def add(self, name: str, like: int, **changes: object) -> None:
        """Add a row like another row, but with its own location, day and group."""
        further = len(self.table)
        row = self.table.iloc[like].to_dict() | {
            "path": name,
            "latitude": 60.0 + further % 5,
            "longitude": 100.0 + 2 * (further - 2 * EACH),
            "date": (pd.Timestamp("2019-01-01") + pd.Timedelta(days=further)).date().isoformat(),
            "group": f"own {further}",
        }
        self.table.loc[further] = row | changes  # type: ignore[index]

    def read(self, label_separator: str | None = None) -> ImageDataset:
        self.table.to_csv(self.folder / "pictures.csv", index=False)
        return load_dataset(
            self.folder / "pictures.csv",
            label_separator=label_separator,
            require_labels=False,
            for_training=False,
            strict_labels=True,
        )
