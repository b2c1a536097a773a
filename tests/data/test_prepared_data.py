"""Images that are evaluated are decoded before a run: what is damaged within is left out then, and named."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tests.conftest import paint
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions

from efficientnetv2.data import prepared_data as module
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.crossval import load_images


@pytest.fixture
def photos(tmp_path):
    """40 training images and 20 to be evaluated."""
    for split, count in (("train", 20), ("val", 10)):
        for name, color in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
            for number in range(count):
                paint(tmp_path / "photos" / split / name / f"{number:02}.jpg", color, number + 100 * len(split))
    return tmp_path / "photos"


def damage(file):
    """Its middle is lost; its header and its end are there, which is all that a look shows."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + b"\xff\xd9")


def prepared(photos, strict=False):
    said = logged_lines()
    return prepare_data(DataConfig(str(photos)), val_fraction=0.2, seed=0, strict=strict), " ".join(said)


def test_damage_of_evaluated_images_is_found_before_the_first_step(photos):
    for path in ("val/red/03.jpg", "val/blue/07.jpg", "train/red/05.jpg"):
        damage(photos / path)
    found, said = prepared(photos)
    assert {path for path, _ in found.skipped} == {"val/red/03.jpg", "val/blue/07.jpg"}
    assert all("damaged inside" in reason for _, reason in found.skipped)
    assert (len(found.train), len(found.val), len(found.contents)) == (40, 18, 58)
    assert "val/blue/07.jpg" in said
    with pytest.raises(InputError, match=mentioning("val", "damaged")):
        prepared(photos, strict=True)


def test_too_many_that_cannot_be_decoded_end_it_there(photos):
    for number in range(4):
        damage(photos / f"val/red/0{number}.jpg")
    with pytest.raises(InputError, match=r"4 of 60 .*5 %"):
        prepared(photos)


def test_of_very_many_a_part_is_decoded(photos, monkeypatch):
    decoded = []
    monkeypatch.setattr(module, "_MOST_DECODED", 7)
    monkeypatch.setattr(module, "find_undecodable", lambda dataset, rows, **how: decoded.extend(rows) or {})
    prepared(photos)
    assert len(decoded) == 7


@pytest.mark.usefixtures("on_screen")
def test_every_fold_is_evaluated_so_all_images_are_decoded(photos, capsys):
    for path in ("val/red/03.jpg", "train/red/05.jpg"):
        damage(photos / path)
    dataset, contents, skipped = load_images(DataConfig(str(photos)), SimpleNamespace(strict=False), 0)
    assert {path for path, _ in skipped} == {"val/red/03.jpg", "train/red/05.jpg"}
    assert len(dataset) == len(contents) == 58
    assert np.isin([path for path, _ in skipped], dataset.paths).sum() == 0
    assert mentions(" ".join(capsys.readouterr().out.split()), "60", "decoded")
