"""Tables 5 and 13 at small scale with RandAugment as in the official code, next to the runs with our preset `monotone`.

Run: python -m benchmarks.released_operations IMAGENETTE [--record]

One run per cell, with the images of the first seed: Table 5 as in ``benchmarks.paper 5 --scale small``, Table 13 as in
``benchmarks.adaptive`` with the strengths that were tuned for `monotone`. Nothing is tuned for the released operations.
OUT stores all runs; finished runs are read again. ``--record`` writes results/released_operations.json and the page of
the paper's tables.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.adaptive import KINDS, ORDERS, REGIME, cell
from benchmarks.arms import machines, measured
from benchmarks.paper import page
from benchmarks.paper.accuracy import cells_5
from benchmarks.paper.runs import Cell, Runs
from benchmarks.paper.scale import SCALES
from benchmarks.record import RESULTS, versions_of
from benchmarks.regimes import each_seed

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory


def _released(of: Cell) -> Cell:
    return replace(of, settings=(*of.settings, "augment.randaugment_preset=released"))


def runs_of(runs: Runs, strengths: dict[str, dict[str, str]]) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of each table. A run has its ``row`` and ``column``, and the results of ``measured``."""
    found: dict[str, list[dict[str, Any]]] = {"5": [], "13": []}
    seed, first = next(each_seed(load_dataset(runs.source.data), REGIME, runs))
    for order in ORDERS:
        for kind in KINDS:
            one = cell(order, kind, "run", strengths[order][kind], REGIME, REGIME.epochs, runs.device)
            found["13"].append({"row": order, "column": kind, **measured(first, _released(one), seed)})
    for one in cells_5(SCALES["small"]):
        found["5"].append({"row": one.row, "column": one.column, **measured(runs, _released(one), 0)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", metavar="IMAGENETTE", help="train/ and val/ with a folder per class")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=Path("runs/released_operations"))
    parser.add_argument("--record", action="store_true", help="write the record and docs/benchmarks/paper.md")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    tuned = json.loads((RESULTS / "adaptive/tuned.json").read_text(encoding="utf-8"))["arms"]
    strengths = {order: {kind: one["chosen"] for kind, one in by_kind.items()} for order, by_kind in tuned.items()}
    found = runs_of(Runs(DataConfig(options.pictures), 1, "none", options.device, options.output, print), strengths)
    for table, rows in found.items():
        for row in rows:
            print(f"Table {table}, {row['row']}, {row['column']}: {row['top1']:.1%}")
    if options.record:
        every = [row for rows in found.values() for row in rows]
        about = {"when": time.strftime("%Y-%m-%d"), "hardware": machines(every), "versions": versions_of(every)}
        text = json.dumps({**about, "tables": found}, indent=1) + "\n"
        write_text_atomically(RESULTS / "released_operations.json", text)
        page.write()


if __name__ == "__main__":
    keep_freed_memory()  # as the command line does
    main()
