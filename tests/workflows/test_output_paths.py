"""Existing outputs: earlier results are replaced with a message, other files are unchanged."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.cli.test_places import MACHINE
from tests.command_line import effnetv2, run_ok
from tests.messages import mentioning, mentions

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv
from efficientnetv2.data.config import DataConfig
from efficientnetv2.evaluation.predictions import is_predictions_csv, predictions_table, write_predictions
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.evaluate import evaluate_and_report
from efficientnetv2.workflows.evaluate_options import EvaluateOptions

NAMES = ("blue", "green", "red")
SMALL = Architecture(8, (Stage(fused_mbconv(expand=2, kernel=3), 2, 8, 1),), 16)
MODEL = ("model.safetensors", "pictures", "--device", "cpu", "--workers", "0")


@pytest.fixture
def here(class_folders, tmp_path):
    """A folder with a model of random weights, ``model.safetensors``, and 48 images."""
    torch.manual_seed(0)
    model = EfficientNet(SMALL, num_classes=3)
    model.preprocessing = Preprocessing(image_size=32)
    model_file.save(tmp_path / "model.safetensors", model, class_names=NAMES)
    return tmp_path


def refused(*words, cwd):
    done = effnetv2(*words, cwd=cwd)
    assert done.returncode == 2, done.stdout
    return done.stderr


def test_predictions_replace_predictions_with_a_message(here):
    args = ("predict", *MODEL, "--output", "new.csv", "--rank", "next.csv")
    assert "already" not in run_ok(*args, cwd=here).stdout
    before = (here / "new.csv").read_bytes()
    (here / "new.csv").write_bytes(before[:-100])
    output = run_ok(*args, cwd=here).stdout
    assert mentions(output, "new.csv", "replaced")
    assert mentions(output, "next.csv", "replaced")
    assert (here / "new.csv").read_bytes() == before
    (here / "predictions.csv").write_bytes(before)
    done = effnetv2("predict", MODEL[0], "nowhere", *MODEL[2:], cwd=here)  # a rejected command replaces nothing
    assert (done.returncode, mentions(done.stdout + done.stderr, "replaced")) == (2, False)
    (here / "predictions.csv").unlink()


def test_skipped_list_as_data_is_not_replaced_by_its_own_predictions(here):
    """After a repair of the images, the list is used as DATA. Its own output would replace or delete it."""
    listed = "path,reason\npictures/red/red_00.jpg,truncated\n"
    (here / "predictions_skipped.csv").write_text(listed)
    for cwd, model in ((here, "model.safetensors"), (here / "pictures", "../model.safetensors")):
        data, out = (here / name for name in ("predictions_skipped.csv", "predictions.csv"))
        output = refused("predict", model, data, "--output", out, cwd=cwd)
        assert mentions(output, "DATA", "predictions_skipped.csv")
    assert (here / "predictions_skipped.csv").read_text() == listed
    run_ok("predict", MODEL[0], "predictions_skipped.csv", *MODEL[2:], "--output", "again.csv", cwd=here)
    assert (here / "predictions_skipped.csv").read_text() == listed


def test_predictions_replace_only_predictions(here):
    (here / "list.csv").write_text("path,label\nred/red_00.jpg,red\n")
    (here / "next.html").write_text("mine")
    output = refused("predict", *MODEL, "--output", "list.csv", cwd=here)
    assert mentions(output, "--output", "list.csv", "model.safetensors", "NAME.csv")
    output = refused("predict", *MODEL, "--rank", "list.csv", cwd=here)
    assert mentions(output, "--rank", "list.csv")
    output = refused("predict", *MODEL, "--rank", "next.csv", cwd=here)
    assert mentions(output, "--rank", "next.csv", "next.html")
    assert (here / "list.csv").read_text() == "path,label\nred/red_00.jpg,red\n"
    assert not (here / "predictions.csv").exists()
    (here / "predictions.csv").write_text("path,label\n")
    output = refused("predict", *MODEL, cwd=here)
    assert mentions(output, "--output", "predictions.csv")
    output = refused("predict", "model.safetensors", "picture", cwd=here)  # the first error is reported first
    assert mentions(output, "did you mean 'pictures'")
    assert (here / "predictions.csv").read_text() == "path,label\n"


@pytest.mark.parametrize("classes", [2, 1_001])
def test_predictions_table_is_recognized_by_its_header(classes, tmp_path):
    names = ["path", *(str(number) for number in range(1, classes))]
    predictions = Predictions(np.arange(4), np.zeros(4, np.int64), torch.randn(4, classes))
    write_predictions(tmp_path / "some.csv", predictions_table(predictions, list("abcd"), names))
    assert is_predictions_csv(tmp_path / "some.csv", names)
    labeled = predictions_table(predictions, list("abcd"), names, true_labels=names[:1] * 4)
    write_predictions(tmp_path / "true.csv", labeled)
    assert not is_predictions_csv(tmp_path / "true.csv", names)
    for content in (b"", b"\xff\xfe", b"path,label\n", b'"'):
        (tmp_path / "other.csv").write_bytes(content)
        assert not is_predictions_csv(tmp_path / "other.csv", names)


def test_skipped_list_belongs_to_its_table(here):
    broken = here / "pictures/red/red_03.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    run_ok("predict", *MODEL, cwd=here)
    assert pd.read_csv(here / "predictions_skipped.csv")["path"].tolist() == ["red/red_03.jpg"]
    broken.write_bytes(whole)
    run_ok("predict", *MODEL, cwd=here)
    assert not (here / "predictions_skipped.csv").exists(), "it was of the table that is no more"
    (here / "predictions_skipped.csv").write_text("lesson,reason\nFriday,ill\n")
    output = refused("predict", *MODEL, cwd=here)
    assert mentions(output, "--output", "predictions.csv", "predictions_skipped.csv")


def test_tables_in_one_folder_have_separate_skipped_lists(here):
    """Also next to the list of a run or of shards."""
    (here / "skipped.csv").write_text("path,reason\na.jpg,is empty (0 bytes)\n")
    broken = here / "pictures/red/red_03.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    run_ok("predict", *MODEL, "--output", "a.csv", cwd=here)
    broken.write_bytes(whole)
    run_ok("predict", *MODEL, "--output", "b.csv", cwd=here)
    assert pd.read_csv(here / "a_skipped.csv")["path"].tolist() == ["red/red_03.jpg"]
    assert not (here / "b_skipped.csv").exists()
    assert pd.read_csv(here / "skipped.csv")["path"].tolist() == ["a.jpg"]


def test_report_replaces_a_report_with_a_message(here):
    args = ("evaluate", *MODEL, "--output", "rated")
    assert "already" not in run_ok(*args, cwd=here).stdout
    assert mentions(run_ok(*args, cwd=here).stdout, "rated/report.html", "replaced")
    output = refused("predict", here / MODEL[0], here / MODEL[1], cwd=here / "rated")
    assert mentions(output, "--output", "predictions.csv")
    assert json.loads((here / "rated/report.json").read_text())["num_images"] == 48


def test_unwritable_report_is_rejected_before_the_model_is_loaded(tmp_path, monkeypatch):
    def fails(path, *args, **words):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", fails)
    with pytest.raises(InputError, match=mentioning("output", "Read-only file system")):
        evaluate_and_report("m", DataConfig("d"), EvaluateOptions(out=tmp_path / "rated"), MACHINE)


def test_preview_does_not_replace_an_image(here):
    Image.new("RGB", (9, 9)).save(here / "photo.png")
    before = (here / "photo.png").read_bytes()
    output = refused("train", "pictures", "--preview", "photo.png", cwd=here)
    assert mentions(output, "--preview", "photo.png", "effnetv2 train --preview")
    assert (here / "photo.png").read_bytes() == before


def test_report_does_not_replace_a_table_of_the_user(here):
    """For example predictions with labels corrected by hand, which are evaluated in their folder."""
    run_ok("predict", *MODEL, "--output", "pictures/predictions.csv", cwd=here)
    corrected = (here / "pictures/predictions.csv").read_text()
    args = ("evaluate", MODEL[0], "pictures/predictions.csv", "--output", "pictures")
    output = refused(*args, cwd=here)
    assert mentions(output, "--output", "DATA", "pictures/predictions.csv")
    output = refused(
        "evaluate", "../model.safetensors", "../pictures/predictions.csv", "--output", ".", cwd=here / "pictures"
    )
    assert mentions(output, "--output", "DATA", "pictures/predictions.csv")
    for option in ("--output", "--rank"):
        args = ("predict", "../model.safetensors", "../pictures/predictions.csv", option, "predictions.csv")
        further = ("--output", "new.csv") if option == "--rank" else ()
        assert mentions(refused(*args, *further, cwd=here / "pictures"), option, "predictions.csv", "DATA")
    assert (here / "pictures/predictions.csv").read_text() == corrected
    (here / "mine").mkdir()
    (here / "mine/predictions.csv").write_text(corrected)
    output = refused("evaluate", *MODEL, "--output", "mine", cwd=here)
    assert mentions(output, "mine/predictions.csv")
    assert (here / "mine/predictions.csv").read_text() == corrected
    (here / "mine/predictions.csv").unlink()
    for name, what in (
        ("skipped.csv", "no list of what could not be read"),
        ("report.json", "no report of effnetv2"),
        ("report.html", "no report of effnetv2"),
    ):
        (here / "mine" / name).write_text("{}")
        assert mentions(refused("evaluate", *MODEL, "--output", "mine", cwd=here), name, what)
        (here / "mine" / name).unlink()


@pytest.mark.parametrize("name", ["inspection.json", "inspection.html"])
def test_inspection_replaces_only_an_inspection(class_folders, name):
    here = class_folders.parent
    (here / "docs").mkdir()
    (here / "docs" / name).write_text("<p>of the bridge</p>")
    output = refused("check", "pictures", "--output", "docs", cwd=here)
    assert mentions(output, name, "--output", "effnetv2 check")
    assert [(one.name, one.read_text()) for one in (here / "docs").iterdir()] == [(name, "<p>of the bridge</p>")]
    run_ok("check", "pictures", "--output", "page", cwd=here)
    assert mentions(run_ok("check", "pictures", "--output", "page", cwd=here).stdout, "replaced")


def trained_row(step, image_size):
    """A row of metrics with all fields that a comparison plots."""
    times = {"train_s": 2.0, "data_wait_s": 0.1, "images_per_s": 9.0}
    return {"kind": "train", "step": step, "epoch": step, "image_size": image_size, **times}


def test_comparison_replaces_only_a_comparison_and_removes_its_old_plots(here):
    for name in ("one", "other"):
        run_ok("evaluate", *MODEL, "--output", name, cwd=here)
    rows = [trained_row(1, 32), trained_row(2, 64), {"kind": "val", "step": 2, "epoch": 2, "top1": 0.5}]
    (here / "one/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ("compare", "one", "other", "--output", "both")
    drawn = {"accuracy_over_time.png", "settings.png", "stage_costs.png"}
    (here / "both").mkdir()
    for name in (*sorted(drawn), "comparison.json"):
        Image.new("RGB", (9, 9)).save(here / "both" / name, format="PNG")
        before = (here / "both" / name).read_bytes()
        output = refused(*args, cwd=here)
        assert mentions(output, name, "--output", "effnetv2 compare")
        assert (here / "both" / name).read_bytes() == before
        (here / "both" / name).unlink()
    (here / "file").write_text("mine")
    assert mentions(refused("compare", "one", "other", "--output", "file", cwd=here), "file", "folder")
    run_ok(*args, cwd=here)
    assert {one.name for one in (here / "both").iterdir()} == {*drawn, "comparison.json"}
    (here / "both/notes.png").write_bytes(b"mine")
    (here / "one/metrics.jsonl").unlink()  # so nothing is plotted
    assert mentions(run_ok(*args, cwd=here).stdout, "comparison.json", "replaced")
    assert {one.name for one in (here / "both").iterdir()} == {"notes.png", "comparison.json"}


def test_dataset_csv_of_the_user_next_to_a_model_is_not_its_training_data(here):
    (here / "alone").mkdir()
    shutil.copy(here / MODEL[0], here / "alone/m.safetensors")
    (here / "alone/dataset.csv").write_text("path,label\n../pictures/red/red_00.jpg,red\n")
    assert "optimistic" not in run_ok("evaluate", "alone/m.safetensors", "alone/dataset.csv", cwd=here).stdout.lower()
