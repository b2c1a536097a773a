"""The time of an inspection is recorded only for ten thousand images and if known duplicates are found."""

from __future__ import annotations

import sys

import pytest
from benchmarks import inspect_pictures
from PIL import Image
from tests.checks.planted import scene
from tests.messages import mentioning, mentions


@pytest.fixture
def recorded(monkeypatch):
    """The values passed to ``record``."""
    values = {}
    monkeypatch.setattr(inspect_pictures, "record", lambda name, value, **_: values.update({name: value}))
    return values


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["inspect_pictures", *map(str, args)])
    inspect_pictures.main()


def test_known_pair_is_found_and_few_images_are_not_recorded(recorded, monkeypatch, tmp_path, capsys):
    (tmp_path / "set").mkdir()
    for number in range(3):
        scene(number).save(tmp_path / f"set/{number}.jpg")
    Image.open(tmp_path / "set/1.jpg").resize((50, 50)).save(tmp_path / "set/copy.jpg")
    args = (tmp_path / "set", "--pair", "copy.jpg", "1.jpg", "--pair", "0.jpg", "1.jpg", "--rounds", 1)
    with pytest.raises(SystemExit, match="of ten thousand pictures, but there are 4"):
        run(monkeypatch, *args, "--record")
    output = capsys.readouterr().out
    assert mentions(output, "1", "0", "duplicates")
    assert mentions(output, "copy.jpg", "1.jpg")
    assert mentions(output, "0.jpg", "1.jpg", "NOT", "FOUND")
    assert recorded == {}


def test_median_is_recorded_if_the_pair_is_found(recorded, monkeypatch, tmp_path):
    inspection = {
        "num_images": 9_999,
        "duplicates": {"near_duplicates": [{"paths": ["a.jpg", "b.jpg"]}], "same_files": []},
    }
    seconds = iter([9.0, 3.0, 4.0, 9.0, 3.0, 4.0])
    monkeypatch.setattr(inspect_pictures, "RESULTS", tmp_path)
    monkeypatch.setattr(inspect_pictures, "inspected", lambda data: (inspection, next(seconds)))
    with pytest.raises(SystemExit, match=mentioning("a.jpg", "c.jpg")):
        run(monkeypatch, "DATA", "--pair", "a.jpg", "c.jpg", "--record")
    assert recorded == {}
    run(monkeypatch, "DATA", "--pair", "b.jpg", "a.jpg", "--record")
    assert recorded == {inspect_pictures.NAME: 4.0}
    assert '"a.jpg"' in (tmp_path / "inspect_pictures.json").read_text()
