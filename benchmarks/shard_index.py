"""Cost of the index of a very large dataset: memory, and time until the first step.

Run: python -m benchmarks.shard_index [--record] [--pictures 13000000]

Makes an index as ``effnetv2 data pack`` would write it for ImageNet-21k: similar names and classes, 110 KB per image,
shards of 1 GB that are empty except for their size. A new process reads the index, compares it with the shards, selects
the training split and draws the order of an epoch. Memory is what this adds to a process after all imports.

- ``shard_index_file_mb``: size of the index file.
- ``shard_index_peak_mb``, ``shard_index_memory_mb``: memory at its peak, and at the end, when worker processes would be
  forked (they share it).
- ``shard_index_load_s``, ``shard_index_first_step_s``: seconds until the index is loaded, and until the first step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from benchmarks.record import RESULTS, record

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.data.readers import source_reader
from efficientnetv2.data.sampler import epoch_order
from efficientnetv2.data.shards.index import CHECKSUM, CONTENT, Shard, ShardIndex, save_index
from efficientnetv2.utils.random_key import Key

PICTURES = 13_000_000
CLASSES, PICTURE_BYTES, SHARD_BYTES = 21_841, 110_000, 1_000_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="--record takes only the default")
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record and options.pictures != PICTURES:
        parser.error(f"--record is for {PICTURES:,} pictures, as many as ImageNet-21k has.")
    if options.measure:
        print(json.dumps(measured(options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.pictures)
        size = (Path(folder) / "index.parquet").stat().st_size
        command = [sys.executable, "-m", "benchmarks.shard_index", "--measure", folder]
        found = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    found["file_mb"] = size / 1e6
    print(json.dumps(found, indent=1))
    if options.record:
        claims = {
            "shard_index_file_mb": ("file_mb", "MB"),
            "shard_index_memory_mb": ("memory_mb", "MB"),
            "shard_index_peak_mb": ("peak_mb", "MB"),
            "shard_index_load_s": ("load_s", "s"),
            "shard_index_first_step_s": ("first_step_s", "s"),
        }
        for name, (key, unit) in claims.items():
            value = found[key]
            record(name, value, unit=unit, low=value, high=value, n=1, command="python -m benchmarks.shard_index")
        (RESULTS / "shard_index.json").write_text(json.dumps(found, indent=1) + "\n")


def make(folder: Path, num_images: int) -> None:
    """Write the index, and shards without content."""
    rng = np.random.default_rng(0)
    cls = np.sort(rng.integers(0, CLASSES, num_images))
    wnid = np.char.add("n", np.char.zfill((cls * 457 + 1_440_764).astype(str), 8))
    number = np.char.add("_", rng.integers(1, 50_000, num_images).astype(str))
    sizes = rng.lognormal(np.log(PICTURE_BYTES), 0.5, num_images).astype(np.int64)
    order = rng.permutation(num_images)
    ends = np.cumsum(-(-sizes[order] // 512) * 512 + 5 * 512)
    shard = np.empty(num_images, dtype=np.int64)
    offset = np.empty(num_images, dtype=np.int64)
    shard[order] = ends // SHARD_BYTES
    offset[order] = ends % SHARD_BYTES
    counts = np.bincount(shard)
    whole = int(offset.max() + sizes.max()) + 10_240
    shards = tuple(Shard(f"train-{n:06d}.tar", whole, int(count)) for n, count in enumerate(counts))
    for one in shards:
        with open(folder / one.name, "wb") as file:
            file.truncate(whole)
    table = pd.DataFrame(
        {
            "path": np.char.add(np.char.add(np.char.add(wnid, "/"), wnid), np.char.add(number, ".JPEG")),
            "label": wnid,
            "split": np.where(rng.random(num_images) < 0.01, "val", "train"),
            "shard": shard,
            "shard_offset": offset,
            "shard_bytes": sizes,
            CONTENT: rng.integers(0, 2**63, num_images),
            CHECKSUM: rng.integers(0, 2**32, num_images, dtype=np.uint32),
        }
    )
    table["path"] = table["path"] + "?" + table.index.astype(str)  # numbers may repeat, names must not
    save_index(ShardIndex(table, shards), folder / "index.parquet")


def measured(folder: str) -> dict[str, float]:
    """Measure in the new process."""
    reset = Path("/proc/self/clear_refs")
    reset.write_text("5")  # reset the peak of the imports
    before, began = status_kb("VmRSS"), time.perf_counter()
    marks = {}

    def mark(name: str) -> None:
        marks[name] = time.perf_counter() - began

    dataset = load_dataset(folder)
    mark("load_s")
    found = validate_images(dataset)
    assert not len(found.unreadable)
    mark("checked_s")
    del found
    train = dataset.subset("train")
    reader = source_reader(train)
    mark("subset_s")
    order = epoch_order(train.labels, None, Key.of(0), 0)
    mark("first_step_s")
    peak, now = status_kb("VmHWM"), status_kb("VmRSS")
    del reader, order
    return {"pictures": len(dataset), **marks, "peak_mb": (peak - before) / 1e3, "memory_mb": (now - before) / 1e3}


def status_kb(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key)))


if __name__ == "__main__":
    main()
