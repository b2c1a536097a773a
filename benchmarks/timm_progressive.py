"""Progressive image sizes in timm's train script, tuned, against recipe ``quick``: minutes to the same top-1, top-1.

Run: python -m benchmarks.timm_progressive IMAGENETTE TIMM_TRAIN_PY --tune
     python -m benchmarks.timm_progressive IMAGENETTE TIMM_TRAIN_PY [--seeds 5] [--record]
     python -m benchmarks.timm_progressive IMAGENETTE TIMM_TRAIN_PY --smoke

EfficientNetV2-B0 from scratch, up to 128 px. TIMM_TRAIN_PY is the train.py of timm's repository, which has
``--train-size-schedule progressive`` since July 2026: it draws the size of each batch from a window of the sizes that
moves from the first size to the last size during the run. Its regularization does not follow the size.

- timm: 10 epochs with the values that ``--tune`` chose on images of train alone (a quarter of them for 20 epochs; 2,000
  other images choose). First the optimizer, its learning rate, the schedule, the regularization and the batch size
  (``benchmarks.peers_tuning``). Then the sizes: the fastest that are at most a point below the best. Then compilation,
  if it is faster with changing sizes too. Last the learning rate with the higher mean over three seeds, of the chosen
  rate and the rate that tuning started from.
- quick: ``effnetv2 train --recipe quick --weights none`` without tuning. The first seed chooses the shortest of 2, 3,
  4, 5, 6, 8, 10 epochs that reaches timm's top-1. If the mean over all seeds does not reach timm's mean, the next
  length follows. Then once more, for the epochs that timm's minutes allow by the times of the first seed.

The runs of a seed take turns. A run counts if the pace of the machine before and after it, and before and after the
other runs of its seed, is within a tenth. Minutes are of training steps and waiting for images. Each program evaluates
all images of val once, at the end, with its own preprocessing. All runs are kept in OUT and are not repeated.

``--smoke`` tests the program in a temporary folder: few images of IMAGENETTE, two seeds, no tuning.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.arms import SAME_PACE, gain, ratio, refuse_incomparable_times, refuse_other_regime, rows_of
from benchmarks.in_turn import Side, our_side, paced, refuse_drift, take_turns
from benchmarks.paper.runs import Runs
from benchmarks.peers_training import Timm, link_folders
from benchmarks.peers_tuning import CHOOSING, at_first_rate, here, regime_of, tried_run, tune, untuned
from benchmarks.progressive import NEARLY
from benchmarks.record import RESULTS
from benchmarks.time_to_accuracy import Claim, Rows, mean_top1, record_claims, seconds, timm_of

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

_SEEDS, _LADDER = 5, (2, 3, 4, 5, 6, 8, 10)
_SPEEDUP, _GAIN = "time_to_timm_progressive_top1_speedup", "same_minutes_top1_gain_over_timm_progressive"
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
    """What ``peers_tuning.tune`` chooses with the first sizes, and then sizes, compilation and rate."""
    found = tune(options, size_schedule(next(iter(_SIZES)), options.image_size))
    timm = timm_of(found["timm"], options)
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
        name: mean_top1([tried_run(options, f"{name} seed {seed}", side, seed) for seed in (1, 2, 3)])
        for name, side in rates.items()
    }
    timm = rates[max(means, key=lambda name: means[name])]
    then = {"sizes": label, "sizes_tried": {name: [row["top1"], row["train_s"]] for name, row in rows.items()}}
    return found | {"timm": {**found["timm"], "quick": timm.quick, "parts": timm.parts, **then, "rates_tried": means}}


def timm_side(timm: Timm, options: argparse.Namespace) -> Side:
    """Timm's script at the one length."""

    def run(epochs: float, seed: int) -> dict[str, Any]:
        of = {"epochs": int(epochs), "seed": seed}
        file = options.output / "sides" / f"timm_{epochs:g}_{seed}.json"
        return paced(
            file, partial(timm.trained, options.pictures, **of), {**timm.asked(options.pictures, **of), "seed": seed}
        )

    return Side("timm", run, (options.epochs,))


def compared(timm: Side, quick: Side, options: argparse.Namespace) -> tuple[Rows, tuple[float, Rows] | None, Rows]:
    """Rows of timm, epochs and rows of ``quick`` to the same top-1 if it reaches it, and its rows in the same minutes.

    Raises:
        SystemExit: The machine, its pace or the version of torch changed within a seed.
    """
    first = timm.run(options.epochs, 0)
    start = quick.first_length(first["top1"])
    per_epoch = quick.run(start, 0)["train_s"] / start
    allowed = math.floor(10 * first["train_s"] / per_epoch) / 10
    turns = [(timm, options.epochs), (quick, start), (quick, allowed)]
    theirs, _, same = take_turns(turns, options.seeds, options.pace_limit)
    reached = quick.reaching(mean_top1(theirs), start, options.seeds)
    if reached is not None:
        for pair in zip(theirs, reached[1], strict=True):
            refuse_incomparable_times(pair)
            refuse_drift(pair, options.pace_limit)
    return theirs, reached, same


def claims(theirs: Rows, reached: tuple[float, Rows] | None, same: Rows) -> dict[str, Claim]:
    """By name; without a speedup if no length of ``quick`` reached timm's mean top-1."""
    mine = [] if reached is None else reached[1]
    rows = [*theirs, *mine, *same]
    pairs = [[100 * row["top1"] for row in side] for side in (same, theirs)]
    found = {_GAIN: Claim(gain(*pairs), "points", rows)}
    return found | ({_SPEEDUP: Claim(ratio(seconds(theirs), seconds(mine)), "ratio", rows)} if mine else {})


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, metavar="IMAGENETTE", help="train/ and val/ with a folder per class")
    parser.add_argument("script", type=Path, help="train.py of timm's repository")
    parser.add_argument("--tune", action="store_true", help="choose timm's values, and stop")
    parser.add_argument("--seeds", type=int, default=_SEEDS)
    parser.add_argument("--output", type=Path, default=RESULTS / "timm_progressive")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and the raw rows")
    parser.add_argument("--smoke", action="store_true", help="test the program in about two minutes")
    parser.set_defaults(
        epochs=10, image_size=128, ladder=_LADDER, at_once=1, pace_limit=SAME_PACE,
        tune_epochs=20, tune_pictures=2400, tune_answers=CHOOSING, tune_updates=12,
    )  # fmt: skip
    options = parser.parse_args()
    if options.record and (options.seeds < 2 or options.tune or options.smoke):
        parser.error("--record is for the whole measurement with 2 seeds or more, not for --tune or --smoke.")
    options.pictures = options.pictures.absolute()
    return options


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    file = options.output / "tuned.json"
    if not file.exists():
        raise SystemExit(f"{file} does not exist: run the same with --tune first.")
    chosen: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    refuse_other_regime(file, chosen, regime_of(options))
    if chosen["timm"]["on"] != here():
        print(f"Timm's format, compilation and workers were the fastest on {chosen['timm']['on']}.")
    return chosen


def measure(options: argparse.Namespace, chosen: Mapping[str, Any]) -> None:
    """Run what is not done, print the claims, and record them if asked."""
    timm = timm_side(timm_of(chosen["timm"], options), options)
    data = DataConfig(str(options.pictures))
    quick = our_side(
        Runs(data, options.seeds, "none", "cpu", options.output, print), options.image_size, options.ladder
    )
    theirs, reached, same = compared(timm, quick, options)
    found = claims(theirs, reached, same)
    for name, claim in found.items():
        print(f"{name}: {claim.figure} {claim.unit}")
    minutes = [statistics.fmean(seconds(rows)) / 60 for rows in (theirs, same)]
    print(f"Same minutes: timm {minutes[0]:.1f}, quick {minutes[1]:.1f}")
    if options.record:
        epochs, mine = reached or (None, [])
        raw = {"when": time.strftime("%Y-%m-%d"), "tuned": chosen, "timm": theirs}
        raw |= {"ours_epochs": epochs, "ours": mine, "ours_same_minutes": same}
        write_text_atomically(RESULTS / "timm_progressive.json", json.dumps(raw, indent=1) + "\n")
        more = "" if options.seeds == _SEEDS else f" --seeds {options.seeds}"
        command = f"python -m benchmarks.timm_progressive IMAGENETTE TIMM_TRAIN_PY{more} --record"
        record_claims(found, (_SPEEDUP, _GAIN), command)


def smoke(options: argparse.Namespace) -> None:
    """The comparison of two seeds on 128 and 32 images of 64 px, with timm's values untuned."""
    options.epochs, options.image_size, options.seeds, options.ladder = 2, 64, 2, (1, 2)
    options.pace_limit = math.inf
    dataset = load_dataset(str(options.pictures))
    with tempfile.TemporaryDirectory() as folder:
        options.output = Path(folder)
        parts = [rows_of(dataset, split, count, 0) for split, count in (("train", 128), ("val", 32))]
        options.pictures = link_folders(dataset, *parts, options.output / "images")
        timm = Timm(options.script, options.image_size, ("--channels-last", "-j", "0"))
        timm = untuned(timm).with_part("sizes", size_schedule(next(iter(_SIZES)), options.image_size))
        measure(options, {"timm": {"quick": timm.quick, "parts": timm.parts}})


def main() -> None:
    options = _parsed()
    if options.smoke:
        smoke(options)
    elif options.tune:
        tuned = json.dumps(tune_schedule(options), indent=1)
        write_text_atomically(options.output / "tuned.json", tuned + "\n")
    else:
        measure(options, _chosen(options))


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
