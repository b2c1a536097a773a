"""The weights that come with the repository: what they gain, and how a run becomes them.

Run: python -m benchmarks.starter                          what they gain; prints and records it
     python -m benchmarks.starter --ship RUN UCMERCED      first makes them of a finished run on the images UCMERCED

What they gain is measured on images that they have never seen, 600 satellite images of three classes of land cover:
a linear probe on the features of the shipped file, and of a network with fresh weights, over 5 seeds (of the folds, of
the fresh weights and of the probe). 5 folds by spatial blocks, at the size of the file's own preprocessing.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from pathlib import Path

import numpy as np
import torch
from benchmarks.record import RESULTS, interval, keep, record

from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.folds import assign_folds
from efficientnetv2.inference.linear_probe import out_of_fold_predictions
from efficientnetv2.inference.predict import Embeddings, embed_dataset, predict_dataset
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.random_key import Key

EXAMPLES = Path(__file__).parents[1] / "examples"
SHIPPED = EXAMPLES / "weights/efficientnetv2_b0.safetensors"
FOLDS, SEEDS = 5, 5


def ship(run: Path, pictures: str) -> None:
    """Make the shipped file of a run, in half precision; keep its record and claim its figure."""
    model_file.save(SHIPPED, model_file.load(run), half=True)
    report = keep(run, RESULTS / "starter", renamed={pictures.rstrip("/"): "ucmerced"})
    val = load_dataset(str(run / "dataset.csv")).subset("val")
    network = model_file.load(SHIPPED)
    found = predict_dataset(network, val, preprocessing=network.preprocessing)
    top1 = float((found.probabilities.argmax(axis=1) == found.labels).mean())
    print(f"top-1 on {len(val)} held-out pictures: {report['top1']:.4f} as trained, {top1:.4f} as shipped")
    low, high = report["intervals"]["top1"]
    record(
        "starter_ucmerced_top1", report["top1"], unit="fraction", low=low, high=high, n=1, command=report["command"]
    )  # fmt: skip
    print(f"{SHIPPED.stat().st_size:,} bytes, SHA-256 {hashlib.sha256(SHIPPED.read_bytes()).hexdigest()}")


def probed(dataset: ImageDataset, embedded: Embeddings, seed: int) -> float:
    """Macro-F1 of linear probes, of all images' answers together."""
    dealt = assign_folds(dataset, k=FOLDS, seed=seed, contents=np.arange(len(dataset)), by="place")
    parts = [(part.train_rows, part.val_rows) for part in dealt.parts]
    answers = out_of_fold_predictions(embedded, parts, key=Key.of(seed), balanced=True)
    return classification_metrics(
        embedded.labels, np.eye(len(dataset.class_names))[answers], dataset.class_names
    ).macro_f1


def embedded(network: Network, dataset: ImageDataset, preprocessing: Preprocessing) -> Embeddings:
    """The features of every image."""
    return embed_dataset(network, dataset, preprocessing=preprocessing)


def gain() -> dict[str, list[float]]:
    """Macro-F1 by seed, of the probe on the shipped weights and on fresh ones."""
    dataset, shipped = load_dataset(str(EXAMPLES / "land_cover/pictures.csv")), model_file.load(SHIPPED)
    seen = embedded(shipped, dataset, shipped.preprocessing)
    found: dict[str, list[float]] = {"starter": [], "untrained": []}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        fresh = embedded(create("efficientnetv2_b0").eval(), dataset, shipped.preprocessing)
        found["starter"].append(probed(dataset, seen, seed))
        found["untrained"].append(probed(dataset, fresh, seed))
        print(f"seed {seed}: macro-F1 {found['starter'][-1]:.3f}, untrained {found['untrained'][-1]:.3f}", flush=True)
    return found


def main() -> None:
    """Ship if asked, then measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ship", nargs=2, metavar=("RUN", "UCMERCED"))
    options = parser.parse_args()
    if options.ship:
        ship(Path(options.ship[0]), options.ship[1])
    for name, values in gain().items():
        low, high = interval(values)
        mean = statistics.fmean(values)
        record(
            f"{name}_land_cover_probe_macro_f1", mean, unit="F1", low=low, high=high, n=SEEDS,
            command="python -m benchmarks.starter",
        )  # fmt: skip
        print(f"{name}: macro-F1 {mean:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
