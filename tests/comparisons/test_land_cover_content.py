"""Properties of images that are hard to classify, by hand on a few images."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmarks.land_cover_content import apart, by_quarter, likeness, looks, most_alike, nearest
from PIL import Image

from efficientnetv2.data.dataset import ImageDataset

ROOT = Path(__file__).parents[2]
# Of unit vectors at 0, 10, 90 and 180 degrees.
VECTORS = np.array([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))] for degrees in (0, 10, 90, 180)])


@pytest.fixture
def dataset(tmp_path):
    """Two pairs of images, 1 and 2 km apart; the labels of the first pair differ."""
    table = pd.DataFrame(
        {
            "path": [f"{number}.jpg" for number in range(4)],
            "label": list("abbb"),
            "split": "train",
            "latitude": [0.0, 1 / 111.2, 5.0, 5.0 + 2 / 111.2],
            "longitude": 10.0,
        }
    )
    table.to_csv(tmp_path / "images.csv", index=False)
    return ImageDataset.from_csv(tmp_path / "images.csv", root=tmp_path, source="pairs")


def test_quarters_are_in_ascending_order():
    values, right = np.arange(8)[::-1], np.array([True, True, True, True, True, False, False, False])
    assert [(fraction.part, fraction.of) for fraction in by_quarter(values, right)] == [(0, 2), (1, 2), (2, 2), (2, 2)]


def test_white_square_at_the_center_is_measured(tmp_path):
    pixels = np.zeros((80, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "dark.png")
    pixels[30:50, 30:50] = 255
    Image.fromarray(pixels).save(tmp_path / "square.png")
    dark, square = looks(tmp_path / "dark.png"), looks(tmp_path / "square.png")
    assert set(dark.values()) == {0.0}
    assert square["white"] == square["brightness"] == pytest.approx(1 / 16)
    assert square["centre apart from the rest"] == 1
    assert square["edges at the centre"] > 0
    assert square["saturation"] == 0


def test_nearest_image_in_km(dataset):
    neighbor, km = nearest(dataset)
    assert neighbor.tolist() == [1, 0, 3, 2]
    assert km == pytest.approx([1, 1, 2, 2], rel=1e-3)


def test_likeness_is_the_fraction_of_more_distant_images():
    """The image at 0 degrees and its neighbor at 90: one of two other images is nearer, the other farther."""
    distances = apart(3 * VECTORS)
    assert distances[0] == pytest.approx([0, 2 * math.sin(math.radians(5)), math.sqrt(2), 2])
    found = likeness(distances, np.array([0]), np.array([2, 0, 0, 0]))
    assert found["look_less_alike"]["mean"] == pytest.approx(1 / 3)
    assert found["distance"] == pytest.approx(math.sqrt(2))


def test_pairs_are_listed_once(dataset):
    neighbor, km = nearest(dataset)
    pairs = most_alike(dataset, apart(VECTORS), np.arange(4), neighbor, km)
    assert [(first, second) for first, second, _ in pairs] == [(0, 1), (2, 3)]


def test_page_has_the_counted_results():
    found = json.loads((ROOT / "benchmarks/results/land_cover_content.json").read_text())
    page = " ".join((ROOT / "docs/benchmarks/land-cover.md").read_text(encoding="utf-8").split())
    neighbors, properties = found["neighbours"], found["looks"]
    median = {name: neighbors[name]["look_less_alike"]["median"] for name in ("same label", "another label")}
    edges = properties["edges at the centre"]
    others = [part["value"] for name in properties for part in properties[name] if "centre" not in name]
    for sentence in (
        f"of the {neighbors['another label']['pictures']} images look more",
        f"like {median['another label']:.1%} of all other",
        f"the other {neighbors['same label']['pictures']} images it is {median['same label']:.1%}",
        f"top-1 is {100 * min(others):.0f}% to {max(others):.0%}.",
        f"edges at the center it is {_with_interval(edges[0])}",
        f"with the most {_with_interval(edges[-1])}",
    ):
        assert sentence.replace("%", " %") in page, sentence


def _with_interval(share: dict[str, float]) -> str:
    return f"{share['value']:.1%} ({100 * share['low']:.0f} to {100 * share['high']:.0f})"
