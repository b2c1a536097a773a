"""``effnetv2 predict --rank``: a table and a page with the images to label next."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.command_line import run_ok, run_refused
from tests.messages import mentioning, mentions

import efficientnetv2
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.inference.predict import Predictions, Runtime
from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import active_learning


@pytest.fixture
def model_path(tmp_path):
    torch.manual_seed(0)
    model = create("efficientnetv2_b0", num_classes=3)
    model_file.save(tmp_path / "model.safetensors", model, class_names=("red", "green", "blue"))
    return tmp_path / "model.safetensors"


def test_ranking_lists_each_image_once(class_folders, model_path):
    (class_folders / "red" / "red_00.jpg").write_bytes(b"")
    folder = model_path.parent
    done = run_ok(
        "predict", model_path, class_folders, "--rank", "next.csv", "--device", "cpu", cwd=folder, timeout=120
    )
    assert mentions(done.stdout, "next.csv", "label")
    table = pd.read_csv(folder / "next.csv")
    predicted = pd.read_csv(folder / "predictions.csv").set_index("path")
    assert table["rank"].tolist() == list(range(1, 48))
    assert sorted(table["path"]) == sorted(predicted.index)
    assert table["predicted"].tolist() == predicted.loc[table["path"], "predicted_label"].tolist()
    with pytest.raises(InputError, match=mentioning("next.csv", "label")):
        load_dataset(str(folder / "next.csv"))  # a ranking is not a labeled dataset
    page = (folder / "next.html").read_text().replace("<wbr>", "")  # marks possible line breaks in long names
    assert page.count("data:image/jpeg") == 47
    first, last = page.index(table["path"].iloc[0]), page.index(table["path"].iloc[-1])
    assert first < last
    assert not re.search(r"(src|href)=\"(?!data:)", page)


@pytest.mark.parametrize(
    ("rank", "facts"),
    [
        ("next.txt", (".csv",)),
        ("nowhere/next.csv", ("there is no folder nowhere",)),
        ("predictions.csv", ("--output",)),
    ],
)
def test_invalid_ranking_path_is_refused_before_predicting(class_folders, model_path, rank, facts):
    done = run_refused("predict", model_path, class_folders, "--rank", rank, cwd=model_path.parent)
    assert mentions(re.sub(r"\s+", " ", done.stderr), *facts)
    assert not (model_path.parent / "predictions.csv").exists()


def test_thumbnails_are_shrunk_before_encoding(model_path, tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (3000, 1500), "red").save(folder / name)
    prediction_run = SimpleNamespace(
        network=model_file.load(model_path), dataset=load_dataset(str(folder), require_labels=False)
    )
    predictions = Predictions(np.arange(2), prediction_run.dataset.labels, torch.eye(3)[:2])
    encoded = []
    monkeypatch.setattr(active_learning.thumbnails, "encode_thumbnail", lambda image, **_: encoded.append(image))
    file = tmp_path / "next.csv"
    active_learning.write_ranking(file, prediction_run, predictions, Runtime())
    assert [one.size for one in encoded] == [(320, 160)] * 2


@pytest.mark.usefixtures("on_screen")
def test_only_unlabeled_images_are_ranked(class_folders, model_path, capsys):
    """Labeled images are left out, unless all images are labeled."""
    rows = [(path, Path(path).parent.name) for path in load_dataset(str(class_folders)).paths[:8]]
    device, output = torch.device("cpu"), {}
    for name, labeled in (("some", 3), ("all", 8), ("none", 0)):
        file = class_folders / f"{name}.csv"
        table = pd.DataFrame(rows, columns=["path", "label"])
        table["label"] = table["label"].where(table.index < labeled)
        table.to_csv(file, index=False)
        dataset = load_dataset(str(file), require_labels=False)
        prediction_run = SimpleNamespace(network=model_file.load(model_path), dataset=dataset)
        predictions = Predictions(np.arange(1, 8), dataset.labels[1:], torch.randn(7, 3))
        file_ranked = model_path.parent / f"{name}_ranked.csv"
        active_learning.write_ranking(file_ranked, prediction_run, predictions, Runtime(device))
        output[name] = " ".join(capsys.readouterr().out.split())
        ranked = pd.read_csv(file_ranked)["path"]
        assert sorted(ranked) == sorted(table["path"][3 if name == "some" else 1 :])
    assert mentions(output["some"], "2", "label")
    prediction_run.dataset = load_dataset(str(class_folders / "some.csv"), require_labels=False)
    unread = Predictions(np.arange(3), prediction_run.dataset.labels[:3], torch.randn(3, 3))
    with pytest.raises(InputError, match=mentioning("rank", "5 images without a label")):
        active_learning.write_ranking(file_ranked, prediction_run, unread, Runtime(device))
    assert "left out" not in output["all"] + output["none"]


def test_label_column_option_applies_to_the_ranking(class_folders, model_path):
    """Otherwise labeled images of a table with --label-column species would be ranked."""
    paths = load_dataset(str(class_folders)).paths[:6]
    species = ["wren", "", "robin", "", "", "wren;robin"]
    pd.DataFrame({"path": paths, "species": species}).to_csv(class_folders / "birds.csv", index=False)
    args = ("predict", model_path, class_folders / "birds.csv", "--rank", "next.csv", "--device", "cpu")
    done = run_ok(*args, "--label-column", "species", cwd=model_path.parent, timeout=120)
    assert mentions(re.sub(r"\s+", " ", done.stdout), "3", "with a label")
    ranked = pd.read_csv(model_path.parent / "next.csv")["path"]
    assert sorted(ranked) == sorted(paths[row] for row in (1, 3, 4))
    assert len(pd.read_csv(model_path.parent / "predictions.csv")) == 6, "all images are predicted"


def test_ranking_that_is_open_elsewhere_gets_another_name(class_folders, model_path, tmp_path, monkeypatch):
    """Excel locks it while a user labels the images."""
    file = tmp_path / "next.csv"
    efficientnetv2.predict(model_path, class_folders, rank=file, device="cpu", workers=0)
    real = os.replace

    def replace(source, target):
        if Path(target) == file:
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(InputError, match=mentioning("next_2.csv", "Close it")):
        efficientnetv2.predict(model_path, class_folders, rank=file, device="cpu", workers=0)
    assert len(pd.read_csv(tmp_path / "next_2.csv")) == 48


def test_paths_of_a_ranking_of_shards_are_found_next_to_their_table(class_folders, model_path, tmp_path):
    """A table in another folder names images in shards, as the dataset.csv of a run does."""
    (tmp_path / "lists").mkdir()
    write_shards(load_dataset(class_folders), tmp_path / "shards", PackOptions(shard_bytes=10**9))
    packed = load_dataset(tmp_path / "shards")
    table = pd.DataFrame({"path": [f"../shards/{path}" for path in packed.paths[:6]]})
    table.to_csv(tmp_path / "lists/unlabeled.csv", index=False)
    dataset = load_dataset(str(tmp_path / "lists/unlabeled.csv"), require_labels=False)
    run = SimpleNamespace(network=model_file.load(model_path), dataset=dataset)
    predictions = Predictions(np.arange(6), dataset.labels, torch.randn(6, 3))
    active_learning.write_ranking(tmp_path / "lists/next.csv", run, predictions, Runtime(torch.device("cpu")))
    ranked = pd.read_csv(tmp_path / "lists/next.csv")
    assert sorted(ranked["path"]) == sorted(table["path"])
    ranked.assign(label=["a", "b"] * 3).to_csv(tmp_path / "lists/labeled.csv", index=False)
    assert len(load_dataset(tmp_path / "lists/labeled.csv")) == 6


def test_ranked_images_have_their_own_predictions(class_folders, model_path):
    """Three labeled images come first, and are left out."""
    paths = load_dataset(str(class_folders)).paths[:8]
    table = pd.DataFrame({"path": paths, "label": ["blue"] * 3 + [None] * 5})
    table.to_csv(class_folders / "some.csv", index=False)
    dataset = load_dataset(str(class_folders / "some.csv"), require_labels=False)
    run = SimpleNamespace(network=model_file.load(model_path), dataset=dataset)
    predictions = Predictions(np.arange(8), dataset.labels, 9 * torch.eye(3)[[0, 0, 0, 1, 2, 0, 1, 2]])
    file = model_path.parent / "next.csv"
    active_learning.write_ranking(file, run, predictions, Runtime(torch.device("cpu")))
    predicted = pd.read_csv(file).set_index("path")["predicted"]
    assert predicted.to_dict() == dict(zip(paths[3:], ["green", "blue", "red", "green", "blue"], strict=True))
