"""The comparison of views of land cover: crops, means of predictions, and a complete small run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmarks import land_cover_views as views
from benchmarks import record
from PIL import Image
from tests.command_line import NETWORK
from tests.conftest import COLORS, paint
from tests.messages import mentions
from tests.recipes import with_overrides

from efficientnetv2 import create
from efficientnetv2.architectures import registry
from efficientnetv2.models import model_file
from efficientnetv2.training.recipes import get_recipe


def test_every_view_is_a_valid_recipe():
    for view in views.VIEWS:
        with_overrides(get_recipe("finetune"), [*views.settings_of(view)])


def test_center_is_cut_from_the_middle(tmp_path):
    """A white square in the middle half of each side fills the crop of that half."""
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[10:30, 10:30] = 255
    Image.fromarray(pixels).save(tmp_path / "one.png")
    pd.DataFrame({"path": ["one.png"], "label": ["a"]}).to_csv(tmp_path / "all.csv", index=False)
    table = views.crop_center(tmp_path / "all.csv", 0.5, tmp_path / "cut")
    with Image.open(table.parent / "one.png") as image:
        assert image.size == (20, 20)
        assert np.asarray(image).min() == 255
    assert pd.read_csv(table)["label"].tolist() == ["a"]


def test_mean_of_views_is_of_their_probabilities():
    """Each view alone is wrong on one of four images; the mean is right on all: macro-F1 1."""
    first = {"paths": list("abcd"), "labels": [0, 0, 1, 1], "clusters": [0, 1, 0, 1], "classes": ["x", "y"]}
    one = first | {"probabilities": [[0.4, 0.6], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]]}
    other = first | {"probabilities": [[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.1, 0.9]]}
    assert [views.mean_metrics([view])["top1"]["value"] for view in (one, other)] == [0.75, 0.75]
    both = views.mean_metrics([one, other])
    assert both["macro_f1"]["value"] == 1
    assert both["macro_f1"]["interval"][0] < 1
    with pytest.raises(AssertionError, match="paths"):
        views.mean_metrics([one, other | {"paths": list("abdc")}])


@pytest.mark.slow
def test_complete_small_run_is_recorded_and_only_read_again(tmp_path, monkeypatch, capsys):
    for module in (views, record):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "results/summary.json")
    monkeypatch.setattr(views, "FOLDS", 2)
    monkeypatch.setattr(views, "MODEL", NETWORK)
    monkeypatch.setattr(views, "EPOCHS", 1)
    monkeypatch.setattr(views, "ALWAYS", ("augment.flip=d4", "tta=none", "batch_size=8", "progressive.stages=1"))
    monkeypatch.setattr(views, "VIEWS", {"whole": (1.0, 32, 32), "center": (0.5, 32, 32)})
    rows = []
    for number in range(24):
        name = list(COLORS)[number % 3]
        paint(tmp_path / "images" / f"{number}.jpg", COLORS[name], number)
        rows.append((f"{number}.jpg", name, number % 12 + 0.5, 3 * (number % 12) + 0.5))
    table = tmp_path / "images/all.csv"
    pd.DataFrame(rows, columns=["path", "label", "latitude", "longitude"]).to_csv(table, index=False)
    model = create(registry.read_architecture(Path(NETWORK)), num_classes=5)
    model_file.save(tmp_path / "weights.safetensors", model, class_names=list("abcde"))

    def run(*more: str) -> str:
        args = [table, tmp_path / "weights.safetensors", "--output", tmp_path / "out", *more]
        monkeypatch.setattr(sys, "argv", ["land_cover_views", *map(str, args)])
        views.main()
        return capsys.readouterr().out

    printed = run()
    assert mentions(printed, "whole + center", "macro_f1", "top1")
    saved = {view: record.read(tmp_path / f"results/land_cover_views/{view}.json") for view in views.VIEWS}
    assert saved["whole"]["paths"] == saved["center"]["paths"] == sorted(path for path, *_ in rows)
    labels = {path: name for path, name, *_ in rows}
    whole = saved["whole"]
    assert [whole["classes"][label] for label in whole["labels"]] == [labels[path] for path in whole["paths"]]
    assert whole["probabilities"] != saved["center"]["probabilities"]
    monkeypatch.setattr(views, "run_crossval", None)  # fails if called
    assert printed.endswith(run("--record"))
    summary = record.read(tmp_path / "results/summary.json")
    assert set(summary) == {f"land_cover_{name}_spatial_two_views" for name in ("macro_f1", "top1")}
    with pytest.raises(SystemExit):
        run("--record", "--only", "whole")
    monkeypatch.setattr(views, "EPOCHS", 2)
    with pytest.raises(SystemExit, match="another settings"):
        run()
