"""The bundled weights: files that ``--ship`` writes, and claims that ``--finetune`` records."""

from __future__ import annotations

import hashlib
import json
import os
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks import record, starter
from safetensors.torch import load_file

from efficientnetv2 import Preprocessing, create
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.evaluation.predictions import save_predictions
from efficientnetv2.models import model_file


@pytest.fixture
def summary(tmp_path, monkeypatch):
    """The recorded claims, in a temporary summary."""
    monkeypatch.setattr(starter, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    return lambda: json.loads((tmp_path / "summary.json").read_text())


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["starter", *map(str, words)])
    starter.main()


def test_run_is_shipped_in_half_precision_with_its_record(tmp_path, summary, monkeypatch, class_folders, capsys):
    shipped, run = tmp_path / "shipped.safetensors", tmp_path / "run"
    monkeypatch.setattr(starter, "SHIPPED", shipped)
    dataset = load_dataset(str(class_folders))
    run.mkdir()
    dataset.with_split(np.where(np.arange(len(dataset)) % 2, "train", "val").astype(object)).to_csv(run / "dataset.csv")
    model = create("efficientnetv2_b0", num_classes=3)
    preprocessing = Preprocessing(image_size=32)
    model_file.save(run / model_file.NAME, model, preprocessing=preprocessing, class_names=dataset.class_names)
    report = {"top1": 0.75, "intervals": {"top1": [0.5, 0.9]}, "command": "effnetv2 train starter.csv"}
    (run / "report.json").write_text(json.dumps(report))
    (run / "log.txt").write_text(f"reading {class_folders}/a.jpg")
    call(monkeypatch, "--ship", run)
    assert {one.dtype for one in load_file(shipped).values() if one.ndim > 1} == {torch.float16}
    claim = summary()["starter_top1"]
    assert (claim["value"], claim["low"], claim["high"]) == (0.75, 0.5, 0.9)
    assert claim["command"] == report["command"]
    assert str(tmp_path) not in (tmp_path / "starter/log.txt").read_text()
    printed = capsys.readouterr().out
    assert f"{len(dataset) // 2} held-out images: 0.7500 as trained" in printed
    assert hashlib.sha256(shipped.read_bytes()).hexdigest() in printed


def test_finetuning_records_bundled_weights_minus_scratch(tmp_path, summary, monkeypatch):
    """In parallel, each on half of the processors. Bundled weights have all 4 images right, scratch 2."""
    calls = {}

    def train(task, folder, checkout, cores):
        calls[task.start] = (task.data, task.test, task.minutes, checkout, cores)
        predicted = list("abab") if task.start == str(starter.SHIPPED) else list("bbbb")
        table = {"path": list("1234"), "predicted_label": predicted, "true_label": list("abab")}
        save_predictions(folder / "test", pd.DataFrame(table))
        return {"test_top1": 0.5, "hardware": "a machine", "versions": {"torch": "of the run"}}

    monkeypatch.setattr(starter, "train", train)
    monkeypatch.setattr(starter, "SETS", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    words = ["--finetune", "tiny=TRAIN,TEST", "--minutes", 2, "--output", tmp_path / "out"]
    call(monkeypatch, *words)
    assert not (tmp_path / "summary.json").exists()
    call(monkeypatch, *words, "--record")
    assert calls == {
        str(starter.SHIPPED): ("TRAIN", "TEST", 2.0, None, {0, 1}), "none": ("TRAIN", "TEST", 2.0, None, {2, 3}),
    }  # fmt: skip
    claim = summary()["starter_tiny_minus_scratch_top1"]
    assert (claim["value"], claim["n"], claim["unit"]) == (50, 4, "points")
    assert claim["low"] <= 50 <= claim["high"]
    assert (claim["hardware"], claim["versions"]["torch"]) == ("a machine", "of the run")
    assert claim["command"] == "python -m benchmarks.starter --finetune tiny=TRAIN,TEST --minutes 2 --record"
