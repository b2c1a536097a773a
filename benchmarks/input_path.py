"""Speed from image files to augmented float batches on one core: ours, timm and torchvision with training transforms.

Run: python -m benchmarks.input_path DATA [--runs 3] [--record]
     python -m benchmarks.input_path [DATA] --as-is [--image-size 224] [--json]

Each side opens, decodes, crops 8 to 100 % of the area, resizes (bilinear, antialiased), flips, applies RandAugment
with two operations of magnitude 9, normalizes and stacks. Files are in the page cache. timm applies each drawn
operation with probability 1/2 (``rand-m9-mstd0.5``, from its documentation). torchvision and ours always apply it. The
cached side reads decoded images from memory, as with ``--cache ram`` at this size. Filling the cache is not timed.

DATA is a folder of images. The benchmark makes JPEG files of 500 x 375 px from some of them, with about as many bytes
per pixel as Imagenette. Rounds alternate. A run gives the median and quartiles of its rounds, in images per second of
ours / images per second of the other. Runs take some minutes and differ more than rounds. Claims
(``input_{128,300}px_vs_{timm,torchvision}``, ``input_128px_cached_vs_timm``; on a processor without AVX-512 with
``_without_avx512``): the median of the runs, from the lowest to the highest quartile. The steps of ours are also timed
separately.

With ``--as-is``, one run reads any DATA that ``effnetv2 train`` accepts, without resized copies. The default DATA is
the images of the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from benchmarks.record import RESULTS, hardware, installed, record, without_avx512
from benchmarks.train_step import OURS, Speeds
from PIL import Image
from torch import Tensor

from efficientnetv2.data.cache_writer import CacheJob, CacheSpec, cache_in_memory
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.decode import ASPECT, CROP_UNIFORMS, draw_crop
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.data.image_io import open_stored
from efficientnetv2.data.loader import TrainingImages
from efficientnetv2.data.readers import Reader, source_reader
from efficientnetv2.data.sampler import BatchRequest
from efficientnetv2.evaluation.evaluation_result import library_versions
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.training.initial_weights import EXAMPLES
from efficientnetv2.transforms.pipeline import AugmentPlan, augment
from efficientnetv2.utils.benchmark import TimingStats, interleave
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.memory import free_bytes
from efficientnetv2.utils.optional_deps import import_torchvision
from efficientnetv2.utils.random_key import Key

IMAGES, SIZE, QUALITY = 256, (500, 375), 95
ROUNDS = 15
_RUNS = 3
CACHED, _TORCHVISION = f"{OURS} cached", "torchvision v2"
# Crops of Inception; RandAugment of timm's documentation, for all sides.
AREA_MIN, MAGNITUDE, LAYERS, TIMM_RANDAUGMENT = 0.08, 9, 2, "rand-m9-mstd0.5"
# Default detail of ``--cache ram``; fraction of free memory that the cache may use. Ours.
_CACHE_RESOLUTION, _MEMORY_FRACTION = 0.5, 0.5
KEY = Key.of(0)

Round = Callable[[], None]


@dataclass(frozen=True)
class Reading:
    """The images of a round: each image of the dataset once, as squares of ``image_size``."""

    dataset: ImageDataset
    image_size: int
    batch_size: int = 64

    def batches(self) -> Iterator[range]:
        """Row numbers of each batch. The last batch may be smaller."""
        for first in range(0, len(self.dataset), self.batch_size):
            yield range(first, min(first + self.batch_size, len(self.dataset)))

    def sides(self, *, cached: bool = True) -> dict[str, Round]:
        """Side -> a function for a round, for each installed library. The cached side decodes its images first.

        Raises:
            InputError: The cache does not fit into memory.
        """
        sides = {"timm": timm_round(self)} if importlib.util.find_spec("timm") else {}
        if hasattr(import_torchvision("io"), "decode_image"):  # its decoders are deprecated
            sides[_TORCHVISION] = torchvision_round(self)
        sides[OURS] = Ours.of(self).round_
        if cached:
            sides[CACHED] = Ours.of(self, kept_in_memory(self)).round_
        return sides


def timm_round(reading: Reading) -> Round:
    """Training transform of timm's ``create_transform``, on single Pillow images."""
    from timm.data.transforms_factory import create_transform

    transform = create_transform(
        reading.image_size, is_training=True, scale=(AREA_MIN, 1), auto_augment=TIMM_RANDAUGMENT
    )

    def load(source: bytes | Path) -> Tensor:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            transformed: Tensor = transform(image.convert("RGB"))
            return transformed

    return _stacked(reading, load)


def torchvision_round(reading: Reading) -> Round:
    """Transforms v2 of torchvision, on single tensors from its decoder, which is faster than Pillow images."""
    tv_io, v2 = import_torchvision("io"), import_torchvision("transforms.v2")
    means = Preprocessing(image_size=reading.image_size)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(reading.image_size, scale=(AREA_MIN, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(num_ops=LAYERS, magnitude=MAGNITUDE),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(means.mean, means.std),
        ]
    )

    def load(source: bytes | Path) -> Tensor:
        encoded = source if isinstance(source, bytes) else source.read_bytes()
        buffer = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        transformed: Tensor = transform(tv_io.decode_image(buffer, mode=tv_io.ImageReadMode.RGB))
        return transformed

    stacked = _stacked(reading, load)

    def round_() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its decoders
            stacked()

    return round_


def _stacked(reading: Reading, load: Callable[[bytes | Path], Tensor]) -> Round:
    reader = source_reader(reading.dataset)

    def source(number: int) -> bytes | Path:
        encoded = reader.source(number)
        return encoded if isinstance(encoded, bytes) else Path(str(encoded))

    def round_() -> None:
        for numbers in reading.batches():
            torch.stack([load(source(number)) for number in numbers])

    return round_


@dataclass
class Ours:
    """Our pipeline, as ``train`` reads and augments. Each round has other random draws."""

    pictures: TrainingImages
    reading: Reading
    rounds: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def of(cls, reading: Reading, reader: Reader | None = None) -> Ours:
        """Read the files, or use another reader."""
        preprocessing = Preprocessing(reading.image_size, crop_mode="center", interpolation="bilinear")
        return cls(TrainingImages(reading.dataset, preprocessing, AREA_MIN, KEY, reader=reader), reading)

    def requests(self) -> list[BatchRequest]:
        """One request per batch of the next round."""
        number = next(self.rounds)
        setting = StepSettings(image_size=self.reading.image_size, randaugment=MAGNITUDE)
        batches = [np.array(samples, np.int64) for samples in self.reading.batches()]
        return [BatchRequest(0, 0, setting, samples, np.full_like(samples, number)) for samples in batches]

    def augmented(self, request: BatchRequest, images: Tensor, labels: Tensor) -> Tensor:
        """Flip, RandAugment and normalize: a float batch."""
        batch, _ = augment(
            images,
            labels,
            setting=request.setting,
            key=KEY,
            ids=request.ids,
            mix_key=KEY,
            plan=AugmentPlan(randaugment_layers=LAYERS),
            preprocessing=self.pictures.preprocessing,
            num_classes=len(self.reading.dataset.class_names),
        )
        return batch

    def round_(self) -> None:
        """From files to float batches."""
        for request in self.requests():
            batch = self.pictures.batch(request)
            self.augmented(request, batch.images, batch.labels)


def kept_in_memory(reading: Reading) -> Reader:
    """Reader of images that are decoded once and resized to the size that crops need.

    Raises:
        InputError: The images do not fit into memory.
    """
    dataset = reading.dataset
    job = CacheJob(
        reader=source_reader(dataset),
        count=len(dataset),
        spec=CacheSpec.enough(
            image_size=reading.image_size, crop_mode="center", area_min=AREA_MIN, detail=_CACHE_RESOLUTION
        ),
        threads=1,
    )
    cache = cache_in_memory(job, room_bytes=int(_MEMORY_FRACTION * free_bytes(torch.device("cpu"))))
    return cache.reader(np.arange(len(dataset)), source_reader(dataset))


def able(sides: dict[str, Round], say: Callable[[str], object]) -> dict[str, Round]:
    """The sides that can read all images, tested with a round. Other libraries support fewer formats."""
    found = {}
    for side, round_ in sides.items():
        try:
            round_()
        except (OSError, RuntimeError, ValueError) as error:
            if side.startswith(OURS) or isinstance(error, InputError):
                raise
            say(f"{side} is left out, because it can't read these images: {str(error).splitlines()[0]}")
        else:
            found[side] = round_
    return found


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Limit the process to one core, if the system allows it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        if cores:
            os.sched_setaffinity(0, {min(cores)})
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def sample(data: str | None, most: int) -> ImageDataset:
    """Readable training images, evenly spaced in DATA. None takes the images of the repository.

    Raises:
        InputError: DATA can't be read, or has no readable training images.
    """
    dataset = load_dataset(data or os.path.relpath(EXAMPLES / "land_cover/images.csv"))
    rows = np.flatnonzero(dataset.in_train)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))]
    chosen = dataset.select(rows)
    chosen = chosen.select(validate_images(chosen).readable)
    if not len(chosen):
        raise InputError(f"{dataset.source} has no readable training images. Give others as DATA.")
    return chosen


def make(data: Path, folder: Path) -> list[Path]:
    """Write images of one size, from all classes."""
    originals = sorted(data.rglob("*.[jJ][pP]*[gG]"))
    if len(originals) < IMAGES:
        raise SystemExit(f"{data} has {len(originals)} JPEG files; {IMAGES} are needed.")
    chosen = originals[:: len(originals) // IMAGES][:IMAGES]
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    files = []
    for number, path in enumerate(chosen):
        files.append(folder / ("one", "two")[number % 2] / f"{number:03d}.jpg")
        with Image.open(path) as image:
            resized = image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
        resized.save(files[-1], quality=QUALITY)
    size = sum(path.stat().st_size for path in files) / len(files)
    print(f"{len(files)} files of {SIZE[0]} x {SIZE[1]} px, {size / SIZE[0] / SIZE[1]:.2f} bytes per pixel")
    return files


def parts_of(ours: Ours) -> dict[str, float]:
    """Milliseconds per image of decoding, the rest of reading, and augmentation."""
    seconds = dict.fromkeys(("decode", "read", "augment"), 0.0)
    for request in ours.requests():
        started = time.perf_counter()
        decode(ours, request)
        decoded = time.perf_counter()
        batch = ours.pictures.batch(request)
        loaded = time.perf_counter()
        ours.augmented(request, batch.images, batch.labels)
        seconds["augment"] += time.perf_counter() - loaded
        seconds["decode"] += decoded - started
        seconds["read"] += loaded - decoded
    seconds["crop, resize"] = seconds.pop("read") - seconds["decode"]
    return {name: value / len(ours.pictures.labels) * 1e3 for name, value in seconds.items()}


def decode(ours: Ours, request: BatchRequest) -> None:
    """Decode without resizing, at the scale that each crop needs."""
    uniforms = KEY.fold("crop").uniform_rows(request.ids, CROP_UNIFORMS)
    for number, row in zip(request.samples, uniforms, strict=True):
        with open_stored(ours.pictures.reader.source(int(number))) as stored:
            box = draw_crop(stored.width, stored.height, AREA_MIN, ASPECT, row)
            reduction = min(box.width, box.height) / request.setting.image_size
            scale = max(candidate for candidate in stored.scales if candidate <= max(1, reduction))
            stored.pixels(scale, False, math.ceil(box.bottom) + scale)


def measured(folder: Path) -> dict[str, TimingStats]:
    """A run at both sizes: claim -> ratio. Prints the speeds and the steps of ours."""
    found: dict[str, TimingStats] = {}
    dataset = load_dataset(folder)
    for px in (128, 300):
        reading = Reading(dataset, px)
        sides = reading.sides(cached=px == 128)
        speeds = Speeds(interleave(sides, rounds=ROUNDS), len(dataset))
        print(f"{px} px:", *speeds.lines(), sep="\n")
        claims = {"vs_timm": (OURS, "timm"), "cached_vs_timm": (CACHED, "timm"), "vs_torchvision": (OURS, _TORCHVISION)}
        ratios = {
            f"input_{px}px_{name}{without_avx512()}": speeds.ahead_of(other, ours=side)
            for name, (side, other) in claims.items()
            if {side, other} <= sides.keys()
        }
        for name, stats in ratios.items():
            print(f"{name}: {stats.median:.2f} ({stats.low:.2f} to {stats.high:.2f})", flush=True)
        found |= ratios
        ours = Ours.of(reading)
        parts = [parts_of(ours) for _ in range(5)]
        medians = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
        text = ", ".join(f"{name} {value:.3f}" for name, value in medians.items())
        print(f"  parts of ours, ms an image: {text}")
    return found


def as_is(options: argparse.Namespace) -> None:
    """Measure DATA without resized copies. Prints JSON or lines."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    dataset = sample(options.data, options.images)
    say(f"Measured on {len(dataset)} images of {dataset.source}.")
    sizes = []
    for px in options.image_size or (128, 300):
        sides = able(Reading(dataset, px).sides(), say)
        speeds = Speeds(interleave(sides, rounds=options.rounds), len(dataset))
        result = speeds.to_json()
        for side, values in result["sides"].items():
            values["cached_ahead"] = asdict(speeds.ahead_of(side, ours=CACHED))
        sizes.append({"image_size": px, **result})
        if not options.json:
            print(f"{px} px:", *speeds.lines(), sep="\n", flush=True)
    facts = {"data": dataset.source, "images": len(dataset), "rounds": options.rounds}
    if options.json:
        print(json.dumps(facts | {"versions": library_versions(), "sizes": sizes}))


def keep(runs: Sequence[Mapping[str, TimingStats]]) -> None:
    """Record the claims, and write the ratios of each run."""
    more = "" if len(runs) == _RUNS else f" --runs {len(runs)}"
    for name in runs[0]:
        run_stats = [run[name] for run in runs]
        record(
            name,
            statistics.median(stats.median for stats in run_stats),
            unit="ratio",
            low=min(stats.low for stats in run_stats),
            high=max(stats.high for stats in run_stats),
            n=sum(stats.rounds for stats in run_stats),
            command=f"python -m benchmarks.input_path DATA{more} --record",
            versions=installed("timm"),
        )
    rows = [{name: asdict(stats) for name, stats in run.items()} for run in runs]
    raw = {"when": time.strftime("%Y-%m-%d"), "hardware": hardware(), "runs": rows}
    (RESULTS / f"input_path{without_avx512()}.json").write_text(json.dumps(raw, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", nargs="?", help="folder of JPEG files, or with --as-is any DATA")
    add("--runs", type=int, default=_RUNS)
    add("--record", action="store_true", help="write results/summary.json and the ratios of each run")
    other = parser.add_argument_group("original files, not recorded")
    other.add_argument("--as-is", action="store_true", help="read the original files of DATA, not resized copies")
    other.add_argument("--image-size", type=int, action="append", help="may be repeated (default: 128 and 300)")
    other.add_argument("--images", type=int, default=IMAGES, help="images per round, evenly spaced in DATA")
    other.add_argument("--rounds", type=int, default=7)
    other.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.record and options.as_is:
        parser.error("--record is for files of one size: leave out --as-is.")
    if options.data is None and not options.as_is:
        parser.error("give a folder of JPEG files as DATA, or add --as-is.")
    with one_core():
        if options.as_is:
            try:
                as_is(options)
            except InputError as error:
                parser.error(str(error))
            return
        with tempfile.TemporaryDirectory() as folder:
            make(Path(options.data), Path(folder))
            runs = [measured(Path(folder)) for _ in range(options.runs)]
    if options.record:
        keep(runs)


if __name__ == "__main__":
    main()
