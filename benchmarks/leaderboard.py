"""The entries of Imagenette's leaderboard against recipe ``quick`` on one machine: minutes to 85 % and 90 % top-1.

Run: python -m benchmarks.leaderboard IMAGENETTE FASTAI_PYTHON --tune
     python -m benchmarks.leaderboard IMAGENETTE FASTAI_PYTHON [--models efficientnetv2_b0 ...] [--targets 85 90]
         [--seeds 3] [--record]
     python -m benchmarks.leaderboard IMAGENETTE FASTAI_PYTHON --smoke

From scratch, up to 128 px, on the same images and cores. FASTAI_PYTHON is a Python with fastai and the same torch as
here (``benchmarks/leaderboard_recipe.py``).

- the entry: ``xse_resnext50`` as the leaderboard of fastai/imagenette trains it for 5 or 20 epochs, by its own package
  (``benchmarks/leaderboard_recipe.py``). ``--tune`` chooses on images of train alone: the fastest of fp32,
  channels-last and bf16 with 0 to 2 workers, and the learning rate (the published rate, half, twice, and further while
  the best is at an end; half of the images for 5 epochs; 2,000 other images choose). The rate serves both entries, as
  the published rate does.
- quick: ``effnetv2 train --recipe quick --weights none`` with each of ``--models``, without tuning.

The first seed chooses the shortest length that reaches the target on val: of 5 and 20 epochs for the entry, of
``--lengths`` for ``quick``. If the mean over all seeds is below the target, the next length follows. A side whose
longest length does not reach the target gets no claim. Model and augmentation differ, so this compares two ways to an
accuracy, not two trainers.

The runs of a seed take turns. They count if the pace of the machine is within a tenth before and after all of them.
Minutes are of training steps and waiting for images. All runs are kept in OUT and are not repeated.

``--smoke`` tests the program in a temporary folder: few images of IMAGENETTE, two seeds, no tuning, target 0 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arms import SAME_PACE, over_seeds, ratio, refuse_incomparable_times, refuse_other_regime, rows_of
from benchmarks.in_turn import Side, our_side, paced, refuse_drift, take_turns
from benchmarks.paper.runs import Runs
from benchmarks.peers_training import Reference, link_folders, once
from benchmarks.peers_tuning import CHOOSING, beyond_ends, here, link_tuning_images, regime_of, tried_run
from benchmarks.record import RESULTS
from benchmarks.time_to_accuracy import Claim, Rows, mean_top1, record_claims, seconds

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.evaluation.evaluation_result import library_versions
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

ENTRY = "xse_resnext50"
_SEEDS, _TARGETS, _MODELS = 3, (85, 90), ("efficientnetv2_b0",)
_ENTRY_LENGTHS, _LENGTHS = (5, 20), (10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0)
_RATES = (8e-3, 4e-3, 16e-3)  # the published rate first
_FORMATS: Mapping[str, tuple[str, ...]] = {
    "fp32": (), "channels-last": ("--channels-last",), "channels-last bf16": ("--channels-last", "--bf16"),
}  # fmt: skip
_TIMED_IMAGES = 640
_CLAIMS = _SECONDS, _SPEEDUP = "imagenette_{}_top1_s_{}", "imagenette_{}_top1_speedup_{}"  # target, side


def entry_of(options: argparse.Namespace, lr: float, quick: tuple[str, ...]) -> Reference:
    """The published program with this learning rate, format and number of workers."""
    recipe = Path(__file__).with_name("leaderboard_recipe.py")
    return Reference(options.image_size, lr, quick, (str(options.python), str(recipe)))


def tune(options: argparse.Namespace) -> dict[str, Any]:
    """The fastest format and number of workers, and the learning rate of the best top-1."""
    dataset = load_dataset(str(options.pictures))
    rows = rows_of(dataset, "train", _TIMED_IMAGES, 0)
    few = link_folders(dataset, rows, rows[:32], options.output / "timed")
    speeds: dict[tuple[str, ...], float] = {}
    for (name, words), workers in itertools.product(_FORMATS.items(), "012"):
        side = entry_of(options, _RATES[0], (*words, "--workers", workers))
        file = options.output / "tried" / f"{name.replace(' ', '_')}_{workers}.json"
        of = {"epochs": 1, "seed": 0}
        row = once(file, lambda side=side, of=of: side.trained(few, **of), {**side.asked(few, **of), "on": here()})
        speeds[side.quick] = _TIMED_IMAGES / row["train_s"]
        print(f"tuning {name}, {workers} workers: {speeds[side.quick]:.1f} images/s", flush=True)
    quick = max(speeds, key=lambda words: speeds[words])
    link_tuning_images(options)

    def top1(lr: float) -> float:
        return float(tried_run(options, f"rate {lr:g}", entry_of(options, lr, quick))["top1"])

    rates = beyond_ends({lr: top1(lr) for lr in _RATES}, top1)
    return {
        "regime": regime_of(options), "on": here(), "quick": quick, "lr": max(rates, key=lambda lr: rates[lr]),
        "images_per_s": {" ".join(words): round(speed, 1) for words, speed in speeds.items()}, "top1_by_lr": rates,
    }  # fmt: skip


def entry_side(entry: Reference, options: argparse.Namespace) -> Side:
    """The entry at its published lengths."""

    def run(epochs: float, seed: int) -> dict[str, Any]:
        of = {"epochs": int(epochs), "seed": seed}

        def trained() -> dict[str, Any]:
            found = entry.trained(options.pictures, **of)
            return found | {"versions": library_versions() | found["versions"]}

        file = options.output / "sides" / f"{ENTRY}_{epochs:g}_{seed}.json"
        return paced(file, trained, {**entry.asked(options.pictures, **of), "seed": seed})

    return Side(ENTRY, run, options.entry_lengths)


def reach(sides: list[Side], target: int, options: argparse.Namespace) -> dict[str, tuple[float, Rows]]:
    """Epochs and rows of each side that reaches the target, by its name; the entry is the first side.

    Raises:
        SystemExit: The machine, its pace or the version of torch changed within a seed.
    """
    top1 = target / 100
    turns = [(side, side.first_length(top1)) for side in sides]
    take_turns(turns, options.seeds, options.pace_limit)
    found = {side.name: side.reaching(top1, start, options.seeds) for side, start in turns}
    return {name: reached for name, reached in found.items() if reached is not None}


def claims(reached: Mapping[str, tuple[float, Rows]], target: int, limit: float = SAME_PACE) -> dict[str, Claim]:
    """Seconds of each side to the target, and how many times the entry's minutes are those of a model.

    Raises:
        SystemExit: The pace of the machine changed between two runs that are compared.
    """
    found = {}
    rows = [row for _, side in reached.values() for row in side]
    for name, (epochs, mine) in reached.items():
        minutes = statistics.fmean(seconds(mine)) / 60
        print(f"{target} %: {name}, {epochs:g} epochs: {mean_top1(mine):.1%} in {minutes:.1f} minutes")
        found[_SECONDS.format(target, name)] = Claim(over_seeds(seconds(mine)), "s", rows)
        if ENTRY in reached and name != ENTRY:
            theirs = reached[ENTRY][1]
            for pair in zip(theirs, mine, strict=True):
                refuse_incomparable_times(pair)
                refuse_drift(pair, limit)
            found[_SPEEDUP.format(target, name)] = Claim(ratio(seconds(theirs), seconds(mine)), "ratio", rows)
    return found


def measure(options: argparse.Namespace, chosen: Mapping[str, Any]) -> None:
    """Run what is not done, print the claims, and record them if asked."""
    runs = Runs(DataConfig(str(options.pictures)), options.seeds, "none", "cpu", options.output, print)
    sides = [entry_side(entry_of(options, chosen["lr"], tuple(chosen["quick"])), options)]
    sides += [our_side(runs, options.image_size, options.lengths, model) for model in options.models]
    reached = {target: reach(sides, target, options) for target in options.targets}
    found = {}
    for target, by_side in reached.items():
        found |= claims(by_side, target, options.pace_limit)
    rows = [row for claim in found.values() for row in claim.rows]
    found = {name: replace(claim, rows=rows) for name, claim in found.items()}  # one raw file, one list of machines
    for name, claim in found.items():
        print(f"{name}: {claim.figure} {claim.unit}")
    if options.record:
        raw = {"when": time.strftime("%Y-%m-%d"), "tuned": chosen, "reached": reached}
        write_text_atomically(RESULTS / "leaderboard.json", json.dumps(raw, indent=1) + "\n")
        given = [(" --models ", options.models, _MODELS), (" --targets ", options.targets, _TARGETS)]
        given += [(" --seeds ", [options.seeds], [_SEEDS]), (" --lengths ", options.lengths, _LENGTHS)]
        more = "".join(f"{name}{' '.join(map(str, value))}" for name, value, usual in given if [*value] != [*usual])
        names = [form.format(target, side.name) for form in _CLAIMS for target in options.targets for side in sides]
        record_claims(found, names, f"python -m benchmarks.leaderboard IMAGENETTE FASTAI_PYTHON{more} --record")


def smoke(options: argparse.Namespace) -> None:
    """The comparison of two seeds on 128 and 32 images of 64 px, with the published rate."""
    options.image_size, options.seeds, options.targets, options.pace_limit = 64, 2, (0,), math.inf
    options.entry_lengths, options.lengths = (1,), (1,)
    dataset = load_dataset(str(options.pictures))
    with tempfile.TemporaryDirectory() as folder:
        options.output = Path(folder)
        parts = [rows_of(dataset, split, count, 0) for split, count in (("train", 128), ("val", 32))]
        options.pictures = link_folders(dataset, *parts, options.output / "images")
        measure(options, {"lr": _RATES[0], "quick": ("--channels-last", "--workers", "0")})


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, metavar="IMAGENETTE", help="train/ and val/ with a folder per class")
    parser.add_argument("python", type=Path, metavar="FASTAI_PYTHON", help="Python of an environment with fastai")
    parser.add_argument("--tune", action="store_true", help="choose the entry's format and rate, and stop")
    parser.add_argument("--models", nargs="+", default=_MODELS)
    parser.add_argument("--targets", type=int, nargs="+", default=_TARGETS, help="top-1 in percent")
    parser.add_argument("--lengths", type=float, nargs="+", default=_LENGTHS, help="epochs of quick to try")
    parser.add_argument("--seeds", type=int, default=_SEEDS)
    parser.add_argument("--output", type=Path, default=RESULTS / "leaderboard")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and the raw rows")
    parser.add_argument("--smoke", action="store_true", help="test the program in about two minutes")
    parser.set_defaults(
        image_size=128, entry_lengths=_ENTRY_LENGTHS, pace_limit=SAME_PACE,
        tune_epochs=5, tune_pictures=4700, tune_answers=CHOOSING,
    )  # fmt: skip
    options = parser.parse_args()
    if options.record and (options.seeds < 2 or options.tune or options.smoke):
        parser.error("--record is for 2 seeds or more, not for --tune or --smoke.")
    # Not resolved: the Python of an environment is a link.
    options.pictures, options.python = options.pictures.absolute(), options.python.absolute()
    return options


def main() -> None:
    options = _parsed()
    file = options.output / "tuned.json"
    if options.smoke:
        smoke(options)
    elif options.tune:
        write_text_atomically(file, json.dumps(tune(options), indent=1) + "\n")
    elif not file.exists():
        raise SystemExit(f"{file} does not exist: run the same with --tune first.")
    else:
        chosen = json.loads(file.read_text(encoding="utf-8"))
        refuse_other_regime(file, chosen, regime_of(options))
        measure(options, chosen)


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
