"""``predict`` and ``evaluate`` with missing images, missing devices or several processes."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tests.command_line import effnetv2
from tests.conftest import COLORS, paint
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions
from tests.processes import effnetv2_together

import efficientnetv2
from efficientnetv2 import create
from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv
from efficientnetv2.data.config import DataConfig, report_notes
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.models import hub, model_file
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.ensemble import Ensemble, member_calibrations
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import batch_predict
from efficientnetv2.workflows.batch_predict import InferenceOptions, remove_unfit_calibration
from efficientnetv2.workflows.evaluate import evaluate_and_report
from efficientnetv2.workflows.evaluate_options import EvaluateOptions, align_labels
from efficientnetv2.workflows.predict import PredictOptions, _class_counts, predict_and_write

MODEL = "model.safetensors"
SMALL = Architecture(8, (Stage(fused_mbconv(expand=2, kernel=3), 2, 8, 1),), 16)


@pytest.fixture
def model(tmp_path):
    """An untrained model with reproducible predictions and no training fingerprint."""
    torch.manual_seed(0)
    network = EfficientNet(SMALL, num_classes=3)
    network.preprocessing = replace(network.preprocessing, image_size=32, crop_pct=1.0)
    model_file.save(tmp_path / MODEL, network, class_names=("blue", "green", "red"))
    return MODEL


@pytest.fixture
def shards(class_folders, tmp_path):
    """48 images in 5 shards. The second shard, with 10 images, is missing."""
    write_shards(load_dataset(class_folders), tmp_path / "packed", PackOptions(shard_bytes=10**9, shard_images=10))
    (tmp_path / "packed/images-000001.tar").unlink()
    return "packed"


def test_images_of_unsupported_formats_are_named(model, tmp_path):
    for name in ("new/1.HEIC", "mixed/2.heic"):
        paint(tmp_path / "mixed/1.jpg", (9, 9, 9))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    args = ("predict", model, "--device", "cpu", "--workers", "0")
    mixed = effnetv2(*args, "mixed", cwd=tmp_path)
    assert mixed.returncode == 0, mixed.stderr
    assert "Skipped in mixed: 1 file .heic" in mixed.stdout
    for data, text in (("new", "new holds no images"), ("new/1.HEIC", "a supported image")):
        refused = effnetv2(*args, data, cwd=tmp_path)
        assert refused.returncode == 2
        assert text in refused.stderr
        assert "convert" in refused.stderr


@pytest.mark.parametrize(
    "out", ["out.parquet", "out.xlsx", "out.json", "out.csv.gz", "-", "out", "fifo.csv", "/dev/full"]
)
def test_predictions_are_written_only_to_csv_files(out, model, class_folders, tmp_path):
    """Rejected before the work. For example, the test for an existing table would wait for a pipe."""
    os.mkfifo(tmp_path / "fifo.csv")
    done = effnetv2("predict", model, class_folders, "--device", "cpu", "--output", out, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert f"--output {out}" in done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"fifo.csv", class_folders.name, model}


def test_predictions_of_a_run_are_not_used_as_labels(model, tmp_path):
    """With the predicted labels, every prediction would be right."""
    (tmp_path / "run").mkdir()
    for header in ("path,predicted_label,true_label,red", "path,predicted_label,probability,true_label,red"):
        (tmp_path / "run/predictions.csv").write_text(f"{header}\n")
        done = effnetv2("evaluate", model, "run/predictions.csv", "--device", "cpu", cwd=tmp_path)
        assert done.returncode == 2
        assert mentions(done.stderr, "run/predictions.csv")
    (tmp_path / "run/dataset.csv").touch()
    done = effnetv2("train", "run/predictions.csv", "--weights", "none", cwd=tmp_path)
    assert "run/dataset.csv" in done.stderr


def test_missing_shard_is_reported_once_and_its_images_are_listed(model, shards, tmp_path):
    done = effnetv2("predict", model, shards, "--device", "cpu", "--output", "out.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "images-000001.tar" in line)
    assert mentions(line, "images-000001.tar", "0", "10")
    assert mentions(done.stdout, "10", "48", "out_skipped.csv")
    assert len(pd.read_csv(tmp_path / "out.csv")) == 38
    skipped = pd.read_csv(tmp_path / "out_skipped.csv")
    assert skipped["path"].str.startswith("images-000001.tar#").tolist() == [True] * 10
    assert set(skipped["reason"]) == {"is lost: the shard is missing"}

    done = effnetv2("evaluate", model, shards, "--device", "cpu", "--output", "rated", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sum("images-000001.tar" in line for line in done.stdout.splitlines()) == 1
    assert mentions(done.stdout, "10", "48", "rated/skipped.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "rated/skipped.csv"), skipped)
    report = json.loads((tmp_path / "rated/report.json").read_text())
    assert (report["num_images"], report["num_skipped"]) == (38, 10)


def test_first_of_many_unreadable_files_are_named_and_the_others_counted(model, class_folders, tmp_path):
    broken = sorted(class_folders.rglob("*.jpg"))[3:15]
    for file in broken:
        file.write_bytes(b"\xff\xd8 no more than this")
    done = effnetv2("evaluate", model, class_folders, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    named = [line for line in done.stdout.splitlines() if line.startswith("Skipped ") and ".jpg" in line]
    assert [line.split()[1].rstrip(":") for line in named] == [f"{f.parent.name}/{f.name}" for f in broken[:5]]
    assert [line.endswith(": for the same reason.") for line in named] == [False, True, True, True, True]
    assert mentions(done.stdout, "7 more", "read")
    assert mentions(done.stdout, "12", "48", "--output")
    done = effnetv2("evaluate", model, class_folders, "--device", "cpu", "--output", "rated", cwd=tmp_path)
    listed = pd.read_csv(tmp_path / "rated/skipped.csv")["path"].tolist()
    assert listed == [f"{file.parent.name}/{file.name}" for file in broken]
    for file in broken:
        file.unlink()
    done = effnetv2("evaluate", model, class_folders, "--device", "cpu", "--output", "rated", cwd=tmp_path)
    assert "Skipped" not in done.stdout
    assert not (tmp_path / "rated/skipped.csv").exists(), "the list was of the report that is no more"


def test_first_of_many_damaged_shards_are_named(class_folders, tmp_path):
    write_shards(load_dataset(class_folders), tmp_path / "packed", PackOptions(shard_bytes=10**9, shard_images=2))
    for number in range(23):
        (tmp_path / f"packed/images-{number:06d}.tar").unlink()
    lines = logged_lines()
    damage = report_notes(load_dataset(tmp_path / "packed"), strict=False)
    assert len(damage.reasons) == 46
    assert len(lines) == 21
    assert mentions(lines[19], "images-000019.tar", "missing")
    assert mentions(lines[20], "3", "damaged")


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_dataset_without_readable_images_is_rejected(verb, model, class_folders, tmp_path):
    for file in class_folders.rglob("*.jpg"):
        file.write_bytes(b"")
    out = "out.csv" if verb == "predict" else "out"
    done = effnetv2(verb, model, class_folders, "--device", "cpu", "--output", out, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "none", "48")
    assert mentions(done.stderr, "blue/blue_00.jpg")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / out).exists()


def test_ranking_may_not_have_the_name_of_the_skipped_list(model, class_folders, tmp_path):
    done = effnetv2("predict", model, class_folders, "--rank", "predictions_skipped.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "--rank", "predictions_skipped.csv")
    assert "Give another one" in done.stderr


def test_report_does_not_replace_the_skipped_list_of_shards(model, shards, tmp_path):
    """The list has the images that were not packed, in the same format."""
    mine = tmp_path / shards / "skipped.csv"
    mine.write_text("path,reason\na.jpg,is empty (0 bytes)\n")
    done = effnetv2("evaluate", model, shards, "--device", "cpu", "--output", shards, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "--output", "shard")
    assert mine.exists()


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
@pytest.mark.parametrize("data", ["missing.jpg", "missing.csv", "missing/", "missing/a-{0..3}.tar", "missing.tar"])
def test_missing_data_is_an_error_with_a_hint(verb, data, model, tmp_path):
    done = effnetv2(verb, model, data, cwd=tmp_path)
    assert done.returncode == 2
    error, *hints = done.stderr.splitlines()
    assert data.rstrip("/") in error
    assert "does not exist" in error or mentions(error, "shards")
    assert any("Give a" in line for line in (error, *hints))


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_missing_gpu_is_a_one_line_error(verb, model, class_folders, tmp_path):
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    done = effnetv2(verb, model, class_folders, "--device", "cuda", cwd=tmp_path, environment=hidden)
    assert done.returncode == 2
    assert mentions(done.stderr, "--device", "PyTorch", "auto, cpu")
    done = effnetv2(verb, model, class_folders, "--device", "cudda:1", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "--device", "cudda:1", "did you mean", "cuda")
    done = effnetv2(verb, model, class_folders, "--device", "gpu", cwd=tmp_path)
    assert mentions(done.stderr, "--device gpu", "cuda")


@pytest.mark.parametrize("verb", ["predict", "evaluate", "geo map"])
@pytest.mark.usefixtures("on_screen")
def test_unused_gpu_gives_a_note(verb, model, class_folders, tmp_path, monkeypatch, capsys):
    """Otherwise a million images would take days instead of an hour for no visible reason."""
    monkeypatch.setattr(batch_predict, "device_note", lambda word, device: f"{device} computes, as {word} says.")
    model, source = str(tmp_path / model), DataConfig(str(class_folders))
    plain = InferenceOptions("cpu", 0)
    if verb == "predict":
        predict_and_write(model, source, PredictOptions(out=tmp_path / "out.csv"), plain)
    elif verb == "evaluate":
        evaluate_and_report(model, source, EvaluateOptions(), plain)
    else:
        pytest.importorskip("rasterio", reason="needs the extra geo")
        from tests.rasters import write_raster  # imports rasterio

        from efficientnetv2.workflows.predict_map import MapOptions, run_map

        scene = write_raster(tmp_path / "scene.tif", np.full((3, 64, 64), 90, np.uint8))
        run_map(model, scene, MapOptions(device="cpu"), tmp_path / "map.tif")
    assert "cpu computes, as cpu says." in capsys.readouterr().out


def test_most_frequent_of_many_classes_are_printed():
    """Abstentions are always printed, even if they are few."""
    labels = [f"c{number:03d}" for number in range(1_000) for _ in range(1_000 - number)]
    text = _class_counts(pd.DataFrame({"predicted_label": [*labels, ""]}), None, "softmax")
    assert text.startswith("500,501 images: c000 1000, c001 999, ")
    assert text.endswith("c009 991, abstained 1, 990 more classes")
    few = pd.DataFrame({"predicted_label": ["oak", "elm;oak"]})
    assert _class_counts(few, ";", "sigmoid") == "2 images: oak 2, elm 1"


def test_two_processes_predict_each_image_once_and_print_once(model, shards, tmp_path):
    alone = effnetv2("predict", model, shards, "--device", "cpu", "--output", "alone.csv", cwd=tmp_path)
    first, second = effnetv2_together(
        2, "predict", model, shards, "--device", "cpu", "--output", "both.csv", cwd=tmp_path
    )
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout == second.stderr == ""
    assert first.stdout == alone.stdout.replace("alone", "both")
    one, both = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("alone", "both"))
    pd.testing.assert_frame_equal(both, one, rtol=1e-4, atol=2e-6)

    args = ("evaluate", model, shards, "--device", "cpu", "--json")
    alone = effnetv2(*args, cwd=tmp_path)
    first, second = effnetv2_together(2, *args, cwd=tmp_path)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout == second.stderr == ""
    of_one, of_both = (json.loads(done.stdout) for done in (alone, first))
    for name in ("top1", "macro_f1", "num_images", "num_skipped", "confusion"):
        assert of_both[name] == of_one[name], name


def test_error_of_several_processes_is_printed_once(model, class_folders, tmp_path):
    (class_folders / "green/green_05.jpg").write_bytes(b"")  # image 21, in the second process
    args = ("predict", model, class_folders, "--device", "cpu")
    ended = effnetv2_together(2, *args, "--strict", cwd=tmp_path)
    assert sorted(one.returncode for one in ended) == [1, 2]
    messages = [line for one in ended for line in one.stderr.splitlines() if line.startswith("error:")]
    assert len(messages) == 1
    assert "green_05.jpg" in messages[0]
    assert not (tmp_path / "predictions.csv").exists()
    ended = effnetv2_together(2, *args[:2], "missing.jpg", cwd=tmp_path)
    assert sorted(one.returncode for one in ended) == [1, 2]
    assert sum("missing.jpg" in one.stderr for one in ended) == 1


def test_label_in_another_unicode_form_is_matched_on_request(tmp_path):
    """Class names from folders on Linux, images from a Mac."""
    paint(tmp_path / "pictures/He\u0302tre/one.jpg", (60, 190, 60))
    dataset, names = load_dataset(tmp_path / "pictures", for_training=False), ("H\u00eatre", "oak")
    with pytest.raises(InputError, match=mentioning("labels=casefold")):
        align_labels(dataset, names, MODEL, merge=False)
    assert align_labels(dataset, names, MODEL, merge=True).labels.tolist() == [0]


@pytest.mark.parametrize("names", [("A", "a", "oak"), ("a", "A", "oak"), ("a", "oak", "A")])
def test_exact_class_name_is_preferred_to_another_case(names, tmp_path):
    """For example for a model of letters."""
    paint(tmp_path / "one/A/1.jpg", (60, 190, 60))
    paint(tmp_path / "one/OAK/2.jpg", (60, 190, 60))
    dataset = load_dataset(tmp_path / "one", for_training=False)
    found = align_labels(dataset, names, MODEL, merge=True)
    assert [names[label] for label in found.labels] == ["A", "oak"]
    more = ("\u00c4", "\u00e4", "oak")
    paint(tmp_path / "two/A\u0308/1.jpg", (60, 190, 60))
    dataset = load_dataset(tmp_path / "two", for_training=False)
    with pytest.raises(InputError, match=mentioning("'Ä'", "'ä'")):
        align_labels(dataset, more, MODEL, merge=True)


def test_pretrained_weights_are_evaluated_on_folders_of_wordnet_ids(tmp_path, monkeypatch):
    """By the name of the weights, with ids of torchvision's first and last classes."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "cache/models--timm--tf_efficientnetv2_b0.in1k/snapshots/main/model.safetensors"
    file.parent.mkdir(parents=True)
    weights = pytest.importorskip("timm").create_model("tf_efficientnetv2_b0").state_dict()
    weights["classifier.bias"][999] = 1e4
    save_file(weights, file, {"format": "pt"})
    for wordnet_id in ("n01440764", "n15075141"):
        paint(tmp_path / "imagenet/val" / wordnet_id / "one.jpg", (60, 190, 60))
    data = DataConfig(str(tmp_path / "imagenet"))
    evaluate_and_report(
        "efficientnetv2_b0.in1k", data, EvaluateOptions(out=tmp_path / "out"), InferenceOptions("cpu", workers=0)
    )
    table = pd.read_csv(tmp_path / "out/predictions.csv")
    assert table["true_label"].tolist() == ["tench", "toilet tissue"]
    assert set(table["predicted_label"]) == {"toilet tissue"}
    (found,) = Predictor("efficientnetv2_b0.in1k", device="cpu")(tmp_path / "imagenet/val/n01440764/one.jpg")
    assert found.label == "toilet tissue"
    with pytest.raises(InputError, match=r"did you mean 'efficientnetv2_b0\.in1k'"):
        Predictor("efficientnetv2_b0.in1", device="cpu")


def network(temperature=4.0):
    torch.manual_seed(0)
    made = create("efficientnetv2_b0", num_classes=3).eval()
    made.class_names = tuple(sorted(COLORS))
    made.preprocessing = replace(made.preprocessing, image_size=32)
    made.calibration = None if temperature is None else Calibration(temperature, 60, "minival")
    return made


@pytest.mark.parametrize("changed", [{"tta": "d4"}, {"image_size": 48}])
def test_temperature_for_another_tta_or_size_is_removed_with_a_message(changed):
    one, messages = network(), logged_lines()
    remove_unfit_calibration(one, one.preprocessing)
    assert one.calibration is not None
    remove_unfit_calibration(one, replace(one.preprocessing, **changed))
    assert one.calibration is None
    [line] = messages
    assert mentions(line, "32", "one")
    remove_unfit_calibration(one, replace(one.preprocessing, **changed))
    assert len(messages) == 1, "there is none to leave out"


def test_ensemble_removes_the_temperature_of_each_member():
    together, messages = Ensemble([network(), network(None)]), logged_lines()
    remove_unfit_calibration(together, replace(together.preprocessing, tta="d4"))
    assert member_calibrations(together) == (None, None)
    assert len(messages) == 1


def test_predict_and_evaluate_with_another_tta_or_size_ignore_the_temperature(tmp_path):
    rows = []
    for number in range(9):
        name = sorted(COLORS)[number % 3]
        paint(tmp_path / f"{number}.jpg", COLORS[name], number, px=32)
        rows.append((f"{number}.jpg", name))
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(tmp_path / "all.csv", index=False)
    model_file.save(tmp_path / "warm.safetensors", network())
    model_file.save(tmp_path / "plain.safetensors", network(None))
    args = ("all.csv", "--workers", "0", "--device", "cpu")
    tables = []
    for model in ("warm", "plain"):
        asked = ("predict", f"{model}.safetensors", *args, "--tta", "d4", "--output", f"{model}.csv")
        done = effnetv2(*asked, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("Temperature: removed" in " ".join(done.stdout.split())) is (model == "warm")
        tables.append(pd.read_csv(tmp_path / f"{model}.csv"))
    pd.testing.assert_frame_equal(*tables)
    done = effnetv2("evaluate", "warm.safetensors", *args, "--image-size", "48", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(" ".join(done.stdout.split()), "48", "one")


def test_evaluation_is_written_although_the_skipped_list_is_open_elsewhere(model, class_folders, tmp_path, monkeypatch):
    (broken := sorted(class_folders.rglob("*.jpg"))[3]).write_bytes(b"\xff\xd8 no more than this")
    efficientnetv2.evaluate(tmp_path / model, class_folders, output=tmp_path / "rated", device="cpu", workers=0)
    (tmp_path / "rated/report.html").write_text("before")
    broken.unlink()
    unlink = Path.unlink

    def refuse(path, **given):
        if path.name == "skipped.csv":
            raise PermissionError(13, "Access is denied", str(path))
        unlink(path, **given)

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr("efficientnetv2.workflows.evaluate.report_folder", lambda *_: nullcontext())
    with pytest.raises(InputError, match=mentioning("skipped.csv", "Close it")):
        efficientnetv2.evaluate(tmp_path / model, class_folders, output=tmp_path / "rated", device="cpu", workers=0)
    assert (tmp_path / "rated/report.html").read_text(encoding="utf-8") != "before"
