"""What adaptive regularization is worth: the paper's Table 13 in small, V2-B0 from scratch on Imagenette.

Run: python -m benchmarks.adaptive IMAGENETTE --tune [--only growing|random]
     python -m benchmarks.adaptive IMAGENETTE [--only growing|random] [--seeds 5] [--record]

1,000 training images, each seed its own, for 60 epochs, so that training without regularization overfits, in sizes
from 48 to 96 px; all of val is answered at 96 px, once, at the end. Four arms, the same images and seeds in each:

- growing: four stages, smallest images first. random: one of the four sizes is drawn 44 times over the run (Table 13:
  every 8 of 350 epochs).
- vanilla: the same RandAugment and dropout throughout, or none of them. adaptive: both follow the size, from a third of
  their end with the smallest images to all of it with the largest.

``--tune`` comes first: in each arm, up to five strengths of regularization, weakest first, until one is more than three
points below the best (``benchmarks.regimes``; vanilla's slight one is adaptive's light one on average), on training
images alone: 1,000 to fit, 2,000 others to choose by, one run each. Vanilla may come to have none. What it chose is
kept in OUT/tuned.json. Two processes, one for each word of ``--only``, can share the cores; without it, what both found
is read.

Every run is kept in OUT and not done again. ``--record`` also writes Table 13 at scale small with these figures.
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
    HARDLY_VALIDATED,
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
_TURNS = 44  # a size for each 8 of the paper's 350 epochs
ORDERS: Mapping[str, tuple[str, ...]] = {GROWING: (), RANDOM: (f"progressive.random_draws={_TURNS}",)}
VANILLA, ADAPTIVE = "vanilla", "adaptive"
KINDS = (VANILLA, ADAPTIVE)
_ENDS = {GROWING: "", RANDOM: "_random_resize"}  # of the claims' names


def cell(order: str, kind: str, column: str, strength: str, regime: Regime, epochs: float, device: str) -> Cell:
    """One arm: recipe ``quick``, its schedule replaced."""
    settings = (
        *same_numbers(device), *HARDLY_VALIDATED, f"epochs={epochs:.6g}", f"batch_size={regime.batch_size}",
        "progressive.stages=4",
        f"progressive.image_size={{start: {regime.image_size / 2:g}, end: {regime.image_size}}}",
        f"progressive.size_multiple={regime.size_multiple}", f"progressive.order={order}", *ORDERS[order],
        *regularized(strength, growing=kind == ADAPTIVE),
    )  # fmt: skip
    return Cell(f"{order} {kind}", column, "quick", regime.model, settings)


def tuned(dataset: ImageDataset, regime: Regime, runs: Runs, orders: Sequence[str]) -> dict[str, Any]:
    """Try the strengths of each arm: what was found, and the choices.

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
        asked = cell(order, kind, strength, strength, regime, regime.tune_epochs, runs.device)
        reached: float = measured(runs, asked, 0)["top1"]
        print(f"tuning {order}, {kind}: {strength}: {reached:.1%}", flush=True)
        return reached

    # Adaptive regularization is some: with none the two kinds are one.
    some = [name for name in strengths(growing=kind == ADAPTIVE) if kind == VANILLA or name != "none"]
    tried = try_strengths(some, top1)
    return {"chosen": max(tried, key=lambda name: tried[name]), "tried": tried}


def compared(
    dataset: ImageDataset, regime: Regime, choices: Mapping[str, Mapping[str, str]], runs: Runs, orders: Sequence[str]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """All arms with all seeds; order -> kind -> what ``measured`` says, one per seed."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {order: {kind: [] for kind in KINDS} for order in orders}
    for seed, here in each_seed(dataset, regime, runs):
        for order in orders:
            for kind in KINDS:
                arm = cell(order, kind, "run", choices[order][kind], regime, regime.epochs, runs.device)
                found[order][kind].append(measured(here, arm, seed))
            told = ", ".join(f"{kind} {found[order][kind][-1]['top1']:.1%}" for kind in KINDS)
            print(f"seed {seed}, {order}: {told}", flush=True)
    return found


def claims(found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[str, Paired]:
    """Name -> points of top-1 that adaptive has over vanilla."""
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
    kept = options.output / "tuned.json"
    if options.tune:
        made = tuned(dataset, regime, runs, orders)
        if options.only is None:
            write_text_atomically(kept, json.dumps(made, indent=1) + "\n")
        return
    if not kept.exists():
        raise SystemExit(f"{kept} does not exist: run the same with --tune first, and without --only.")
    told = json.loads(kept.read_text(encoding="utf-8"))
    refuse_other_regime(kept, told, asdict(regime))
    choices = {order: {kind: one["chosen"] for kind, one in kinds.items()} for order, kinds in told["arms"].items()}
    found = compared(dataset, regime, choices, runs, orders)
    for name, figure in claims(found).items():
        print(f"{name}: {figure} points")
    if options.record:
        _record(found, told, choices, options.seeds)


def _record(
    found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    told: Mapping[str, Any],
    choices: Mapping[str, Mapping[str, str]],
    seeds: int,
) -> None:
    runs = [row for arms in found.values() for rows in arms.values() for row in rows]
    on, versions = machines(runs), versions_of(runs)
    raw = {"when": time.strftime("%Y-%m-%d"), "hardware": on, "tuned": told, "arms": found}
    (RESULTS / "adaptive.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    more = "" if seeds == REGIME.seeds else f" --seeds {seeds}"
    command = f"python -m benchmarks.adaptive IMAGENETTE{more}"
    for name, figure in claims(found).items():
        record(name, unit="points", command=f"{command} --record", on=on, versions=versions, **asdict(figure))
    write_record("13", small_tables.table_13(found, choices, REGIME, turns=_TURNS), "small", command, on)
    paper_page.write()


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="Imagenette: train/ and val/ with a folder per class")
    parser.add_argument("--tune", action="store_true", help="choose the strengths, and stop")
    parser.add_argument("--only", choices=ORDERS, help="this order of sizes alone")
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
