"""``effnetv2 check``: the report page, JSON, the printed findings, and helpful errors."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from tests.command_line import effnetv2, run_json, run_ok, run_refused
from tests.messages import mentioning, mentions

from efficientnetv2.cli.data import check as run_command
from efficientnetv2.cli.main import app
from efficientnetv2.data.config import DataConfig, default_check_dir
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.image_metadata import content_hashes
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.models.provenance import TrainingFingerprint
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import check


def table(folder, rows, header="path,label,latitude,longitude,year"):
    (folder / "list.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture
def listed(class_folders):
    """A table of 16 red and 16 green images, far from each other."""
    rows = [
        f"{color}/{color}_{number:02d}.jpg,{color},{number},{100 + (color == 'red')},20{number:02d}"
        for color in ("red", "green")
        for number in range(16)
    ]
    table(class_folders, rows)
    return class_folders, rows


def test_report_page_is_self_contained(class_folders):
    shutil.copy(class_folders / "red/red_00.jpg", class_folders / "blue/stranger.jpg")
    done = run_ok("check", class_folders, cwd=class_folders.parent)
    assert "49 images" in done.stdout
    assert mentions(done.stdout, "1 pair", "labels")
    report_folder = class_folders.parent / "inspection" / "pictures"
    page = (report_folder / "inspection.html").read_text()
    assert "blue/stranger.jpg" in page.replace("<wbr>", "")  # marks possible line breaks in long names
    assert "data:image/jpeg" in page
    assert not re.search(r"(src|href|srcset)=\"(?!data:)", page)
    result = json.loads((report_folder / "inspection.json").read_text())
    assert result["num_images"] == 49
    assert result["counts"]["by_class"]["blue"] == {"no split": 17}


def test_duplicates_and_damaged_images_are_printed(class_folders):
    for number in range(7):
        shutil.copy(class_folders / f"red/red_0{number}.jpg", class_folders / f"blue/copy_{number}.jpg")
    for number in range(2):
        file = class_folders / f"green/green_0{number}.jpg"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] + b"\xff\xd9")
    done = effnetv2("check", class_folders, cwd=class_folders.parent)
    output = " ".join(done.stdout.split())
    assert mentions(output, "blue/copy_0.jpg", "red/red_00.jpg")
    assert mentions(output, "blue/copy_4.jpg", "red/red_04.jpg", "2")
    for number in range(2):
        assert mentions(output, f"green/green_0{number}.jpg", "damaged")


def test_only_some_of_many_duplicates_are_printed(class_folders):
    for number in range(20):
        shutil.copy(class_folders / "red/red_00.jpg", class_folders / f"red/copy_{number:02d}.jpg")
    done = effnetv2("check", class_folders, cwd=class_folders.parent)
    assert mentions(" ".join(done.stdout.split()), "red/copy_04.jpg", "16")
    assert "red/copy_05.jpg" not in done.stdout


def test_enlarged_images_are_a_finding(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        small.resize((128, 128), Image.Resampling.BICUBIC).save(path, quality=90)
    done = effnetv2("check", tmp_path / "set", "--json", cwd=tmp_path)
    (found,) = [one for one in json.loads(done.stdout)["findings"] if one["kind"] == "enlarged"]
    assert "24 of 24" in found["sentence"]
    assert "image_size=32" in found["advice"]


def test_tars_without_labels_get_no_advice_on_folders(class_folders, tmp_path):
    """Sub-folders would make them no shards any more."""
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/a.tar", "w") as tar:
        for number, file in enumerate(sorted(class_folders.rglob("*.jpg"))):
            tar.add(file, arcname=f"{number}.jpg")
    done = effnetv2("check", tmp_path / "tars", "--json", cwd=tmp_path)
    (found,) = [one for one in json.loads(done.stdout)["findings"] if one["kind"] == "no_labels"]
    assert "label_column" in found["advice"]
    assert "folder" not in found["advice"]


def test_ignored_files_are_a_finding(class_folders):
    """A class may have more images than are counted, for example HEIC files of a phone."""
    for number in range(3):
        (class_folders / "blue" / f"{number}.HEIC").write_bytes(b"x")
    done = run_ok("check", class_folders, "--output", "report", cwd=class_folders.parent)
    found = "3 files .heic ignored: 3 in 'blue'."
    assert f"Warning: {found}" in done.stdout
    folder = class_folders.parent / "report"
    result = json.loads((folder / "inspection.json").read_text())
    assert [one["sentence"] for one in result["findings"] if one["kind"] == "ignored_files"] == [found]
    assert result["counts"]["ignored_files"] == {".heic": {"blue": 3}}
    assert [note.partition(" in ")[0] for note in result["notes"]] == ["Skipped"]
    page = html.unescape((folder / "inspection.html").read_text().replace("<wbr>", ""))
    assert f"{result['notes'][0]}</p>" in page
    assert found in page
    assert "No problem" not in page


def test_dataset_without_splits_has_one_column_of_counts(class_folders):
    """Mean colors are given as numbers too, not as a colored square alone."""
    done = run_ok("check", class_folders, "--output", "report", cwd=class_folders.parent)
    assert re.search(r"^class +images$", done.stdout, re.MULTILINE)
    page = (class_folders.parent / "report/inspection.html").read_text()
    assert "<th>images</th>" in page
    assert "no split" not in page
    assert re.search(r"\d+, \d+, \d+ <span class=\"swatch\"", page)


def test_default_report_folder_is_documented():
    (out,) = [one for one in typer.main.get_command(app).commands["check"].params if one.name == "out"]
    assert mentions(out.help, "inspection/NAME")
    page = (Path(__file__).parents[2] / "docs/how-to/check-a-dataset.md").read_text(encoding="utf-8")
    assert mentions(page, "inspection/NAME")


def test_dataset_name_with_a_dot_keeps_its_suffix(class_folders):
    shutil.copytree(class_folders, class_folders.parent / "photos.v1")
    run_ok("check", "photos.v1", cwd=class_folders.parent)
    assert (class_folders.parent / "inspection/photos.v1/inspection.html").is_file()


@pytest.mark.parametrize(("data", "name"), [("..", "photos"), (".", "work"), ("../a.csv", "a"), ("cifar10", "cifar10")])
def test_report_folder_has_the_name_of_the_data(data, name, tmp_path, monkeypatch):
    (tmp_path / "photos/work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos/work")
    assert default_check_dir(data) == Path("inspection", name)


def test_json_on_stdout_equals_the_json_file(listed):
    folder, _ = listed
    done = run_ok("check", folder / "list.csv", "--output", "report", "--json", cwd=folder)
    assert json.loads(done.stdout) == json.loads((folder / "report/inspection.json").read_text())
    assert json.loads(done.stdout)["time"]["column"] == "year"


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ("red/red_00.jpg,red,95,100,2001", ["row 2", "latitude is 95", "from -90 to 90"]),
        ("red/red_00.jpg,red,1,181,2001", ["row 2", "longitude is 181", "from -180 to 180"]),
        ("red/red_00.jpg,Red,1,100,2001", ["row 2", "'Red'", "only by case", "--labels casefold"]),
    ],
)
def test_invalid_rows_are_refused(listed, row, facts):
    folder, rows = listed
    table(folder, [row, *rows[1:]])
    run_refused("check", folder / "list.csv", cwd=folder, names=facts)


def test_missing_file_is_a_finding(listed):
    folder, rows = listed
    table(folder, ["red/gone.jpg,red,1,100,2001", *rows[1:]])
    done = run_ok("check", folder / "list.csv", cwd=folder)
    assert mentions(done.stdout, "1", "32", "3", "red/gone.jpg")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_control_characters_in_names_are_escaped(class_folders):
    (class_folders / "green").rename(class_folders / "gr\x1b[31meen")
    (class_folders / "red/red_00.jpg").rename(class_folders / "red/\x1b]0;x\x07\n.jpg")
    (class_folders / "red/\x1b]0;x\x07\n.jpg").write_bytes(b"")
    done = run_ok("check", class_folders, "--output", "report", cwd=class_folders.parent)
    assert "\x1b" not in done.stdout + done.stderr
    assert r"gr\x1b[31meen" in done.stdout
    (class_folders / "blank\x1b").mkdir()
    refused = run_refused("train", class_folders, cwd=class_folders.parent)
    assert "\x1b" not in refused.stdout + refused.stderr
    assert r"blank\x1b" in refused.stderr


@pytest.mark.parametrize("indexed", [True, False])
def test_truncated_shard_is_a_finding(class_folders, indexed):
    folder = class_folders.parent
    write_shards(load_dataset(class_folders), folder / "shards", PackOptions(10**9))
    (file,) = (folder / "shards").glob("*.tar")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    if not indexed:
        (folder / "shards/index.parquet").unlink()
    done = run_ok("check", "shards", "--output", "report", cwd=folder)
    assert mentions(done.stdout, file.name)
    findings = json.loads((folder / "report/inspection.json").read_text())["findings"]
    (damaged,) = [one for one in findings if one["kind"] == "damaged_shard"]
    assert (damaged["severity"], file.name in damaged["sentence"]) == ("wrong", True)
    assert mentions((folder / "report/inspection.html").read_text().replace("<wbr>", ""), file.name)


def test_casefold_merges_labels_that_differ_by_case(listed):
    folder, rows = listed
    table(folder, ["red/red_00.jpg,Red,1,100,2001", *rows[1:]])
    done = run_ok("check", folder / "list.csv", "--labels", "casefold", "--json", cwd=folder)
    assert set(json.loads(done.stdout)["counts"]["by_class"]) == {"red", "green"}


def test_images_without_labels_are_checked(listed):
    folder, rows = listed
    table(folder, [row.split(",")[0] for row in rows], header="path")
    done = run_ok("check", folder / "list.csv", cwd=folder)
    assert "No image has a label" in done.stdout


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--label-column", "klass"], ("klass", "column")),
        (["--time-column", "yaer"], ("yaer", "did you mean", "year")),
        (["--near-km", "-1"], ("0", "20,000")),
        (["--output", "list.csv"], ("is a file", "Give a folder")),
        (["--weights", "nowhere.safetensors"], ("there is no such file",)),
        (["--bands", "1,2,x"], ("--bands", "1,2,x")),
    ],
)
def test_invalid_options_are_refused_and_leave_no_files(listed, options, facts):
    folder, _ = listed
    before = sorted(folder.iterdir())
    done = run_refused("check", folder / "list.csv", *options, cwd=folder)
    assert mentions(re.sub(r"\s+", " ", done.stderr), *facts), done.stderr
    assert sorted(folder.iterdir()) == before


def test_dataset_without_readable_images_leaves_no_files(tmp_path):
    photos = tmp_path / "photos"
    (photos / "red").mkdir(parents=True)
    (photos / "red/one.jpg").write_bytes(b"no image")
    run_refused("check", photos, "--output", tmp_path / "pages/inspection", cwd=tmp_path, names=(photos, "one.jpg"))
    (photos / "red/two.jpg").write_bytes(b"")
    done = effnetv2("check", photos, "--output", tmp_path / "pages/inspection", cwd=tmp_path)
    assert mentions(done.stderr, photos, "2", "read")
    assert [one.name for one in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("damaged", [[], ["blue/blue_00.jpg"]])
def test_weights_find_a_label_error(class_folders, damaged):
    """Random weights separate colors: one image of 16 in the wrong folder is found, also after an unreadable one."""
    shutil.move(class_folders / "red/red_03.jpg", class_folders / "blue/blue_99.jpg")
    for path in damaged:
        (class_folders / path).write_bytes(b"")
    model_file.save(class_folders.parent / "any.safetensors", create("efficientnetv2_b0", num_classes=0))
    done = run_ok(
        "check", class_folders, "--weights", "any.safetensors", "--device", "cpu", "--json",
        cwd=class_folders.parent,
    )  # fmt: skip
    found = {one["kind"]: one["images"] for one in json.loads(done.stdout)["findings"]}
    assert found.get("unreadable", []) == [[path] for path in damaged]
    assert ["blue/blue_99.jpg"] in found["label"]


@pytest.mark.parametrize("trained", [0, 5])
def test_images_that_trained_the_weights_are_counted(class_folders, trained):
    """A model has learned their wrong labels, and so agrees with them."""
    network = create("efficientnetv2_b0", num_classes=0)
    hashes = [1, 2, *content_hashes(load_dataset(class_folders))[1][:trained]]
    network.trained_on = TrainingFingerprint(len(hashes), np.sort(np.array(hashes, dtype=np.int64)))
    model_file.save(class_folders.parent / "any.safetensors", network)
    args = ("check", class_folders, "--weights", "any.safetensors", "--device", "cpu", "--json")
    findings = run_json(*args[:-1], cwd=class_folders.parent)["findings"]
    found = [one["sentence"] for one in findings if one["kind"] == "trained_weights"]
    assert len(found) == (trained > 0)
    assert all(sentence.startswith(f"{trained} of these 48 images") for sentence in found)


def test_image_next_to_the_class_folders_is_ignored(class_folders):
    shutil.copy(class_folders / "red/red_00.jpg", class_folders / "preview.jpg")
    done = run_ok("check", class_folders, "--json", cwd=class_folders.parent)
    report = json.loads(done.stdout)
    assert report["num_images"] == 48
    assert set(report["counts"]["by_class"]) == {"red", "green", "blue"}
    assert "the class folders of" in done.stderr


def test_invalid_time_column_is_refused_before_reading_images(listed, monkeypatch):
    folder, _ = listed
    monkeypatch.setattr(check, "collect_image_stats", lambda *_, **__: pytest.fail("images were read"))
    options = check.CheckOptions(folder / "report", time_column="label", device="cpu", workers=0)
    with pytest.raises(InputError, match=mentioning("`time_column`", "label")):
        check.run_check(DataConfig(str(folder / "list.csv")), options)
    assert not (folder / "report").exists()


def test_findings_are_printed_despite_a_full_disk(listed, monkeypatch, capsys):
    folder, rows = listed
    table(folder, ["red/red_00.jpg,,0,101,2000", *rows[1:]])

    def fail_to_replace(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail_to_replace)
    with pytest.raises(InputError, match="No space left on device"):
        run_command(data=str(folder / "list.csv"), out=folder / "report", device="cpu", workers=0)
    output = " ".join(capsys.readouterr().out.split())
    assert mentions(output, "1", "32", "3", "label")
    assert "Report: " not in output


def test_distance_and_time_column_reach_the_check(listed):
    """Neighbors are at most a degree apart, 111 km."""
    folder, rows = listed
    dated = [f"{row},{1900 + number}" for number, row in enumerate(rows)]
    table(folder, dated, "path,label,latitude,longitude,year,flown")
    words = ("--near-km", "120", "--time-column", "flown", "--output", "report", "--json")
    found = json.loads(run_ok("check", folder / "list.csv", *words, cwd=folder).stdout)
    assert (found["place"]["near_km"], found["place"]["near_another"]) == (120, 32)
    assert found["time"]["column"] == "flown"
