"""Draw the embedded land-cover images from the whole set.

Run: python examples/make_land_cover.py FOLDER_WITH_TRAIN_CSV

FOLDER holds ``train.csv`` (path, label, latitude, longitude, year) and the images it names. The draw is
seeded, keeps the classes' proportions, and writes 160 px JPEG files and ``images.csv`` next to this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from PIL import Image
from sklearn.model_selection import train_test_split

COUNT, SIDE_PX, SEED, JPEG_QUALITY = 600, 160, 0, 78


def main(source: Path, target: Path) -> None:
    """Draw, shrink, write."""
    table = pd.read_csv(source / "train.csv")
    drawn, _ = train_test_split(table, train_size=COUNT, stratify=table["label"], random_state=SEED)
    drawn = drawn.sort_index().reset_index(drop=True)
    (target / "images").mkdir(parents=True, exist_ok=True)
    names = []
    for path in drawn["path"]:
        name = f"images/{Path(path).stem}.jpg"
        with Image.open(source / path) as picture:
            small = picture.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
        small.save(target / name, quality=JPEG_QUALITY, optimize=True)
        names.append(name)
    drawn.assign(path=names).round({"latitude": 5, "longitude": 5}).to_csv(target / "images.csv", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "land_cover")
