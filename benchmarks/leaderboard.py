"""The entries of Imagenette's leaderboard and recipe ``quick`` on one machine: minutes to the entry's top-1.

Run: python -m benchmarks.leaderboard IMAGENETTE FASTAI_PYTHON [--models efficientnetv2_b0 ...]
         [--entry-lengths 5 20] [--seeds 3] [--record]
     python -m benchmarks.leaderboard IMAGENETTE FASTAI_PYTHON --smoke

Both sides train from scratch, up to 128 px, on the same images and cores. FASTAI_PYTHON is a Python with fastai and the
same torch version as here (``benchmarks/leaderboard_recipe.py``).

- the entry: ``xse_resnext50``, trained for 5 or 20 epochs as on the leaderboard of fastai/imagenette, with its own
  package and its published learning rate. On this machine, a few training images choose the fastest of fp32,
  channels-last and, with AVX-512, bf16, with 0 to 2 workers. Fewer epochs than 5 (``--entry-lengths``) are a smaller
  comparison; without a number (``--entry-lengths``), only quick is trained.
- quick: ``effnetv2 train --recipe quick --weights none`` with each of ``--models``, without tuning.

The target is the entry's own mean top-1 on val, measured here, after these epochs. The shortest of ``--lengths`` whose
mean top-1 over the seeds reaches it is compared. So the length of ``quick`` is chosen on the evaluated seeds and
images, and the length of the entry is published. A model that no length brings to the target gets no claim.
Architecture and augmentation differ, so this compares two ways to an accuracy, not two trainers. Claims:

- ``imagenette_E_epochs_top1_SIDE``: mean top-1; of the entry after E epochs, which is the target, and of each model
- ``imagenette_E_epochs_s_SIDE``: seconds of training to this top-1
- ``imagenette_E_epochs_speedup_MODEL``: seconds of the entry / seconds of the model
- ``imagenette_E_epochs_top1_gain_MODEL``: top-1 of the model − top-1 of the entry of the same seed, in points

The missing runs of a seed are trained at the same time, in slices of 15 seconds (``benchmarks.slices``): one runs, the
others are stopped. A seed is refused if the mean paces of the machine during two of its runs differ by more than a
tenth. Seconds of the entry are of training steps and waiting for images. Those of ``quick`` also have its validation
after each stage and its checkpoints. All runs are saved in OUT and are not repeated. The defaults take many hours per
seed on two cores without AVX-512, and all runs of a seed are in memory at once.

``--smoke`` tests the program in a temporary folder: few images of IMAGENETTE, two seeds, one format.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.arms import SAME_PACE, gain, over_seeds, ratio, rows_of
from benchmarks.in_turn import (
    Claim,
    Rows,
    first_reaching,
    mean_top1,
    our_side,
    peer_side,
    record_claims,
    rows_of_sides,
    seconds,
)
from benchmarks.paper.runs import Runs
from benchmarks.peers_training import Program, link_folders, once
from benchmarks.peers_tuning import here
from benchmarks.record import RESULTS, without_avx512

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.utils.io import write_text_atomically

ENTRY = "xse_resnext50"
_MODELS, _ENTRY_LENGTHS = ("efficientnetv2_b0",), (5, 20)
_LENGTHS = (10.0, 20.0, 40.0)
_RATE = 8e-3  # published
_EPOCH_S = {"entry": 1500, "quick": 160}  # about, on two cores without AVX-512
_FORMATS: Mapping[str, tuple[str, ...]] = {
    "fp32": (), "channels-last": ("--channels-last",), "channels-last bf16": ("--channels-last", "--bf16"),
}  # fmt: skip
_TIMED_IMAGES = 320
# Names of claims, from the epochs of the entry and a side.
_TOP1, _SECONDS, _SPEEDUP, _GAIN = (
    f"imagenette_{{}}_epochs_{what}_{{}}" for what in ("top1", "s", "speedup", "top1_gain")
)


def entry_of(options: argparse.Namespace, quick: tuple[str, ...]) -> Program:
    """The published program with this number format and number of workers."""
    recipe = Path(__file__).with_name("leaderboard_recipe.py")
    return Program(options.image_size, _RATE, quick, (str(options.python), str(recipe)))


def fastest(options: argparse.Namespace) -> dict[str, Any]:
    """The fastest number format and number of workers of the entry (``quick``), and images/s of all of them."""
    dataset = load_dataset(str(options.pictures))
    rows = rows_of(dataset, "train", _TIMED_IMAGES, 0)
    timing_images = link_folders(dataset, rows, rows[:32], options.output / "timed")
    speeds: dict[tuple[str, ...], float] = {}
    for (name, words), workers in itertools.product(_FORMATS.items(), "012"):
        if "--bf16" in words and without_avx512():
            continue  # many times slower than fp32 there
        side = entry_of(options, (*words, "--workers", workers))
        file = options.output / "tried" / f"{name.replace(' ', '_')}_{workers}.json"
        of = {"epochs": 1, "seed": 0}
        row = once(
            file,
            lambda side=side, of=of: side.trained(timing_images, **of),
            {**side.asked(timing_images, **of), "on": here()},
        )
        speeds[side.quick] = _TIMED_IMAGES / row["train_s"]
        print(f"{ENTRY}, {name}, {workers} workers: {speeds[side.quick]:.1f} images/s", flush=True)
    quick = max(speeds, key=lambda words: speeds[words])
    return {"on": here(), "quick": quick, "images_per_s": {" ".join(words): one for words, one in speeds.items()}}


def reach(rows: Mapping[str, Mapping[float, Rows]], epochs: int) -> dict[str, Rows]:
    """Rows of the entry after ``epochs``, and of each model that reaches the mean top-1 of the entry, by name."""
    found = {ENTRY: rows[ENTRY][epochs]}
    target = mean_top1(found[ENTRY])
    print(f"Target: {target:.1%}, the mean top-1 of {ENTRY} after {epochs} epochs")
    for name, lengths in rows.items():
        if name != ENTRY and (reached := first_reaching(lengths, target)):
            print(f"{name}: {mean_top1(reached[1]):.1%} after {reached[0]:g} epochs")
            found[name] = reached[1]
    return found


def claims(reached: Mapping[str, Rows], epochs: int) -> dict[str, Claim]:
    """Top-1 and seconds of each side, and each model's speedup and difference of top-1."""
    found = {}
    for name, rows in reached.items():
        found[_TOP1.format(epochs, name)] = Claim(over_seeds([row["top1"] for row in rows]), "fraction", rows)
        found[_SECONDS.format(epochs, name)] = Claim(over_seeds(seconds(rows)), "s", rows)
        if name != ENTRY:
            speedup = ratio(seconds(reached[ENTRY]), seconds(rows))
            found[_SPEEDUP.format(epochs, name)] = Claim(speedup, "ratio", [*reached[ENTRY], *rows])
            points = [[100 * row["top1"] for row in side] for side in (rows, reached[ENTRY])]
            found[_GAIN.format(epochs, name)] = Claim(gain(*points), "points", [*reached[ENTRY], *rows])
    return found


def measure(options: argparse.Namespace, chosen: Mapping[str, Any]) -> None:
    """Run what is not finished, print the claims, and record them with ``--record``."""
    runs = Runs(DataConfig(str(options.pictures)), options.seeds, "none", "cpu", options.output, print)
    program = entry_of(options, tuple(chosen["quick"]))
    entry = peer_side(ENTRY, program, options.entry_lengths, options.pictures, options.output, _EPOCH_S["entry"])
    models = [our_side(runs, options.image_size, options.lengths, _EPOCH_S["quick"], model) for model in options.models]
    rows = rows_of_sides([entry, *models], options.seeds, options.pace_limit)
    for name, lengths in rows.items():
        for epochs, of_seeds in lengths.items():
            results = ", ".join(f"{row['top1']:.1%} in {row['train_s'] / 60:.1f} minutes" for row in of_seeds)
            print(f"{name}, {epochs:g} epochs: {results}")
    reached = {epochs: reach(rows, epochs) for epochs in options.entry_lengths}
    found = {name: claim for epochs, sides in reached.items() for name, claim in claims(sides, epochs).items()}
    for name, claim in found.items():
        print(f"{name}: {claim.figure} {claim.unit}")
    if options.record:
        raw = {"when": time.strftime("%Y-%m-%d"), "format": chosen, "runs": rows}
        write_text_atomically(RESULTS / "leaderboard.json", json.dumps(raw, indent=1) + "\n")
        given = [(" --models ", options.models, _MODELS), (" --entry-lengths ", options.entry_lengths, _ENTRY_LENGTHS)]
        given += [(" --lengths ", options.lengths, _LENGTHS)]
        more_options = f" --seeds {options.seeds}"
        for name, value, default in given:
            if [*value] != [*default]:
                more_options += name + " ".join(str(one).removesuffix(".0") for one in value)
        names = [
            form.format(epochs, side.name)
            for form in (_TOP1, _SECONDS, _SPEEDUP, _GAIN)
            for epochs in options.entry_lengths for side in (entry, *models)
        ]  # fmt: skip
        record_claims(found, names, f"python -m benchmarks.leaderboard IMAGENETTE FASTAI_PYTHON{more_options} --record")


def smoke(options: argparse.Namespace) -> None:
    """Compare two seeds on 128 training and 32 validation images of 64 px, with the published rate."""
    options.image_size, options.seeds, options.pace_limit = 64, 2, math.inf
    options.entry_lengths, options.lengths = (1,), (1,)
    dataset = load_dataset(str(options.pictures))
    with tempfile.TemporaryDirectory() as folder:
        options.output = Path(folder)
        parts = [rows_of(dataset, split, count, 0) for split, count in (("train", 128), ("val", 32))]
        options.pictures = link_folders(dataset, *parts, options.output / "images")
        measure(options, {"quick": ("--channels-last", "--workers", "0")})


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, metavar="IMAGENETTE", help="train/ and val/ with a folder per class")
    parser.add_argument("python", type=Path, metavar="FASTAI_PYTHON", help="Python of an environment with fastai")
    parser.add_argument("--models", nargs="+", default=_MODELS)
    parser.add_argument("--entry-lengths", type=int, nargs="*", default=_ENTRY_LENGTHS, help="epochs of the entry")
    parser.add_argument("--lengths", type=float, nargs="+", default=_LENGTHS, help="epochs of quick to try")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "leaderboard")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and the raw rows")
    parser.add_argument("--smoke", action="store_true", help="test the program in about two minutes")
    parser.set_defaults(image_size=128, pace_limit=SAME_PACE)
    options = parser.parse_args()
    if options.record and (options.seeds < 2 or options.smoke or not options.entry_lengths):
        parser.error("--record is for 2 seeds or more and both sides, not for --smoke.")
    # Not resolved: the Python of an environment is a link.
    options.pictures, options.python = options.pictures.absolute(), options.python.absolute()
    return options


def main() -> None:
    options = _parsed()
    if options.smoke:
        smoke(options)
    else:
        measure(options, fastest(options) if options.entry_lengths else {"quick": ()})


if __name__ == "__main__":
    main()
