"""``predict`` and ``evaluate`` where images are missing, a device is not there, or several processes answer."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tests.command_line import effnetv2
from tests.conftest import COLORS, paint
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions
from tests.processes import effnetv2_together

from efficientnetv2 import create
from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv
from efficientnetv2.data.config import DataConfig, report_notes
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.models import model_file
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
    """Untrained, so its answers are nothing but repeatable; it remembers no images."""
    torch.manual_seed(0)
    network = EfficientNet(SMALL, num_classes=3)
    network.preprocessing = replace(network.preprocessing, image_size=32, crop_pct=1.0)
    model_file.save(tmp_path / MODEL, network, class_names=("blue", "green", "red"))
    return MODEL


@pytest.fixture
def shards(class_folders, tmp_path):
    """48 images in 5 shards, the second of which is missing with its 10."""
    write_shards(load_dataset(class_folders), tmp_path / "packed", PackOptions(shard_bytes=10**9, shard_images=10))
    (tmp_path / "packed/images-000001.tar").unlink()
    return "packed"


def test_pictures_of_a_kind_that_is_not_opened_are_named(model, tmp_path):
    for name in ("new/1.HEIC", "mixed/2.heic"):
        paint(tmp_path / "mixed/1.jpg", (9, 9, 9))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    words = ("predict", model, "--device", "cpu", "--workers", "0")
    mixed = effnetv2(*words, "mixed", cwd=tmp_path)
    assert mixed.returncode == 0, mixed.stderr
    assert "Skipped in mixed: 1 file .heic" in mixed.stdout
    for data, told in (("new", "new holds no images"), ("new/1.HEIC", "a supported image")):
        refused = effnetv2(*words, data, cwd=tmp_path)
        assert refused.returncode == 2
        assert told in refused.stderr
        assert "convert" in refused.stderr


@pytest.mark.parametrize(
    "out", ["out.parquet", "out.xlsx", "out.json", "out.csv.gz", "-", "out", "fifo.csv", "/dev/full"]
)
def test_predictions_go_into_a_csv_file_and_nowhere_else(out, model, class_folders, tmp_path):
    """Refused at once: a pipe was read to see whether a table is there, and Parquet held CSV."""
    os.mkfifo(tmp_path / "fifo.csv")
    done = effnetv2("predict", model, class_folders, "--device", "cpu", "--output", out, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert f"--output {out}" in done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"fifo.csv", class_folders.name, model}


def test_the_predictions_of_a_run_are_not_taken_for_labels(model, tmp_path):
    """Their column label would make every prediction right."""
    (tmp_path / "run").mkdir()
    for header in ("path,label,true_label,red", "path,label,probability,true_label,red"):
        (tmp_path / "run/predictions.csv").write_text(f"{header}\n")
        done = effnetv2("evaluate", model, "run/predictions.csv", "--device", "cpu", cwd=tmp_path)
        assert done.returncode == 2
        assert mentions(done.stderr, "run/predictions.csv")
    (tmp_path / "run/dataset.csv").touch()
    done = effnetv2("train", "run/predictions.csv", "--weights", "none", cwd=tmp_path)
    assert "run/dataset.csv" in done.stderr


def test_a_missing_shard_is_a_line_a_count_and_a_list(model, shards, tmp_path):
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


def test_of_many_unreadable_files_the_first_are_named_and_the_rest_counted(model, class_folders, tmp_path):
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


def test_of_many_damaged_shards_the_first_are_named(class_folders, tmp_path):
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
def test_pictures_none_of_which_can_be_read_are_refused(verb, model, class_folders, tmp_path):
    for file in class_folders.rglob("*.jpg"):
        file.write_bytes(b"")
    out = "out.csv" if verb == "predict" else "out"
    done = effnetv2(verb, model, class_folders, "--device", "cpu", "--output", out, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "none", "48")
    assert mentions(done.stderr, "blue/blue_00.jpg")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / out).exists()


def test_the_ranking_is_not_called_as_the_list_of_what_was_skipped(model, class_folders, tmp_path):
    done = effnetv2("predict", model, class_folders, "--rank", "predictions_skipped.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "--rank", "predictions_skipped.csv")
    assert "Give another one" in done.stderr


def test_a_report_does_not_take_the_list_of_shards(model, shards, tmp_path):
    """Packing has listed there what it left out, in the same form."""
    mine = tmp_path / shards / "skipped.csv"
    mine.write_text("path,reason\na.jpg,is empty (0 bytes)\n")
    done = effnetv2("evaluate", model, shards, "--device", "cpu", "--output", shards, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "--output", "shard")
    assert mine.exists()


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
@pytest.mark.parametrize("data", ["missing.jpg", "missing.csv", "missing/", "missing/a-{0..3}.tar", "missing.tar"])
def test_data_that_is_not_there_is_named_with_what_to_give(verb, data, model, tmp_path):
    done = effnetv2(verb, model, data, cwd=tmp_path)
    assert done.returncode == 2
    error, *hints = done.stderr.splitlines()
    assert data.rstrip("/") in error
    assert "does not exist" in error or mentions(error, "shards")
    assert any("Give a" in line for line in (error, *hints))


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_a_gpu_that_is_not_there_is_an_error_of_one_line(verb, model, class_folders, tmp_path):
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
def test_a_gpu_that_is_there_but_not_used_is_told(verb, model, class_folders, tmp_path, monkeypatch, capsys):
    """Else a set of a million images takes days that could be an hour, in silence."""
    monkeypatch.setattr(batch_predict, "device_note", lambda word, device: f"{device} computes, as {word} says.")
    model, source = str(tmp_path / model), DataConfig(str(class_folders))
    plain = InferenceOptions("cpu", 0)
    if verb == "predict":
        predict_and_write(model, source, PredictOptions(out=tmp_path / "out.csv"), plain)
    elif verb == "evaluate":
        evaluate_and_report(model, source, EvaluateOptions(), plain)
    else:
        pytest.importorskip("rasterio", reason="needs the extra geo")
        from tests.rasters import write_raster  # which needs it too

        from efficientnetv2.workflows.predict_map import MapOptions, predict_map

        scene = write_raster(tmp_path / "scene.tif", np.full((3, 64, 64), 90, np.uint8))
        predict_map(model, scene, MapOptions(device="cpu"), out=tmp_path / "map.tif")
    assert "cpu computes, as cpu says." in capsys.readouterr().out


def test_of_many_classes_the_most_frequent_are_counted_on_the_screen():
    """And always those that are left to a person, be they ever so few."""
    labels = [f"c{number:03d}" for number in range(1_000) for _ in range(1_000 - number)]
    told = _class_counts(pd.DataFrame({"predicted_label": [*labels, ""]}), None, "softmax")
    assert told.startswith("500,501 images: c000 1000, c001 999, ")
    assert told.endswith("c009 991, left to a person 1, 990 more classes")
    few = pd.DataFrame({"predicted_label": ["oak", "elm;oak"]})
    assert _class_counts(few, ";", "sigmoid") == "2 images: oak 2, elm 1"


def test_two_processes_answer_each_picture_once_with_one_voice(model, shards, tmp_path):
    alone = effnetv2("predict", model, shards, "--device", "cpu", "--output", "alone.csv", cwd=tmp_path)
    first, second = effnetv2_together(
        2, "predict", model, shards, "--device", "cpu", "--output", "both.csv", cwd=tmp_path
    )
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout == second.stderr == ""
    assert first.stdout == alone.stdout.replace("alone", "both")
    one, both = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("alone", "both"))
    pd.testing.assert_frame_equal(both, one, rtol=1e-4, atol=2e-6)

    words = ("evaluate", model, shards, "--device", "cpu", "--json")
    alone = effnetv2(*words, cwd=tmp_path)
    first, second = effnetv2_together(2, *words, cwd=tmp_path)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout == second.stderr == ""
    of_one, of_both = (json.loads(done.stdout) for done in (alone, first))
    for name in ("top1", "macro_f1", "num_images", "num_skipped", "confusion"):
        assert of_both[name] == of_one[name], name


def test_one_of_many_processes_says_what_all_refuse(model, class_folders, tmp_path):
    (class_folders / "green/green_05.jpg").write_bytes(b"")  # the second process's, for it is image 21
    words = ("predict", model, class_folders, "--device", "cpu")
    ended = effnetv2_together(2, *words, "--strict", cwd=tmp_path)
    assert sorted(one.returncode for one in ended) == [1, 2]
    messages = [line for one in ended for line in one.stderr.splitlines() if line.startswith("error:")]
    assert len(messages) == 1
    assert "green_05.jpg" in messages[0]
    assert not (tmp_path / "predictions.csv").exists()
    ended = effnetv2_together(2, *words[:2], "missing.jpg", cwd=tmp_path)
    assert sorted(one.returncode for one in ended) == [1, 2]
    assert sum("missing.jpg" in one.stderr for one in ended) == 1


def test_labels_whose_letters_are_encoded_otherwise_are_the_models_on_request(tmp_path):
    """A model of a Linux machine's folders, images of a Mac's."""
    paint(tmp_path / "pictures/He\u0302tre/one.jpg", (60, 190, 60))
    pictures, names = load_dataset(tmp_path / "pictures", for_training=False), ("H\u00eatre", "oak")
    with pytest.raises(InputError, match=mentioning("labels=casefold")):
        align_labels(pictures, names, MODEL, merge=False)
    assert align_labels(pictures, names, MODEL, merge=True).labels.tolist() == [0]


@pytest.mark.parametrize("names", [("A", "a", "oak"), ("a", "A", "oak"), ("a", "oak", "A")])
def test_of_classes_that_differ_by_case_a_label_is_the_one_it_is_called(names, tmp_path):
    """As of a model of letters: its own names go before what is spelled like them."""
    paint(tmp_path / "one/A/1.jpg", (60, 190, 60))
    paint(tmp_path / "one/OAK/2.jpg", (60, 190, 60))
    pictures = load_dataset(tmp_path / "one", for_training=False)
    found = align_labels(pictures, names, MODEL, merge=True)
    assert [names[label] for label in found.labels] == ["A", "oak"]
    more = ("\u00c4", "\u00e4", "oak")
    paint(tmp_path / "two/A\u0308/1.jpg", (60, 190, 60))
    pictures = load_dataset(tmp_path / "two", for_training=False)
    with pytest.raises(InputError, match=mentioning("'Ä'", "'ä'")):
        align_labels(pictures, more, MODEL, merge=True)


def network(temperature=4.0):
    torch.manual_seed(0)
    made = create("efficientnetv2_b0", num_classes=3).eval()
    made.class_names = tuple(sorted(COLORS))
    made.preprocessing = replace(made.preprocessing, image_size=32)
    made.calibration = None if temperature is None else Calibration(temperature, 60, "minival")
    return made


@pytest.mark.parametrize("changed", [{"tta": "d4"}, {"image_size": 48}])
def test_a_temperature_of_other_answers_is_left_out_and_that_is_said(changed):
    one, said = network(), logged_lines()
    remove_unfit_calibration(one, one.preprocessing)
    assert one.calibration is not None
    remove_unfit_calibration(one, replace(one.preprocessing, **changed))
    assert one.calibration is None
    [line] = said
    assert mentions(line, "32", "one")
    remove_unfit_calibration(one, replace(one.preprocessing, **changed))
    assert len(said) == 1, "there is none to leave out"


def test_of_networks_that_answer_together_each_leaves_its_own_out():
    together, said = Ensemble([network(), network(None)]), logged_lines()
    remove_unfit_calibration(together, replace(together.preprocessing, tta="d4"))
    assert member_calibrations(together) == (None, None)
    assert len(said) == 1


def test_predict_and_evaluate_with_other_views_answer_without_it(tmp_path):
    rows = []
    for number in range(9):
        name = sorted(COLORS)[number % 3]
        paint(tmp_path / f"{number}.jpg", COLORS[name], number, px=32)
        rows.append((f"{number}.jpg", name))
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(tmp_path / "all.csv", index=False)
    model_file.save(tmp_path / "warm.safetensors", network())
    model_file.save(tmp_path / "plain.safetensors", network(None))
    words = ("all.csv", "--workers", "0", "--device", "cpu")
    tables = []
    for model in ("warm", "plain"):
        asked = ("predict", f"{model}.safetensors", *words, "--tta", "d4", "--output", f"{model}.csv")
        done = effnetv2(*asked, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("Temperature: removed" in " ".join(done.stdout.split())) is (model == "warm")
        tables.append(pd.read_csv(tmp_path / f"{model}.csv"))
    pd.testing.assert_frame_equal(*tables)
    done = effnetv2("evaluate", "warm.safetensors", *words, "--image-size", "48", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(" ".join(done.stdout.split()), "48", "one")
