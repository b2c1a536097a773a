"""Bundled weights: how to make them, and their gain.

Run: python -m benchmarks.starter --table starter.csv NAME=FOLDER...
         Writes the table of training images: all classes of several datasets, with labels NAME/CLASS, except the
         classes of the demo. A class has at most 1,500 images.
     python -m benchmarks.starter --ship RUN
         Makes the bundled file from a finished run on this table.
     python -m benchmarks.starter [--finetune NAME=TRAIN,TEST ... --minutes 4] [--record]
         Measures the gain.

The gain is measured on images of datasets or classes that are not in the table.

- ``starter_DATASET_probe_macro_f1``, ``untrained_DATASET_probe_macro_f1``: a linear probe on the features of the
  bundled model, and of a model with random weights, for the two bundled datasets. 5 folds (by location for
  ``land_cover``), over 5 seeds (of the folds, the random weights and the probe), at the image size of the bundled
  preprocessing.
- ``starter_NAME_minus_scratch_top1``: ``effnetv2 train TRAIN --minutes M`` from the bundled weights minus the same from
  random weights, in points, on TEST, one run each, with the interval of a paired bootstrap over the images. Both train
  at the same time, each on half of the processors. Finished runs in OUT are read again.
- ``starter_top1``: top-1 of the run on its validation images (``--ship``).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import random
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from benchmarks.arms import machines
from benchmarks.minutes_kept import Task, named_set, train
from benchmarks.record import RESULTS, interval, keep, record, versions_of

from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.folds import assign_folds
from efficientnetv2.evaluation.predictions import compare_predictions, load_predictions
from efficientnetv2.inference.linear_probe import out_of_fold_predictions
from efficientnetv2.inference.predict import Embeddings, embed_dataset, predict_dataset
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.training.initial_weights import BUNDLED, EXAMPLES
from efficientnetv2.utils.random_key import Key

SHIPPED = BUNDLED / "efficientnetv2_b0.safetensors"
SETS = {"land_cover": EXAMPLES / "land_cover/images.csv", "satellite": EXAMPLES / "satellite"}
FOLDS, SEEDS = 5, 5


MOST = 1500  # images of a class in the table. Ours: more images of a class improve little, and cost time.


def write_table(target: Path, sets: dict[str, Path]) -> None:
    """Write the images of some datasets with label NAME/CLASS, without the classes of the bundled images."""
    bundled = {folder.name for folder in SETS["satellite"].iterdir()}
    classes = [
        (name, folder)
        for name, root in sets.items()
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name not in bundled
    ]
    with target.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label"))
        for name, folder in classes:
            images = sorted(folder.iterdir())
            drawn = random.Random(0).sample(images, min(len(images), MOST))
            rows.writerows((image.absolute(), f"{name}/{folder.name}") for image in sorted(drawn))


def ship(run: Path) -> None:
    """Make the bundled file from a run, in half precision. Store its record, and claim its accuracy."""
    model = model_file.load(run)
    model.unknown = None  # its stored features are 2 MB, and unknown to 47 classes of five datasets means little
    model_file.save(SHIPPED, model, half=True)
    data = os.path.commonpath(load_dataset(str(run / "dataset.csv")).paths)
    report = keep(run, RESULTS / "starter", renamed={f"{data}/": ""} if data else None)
    val = load_dataset(str(run / "dataset.csv")).subset("val")
    model = model_file.load(SHIPPED)
    found = predict_dataset(model, val, preprocessing=model.preprocessing)
    top1 = float((found.probabilities.argmax(axis=1) == found.labels).mean())
    print(f"top-1 on {len(val)} held-out images: {report['top1']:.4f} as trained, {top1:.4f} as shipped")
    low, high = report["intervals"]["top1"]
    record("starter_top1", report["top1"], unit="fraction", low=low, high=high, n=1, command=report["command"])
    print(f"{SHIPPED.stat().st_size:,} bytes, SHA-256 {hashlib.sha256(SHIPPED.read_bytes()).hexdigest()}")


def probe_macro_f1(dataset: ImageDataset, embeddings: Embeddings, seed: int, by: str) -> float:
    """Compute the macro-F1 of linear probes from out-of-fold predictions of all images."""
    folds = assign_folds(dataset, k=FOLDS, seed=seed, contents=np.arange(len(dataset)), by=by)
    parts = [(part.train_rows, part.val_rows) for part in folds.parts]
    predicted = out_of_fold_predictions(embeddings, parts, key=Key.of(seed), balanced=True)
    one_hot = np.eye(len(dataset.class_names))[predicted]
    return classification_metrics(embeddings.labels, one_hot, dataset.class_names).macro_f1


def measure_probes(name: str, recorded: bool) -> None:
    """Print, and perhaps record, the macro-F1 of the probe with bundled and with random weights."""
    dataset, shipped = load_dataset(str(SETS[name])), model_file.load(SHIPPED)
    by = "place" if name == "land_cover" else "class"
    found: dict[str, list[float]] = {"starter": [], "untrained": []}
    features = embed_dataset(shipped, dataset, preprocessing=shipped.preprocessing)
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        untrained = create("efficientnetv2_b0").eval()
        random_features = embed_dataset(untrained, dataset, preprocessing=shipped.preprocessing)
        found["starter"].append(probe_macro_f1(dataset, features, seed, by))
        found["untrained"].append(probe_macro_f1(dataset, random_features, seed, by))
    for side, values in found.items():
        (low, high), mean = interval(values), statistics.fmean(values)
        if recorded:
            record(
                f"{side}_{name}_probe_macro_f1", mean, unit="F1", low=low, high=high, n=SEEDS,
                command="python -m benchmarks.starter --record",
            )  # fmt: skip
        print(f"{side} {name}: macro-F1 of the probe {mean:.3f} ({low:.3f} to {high:.3f})", flush=True)


def measure_finetuning(name: str, data: str, test: str, minutes: float, out: Path, recorded: bool) -> None:
    """Print, and perhaps record, top-1 of fine-tuning minus top-1 of training from scratch, in the same time."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    sides = {"starter": (str(SHIPPED), set(cores[:half])), "scratch": ("none", set(cores[half : 2 * half]))}
    with ThreadPoolExecutor(2) as pool:
        runs = {
            side: pool.submit(train, Task(data, test, minutes, start), out / f"{name}_{side}", None, on)
            for side, (start, on) in sides.items()
        }
        rows = {side: run.result() for side, run in runs.items()}
    between = compare_predictions(*(load_predictions(out / f"{name}_{side}/test") for side in sides))
    assert between is not None, "both predict the test images"
    points = {end: 100 * getattr(between.top1, end) for end in ("value", "low", "high")}
    if recorded:
        record(
            f"starter_{name}_minus_scratch_top1", **points, unit="points", n=between.num_images,
            command=f"python -m benchmarks.starter --finetune {name}=TRAIN,TEST --minutes {minutes:g} --record",
            on=machines(list(rows.values())), versions=versions_of(list(rows.values())),
        )  # fmt: skip
    top1 = {side: 100 * row["test_top1"] for side, row in rows.items()}
    print(
        f"{name}: top-1 {top1['starter']:.1f} % from the bundled weights, {top1['scratch']:.1f} % from scratch, "
        f"{points['value']:+.1f} points ({points['low']:+.1f} to {points['high']:+.1f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--ship", type=Path, metavar="RUN")
    parser.add_argument("--finetune", nargs="*", type=named_set, default=[], metavar="NAME=TRAIN,TEST")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--output", type=Path, default=Path("runs/starter_gain"), metavar="OUT")
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    if options.table:
        pairs = (one.partition("=") for one in options.sets)
        write_table(options.table, {name: Path(folder) for name, _, folder in pairs})
    elif options.ship:
        ship(options.ship)
    else:
        for name in SETS:
            measure_probes(name, options.record)
        options.output.mkdir(parents=True, exist_ok=True)
        for name, data, test in options.finetune:
            measure_finetuning(name, data, test, options.minutes, options.output, options.record)


if __name__ == "__main__":
    main()
