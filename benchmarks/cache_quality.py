"""What shrinking costs: random crops of images as ``--cache`` keeps them, next to the same crops of the originals.

Run: python -m benchmarks.cache_quality DATA [--record]

DATA is anything that ``effnetv2 train`` takes. Of each of 500 images one random crop (35 % of the area or more) is
made 128 px large from both, by Pillow, at exactly the same place; the figure is the mean absolute difference in grey
levels, of 255. Kept with the detail for all crops, and for half of them (the default). For scale: what a crop that
is shifted by half a pixel differs by, since ours are cut at whole pixels.
"""

from __future__ import annotations

import argparse

import numpy as np
from benchmarks.record import interval, record
from PIL import Image

from efficientnetv2.data.cache_writer import CacheSpec
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.decode import ASPECT, CROP_UNIFORMS, Box, draw_crop, load_image, load_resized_image
from efficientnetv2.data.readers import source_reader
from efficientnetv2.utils.random_key import Key

PICTURES, IMAGE_SIZE, AREA_MIN = 500, 128, 0.35


def crop(picture: Image.Image, part: Box, beside: float = 0.0) -> np.ndarray:
    """A part given in shares of the sides, ``beside`` pixels from its place where there is room."""
    across, down = picture.size
    box = Box(part.left * across, part.top * down, part.right * across, part.bottom * down)
    shift = beside if box.right + beside <= across else -beside if box.left >= beside else 0.0
    moved = box._replace(left=box.left + shift, right=min(across, box.right + shift))
    return np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC, box=moved), dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    dataset = load_dataset(options.data)
    reader = source_reader(dataset)
    chosen = Key.of(0).generator().permutation(len(dataset))[:PICTURES].tolist()
    kept = {
        detail: CacheSpec.enough(image_size=IMAGE_SIZE, crop_mode="squash", area_min=AREA_MIN, detail=detail)
        for detail in (1.0, 0.5)
    }
    found: dict[object, list[float]] = {1.0: [], 0.5: [], "beside": []}
    for sample, uniforms in zip(chosen, Key.of(1).uniform_rows(chosen, CROP_UNIFORMS), strict=True):
        part = draw_crop(1, 1, AREA_MIN, ASPECT, uniforms)
        whole = load_image(reader.source(sample))
        original = crop(whole, part)
        for detail, size in kept.items():
            small = Image.fromarray(load_resized_image(reader.source(sample), size.size))
            found[detail].append(float(np.abs(crop(small, part) - original).mean()))
        found["beside"].append(float(np.abs(crop(whole, part, beside=0.5) - original).mean()))
    for detail, size in kept.items():
        low, high = interval(found[detail])
        value = float(np.mean(found[detail]))
        print(f"detail {detail:g}, {size}: {value:.3f} grey levels ({low:.3f} to {high:.3f})")
        if options.record:
            record(
                f"cache_detail_{100 * detail:.0f}_difference", value, unit="grey levels", low=low, high=high,
                n=len(chosen), command="python -m benchmarks.cache_quality DATA --record",
            )  # fmt: skip
    print(f"half a pixel beside: {np.mean(found['beside']):.3f} grey levels")


if __name__ == "__main__":
    main()
