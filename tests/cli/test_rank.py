"""``effnetv2 predict --rank``: a table and a sheet of what to label next."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.command_line import effnetv2
from tests.messages import mentioning, mentions

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.inference.predict import Predictions, Runtime
from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import active_learning


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    network = create("efficientnetv2_b0", num_classes=3)
    model_file.save(tmp_path / "model.safetensors", network, class_names=("red", "green", "blue"))
    return tmp_path / "model.safetensors"


def test_the_table_ranks_every_picture_once_and_the_sheet_shows_the_first(class_folders, model):
    (class_folders / "red" / "red_00.jpg").write_bytes(b"")
    folder = model.parent
    done = effnetv2("predict", model, class_folders, "--rank", "next.csv", "--device", "cpu", cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "next.csv", "label")
    table = pd.read_csv(folder / "next.csv")
    predicted = pd.read_csv(folder / "predictions.csv").set_index("path")
    assert table["rank"].tolist() == list(range(1, 48))
    assert sorted(table["path"]) == sorted(predicted.index)
    assert table["predicted"].tolist() == predicted.loc[table["path"], "predicted_label"].tolist()
    with pytest.raises(InputError, match=mentioning("next.csv", "label")):
        load_dataset(str(folder / "next.csv"))  # what it is taken for is not what it is
    page = (folder / "next.html").read_text().replace("<wbr>", "")  # where a long name may break
    assert page.count("data:image/jpeg") == 47
    first, last = page.index(table["path"].iloc[0]), page.index(table["path"].iloc[-1])
    assert first < last
    assert not re.search(r"(src|href)=\"(?!data:)", page)


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        ("next.txt", (".csv",)),
        ("nowhere/next.csv", ("there is no folder nowhere",)),
        ("predictions.csv", ("--output",)),
    ],
)
def test_places_that_will_not_do_are_refused_before_anything_is_answered(class_folders, model, rank, words):
    done = effnetv2("predict", model, class_folders, "--rank", rank, cwd=model.parent)
    assert done.returncode == 2
    assert mentions(re.sub(r"\s+", " ", done.stderr), *words)
    assert not (model.parent / "predictions.csv").exists()


def test_pictures_are_kept_no_larger_than_the_sheet_needs(model, tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (3000, 1500), "red").save(folder / name)
    asked = SimpleNamespace(network=model_file.load(model), dataset=load_dataset(str(folder), require_labels=False))
    answers = Predictions(np.arange(2), asked.dataset.labels, torch.eye(3)[:2])
    kept = []
    monkeypatch.setattr(active_learning.thumbnails, "encode_thumbnail", lambda image, **_: kept.append(image))
    file = tmp_path / "next.csv"
    active_learning.write_ranking(file, asked, answers, Runtime())
    assert [one.size for one in kept] == [(320, 160)] * 2


@pytest.mark.usefixtures("on_screen")
def test_of_a_table_that_is_labelled_in_part_the_rest_is_ranked(class_folders, model, capsys):
    """The image that is labeled in the first row is no longer asked for; nor are all, once all are labeled."""
    rows = [(path, Path(path).parent.name) for path in load_dataset(str(class_folders)).paths[:8]]
    device, said = torch.device("cpu"), {}
    for name, labeled in (("some", 3), ("all", 8), ("none", 0)):
        file = class_folders / f"{name}.csv"
        table = pd.DataFrame(rows, columns=["path", "label"])
        table["label"] = table["label"].where(table.index < labeled)
        table.to_csv(file, index=False)
        dataset = load_dataset(str(file), require_labels=False)
        asked = SimpleNamespace(network=model_file.load(model), dataset=dataset)
        answers = Predictions(np.arange(1, 8), dataset.labels[1:], torch.randn(7, 3))
        place = model.parent / f"{name}_ranked.csv"
        active_learning.write_ranking(place, asked, answers, Runtime(device))
        said[name] = " ".join(capsys.readouterr().out.split())
        ranked = pd.read_csv(place)["path"]
        assert sorted(ranked) == sorted(table["path"][3 if name == "some" else 1 :])
    assert mentions(said["some"], "2", "label")
    assert "left out" not in said["all"] + said["none"]


def test_labels_of_a_column_called_otherwise_are_known_too(class_folders, model):
    """Else a table that has trained as --label-column species has the labeled ranked among the others."""
    paths = load_dataset(str(class_folders)).paths[:6]
    species = ["wren", "", "robin", "", "", "wren;robin"]
    pd.DataFrame({"path": paths, "species": species}).to_csv(class_folders / "birds.csv", index=False)
    asked = ("predict", model, class_folders / "birds.csv", "--rank", "next.csv", "--device", "cpu")
    done = effnetv2(*asked, "--label-column", "species", cwd=model.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    assert mentions(re.sub(r"\s+", " ", done.stdout), "3", "with a label")
    ranked = pd.read_csv(model.parent / "next.csv")["path"]
    assert sorted(ranked) == sorted(paths[row] for row in (1, 3, 4))
    assert len(pd.read_csv(model.parent / "predictions.csv")) == 6, "answered are all"
