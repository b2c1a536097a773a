"""Minutes to the same top-1: recipe ``quick`` and timm's train script after tuning, at one size and progressive.

Run: python -m benchmarks.time_to_accuracy IMAGENETTE TIMM_TRAIN_PY --tune [--second-processor]
     python -m benchmarks.time_to_accuracy IMAGENETTE TIMM_TRAIN_PY [--values quick] [--lengths 2 5] [--seeds 3]
       [--second-processor] [--record]

EfficientNetV2-B0 from scratch, up to 128 px. TIMM_TRAIN_PY is the train.py of timm's repository, which the package does
not contain. Each program evaluates all images of val once, at the end, with its own preprocessing.

- timm_progressive: 5 epochs with ``--train-size-schedule progressive`` (since July 2026), about as many images as in
  tuning. It draws the size of each batch from a window of the sizes that moves from the first size to the last size
  during the run. The regularization does not follow the size. The warm-up is the tuned fraction of the epochs, rounded
  to whole epochs, at least one.
- timm: the same 5 epochs at 128 px.
- quick: ``effnetv2 train --recipe quick --weights none`` for each of ``--lengths`` epochs, without tuning. The recipe
  was developed on training images of Imagenette. The shortest length whose mean top-1 over the seeds reaches the mean
  of a side of timm is compared with it. A side that no length reaches has no claim. The longest length whose mean
  minutes are at most those of timm_progressive is compared with its top-1.

``--tune`` chooses the values of timm on images of train alone: a quarter of them for 20 epochs; 2,000 other images
choose. First the fastest of channels-last, bf16, compilation and 0 to 2 workers (``benchmarks.epoch``). Then the
optimizer, its learning rate (half, twice, and further while the best is at an end), the schedule, regularization with
augmentation, and the batch size, one run each. Then two more seeds choose between this learning rate and the rate that
tuning started from, and whether to clip gradients. The progressive side begins with these values. It tunes the learning
rate again: this rate, half, and further while the best is at an end, one run each. Of the sizes it takes the fastest
that are at most a point below the best. Compilation is removed if the run is faster without it.

With ``--values quick``, both sides of timm have the values of recipe ``quick`` instead, where timm has an option for
them (``benchmarks.peers_tuning.with_values_of_quick``): the programs are compared, not their tuning. Their rows, and
those of ``quick`` at the same pace, are in OUT/values_of_quick.

The claims, with names of timm's sides that end in ``_with_values_of_quick`` with ``--values quick``:

- ``time_to_timm_progressive_top1_speedup``, ``time_to_timm_top1_speedup``: time of timm / time of ``quick``
- ``same_minutes_top1_gain_over_timm_progressive``: quick − timm_progressive in points, in no more minutes

The lengths of ``quick`` are chosen on the evaluated seeds and images. The intervals do not cover this choice.

``--second-processor`` measures again on another processor. With ``--tune``, it takes all values of timm from the first
record, and chooses only channels-last, bf16, compilation and workers again. The names of its claims and files end in
_second_processor.

The missing runs of a seed are trained at the same time, in slices of 15 seconds (``benchmarks.slices``): one runs, the
others are stopped. A seed is refused if the mean paces of the machine during two of its runs differ by more than a
tenth. Minutes are from the first training step to the last, with what a program does between them: ``quick`` saves
checkpoints and validates after each stage, and timm saves only after its last step. OUT stores all stages of tuning and
all runs; they are not repeated. Each row of timm has timm's version and the SHA-256 of TIMM_TRAIN_PY.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.arms import gain, ratio, refuse_other_regime
from benchmarks.in_turn import (
    Claim,
    Rows,
    Side,
    first_reaching,
    mean_top1,
    our_side,
    peer_side,
    record_claims,
    rows_of_sides,
    seconds,
)
from benchmarks.paper.runs import Runs
from benchmarks.peers_tuning import (
    CHOOSING,
    here,
    regime_of_timm,
    timm_of,
    tune,
    tune_speed,
    with_values_of_quick,
    with_warmup,
)
from benchmarks.record import RESULTS, read

from efficientnetv2.data.config import DataConfig
from efficientnetv2.utils.io import write_text_atomically

_SPEEDUP, _GAIN = "time_to_{}_top1_speedup", "same_minutes_top1_gain_over_{}"
PEERS = ("timm_progressive", "timm")  # stages of tuning
_NAMES = {"tuned": "time_to_accuracy", "quick": "time_to_accuracy_values_of_quick"}  # raw rows, by --values
_LENGTHS = (2.0, 5.0)
_EPOCH_S = {"timm_progressive": 200, "timm": 300, "quick": 160}  # about, on two cores without AVX-512


def peers_of(options: argparse.Namespace, chosen: Mapping[str, Any]) -> list[Side]:
    """Return the sides of timm."""
    share = options.epochs / options.tune_epochs
    sides = {name: with_warmup(timm_of(chosen[name], options), share) for name in PEERS}
    if options.values == "quick":
        sides = {name: with_values_of_quick(side) for name, side in sides.items()}
    return [
        peer_side(title, sides[name], (options.epochs,), options.pictures, _out(options), _EPOCH_S[name])
        for name, title in zip(PEERS, _titles(options), strict=True)
    ]


def _titles(options: argparse.Namespace) -> list[str]:
    return [name if options.values == "tuned" else f"{name}_with_values_of_quick" for name in PEERS]


def _out(options: argparse.Namespace) -> Path:
    out: Path = options.output
    return out if options.values == "tuned" else out / "values_of_quick"


def claims(theirs: Mapping[str, Rows], quick: Mapping[float, Rows]) -> dict[str, Claim]:
    """Compute the speedups to the same top-1, and the gain over timm_progressive in its minutes.

    Args:
        theirs: Rows by side of timm, the progressive side first.
        quick: Rows by epochs.
    """
    claimed = {}
    for name, rows in theirs.items():
        if found := first_reaching(quick, mean_top1(rows)):
            epochs, ours = found
            print(f"{name}: {mean_top1(rows):.1%}; quick: {mean_top1(ours):.1%} after {epochs:g} epochs")
            claimed[_SPEEDUP.format(name)] = Claim(ratio(seconds(rows), seconds(ours)), "ratio", [*rows, *ours])
    name, first = next(iter(theirs.items()))
    allowed_s = statistics.fmean(seconds(first))
    if fitting := [epochs for epochs, rows in quick.items() if statistics.fmean(seconds(rows)) <= allowed_s]:
        ours = quick[max(fitting)]
        top1s = [[100 * row["top1"] for row in rows] for rows in (ours, first)]
        claimed[_GAIN.format(name)] = Claim(gain(*top1s), "points", [*ours, *first])
    return claimed


def measure(options: argparse.Namespace, chosen: Mapping[str, Any]) -> None:
    """Run what is missing, print the claims, and record them with --record."""
    runs = Runs(DataConfig(str(options.pictures)), options.seeds, "none", "cpu", _out(options), print)
    ours = our_side(runs, options.image_size, options.lengths, _EPOCH_S["quick"])
    rows = rows_of_sides([*peers_of(options, chosen), ours], options.seeds)
    theirs, quick = {name: rows[name][options.epochs] for name in _titles(options)}, rows[ours.name]
    suffix = "_second_processor" if options.second_processor else ""
    claimed = {name + suffix: claim for name, claim in claims(theirs, quick).items()}
    for name, claim in claimed.items():
        print(f"{name}: {claim.figure} {claim.unit}")
    if options.record:
        raw = {"when": time.strftime("%Y-%m-%d"), "tuned": chosen, **theirs, "quick": quick}
        write_text_atomically(RESULTS / f"{_NAMES[options.values]}{suffix}.json", json.dumps(raw, indent=1) + "\n")
        lengths = " ".join(f"{epochs:g}" for epochs in options.lengths)
        values = "" if options.values == "tuned" else f" --values {options.values}"
        command = (
            f"python -m benchmarks.time_to_accuracy IMAGENETTE TIMM_TRAIN_PY{values} --lengths {lengths} "
            f"--seeds {options.seeds}{' --second-processor' if suffix else ''} --record"
        )
        names = [form.format(name) + suffix for form in (_SPEEDUP, _GAIN) for name in _titles(options)]
        record_claims(claimed, names, command)


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
    parser.add_argument("--values", choices=_NAMES, default="tuned", help="values of timm's options")
    parser.add_argument("--lengths", type=float, nargs="+", default=_LENGTHS, help="epochs of quick")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/time_to_accuracy")
    parser.add_argument("--second-processor", action="store_true", help="record it beside the first processor's")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and the raw rows")
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
    first = RESULTS / "time_to_accuracy"
    options.output = options.output or Path(f"{first}{'_second_processor' if options.second_processor else ''}")
    return options


def main() -> None:
    options = _parsed()
    if options.tune and options.second_processor:
        tune_speed(options, RESULTS / "time_to_accuracy/tuned.json", PEERS)
    elif options.tune:
        tune(options)
    else:
        measure(options, tuned(options))


if __name__ == "__main__":
    main()
