"""Recipe ``quick`` with its defaults, and with its last stage throughout: top-1 and time of 10 epochs of Imagenette.

Run: python -m benchmarks.quick IMAGENETTE [--seeds 3] [--record]

V2-B0 from scratch on all 9,469 training images: from 64 to 128 px with dropout from 0 to 0.1 (growing), or at 128 px
with dropout 0.1 (fixed). All other values are those of the recipe and of ``effnetv2 train`` on this machine. Validation
after each epoch uses 512 images of val. The end evaluates all of val once. Nothing is tuned. The recipe is made for
growing images, so this is not a comparison of the two methods; ``benchmarks.progressive`` compares them.

- ``quick_b0_imagenette_10ep_top1``, ``quick_b0_imagenette_10ep_wall_s``: growing.
- ``quick_b0_imagenette_10ep_fixed_top1``, ``quick_b0_imagenette_10ep_fixed_wall_s``: fixed.

A stopped run resumes; a finished run is read again. OUT stores results and curves. ``--record`` also draws
docs/images/quick_over_time.png: top-1 of both arms against training time, of the first seed.
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
    """Return both arms with this number of epochs."""
    growing = (f"epochs={epochs:g}",)
    return {
        GROWING: Cell("growing", "run", "quick", "efficientnetv2_b0", growing),
        FIXED: Cell("fixed", "run", "quick", "efficientnetv2_b0", (*growing, "progressive.stages=1")),
    }


def asked(runs: Runs, cell: Cell, seed: int) -> dict[str, Any]:
    """Return the results of ``arms.measured`` for a run, with its chosen precision and its curve."""
    found, folder = measured(runs, cell, seed), runs.folder(cell, seed)
    file = folder / "curve.json"
    if not file.exists():
        rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        curve = [{name: row[name] for name in _ROW if name in row} for row in map(json.loads, rows)]
        recipe = json.loads((folder / "report.json").read_text(encoding="utf-8"))["recipe"]
        content = {"precision": recipe["precision"], "curve": curve}
        write_text_atomically(file, json.dumps(content, indent=1) + "\n")
    curve_and_precision: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found | curve_and_precision


def claims(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, tuple[Paired, str]]:
    """Return name -> value and unit. With one seed there is no interval.

    Args:
        found: Arm -> results of ``asked``, one per seed.
    """
    named: dict[str, tuple[Paired, str]] = {}
    for arm, rows in found.items():
        for name, unit in (("top1", "fraction"), ("wall_s", "s")):
            named[f"{_CLAIMED[arm]}_{name}"] = (over_seeds([row[name] for row in rows]), unit)
    return named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="Imagenette: train/ and val/ with a folder per class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="--record takes only the default")
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
        for arm, cell in arms(options.epochs).items():
            found[arm].append(asked(runs, cell, seed))
            row = found[arm][-1]
            print(
                f"seed {seed}: {arm} {row['top1']:.1%} in {row['wall_s']:.0f} s, {row['train_s']:.0f} s of them "
                f"training (others had {row['others_cores']:.1f} cores)",
                flush=True,
            )
        refuse_incomparable_times([rows[-1] for rows in found.values()])
    named = claims(found)
    for name, (value, unit) in named.items():
        print(f"{name}: {value.value:.4f} ({value.low:.4f} to {value.high:.4f}) {unit}, n = {value.n}")
    if options.record:
        # Over all seeds, because the mean of their seconds is recorded.
        refuse_incomparable_times([row for rows in found.values() for row in rows])
        write(found, named)


def write(found: Mapping[str, Sequence[Mapping[str, Any]]], named: Mapping[str, tuple[Paired, str]]) -> None:
    """Write the record, the claims and the plot.

    Args:
        found: As for ``claims``.
        named: Result of ``claims``.
    """
    runs = [row for rows in found.values() for row in rows]
    on = machines(runs)
    raw = {"when": time.strftime("%Y-%m-%d"), "hardware": on, "epochs": EPOCHS, "arms": found}
    (RESULTS / "quick.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    seeds = len(found[GROWING])
    command = f"python -m benchmarks.quick IMAGENETTE{'' if seeds == 3 else f' --seeds {seeds}'} --record"
    for name, (value, unit) in named.items():
        record(name, unit=unit, command=command, on=on, versions=versions_of(runs), **asdict(value))
    plot = draw_top1_over_time({arm: rows[0]["curve"] for arm, rows in found.items()})
    if plot is not None:
        plot.savefig(IMAGES / FIGURE, dpi=144, metadata={"Software": None})


if __name__ == "__main__":
    keep_freed_memory()  # as the command line does
    main()
