"""``effnetv2 data pack``, and the other commands on what it writes."""

from __future__ import annotations

import json
import shutil
import tarfile

import pandas as pd
import pytest
from tests.command_line import TINY, effnetv2
from tests.conftest import COLORS, paint
from tests.messages import mentions


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with five shards and a run on them."""
    place = tmp_path_factory.mktemp("trained")
    for name, color in COLORS.items():
        for number in range(16):
            paint(place / "pictures" / name / f"{name}_{number:02d}.jpg", color, number)
    done = effnetv2("data", "pack", "pictures", "packed", "--shard-images", "10", cwd=place)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "48", "3", "5", "class")
    done = effnetv2("train", "packed", *TINY, "--weights", "none", "--output", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    return place


def test_packed_then_trained_evaluated_and_predicted(trained):
    report = json.loads((trained / "run/report.json").read_text())
    assert set(report["per_class"]) == {"red", "green", "blue"}
    assert "data:image" in (trained / "run/report.html").read_text(), "mistakes are shown with their pictures"
    done = effnetv2("evaluate", "run", "packed", "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert any("trained the model" in note for note in json.loads(done.stdout)["notes"]), "they are recognized"
    words = ("predict", "run", "packed/images-{000000..000001}.tar", "--device", "cpu")
    done = effnetv2(*words, cwd=trained)
    assert done.returncode == 0, done.stderr
    paths = pd.read_csv(trained / "predictions.csv")["path"]
    assert len(paths) == 20
    assert set(paths.str.extract(r"^images-00000[01]\.tar#(\w+)/\1_\d\d\.jpg$")[0]) <= {"red", "green", "blue"}


def test_the_answer_as_json(tmp_path):
    rows = []
    for number in range(30):
        path = paint(tmp_path / f"{number}.jpg", (7 * number, 80, 90), number, px=60)
        rows.append({"path": path.name, "species": "ab"[number % 2], "split": "val" if number % 3 == 0 else "train"})
    pd.DataFrame(rows).to_csv(tmp_path / "list.csv", index=False)
    (tmp_path / "4.jpg").write_bytes(b"")
    words = ("data", "pack", "list.csv", "packed", "--label-column", "species", "--image-size", "32", "--json")
    done = effnetv2(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["num_images"] == 29
    assert answer["classes"] == ["a", "b"]
    assert answer["splits"] == {"train": 19, "val": 10}
    assert answer["shards"] == ["train-000000.tar", "val-000000.tar"]
    assert answer["left_out"] == [{"path": "4.jpg", "reason": "is empty (0 bytes)"}]
    assert answer["bytes"] == sum(path.stat().st_size for path in (tmp_path / "packed").glob("*.tar"))


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("pictures/packed", ("is in DATA", "Give a folder outside it")),
        ("pictures", ("is not empty",)),
        ("file.txt", ("is a file",)),
        ("s3://bucket/packed", ("written to this machine",)),
    ],
)
def test_a_wrong_out_is_refused_before_anything_is_written(out, words, class_folders, tmp_path):
    (tmp_path / "file.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    done = effnetv2("data", "pack", "pictures", out, cwd=tmp_path)
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_empty_data_and_missing_shards_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    done = effnetv2("data", "pack", "empty", "packed", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "empty", "no images")
    done = effnetv2("train", "nowhere/train-{000000..000003}.tar", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "shards")


def test_a_truncated_shard_is_survived_unless_strict(class_folders, tmp_path):
    assert effnetv2("data", "pack", class_folders, "packed", "--shard-images", "10", cwd=tmp_path).returncode == 0
    shard = tmp_path / "packed/images-000002.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    words = ("train", "packed", *TINY, "--weights", "none", "--epochs", "0.5", "--output", "run")
    done = effnetv2(*words, "--strict", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "images-000002.tar")
    done = effnetv2(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "images-000002.tar", "damaged")
    skipped = pd.read_csv(tmp_path / "run/skipped.csv")
    assert skipped["path"].str.startswith("images-000002.tar#").all()
    assert 1 <= len(skipped) <= 9


def test_damage_is_told_where_pictures_are_only_looked_at(trained, tmp_path):
    """The tar has no index, so what its lost end held nobody knows; that it was lost is said all the same."""
    shutil.copytree(trained / "packed", tmp_path / "packed")
    (tmp_path / "packed/index.parquet").unlink()
    shard = tmp_path / "packed/images-000001.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    for words in (("predict", trained / "run", "packed"), ("evaluate", trained / "run", "packed")):
        done = effnetv2(*words, "--device", "cpu", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert mentions(done.stdout, "images-000001.tar", "damaged")
        done = effnetv2(*words, "--device", "cpu", "--strict", cwd=tmp_path)
        assert done.returncode == 2
        assert mentions(done.stderr, "images-000001.tar", "damaged")


def test_a_label_lost_with_a_damaged_tar_is_named_and_not_made_up(class_folders, tmp_path):
    """Classes are named by ``.json`` where there is no index; the number in ``.cls`` must not become a fourth."""
    assert effnetv2("data", "pack", class_folders, "packed", cwd=tmp_path).returncode == 0
    (tmp_path / "packed/index.parquet").unlink()
    tar = tmp_path / "packed/images-000000.tar"
    with tarfile.open(tar) as opened:
        lost = next(member for member in opened if member.name == "000000007.json")
    content = bytearray(tar.read_bytes())
    content[lost.offset : lost.offset + 512] = bytes(512)
    tar.write_bytes(content)
    done = effnetv2("data", "pack", "packed", "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = (
        "Damaged shard: images-000000.tar has lost the labels of '000000007' (there is no 000000007.json, which the "
        f"other images have); has a damaged header at byte {lost.offset}; 47 of its 47 images found are used."
    )
    assert told in done.stdout
    assert mentions(done.stdout, "47", "3", "1", "class")
    done = effnetv2("data", "pack", "packed", "strict", "--strict", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "images-000000.tar", "damaged")
    content[lost.offset : lost.offset + 1024] = b""  # the member cut out: a tar without damage
    tar.write_bytes(content)
    done = effnetv2("train", "packed", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "packed/images-000000.tar", "000000007.json")


def test_bytes_that_went_bad_are_found_when_they_are_read(class_folders, tmp_path):
    """A hole in a JPEG, which a decoder fills with gray."""
    done = effnetv2("data", "pack", class_folders, "packed", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    row = pd.read_parquet(tmp_path / "packed/index.parquet").iloc[5]
    tar = tmp_path / "packed/images-000000.tar"
    content = bytearray(tar.read_bytes())
    start = row["shard_offset"] + row["shard_bytes"] // 2
    content[start : start + 64] = bytes(64)
    tar.write_bytes(content)
    done = effnetv2("data", "pack", "packed", "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stop = row["shard_offset"] + row["shard_bytes"]
    where = f"images-000000.tar, bytes {row['shard_offset']} to {stop}"
    assert mentions(done.stdout, row["path"], where, "images-000000.tar")
    words = ("train", "packed", *TINY, "--weights", "none", "--output", "run")
    done = effnetv2(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    skipped = pd.read_csv(tmp_path / "run/skipped.csv")
    assert skipped["path"].tolist() == [f"images-000000.tar#{row['path']}"]
    assert skipped["reason"].str.contains("are not what was packed").all()


def test_the_folder_one_stands_in_can_be_filled(class_folders, tmp_path):
    (tmp_path / "empty").mkdir()
    done = effnetv2("data", "pack", "../pictures", ".", cwd=tmp_path / "empty")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"images-000000.tar", "index.parquet"}
