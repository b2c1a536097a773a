"""The size of pictures, from their headers."""

from __future__ import annotations

import numpy as np
from PIL import Image

from efficientnetv2.data import sides
from efficientnetv2.data.manifest import read
from efficientnetv2.data.shards.pack import Packing, pack
from efficientnetv2.data.sides import longer_sides


def test_the_longer_side_is_read_off_the_header(class_folders):
    Image.new("RGB", (70, 20)).save(class_folders / "red/red_00.jpg")
    Image.new("L", (20, 90)).save(class_folders / "red/red_01.png")
    (class_folders / "red/red_02.jpg").write_bytes(b"no picture")
    manifest = read(class_folders)
    found = dict(zip(manifest.paths, longer_sides(manifest), strict=True))
    assert (found["red/red_00.jpg"], found["red/red_01.png"], found["blue/blue_00.jpg"]) == (70, 90, 48)
    assert np.isnan(found["red/red_02.jpg"])


def test_where_a_header_is_not_enough_it_is_not_known(class_folders, tmp_path, monkeypatch):
    pack(read(class_folders), tmp_path / "packed", Packing(10**9))
    assert longer_sides(read(tmp_path / "packed")) is None
    monkeypatch.setattr(sides, "MOST", 47)
    assert longer_sides(read(class_folders)) is None
