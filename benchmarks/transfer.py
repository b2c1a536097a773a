"""From ImageNet to CIFAR-10 at a small size: the paper's transfer recipe, our ``finetune``, a linear probe.

Run: python -m benchmarks.transfer CIFAR10 WEIGHTS [--seeds 3] [--record]

CIFAR10 is a folder with train/ and test/ and a folder per class in each (the whole set as files); WEIGHTS a file of
EfficientNetV2-B0's. All of train is trained on, all of test answered once, at the end.

- transfer_paper: its recipe with 96 px in the place of 384, 3 epochs in that of 10,000 steps of 512, and batches of 64,
  its rate in proportion.
- finetune: as it comes but for the same end size and as many epochs.
- linear probe: logistic regression on the features of the weights as given, at the same size. Each run fits one to
  5,000 of the training images at most and asks it 5,000 of the others; finetune is compared with its own, on those.

What is done is kept in OUT and not done again; of it git keeps the figures alone, so that it may take several sittings
(a recipe that has changed since is another: delete its runs there). ``--record`` writes the paper's Table 8 at scale
small too.
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
_LR = 1e-3 * _BATCH / 512  # the paper's, for its batch


def arms(image_size: int, epochs: float) -> dict[str, Cell]:
    """Both recipes at this size and length."""
    both = (*HARDLY_VALIDATED, f"epochs={epochs:g}", f"eval_image_size={image_size}")
    paper = ("steps=null", f"progressive.image_size={image_size}", f"batch_size={_BATCH}", f"optimizer.lr={_LR:g}")
    ours = (f"progressive.image_size={{start: {image_size * 4 / 7:.4g}, end: {image_size}}}",)  # its own 128 to 224
    return {
        PAPER: Cell(PAPER, "run", PAPER, "efficientnetv2_b0", (*both, *paper)),
        OURS: Cell(OURS, "run", OURS, "efficientnetv2_b0", (*both, *ours)),
    }


def asked(runs: Runs, cell: Cell, seed: int) -> dict[str, Any]:
    """What ``arms.measured`` says of a run, and what it has over its probe on the images that both answered."""
    found, folder = measured(runs, cell, seed), runs.folder(cell, seed)
    kept = folder / "over_probe.json"
    if not kept.exists():
        write_text_atomically(kept, json.dumps(over_probe(folder), indent=1) + "\n")
    beside: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found | beside


def claims(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, tuple[Paired, str]]:
    """Name -> figure and unit.

    Args:
        found: of each arm a row a seed, as ``asked`` gives them.
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
    parser.add_argument("--image-size", type=int, default=_IMAGE_SIZE, help="another is not to be recorded")
    parser.add_argument("--epochs", type=float, default=_EPOCHS, help="likewise")
    parser.add_argument("--num-train-images", type=int, help="all otherwise; not to be recorded")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and transfer.json")
    options = parser.parse_args()
    whole = options.num_train_images is None and (options.image_size, options.epochs) == (_IMAGE_SIZE, _EPOCHS)
    if options.record and (not whole or options.seeds < 2):
        parser.error(
            f"--record is for all pictures, {_IMAGE_SIZE} px, {_EPOCHS} epochs and 2 seeds or more: so the page says."
        )
    refuse_to_record_elsewhere(parser, options)
    dataset = load_dataset(options.pictures)
    learning = rows_of(dataset, "train", options.num_train_images, 0)
    answers = "test" if (dataset.split == "test").any() else "val"
    answering = rows_of(dataset, answers, options.num_train_images, 0)
    file = write_pictures(options.output / "pictures.csv", dataset, learning, answering)
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
    for name, (figure, unit) in named.items():
        print(f"{name}: {figure.value:.4f} ({figure.low:.4f} to {figure.high:.4f}) {unit}, n = {figure.n}")
    if options.record:
        _record(options, found, learnt=len(learning), answered=len(answering), answers=answers)


def _record(
    options: argparse.Namespace,
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    learnt: int,
    answered: int,
    answers: str,
) -> None:
    """The raw figures, the claims, the table and the page."""
    rows = [row for rows in found.values() for row in rows]
    on = machines(rows)
    raw = {
        "when": time.strftime("%Y-%m-%d"), "hardware": on, "image_size": options.image_size,
        "epochs": options.epochs, "num_train_images": learnt, "answered": answered,
        "arms": found,
    }  # fmt: skip
    (RESULTS / "transfer.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    command = "python -m benchmarks.transfer CIFAR10 WEIGHTS --record"
    command += "" if options.seeds == SEEDS else f" --seeds {options.seeds}"
    for name, (figure, unit) in claims(found).items():
        record(name, unit=unit, command=command, on=on, versions=versions_of(rows), **asdict(figure))
    made = small_tables.table_8(
        found[PAPER], image_size=options.image_size, epochs=options.epochs, batch_size=_BATCH, answered=answers
    )
    write_record("8", made, "small", command, machines(found[PAPER]))
    paper_page.write()


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
