"""The report of an evaluation shows where the network looked."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.command_line import effnetv2
from tests.messages import mentions
from tests.rasters import write_raster

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.evaluation import evaluation_result, explain, report
from efficientnetv2.evaluation.evaluation_result import EvaluationResult
from efficientnetv2.evaluation.explain import explain_folds, explain_predictions
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.utils.errors import InputError


def test_the_report_has_galleries_with_maps_and_is_small(class_folders):
    torch.manual_seed(0)
    model = class_folders.parent / "model.safetensors"
    network = create("efficientnetv2_b0", num_classes=3)
    model_file.save(model, network, class_names=("blue", "green", "red"))
    done = effnetv2(
        "evaluate", model, class_folders, "--image-size", "64", "--device", "cpu", "--output", "seen",
        cwd=class_folders.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = class_folders.parent / "seen" / "report.html"
    text = page.read_text()
    assert mentions(text, "Grad-CAM")
    assert text.count('alt="Grad-CAM"') >= 16
    assert page.stat().st_size < 5_000_000
    told = json.loads((class_folders.parent / "seen" / "report.json").read_text())
    assert told["galleries"][-1]["title"] == "Least probable labels"
    assert len(told["galleries"][-1]["paths"]) == 8


@pytest.fixture
def wrong(tmp_path):
    """Two large pictures, each called what the other is."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (3000, 1500), "red").save(tmp_path / name)
    pd.DataFrame({"path": ["a.png", "b.png"], "label": ["oak", "elm"]}).to_csv(tmp_path / "two.csv", index=False)
    dataset = load_dataset(str(tmp_path / "two.csv"))
    return dataset, Predictions(np.arange(2), dataset.labels, torch.tensor([[9.0, 0.0], [0.0, 9.0]]))


def test_mistakes_are_kept_no_larger_than_the_page_needs(wrong, tmp_path, monkeypatch):
    dataset, answers = wrong
    kept = []
    monkeypatch.setattr(report.Report, "write", lambda self, folder: kept.extend(self.errors))
    EvaluationResult(answers, dataset, dataset.class_names, ReportMetadata("two", "val")).write(tmp_path)
    assert [one.thumbnail.size for one in kept] == [(320, 160)] * 2


def test_a_store_that_has_gone_leaves_a_report_without_pictures(wrong, tmp_path, monkeypatch):
    """It is asked once by each part of the report, for every request waits for all its tries."""
    dataset, answers = wrong
    asked = []

    def gone(sample):
        asked.append(sample)
        raise InputError("https://far.example does not answer")

    for part, reader in ((evaluation_result, "display_reader"), (explain, "eval_reader")):
        monkeypatch.setattr(part, reader, lambda dataset: SimpleNamespace(source=gone))
    (tmp_path / "out").mkdir()
    EvaluationResult(answers, dataset, dataset.class_names, ReportMetadata("two", "val")).write(tmp_path / "out")
    told = json.loads((tmp_path / "out/report.json").read_text())
    assert sorted(one["path"] for one in told["top_errors"]) == ["a.png", "b.png"]
    assert len(asked) == 1
    seen = explain_predictions(None, answers, dataset, dataset.class_names, Preprocessing(image_size=16))
    assert [len(one["paths"]) for one in seen[0].data["galleries"]] == [1, 1, 2, 2]
    assert len(asked) == 2


def test_pictures_that_only_gdal_opens_are_shown_as_they_were_answered(tmp_path, monkeypatch):
    """Three bands of 8 bits that are not called red, green and blue, to a network of ordinary pictures."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        pixels = np.full((3, 24, 24), 90, np.uint8)
        write_raster(tmp_path / "set" / name / "one.tif", pixels, photometric="MINISBLACK")
    dataset = load_dataset(tmp_path / "set")
    answers = Predictions(np.arange(2), dataset.labels, torch.tensor([[0.0, 9.0], [9.0, 0.0]]))
    network = create("efficientnetv2_b0", num_classes=2)
    (part,) = explain_predictions(network, answers, dataset, dataset.class_names, Preprocessing(image_size=32))
    shown = [each for _, pictures in part.values["galleries"] for each in pictures]
    assert shown
    assert all(each["address"] is not None for each in shown)
    kept = []
    monkeypatch.setattr(report.Report, "write", lambda self, folder: kept.extend(self.errors))
    EvaluationResult(answers, dataset, dataset.class_names, ReportMetadata("two", "val")).write(tmp_path)
    assert [one.thumbnail.size for one in kept] == [(24, 24)] * 2


def test_each_fold_is_shown_rasters_as_it_saw_them(tmp_path, monkeypatch):
    """All values are 100: two fifths of what becomes 255 by the rule of one fold, a fifth by that of the other."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        write_raster(tmp_path / "set" / name / "one.tif", np.full((3, 12, 12), 100, np.uint16))
    rules = [Bands((1, 2, 3), (0,) * 3, (high,) * 3, kinds=("uint16",)) for high in (250, 500)]
    folds = [SimpleNamespace(preprocessing=Preprocessing(image_size=8, bands=rule)) for rule in rules]
    dataset = replace(load_dataset(tmp_path / "set"), bands=rules[0])
    monkeypatch.setattr(explain, "supports_grad_cam", lambda network: False)
    monkeypatch.setattr(
        explain, "gallery_section", lambda *words, **_: [words[-1][place].image[0, 0].tolist() for place in range(2)]
    )
    answers = Predictions(np.arange(2), dataset.labels, torch.tensor([[9.0, 0.0], [0.0, 9.0]]))
    (found,) = explain_folds(folds.__getitem__, np.array([0, 1]), answers, dataset)
    assert found == [[102] * 3, [51] * 3]


def test_of_the_folds_networks_one_is_in_memory_at_a_time(class_folders, monkeypatch):
    """And of a fold that has answered none of the pictures shown, none at all."""
    alive, loaded = weakref.WeakSet(), []

    class Loaded:
        preprocessing = Preprocessing(image_size=8)

    def network_of(number):
        assert not alive
        network = Loaded()
        alive.add(network)
        loaded.append(number)
        return network

    monkeypatch.setattr(explain, "supports_grad_cam", lambda network: False)
    dataset = load_dataset(class_folders)
    rows = np.array([0, 20, 40])
    answers = Predictions(rows, dataset.labels[rows], torch.eye(3) * 9)
    explain_folds(network_of, np.array([0, 3, 1]), answers, dataset)
    assert loaded == [0, 1, 3]


def test_where_not_even_one_map_fits_into_memory_pictures_are_shown_without(wrong):
    """All figures are there by then: a run would never come to its report."""
    dataset, answers = wrong
    network = create("efficientnetv2_b0", num_classes=2)

    def short(module, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    network.register_forward_pre_hook(short)
    (part,) = explain_predictions(network, answers, dataset, dataset.class_names, Preprocessing(image_size=32))
    shown = [each for _, pictures in part.values["galleries"] for each in pictures]
    assert shown
    assert all(each["address"] is not None and each["map"] is None for each in shown)


def test_only_what_is_shown_is_turned_into_probabilities(wrong, monkeypatch):
    """Some thirty pictures of maybe a million."""
    dataset, answers = wrong
    network = create("efficientnetv2_b0", num_classes=2)
    monkeypatch.setattr(Predictions, "probabilities", property(lambda self: pytest.fail("those of all")))
    seen = explain._examples(network, answers, dataset, Preprocessing(image_size=32), [1])
    assert seen[1].heat.shape == (32, 32)
