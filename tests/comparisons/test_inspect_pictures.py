"""The time of an inspection is recorded of ten thousand images alone, and only where known copies are found."""

from __future__ import annotations

import sys

import pytest
from benchmarks import inspect_pictures
from PIL import Image
from tests.checks.planted import scene
from tests.messages import mentioning, mentions


@pytest.fixture
def kept(monkeypatch):
    """What would be recorded."""
    kept = {}
    monkeypatch.setattr(inspect_pictures, "record", lambda name, value, **words: kept.update({name: value}))
    return kept


def measured(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["inspect_pictures", *map(str, words)])
    inspect_pictures.main()


def test_a_known_pair_is_found_and_few_pictures_are_not_recorded(kept, monkeypatch, tmp_path, capsys):
    (tmp_path / "set").mkdir()
    for number in range(3):
        scene(number).save(tmp_path / f"set/{number}.jpg")
    Image.open(tmp_path / "set/1.jpg").resize((50, 50)).save(tmp_path / "set/again.jpg")
    words = (tmp_path / "set", "--pair", "again.jpg", "1.jpg", "--pair", "0.jpg", "1.jpg", "--rounds", 1)
    with pytest.raises(SystemExit, match="of ten thousand pictures, but there are 4"):
        measured(monkeypatch, *words, "--record")
    told = capsys.readouterr().out
    assert mentions(told, "1", "0", "duplicates")
    assert mentions(told, "again.jpg", "1.jpg")
    assert mentions(told, "0.jpg", "1.jpg", "NOT", "FOUND")
    assert kept == {}


def test_the_median_is_recorded_if_the_pair_is_found(kept, monkeypatch, tmp_path):
    told = {"num_images": 9_999, "duplicates": {"near_duplicates": [{"paths": ["a.jpg", "b.jpg"]}], "same_files": []}}
    seconds = iter([9.0, 3.0, 4.0, 9.0, 3.0, 4.0])
    monkeypatch.setattr(inspect_pictures, "RESULTS", tmp_path)
    monkeypatch.setattr(inspect_pictures, "inspected", lambda data: (told, next(seconds)))
    with pytest.raises(SystemExit, match=mentioning("a.jpg", "c.jpg")):
        measured(monkeypatch, "DATA", "--pair", "a.jpg", "c.jpg", "--record")
    assert kept == {}
    measured(monkeypatch, "DATA", "--pair", "b.jpg", "a.jpg", "--record")
    assert kept == {inspect_pictures.NAME: 4.0}
    assert '"a.jpg"' in (tmp_path / "inspect_pictures.json").read_text()
