"""Error of random crops from images that ``--cache`` has shrunk, compared with crops of the originals.

Run: python -m benchmarks.cache_quality DATA [--record]

DATA is any dataset that ``effnetv2 train`` reads. Pillow cuts one random crop (at least 35 % of the area) of each of
500 images from the cached and the original image, at the same place, and resizes it to 128 px. The claims
``cache_detail_100_difference`` and ``cache_detail_50_difference`` are the mean absolute difference in gray levels (0 to
255), for a cache with full detail and with half (the default). For comparison, the benchmark prints the difference of a
crop that is shifted by half a pixel, because our crops start at whole pixels.
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

NUM_IMAGES, IMAGE_SIZE, AREA_MIN = 500, 128, 0.35


def crop(image: Image.Image, fractions: Box, beside: float = 0.0) -> np.ndarray:
    """A crop, given as fractions of the sides, shifted by ``beside`` pixels to the right, or left if only that fits."""
    width, height = image.size
    box = Box(fractions.left * width, fractions.top * height, fractions.right * width, fractions.bottom * height)
    shift = beside if box.right + beside <= width else -beside if box.left >= beside else 0.0
    moved = box._replace(left=box.left + shift, right=min(width, box.right + shift))
    return np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC, box=moved), dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    dataset = load_dataset(options.data)
    reader = source_reader(dataset)
    chosen = Key.of(0).generator().permutation(len(dataset))[:NUM_IMAGES].tolist()
    specs = {
        detail: CacheSpec.enough(image_size=IMAGE_SIZE, crop_mode="squash", area_min=AREA_MIN, detail=detail)
        for detail in (1.0, 0.5)
    }
    found: dict[object, list[float]] = {1.0: [], 0.5: [], "beside": []}
    for sample, uniforms in zip(chosen, Key.of(1).uniform_rows(chosen, CROP_UNIFORMS), strict=True):
        fractions = draw_crop(1, 1, AREA_MIN, ASPECT, uniforms)
        full = load_image(reader.source(sample))
        original = crop(full, fractions)
        for detail, spec in specs.items():
            cached = Image.fromarray(load_resized_image(reader.source(sample), spec.size))
            found[detail].append(float(np.abs(crop(cached, fractions) - original).mean()))
        found["beside"].append(float(np.abs(crop(full, fractions, beside=0.5) - original).mean()))
    for detail, spec in specs.items():
        low, high = interval(found[detail])
        value = float(np.mean(found[detail]))
        print(f"detail {detail:g}, {spec}: {value:.3f} grey levels ({low:.3f} to {high:.3f})")
        if options.record:
            record(
                f"cache_detail_{100 * detail:.0f}_difference", value, unit="grey levels", low=low, high=high,
                n=len(chosen), command="python -m benchmarks.cache_quality DATA --record",
            )  # fmt: skip
    print(f"half a pixel beside: {np.mean(found['beside']):.3f} grey levels")


if __name__ == "__main__":
    main()
