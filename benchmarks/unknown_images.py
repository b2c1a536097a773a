"""Detection of images of other classes by the detector of a run: AUROC, and the fraction that is flagged.

Run: python -m benchmarks.unknown_images DATA --classes A B C --near-classes D E --far FOLDER [FOLDER ...]
    [--record]

DATA has a folder per class. A quick run trains on 150 images each of the given classes. Known images are further images
of these classes, near images those of other classes of DATA, far images those of other folders. The baseline is the
largest probability (arXiv:1610.02136). ``--record`` writes the results of one run to results/unknown_images.json.
Intervals are 95 % intervals over its images, by 1,000 bootstrap samples.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from benchmarks.record import RESULTS
from sklearn.metrics import roc_auc_score

import efficientnetv2 as ev2
from efficientnetv2.utils.io import write_text_atomically

TRAIN_PER_CLASS, TESTED = 150, 300


def images_of(folder: Path, rng: np.random.Generator) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [files[index] for index in rng.permutation(len(files))]


def compared(known: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """Compute the AUROC of scores that should be higher for other images, with its 95 % interval."""

    def auroc(one: np.ndarray, two: np.ndarray) -> float:
        return float(roc_auc_score(np.repeat([0, 1], [len(one), len(two)]), np.concatenate([one, two])))

    draws = [auroc(rng.choice(known, len(known)), rng.choice(other, len(other))) for _ in range(1_000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"auroc": auroc(known, other), "low": float(low), "high": float(high)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    files = {name: images_of(options.data / name, rng) for name in (*options.classes, *options.near_classes)}
    with TemporaryDirectory() as folder:
        table = Path(folder) / "train.csv"
        with open(table, "w", newline="") as opened:
            rows = [(str(file.resolve()), name) for name in options.classes for file in files[name][:TRAIN_PER_CLASS]]
            csv.writer(opened).writerows([("path", "label"), *rows])
        run = ev2.train(
            table,
            output=Path(folder) / "run",
            weights=options.weights,
            epochs=options.epochs,
            image_size=options.image_size,
            workers=0,
            settings={"minival": None},
        )
        predictor, top1 = ev2.Predictor(run), run.metrics["top1"]
    detector = predictor.network.unknown
    assert detector is not None, "val is too small"
    groups = {"known": [file for name in options.classes for file in files[name][TRAIN_PER_CLASS:]]}
    groups["near"] = [file for name in options.near_classes for file in files[name]]
    groups |= {folder.name: images_of(folder, rng) for folder in options.far}
    scores, surprise = {}, {}
    for name, group in groups.items():
        drawn = [group[index] for index in rng.permutation(len(group))[:TESTED]]
        found = predictor(drawn)
        scores[name] = np.array([one.unknown_score for one in found])
        surprise[name] = np.array([1 - one.probability for one in found])
    result: dict[str, Any] = {
        "arguments": {
            name: str(value) if isinstance(value, int | str) else [Path(one).name for one in np.atleast_1d(value)]
            for name, value in vars(options).items()
            if name != "record"
        },
        "top1": top1,
        "num_fitted_images": len(detector.bank),
        "false_alarm_rate": {
            "stated": detector.false_alarm_rate,
            "found": float((scores["known"] > detector.threshold).mean()),
            "num_images": len(scores["known"]),
        },
        "others": {},
    }
    for name in groups:
        if name != "known":
            result["others"][name] = {
                "num_images": len(scores[name]),
                "flagged": float((scores[name] > detector.threshold).mean()),
                "score": compared(scores["known"], scores[name], rng),
                "largest_probability": compared(surprise["known"], surprise[name], rng),
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--classes", nargs="+", required=True)
    parser.add_argument("--near-classes", nargs="+", required=True)
    parser.add_argument("--far", nargs="+", type=Path, required=True)
    parser.add_argument("--weights", default="examples/weights/efficientnetv2_b0.safetensors")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--record", action="store_true", help="write results/unknown_images.json")
    options = parser.parse_args()
    result = measure(options)
    print(json.dumps(result, indent=1))
    if options.record:
        write_text_atomically(RESULTS / "unknown_images.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
