"""From a file to augmented float batches on one core: ours against timm's training transform.

Run: python -m benchmarks.input_path DATA [--runs 3] [--record]

DATA is a folder of pictures; of some of them JPEG files of 500 x 375 px are made, at a quality that gives about the
bytes per pixel of Imagenette's files. The sides are those of ``effnetv2 bench input`` (``commands.bench_input`` says
what each does), from a warm page cache: the whole way from a file to float batches of 64. Cached: from pictures kept
decoded in memory, as ``--cache ram`` keeps them for this size; filling is not counted. Rounds alternate; the ratio
is of images per second, of each run the median of its rounds and their quartiles. Runs, some minutes each, differ more
than rounds: what is claimed is the median of the runs, from the lowest quartile to the highest. Parts of ours are timed
apart.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.record import RESULTS, hardware, record
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
_RUNS = 3


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


def compare(px: int, sides: Mapping[str, Callable[[], None]], *, pictures: int) -> dict[str, Spread]:
    """Measure the sides, print their times; name -> the ratio of timm's time to ours over the rounds."""
    seconds = alternate(sides, rounds=ROUNDS)
    for side, rounds in seconds.items():
        print(f"  {side}: {Spread.of([value / pictures * 1e3 for value in rounds])} ms")
    named = {f"input_{px}px_vs_timm": OURS, f"input_{px}px_cached_vs_timm": CACHED}
    found = {name: ratio(seconds, of=side, to="timm") for name, side in named.items() if side in sides}
    for name, one in found.items():
        print(f"{name}: {one.median:.2f} ({one.low:.2f} to {one.high:.2f})", flush=True)
    return found


def measured(folder: Path, pictures: int) -> dict[str, Spread]:
    """A run: what ``compare`` says at both sizes, and the parts of ours beside it."""
    found: dict[str, Spread] = {}
    manifest = read(folder)
    for px in (128, 300):
        reading = Reading(manifest, px)
        print(f"{px} px, milliseconds a picture:")
        found |= compare(px, reading.sides(cached=px == 128), pictures=pictures)
        ours = Ours.of(reading)
        parts = [parts_of(ours) for _ in range(5)]
        medians = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
        print("  parts of ours: " + ", ".join(f"{name} {value:.3f}" for name, value in medians.items()))
    return found


def keep(runs: Sequence[Mapping[str, Spread]]) -> None:
    """Into the summary, and what each run came to beside it."""
    more = "" if len(runs) == _RUNS else f" --runs {len(runs)}"
    for name in runs[0]:
        each = [run[name] for run in runs]
        record(
            name,
            statistics.median(one.median for one in each),
            unit="ratio",
            low=min(one.low for one in each),
            high=max(one.high for one in each),
            n=sum(one.rounds for one in each),
            command=f"python -m benchmarks.input_path DATA{more} --record",
        )
    told = [{name: asdict(one) for name, one in run.items()} for run in runs]
    raw = {"when": time.strftime("%Y-%m-%d"), "hardware": hardware(), "runs": told}
    (RESULTS / "input_path.json").write_text(json.dumps(raw, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of JPEG files")
    parser.add_argument("--runs", type=int, default=_RUNS)
    parser.add_argument(
        "--record", action="store_true", help="write results/summary.json and input_path.json"
    )
    options = parser.parse_args()
    with one_core(), tempfile.TemporaryDirectory() as folder:
        files = make(options.data, Path(folder))
        runs = [measured(Path(folder), len(files)) for _ in range(options.runs)]
    if options.record:
        keep(runs)


if __name__ == "__main__":
    main()
