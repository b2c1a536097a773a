"""Augmented copies keep the reference to their source in tables and shards."""

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


def source_numbers(data: ImageDataset) -> list[int]:
    """The number of the original of each row, from its file name."""
    return [int(path.rpartition("/")[2][:2]) for path in data.paths]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """12 images of 2 classes, each with two copies whose sources are spelled differently."""
    rows = []
    (tmp_path / "data/images").mkdir(parents=True)
    for number in range(ORIGINS):
        for copy in range(3):
            path = f"images/{number:02d}_{copy}.png"
            Image.new("RGB", (8, 8), (20 * number, 80 * copy, number)).save(tmp_path / "data" / path)
            origin = "" if copy == 0 else ("./" * (copy == 2)) + f"images/{number:02d}_0.png"
            rows.append({"path": path, "label": "ab"[number % 2], AUGMENTED_FROM: origin})
    pd.DataFrame(rows).to_csv(tmp_path / "data/all.csv", index=False)
    return tmp_path / "data/all.csv"


def test_copy_has_its_source_for_any_spelling_of_the_path(table):
    data = load_dataset(table)
    assert copy_groups(data).tolist() == source_numbers(data)


def test_copy_has_its_source_in_a_dataset_csv_of_a_run(table, tmp_path):
    """evaluate and crossval read this file."""
    data = load_dataset(table)
    path = tmp_path / "runs/one/dataset.csv"
    path.parent.mkdir(parents=True)
    data.to_csv(path)
    loaded = load_dataset(path)
    assert is_copy(loaded).tolist() == is_copy(data).tolist()
    assert copy_groups(loaded).tolist() == source_numbers(loaded)
    saved = ImageDataset.from_csv(path, root=data.root, source=data.source)
    pd.testing.assert_frame_equal(saved.table, data.table)


def test_copy_has_its_source_in_shards(table, tmp_path):
    write_shards(load_dataset(table), tmp_path / "shards", PackOptions(shard_bytes=50_000, shard_images=5))
    data = load_dataset(str(tmp_path / "shards"))
    assert copy_groups(data).tolist() == source_numbers(data)
    path = tmp_path / "runs/one/dataset.csv"
    path.parent.mkdir(parents=True)
    data.to_csv(path)
    loaded = load_dataset(path)
    assert copy_groups(loaded).tolist() == source_numbers(loaded)
    for part in assign_folds(loaded, k=3, seed=0).parts:
        sources = np.array(source_numbers(loaded))
        assert not set(sources[part.train_rows]) & set(sources[part.val_rows])


def test_copies_of_copies_have_the_first_image_as_source():
    origin = [np.nan, "0.jpg", "1.jpg", "2.jpg", "3.jpg", np.nan, "gone.jpg", "gone.jpg", "5.jpg"]
    data = dataset([0, 0, 0, 0, 0, 1, 1, 1, 1], **{AUGMENTED_FROM: origin})
    assert copy_groups(data).tolist() == [0, 0, 0, 0, 0, 1, 2, 2, 1]
