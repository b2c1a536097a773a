"""Appearance of difficult land-cover images, and similarity of neighbors with different labels.

Run: python -m benchmarks.land_cover_content PICTURES.csv WEIGHTS [--record]

The predictions are those of ``benchmarks.finetune_land_cover`` in results/, each from a model that was not trained on
the image. WEIGHTS were trained on ImageNet. The distance of their embeddings measures how similar two images look.

looks        For each measure of an image, top-1 in each quarter of the images, lowest values first
neighbours   For images with another within 5 km, split by whether the nearest has the same label: the fraction of all
             other images that look less similar than the nearest (0.5 for a random image), and the mean Euclidean
             distance of the pair, with that of all pairs

The results are in results/land_cover_content.json. docs/images/land_cover_neighbors.jpg shows the most similar
neighbors with different labels.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.finetune_land_cover import FOLDS
from benchmarks.land_cover_limits import Share
from benchmarks.record import IMAGES, RESULTS
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics.pairwise import haversine_distances
from sklearn.model_selection import StratifiedKFold

from efficientnetv2.checks.split_leakage import NEAR_KM
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.evaluation.distribution_shift import EARTH_KM
from efficientnetv2.inference.predict import embed_dataset
from efficientnetv2.training.initial_weights import load_weights
from efficientnetv2.utils.io import write_text_atomically

FILE = IMAGES / "land_cover_neighbors.jpg"
SHOWN = 5
QUARTERS = 4
# A pixel is white (cloud, haze or bare ground) if its darkest channel is above this value.
WHITE = 0.7


def answered(dataset: ImageDataset, folder: Path = RESULTS / "finetune_land_cover") -> np.ndarray:
    """(n,) whether each image was predicted correctly by the model of its fold.

    Raises:
        AssertionError: The predictions are of other images.
    """
    correct = np.zeros(len(dataset), dtype=bool)
    splits = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(dataset.labels, dataset.labels)
    for number, (_, test_rows) in enumerate(splits):
        (file,) = (folder / f"fold{number}").glob("finetune_*/answers.json")
        saved = json.loads(file.read_text(encoding="utf-8"))
        assert saved["labels"] == dataset.labels[test_rows].tolist(), "the answers are of other pictures"
        correct[test_rows] = np.array(saved["probabilities"]).argmax(axis=1) == dataset.labels[test_rows]
    return correct


def looks(path: Path) -> dict[str, float]:
    """Measures of an image. Pixel values are 0 to 1. The center is the middle quarter of each side."""
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"), dtype=np.float64) / 255
    height, width = pixels.shape[:2]
    center = np.zeros((height, width), dtype=bool)
    center[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8] = True
    gray, brightest, darkest = pixels.mean(axis=2), pixels.max(axis=2), pixels.min(axis=2)
    slopes = np.hypot(*np.gradient(gray))
    return {
        "brightness": float(gray.mean()),
        "contrast": float(gray.std()),
        "saturation": float(((brightest - darkest) / (brightest + 1e-6)).mean()),
        "white": float((darkest > WHITE).mean()),
        "edges at the centre": float(slopes[center].mean()),
        "centre apart from the rest": float(np.abs(pixels[center].mean(0) - pixels[~center].mean(0)).mean()),
    }


def by_quarter(values: np.ndarray, correct: np.ndarray) -> list[Share]:
    """Top-1 in each quarter of the images, lowest values first."""
    quarter = np.argsort(np.argsort(values, kind="stable")) * QUARTERS // len(values)
    return [Share.counted(correct[quarter == number]) for number in range(QUARTERS)]


def nearest(dataset: ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    """(n,) nearest neighbor of each image, and (n,) its distance in km."""
    degrees = dataset.table[["latitude", "longitude"]].to_numpy(dtype=np.float64)
    km = haversine_distances(np.radians(degrees)) * EARTH_KM
    np.fill_diagonal(km, np.inf)
    return km.argmin(axis=1), km.min(axis=1)


def apart(vectors: np.ndarray) -> np.ndarray:
    """(n, n) Euclidean distances of embeddings, normalized to length 1."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.sqrt(np.maximum(0, 2 - 2 * unit @ unit.T))


def likeness(distances: np.ndarray, rows: np.ndarray, neighbor: np.ndarray) -> dict[str, Any]:
    """Similarity of images and their neighbors, compared with all other images.

    Args:
        distances: (n, n) distances of embeddings.
        asking: (m,) rows of images.
        neighbor: (n,) neighbor of each image.
    """
    others = distances[rows].copy()
    others[np.arange(len(rows)), rows] = np.nan
    pair = distances[rows, neighbor[rows]]
    less_alike = (others > pair[:, None]).sum(axis=1) / (others.shape[1] - 1)
    return {
        "pictures": len(rows),
        "look_less_alike": {"mean": float(less_alike.mean()), "median": float(np.median(less_alike))},
        "distance": float(pair.mean()),
    }


def draw(dataset: ImageDataset, paths: list[Path], pairs: list[tuple[int, int, float]]) -> Figure:
    """Plot the two images of each pair, one above the other, each with its label."""
    figure = Figure(figsize=(2.1 * len(pairs), 4.9), layout="constrained")
    axes = figure.subplots(2, len(pairs), squeeze=False)
    for column, (one, other, km) in enumerate(pairs):
        for row, image in enumerate((one, other)):
            axis = axes[row, column]
            with Image.open(paths[image]) as opened:
                pixels = np.asarray(opened.convert("RGB"), dtype=np.float64) / 255
            axis.imshow(np.clip(pixels / np.quantile(pixels, 0.99), 0, 1))
            axis.set_title(str(dataset.class_names[dataset.labels[image]]).replace("_", " "), fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[1, column].set_xlabel(f"{km:.1f} km apart", fontsize=9)
    return figure


def most_alike(
    dataset: ImageDataset, distances: np.ndarray, rows: np.ndarray, neighbor: np.ndarray, km: np.ndarray
) -> list[tuple[int, int, float]]:
    """Pairs of neighbors with different labels, most similar first. No image is in two pairs."""
    pairs: list[tuple[int, int, float]] = []
    for image in rows[np.argsort(distances[rows, neighbor[rows]])]:
        new = (int(image), int(neighbor[image]))
        if not {*new} & {one for pair in pairs for one in pair[:2]}:
            pairs.append((*new, float(km[image])))
    return pairs[:SHOWN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("weights")
    parser.add_argument("--record", action="store_true", help="replace the record in benchmarks/results")
    options = parser.parse_args()
    dataset = load_dataset(options.pictures)
    paths = [Path(dataset.root) / one for one in dataset.paths]
    correct = answered(dataset)
    measures = [looks(path) for path in paths]
    network, _ = load_weights(options.weights)
    distances = apart(embed_dataset(network, dataset, preprocessing=network.preprocessing).vectors)
    neighbor, km = nearest(dataset)
    alike = dataset.labels[neighbor] == dataset.labels
    near = km <= NEAR_KM
    groups = {"same label": np.flatnonzero(near & alike), "another label": np.flatnonzero(near & ~alike)}
    found = {
        "looks": {
            name: [asdict(one) for one in by_quarter(np.array([each[name] for each in measures]), correct)]
            for name in measures[0]
        },
        "neighbours": {name: likeness(distances, rows, neighbor) for name, rows in groups.items()}
        | {"all_pairs_distance": float(distances[np.triu_indices(len(distances), 1)].mean())},
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.record:
        write_text_atomically(RESULTS / "land_cover_content.json", text + "\n")
        pairs = most_alike(dataset, distances, groups["another label"], neighbor, km)
        draw(dataset, paths, pairs).savefig(FILE, dpi=85, pil_kwargs={"quality": 80, "optimize": True})


if __name__ == "__main__":
    main()
