"""Tars of other tools, without an index: headers are read once, damaged tars as far as possible."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from pathlib import Path

import pytest
from tests.conftest import paint
from tests.messages import mentioning, mentions

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.data.readers import source_reader
from efficientnetv2.data.records import is_copy
from efficientnetv2.data.shards import scan
from efficientnetv2.data.shards.storage import LocalStore
from efficientnetv2.utils.errors import InputError


@pytest.fixture(autouse=True)
def _separate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFNETV2_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def jpegs(tmp_path: Path) -> list[bytes]:
    return [paint(tmp_path / "files" / f"{n}.jpg", (9 * n, 99, 150 - 7 * n), n).read_bytes() for n in range(12)]


def write(file: Path, members: dict[str, bytes], **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", **options) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def webdataset_members(jpegs: list[bytes], first: int = 0) -> dict[str, bytes]:
    """Members as WebDataset names them: a key, and class ids as text."""
    return {
        name: content
        for number, jpeg in enumerate(jpegs, first)
        for name, content in ((f"{number:04d}.jpg", jpeg), (f"{number:04d}.cls", str(number % 2).encode()))
    }


def headers(file: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(file) as tar:
        return tar.getmembers()


def test_class_ids_become_labels_and_shard_names_splits(jpegs, tmp_path):
    for number, split in enumerate(("train", "train", "validation")):
        write(tmp_path / f"set/my-{split}-{number:03d}.tar", webdataset_members(jpegs[4 * number : 4 * number + 4]))
    dataset = load_dataset(tmp_path / "set")
    assert dataset.class_names == ("0", "1")
    assert dataset.labels.tolist() == [0, 1] * 6
    assert dataset.split.tolist() == ["train"] * 8 + ["val"] * 4
    assert dataset.paths[5] == "my-train-001.tar#0001.jpg", "keys may repeat from shard to shard"
    reader = source_reader(dataset)
    assert [reader.source(row) for row in range(12)] == jpegs
    assert mentions(dataset.notes[0], "3", "12", "shard")


def test_json_has_label_split_group_and_location(jpegs, tmp_path):
    members = {}
    for number, jpeg in enumerate(jpegs):
        record = {"species": f"s{number % 3}", "label": 7, "split": "val" if number > 8 else "train"}
        record |= {"site": number // 4, "latitude": number / 2, "longitude": 3, "junk": [1, 2]}
        members |= {f"deep/er/{number}.jpg": jpeg, f"deep/er/{number}.json": json.dumps(record).encode()}
    file = write(tmp_path / "x.tar", members)
    dataset = load_dataset(str(file), label_column="species", group_column="site")
    assert dataset.class_names == ("s0", "s1", "s2")
    assert dataset.split.tolist() == ["train"] * 9 + ["val"] * 3
    assert dataset.table["group"].tolist() == [str(number // 4) for number in range(12)]
    assert dataset.table["latitude"].tolist() == [number / 2 for number in range(12)]
    assert "junk" not in dataset.table
    assert load_dataset(str(file), for_training=False).class_names == ("7",)


def test_repeated_paths_in_json_are_not_the_names_of_images(jpegs, tmp_path):
    """Images of two folders, with their names in these."""
    members = {}
    for number, jpeg in enumerate(jpegs):
        record = {"path": f"{number % 6}.jpg", "label": f"folder {number // 6}"}
        members |= {f"{number}.jpg": jpeg, f"{number}.json": json.dumps(record).encode()}
    file = write(tmp_path / "x.tar", members)
    assert load_dataset(str(file)).paths == [f"x.tar#{number}.jpg" for number in range(12)]
    members["3.json"] = json.dumps({"path": "3.jpg", "label": "folder 0", "augmented_from": "2.jpg"}).encode()
    with pytest.raises(InputError, match=mentioning("y.tar", "3.json", "augmented_from")):
        load_dataset(str(write(tmp_path / "y.tar", members)))


def test_backslash_in_the_path_of_a_member_is_preserved(jpegs, tmp_path):
    """The table of a run is read again, also with the tar in a folder of Windows."""
    members = {}
    for number, jpeg in enumerate(jpegs):
        record = {"path": f"C:\\photos\\{number}.jpg", "label": number % 2}
        members |= {f"{number}.jpg": jpeg, f"{number}.json": json.dumps(record).encode()}
    file = write(tmp_path / "set/x.tar", members)
    paths = load_dataset(str(file)).paths
    assert paths[0] == "x.tar#C:\\photos\\0.jpg"
    rows = "".join(f"set\\{path},{number % 2}\n" for number, path in enumerate(paths))
    (tmp_path / "dataset.csv").write_text(f"path,label\n{rows}")
    assert load_dataset(tmp_path / "dataset.csv").paths == paths


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_is_read(format_, jpegs, tmp_path):
    folder = "a very long folder name/" * (2 if format_ == tarfile.USTAR_FORMAT else 12)
    global_header = {"pax_headers": {"comment": "of the tar"}} if format_ == tarfile.PAX_FORMAT else {}
    named = {f"{folder}{name}": content for name, content in webdataset_members(jpegs).items()}
    file = write(tmp_path / "x.tar", named, format=format_, **global_header)
    dataset = load_dataset(str(file))
    assert validate_images(dataset, strict=True).notes == ()
    assert [source_reader(dataset).source(row) for row in range(12)] == jpegs


def test_scan_is_saved_until_a_shard_changes(jpegs, tmp_path, monkeypatch):
    file = write(tmp_path / "x.tar", webdataset_members(jpegs))
    first = load_dataset(str(file))
    assert "Index saved in" in first.notes[0]
    with monkeypatch.context() as patch:
        patch.setattr(scan, "scan", None)  # calling it would fail
        second = load_dataset(str(file))
    assert second.digest() == first.digest()
    assert second.table["shard_offset"].tolist() == first.table["shard_offset"].tolist()
    assert "read once" in second.notes[0]
    write(file, webdataset_members(jpegs[:6]))
    assert len(load_dataset(str(file))) == 6


def test_saved_scan_that_cannot_be_read_is_repeated(jpegs, tmp_path):
    """For example that of another user in a shared cache."""
    file = write(tmp_path / "x.tar", webdataset_members(jpegs))
    first = load_dataset(str(file))
    (saved,) = (tmp_path / "cache" / "shards").iterdir()
    saved.write_bytes(b"damaged")
    assert load_dataset(str(file)).digest() == first.digest()
    saved.unlink()
    saved.mkdir()
    second = load_dataset(str(file))
    assert second.digest() == first.digest()
    assert "index is not saved" in second.notes[0]


def test_saved_scan_is_removed_after_a_month_without_use(jpegs, tmp_path):
    files = [write(tmp_path / f"{name}.tar", webdataset_members(jpegs)) for name in ("old", "used", "new")]
    folder = tmp_path / "cache" / "shards"
    saved = []
    for file in files[:2]:
        load_dataset(str(file))
        saved += [path for path in folder.iterdir() if path not in saved]
    for index in saved:
        os.utime(index, (time.time() - 31 * 86400,) * 2)
    load_dataset(str(files[1]))  # used again
    load_dataset(str(files[2]))
    assert not saved[0].exists()
    assert saved[1].exists()
    assert len(list(folder.iterdir())) == 2


def test_failed_scan_is_repeated_the_next_time(jpegs, tmp_path, monkeypatch):
    for number in range(2):
        write(tmp_path / f"set/{number}.tar", webdataset_members(jpegs[6 * number :][:6]))

    def deny(store, name):
        if name == "1.tar":
            raise PermissionError(13, "Permission denied")
        return local_open(store, name)

    local_open = LocalStore.open
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "open", deny)
        first = load_dataset(tmp_path / "set")
    assert len(first) == 6
    assert mentions(first.notes[0], "1.tar")
    second = load_dataset(tmp_path / "set")
    assert len(second) == 12
    assert validate_images(second).notes == ()


def test_unsaved_scan_is_reported(jpegs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EFFNETV2_CACHE", str(tmp_path / "file"))
    dataset = load_dataset(str(write(tmp_path / "x.tar", webdataset_members(jpegs))))
    assert "index is not saved" in dataset.notes[0]


@pytest.mark.parametrize("at", ["in an image", "in a header", "at a header", "at the end mark"])
def test_truncated_tar_gives_the_images_before(at, jpegs, tmp_path):
    file = write(tmp_path / "set/x.tar", webdataset_members(jpegs))
    write(tmp_path / "set/y.tar", webdataset_members(jpegs, 20))
    seventh = headers(file)[12]  # two members per image
    end = headers(file)[-1].offset_data + 512
    cut, num_images = {
        "in an image": (seventh.offset_data + 9, 6), "in a header": (seventh.offset + 100, 6),
        "at a header": (seventh.offset, 6), "at the end mark": (end, 12),
    }[at]  # fmt: skip
    file.write_bytes(file.read_bytes()[:cut])
    dataset = load_dataset(tmp_path / "set")
    assert len(dataset) == num_images + 12
    assert dataset.paths[:num_images] == [f"x.tar#{number:04d}.jpg" for number in range(num_images)]
    (note,) = [note for note in validate_images(dataset).notes if "Damaged" in note]
    assert mentions(note, "x.tar")
    assert f"{num_images} " in note
    with pytest.raises(InputError, match=mentioning("x.tar")):
        validate_images(dataset, strict=True)


def test_next_intact_header_after_damage_is_found(jpegs, tmp_path):
    file = write(tmp_path / "x.tar", webdataset_members(jpegs))
    content = bytearray(file.read_bytes())
    broken = headers(file)[6]  # the fourth image
    content[broken.offset : broken.offset + 512] = b"\xff" * 512
    file.write_bytes(content)
    dataset = load_dataset(str(file))
    assert dataset.paths == [f"x.tar#{n:04d}.jpg" for n in range(12) if n != 3]
    assert mentions(validate_images(dataset).notes[0], broken.offset, "damaged")
    assert source_reader(dataset).source(3) == jpegs[4]


def test_damaged_json_loses_only_its_sample(jpegs, tmp_path):
    members = {}
    for number, jpeg in enumerate(jpegs):
        members |= {f"{number}.jpg": jpeg, f"{number}.json": json.dumps({"label": number % 2}).encode()}
    members["4.json"] = b'{"label": '
    dataset = load_dataset(str(write(tmp_path / "x.tar", members)))
    assert len(dataset) == 11
    assert mentions(validate_images(dataset).notes[0], "4.json", "damaged")


def test_missing_shard_of_a_range_is_members_with_json(jpegs, tmp_path):
    for number in (0, 2):
        write(tmp_path / f"x-{number}.tar", webdataset_members(jpegs[6 * (number // 2) :][:6]))
    dataset = load_dataset(f"{tmp_path}/x-{{0..2}}.tar")
    assert len(dataset) == 12
    assert mentions(" ".join(validate_images(dataset).notes), "x-1.tar", "missing")


def test_file_that_is_not_a_tar_is_members_with_json(jpegs, tmp_path):
    write(tmp_path / "set/x.tar", webdataset_members(jpegs))
    (tmp_path / "set/y.tar").write_bytes(b"<html>not found</html>" * 100)
    (tmp_path / "set/z.tar").write_bytes(b"")
    notes = " ".join(validate_images(load_dataset(tmp_path / "set")).notes)
    assert "y.tar " in notes
    assert mentions(notes, "z.tar")
    (tmp_path / "set/x.tar").unlink()
    with pytest.raises(InputError, match=mentioning("y.tar", "z.tar")):
        load_dataset(tmp_path / "set")


def test_unlabeled_images_are_for_prediction_only(jpegs, tmp_path):
    members = webdataset_members(jpegs)
    del members["0003.cls"]
    file = str(write(tmp_path / "x.tar", members))
    with pytest.raises(InputError, match=mentioning("x.tar", "0003.cls")):
        load_dataset(file)
    dataset = load_dataset(file, require_labels=False)
    assert dataset.labels.tolist() == [0, 1, 0, -1, 0, 1, 0, 1, 0, 1, 0, 1]


def members_with_json(jpegs: list[bytes]) -> dict[str, bytes]:
    """Members as this package packs them: the class name in ``.json``, its number in ``.cls``."""
    members = {}
    for number, jpeg in enumerate(jpegs):
        record = {"label": ("oak", "elm")[number % 2], "group": number // 2}
        members |= {f"{number}.jpg": jpeg, f"{number}.cls": b"%d" % (1 - number % 2)}
        members[f"{number}.json"] = json.dumps(record).encode()
    return members


@pytest.mark.parametrize("member", ["4.json", "4.cls", "4.jpg"])
def test_lost_label_is_not_replaced_by_the_class_id(member, jpegs, tmp_path):
    """The header is damaged. Only ``.json`` has the class name."""
    file = write(tmp_path / "x.tar", members_with_json(jpegs))
    damaged = next(header for header in headers(file) if header.name == member)
    content = bytearray(file.read_bytes())
    content[damaged.offset : damaged.offset + 512] = bytes(512)
    file.write_bytes(content)
    dataset = load_dataset(str(file))
    rest = [n for n in range(12) if member == "4.cls" or n != 4]
    assert dataset.paths == [f"x.tar#{n}.jpg" for n in rest]
    assert [dataset.class_names[label] for label in dataset.labels] == [("oak", "elm")[n % 2] for n in rest]
    assert dataset.table["group"].tolist() == [str(n // 2) for n in rest]
    (note,) = validate_images(dataset).notes
    assert mentions(
        note.replace("has lost the labels of '4' (there is no 4.json, which the other images have); ", ""),
        damaged.offset,
        "x.tar",
        "damaged",
    )
    assert ("lost the labels of '4'" in note) == (member == "4.json")
    assert f"{len(rest)} of its {len(rest)} images" in note
    assert len(load_dataset(str(file), require_labels=False)) == len(rest)
    with pytest.raises(InputError, match=mentioning("x.tar", "damaged")):
        validate_images(dataset, strict=True)


def test_lost_cls_loses_only_its_image(jpegs, tmp_path):
    file = write(tmp_path / "x.tar", webdataset_members(jpegs))
    content = bytearray(file.read_bytes())
    for lost in (3, 7):  # index of the member, two members per image
        start = headers(file)[lost].offset
        content[start : start + 512] = b"\xff" * 512
    file.write_bytes(content)
    dataset = load_dataset(str(file))
    assert dataset.paths == [f"x.tar#{n:04d}.jpg" for n in range(12) if n not in (1, 3)]
    (note,) = validate_images(dataset).notes
    assert mentions(note, "x.tar", "0001", "0003", "0001.cls")


def test_unlabeled_images_survive_a_damaged_header(jpegs, tmp_path):
    file = write(tmp_path / "x.tar", {f"{n:02d}.jpg": jpeg for n, jpeg in enumerate(jpegs)})
    content = bytearray(file.read_bytes())
    damaged = headers(file)[5].offset
    content[damaged : damaged + 512] = b"\xff" * 512
    file.write_bytes(content)
    dataset = load_dataset(str(file), require_labels=False)
    assert dataset.paths == [f"x.tar#{n:02d}.jpg" for n in range(12) if n != 5]
    with pytest.raises(InputError, match=mentioning("x.tar", "00.json", "11")):
        load_dataset(str(file))


def test_tar_truncated_before_a_label_loses_the_image(jpegs, tmp_path):
    file = write(tmp_path / "x.tar", webdataset_members(jpegs))
    file.write_bytes(file.read_bytes()[: headers(file)[13].offset])  # the seventh image's label
    dataset = load_dataset(str(file))
    assert dataset.paths == [f"x.tar#{n:04d}.jpg" for n in range(6)]
    assert mentions(validate_images(dataset).notes[0], "0006", "0006.cls")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"5.json": None}, "there is no 5.json, which the other images have."),
        ({"5.json": b'{"group": 2}'}, "5.json has no field 'label', which the other images have."),
        ({"5.json": b'{"label": ""}', "7.json": None}, "5.json has no field 'label', which the other images have (2 "),
        ({f"{n}.json": None for n in range(12)} | {"5.cls": b" "}, "5.cls is empty, which the other images have."),
        ({f"{n}.{kind}": None for n in range(12) for kind in ("cls", "json")}, "there is no 0.json (12 such "),
    ],
)  # fmt: skip
def test_missing_label_is_rejected_by_member(change, fact, jpegs, tmp_path):
    members = {name: content for name, content in (members_with_json(jpegs) | change).items() if content is not None}
    file = str(write(tmp_path / "x.tar", members))
    for _ in range(2):  # scanned, then from the saved scan
        with pytest.raises(InputError) as error:
            load_dataset(file)
        assert mentions(str(error.value), tmp_path, fact, "x.tar")
    assert len(load_dataset(file, require_labels=False)) == 12


@pytest.mark.parametrize("prefix", ["", "./", "photos/"])
def test_tar_of_class_folders_is_rejected(prefix, jpegs, tmp_path):
    members = {f"{prefix}{'ab'[n % 2]}/{n:04d}.jpg": jpeg for n, jpeg in enumerate(jpegs)}
    file = str(write(tmp_path / "photos.tar", dict(sorted(members.items()))))
    with pytest.raises(InputError, match=mentioning("photos.tar", "effnetv2 data pack")) as error:
        load_dataset(file)
    assert ".json" not in str(error.value)
    found = load_dataset(file, require_labels=False, for_training=False, strict_labels=True)
    assert "holds images in folders" in found.notes[-1]
    assert len(load_dataset(file, require_labels=False).notes) == 1


def test_number_of_further_shards_without_labels_is_reported(jpegs, tmp_path):
    for number in range(3):
        members = members_with_json(jpegs[4 * number :][:4])
        if number:
            del members["2.json"]
        write(tmp_path / f"set/{number}.tar", members)
    with pytest.raises(InputError, match=mentioning("set/1.tar", "2.json", "1")):
        load_dataset(tmp_path / "set")


def test_number_and_text_labels_are_not_converted(jpegs, tmp_path):
    members = {}
    for number, jpeg in enumerate(jpegs):
        label = [7, "7.0", True][number % 3]
        members |= {f"{number}.jpg": jpeg, f"{number}.json": json.dumps({"label": label}).encode()}
    members |= {"12.jpg": jpegs[0]}  # without a label, so the column is not of integers
    dataset = load_dataset(str(write(tmp_path / "x.tar", members)), require_labels=False)
    assert dataset.class_names == ("7", "7.0", "True")


@pytest.mark.parametrize(
    ("name", "content"),
    [("4.cls", bytes(1)), ("4.cls", b"\xff\xfe"), ("4.json", b'{"x": "\xff"}'), ("4.json", bytes(9))],
)
def test_invalid_text_member_loses_only_its_sample(name, content, jpegs, tmp_path):
    members = {f"{n}.jpg": jpeg for n, jpeg in enumerate(jpegs)} | {f"{n}.cls": b"%d" % (n % 2) for n in range(12)}
    members |= {"4.json": b"{}"} | {name: content}
    members = dict(sorted(members.items(), key=lambda item: (int(item[0].partition(".")[0]), item[0])))
    dataset = load_dataset(str(write(tmp_path / "x.tar", members)))
    assert dataset.class_names == ("0", "1")
    assert len(dataset) == 11
    assert mentions(validate_images(dataset).notes[0], name, "x.tar")


def test_many_faults_are_counted(jpegs, tmp_path):
    members = {}
    for number, jpeg in enumerate(jpegs):
        members |= {f"{number}.jpg": jpeg, f"{number}.json": json.dumps({"label": number % 2}).encode()}
    members |= {f"{number}.json": b"{" for number in range(2, 8)}
    (note,) = validate_images(load_dataset(str(write(tmp_path / "x.tar", members)))).notes
    assert mentions(note, "x.tar", "2.json", "3.json", "4.json", "3")


def test_unreadable_images_and_duplicates_are_found_without_an_index(jpegs, tmp_path):
    """Other tools do not check images when they write a tar."""
    twice = [jpegs[0], *jpegs[:11] * 3]
    members = webdataset_members(twice)
    members["0007.jpg"] = jpegs[7][:200]
    report = validate_images(load_dataset(str(write(tmp_path / "x.tar", members))))
    assert list(report.unreadable) == [7]
    assert report.contents[0] == report.contents[1] == report.contents[12]
    assert mentions(report.notes[0], "22", "34")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.jpg", "1.cls", "2.jpg", "2.cls", "1.jpg"], ("'1'",)),
        (["1.jpg", "1.jpg"], ("1.jpg",)),
        (["1.jpg", "1.png", "1.cls"], ("has 2 images",)),
    ],
)
def test_ambiguous_samples_are_rejected(names, message, jpegs, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"0"))
    with pytest.raises(InputError, match=mentioning(*message)):
        load_dataset(str(tmp_path / "x.tar"))


def test_image_without_a_suffix_is_that_of_the_sample(jpegs, tmp_path):
    members = {}
    for number, jpeg in enumerate(jpegs):
        members |= {f"{number}.mask.png": b"0", f"{number}.jpg": jpeg, f"{number}.cls": b"%d" % (number % 2)}
    dataset = load_dataset(str(write(tmp_path / "x.tar", members | {".hidden.jpg": b"", "README.txt": b"read"})))
    assert [source_reader(dataset).source(row) for row in range(12)] == jpegs


def test_names_of_images_are_those_of_the_members(jpegs, tmp_path):
    """As cameras and ``tar cf photos.tar -C photos .`` write them. A table can name them with or without ``./``."""
    names = [f"{'ab'[number % 2]}/IMG_{number}.JPG" for number in range(12)]
    tar = write(tmp_path / "x.tar", {f"./{name}": jpeg for name, jpeg in zip(names, jpegs, strict=True)})
    paths = [f"x.tar#{name}" for name in names]
    assert load_dataset(str(tar), require_labels=False).paths == paths
    rows = [f"x.tar#{'./' * (number % 3 == 0)}{name},{name[0]}\n" for number, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(rows))
    dataset = load_dataset(tmp_path / "t.csv")
    assert dataset.paths == paths
    assert [source_reader(dataset).source(row) for row in range(12)] == jpegs


def test_own_shards_are_read_without_their_index(class_folders, tmp_path):
    from efficientnetv2.data.shards.writer import PackOptions, write_shards

    files = load_dataset(class_folders)
    write_shards(files, tmp_path / "shards", PackOptions(10**9, shard_images=20))
    (tmp_path / "shards/index.parquet").unlink()
    dataset = load_dataset(tmp_path / "shards")
    label_of = dict(zip(files.paths, files.table["label"], strict=True))
    assert {
        path.partition("#")[2]: label for path, label in zip(dataset.paths, dataset.table["label"], strict=True)
    } == label_of


def with_records(jpegs, records):
    """Images of two classes; each record is added to the .json of an image."""
    members = {}
    for number, (jpeg, record) in enumerate(zip(jpegs, records, strict=False)):
        members |= {f"{number}.jpg": jpeg, f"{number}.json": json.dumps({"label": "ab"[number % 2]} | record).encode()}
    return members


def test_split_aliases_are_accepted(jpegs, tmp_path):
    records = [{"split": name} for name in ("Train", "train", "validation", "valid", "test")]
    file = write(tmp_path / "x-train-000.tar", with_records(jpegs, records))
    assert load_dataset(str(file)).split.tolist() == ["train", "train", "val", "val", "test"]


def test_other_splits_are_read_for_prediction(jpegs, tmp_path):
    file = write(tmp_path / "x.tar", with_records(jpegs, [{"split": "extra"}, {"split": "test"}]))
    for _ in range(2):  # a saved scan for prediction is not used for training
        found = load_dataset(str(file), require_labels=False, for_training=False)
        assert found.split.tolist() == ["", "test"]
        with pytest.raises(InputError, match=mentioning("extra", "train, val or test")):
            load_dataset(str(file))


def test_nan_in_json_is_a_missing_value(jpegs, tmp_path):
    """As Python writes the missing values of a table."""
    nan = float("nan")
    facts = {"patient": nan, "split": nan, "latitude": nan, "longitude": nan, "augmented_from": nan}
    file = write(tmp_path / "x.tar", with_records(jpegs, [facts, facts, {"patient": "p1"}, {"patient": "p1"}]))
    dataset = load_dataset(str(file), group_column="patient")
    assert dataset.table["group"].isna().tolist() == [True, True, False, False]
    assert not is_copy(dataset).any()
    unlabeled = write(tmp_path / "y.tar", with_records(jpegs, [{"label": nan}, {}]))
    with pytest.raises(InputError, match="label"):
        load_dataset(str(unlabeled))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"split": "other"}, ("x.tar", "'1'", "other")),
        ({"latitude": "12.5N"}, ("-90", "90")),
        ({"longitude": 200}, ("-180", "180")),
    ],
)
def test_invalid_fields_are_rejected(record, message, jpegs, tmp_path):
    file = write(tmp_path / "x.tar", with_records(jpegs, [{"path": "0.jpg"}, record]))
    with pytest.raises(InputError, match=mentioning(*message)):
        load_dataset(str(file))


def test_augmented_copies_have_their_source_without_an_index(jpegs, tmp_path):
    records = [{"path": "a.jpg"}, {}, {"path": "copy.jpg", "augmented_from": "a.jpg"}]
    dataset = load_dataset(str(write(tmp_path / "x.tar", with_records(jpegs, records))))
    assert dataset.table["augmented_from"].fillna("").tolist()[2].endswith("a.jpg")


def test_group_field_that_no_sample_has_is_refused(jpegs, tmp_path):
    file = write(tmp_path / "x.tar", with_records(jpegs, [{"patient": f"p{n // 2}"} for n in range(12)]))
    assert load_dataset(str(file), group_column="patient").table["group"].nunique() == 6
    with pytest.raises(InputError, match=mentioning("x.tar", "'patientt'", "group_column")):
        load_dataset(str(file), group_column="patientt")


def test_member_name_that_is_not_utf8_is_refused(jpegs, tmp_path):
    file = write(tmp_path / "x.tar", {"caf\udce90.jpg": jpegs[0]}, errors="surrogateescape")
    with pytest.raises(InputError, match=mentioning("x.tar", "UTF-8")):
        load_dataset(str(file), require_labels=False)


def test_member_that_is_no_image_may_have_any_name(jpegs, tmp_path):
    members = {"a.jpg": jpegs[0], "caf\udce90.txt": b"note"}
    file = write(tmp_path / "x.tar", members, errors="surrogateescape")
    assert len(load_dataset(str(file), require_labels=False)) == 1


def test_old_files_of_others_in_the_cache_folder_stay(jpegs, tmp_path):
    """EFFNETV2_CACHE may be a folder that also holds a dataset called shards."""
    folder = tmp_path / "cache/shards"
    folder.mkdir(parents=True)
    theirs, ours = folder / "index.parquet", folder / f"{'0a' * 16}.parquet"
    for file in (theirs, ours):
        file.touch()
        os.utime(file, (0, 0))
    load_dataset(str(write(tmp_path / "set/x.tar", webdataset_members(jpegs))))
    assert theirs.is_file()
    assert not ours.exists()


def test_paths_are_text_and_labels_that_are_not_lose_their_sample(jpegs, tmp_path):
    members = with_records(jpegs, [{"path": 5}, {}, {}, {}])
    members["2.json"] = b'{"label": "\\udc80"}'
    members["3.json"] = b"[" * 200_000
    dataset = load_dataset(str(write(tmp_path / "x.tar", members)))
    assert [path.partition("#")[2] for path in dataset.paths] == ["5", "1.jpg"]
    assert mentions(dataset.shards.shards[0].damage, "2.json", "3.json")


def test_local_images_are_not_all_read_ahead(jpegs, tmp_path, monkeypatch):
    """Hundreds of photos in each of several threads would fill the memory."""
    dataset, asked = load_dataset(str(write(tmp_path / "x.tar", with_records(jpegs, [{}] * 12)))), []
    read = LocalStore.read
    monkeypatch.setattr(LocalStore, "read", lambda self, ranges: asked.append(len(ranges)) or read(self, ranges))
    ahead = source_reader(dataset).ahead(range(12))
    numbers = [int(Path(path).stem.rpartition("#")[2]) for path in dataset.paths]
    assert [ahead.source(row) for row in range(12)] == [jpegs[number] for number in numbers]
    assert set(asked) == {1}
