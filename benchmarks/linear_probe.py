"""What loading weights rightly is worth: a linear probe on their features, right, and wrong on purpose.

Run: python -m benchmarks.linear_probe IMAGENETTE WEIGHTS

Per draw, 100 images a class of train to learn from and 50 a class of val to answer, at 224 px (and 160). Each wrong
way is measured twice: with a probe of its own, which makes up for much, and with the one that was fitted on the right
features, which is what somebody with a trained classifier meets. Networks trained on ImageNet have seen these images:
the figure checks the loading and claims no accuracy.
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

LEARN, ANSWER, DRAWS = 100, 50, 3


def drawn(dataset: ImageDataset, each: int, key: Key) -> ImageDataset:
    """So many images of every class."""
    order = key.generator().permutation(len(dataset))
    chosen = [order[dataset.labels[order] == label][:each] for label in range(len(dataset.class_names))]
    return dataset.select(np.sort(np.concatenate(chosen)))


def variants(network: EfficientNet) -> dict[str, tuple[EfficientNet, dict]]:
    """Name -> network and what is changed of its preprocessing."""

    def other(**changes) -> EfficientNet:
        with torch.device("meta"):
            built = EfficientNet(replace(network.architecture, **changes), num_classes=network.num_classes)
        built.load_state_dict(network.state_dict(), assign=True)
        return built.eval()

    half, zero, one, wide = (0.5,) * 3, (0.0,) * 3, (1.0,) * 3, (1 / 255,) * 3
    return {
        "right": (network, {}),
        "padding of the other kind": (other(padding="symmetric"), {}),
        "batch-norm epsilon 1e-5": (other(batch_norm_epsilon=1e-5), {}),
        "mean and std 0.5": (network, {"mean": half, "std": half}),
        "scaled to [0, 1], not normalised": (network, {"mean": zero, "std": one}),
        "values of 0 to 255, not scaled": (network, {"mean": zero, "std": wide}),
        "a narrower crop (0.7)": (network, {"crop_pct": 0.7}),
    }


def main() -> None:
    """Measure, print a table, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="a folder with train/ and val/")
    parser.add_argument("weights")
    options = parser.parse_args()
    dataset = load_dataset(options.pictures)
    network, notes = load_weights(options.weights)
    assert isinstance(network, EfficientNet), "padding is ours to change"
    print(*notes, sep="\n")
    rows: dict[str, dict[str, list[float]]] = {}
    for draw in range(DRAWS):
        key = Key.of(draw)
        learn, answer = (
            drawn(dataset.subset(split), each, key.fold(split)) for split, each in (("train", LEARN), ("val", ANSWER))
        )
        measure(network, learn, answer, 224, key, rows)
    measure(network, learn, answer, 160, key, rows, only_right=True)
    print("| weights read | probe of its own | probe of the right features |\n|---|---|---|")
    for name, row in rows.items():
        own, given = (statistics.mean(row[kind]) for kind in ("own", "given"))
        print(f"| {name} | {own:.1%} | {given:.1%} |")
    (RESULTS / "linear_probe_imagenette.json").write_text(json.dumps(rows, indent=1) + "\n")
    right = rows["right, 224 px"]["own"]
    low, high = interval(right)
    record(
        "linear_probe_imagenette_top1",
        statistics.mean(right),
        unit="fraction",
        low=low,
        high=min(1.0, high),
        n=DRAWS,
        command="python -m benchmarks.linear_probe IMAGENETTE WEIGHTS",
    )


def measure(network, learn, answer, px, key, rows, *, only_right=False) -> None:
    """Add one draw's figures to the rows."""
    right = None
    for name, (one, changes) in variants(network).items():
        preprocessing = replace(network.preprocessing, **{"image_size": px} | changes)
        features = [embed_dataset(one, part, preprocessing=preprocessing) for part in (learn, answer)]
        probe, _ = fit_probe(features[0], key=key, balanced=False)
        right = right or probe
        row = rows.setdefault(f"{name}, {px} px", {"own": [], "given": []})
        for kind, fitted in (("own", probe), ("given", right)):
            row[kind].append(float((fitted.predict(features[1].vectors) == features[1].labels).mean()))
        print(draw_line(name, px, row), flush=True)
        if only_right:
            return


def draw_line(name: str, px: int, row: dict[str, list[float]]) -> str:
    """One measurement, as it comes."""
    return f"{name}, {px} px: {row['own'][-1]:.1%}, {row['given'][-1]:.1%}"


if __name__ == "__main__":
    main()
