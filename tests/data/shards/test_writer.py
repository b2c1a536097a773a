"""Packed shards keep bytes, labels and splits, and other tar readers can read them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import sys
import tarfile
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image
from tests.conftest import paint
from tests.messages import mentioning, mentions

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.readers import source_reader
from efficientnetv2.data.shards.index import save_index
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.utils.errors import InputError

SMALL = PackOptions(shard_bytes=50_000)
PARTIAL = ".out.effnetv2-partial"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """40 images in three splits, with groups, locations and a custom column."""
    rows = []
    for number in range(40):
        path = paint(tmp_path / f"images/{number:02d}.jpg", (5 * number, 90, 60), number)
        split = "val" if number % 5 == 0 else "test" if number % 7 == 0 else "train"
        rows.append(
            {
                "path": path.relative_to(tmp_path).as_posix(), "label": f"class {number % 3}, größer", "split": split,
                "group": f"g{number // 4}", "latitude": number / 2, "longitude": -number / 3, "camera": 7 + number % 2,
            }
        )  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "images.csv", index=False)
    return tmp_path / "images.csv"


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_raster_without_gdal_is_skipped_with_the_name_of_the_extra(table, tmp_path, monkeypatch):
    write_raster = pytest.importorskip("tests.rasters").write_raster
    raster = write_raster(tmp_path / "images/five.tif", np.zeros((5, 16, 16), dtype=np.uint16))
    with open(table, "a", encoding="utf-8") as rows:
        rows.write('images/five.tif,"class 0, größer",train,g0,1,1,7\n')
    monkeypatch.setitem(sys.modules, "rasterio", None)
    monkeypatch.setattr("efficientnetv2.data.raster_checks.has_gdal", lambda: False)
    result = write_shards(load_dataset(table), tmp_path / "shards", SMALL)
    ((path, reason),) = result.skipped
    assert (path, raster.name) == ("images/five.tif", "five.tif")
    assert "geo" in reason


def test_labels_splits_bytes_and_columns_are_preserved_in_order(table, tmp_path):
    files = load_dataset(table)
    write_shards(files, tmp_path / "shards", SMALL)
    shards = load_dataset(tmp_path / "shards")
    assert shards.class_names == files.class_names
    assert shards.labels.tolist() == files.labels.tolist()
    assert [path.partition("#")[2] for path in shards.paths] == files.paths
    for column in ("split", "group", "latitude", "longitude", "camera"):
        assert shards.table[column].tolist() == files.table[column].tolist(), column
    reader = source_reader(shards)
    for row in range(len(files)):
        assert reader.source(row) == Path(files.file(row)).read_bytes()


def test_tarfile_reads_the_members_in_webdataset_order(table, tmp_path):
    """Members of one key are consecutive."""
    files = load_dataset(table)
    write_shards(files, tmp_path / "shards", SMALL)
    expected = {path: Path(files.file(row)).read_bytes() for row, path in enumerate(files.paths)}
    contents = {}
    for shard in sorted((tmp_path / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            names = tar.getnames()
        keys = [name.partition(".")[0] for name in names]
        assert keys == [key for key in dict.fromkeys(keys) for _ in range(3)], "three consecutive members of each key"
        content = members(shard)
        for key in dict.fromkeys(keys):
            record = json.loads(content[f"{key}.json"])
            assert shard.name.startswith(record["split"])
            assert files.class_names[int(content[f"{key}.cls"])] == record["label"]
            contents[record["path"]] = content[f"{key}.jpg"]
    assert contents == expected


def test_offsets_in_the_index_are_those_of_tarfile(table, tmp_path):
    packed = write_shards(load_dataset(table), tmp_path / "shards", SMALL)
    expected = {}
    for number, shard in enumerate(packed.index.shards):
        file = tmp_path / "shards" / shard.name
        assert file.stat().st_size == shard.bytes <= SMALL.shard_bytes
        with tarfile.open(file) as tar:
            images = [member for member in tar if member.name.endswith(".jpg")]
        assert len(images) == shard.pictures
        expected |= {int(image.name[:9]): (number, image.offset_data, image.size) for image in images}
    rows = packed.index.table[["shard", "shard_offset", "shard_bytes"]]
    assert [tuple(row) for row in rows.to_numpy().tolist()] == [expected[row] for row in range(len(rows))]


def test_shards_have_the_requested_images_in_random_order(table, tmp_path):
    files = load_dataset(table)
    packed = write_shards(files, tmp_path / "a", PackOptions(shard_bytes=10**9, shard_images=6, seed=1))
    counts = {split: [s.pictures for s in packed.index.shards if s.name.startswith(split)] for split in
              ("train", "val", "test")}  # fmt: skip
    totals = pd.Series(files.split).value_counts()
    for split, sizes in counts.items():
        assert sizes == [6] * (totals[split] // 6) + ([totals[split] % 6] if totals[split] % 6 else [])
    same_seed = write_shards(files, tmp_path / "b", PackOptions(shard_bytes=10**9, shard_images=6, seed=1))
    other_seed = write_shards(files, tmp_path / "c", PackOptions(shard_bytes=10**9, shard_images=6, seed=2))

    def digests(folder):
        return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.glob("*.tar")}

    assert digests(tmp_path / "a") == digests(tmp_path / "b"), "the same seed gives the same bytes"
    assert digests(tmp_path / "a") != digests(tmp_path / "c")
    assert same_seed.index.table.equals(packed.index.table)
    assert sorted(other_seed.index.table["shard_content"]) == sorted(packed.index.table["shard_content"])


def test_larger_images_are_resized_and_the_others_unchanged(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 300, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90°
    (tmp_path / "images/a").mkdir(parents=True)
    (tmp_path / "images/b").mkdir()
    image.save(tmp_path / "images/a/wide.jpg", exif=exif)
    image.save(tmp_path / "images/a/wide.png")
    image.resize((30, 20)).save(tmp_path / "images/b/small.png")
    image.crop((0, 0, 50, 50)).save(tmp_path / "images/b/exact.webp")
    files = load_dataset(tmp_path / "images")
    write_shards(files, tmp_path / "shards", PackOptions(shard_bytes=10**9, image_size=50))
    (content,) = (members(path) for path in (tmp_path / "shards").glob("*.tar"))
    (shard,) = (tmp_path / "shards").glob("*.tar")
    with tarfile.open(shard) as tar:
        sizes = {
            name: Image.open(tar.extractfile(name)).size for name in tar.getnames() if name[10:] not in ("cls", "json")
        }
    assert sizes == {
        "000000000.jpg": (50, 150), "000000001.png": (150, 50), "000000002.webp": (50, 50), "000000003.png": (30, 20),
    }  # fmt: skip
    for row in (2, 3):
        suffix = Path(files.paths[row]).suffix
        assert content[f"{row:09d}{suffix}"] == Path(files.file(row)).read_bytes()


@pytest.mark.parametrize("orientation", [1, 3])
def test_shrink_is_not_distorted_by_the_scale_of_the_decoder(orientation):
    """A line near the right edge of 1,025 pixels, which is not a multiple of 8."""
    from efficientnetv2.data.shards.writer import shrink

    array = np.full((769, 1025), 255, np.uint8)
    array[:, 801:817] = 0
    stored, exif = BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.repeat(array[..., None], 3, axis=2))
    (image if orientation == 1 else image.transpose(Image.Transpose.ROTATE_180)).save(
        stored, "JPEG", quality=95, exif=exif
    )
    shrunk, _ = shrink(stored.getvalue(), 48)
    dark = 255 - np.asarray(Image.open(BytesIO(shrunk)).convert("L"), float)[4:-4, 40:62]
    columns = np.arange(40, 62) + 0.5
    # The center of the line is at 809 of 1,025; the copy is 64 wide.
    assert (dark * columns).sum() / dark.sum() == pytest.approx(809 / 1025 * 64, abs=0.1)


def test_shrink_equals_a_full_decode_and_resize():
    """Against Pillow, within the loss of JPEG."""
    from efficientnetv2.data.shards.writer import shrink

    y, x = np.mgrid[0:240, 0:400]
    smooth = np.stack([127 + 120 * np.sin(x / 40), 127 + 120 * np.cos(y / 30), (x + y) / 3], axis=2)
    image, buffer = Image.fromarray(smooth.astype(np.uint8)), BytesIO()
    image.save(buffer, "JPEG", quality=95)
    shrunk, extension = shrink(buffer.getvalue(), 60)
    assert extension == "jpg"
    expected = image.resize((100, 60), Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(Image.open(BytesIO(shrunk)), float) - np.asarray(expected, float))
    assert difference.mean() < 1.5


def test_unreadable_images_are_skipped_and_listed(tmp_path):
    for number in range(40):
        paint(tmp_path / f"images/{'ab'[number % 2]}/{number:02d}.jpg", (90, 5 * number, 60), number)
    (tmp_path / "images/a/00.jpg").write_bytes(b"not an image")
    files = load_dataset(tmp_path / "images")
    packed = write_shards(files, tmp_path / "shards", SMALL)
    assert [path for path, _ in packed.skipped] == ["a/00.jpg"]
    assert "a/00.jpg" in (tmp_path / "shards/skipped.csv").read_text()
    shards = load_dataset(tmp_path / "shards")
    assert len(shards) == 39
    assert source_reader(shards).source(0) == (tmp_path / "images/a/02.jpg").read_bytes()


def damage(folder: Path, row: pd.Series) -> None:
    """Replace the middle of an image by zeros, as after a lost disk block."""
    file = folder / f"train-{row['shard']:06d}.tar"
    content = bytearray(file.read_bytes())
    middle = row["shard_offset"] + row["shard_bytes"] // 2
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)


@pytest.mark.parametrize("image_size", [None, 40])
def test_damaged_image_is_found_by_its_checksum(image_size, table, tmp_path):
    """A JPEG with zeros in the middle still decodes, to another image."""
    packed = write_shards(load_dataset(table), tmp_path / "shards", PackOptions(10**9, image_size=image_size))
    rows = packed.index.table
    assert rows["shard_crc32"].tolist() == [
        zlib.crc32((tmp_path / "shards" / packed.index.shards[row.shard].name).read_bytes()
                   [row.shard_offset :][: row.shard_bytes])
        for row in rows.itertuples()
    ]  # fmt: skip
    damaged = int(np.flatnonzero(rows["split"] == "train")[3])
    damage(tmp_path / "shards", rows.iloc[damaged])
    shards = load_dataset(tmp_path / "shards")
    reader = source_reader(shards)
    ahead = reader.ahead([damaged, damaged + 1])
    for each in (reader, ahead, pickle.loads(pickle.dumps(reader))):
        with pytest.raises(UnreadableImageError) as error:
            each.source(damaged)
        start = rows.iloc[damaged]["shard_offset"]
        assert mentions(str(error.value), start, start + rows.iloc[damaged]["shard_bytes"], "train-000000.tar")
        assert shards.paths[damaged] in str(error.value)
    others = [reader.source(row) for row in range(40) if row != damaged]
    assert len(others) == 39, "the other images are intact"
    chosen = shards.select([damaged + 1, damaged])
    assert source_reader(chosen).source(0) == reader.source(damaged + 1), "checksums follow their images"
    with pytest.raises(UnreadableImageError):
        source_reader(chosen).source(1)
    repacked = write_shards(shards, tmp_path / "again", PackOptions(10**9))
    assert [path for path, _ in repacked.skipped] == [shards.paths[damaged]]
    assert "crc" not in "".join(
        text.decode() for name, text in members(tmp_path / "again/train-000000.tar").items() if name.endswith("json")
    )


def test_index_without_checksums_is_accepted(table, tmp_path):
    packed = write_shards(load_dataset(table), tmp_path / "shards", PackOptions(10**9))
    save_index(
        replace(packed.index, table=packed.index.table.drop(columns="shard_crc32")), tmp_path / "shards/index.parquet"
    )
    damage(tmp_path / "shards", packed.index.table.iloc[1])
    shards = load_dataset(tmp_path / "shards")
    assert len(source_reader(shards).source(1)) == packed.index.table["shard_bytes"].iloc[1]


def test_equal_keys_in_several_shards_stay_separate(table, tmp_path):
    """Tars of other tools number their keys from 0 in each shard, so the path has the name of the shard."""
    jpeg = (tmp_path / "images/00.jpg").read_bytes()
    for shard in ("a", "b"):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for name, content in {"0.jpg": jpeg, "0.cls": shard.encode(), f"only {shard}.jpg": jpeg,
                                  f"only {shard}.cls": b"both"}.items():  # fmt: skip
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
    both = load_dataset(f"{tmp_path}/{{a,b}}.tar")
    write_shards(both, tmp_path / "again", PackOptions(10**9))
    repacked = load_dataset(tmp_path / "again")
    labels = dict(zip(repacked.paths, repacked.table["label"], strict=True))
    names = {path.partition("#")[2]: label for path, label in labels.items()}
    assert names == {"a.tar#0.jpg": "a", "a.tar#only a.jpg": "both", "b.tar#0.jpg": "b", "b.tar#only b.jpg": "both"}
    write_shards(both.select([0, 1]), tmp_path / "one", PackOptions(10**9))
    assert [path.partition("#")[2] for path in load_dataset(tmp_path / "one").paths] == ["0.jpg", "only a.jpg"]
    write_shards(repacked, tmp_path / "third", PackOptions(10**9, seed=3))
    assert {path.partition("#")[2] for path in load_dataset(tmp_path / "third").paths} == set(names)


@pytest.mark.parametrize(
    ("num_bad", "strict", "facts"),
    [(1, True, ("strict",)), (3, False, ("more than 5 % of the images cannot be used",))],
)
def test_too_many_unreadable_images_leave_no_files(num_bad, strict, facts, tmp_path):
    for number in range(40):
        path = paint(tmp_path / f"images/{'ab'[number % 2]}/{number:02d}.jpg", (90, 5 * number, 60), number)
        if number < num_bad:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=mentioning(*facts)):
        write_shards(load_dataset(tmp_path / "images"), tmp_path / "shards", PackOptions(50_000, strict=strict))
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


def test_packing_shards_again_preserves_the_dataset(table, tmp_path):
    files = replace(load_dataset(table), published="cifar10")
    write_shards(files, tmp_path / "once", SMALL)
    write_shards(load_dataset(tmp_path / "once"), tmp_path / "twice", PackOptions(shard_bytes=10**9, seed=5))
    twice = load_dataset(tmp_path / "twice")
    assert [path.partition("#")[2] for path in twice.paths] == files.paths
    assert twice.published == "cifar10"
    reader = source_reader(twice)
    assert all(reader.source(row) == Path(files.file(row)).read_bytes() for row in range(len(files)))


def test_too_little_disk_space_is_rejected_before_the_first_shard(table, tmp_path, monkeypatch):
    dataset = load_dataset(table)
    needed = sum(Path(dataset.file(row)).stat().st_size + 6 * tarfile.BLOCKSIZE for row in range(len(dataset)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(InputError, match=mentioning("image_size")):
        write_shards(dataset, tmp_path / "new/out", PackOptions(10**9))
    assert not (tmp_path / "new").exists()
    write_shards(dataset, tmp_path / "smaller", PackOptions(10**9, image_size=16))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    write_shards(dataset, tmp_path / "out", PackOptions(10**9))


def test_mounted_folder_is_rejected_before_the_first_shard(table, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()

    def busy(self):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "rmdir", busy)
    packed = []
    with pytest.raises(InputError, match=mentioning("busy", tmp_path / "out/shards")):
        write_shards(load_dataset(table), tmp_path / "out", SMALL, progress=packed.append)
    assert not packed


def test_folder_in_one_that_is_read_only_gets_a_folder_within_proposed(table, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    access = os.access

    def denied(self):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    monkeypatch.setattr(Path, "rmdir", denied)
    with pytest.raises(InputError, match=mentioning("denied", tmp_path / "out/shards")):
        write_shards(load_dataset(table), tmp_path / "out", SMALL)


def test_partial_files_of_a_killed_run_free_their_space(table, tmp_path, monkeypatch):
    dataset, partial, usage = load_dataset(table), tmp_path / PARTIAL, shutil.disk_usage(tmp_path)
    needed = sum(Path(dataset.file(row)).stat().st_size + 6 * tarfile.BLOCKSIZE for row in range(len(dataset)))
    partial.mkdir()
    (partial / "images-000000.tar").write_bytes(b"half of it")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - partial.exists()))
    write_shards(dataset, tmp_path / "out", PackOptions(10**9))
    assert len(load_dataset(tmp_path / "out")) == len(dataset)


def test_full_disk_is_reported(table, tmp_path, monkeypatch):
    def raise_no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tarfile.TarFile, "addfile", raise_no_space)
    with pytest.raises(InputError, match=mentioning("No space left on device")):
        write_shards(load_dataset(table), tmp_path / "out", PackOptions(10**9))
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith((".", "out"))] == []


def test_folder_with_a_similar_name_is_unchanged(table, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/notes.txt").write_text("notes")
    write_shards(load_dataset(table), tmp_path / "out", PackOptions(10**9))
    assert (tmp_path / "out.partial/notes.txt").read_text() == "notes"


def test_second_process_for_the_same_folder_is_rejected(table, tmp_path):
    """It would delete the shards of the first."""
    locked = pytest.raises(InputError, match=mentioning("out", "another process"))
    with FileLock(tmp_path / f"{PARTIAL}.lock"), locked:
        write_shards(load_dataset(table), tmp_path / "out", PackOptions(10**9))
    write_shards(load_dataset(table), tmp_path / "out", PackOptions(10**9))
    assert len(load_dataset(tmp_path / "out")) == len(load_dataset(table))


def test_lists_stay_lists(tmp_path):
    """Also longer ones than numpy prints."""
    paint(tmp_path / "a.png", 0)
    paint(tmp_path / "b.png", 1)
    boxes = [[[10.0, 20.0]], [np.arange(2_000).tolist()]]
    pd.DataFrame({"path": ["a.png", "b.png"], "label": ["x", "y"], "boxes": boxes}).to_parquet(tmp_path / "t.parquet")
    write_shards(load_dataset(tmp_path / "t.parquet"), tmp_path / "out", SMALL)
    shard = next((tmp_path / "out").glob("*.tar"))
    facts = [json.loads(data) for name, data in members(shard).items() if name.endswith(".json")]
    assert {each["path"]: each["boxes"] for each in facts} == dict(zip(("a.png", "b.png"), boxes, strict=True))
