"""From a file to augmented float batches on one core: ours against timm's training transform.

Run: python -m benchmarks.input_path DATA [--record]

DATA is a folder of pictures; of some of them JPEG files of 500 x 375 px are made, at a quality that gives about the
bytes per pixel of Imagenette's files. The sides are those of ``effnetv2 bench input`` (``commands.bench_input`` says
what each does), from a warm page cache: the whole way from a file to float batches of 64. Cached: from pictures kept
decoded in memory, as ``--cache ram`` keeps them for this size; filling is not counted. Rounds alternate; the ratio
is of images per second, its interval the quartiles of the rounds. Parts of ours are timed apart.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.record import record
from PIL import Image

from efficientnetv2.base.timing import Spread, alternate, ratio
from efficientnetv2.commands.bench_input import AREA_MIN, CACHED, KEY, Ours, Reading, one_core
from efficientnetv2.commands.bench_sides import OURS
from efficientnetv2.data.crops import ASPECT, CROP_UNIFORMS, draw_crop
from efficientnetv2.data.manifest import read
from efficientnetv2.data.pictures import stored
from efficientnetv2.data.sampling import Request

PICTURES, SIZE, QUALITY = 256, (500, 375), 95
ROUNDS = 15


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


def parts_of(ours: Ours) -> dict[str, float]:
    """Milliseconds a picture of decoding, of all else that reading does, and of augmenting."""
    seconds = dict.fromkeys(("decode", "read", "augment"), 0.0)
    for request in ours.requests():
        started = time.perf_counter()
        decode(ours, request)
        decoded = time.perf_counter()
        batch = ours.pictures.batch(request)
        was_read = time.perf_counter()
        ours.augmented(request, batch.images, batch.labels)
        seconds["augment"] += time.perf_counter() - was_read
        seconds["decode"] += decoded - started
        seconds["read"] += was_read - decoded
    seconds["crop, resize"] = seconds.pop("read") - seconds["decode"]
    return {name: value / len(ours.pictures.labels) * 1e3 for name, value in seconds.items()}


def decode(ours: Ours, request: Request) -> None:
    """The same decoding without resizing: each picture at the scale that its crop needs."""
    uniforms = KEY.fold("crop").uniform_rows(request.ids, CROP_UNIFORMS)
    for sample, row in zip(request.samples, uniforms, strict=True):
        with stored(ours.pictures.reader.source(int(sample))) as picture:
            box = draw_crop(picture.width, picture.height, AREA_MIN, ASPECT, row)
            spare = min(box.width, box.height) / request.setting.image_px
            scale = max(one for one in picture.scales if one <= max(1, spare))
            picture.pixels(scale, False, math.ceil(box.bottom) + scale)


def compare(px: int, sides: Mapping[str, Callable[[], None]], *, pictures: int, recorded: bool) -> None:
    """Measure the sides, print the ratios of timm's time to ours, and record them."""
    seconds = alternate(sides, rounds=ROUNDS)
    for side, rounds in seconds.items():
        print(f"  {side}: {Spread.of([value / pictures * 1e3 for value in rounds])} ms")
    for side, name in ((OURS, f"input_{px}px_vs_timm"), (CACHED, f"input_{px}px_cached_vs_timm")):
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
    with one_core(), tempfile.TemporaryDirectory() as folder:
        files = make(options.data, Path(folder))
        manifest = read(folder)
        for px in (128, 300):
            reading = Reading(manifest, px)
            print(f"{px} px, milliseconds a picture:")
            compare(px, reading.sides(cached=px == 128), pictures=len(files), recorded=options.record)
            ours = Ours.of(reading)
            parts = [parts_of(ours) for _ in range(5)]
            medians = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
            print("  parts of ours: " + ", ".join(f"{name} {value:.3f}" for name, value in medians.items()))


if __name__ == "__main__":
    main()
