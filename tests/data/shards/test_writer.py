"""What is packed is what was there: bytes, labels and splits, readable by anything that reads tars."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
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
    """40 images in three splits, with groups, places and a column of the user's own."""
    rows = []
    for number in range(40):
        path = paint(tmp_path / f"pictures/{number:02d}.jpg", (5 * number, 90, 60), number)
        split = "val" if number % 5 == 0 else "test" if number % 7 == 0 else "train"
        rows.append(
            {
                "path": path.relative_to(tmp_path).as_posix(), "label": f"class {number % 3}, größer", "split": split,
                "group": f"g{number // 4}", "latitude": number / 2, "longitude": -number / 3, "camera": 7 + number % 2,
            }
        )  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "pictures.csv", index=False)
    return tmp_path / "pictures.csv"


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_labels_splits_bytes_and_all_columns_come_back_in_the_same_order(table, tmp_path):
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


def test_python_alone_reads_the_tars_and_finds_what_the_files_are(table, tmp_path):
    """No index, no code of ours: WebDataset's rules say that members of one key follow each other."""
    files = load_dataset(table)
    write_shards(files, tmp_path / "shards", SMALL)
    originals_of = {path: Path(files.file(row)).read_bytes() for row, path in enumerate(files.paths)}
    found = {}
    for shard in sorted((tmp_path / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            names = tar.getnames()
        keys = [name.partition(".")[0] for name in names]
        assert keys == [key for key in dict.fromkeys(keys) for _ in range(3)], "three members of each key, together"
        content = members(shard)
        for key in dict.fromkeys(keys):
            facts = json.loads(content[f"{key}.json"])
            assert shard.name.startswith(facts["split"])
            assert files.class_names[int(content[f"{key}.cls"])] == facts["label"]
            found[facts["path"]] = content[f"{key}.jpg"]
    assert found == originals_of


def test_offsets_in_the_index_are_where_tarfile_finds_the_images(table, tmp_path):
    packed = write_shards(load_dataset(table), tmp_path / "shards", SMALL)
    there = {}
    for number, shard in enumerate(packed.index.shards):
        file = tmp_path / "shards" / shard.name
        assert file.stat().st_size == shard.bytes <= SMALL.shard_bytes
        with tarfile.open(file) as tar:
            pictures = [member for member in tar if member.name.endswith(".jpg")]
        assert len(pictures) == shard.pictures
        there |= {int(one.name[:9]): (number, one.offset_data, one.size) for one in pictures}
    rows = packed.index.table[["shard", "shard_offset", "shard_bytes"]]
    assert [tuple(row) for row in rows.to_numpy().tolist()] == [there[row] for row in range(len(rows))]


def test_shards_have_as_many_images_as_asked_for_and_the_order_is_drawn(table, tmp_path):
    files = load_dataset(table)
    packed = write_shards(files, tmp_path / "a", PackOptions(shard_bytes=10**9, shard_images=6, seed=1))
    counts = {split: [s.pictures for s in packed.index.shards if s.name.startswith(split)] for split in
              ("train", "val", "test")}  # fmt: skip
    totals = pd.Series(files.split).value_counts()
    for split, of in counts.items():
        assert of == [6] * (totals[split] // 6) + ([totals[split] % 6] if totals[split] % 6 else [])
    again = write_shards(files, tmp_path / "b", PackOptions(shard_bytes=10**9, shard_images=6, seed=1))
    other = write_shards(files, tmp_path / "c", PackOptions(shard_bytes=10**9, shard_images=6, seed=2))

    def digests(folder):
        return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.glob("*.tar")}

    assert digests(tmp_path / "a") == digests(tmp_path / "b"), "the same seed gives the same bytes"
    assert digests(tmp_path / "a") != digests(tmp_path / "c")
    assert again.index.table.equals(packed.index.table)
    assert sorted(other.index.table["shard_content"]) == sorted(packed.index.table["shard_content"])


def test_larger_images_are_shrunk_to_the_shorter_side_and_the_rest_is_left_alone(tmp_path):
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 300, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6  # stored on its side
    (tmp_path / "pictures/a").mkdir(parents=True)
    (tmp_path / "pictures/b").mkdir()
    wide.save(tmp_path / "pictures/a/wide.jpg", exif=turned)
    wide.save(tmp_path / "pictures/a/wide.png")
    wide.resize((30, 20)).save(tmp_path / "pictures/b/small.png")
    wide.crop((0, 0, 50, 50)).save(tmp_path / "pictures/b/exact.webp")
    files = load_dataset(tmp_path / "pictures")
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
def test_a_shrunk_image_is_not_stretched_where_its_side_is_no_multiple_of_the_decoders_scale(orientation):
    """A line near the right edge of 1,025 pixels, of which an eighth is 128 and a bit."""
    from efficientnetv2.data.shards.writer import shrink

    whole = np.full((769, 1025), 255, np.uint8)
    whole[:, 801:817] = 0
    stored, turned = BytesIO(), Image.Exif()
    turned[0x0112] = orientation
    image = Image.fromarray(np.repeat(whole[..., None], 3, axis=2))
    (image if orientation == 1 else image.transpose(Image.Transpose.ROTATE_180)).save(
        stored, "JPEG", quality=95, exif=turned
    )
    small, _ = shrink(stored.getvalue(), 48)
    dark = 255 - np.asarray(Image.open(BytesIO(small)).convert("L"), float)[4:-4, 40:62]
    columns = np.arange(40, 62) + 0.5
    # The line's middle is 809 of 1,025, and the copy 64 wide.
    assert (dark * columns).sum() / dark.sum() == pytest.approx(809 / 1025 * 64, abs=0.1)


def test_a_shrunk_image_is_the_shrunk_image():
    """Against Pillow's full decode and resize, within what JPEG loses."""
    from efficientnetv2.data.shards.writer import shrink

    y, x = np.mgrid[0:240, 0:400]
    smooth = np.stack([127 + 120 * np.sin(x / 40), 127 + 120 * np.cos(y / 30), (x + y) / 3], axis=2)
    whole, stored = Image.fromarray(smooth.astype(np.uint8)), BytesIO()
    whole.save(stored, "JPEG", quality=95)
    small, extension = shrink(stored.getvalue(), 60)
    assert extension == "jpg"
    expected = whole.resize((100, 60), Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(Image.open(BytesIO(small)), float) - np.asarray(expected, float))
    assert difference.mean() < 1.5


def test_unreadable_images_are_left_out_and_listed(tmp_path):
    for number in range(40):
        paint(tmp_path / f"pictures/{'ab'[number % 2]}/{number:02d}.jpg", (90, 5 * number, 60), number)
    (tmp_path / "pictures/a/00.jpg").write_bytes(b"no picture")
    files = load_dataset(tmp_path / "pictures")
    packed = write_shards(files, tmp_path / "shards", SMALL)
    assert [path for path, _ in packed.skipped] == ["a/00.jpg"]
    assert "a/00.jpg" in (tmp_path / "shards/skipped.csv").read_text()
    shards = load_dataset(tmp_path / "shards")
    assert len(shards) == 39
    assert source_reader(shards).source(0) == (tmp_path / "pictures/a/02.jpg").read_bytes()


def damaged(folder: Path, row: pd.Series) -> None:
    """Zeros where the middle of a image was, as a disk that lost a block gives them."""
    file = folder / f"train-{row['shard']:06d}.tar"
    content = bytearray(file.read_bytes())
    middle = row["shard_offset"] + row["shard_bytes"] // 2
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)


@pytest.mark.parametrize("image_size", [None, 40])
def test_a_image_that_is_not_what_was_packed_is_not_used(image_size, table, tmp_path):
    """A JPEG with a hole still decodes, to another image; its checksum tells."""
    packed = write_shards(load_dataset(table), tmp_path / "shards", PackOptions(10**9, image_size=image_size))
    rows = packed.index.table
    assert rows["shard_crc32"].tolist() == [
        zlib.crc32((tmp_path / "shards" / packed.index.shards[row.shard].name).read_bytes()
                   [row.shard_offset :][: row.shard_bytes])
        for row in rows.itertuples()
    ]  # fmt: skip
    hit = int(np.flatnonzero(rows["split"] == "train")[3])
    damaged(tmp_path / "shards", rows.iloc[hit])
    shards = load_dataset(tmp_path / "shards")
    reader = source_reader(shards)
    near = reader.ahead([hit, hit + 1])
    for one in (reader, near, pickle.loads(pickle.dumps(reader))):
        with pytest.raises(UnreadableImageError) as error:
            one.source(hit)
        start = rows.iloc[hit]["shard_offset"]
        assert mentions(str(error.value), start, start + rows.iloc[hit]["shard_bytes"], "train-000000.tar")
        assert shards.paths[hit] in str(error.value)
    whole = [reader.source(row) for row in range(40) if row != hit]
    assert len(whole) == 39, "the rest are"
    chosen = shards.select([hit + 1, hit])
    assert source_reader(chosen).source(0) == reader.source(hit + 1), "checksums go with their pictures"
    with pytest.raises(UnreadableImageError):
        source_reader(chosen).source(1)
    again = write_shards(shards, tmp_path / "again", PackOptions(10**9))
    assert [path for path, _ in again.skipped] == [shards.paths[hit]]
    assert "crc" not in "".join(
        text.decode() for name, text in members(tmp_path / "again/train-000000.tar").items() if name.endswith("json")
    )


def test_an_index_without_checksums_is_read_as_it_was(table, tmp_path):
    packed = write_shards(load_dataset(table), tmp_path / "shards", PackOptions(10**9))
    save_index(
        replace(packed.index, table=packed.index.table.drop(columns="shard_crc32")), tmp_path / "shards/index.parquet"
    )
    damaged(tmp_path / "shards", packed.index.table.iloc[1])
    shards = load_dataset(tmp_path / "shards")
    assert len(source_reader(shards).source(1)) == packed.index.table["shard_bytes"].iloc[1]


def test_a_set_of_one_key_in_several_shards_keeps_the_names_that_tell_them_apart(table, tmp_path):
    """Tars of others number their keys again in each: the shard's name then stays part of the path."""
    jpeg = (tmp_path / "pictures/00.jpg").read_bytes()
    for shard in ("a", "b"):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for name, content in {"0.jpg": jpeg, "0.cls": shard.encode(), f"only {shard}.jpg": jpeg,
                                  f"only {shard}.cls": b"both"}.items():  # fmt: skip
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
    both = load_dataset(f"{tmp_path}/{{a,b}}.tar")
    write_shards(both, tmp_path / "again", PackOptions(10**9))
    again = load_dataset(tmp_path / "again")
    labels = dict(zip(again.paths, again.table["label"], strict=True))
    inner = {path.partition("#")[2]: label for path, label in labels.items()}
    assert inner == {"a.tar#0.jpg": "a", "a.tar#only a.jpg": "both", "b.tar#0.jpg": "b", "b.tar#only b.jpg": "both"}
    write_shards(both.select([0, 1]), tmp_path / "one", PackOptions(10**9))
    assert [path.partition("#")[2] for path in load_dataset(tmp_path / "one").paths] == ["0.jpg", "only a.jpg"]
    write_shards(again, tmp_path / "third", PackOptions(10**9, seed=3))
    assert {path.partition("#")[2] for path in load_dataset(tmp_path / "third").paths} == set(inner)


@pytest.mark.parametrize(
    ("bad", "strict", "said"), [(1, True, ("strict",)), (3, False, ("more than 5 % of the images cannot be used",))]
)
def test_too_many_unreadable_images_leave_nothing_behind(bad, strict, said, tmp_path):
    for number in range(40):
        path = paint(tmp_path / f"pictures/{'ab'[number % 2]}/{number:02d}.jpg", (90, 5 * number, 60), number)
        if number < bad:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=mentioning(*said)):
        write_shards(load_dataset(tmp_path / "pictures"), tmp_path / "shards", PackOptions(50_000, strict=strict))
    assert {path.name for path in tmp_path.iterdir()} == {"pictures"}


def test_a_set_packed_again_is_the_same_set(table, tmp_path):
    files = load_dataset(table)
    write_shards(files, tmp_path / "once", SMALL)
    write_shards(load_dataset(tmp_path / "once"), tmp_path / "twice", PackOptions(shard_bytes=10**9, seed=5))
    twice = load_dataset(tmp_path / "twice")
    assert [path.partition("#")[2] for path in twice.paths] == files.paths
    reader = source_reader(twice)
    assert all(reader.source(row) == Path(files.file(row)).read_bytes() for row in range(len(files)))


def test_records_of_a_binary_file_become_pngs_of_the_same_pixels(tmp_path):
    from efficientnetv2.data.builtin_datasets import CIFAR10, write_cifar_folder
    from efficientnetv2.data.decode import load_image

    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (30, 32, 32, 3), dtype=np.uint8)
    ids = np.arange(30, dtype=np.uint8) % 10
    names = [f"class{number}" for number in range(10)]
    write_cifar_folder(
        tmp_path / "cifar", CIFAR10, names, train=(pictures[:20], ids[:20]), test=(pictures[20:], ids[20:])
    )
    write_shards(load_dataset(tmp_path / "cifar"), tmp_path / "shards", PackOptions(shard_bytes=10**9))
    shards = load_dataset(tmp_path / "shards")
    assert shards.published == "cifar10"
    assert shards.labels.tolist() == ids.tolist()
    reader = source_reader(shards)
    for row in range(30):
        assert np.array_equal(np.asarray(load_image(reader.source(row))), pictures[row])


def test_a_place_without_room_is_refused_before_the_first_shard(table, tmp_path, monkeypatch):
    dataset = load_dataset(table)
    needed = sum(Path(dataset.file(row)).stat().st_size for row in range(len(dataset)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=needed - 1))
    with pytest.raises(InputError, match=mentioning("image_size")):
        write_shards(dataset, tmp_path / "new/out", PackOptions(10**9))
    assert not (tmp_path / "new").exists()
    write_shards(dataset, tmp_path / "smaller", PackOptions(10**9, image_size=16))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=needed))
    write_shards(dataset, tmp_path / "out", PackOptions(10**9))


def test_what_a_kill_has_left_takes_no_room_from_those_that_come(table, tmp_path, monkeypatch):
    dataset, left, usage = load_dataset(table), tmp_path / PARTIAL, shutil.disk_usage(tmp_path)
    needed = sum(Path(dataset.file(row)).stat().st_size for row in range(len(dataset)))
    left.mkdir()
    (left / "images-000000.tar").write_bytes(b"half of it")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=needed - left.exists()))
    write_shards(dataset, tmp_path / "out", PackOptions(10**9))
    assert len(load_dataset(tmp_path / "out")) == len(dataset)


def test_a_disk_that_becomes_full_is_named(table, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(InputError, match=mentioning("No space left on device")):
        write_shards(load_dataset(table), tmp_path / "out", PackOptions(10**9))
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith((".", "out"))] == []


def test_a_folder_that_is_called_like_a_part_of_ours_is_left_alone(table, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/notes.txt").write_text("precious")
    write_shards(load_dataset(table), tmp_path / "out", PackOptions(10**9))
    assert (tmp_path / "out.partial/notes.txt").read_text() == "precious"


def test_of_two_that_pack_into_one_folder_the_second_is_refused(table, tmp_path):
    """It would take away what the first has written so far."""
    taken = pytest.raises(InputError, match=mentioning("out", "another process"))
    with FileLock(tmp_path / f"{PARTIAL}.lock"), taken:
        write_shards(load_dataset(table), tmp_path / "out", PackOptions(10**9))
    write_shards(load_dataset(table), tmp_path / "out", PackOptions(10**9))
    assert len(load_dataset(tmp_path / "out")) == len(load_dataset(table))
