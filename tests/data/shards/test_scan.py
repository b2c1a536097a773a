"""Tars that others wrote, without an index: their headers are read once, damaged ones as far as they go."""

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
from efficientnetv2.data.shards import scan
from efficientnetv2.data.shards.storage import LocalStore
from efficientnetv2.utils.errors import InputError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def plain(jpegs: list[bytes], first: int = 0) -> dict[str, bytes]:
    """As WebDataset's own writer names things: a key, and class ids as text."""
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
        write(tmp_path / f"set/my-{split}-{number:03d}.tar", plain(jpegs[4 * number : 4 * number + 4]))
    dataset = load_dataset(tmp_path / "set")
    assert dataset.class_names == ("0", "1")
    assert dataset.labels.tolist() == [0, 1] * 6
    assert dataset.split.tolist() == ["train"] * 8 + ["val"] * 4
    assert dataset.paths[5] == "my-train-001.tar#0001.jpg", "keys may repeat from shard to shard"
    reader = source_reader(dataset)
    assert [reader.source(row) for row in range(12)] == jpegs
    assert mentions(dataset.notes[0], "3", "12", "shard")


def test_json_tells_label_split_group_and_place(jpegs, tmp_path):
    members = {}
    for number, jpeg in enumerate(jpegs):
        facts = {"species": f"s{number % 3}", "label": 7, "split": "val" if number > 8 else "train"}
        facts |= {"site": number // 4, "latitude": number / 2, "longitude": 3, "junk": [1, 2]}
        members |= {f"deep/er/{number}.jpg": jpeg, f"deep/er/{number}.json": json.dumps(facts).encode()}
    file = write(tmp_path / "x.tar", members)
    dataset = load_dataset(str(file), label_column="species", group_column="site")
    assert dataset.class_names == ("s0", "s1", "s2")
    assert dataset.split.tolist() == ["train"] * 9 + ["val"] * 3
    assert dataset.table["group"].tolist() == [str(number // 4) for number in range(12)]
    assert dataset.table["latitude"].tolist() == [number / 2 for number in range(12)]
    assert "junk" not in dataset.table
    assert load_dataset(str(file), for_training=False).class_names == ("7",)


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_layout_of_tar_is_read(layout, jpegs, tmp_path):
    folder = "a very long folder name/" * (2 if layout == tarfile.USTAR_FORMAT else 12)
    global_header = {"pax_headers": {"comment": "of the whole tar"}} if layout == tarfile.PAX_FORMAT else {}
    named = {f"{folder}{name}": content for name, content in plain(jpegs).items()}
    file = write(tmp_path / "x.tar", named, format=layout, **global_header)
    dataset = load_dataset(str(file))
    assert validate_images(dataset, strict=True).notes == ()
    assert [source_reader(dataset).source(row) for row in range(12)] == jpegs


def test_what_was_found_is_kept_until_a_shard_changes(jpegs, tmp_path, monkeypatch):
    file = write(tmp_path / "x.tar", plain(jpegs))
    first = load_dataset(str(file))
    assert "Index saved in" in first.notes[0]
    with monkeypatch.context() as patch:
        patch.setattr(scan, "scan", None)  # calling it would fail
        again = load_dataset(str(file))
    assert again.digest() == first.digest()
    assert again.table["shard_offset"].tolist() == first.table["shard_offset"].tolist()
    assert "read once" in again.notes[0]
    write(file, plain(jpegs[:6]))
    assert len(load_dataset(str(file))) == 6


def test_what_was_kept_and_not_used_for_a_month_is_removed(jpegs, tmp_path):
    files = [write(tmp_path / f"{name}.tar", plain(jpegs)) for name in ("old", "used", "new")]
    kept = tmp_path / "cache" / "shards"
    found = []
    for file in files[:2]:
        load_dataset(str(file))
        found += [one for one in kept.iterdir() if one not in found]
    for one in found:
        os.utime(one, (time.time() - 31 * 86400,) * 2)
    load_dataset(str(files[1]))  # used again
    load_dataset(str(files[2]))
    assert not found[0].exists()
    assert found[1].exists()
    assert len(list(kept.iterdir())) == 2


def test_what_could_not_be_read_once_is_read_the_next_time(jpegs, tmp_path, monkeypatch):
    for number in range(2):
        write(tmp_path / f"set/{number}.tar", plain(jpegs[6 * number :][:6]))

    def refusing(store, name):
        if name == "1.tar":
            raise PermissionError(13, "Permission denied")
        return opened(store, name)

    opened = LocalStore.open
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "open", refusing)
        first = load_dataset(tmp_path / "set")
    assert len(first) == 6
    assert mentions(first.notes[0], "1.tar")
    again = load_dataset(tmp_path / "set")
    assert len(again) == 12
    assert validate_images(again).notes == ()


def test_where_nothing_can_be_kept_it_is_said(jpegs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EFFNETV2_CACHE", str(tmp_path / "file"))
    dataset = load_dataset(str(write(tmp_path / "x.tar", plain(jpegs))))
    assert "index is not saved" in dataset.notes[0]


@pytest.mark.parametrize("at", ["in a picture", "in a header", "at a header", "at the end mark"])
def test_a_tar_cut_short_gives_what_stands_before(at, jpegs, tmp_path):
    file = write(tmp_path / "set/x.tar", plain(jpegs))
    write(tmp_path / "set/y.tar", plain(jpegs, 20))
    seventh = headers(file)[12]  # of the members, two a sample
    end = headers(file)[-1].offset_data + 512
    cut, left = {
        "in a picture": (seventh.offset_data + 9, 6), "in a header": (seventh.offset + 100, 6),
        "at a header": (seventh.offset, 6), "at the end mark": (end, 12),
    }[at]  # fmt: skip
    file.write_bytes(file.read_bytes()[:cut])
    dataset = load_dataset(tmp_path / "set")
    assert len(dataset) == left + 12
    assert dataset.paths[:left] == [f"x.tar#{number:04d}.jpg" for number in range(left)]
    (note,) = [note for note in validate_images(dataset).notes if "Damaged" in note]
    assert mentions(note, "x.tar")
    assert f"{left} " in note
    with pytest.raises(InputError, match=mentioning("x.tar")):
        validate_images(dataset, strict=True)


def test_behind_a_damaged_header_the_next_whole_one_is_found(jpegs, tmp_path):
    file = write(tmp_path / "x.tar", plain(jpegs))
    content = bytearray(file.read_bytes())
    broken = headers(file)[6]  # the fourth image
    content[broken.offset : broken.offset + 512] = b"\xff" * 512
    file.write_bytes(content)
    dataset = load_dataset(str(file))
    assert dataset.paths == [f"x.tar#{n:04d}.jpg" for n in range(12) if n != 3]
    assert mentions(validate_images(dataset).notes[0], broken.offset, "damaged")
    assert source_reader(dataset).source(3) == jpegs[4]


def test_a_damaged_json_costs_its_sample_alone(jpegs, tmp_path):
    members = {}
    for number, jpeg in enumerate(jpegs):
        members |= {f"{number}.jpg": jpeg, f"{number}.json": json.dumps({"label": number % 2}).encode()}
    members["4.json"] = b'{"label": '
    dataset = load_dataset(str(write(tmp_path / "x.tar", members)))
    assert len(dataset) == 11
    assert mentions(validate_images(dataset).notes[0], "4.json", "damaged")


def test_a_missing_shard_of_a_range_is_named(jpegs, tmp_path):
    for number in (0, 2):
        write(tmp_path / f"x-{number}.tar", plain(jpegs[6 * (number // 2) :][:6]))
    dataset = load_dataset(f"{tmp_path}/x-{{0..2}}.tar")
    assert len(dataset) == 12
    assert mentions(" ".join(validate_images(dataset).notes), "x-1.tar", "missing")


def test_what_is_no_tar_at_all_is_named(jpegs, tmp_path):
    write(tmp_path / "set/x.tar", plain(jpegs))
    (tmp_path / "set/y.tar").write_bytes(b"<html>not found</html>" * 100)
    (tmp_path / "set/z.tar").write_bytes(b"")
    notes = " ".join(validate_images(load_dataset(tmp_path / "set")).notes)
    assert "y.tar " in notes
    assert mentions(notes, "z.tar")
    (tmp_path / "set/x.tar").unlink()
    with pytest.raises(InputError, match=mentioning("y.tar", "z.tar")):
        load_dataset(tmp_path / "set")


def test_images_without_a_label_are_refused_for_training_and_taken_for_prediction(jpegs, tmp_path):
    members = plain(jpegs)
    del members["0003.cls"]
    file = str(write(tmp_path / "x.tar", members))
    with pytest.raises(InputError, match=mentioning("x.tar", "0003.cls")):
        load_dataset(file)
    dataset = load_dataset(file, require_labels=False)
    assert dataset.labels.tolist() == [0, 1, 0, -1, 0, 1, 0, 1, 0, 1, 0, 1]


def named(jpegs: list[bytes]) -> dict[str, bytes]:
    """As this package packs: the class by name in ``.json``, its number in ``.cls``."""
    members = {}
    for number, jpeg in enumerate(jpegs):
        facts = {"label": ("oak", "elm")[number % 2], "group": number // 2}
        members |= {f"{number}.jpg": jpeg, f"{number}.cls": b"%d" % (1 - number % 2)}
        members[f"{number}.json"] = json.dumps(facts).encode()
    return members


@pytest.mark.parametrize("member", ["4.json", "4.cls", "4.jpg"])
def test_a_label_that_was_lost_is_not_made_up(member, jpegs, tmp_path):
    """Its header is gone. Of an oak's ``.json`` and ``.cls``, only the first may give the label."""
    file = write(tmp_path / "x.tar", named(jpegs))
    broken = next(header for header in headers(file) if header.name == member)
    content = bytearray(file.read_bytes())
    content[broken.offset : broken.offset + 512] = bytes(512)
    file.write_bytes(content)
    dataset = load_dataset(str(file))
    left = [n for n in range(12) if member == "4.cls" or n != 4]
    assert dataset.paths == [f"x.tar#{n}.jpg" for n in left]
    assert [dataset.class_names[label] for label in dataset.labels] == [("oak", "elm")[n % 2] for n in left]
    assert dataset.table["group"].tolist() == [str(n // 2) for n in left]
    (note,) = validate_images(dataset).notes
    assert mentions(
        note.replace("has lost the labels of '4' (there is no 4.json, which the other images have); ", ""),
        broken.offset,
        "x.tar",
        "damaged",
    )
    assert ("lost the labels of '4'" in note) == (member == "4.json")
    assert f"{len(left)} of its {len(left)} images" in note
    assert len(load_dataset(str(file), require_labels=False)) == len(left)
    with pytest.raises(InputError, match=mentioning("x.tar", "damaged")):
        validate_images(dataset, strict=True)


def test_a_cls_that_was_lost_costs_its_image_alone(jpegs, tmp_path):
    file = write(tmp_path / "x.tar", plain(jpegs))
    content = bytearray(file.read_bytes())
    for lost in (3, 7):  # as many members come before, two an image
        start = headers(file)[lost].offset
        content[start : start + 512] = b"\xff" * 512
    file.write_bytes(content)
    dataset = load_dataset(str(file))
    assert dataset.paths == [f"x.tar#{n:04d}.jpg" for n in range(12) if n not in (1, 3)]
    (note,) = validate_images(dataset).notes
    assert mentions(note, "x.tar", "0001", "0003", "0001.cls")


def test_images_that_never_had_labels_are_not_lost_with_a_damaged_header(jpegs, tmp_path):
    file = write(tmp_path / "x.tar", {f"{n:02d}.jpg": jpeg for n, jpeg in enumerate(jpegs)})
    content = bytearray(file.read_bytes())
    broken = headers(file)[5].offset
    content[broken : broken + 512] = b"\xff" * 512
    file.write_bytes(content)
    dataset = load_dataset(str(file), require_labels=False)
    assert dataset.paths == [f"x.tar#{n:02d}.jpg" for n in range(12) if n != 5]
    with pytest.raises(InputError, match=mentioning("x.tar", "00.json", "11")):
        load_dataset(str(file))


def test_a_tar_cut_between_a_image_and_its_label_loses_the_image(jpegs, tmp_path):
    file = write(tmp_path / "x.tar", plain(jpegs))
    file.write_bytes(file.read_bytes()[: headers(file)[13].offset])  # the seventh image's label
    dataset = load_dataset(str(file))
    assert dataset.paths == [f"x.tar#{n:04d}.jpg" for n in range(6)]
    assert mentions(validate_images(dataset).notes[0], "0006", "0006.cls")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"5.json": None}, "there is no 5.json, which the other images have."),
        ({"5.json": b'{"group": 2}'}, "5.json has no field 'label', which the other images have."),
        ({"5.json": b'{"label": ""}', "7.json": None}, "5.json has no field 'label', which the other images have (2 "),
        ({f"{n}.json": None for n in range(12)} | {"5.cls": b" "}, "5.cls is empty, which the other images have."),
        ({f"{n}.{kind}": None for n in range(12) for kind in ("cls", "json")}, "there is no 0.json (12 such "),
    ],
)  # fmt: skip
def test_a_whole_tar_that_lacks_a_label_is_refused_by_the_member(change, words, jpegs, tmp_path):
    members = {name: content for name, content in (named(jpegs) | change).items() if content is not None}
    file = str(write(tmp_path / "x.tar", members))
    for _ in range(2):  # read again, and as it was kept
        with pytest.raises(InputError) as error:
            load_dataset(file)
        assert mentions(str(error.value), tmp_path, words, "x.tar")
    assert len(load_dataset(file, require_labels=False)) == 12


@pytest.mark.parametrize("prefix", ["", "./", "photos/"])
def test_a_tar_of_class_folders_is_refused_as_that(prefix, jpegs, tmp_path):
    members = {f"{prefix}{'ab'[n % 2]}/{n:04d}.jpg": jpeg for n, jpeg in enumerate(jpegs)}
    file = str(write(tmp_path / "photos.tar", dict(sorted(members.items()))))
    with pytest.raises(InputError, match=mentioning("photos.tar", "effnetv2 data pack")) as refused:
        load_dataset(file)
    assert ".json" not in str(refused.value)
    found = load_dataset(file, require_labels=False, for_training=False, strict_labels=True)
    assert "holds images in folders" in found.notes[-1]
    assert len(load_dataset(file, require_labels=False).notes) == 1


def test_the_number_of_further_shards_without_labels_is_told(jpegs, tmp_path):
    for number in range(3):
        members = named(jpegs[4 * number :][:4])
        if number:
            del members["2.json"]
        write(tmp_path / f"set/{number}.tar", members)
    with pytest.raises(InputError, match=mentioning("set/1.tar", "2.json", "1")):
        load_dataset(tmp_path / "set")


def test_labels_of_numbers_and_texts_stay_what_they_are(jpegs, tmp_path):
    members = {}
    for number, jpeg in enumerate(jpegs):
        label = [7, "7.0", True][number % 3]
        members |= {f"{number}.jpg": jpeg, f"{number}.json": json.dumps({"label": label}).encode()}
    members |= {"12.jpg": jpegs[0]}  # one without, so that no column of whole numbers is left
    dataset = load_dataset(str(write(tmp_path / "x.tar", members)), require_labels=False)
    assert dataset.class_names == ("7", "7.0", "True")


@pytest.mark.parametrize(
    ("name", "content"),
    [("4.cls", bytes(1)), ("4.cls", b"\xff\xfe"), ("4.json", b'{"x": "\xff"}'), ("4.json", bytes(9))],
)
def test_a_member_of_text_that_is_none_costs_its_sample_alone(name, content, jpegs, tmp_path):
    members = {f"{n}.jpg": jpeg for n, jpeg in enumerate(jpegs)} | {f"{n}.cls": b"%d" % (n % 2) for n in range(12)}
    members |= {"4.json": b"{}"} | {name: content}
    members = dict(sorted(members.items(), key=lambda one: (int(one[0].partition(".")[0]), one[0])))
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


def test_unreadable_images_are_found_by_a_look_at_each(jpegs, tmp_path):
    """Nobody looked at them when they were packed; so copies are found here too."""
    twice = [jpegs[0], *jpegs[:11] * 3]
    members = plain(twice)
    members["0007.jpg"] = jpegs[7][:200]
    report = validate_images(load_dataset(str(write(tmp_path / "x.tar", members))))
    assert report.unreadable.tolist() == [7]
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
def test_samples_that_cannot_be_told_apart_are_refused(names, message, jpegs, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"0"))
    with pytest.raises(InputError, match=mentioning(*message)):
        load_dataset(str(tmp_path / "x.tar"))


def test_of_several_images_the_plain_one_is_the_sample_s(jpegs, tmp_path):
    members = {}
    for number, jpeg in enumerate(jpegs):
        members |= {f"{number}.mask.png": b"0", f"{number}.jpg": jpeg, f"{number}.cls": b"%d" % (number % 2)}
    dataset = load_dataset(str(write(tmp_path / "x.tar", members | {".hidden.jpg": b"", "README.txt": b"read"})))
    assert [source_reader(dataset).source(row) for row in range(12)] == jpegs


def test_our_own_shards_are_read_without_their_index(class_folders, tmp_path):
    from efficientnetv2.data.shards.writer import PackOptions, write_shards

    files = load_dataset(class_folders)
    write_shards(files, tmp_path / "shards", PackOptions(10**9, shard_images=20))
    (tmp_path / "shards/index.parquet").unlink()
    dataset = load_dataset(tmp_path / "shards")
    label_of = dict(zip(files.paths, files.table["label"], strict=True))
    assert {
        path.partition("#")[2]: label for path, label in zip(dataset.paths, dataset.table["label"], strict=True)
    } == label_of


def described(jpegs, facts):
    """Two images of a class each, and what their .json say next to the label."""
    members = {}
    for number, (jpeg, more) in enumerate(zip(jpegs, facts, strict=False)):
        members |= {f"{number}.jpg": jpeg, f"{number}.json": json.dumps({"label": "ab"[number % 2]} | more).encode()}
    return members


def test_a_split_by_its_usual_names_is_that_split(jpegs, tmp_path):
    facts = [{"split": word} for word in ("Train", "train", "validation", "valid", "test")]
    file = write(tmp_path / "x-train-000.tar", described(jpegs, facts))
    assert load_dataset(str(file)).split.tolist() == ["train", "train", "val", "val", "test"]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"split": "other"}, ("x.tar", "'1'", "other")),
        ({"latitude": "12.5N"}, ("-90", "90")),
        ({"longitude": 200}, ("-180", "180")),
    ],
)
def test_facts_that_mean_nothing_are_refused(facts, message, jpegs, tmp_path):
    file = write(tmp_path / "x.tar", described(jpegs, [{"path": "0.jpg"}, facts]))
    with pytest.raises(InputError, match=mentioning(*message)):
        load_dataset(str(file))


def test_copies_are_known_by_their_origin_without_an_index_too(jpegs, tmp_path):
    facts = [{"path": "a.jpg"}, {}, {"path": "copy.jpg", "augmented_from": "a.jpg"}]
    dataset = load_dataset(str(write(tmp_path / "x.tar", described(jpegs, facts))))
    assert dataset.table["augmented_from"].fillna("").tolist()[2].endswith("a.jpg")
