"""The report of an evaluation shows where the network looked."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tests.command_line import effnetv2

from efficientnetv2.commands.outcome import Outcome
from efficientnetv2.data.manifest import read
from efficientnetv2.evaluation import report
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models import modelfile
from efficientnetv2.models.create import create


def test_the_report_has_galleries_with_maps_and_is_small(class_folders):
    torch.manual_seed(0)
    model = class_folders.parent / "model.safetensors"
    network = create("efficientnetv2_b0", num_classes=3)
    modelfile.save(model, network, class_names=("blue", "green", "red"))
    done = effnetv2(
        "evaluate", model, class_folders, "--image-px", "64", "--device", "cpu", "--out", "seen",
        cwd=class_folders.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = class_folders.parent / "seen" / "report.html"
    text = page.read_text()
    assert "Where it looks" in text
    assert text.count("what spoke for it") >= 16
    assert page.stat().st_size < 5_000_000
    told = json.loads((class_folders.parent / "seen" / "report.json").read_text())
    assert told["galleries"][-1]["title"].startswith("The most surprising")
    assert len(told["galleries"][-1]["paths"]) == 8


def test_mistakes_are_kept_no_larger_than_the_page_needs(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (3000, 1500), "red").save(tmp_path / name)
    pd.DataFrame({"path": ["a.png", "b.png"], "label": ["oak", "elm"]}).to_csv(
        tmp_path / "two.csv", index=False
    )
    manifest = read(str(tmp_path / "two.csv"))
    wrong = Predictions(np.arange(2), manifest.labels, torch.tensor([[9.0, 0.0], [0.0, 9.0]]))
    kept = []
    monkeypatch.setattr(report, "write", lambda folder, *, misjudged, **_: kept.extend(misjudged))
    Outcome(wrong, manifest, manifest.class_names, report.Facts("two", "val")).write(tmp_path)
    assert [one.thumbnail.size for one in kept] == [(320, 160)] * 2
