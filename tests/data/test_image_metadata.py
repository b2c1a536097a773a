"""Images known by their contents: wherever they lie, and without reading more than need be."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from efficientnetv2.data import image_metadata
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.image_metadata import content_hashes, longer_sides, median_shorter_side
from efficientnetv2.data.shards.writer import PackOptions, write_shards


def by_name(dataset):
    rows, marks = content_hashes(dataset)
    names = [dataset.paths[row].rpartition("#")[2].rpartition("/")[2] for row in rows]
    return dict(zip(names, marks.tolist(), strict=True))


def test_files_copies_and_shards_of_both_kinds_have_the_same_marks(class_folders, tmp_path):
    files = by_name(load_dataset(class_folders))
    assert len(set(files.values())) == 48
    assert all(0 <= mark < 2**63 for mark in files.values())
    shutil.copytree(class_folders, tmp_path / "elsewhere")
    assert by_name(load_dataset(tmp_path / "elsewhere")) == files
    write_shards(load_dataset(class_folders), tmp_path / "shards", PackOptions(10**9))
    assert by_name(load_dataset(tmp_path / "shards")) == files
    (tmp_path / "shards/index.parquet").unlink()
    assert by_name(load_dataset(tmp_path / "shards")) == files


def test_of_shards_with_an_index_no_image_is_read_and_shrunk_ones_count_as_the_originals(
    class_folders, tmp_path, monkeypatch
):
    write_shards(load_dataset(class_folders), tmp_path / "small", PackOptions(10**9, image_size=16))
    monkeypatch.setattr(image_metadata, "source_reader", None)
    small = by_name(load_dataset(tmp_path / "small"))
    monkeypatch.undo()
    assert small == by_name(load_dataset(class_folders))


def test_a_packed_record_has_the_mark_of_what_a_shard_of_it_holds(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/batches.meta.txt").write_text("cat\ndog\n")
    records = [bytes([row % 2]) + pixels[row].tobytes() for row in range(4)]
    (tmp_path / "set/data_batch_1.bin").write_bytes(b"".join(records))
    packed = load_dataset(tmp_path / "set")
    write_shards(packed, tmp_path / "shards", PackOptions(10**9))
    assert content_hashes(packed)[1].tolist() == content_hashes(load_dataset(tmp_path / "shards"))[1].tolist()


def many(folder, count):
    """Files that only claim to be images: nothing decodes them."""
    for number in range(count):
        (folder / f"{number:05d}.jpg").write_bytes(f"content {number}".encode())
    rows = [{"path": f"{number:05d}.jpg", "label": "ab"[number % 2]} for number in range(count)]
    pd.DataFrame(rows).to_csv(folder / "list.csv", index=False)
    return load_dataset(folder / "list.csv")


def test_of_many_a_part_is_read_always_the_same_and_from_all_over(tmp_path):
    dataset = many(tmp_path, 400)
    rows, marks = content_hashes(dataset, most=100)
    assert len(rows) == len(marks) == 100
    assert (np.diff(rows) > 0).all()
    assert 100 < rows.mean() < 300, "not the first ones alone"
    again = content_hashes(dataset, most=100)
    assert (again[0] == rows).all()
    assert (again[1] == marks).all()
    every, all_marks = content_hashes(dataset, most=400)
    assert every.tolist() == list(range(400))
    assert (all_marks[rows] == marks).all()


def test_what_cannot_be_read_is_left_out(tmp_path):
    dataset = many(tmp_path, 10)
    (tmp_path / "00003.jpg").unlink()
    assert content_hashes(dataset)[0].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("most", [1, 9])
def test_no_more_are_read_than_asked_for(most, tmp_path, monkeypatch):
    dataset, read_ones = many(tmp_path, 10), []
    mark_of = image_metadata.content_hash
    monkeypatch.setattr(image_metadata, "content_hash", lambda data: read_ones.append(data) or mark_of(data))
    content_hashes(dataset, most=most)
    assert len(read_ones) == most


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
