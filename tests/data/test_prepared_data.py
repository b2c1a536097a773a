"""Evaluation images are decoded before training: damaged images are skipped and named."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tests.conftest import paint
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions

from efficientnetv2.data import prepared_data as module
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.data.records import is_copy
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.crossval import load_images


@pytest.fixture
def photos(tmp_path):
    """40 training images and 20 evaluation images."""
    for split, count in (("train", 20), ("val", 10)):
        for name, color in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
            for number in range(count):
                paint(tmp_path / "photos" / split / name / f"{number:02}.jpg", color, number + 100 * len(split))
    return tmp_path / "photos"


def damage(file):
    """Remove the second half except for the end marker, so that only decoding shows the damage."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + b"\xff\xd9")


def prepare(photos, strict=False):
    lines = logged_lines()
    return prepare_data(DataConfig(str(photos)), val_fraction=0.2, seed=0, strict=strict), " ".join(lines)


def test_damaged_evaluation_images_are_found_before_training(photos):
    for path in ("val/red/03.jpg", "val/blue/07.jpg", "train/red/05.jpg"):
        damage(photos / path)
    found, log = prepare(photos)
    assert {path for path, _ in found.skipped} == {"val/red/03.jpg", "val/blue/07.jpg"}
    assert all("damaged inside" in reason for _, reason in found.skipped)
    assert (len(found.train), len(found.val), len(found.contents)) == (40, 18, 58)
    assert "val/blue/07.jpg" in log
    with pytest.raises(InputError, match=mentioning("val", "damaged")):
        prepare(photos, strict=True)


def test_damaged_image_that_is_alone_in_its_class_is_named_before_training(photos):
    """In training, another image of its class replaces a damaged one; there is none."""
    for split in ("train", "val"):
        paint(photos / split / "green/00.jpg", (60, 200, 60), len(split))
    damage(photos / "train/green/00.jpg")
    with pytest.raises(InputError, match=mentioning("green", "training images")):
        prepare(photos)


def test_too_many_undecodable_images_stop_the_run(photos):
    for number in range(4):
        damage(photos / f"val/red/0{number}.jpg")
    with pytest.raises(InputError, match=r"4 of 60 .*5 %"):
        prepare(photos)


def test_large_datasets_are_decoded_in_part(photos, monkeypatch):
    decoded = []
    monkeypatch.setattr(module, "_MOST_DECODED", 7)
    monkeypatch.setattr(module, "decode_all", lambda dataset, rows, **options: decoded.extend(rows) or {})
    prepare(photos)
    assert len(decoded) == 7


@pytest.mark.usefixtures("on_screen")
def test_crossval_decodes_all_images(photos, capsys):
    for path in ("val/red/03.jpg", "train/red/05.jpg"):
        damage(photos / path)
    dataset, contents, skipped = load_images(DataConfig(str(photos)), SimpleNamespace(strict=False), 0)
    assert {path for path, _ in skipped} == {"val/red/03.jpg", "train/red/05.jpg"}
    assert len(dataset) == len(contents) == 58
    assert np.isin([path for path, _ in skipped], dataset.paths).sum() == 0
    assert mentions(" ".join(capsys.readouterr().out.split()), "60", "decoded")


@pytest.mark.parametrize("spoil", [lambda file: file.write_bytes(b""), damage], ids=["empty", "damaged inside"])
def test_strict_cross_validation_refuses_an_unreadable_image(spoil, photos):
    spoil(photos / "train/red/05.jpg")
    with pytest.raises(InputError, match=mentioning("05.jpg")):
        load_images(DataConfig(str(photos)), SimpleNamespace(strict=True), 0)


def with_copies(tmp_path, split_of=None):
    """A table of 40 images of two classes, each with a copy. ``split_of`` gives the split of each row."""
    rows = []
    for number in range(40):
        for name, original in ((f"{number:02}.jpg", ""), (f"{number:02}_copy.jpg", f"{number:02}.jpg")):
            paint(tmp_path / name, ((200, 60, 60), (60, 60, 200))[number % 2], number + (1000 if original else 0))
            rows.append({"path": name, "label": "ab"[number % 2], "augmented_from": original})
            if split_of is not None:
                rows[-1]["split"] = split_of(number, original)
    pd.DataFrame(rows).to_csv(tmp_path / "all.csv", index=False)
    return tmp_path / "all.csv"


def test_copies_of_held_out_images_are_left_out(tmp_path):
    found, _ = prepare(with_copies(tmp_path))
    assert len(found.val) > 0
    assert not is_copy(found.val).any()
    assert is_copy(found.train).any()
    assert len(found.contents) == len(found.dataset) < 80


def test_copy_in_train_of_an_image_in_val_is_refused(tmp_path):
    table = with_copies(tmp_path, lambda number, original: "val" if number < 10 and not original else "train")
    with pytest.raises(InputError, match=mentioning("00_copy.jpg", "train", "00.jpg")):
        prepare(table)


def test_identical_files_are_in_one_split(tmp_path):
    """Each of 40 images twice, under other names, without given splits."""
    for name, color in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
        for number in range(20):
            file = paint(tmp_path / "photos" / name / f"{number:02}.jpg", color, number)
            shutil.copy(file, file.with_name(f"again_{number:02}.jpg"))
    source = DataConfig(str(tmp_path / "photos"))
    found = prepare_data(source, val_fraction=0.2, seed=0, strict=False, minival=8)
    parts = [{path.replace("again_", "") for path in part.paths} for part in (found.train, found.val, found.minival)]
    assert sum(map(len, parts)) == 40
