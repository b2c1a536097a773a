"""Draw the bundled satellite images from EuroSAT.

Run: python examples/make_satellite.py EUROSAT

EUROSAT holds a folder per class with 64 px JPEG files (Helber et al. 2019, https://github.com/phelber/EuroSAT). The
draw is seeded. The images are saved again at a lower JPEG quality, so that they take half of the space.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from PIL import Image

CLASSES = ("Highway", "Industrial", "PermanentCrop", "Residential", "River")
COUNT, SEED, JPEG_QUALITY = 500, 0, 80


def main(source: Path, target: Path) -> None:
    """Write ``COUNT`` images of each class."""
    for name in CLASSES:
        (target / name).mkdir(parents=True, exist_ok=True)
        files = sorted((source / name).iterdir())
        for file in random.Random(SEED).sample(files, COUNT):
            with Image.open(file) as image:
                image.save(target / name / file.name, quality=JPEG_QUALITY, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "satellite")
