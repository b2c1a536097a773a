"""Copies are known as such, and by their origins, wherever a table of them is written to, read from or packed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.data.test_splits import dataset

from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.folds import assign_folds
from efficientnetv2.data.records import AUGMENTED_FROM, copy_groups, is_copy
from efficientnetv2.data.shards.writer import PackOptions, write_shards

ORIGINS = 12


def of_path(data: ImageDataset) -> list[int]:
    """Which of the images taken each row shows, by its file's name."""
    return [int(path.rpartition("/")[2][:2]) for path in data.paths]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """12 images of 2 classes in a folder next to the table, each with two copies that the table calls otherwise."""
    rows = []
    (tmp_path / "data/pictures").mkdir(parents=True)
    for number in range(ORIGINS):
        for copy in range(3):
            path = f"pictures/{number:02d}_{copy}.png"
            Image.new("RGB", (8, 8), (20 * number, 80 * copy, number)).save(tmp_path / "data" / path)
            origin = "" if copy == 0 else ("./" * (copy == 2)) + f"pictures/{number:02d}_0.png"
            rows.append({"path": path, "label": "ab"[number % 2], AUGMENTED_FROM: origin})
    pd.DataFrame(rows).to_csv(tmp_path / "data/all.csv", index=False)
    return tmp_path / "data/all.csv"


def test_a_copy_is_known_by_its_origin_however_that_is_spelled(table):
    data = load_dataset(table)
    assert copy_groups(data).tolist() == of_path(data)


def test_a_copy_is_known_by_its_origin_in_a_manifest_written_elsewhere(table, tmp_path):
    """As evaluate and crossval are given the dataset of a run."""
    data = load_dataset(table)
    written = tmp_path / "runs/one/dataset.csv"
    written.parent.mkdir(parents=True)
    data.to_csv(written)
    again = load_dataset(written)
    assert is_copy(again).tolist() == is_copy(data).tolist()
    assert copy_groups(again).tolist() == of_path(again)
    back = ImageDataset.from_csv(written, root=data.root, source=data.source)
    pd.testing.assert_frame_equal(back.table, data.table)


def test_a_copy_is_known_by_its_origin_in_shards(table, tmp_path):
    write_shards(load_dataset(table), tmp_path / "shards", PackOptions(shard_bytes=50_000, shard_images=5))
    data = load_dataset(str(tmp_path / "shards"))
    assert copy_groups(data).tolist() == of_path(data)
    written = tmp_path / "runs/one/dataset.csv"
    written.parent.mkdir(parents=True)
    data.to_csv(written)
    again = load_dataset(written)
    assert copy_groups(again).tolist() == of_path(again)
    for part in assign_folds(again, k=3, seed=0).parts:
        shown = np.array(of_path(again))
        assert not set(shown[part.train_rows]) & set(shown[part.val_rows])


def test_copies_of_copies_belong_to_the_first_of_all():
    origin = [np.nan, "0.jpg", "1.jpg", "2.jpg", "3.jpg", np.nan, "gone.jpg", "gone.jpg", "5.jpg"]
    data = dataset([0, 0, 0, 0, 0, 1, 1, 1, 1], **{AUGMENTED_FROM: origin})
    assert copy_groups(data).tolist() == [0, 0, 0, 0, 0, 1, 2, 2, 1]
