"""Transfer from ImageNet to CIFAR-10 at a small image size: the paper's recipe, our ``finetune``, a linear probe.

Run: python -m benchmarks.transfer CIFAR10 WEIGHTS [--seeds 3] [--record]

CIFAR10 is a folder with train/ and test/, each with a folder per class (the whole dataset as files). WEIGHTS is a file
of weights of EfficientNetV2-B0. Training uses all of train. The end evaluates all of test once.

- transfer_paper: the paper's recipe with 96 px instead of 384, 3 epochs instead of 10,000 steps of 512 images, batches
  of 64, and the learning rate in proportion.
- finetune: with its defaults, except for the same final image size and number of epochs.
- linear probe: logistic regression on the features of WEIGHTS, at the same image size. Each run fits a probe to at most
  5,000 training images and evaluates it on 5,000 others. finetune is compared with its probe on these.

The claims:

- ``transfer_paper_cifar10_top1``, ``finetune_cifar10_top1``: top-1.
- ``finetune_cifar10_top1_gain_over_transfer_paper``, ``finetune_cifar10_top1_gain_over_probe``: gains in points.

OUT stores all runs; finished runs are read again. Only the results are committed. Delete the runs of a recipe that has
changed. ``--record`` also writes the paper's Table 8 at scale small.
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
    over_seeds,
    refuse_to_record_elsewhere,
    rows_of,
    write_pictures,
)
from benchmarks.default_train import over_probe
from benchmarks.paper import page as paper_page
from benchmarks.paper.records import write_record
from benchmarks.paper.runs import Cell, Runs
from benchmarks.record import RESULTS, record, versions_of

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

PAPER, OURS = "transfer_paper", "finetune"
SEEDS = 3
_IMAGE_SIZE, _EPOCHS = 96, 3
_BATCH = 64
_LR = 1e-3 * _BATCH / 512  # the paper's rate, in proportion to the batch size


def arms(image_size: int, epochs: float) -> dict[str, Cell]:
    """Return both recipes with this size and length."""
    both = (*NOTHING_SELECTED, f"epochs={epochs:g}", f"eval_image_size={image_size}")
    paper = ("steps=null", f"progressive.image_size={image_size}", f"batch_size={_BATCH}", f"optimizer.lr={_LR:g}")
    ours = (f"progressive.image_size={{start: {image_size * 4 / 7:.4g}, end: {image_size}}}",)  # default: 128 to 224
    return {
        PAPER: Cell(PAPER, "run", PAPER, "efficientnetv2_b0", (*both, *paper)),
        OURS: Cell(OURS, "run", OURS, "efficientnetv2_b0", (*both, *ours)),
    }


def asked(runs: Runs, cell: Cell, seed: int) -> dict[str, Any]:
    """Return the results of ``arms.measured`` for a run, and its gain over its probe on the same images."""
    found, folder = measured(runs, cell, seed), runs.folder(cell, seed)
    file = folder / "over_probe.json"
    if not file.exists():
        write_text_atomically(file, json.dumps(over_probe(folder), indent=1) + "\n")
    gains: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found | gains


def claims(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, tuple[Paired, str]]:
    """Return name -> value and unit.

    Args:
        found: Arm -> results of ``asked``, one per seed.
    """
    top1 = {arm: [row["top1"] for row in rows] for arm, rows in found.items()}
    named: dict[str, tuple[Paired, str]] = {}
    for arm, values in top1.items():
        named[f"{arm}_cifar10_top1"] = (over_seeds(values), "fraction")
    points = {arm: [100 * one for one in values] for arm, values in top1.items()}
    named["finetune_cifar10_top1_gain_over_transfer_paper"] = (gain(points[OURS], points[PAPER]), "points")
    over = [100 * row["over_probe"]["top1"]["value"] for row in found[OURS]]
    named["finetune_cifar10_top1_gain_over_probe"] = (gain(over, [0.0] * len(over)), "points")
    return named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("weights")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=RESULTS / "transfer")
    parser.add_argument("--image-size", type=int, default=_IMAGE_SIZE, help="--record takes only the default")
    parser.add_argument("--epochs", type=float, default=_EPOCHS, help="--record takes only the default")
    parser.add_argument("--num-train-images", type=int, help="default: all; --record takes only the default")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and transfer.json")
    options = parser.parse_args()
    whole = options.num_train_images is None and (options.image_size, options.epochs) == (_IMAGE_SIZE, _EPOCHS)
    if options.record and (not whole or options.seeds < 2):
        parser.error(
            f"--record is for all pictures, {_IMAGE_SIZE} px, {_EPOCHS} epochs and 2 seeds or more: so the page says."
        )
    refuse_to_record_elsewhere(parser, options)
    dataset = load_dataset(options.pictures)
    train_rows = rows_of(dataset, "train", options.num_train_images, 0)
    split = "test" if (dataset.split == "test").any() else "val"
    eval_rows = rows_of(dataset, split, options.num_train_images, 0)
    file = write_pictures(options.output / "pictures.csv", dataset, train_rows, eval_rows)
    runs = Runs(DataConfig(str(file)), options.seeds, options.weights, options.device, options.output / "arms", print)
    found: dict[str, list[dict[str, Any]]] = {PAPER: [], OURS: []}
    for seed in range(options.seeds):
        for arm, cell in arms(options.image_size, options.epochs).items():
            found[arm].append(asked(runs, cell, seed))
            row = found[arm][-1]
            print(
                f"seed {seed}: {arm} {row['top1']:.2%} in {row['train_s']:.0f} s; its linear probe "
                f"{row['probe_top1']:.2%} on {row['pictures']} of the pictures",
                flush=True,
            )
    named = claims(found)
    for name, (value, unit) in named.items():
        print(f"{name}: {value.value:.4f} ({value.low:.4f} to {value.high:.4f}) {unit}, n = {value.n}")
    if options.record:
        _record(options, found, num_train_images=len(train_rows), num_evaluated=len(eval_rows), split=split)


def _record(
    options: argparse.Namespace,
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    num_train_images: int,
    num_evaluated: int,
    split: str,
) -> None:
    """Write the raw results, the claims, the table and the page."""
    rows = [row for rows in found.values() for row in rows]
    on = machines(rows)
    raw = {
        "when": time.strftime("%Y-%m-%d"), "hardware": on, "image_size": options.image_size,
        "epochs": options.epochs, "num_train_images": num_train_images, "answered": num_evaluated,
        "arms": found,
    }  # fmt: skip
    (RESULTS / "transfer.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    command = "python -m benchmarks.transfer CIFAR10 WEIGHTS --record"
    command += "" if options.seeds == SEEDS else f" --seeds {options.seeds}"
    for name, (value, unit) in claims(found).items():
        record(name, unit=unit, command=command, on=on, versions=versions_of(rows), **asdict(value))
    made = small_tables.table_8(
        found[PAPER], image_size=options.image_size, epochs=options.epochs, batch_size=_BATCH, answered=split
    )
    write_record("8", made, "small", command, machines(found[PAPER]))
    paper_page.write()


if __name__ == "__main__":
    keep_freed_memory()  # as the command line does
    main()
