"""From a file to augmented float batches on one core: ours against timm's training transform.

Run: python -m benchmarks.input_path DATA [--record]

DATA is a folder of pictures; of some of them JPEG files of 500 x 375 px are made, at a quality that gives about the
bytes per pixel of Imagenette's files. Both sides do, from a warm page cache, the whole of: open, decode, random crop
of 8 to 100 % of the area, bilinear antialiased resize, flip, RandAugment with two layers of magnitude 9, normalise,
stack into float batches of 64. timm: ``create_transform`` with ``rand-m9-mstd0.5``, which applies each drawn
operation with probability 1/2; ours always applies it, so ours does more work there. Ours cached: from pictures kept
decoded in memory, as ``--cache ram`` keeps them for this size; filling is not counted. Rounds alternate; the ratio
is of images per second, its interval the quartiles of the rounds. Parts of ours are timed apart.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from benchmarks.record import record
from PIL import Image
from timm.data import create_transform

from efficientnetv2.augment.pipeline import AugmentPlan, augment
from efficientnetv2.base.keys import Key
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.base.timing import Spread, alternate, ratio
from efficientnetv2.data.cache import Kept
from efficientnetv2.data.decode import ASPECT, CROP_UNIFORMS, draw_crop
from efficientnetv2.data.filling import Order, in_memory
from efficientnetv2.data.loader import TrainingPictures
from efficientnetv2.data.manifest import Manifest, read
from efficientnetv2.data.pictures import stored
from efficientnetv2.data.readers import Reader, originals
from efficientnetv2.data.sampling import Request
from efficientnetv2.progressive import Setting

PICTURES, SIZE, QUALITY = 256, (500, 375), 95
BATCH, ROUNDS, AREA_MIN = 64, 15, 0.08
CACHE_DETAIL = 0.5  # as ``--cache ram`` without further words
KEY = Key.of(0)


def make(data: Path, folder: Path) -> list[Path]:
    """Pictures of one size; every class gives some."""
    originals = sorted(data.rglob("*.[jJ][pP]*[gG]"))
    if len(originals) < PICTURES:
        raise SystemExit(f"{data} has {len(originals)} JPEG files; {PICTURES} are needed.")
    chosen = originals[:: len(originals) // PICTURES][:PICTURES]
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    made = []
    for number, path in enumerate(chosen):
        made.append(folder / ("one", "two")[number % 2] / f"{number:03d}.jpg")
        with Image.open(path) as image:
            resized = image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
        resized.save(made[-1], quality=QUALITY)
    size = sum(path.stat().st_size for path in made) / len(made)
    print(f"{len(made)} files of {SIZE[0]} x {SIZE[1]} px, {size / SIZE[0] / SIZE[1]:.2f} bytes per pixel")
    return made


def theirs(files: list[Path], px: int) -> Callable[[], None]:
    """A round of timm's."""
    transform = create_transform(px, is_training=True, auto_augment="rand-m9-mstd0.5")

    def one(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            return transform(image.convert("RGB"))

    def round_() -> None:
        for first in range(0, len(files), BATCH):
            torch.stack([one(path) for path in files[first : first + BATCH]])

    return round_


@dataclass
class Ours:
    """Our way, and its parts.

    Args:
        pictures: that read crops.
        px: side of the square.
    """

    pictures: TrainingPictures
    px: int
    turns: itertools.count = field(default_factory=itertools.count)

    @classmethod
    def of(cls, manifest: Manifest, px: int, reader: Reader | None = None) -> Ours:
        """Read from files, or by another reader."""
        preprocessing = Preprocessing(px, framing="crop", interpolation="bilinear")
        return cls(TrainingPictures(manifest, preprocessing, AREA_MIN, KEY, reader=reader), px)

    def requests(self) -> list[Request]:
        """All pictures once, other draws for every round."""
        number = next(self.turns)
        setting = Setting(image_px=self.px, randaugment=9.0)
        everything = np.arange(len(self.pictures.labels), dtype=np.int64)
        return [
            Request(0, 0, setting, samples, np.full_like(samples, number))
            for samples in np.split(everything, range(BATCH, len(everything), BATCH))
        ]

    def augmented(self, request: Request, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Flip, RandAugment, normalise."""
        augment(
            images,
            labels,
            setting=request.setting,
            key=KEY,
            ids=request.ids,
            mix_key=KEY,
            plan=AugmentPlan(),
            preprocessing=self.pictures.preprocessing,
            num_classes=2,
        )

    def round_(self) -> None:
        """From files to float batches."""
        for request in self.requests():
            batch = self.pictures.batch(request)
            self.augmented(request, batch.images, batch.labels)

    def parts(self) -> dict[str, float]:
        """Milliseconds a picture of decoding, of all else that reading does, and of augmenting."""
        seconds = dict.fromkeys(("decode", "read", "augment"), 0.0)
        for request in self.requests():
            started = time.perf_counter()
            self._decode(request)
            decoded = time.perf_counter()
            batch = self.pictures.batch(request)
            was_read = time.perf_counter()
            self.augmented(request, batch.images, batch.labels)
            seconds["augment"] += time.perf_counter() - was_read
            seconds["decode"] += decoded - started
            seconds["read"] += was_read - decoded
        seconds["crop, resize"] = seconds.pop("read") - seconds["decode"]
        return {name: value / len(self.pictures.labels) * 1e3 for name, value in seconds.items()}

    def _decode(self, request: Request) -> None:
        """The same decoding without resizing: each picture at the scale that its crop needs."""
        uniforms = KEY.fold("crop").uniform_rows(request.ids, CROP_UNIFORMS)
        for sample, row in zip(request.samples, uniforms, strict=True):
            with stored(self.pictures.reader.source(int(sample))) as picture:
                box = draw_crop(picture.width, picture.height, AREA_MIN, ASPECT, row)
                spare = min(box.width, box.height) / self.px
                scale = max(one for one in picture.scales if one <= max(1, spare))
                picture.pixels(scale, False, math.ceil(box.bottom) + scale)


def kept_in_memory(manifest: Manifest, px: int) -> Reader:
    """The same pictures, decoded."""
    order = Order(
        reader=originals(manifest),
        count=len(manifest),
        kept=Kept.enough(image_px=px, framing="crop", area_min=AREA_MIN, detail=CACHE_DETAIL),
        threads=1,
        say=print,
        counting=lambda _what, _count: contextlib.nullcontext(lambda _done: None),
    )
    filled = in_memory(order, room_bytes=1 << 30)
    return filled.reader(np.arange(len(manifest)), originals(manifest))


def compare(px: int, sides: Mapping[str, Callable[[], None]], *, pictures: int, recorded: bool) -> None:
    """Measure the sides, print the ratios of timm's time to theirs, and record them."""
    seconds = alternate(sides, rounds=ROUNDS)
    for side, rounds in seconds.items():
        print(f"  {side}: {Spread.of([value / pictures * 1e3 for value in rounds])} ms")
    for side, name in (("ours", f"input_{px}px_vs_timm"), ("ours cached", f"input_{px}px_cached_vs_timm")):
        if side not in sides:
            continue
        found = ratio(seconds, of=side, to="timm")
        print(f"{name}: {found.median:.2f} ({found.low:.2f} to {found.high:.2f})")
        if recorded:
            record(
                name,
                found.median,
                unit="ratio",
                low=found.low,
                high=found.high,
                n=found.rounds,
                command="python -m benchmarks.input_path DATA --record",
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of JPEG files")
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        files = make(options.data, Path(folder))
        manifest = read(folder)
        for px in (128, 300):
            ours = Ours.of(manifest, px)
            sides = {"timm": theirs(files, px), "ours": ours.round_}
            if px == 128:
                sides["ours cached"] = Ours.of(manifest, px, kept_in_memory(manifest, px)).round_
            print(f"{px} px, milliseconds a picture:")
            compare(px, sides, pictures=len(files), recorded=options.record)
            parts = [ours.parts() for _ in range(5)]
            medians = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
            print("  parts of ours: " + ", ".join(f"{name} {value:.3f}" for name, value in medians.items()))


if __name__ == "__main__":
    main()
