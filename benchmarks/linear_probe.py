"""Check how weights are loaded: a linear probe on their features, loaded correctly and with deliberate errors.

Run: python -m benchmarks.linear_probe IMAGENETTE WEIGHTS [--record]

Each draw has 100 images per class of train to fit the probe and 50 per class of val to evaluate it, at 224 px (and
160). Each error is evaluated with two probes: a probe on the wrong features, which compensates for much of the error,
and the probe on the correct features, as in a finished classifier. Models trained on ImageNet have seen these images.
The claim ``linear_probe_imagenette_top1`` therefore checks the loading and does not measure accuracy.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace

import numpy as np
import torch
from benchmarks.record import RESULTS, interval, record

from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.inference.linear_probe import fit_probe
from efficientnetv2.inference.predict import embed_dataset
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.training.initial_weights import load_weights
from efficientnetv2.utils.random_key import Key

NUM_TRAIN, NUM_TEST, DRAWS = 100, 50, 3


def drawn(dataset: ImageDataset, count: int, key: Key) -> ImageDataset:
    """Draw ``count`` images per class."""
    order = key.generator().permutation(len(dataset))
    chosen = [order[dataset.labels[order] == label][:count] for label in range(len(dataset.class_names))]
    return dataset.select(np.sort(np.concatenate(chosen)))


def variants(model: EfficientNet) -> dict[str, tuple[EfficientNet, dict]]:
    """Name -> model and changes of its preprocessing."""

    def changed(**changes) -> EfficientNet:
        with torch.device("meta"):
            copy = EfficientNet(replace(model.architecture, **changes), num_classes=model.num_classes)
        copy.load_state_dict(model.state_dict(), assign=True)
        return copy.eval()

    half, zero, one, wide = (0.5,) * 3, (0.0,) * 3, (1.0,) * 3, (1 / 255,) * 3
    return {
        "right": (model, {}),
        "padding of the other kind": (changed(padding="symmetric"), {}),
        "batch-norm epsilon 1e-5": (changed(batch_norm_epsilon=1e-5), {}),
        "mean and std 0.5": (model, {"mean": half, "std": half}),
        "scaled to [0, 1], not normalised": (model, {"mean": zero, "std": one}),
        "values of 0 to 255, not scaled": (model, {"mean": zero, "std": wide}),
        "a narrower crop (0.7)": (model, {"crop_pct": 0.7}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="a folder with train/ and val/")
    parser.add_argument("weights")
    parser.add_argument("--record", action="store_true", help="replace the record in benchmarks/results")
    options = parser.parse_args()
    dataset = load_dataset(options.pictures)
    model, notes = load_weights(options.weights)
    assert isinstance(model, EfficientNet), "padding is ours to change"
    print(*notes, sep="\n")
    rows: dict[str, dict[str, list[float]]] = {}
    for draw in range(DRAWS):
        key = Key.of(draw)
        train, test = (
            drawn(dataset.subset(split), each, key.fold(split))
            for split, each in (("train", NUM_TRAIN), ("val", NUM_TEST))
        )
        measure(model, train, test, 224, key, rows)
    measure(model, train, test, 160, key, rows, only_right=True)
    print("| weights read | probe of its own | probe of the right features |\n|---|---|---|")
    for name, row in rows.items():
        own, correct_probe = (statistics.mean(row[kind]) for kind in ("own", "given"))
        print(f"| {name} | {own:.1%} | {correct_probe:.1%} |")
    if not options.record:
        return
    (RESULTS / "linear_probe_imagenette.json").write_text(json.dumps(rows, indent=1) + "\n")
    values = rows["right, 224 px"]["own"]
    low, high = interval(values)
    record(
        "linear_probe_imagenette_top1",
        statistics.mean(values),
        unit="fraction",
        low=low,
        high=min(1.0, high),
        n=DRAWS,
        command="python -m benchmarks.linear_probe IMAGENETTE WEIGHTS --record",
    )


def measure(model, train, test, px, key, rows, *, only_right=False) -> None:
    """Add the results of a draw to the rows."""
    correct_probe = None
    for name, (variant, changes) in variants(model).items():
        preprocessing = replace(model.preprocessing, **{"image_size": px} | changes)
        features = [embed_dataset(variant, part, preprocessing=preprocessing) for part in (train, test)]
        probe, _ = fit_probe(features[0], key=key, balanced=False)
        correct_probe = correct_probe or probe
        row = rows.setdefault(f"{name}, {px} px", {"own": [], "given": []})
        for kind, classifier in (("own", probe), ("given", correct_probe)):
            row[kind].append(float((classifier.predict(features[1].vectors) == features[1].labels).mean()))
        print(draw_line(name, px, row), flush=True)
        if only_right:
            return


def draw_line(name: str, px: int, row: dict[str, list[float]]) -> str:
    """The latest results of a row, as text."""
    return f"{name}, {px} px: {row['own'][-1]:.1%}, {row['given'][-1]:.1%}"


if __name__ == "__main__":
    main()
