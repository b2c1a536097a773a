"""Progressive image sizes in timm's train script, tuned, against recipe ``quick``: minutes to the same top-1.

Run: python -m benchmarks.timm_progressive IMAGENETTE TIMM_TRAIN_PY --tune
     python -m benchmarks.timm_progressive IMAGENETTE TIMM_TRAIN_PY [--seeds 5] [--record]
     python -m benchmarks.timm_progressive IMAGENETTE TIMM_TRAIN_PY --smoke

EfficientNetV2-B0 from scratch, up to 128 px. TIMM_TRAIN_PY is the train.py of timm's repository, which has
``--train-size-schedule progressive`` since July 2026: it draws the size of each batch from a window of the sizes that
moves from the first size to the last size during the run. Its regularization does not follow the size.

- timm: 10 epochs. The optimizer, the schedule, the regularization and the batch size are those that
  ``time_to_accuracy`` chose for the constant size (results/time_to_accuracy/tuned.json). ``--tune`` chooses the rest on
  images of train alone (a quarter of them for 20 epochs; 2,000 other images choose): the fastest format and number of
  workers on this machine; the sizes, the fastest that are at most a point below the best; compilation, if it is faster
  with changing sizes too; and the learning rate with the higher mean over two seeds, of the rate of the constant size
  and the rate that its tuning started from.
- quick: ``effnetv2 train --recipe quick --weights none`` without tuning. The first seed chooses the shortest of 2, 3,
  4, 5, 6, 8, 10 epochs that reaches timm's top-1. If the mean over all seeds does not reach timm's mean, the next
  length follows. Then once more, for the epochs that 95 % of timm's minutes allow by the times of the first seed.

The claims are ``time_to_timm_progressive_top1_speedup`` and ``same_minutes_top1_gain_over_timm_progressive``;
``time_to_accuracy`` defines them and the other conditions. Each row of timm has timm's version and the SHA-256 of
TIMM_TRAIN_PY. OUT stores all runs; finished runs are read again.

``--smoke`` tests the program in a temporary folder: few images of IMAGENETTE, two seeds, no tuning.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arms import SAME_PACE, rows_of
from benchmarks.in_turn import mean_top1, peer_side
from benchmarks.peers_training import Timm, link_folders
from benchmarks.peers_tuning import CHOOSING, at_first_rate, link_tuning_images, quickest, regime_of, tried_run, untuned
from benchmarks.progressive import NEARLY
from benchmarks.record import RESULTS, read
from benchmarks.time_to_accuracy import LADDER, measure, timm_of, tuned

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

_COMPILED = "--torchcompile"
# Fractions of the largest size, and further arguments.
_SIZES: Mapping[str, tuple[tuple[float, ...], tuple[str, ...]]] = {
    "three from half": ((0.5, 0.75, 1), ()),
    "three from half, in order": (
        (0.5, 0.75, 1),
        ("--train-size-schedule-spread", "0", "--train-size-random-mix", "0"),
    ),
    "five from half": ((0.5, 0.625, 0.75, 0.875, 1), ()),
    "three from three quarters": ((0.75, 0.875, 1), ()),
}


def size_schedule(label: str, image_size: int) -> tuple[str, ...]:
    """Arguments of timm's script for sizes of ``_SIZES``."""
    fractions, more = _SIZES[label]
    sizes = (str(round(image_size * fraction)) for fraction in fractions)
    return ("--train-img-sizes", *sizes, "--train-size-schedule", "progressive", *more)


def tune_schedule(options: argparse.Namespace) -> dict[str, Any]:
    """Tune the format, the sizes, compilation and the learning rate, with the other values of the constant size."""
    link_tuning_images(options)
    timm, speeds, on = quickest(options)
    parts = read(RESULTS / "time_to_accuracy/tuned.json")["timm"]["parts"]
    timm = replace(timm, parts={name: tuple(arguments) for name, arguments in parts.items()})
    sides = {label: timm.with_part("sizes", size_schedule(label, options.image_size)) for label in _SIZES}
    rows = {label: tried_run(options, f"sizes {label}", side) for label, side in sides.items()}
    enough = max(row["top1"] for row in rows.values()) - NEARLY
    label = min((label for label in rows if rows[label]["top1"] >= enough), key=lambda label: rows[label]["train_s"])
    timm = sides[label]
    if _COMPILED in timm.quick:
        plain = replace(timm, quick=tuple(word for word in timm.quick if word != _COMPILED))
        rows["not compiled"] = tried_run(options, "not compiled", plain)
        timm = plain if rows["not compiled"]["train_s"] < rows[label]["train_s"] else timm
    rates = {"chosen rate": timm, "first rate": at_first_rate(timm)}
    means = {
        name: mean_top1([tried_run(options, f"{name} seed {seed}", side, seed) for seed in (1, 2)])
        for name, side in rates.items()
    }
    timm = rates[max(means, key=lambda name: means[name])]
    then = {"sizes": label, "sizes_tried": {name: [row["top1"], row["train_s"]] for name, row in rows.items()}}
    found = {"quick": timm.quick, "parts": timm.parts, "speeds": speeds, "on": on, **then, "rates_tried": means}
    return {"regime": regime_of(options), "timm": found}


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, metavar="IMAGENETTE", help="train/ and val/ with a folder per class")
    parser.add_argument("script", type=Path, help="train.py of timm's repository")
    parser.add_argument("--tune", action="store_true", help="choose timm's values, and stop")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "timm_progressive")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and the raw rows")
    parser.add_argument("--smoke", action="store_true", help="test the program in about two minutes")
    parser.set_defaults(
        program="timm_progressive", epochs=10, image_size=128, ladder=LADDER, at_once=1, pace_limit=SAME_PACE,
        tune_epochs=20, tune_pictures=2400, tune_answers=CHOOSING, tune_updates=12,
    )  # fmt: skip
    options = parser.parse_args()
    if options.record and (options.seeds < 2 or options.tune or options.smoke):
        parser.error("--record is for the whole measurement with 2 seeds or more, not for --tune or --smoke.")
    options.pictures = options.pictures.absolute()
    return options


def measured(options: argparse.Namespace, chosen: Mapping[str, Any]) -> None:
    """Run ``time_to_accuracy.measure`` with one length of timm's script."""
    timm = timm_of(chosen["timm"], options)
    side = peer_side("timm", timm, (options.epochs,), options.pictures, options.output)
    measure({"timm_progressive": [side]}, options, chosen)


def smoke(options: argparse.Namespace) -> None:
    """Compare two seeds on 128 and 32 images of 64 px, with untuned values of timm."""
    options.epochs, options.image_size, options.seeds, options.ladder = 2, 64, 2, (1, 2)
    options.pace_limit = math.inf
    dataset = load_dataset(str(options.pictures))
    with tempfile.TemporaryDirectory() as folder:
        options.output = Path(folder)
        parts = [rows_of(dataset, split, count, 0) for split, count in (("train", 128), ("val", 32))]
        options.pictures = link_folders(dataset, *parts, options.output / "images")
        timm = Timm(options.script, options.image_size, ("--channels-last", "-j", "0"))
        timm = untuned(timm).with_part("sizes", size_schedule(next(iter(_SIZES)), options.image_size))
        measured(options, {"timm": {"quick": timm.quick, "parts": timm.parts}})


def main() -> None:
    options = _parsed()
    if options.smoke:
        smoke(options)
    elif options.tune:
        chosen = json.dumps(tune_schedule(options), indent=1)
        write_text_atomically(options.output / "tuned.json", chosen + "\n")
    else:
        measured(options, tuned(options))


if __name__ == "__main__":
    keep_freed_memory()  # as the command line does
    main()
