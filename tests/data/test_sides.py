"""The size of pictures, from their headers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from efficientnetv2.data import image_metadata
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.image_metadata import longer_sides, median_shorter_side
from efficientnetv2.data.shards.writer import PackOptions, write_shards


def test_the_longer_side_is_read_off_the_header(class_folders):
    Image.new("RGB", (70, 20)).save(class_folders / "red/red_00.jpg")
    Image.new("L", (20, 90)).save(class_folders / "red/red_01.png")
    (class_folders / "red/red_02.jpg").write_bytes(b"no picture")
    dataset = load_dataset(class_folders)
    found = dict(zip(dataset.paths, longer_sides(dataset), strict=True))
    assert (found["red/red_00.jpg"], found["red/red_01.png"], found["blue/blue_00.jpg"]) == (70, 90, 48)
    assert np.isnan(found["red/red_02.jpg"])


def test_where_a_header_is_not_enough_it_is_not_known(class_folders, tmp_path, monkeypatch):
    write_shards(load_dataset(class_folders), tmp_path / "packed", PackOptions(10**9))
    assert longer_sides(load_dataset(tmp_path / "packed")) is None
    monkeypatch.setattr(image_metadata, "MAX_MEASURED", 47)
    assert longer_sides(load_dataset(class_folders)) is None


@pytest.mark.parametrize("packed", [False, True])
def test_the_side_of_most_images_is_known_wherever_they_lie(class_folders, tmp_path, packed):
    """Of 48 images of 48 px three are larger, one unreadable; a hundred say it for all."""
    for place in range(3):
        Image.new("RGB", (400, 300)).save(class_folders / f"red/red_0{place}.jpg")
    (class_folders / "blue/blue_02.jpg").write_bytes(b"no picture")
    dataset = load_dataset(class_folders)
    if packed:
        write_shards(dataset, tmp_path / "packed", PackOptions(10**9))
        dataset = load_dataset(tmp_path / "packed")
    assert median_shorter_side(dataset) == 48


def test_the_side_of_no_image_is_unknown(tmp_path):
    for name in ("red/a.jpg", "blue/b.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"no picture")
    assert median_shorter_side(load_dataset(tmp_path)) is None
