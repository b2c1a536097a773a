"""Measure the gain of adaptive regularization: Table 13 of the paper at small scale, V2-B0 from scratch on Imagenette.

Run: python -m benchmarks.adaptive IMAGENETTE --tune [--only growing|random]
     python -m benchmarks.adaptive IMAGENETTE [--only growing|random] [--seeds 5] [--record]

Each seed trains on its own 1,000 training images for 60 epochs, so training without regularization overfits. Image
sizes are 48 to 96 px. All of val is evaluated once, at the end, at 96 px. The four arms share images and seeds:

- growing: four stages, smallest images first. random: one of the four sizes is drawn 44 times (Table 13: every 8 of 350
  epochs).
- vanilla: constant RandAugment and dropout, or none. adaptive: both follow the image size, from a third of their
  maximum at the smallest size to all of it at the largest size.

Claims: ``adaptive_top1_gain_b0_imagenette`` (growing) and ``..._random_resize``: adaptive − vanilla, points of top-1.

Run ``--tune`` first. It tries up to five strengths in each arm (``benchmarks.regimes``), weakest first, until one is
more than three points below the best. The slight strength of vanilla is the mean of the light strength of adaptive.
Tuning uses training images alone: 1,000 to train, 2,000 others to choose by, one run each. Vanilla may choose none. The
choices are in OUT/tuned.json. Two processes can share the cores, one for each value of ``--only``. A call without
``--only`` reads the runs of both.

All runs are saved in OUT and are not repeated. ``--record`` also writes Table 13 at scale small.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import small_tables
from benchmarks.arms import (
    NOTHING_SELECTED,
    Paired,
    gain,
    machines,
    measured,
    refuse_other_regime,
    refuse_to_record_elsewhere,
    same_numbers,
)
from benchmarks.paper import page as paper_page
from benchmarks.paper.records import write_record
from benchmarks.paper.runs import Cell, Runs
from benchmarks.record import RESULTS, record, versions_of
from benchmarks.regimes import Regime, add_smaller, each_seed, regularized, smaller, strengths, to_tune, try_strengths

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

REGIME = Regime(
    claimed="b0_imagenette",
    pictures=1000,
    epochs=60,
    tune_pictures=1000,
    tune_epochs=60,
    image_size=96,
    size_multiple=16,
    batch_size=64,
)
GROWING, RANDOM = "growing", "random"
_TURNS = 44  # the paper: a new size every 8 of 350 epochs
ORDERS: Mapping[str, tuple[str, ...]] = {GROWING: (), RANDOM: (f"progressive.random_draws={_TURNS}",)}
VANILLA, ADAPTIVE = "vanilla", "adaptive"
KINDS = (VANILLA, ADAPTIVE)
_ENDS = {GROWING: "", RANDOM: "_random_resize"}  # suffixes of claim names


def cell(order: str, kind: str, column: str, strength: str, regime: Regime, epochs: float, device: str) -> Cell:
    """One arm: recipe ``quick`` with another schedule."""
    overrides = (
        *same_numbers(device), *NOTHING_SELECTED, f"epochs={epochs:.6g}", f"batch_size={regime.batch_size}",
        "progressive.stages=4",
        f"progressive.image_size={{start: {regime.image_size / 2:g}, end: {regime.image_size}}}",
        f"progressive.size_multiple={regime.size_multiple}", f"progressive.order={order}", *ORDERS[order],
        *regularized(strength, growing=kind == ADAPTIVE),
    )  # fmt: skip
    return Cell(f"{order} {kind}", column, "quick", regime.model, overrides)


def tuned(dataset: ImageDataset, regime: Regime, runs: Runs, orders: Sequence[str]) -> dict[str, Any]:
    """Try the strengths of each arm.

    Returns:
        ``regime``; ``arms``: order -> kind -> ``chosen`` and ``tried``, strength -> top-1.
    """
    within = to_tune(dataset, regime, runs)
    return {
        "regime": asdict(regime),
        "arms": {order: {kind: _tuned_arm(order, kind, regime, within) for kind in KINDS} for order in orders},
    }


def _tuned_arm(order: str, kind: str, regime: Regime, runs: Runs) -> dict[str, Any]:
    def top1(strength: str) -> float:
        arm = cell(order, kind, strength, strength, regime, regime.tune_epochs, runs.device)
        result: float = measured(runs, arm, 0)["top1"]
        print(f"tuning {order}, {kind}: {strength}: {result:.1%}", flush=True)
        return result

    # Without regularization, adaptive equals vanilla.
    candidates = [name for name in strengths(growing=kind == ADAPTIVE) if kind == VANILLA or name != "none"]
    tried = try_strengths(candidates, top1)
    return {"chosen": max(tried, key=lambda name: tried[name]), "tried": tried}


def compared(
    dataset: ImageDataset, regime: Regime, choices: Mapping[str, Mapping[str, str]], runs: Runs, orders: Sequence[str]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """All arms with all seeds: order -> kind -> rows of ``measured``, one per seed."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {order: {kind: [] for kind in KINDS} for order in orders}
    for seed, here in each_seed(dataset, regime, runs):
        for order in orders:
            for kind in KINDS:
                arm = cell(order, kind, "run", choices[order][kind], regime, regime.epochs, runs.device)
                found[order][kind].append(measured(here, arm, seed))
            results = ", ".join(f"{kind} {found[order][kind][-1]['top1']:.1%}" for kind in KINDS)
            print(f"seed {seed}, {order}: {results}", flush=True)
    return found


def claims(found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[str, Paired]:
    """Name -> top-1 of adaptive − vanilla (points)."""
    return {
        f"adaptive_top1_gain_b0_imagenette{_ENDS[order]}": gain(
            *([100 * row["top1"] for row in kinds[kind]] for kind in (ADAPTIVE, VANILLA))
        )
        for order, kinds in found.items()
    }


def main() -> None:
    options = _parsed()
    regime = smaller(REGIME, options)
    orders = tuple(ORDERS) if options.only is None else (options.only,)
    dataset = load_dataset(options.pictures)
    options.output.mkdir(parents=True, exist_ok=True)
    runs = Runs(DataConfig(options.pictures), options.seeds, "none", options.device, options.output, print)
    file = options.output / "tuned.json"
    if options.tune:
        result = tuned(dataset, regime, runs, orders)
        if options.only is None:
            write_text_atomically(file, json.dumps(result, indent=1) + "\n")
        return
    if not file.exists():
        raise SystemExit(f"{file} does not exist: run the same with --tune first, and without --only.")
    saved = json.loads(file.read_text(encoding="utf-8"))
    refuse_other_regime(file, saved, asdict(regime))
    choices = {order: {kind: one["chosen"] for kind, one in kinds.items()} for order, kinds in saved["arms"].items()}
    found = compared(dataset, regime, choices, runs, orders)
    for name, paired in claims(found).items():
        print(f"{name}: {paired} points")
    if options.record:
        _record(found, saved, choices, options.seeds)


def _record(
    found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    tuning: Mapping[str, Any],
    choices: Mapping[str, Mapping[str, str]],
    seeds: int,
) -> None:
    runs = [row for arms in found.values() for rows in arms.values() for row in rows]
    on, versions = machines(runs), versions_of(runs)
    raw = {"when": time.strftime("%Y-%m-%d"), "hardware": on, "tuned": tuning, "arms": found}
    (RESULTS / "adaptive.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    seeds_option = "" if seeds == REGIME.seeds else f" --seeds {seeds}"
    command = f"python -m benchmarks.adaptive IMAGENETTE{seeds_option}"
    for name, paired in claims(found).items():
        record(name, unit="points", command=f"{command} --record", on=on, versions=versions, **asdict(paired))
    write_record("13", small_tables.table_13(found, choices, REGIME, turns=_TURNS), "small", command, on)
    paper_page.write()


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="Imagenette: train/ and val/ with a folder per class")
    parser.add_argument("--tune", action="store_true", help="choose the strengths and stop")
    parser.add_argument("--only", choices=ORDERS, help="only this order of sizes")
    parser.add_argument("--seeds", type=int, default=REGIME.seeds)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=RESULTS / "adaptive")
    parser.add_argument(
        "--record", action="store_true", help="write results/summary.json, the raw values and docs/benchmarks/paper.md"
    )
    add_smaller(parser)
    options = parser.parse_args()
    if options.record and (smaller(REGIME, options) != REGIME or options.seeds < 2 or options.tune or options.only):
        parser.error("--record is for the whole regime, both orders and 2 seeds or more, and not for --tune.")
    refuse_to_record_elsewhere(parser, options)
    return options


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
