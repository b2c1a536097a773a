"""Minutes to the same top-1: recipe ``quick`` and timm's train script after tuning, at one size and progressive.

Run: python -m benchmarks.time_to_accuracy IMAGENETTE TIMM_TRAIN_PY --tune
     python -m benchmarks.time_to_accuracy IMAGENETTE TIMM_TRAIN_PY [--seeds 3] [--record]

EfficientNetV2-B0 from scratch, up to 128 px. TIMM_TRAIN_PY is the train.py of timm's repository, which the package does
not contain. Each program evaluates all images of val once, at the end, with its own preprocessing.

- timm_progressive: 5 epochs with ``--train-size-schedule progressive`` (since July 2026), about as many images as in
  tuning. It draws the size of each batch from a window of the sizes that moves from the first size to the last size
  during the run. The regularization does not follow the size. The warm-up is the tuned fraction of the epochs, rounded
  to whole epochs, at least one.
- timm: the same 5 epochs at 128 px.
- quick: ``effnetv2 train --recipe quick --weights none`` without tuning. The recipe was developed on training images of
  Imagenette. For each side of timm, the first seed chooses the shortest of 2, 3, 4, 5, 6, 8, 10 epochs that reaches its
  top-1. If the mean over all seeds does not reach timm's mean, the next length follows. A side that no length reaches
  has no claim. ``quick`` also trains for as many epochs as fit into 95 % of the minutes of timm_progressive, calculated
  from the times of the first seed.

``--tune`` chooses the values of timm on images of train alone: a quarter of them for 20 epochs; 2,000 other images
choose. First the fastest of channels-last, bf16, compilation and 0 to 2 workers (``benchmarks.epoch``). Then the
optimizer, its learning rate (half, twice, and further while the best is at an end), the schedule, regularization with
augmentation, and the batch size, one run each. Then two more seeds choose between this learning rate and the rate that
tuning started from, and whether to clip gradients. The progressive side begins with these values. It tunes the learning
rate again: this rate, half, and further while the best is at an end, one run each. Of the sizes it takes the fastest
that are at most a point below the best. Compilation is removed if the run is faster without it.

The claims:

- ``time_to_timm_progressive_top1_speedup``, ``time_to_timm_top1_speedup``: time of timm / time of ``quick``. The length
  of ``quick`` is chosen on the evaluated seeds and images. The interval does not cover this choice.
- ``same_minutes_top1_gain_over_timm_progressive``: quick − timm_progressive in points, if the mean minutes of ``quick``
  are at most those of timm_progressive.

The runs of a seed take turns. They count if the pace of the machine is within a tenth before and after all of them.
Minutes are of training steps and waiting for images. OUT stores all stages of tuning and all runs; they are not
repeated. Each row of timm has timm's version and the SHA-256 of TIMM_TRAIN_PY.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arms import SAME_PACE, gain, ratio, refuse_other_regime
from benchmarks.in_turn import (
    Claim,
    Rows,
    Side,
    mean_top1,
    our_side,
    peer_side,
    record_claims,
    refuse_drift,
    seconds,
    take_turns,
)
from benchmarks.paper.runs import Runs
from benchmarks.peers_tuning import CHOOSING, here, regime_of_timm, timm_of, tune, with_warmup
from benchmarks.record import RESULTS, read

from efficientnetv2.data.config import DataConfig
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

_SPEEDUP, _GAIN = "time_to_{}_top1_speedup", "same_minutes_top1_gain_over_{}"
PEERS = ("timm_progressive", "timm")  # stages of tuning
_LADDER = (2, 3, 4, 5, 6, 8, 10)
_ALLOWED = 0.95  # fraction of timm's minutes: the later seeds may be slower than the first


def peers_of(options: argparse.Namespace, chosen: Mapping[str, Any]) -> list[Side]:
    """Return the sides of timm."""
    share = options.epochs / options.tune_epochs
    return [
        peer_side(
            name, with_warmup(timm_of(chosen[name], options), share), (options.epochs,), options.pictures,
            options.output,
        )
        for name in PEERS
    ]  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """Runs of timm, and of ``quick`` to the same top-1.

    Args:
        theirs: Rows of timm.
        epochs: Epochs of ``quick``. None if no length reaches timm's mean top-1.
        ours: Rows of ``quick`` with these epochs.
    """

    theirs: Rows
    epochs: float | None
    ours: Rows


def compared(peers: Sequence[Side], quick: Side, options: argparse.Namespace) -> tuple[dict[str, Compared], Rows]:
    """Run each side of timm against ``quick`` to the same top-1, and ``quick`` in the minutes of the first side.

    Returns:
        Comparison by side, and the rows of ``quick`` in the minutes of the first side.

    Raises:
        SystemExit: The machine, its pace or the version of torch changed within a seed.
    """
    firsts = [side.run(side.lengths[0], 0) for side in peers]
    starts = [quick.first_length(row["top1"]) for row in firsts]
    allowed_s = _ALLOWED * firsts[0]["train_s"]
    allowed = math.floor(10 * starts[0] * allowed_s / quick.run(starts[0], 0)["train_s"]) / 10
    turns = [(side, side.lengths[0]) for side in peers]
    turns += [(quick, epochs) for epochs in dict.fromkeys([*starts, allowed])]
    runs = take_turns(turns, options.seeds, options.pace_limit)
    found = {}
    for side, start, theirs in zip(peers, starts, runs, strict=False):  # the runs of timm come first
        epochs, ours = quick.reaching(mean_top1(theirs), start, options.seeds) or (None, [])
        for pair in zip(theirs, ours, strict=False):  # none if no length reaches it
            refuse_drift(pair, options.pace_limit)
        found[side.name] = Compared(theirs, epochs, ours)
    return found, runs[turns.index((quick, allowed))]


def claims(found: Mapping[str, Compared], same: Rows) -> dict[str, Claim]:
    """Compute the speedups, and the gain of ``quick`` over the first side if ``quick`` is not slower."""
    claimed = {
        _SPEEDUP.format(name): Claim(ratio(seconds(one.theirs), seconds(one.ours)), "ratio", [*one.theirs, *one.ours])
        for name, one in found.items()
        if one.ours
    }
    name, first = next(iter(found.items()))
    minutes = [statistics.fmean(seconds(rows)) / 60 for rows in (first.theirs, same)]
    print(f"Same minutes: {name} {minutes[0]:.1f}, quick {minutes[1]:.1f}")
    if minutes[1] <= minutes[0]:
        pairs = [[100 * row["top1"] for row in rows] for rows in (same, first.theirs)]
        claimed[_GAIN.format(name)] = Claim(gain(*pairs), "points", [*same, *first.theirs])
    return claimed


def measure(options: argparse.Namespace, chosen: Mapping[str, Any]) -> None:
    """Run what is missing, print the claims, and record them with --record."""
    runs = Runs(DataConfig(str(options.pictures)), options.seeds, "none", "cpu", options.output, print)
    found, same = compared(peers_of(options, chosen), our_side(runs, options.image_size, options.ladder), options)
    claimed = claims(found, same)
    for name, claim in claimed.items():
        print(f"{name}: {claim.figure} {claim.unit}")
    if options.record:
        raw: dict[str, Any] = {"when": time.strftime("%Y-%m-%d"), "tuned": chosen, "ours_same_minutes": same}
        raw["ours"] = {name: one.ours for name, one in found.items() if one.ours}
        raw |= {name: one.theirs for name, one in found.items()}
        write_text_atomically(RESULTS / "time_to_accuracy.json", json.dumps(raw, indent=1) + "\n")
        command = f"python -m benchmarks.time_to_accuracy IMAGENETTE TIMM_TRAIN_PY --seeds {options.seeds} --record"
        record_claims(claimed, [form.format(name) for form in (_SPEEDUP, _GAIN) for name in found], command)


def tuned(options: argparse.Namespace) -> dict[str, Any]:
    """Read the results of ``--tune`` in OUT.

    Raises:
        SystemExit: A stage is missing, or the results are of other conditions.
    """
    file = options.output / "tuned.json"
    chosen: dict[str, Any] = read(file) if file.exists() else {}
    if missing := {"regime", "fastest", *PEERS} - chosen.keys():
        raise SystemExit(f"{file} lacks {', '.join(sorted(missing))}: run the same with --tune first.")
    refuse_other_regime(file, chosen, regime_of_timm(options))
    if (on := chosen["fastest"]["on"]) != here():
        print(f"Timm's format, compilation and workers were the fastest on {on}.")
    return chosen


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("script", type=Path, help="train.py of timm's repository")
    parser.add_argument("--tune", action="store_true", help="choose the values of timm, and stop")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "time_to_accuracy")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and the raw rows")
    parser.set_defaults(ladder=_LADDER, pace_limit=SAME_PACE)
    smaller = parser.add_argument_group("smaller, to see that it runs; not to be recorded")
    defaults = {
        "epochs": 5,
        "image-size": 128,
        "tune-epochs": 20,
        "tune-pictures": 2400,
        "tune-answers": CHOOSING,
        "tune-updates": 12,
    }
    for name, value in defaults.items():
        smaller.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    whole = all(getattr(options, name.replace("-", "_")) == value for name, value in defaults.items())
    if options.record and (not whole or options.seeds < 2 or options.tune):
        parser.error("--record is for the whole measurement with 2 seeds or more, not for --tune.")
    options.pictures = options.pictures.absolute()
    return options


def main() -> None:
    options = _parsed()
    if options.tune:
        tune(options)
    else:
        measure(options, tuned(options))


if __name__ == "__main__":
    keep_freed_memory()  # as the command line does
    main()
