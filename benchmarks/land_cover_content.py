"""What of a land-cover image makes it hard: how it looks, and how alike neighbours of different labels look.

Run: python -m benchmarks.land_cover_content PICTURES.csv WEIGHTS

The answers are those that ``benchmarks.finetune_land_cover`` has kept in results/, each by a network that had not seen
the image. WEIGHTS were trained on ImageNet; their embeddings say how alike two images look.

looks        of each measure of the image, top-1 in the quarter of the images that has least of it, and so on
neighbours   of images with another within 5 km, by whether the nearest has the same label: the share of all other
             images that look less like the image than this neighbour does (of an image drawn at random, half),
             and the mean Euclidean distance of the pair next to that of all pairs

What it finds goes into results/land_cover_content.json; docs/images/land_cover_neighbors.jpg shows neighbors of
different labels that look most alike.
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
# A pixel whose darkest channel is above this is white: cloud, haze or bare ground.
WHITE = 0.7


def answered(dataset: ImageDataset, folder: Path = RESULTS / "finetune_land_cover") -> np.ndarray:
    """(n,) whether each image was answered rightly, by the network of the fold that had not seen it.

    Raises:
        AssertionError: the answers are of other images.
    """
    right = np.zeros(len(dataset), dtype=bool)
    dealt = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(dataset.labels, dataset.labels)
    for number, (_, answering) in enumerate(dealt):
        (file,) = (folder / f"fold{number}").glob("finetune_*/answers.json")
        kept = json.loads(file.read_text(encoding="utf-8"))
        assert kept["labels"] == dataset.labels[answering].tolist(), "the answers are of other pictures"
        right[answering] = np.array(kept["probabilities"]).argmax(axis=1) == dataset.labels[answering]
    return right


def looks(path: Path) -> dict[str, float]:
    """Measures of an image; its values lie between 0 and 1, its centre is the middle quarter of each side."""
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"), dtype=np.float64) / 255
    height, width = pixels.shape[:2]
    middle = np.zeros((height, width), dtype=bool)
    middle[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8] = True
    gray, most, least = pixels.mean(axis=2), pixels.max(axis=2), pixels.min(axis=2)
    slopes = np.hypot(*np.gradient(gray))
    return {
        "brightness": float(gray.mean()),
        "contrast": float(gray.std()),
        "saturation": float(((most - least) / (most + 1e-6)).mean()),
        "white": float((least > WHITE).mean()),
        "edges at the centre": float(slopes[middle].mean()),
        "centre apart from the rest": float(np.abs(pixels[middle].mean(0) - pixels[~middle].mean(0)).mean()),
    }


def by_quarter(values: np.ndarray, right: np.ndarray) -> list[Share]:
    """Top-1 of each quarter of the images, the least of a measure first."""
    quarter = np.argsort(np.argsort(values, kind="stable")) * QUARTERS // len(values)
    return [Share.counted(right[quarter == number]) for number in range(QUARTERS)]


def nearest(dataset: ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    """(n,) each image's nearest neighbour, and (n,) the kilometres to it."""
    degrees = dataset.table[["latitude", "longitude"]].to_numpy(dtype=np.float64)
    km = haversine_distances(np.radians(degrees)) * EARTH_KM
    np.fill_diagonal(km, np.inf)
    return km.argmin(axis=1), km.min(axis=1)


def apart(vectors: np.ndarray) -> np.ndarray:
    """(n, n) Euclidean distances of embeddings, each brought to length 1."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.sqrt(np.maximum(0, 2 - 2 * unit @ unit.T))


def likeness(distances: np.ndarray, asking: np.ndarray, neighbor: np.ndarray) -> dict[str, Any]:
    """How alike images and these neighbours of theirs look, next to all others.

    Args:
        distances: (n, n).
        asking: (m,) images.
        neighbour: (n,) of each image.
    """
    others = distances[asking].copy()
    others[np.arange(len(asking)), asking] = np.nan
    pair = distances[asking, neighbor[asking]]
    less = (others > pair[:, None]).sum(axis=1) / (others.shape[1] - 1)
    return {
        "pictures": len(asking),
        "look_less_alike": {"mean": float(less.mean()), "median": float(np.median(less))},
        "distance": float(pair.mean()),
    }


def draw(dataset: ImageDataset, paths: list[Path], pairs: list[tuple[int, int, float]]) -> Figure:
    """Pairs of neighbours, one above the other, each with its label."""
    figure = Figure(figsize=(2.1 * len(pairs), 4.9), layout="constrained")
    axes = figure.subplots(2, len(pairs), squeeze=False)
    for column, (one, other, km) in enumerate(pairs):
        for row, picture in enumerate((one, other)):
            axis = axes[row, column]
            with Image.open(paths[picture]) as opened:
                pixels = np.asarray(opened.convert("RGB"), dtype=np.float64) / 255
            axis.imshow(np.clip(pixels / np.quantile(pixels, 0.99), 0, 1))
            axis.set_title(str(dataset.class_names[dataset.labels[picture]]).replace("_", " "), fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[1, column].set_xlabel(f"{km:.1f} km apart", fontsize=9)
    return figure


def most_alike(
    dataset: ImageDataset, distances: np.ndarray, asking: np.ndarray, neighbor: np.ndarray, km: np.ndarray
) -> list[tuple[int, int, float]]:
    """Pairs of neighbours of different labels, those that look most alike first, no image twice."""
    pairs: list[tuple[int, int, float]] = []
    for picture in asking[np.argsort(distances[asking, neighbor[asking]])]:
        two = (int(picture), int(neighbor[picture]))
        if not {*two} & {one for pair in pairs for one in pair[:2]}:
            pairs.append((*two, float(km[picture])))
    return pairs[:SHOWN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("weights")
    given = parser.parse_args()
    dataset = load_dataset(given.pictures)
    paths = [Path(dataset.root) / one for one in dataset.paths]
    right = answered(dataset)
    measures = [looks(path) for path in paths]
    network, _ = load_weights(given.weights)
    distances = apart(embed_dataset(network, dataset, preprocessing=network.preprocessing).vectors)
    neighbor, km = nearest(dataset)
    alike = dataset.labels[neighbor] == dataset.labels
    near = km <= NEAR_KM
    groups = {"same label": np.flatnonzero(near & alike), "another label": np.flatnonzero(near & ~alike)}
    found = {
        "looks": {
            name: [asdict(one) for one in by_quarter(np.array([each[name] for each in measures]), right)]
            for name in measures[0]
        },
        "neighbours": {name: likeness(distances, which, neighbor) for name, which in groups.items()}
        | {"all_pairs_distance": float(distances[np.triu_indices(len(distances), 1)].mean())},
    }
    text = json.dumps(found, indent=1)
    write_text_atomically(RESULTS / "land_cover_content.json", text + "\n")
    pairs = most_alike(dataset, distances, groups["another label"], neighbor, km)
    draw(dataset, paths, pairs).savefig(FILE, dpi=85, pil_kwargs={"quality": 80, "optimize": True})
    print(text)


if __name__ == "__main__":
    main()
