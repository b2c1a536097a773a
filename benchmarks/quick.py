"""Recipe ``quick`` as it comes, and its last stage throughout: what 10 epochs of Imagenette reach, and when.

Run: python -m benchmarks.quick IMAGENETTE [--seeds 3] [--record]

V2-B0 from scratch on all 9,469 training images: from 64 to 128 px, dropout from 0 to 0.1, or at 128 px with dropout
0.1. All else is as the recipe has it, and as ``effnetv2 train`` chooses it on this machine. Each epoch is validated on
512 images of val, as there; all of val is answered once, at the end. Nothing is tuned: the recipe is made for growing
images, so that this says what it does, not which way of training is better (``benchmarks.progressive`` does).

A run that was stopped goes on, one that is done is only read: its figures and its curve are kept in OUT. ``--record``
also draws docs/images/quick_over_time.png: top-1 of both ways against the time spent on training, of the first seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.arms import (
    Paired,
    machines,
    measured,
    over_seeds,
    refuse_incomparable_times,
    refuse_to_record_elsewhere,
)
from benchmarks.paper.runs import Cell, Runs
from benchmarks.record import IMAGES, RESULTS, record, versions_of

from efficientnetv2.data.config import DataConfig
from efficientnetv2.evaluation.training_plots import draw_top1_over_time
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

EPOCHS = 10
GROWING, FIXED = "quick, growing", "fixed"
FIGURE = "quick_over_time.png"
_CLAIMED = {GROWING: "quick_b0_imagenette_10ep", FIXED: "quick_b0_imagenette_10ep_fixed"}
_ROW = ("kind", "step", "epoch", "image_size", "train_s", "images_per_s", "top1", "num_images")


def arms(epochs: float) -> dict[str, Cell]:
    """Both ways, for so many epochs."""
    growing = (f"epochs={epochs:g}",)
    return {
        GROWING: Cell("growing", "run", "quick", "efficientnetv2_b0", growing),
        FIXED: Cell("fixed", "run", "quick", "efficientnetv2_b0", (*growing, "progressive.stages=1")),
    }


def asked(runs: Runs, cell: Cell, seed: int) -> dict[str, Any]:
    """What ``arms.measured`` says of a run, what was chosen for it, and its curve."""
    found, folder = measured(runs, cell, seed), runs.folder(cell, seed)
    kept = folder / "curve.json"
    if not kept.exists():
        rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        curve = [{name: row[name] for name in _ROW if name in row} for row in map(json.loads, rows)]
        recipe = json.loads((folder / "report.json").read_text(encoding="utf-8"))["recipe"]
        told = {"precision": recipe["precision"], "curve": curve}
        write_text_atomically(kept, json.dumps(told, indent=1) + "\n")
    curve_and_precision: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found | curve_and_precision


def claims(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, tuple[Paired, str]]:
    """Name -> figure and unit; with one seed there is no interval.

    Args:
        found: of each way a row a seed, as ``asked`` gives them.
    """
    named: dict[str, tuple[Paired, str]] = {}
    for way, rows in found.items():
        for name, unit in (("top1", "fraction"), ("wall_s", "s")):
            named[f"{_CLAIMED[way]}_{name}"] = (over_seeds([row[name] for row in rows]), unit)
    return named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="Imagenette: train/ and val/ with a folder per class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="another is not to be recorded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=RESULTS / "quick")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and quick.json")
    options = parser.parse_args()
    if options.record and options.epochs != EPOCHS:
        parser.error(f"--record is for {EPOCHS} epochs.")
    refuse_to_record_elsewhere(parser, options)
    runs = Runs(DataConfig(options.pictures), options.seeds, "none", options.device, options.output, print)
    found: dict[str, list[dict[str, Any]]] = {GROWING: [], FIXED: []}
    for seed in range(options.seeds):
        for way, cell in arms(options.epochs).items():
            found[way].append(asked(runs, cell, seed))
            row = found[way][-1]
            print(
                f"seed {seed}: {way} {row['top1']:.1%} in {row['wall_s']:.0f} s, {row['train_s']:.0f} s of them "
                f"training (others had {row['others_cores']:.1f} cores)",
                flush=True,
            )
        refuse_incomparable_times([rows[-1] for rows in found.values()])
    named = claims(found)
    for name, (figure, unit) in named.items():
        print(f"{name}: {figure.value:.4f} ({figure.low:.4f} to {figure.high:.4f}) {unit}, n = {figure.n}")
    if options.record:
        # Not only those of a seed: their seconds are averaged.
        refuse_incomparable_times([row for rows in found.values() for row in rows])
        write(found, named)


def write(found: Mapping[str, Sequence[Mapping[str, Any]]], named: Mapping[str, tuple[Paired, str]]) -> None:
    """The record, the claims and the drawing.

    Args:
        found: as for ``claims``.
        named: its answer.
    """
    runs = [row for rows in found.values() for row in rows]
    on = machines(runs)
    raw = {"when": time.strftime("%Y-%m-%d"), "hardware": on, "epochs": EPOCHS, "arms": found}
    (RESULTS / "quick.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    seeds = len(found[GROWING])
    command = f"python -m benchmarks.quick IMAGENETTE{'' if seeds == 3 else f' --seeds {seeds}'} --record"
    for name, (figure, unit) in named.items():
        record(name, unit=unit, command=command, on=on, versions=versions_of(runs), **asdict(figure))
    drawing = draw_top1_over_time({way: rows[0]["curve"] for way, rows in found.items()})
    if drawing is not None:
        drawing.savefig(IMAGES / FIGURE, dpi=144, metadata={"Software": None})


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
