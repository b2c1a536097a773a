"""Content hashes and sizes of images, read from as few files as possible."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from efficientnetv2.data import image_metadata
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.image_metadata import content_hashes, longer_sides, median_shorter_side
from efficientnetv2.data.shards.reader import ShardReader
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.utils.errors import InputError


def hashes_by_name(dataset):
    rows, hashes = content_hashes(dataset)
    names = [dataset.paths[row].rpartition("#")[2].rpartition("/")[2] for row in rows]
    return dict(zip(names, hashes.tolist(), strict=True))


def test_files_copies_and_shards_have_the_same_hashes(class_folders, tmp_path):
    files = hashes_by_name(load_dataset(class_folders))
    assert len(set(files.values())) == 48
    assert all(0 <= value < 2**63 for value in files.values())
    shutil.copytree(class_folders, tmp_path / "elsewhere")
    assert hashes_by_name(load_dataset(tmp_path / "elsewhere")) == files
    write_shards(load_dataset(class_folders), tmp_path / "shards", PackOptions(10**9))
    assert hashes_by_name(load_dataset(tmp_path / "shards")) == files
    (tmp_path / "shards/index.parquet").unlink()
    assert hashes_by_name(load_dataset(tmp_path / "shards")) == files


def test_table_of_files_with_the_columns_of_an_index_is_hashed_anew(tmp_path):
    """As from the dataset.csv of a run on shards, in which the paths were replaced."""
    dataset = write_files(tmp_path, 4)
    kept = replace(dataset, table=dataset.table.assign(shard_content=[1.0, 2.0, np.nan, np.nan]))
    assert content_hashes(kept)[1].tolist() == content_hashes(dataset)[1].tolist()


def test_index_has_the_hashes_of_the_originals_of_resized_images(class_folders, tmp_path, monkeypatch):
    write_shards(load_dataset(class_folders), tmp_path / "small", PackOptions(10**9, image_size=16))
    monkeypatch.setattr(image_metadata, "source_reader", None)
    small = hashes_by_name(load_dataset(tmp_path / "small"))
    monkeypatch.undo()
    assert small == hashes_by_name(load_dataset(class_folders))


def write_files(folder, count):
    """Files with an image suffix that are not decoded."""
    for number in range(count):
        (folder / f"{number:05d}.jpg").write_bytes(f"content {number}".encode())
    rows = [{"path": f"{number:05d}.jpg", "label": "ab"[number % 2]} for number in range(count)]
    pd.DataFrame(rows).to_csv(folder / "list.csv", index=False)
    return load_dataset(folder / "list.csv")


def test_hashes_are_of_a_fixed_sample_of_all_rows(tmp_path):
    dataset = write_files(tmp_path, 400)
    rows, hashes = content_hashes(dataset, most=100)
    assert len(rows) == len(hashes) == 100
    assert (np.diff(rows) > 0).all()
    assert 100 < rows.mean() < 300, "not only the first rows"
    second = content_hashes(dataset, most=100)
    assert (second[0] == rows).all()
    assert (second[1] == hashes).all()
    all_rows, all_hashes = content_hashes(dataset, most=400)
    assert all_rows.tolist() == list(range(400))
    assert (all_hashes[rows] == hashes).all()


def test_unreadable_files_are_skipped(tmp_path):
    dataset = write_files(tmp_path, 10)
    (tmp_path / "00003.jpg").unlink()
    assert content_hashes(dataset)[0].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("limit", [1, 9])
def test_no_more_files_are_read_than_requested(limit, tmp_path, monkeypatch):
    dataset, hashed = write_files(tmp_path, 10), []
    content_hash = image_metadata.content_hash
    monkeypatch.setattr(image_metadata, "content_hash", lambda data: hashed.append(data) or content_hash(data))
    content_hashes(dataset, most=limit)
    assert len(hashed) == limit


def test_longer_side_is_read_from_the_header(class_folders):
    Image.new("RGB", (70, 20)).save(class_folders / "red/red_00.jpg")
    Image.new("L", (20, 90)).save(class_folders / "red/red_01.png")
    (class_folders / "red/red_02.jpg").write_bytes(b"not an image")
    dataset = load_dataset(class_folders)
    found = dict(zip(dataset.paths, longer_sides(dataset), strict=True))
    assert (found["red/red_00.jpg"], found["red/red_01.png"], found["blue/blue_00.jpg"]) == (70, 90, 48)
    assert np.isnan(found["red/red_02.jpg"])


def test_longer_side_is_unknown_for_shards_and_many_images(class_folders, tmp_path, monkeypatch):
    write_shards(load_dataset(class_folders), tmp_path / "packed", PackOptions(10**9))
    assert longer_sides(load_dataset(tmp_path / "packed")) is None
    monkeypatch.setattr(image_metadata, "MAX_MEASURED", 47)
    assert longer_sides(load_dataset(class_folders)) is None


@pytest.mark.parametrize("packed", [False, True])
def test_median_side_is_known_for_files_and_shards(class_folders, tmp_path, packed):
    """Of 48 images of 48 px, three are larger and one is unreadable."""
    for number in range(3):
        Image.new("RGB", (400, 300)).save(class_folders / f"red/red_0{number}.jpg")
    (class_folders / "blue/blue_02.jpg").write_bytes(b"not an image")
    dataset = load_dataset(class_folders)
    if packed:
        write_shards(dataset, tmp_path / "packed", PackOptions(10**9))
        dataset = load_dataset(tmp_path / "packed")
    assert median_shorter_side(dataset) == 48


def test_median_side_is_unknown_without_readable_images(tmp_path):
    for name in ("red/a.jpg", "blue/b.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"not an image")
    assert median_shorter_side(load_dataset(tmp_path)) is None


def test_median_side_is_unknown_while_a_store_does_not_respond(class_folders, tmp_path, monkeypatch):
    """A run that has been evaluated still gets its report."""

    def silent(*_):
        raise InputError("the store does not respond")

    write_shards(load_dataset(class_folders), tmp_path / "packed", PackOptions(10**9))
    monkeypatch.setattr(ShardReader, "ahead", silent)
    assert median_shorter_side(load_dataset(tmp_path / "packed")) is None
