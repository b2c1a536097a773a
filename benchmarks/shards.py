"""Speed of reading shards / speed of reading files: 50,000 small images in random order, alternating.

Run: python -m benchmarks.shards [--record] [--cold] [--rounds 7]

Makes the images (2,000 distinct JPEGs of 96 px, each with 25 names, 10 class folders) and packs them. Each side then
reads the same requests as in training, in one process and one thread: crop, decode, resize to 64 px. A second
measurement reads only the bytes. Pages are warm: the first round of each side does not count. ``--cold`` drops the
pages of the files from the system's cache before each turn. Caches of the disk and of a virtual machine's host stay.

- ``shards_vs_files_warm``, ``shards_bytes_vs_files_warm``: ratios in training, and of the bytes; above 1, shards are
  faster. Median over rounds, with quartiles. ``--cold`` has ``_cold`` in the place of ``_warm``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from benchmarks.record import RESULTS, record_spread
from PIL import Image

from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.loader import TrainingImages
from efficientnetv2.data.readers import source_reader
from efficientnetv2.data.sampler import BatchRequest, TrainSampler
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule
from efficientnetv2.utils.benchmark import TimingStats, interleave, speed_ratio
from efficientnetv2.utils.random_key import Key

DISTINCT, CLASSES, STORED_SIZE, PX, BATCH = 2_000, 10, 96, 64, 50
SHARD_BYTES = 20_000_000
_ROUNDS = 7


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and the rounds")
    other = parser.add_argument_group("another measurement, to see that it runs; not to be recorded")
    other.add_argument("--pictures", type=int, default=50_000)
    other.add_argument("--round-pictures", type=int, default=10_000, help="images per side and round")
    options = parser.parse_args()
    names = ("pictures", "round_pictures")
    if options.record and any(getattr(options, name) != parser.get_default(name) for name in names):
        parser.error("--record is for 50,000 pictures, of which each side reads 10,000 in a round.")
    return options


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "files", options.pictures)
        write_shards(load_dataset(Path(folder) / "files"), Path(folder) / "shards", PackOptions(SHARD_BYTES))
        datasets = {name: load_dataset(Path(folder) / name) for name in ("shards", "files")}
        order = requests(datasets["files"], options.round_pictures)
        turns = {"training": training_reader, "bytes": bytes_reader}
        seconds = {}
        for what, work in turns.items():
            sides = {name: work(dataset, order) for name, dataset in datasets.items()}
            if options.cold:
                seconds[what] = alternate_cold(sides, options.rounds, Path(folder))
            else:
                seconds[what] = interleave(sides, rounds=options.rounds)
    cache = "cold" if options.cold else "warm"
    command = "python -m benchmarks.shards" + (" --cold" if options.cold else "")
    command += "" if options.rounds == _ROUNDS else f" --rounds {options.rounds}"
    for what, name in (("training", f"shards_vs_files_{cache}"), ("bytes", f"shards_bytes_vs_files_{cache}")):
        spread = speed_ratio(seconds[what], of="shards", to="files")
        rates = {
            side: TimingStats.of([options.round_pictures / one for one in times])
            for side, times in seconds[what].items()
        }
        print(f"{name}: {spread}; images/s: shards {rates['shards']}, files {rates['files']}")
        if options.record:
            record_spread(name, spread, unit="ratio", command=command)
    if options.record:
        raw = {"pictures_a_round": options.round_pictures, "seconds": seconds}
        (RESULTS / f"shards_vs_files_{cache}.json").write_text(json.dumps(raw, indent=1) + "\n")


def make(folder: Path, num_images: int) -> None:
    """Write class folders of small images, smooth with some noise, similar to photographs."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:STORED_SIZE, 0:STORED_SIZE] / STORED_SIZE
    contents = []
    for _ in range(min(DISTINCT, num_images)):
        phase = rng.random((3, 2)) * 12
        waves = np.stack([np.sin(a * x + b * y) for a, b in phase], axis=2)
        noisy = 128 + 90 * waves + rng.normal(0, 8, (STORED_SIZE, STORED_SIZE, 3))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    for cls in range(CLASSES):
        (folder / f"class_{cls}").mkdir(parents=True)
    for number in range(num_images):
        file = folder / f"class_{number % CLASSES}" / f"{number:06d}.jpg"
        file.write_bytes(contents[number % len(contents)])


def requests(dataset: ImageDataset, num_images: int) -> list[BatchRequest]:
    """Return the first requests of a run."""
    steps = num_images // BATCH
    return list(TrainSampler(dataset.labels, ProgressiveSchedule(image_size=PX), steps, BATCH, BATCH, None, Key.of(0)))


def training_reader(dataset: ImageDataset, order: list[BatchRequest]):
    """Return a function that reads the requests as in training."""
    images = TrainingImages(dataset, Preprocessing(image_size=PX), 0.3, Key.of(0))

    def work() -> None:
        for request in order:
            images.batch(request)

    return work


def bytes_reader(dataset: ImageDataset, order: list[BatchRequest]):
    """Return a function that reads only the bytes of the same images."""
    reader = source_reader(dataset)

    def work() -> None:
        for request in order:
            samples = request.samples.tolist()
            ahead = reader.ahead(samples)
            for sample in samples:
                source = ahead.source(sample)
                if isinstance(source, str):
                    Path(source).read_bytes()

    return work


def alternate_cold(sides: dict, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Time as ``interleave``, with the pages of all files dropped before each round. The sides have other files."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        drop_pages(folder)
        names = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name, times in interleave({name: sides[name] for name in names}, rounds=1, warmup=0).items():
            seconds[name] += times
    return seconds


def drop_pages(folder: Path) -> None:
    """Drop the content of the files from the system's cache; only content that is on the disk can be dropped."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


if __name__ == "__main__":
    main()
