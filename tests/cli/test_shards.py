"""``effnetv2 data pack``, and other commands on its shards."""

from __future__ import annotations

import json
import shutil
import tarfile

import pandas as pd
import pytest
from tests.command_line import TINY, effnetv2, run_json, run_ok, run_refused
from tests.conftest import paint
from tests.messages import mentioning, mentions

import efficientnetv2
from efficientnetv2.utils.errors import InputError


@pytest.fixture(scope="module")
def trained(painted_folders, tmp_path_factory):
    """A folder with five shards and a run on them."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(painted_folders, folder / "pictures")
    done = run_ok("data", "pack", "pictures", "packed", "--shard-images", "10", cwd=folder)
    assert mentions(done.stdout, "48", "3", "5", "class")
    run_ok("train", "packed", *TINY, "--weights", "none", "--output", "run", cwd=folder)
    return folder


def test_shards_are_trained_evaluated_and_predicted(trained):
    report = json.loads((trained / "run/report.json").read_text())
    assert set(report["per_class"]) == {"red", "green", "blue"}
    assert "data:image" in (trained / "run/report.html").read_text(), "errors are shown with their images"
    done = run_ok("evaluate", "run", "packed", "--json", cwd=trained)
    assert any("trained the model" in note for note in json.loads(done.stdout)["notes"]), (
        "the training images are recognized"
    )
    run_ok("predict", "run", "packed/images-{000000..000001}.tar", "--device", "cpu", cwd=trained)
    paths = pd.read_csv(trained / "predictions.csv")["path"]
    assert len(paths) == 20
    assert set(paths.str.extract(r"^images-00000[01]\.tar#(\w+)/\1_\d\d\.jpg$")[0]) <= {"red", "green", "blue"}


def test_pack_prints_json(tmp_path):
    rows = []
    for number in range(30):
        path = paint(tmp_path / f"{number}.jpg", (7 * number, 80, 90), number, px=60)
        rows.append({"path": path.name, "species": "ab"[number % 2], "split": "val" if number % 3 == 0 else "train"})
    pd.DataFrame(rows).to_csv(tmp_path / "list.csv", index=False)
    (tmp_path / "4.jpg").write_bytes(b"")
    args = ("data", "pack", "list.csv", "packed", "--label-column", "species", "--image-size", "32", "--json")
    done = run_ok(*args, cwd=tmp_path)
    result = json.loads(done.stdout)
    assert result["num_images"] == 29
    assert result["classes"] == ["a", "b"]
    assert result["splits"] == {"train": 19, "val": 10}
    assert result["shards"] == ["train-000000.tar", "val-000000.tar"]
    assert result["left_out"] == [{"path": "4.jpg", "reason": "is empty (0 bytes)"}]
    assert result["bytes"] == sum(path.stat().st_size for path in (tmp_path / "packed").glob("*.tar"))


def test_pack_of_python_writes_the_same_shards(class_folders, tmp_path):
    result = run_json("data", "pack", class_folders, "packed", "--shard-images", "10", "--seed", "4", cwd=tmp_path)
    packed = efficientnetv2.pack(class_folders, tmp_path / "python", shard_images=10, seed=4)
    assert repr(packed) == "PackResult(48 images in 5 shards, 0 skipped)"
    assert packed.to_json().items() <= result.items()
    for name in result["shards"]:
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"shard_mb": "1"}, ("shard_mb", "number", "'1'")),
        ({"image_size": 1}, ("image_size", "at least 2")),
        ({"bands": "all"}, ("pack", "bands")),
    ],
)
def test_pack_of_python_refuses_wrong_arguments(options, facts, class_folders, tmp_path):
    with pytest.raises(InputError, match=mentioning(*facts)):
        efficientnetv2.pack(class_folders, tmp_path / "packed", **options)
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize(
    ("out", "facts"),
    [
        ("pictures/packed", ("is in DATA", "Give a folder outside it")),
        ("pictures", ("is not empty",)),
        ("file.txt", ("is a file",)),
        ("s3://bucket/packed", ("written to this machine",)),
    ],
)
def test_invalid_output_folder_is_refused(out, facts, class_folders, tmp_path):
    (tmp_path / "file.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    done = run_refused("data", "pack", "pictures", out, cwd=tmp_path)
    assert all(fact in done.stderr for fact in facts), done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_empty_data_and_missing_shards_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    run_refused("data", "pack", "empty", "packed", cwd=tmp_path, names=("empty", "no images"))
    run_refused("train", "nowhere/train-{000000..000003}.tar", cwd=tmp_path, names=("shards",))


def test_truncated_shard_is_refused_only_with_strict(class_folders, tmp_path):
    assert effnetv2("data", "pack", class_folders, "packed", "--shard-images", "10", cwd=tmp_path).returncode == 0
    shard = tmp_path / "packed/images-000002.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    args = ("train", "packed", *TINY, "--weights", "none", "--epochs", "0.5", "--output", "run")
    run_refused(*args, "--strict", cwd=tmp_path, names=("images-000002.tar",))
    done = run_ok(*args, cwd=tmp_path)
    assert mentions(done.stdout, "images-000002.tar", "damaged")
    skipped = pd.read_csv(tmp_path / "run/skipped.csv")
    assert skipped["path"].str.startswith("images-000002.tar#").all()
    assert 1 <= len(skipped) <= 9


def test_damaged_shard_is_reported_by_predict_and_evaluate(trained, tmp_path):
    """Without an index the lost images are unknown, but the damage is reported."""
    shutil.copytree(trained / "packed", tmp_path / "packed")
    (tmp_path / "packed/index.parquet").unlink()
    shard = tmp_path / "packed/images-000001.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    for args in (("predict", trained / "run", "packed"), ("evaluate", trained / "run", "packed")):
        done = run_ok(*args, "--device", "cpu", cwd=tmp_path)
        assert mentions(done.stdout, "images-000001.tar", "damaged")
        run_refused(*args, "--device", "cpu", "--strict", cwd=tmp_path, names=("images-000001.tar", "damaged"))


def test_label_lost_in_a_damaged_tar_is_reported(class_folders, tmp_path):
    """Without an index ``.json`` names the classes; the number in ``.cls`` must not become a fourth class."""
    assert effnetv2("data", "pack", class_folders, "packed", cwd=tmp_path).returncode == 0
    (tmp_path / "packed/index.parquet").unlink()
    tar = tmp_path / "packed/images-000000.tar"
    with tarfile.open(tar) as opened:
        lost = next(member for member in opened if member.name == "000000007.json")
    content = bytearray(tar.read_bytes())
    content[lost.offset : lost.offset + 512] = bytes(512)
    tar.write_bytes(content)
    done = run_ok("data", "pack", "packed", "again", cwd=tmp_path)
    result = (
        "Damaged shard: images-000000.tar has lost the labels of '000000007' (there is no 000000007.json, which the "
        f"other images have); has a damaged header at byte {lost.offset}; 47 of its 47 images found are used."
    )
    assert result in done.stdout
    assert mentions(done.stdout, "47", "3", "1", "class")
    run_refused("data", "pack", "packed", "strict", "--strict", cwd=tmp_path, names=("images-000000.tar", "damaged"))
    content[lost.offset : lost.offset + 1024] = b""  # without this member the tar is valid
    tar.write_bytes(content)
    run_refused("train", "packed", cwd=tmp_path, names=("packed/images-000000.tar", "000000007.json"))


def test_changed_bytes_are_found_when_read(class_folders, tmp_path):
    """Zeros inside a JPEG, which a decoder shows as gray."""
    run_ok("data", "pack", class_folders, "packed", "--json", cwd=tmp_path)
    row = pd.read_parquet(tmp_path / "packed/index.parquet").iloc[5]
    tar = tmp_path / "packed/images-000000.tar"
    content = bytearray(tar.read_bytes())
    start = row["shard_offset"] + row["shard_bytes"] // 2
    content[start : start + 64] = bytes(64)
    tar.write_bytes(content)
    done = run_ok("data", "pack", "packed", "again", cwd=tmp_path)
    stop = row["shard_offset"] + row["shard_bytes"]
    where = f"images-000000.tar, bytes {row['shard_offset']} to {stop}"
    assert mentions(done.stdout, row["path"], where, "images-000000.tar")
    run_ok("train", "packed", *TINY, "--weights", "none", "--output", "run", cwd=tmp_path)
    skipped = pd.read_csv(tmp_path / "run/skipped.csv")
    assert skipped["path"].tolist() == [f"images-000000.tar#{row['path']}"]
    assert skipped["reason"].str.contains("are not what was packed").all()


def test_folder_that_holds_a_file_of_finder_is_empty(class_folders, tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/.DS_Store").touch()
    run_ok("data", "pack", class_folders, "packed", cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == ["images-000000.tar", "index.parquet"]


def test_working_directory_can_be_the_output_folder(class_folders, tmp_path):
    (tmp_path / "empty").mkdir()
    run_ok("data", "pack", "../pictures", ".", cwd=tmp_path / "empty")
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"images-000000.tar", "index.parquet"}
