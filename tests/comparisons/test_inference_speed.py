"""The benchmark of inference speed: arithmetic, and a run with a tiny model."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import in_turn, inference_speed, predict_files, record
from benchmarks.inference_speed import command_of, vs_openvino
from benchmarks.predict_files import drawn, files_ratios, files_vs_limits, photos_in, write_images
from PIL import Image
from tests.serving.model_files import write_model

import efficientnetv2 as ev2
from efficientnetv2.utils.benchmark import TimingStats


def test_file_limit_is_the_slower_of_engine_and_reading():
    per_image = {"files": [0.010, 0.020], "bare": [0.008, 0.008], "read": [0.001, 0.016]}
    found = files_ratios(per_image, {"files": [300.0, 330.0], "quarter": [300.0, 300.0]})
    assert found["predict_files_vs_limit"].median == pytest.approx(0.8)
    assert found["predict_files_vs_shared_limit"].median == pytest.approx((0.9 + 1.2) / 2)
    assert found["predict_files_memory"].median == pytest.approx(1.05)


def test_predictor_is_compared_with_bare_openvino(tmp_path, capsys):
    pytest.importorskip("openvino", reason="openvino is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    found = vs_openvino(ev2.load(write_model(tmp_path / "tiny.safetensors")), 2, 2)
    assert found.rounds == 2
    assert 0 < found.low <= found.median <= found.high
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "ours", "latency", "throughput",
    ]  # fmt: skip


def test_files_are_predicted_in_full_and_in_quarters(tmp_path, monkeypatch):
    counted = []

    def peak_mib(command, model, table, *options):
        assert command == "predict"
        files = Path(table).read_text().split()[1:]
        assert all(map(Path.is_file, map(Path, files)))
        counted.append(len(files))
        return 100.0 + len(files)

    monkeypatch.setattr(predict_files, "peak_mib", peak_mib)
    monkeypatch.setattr(predict_files, "bare_sides", lambda *_: {"latency": lambda: None, "throughput": lambda: None})
    network = ev2.load(write_model(tmp_path / "tiny.safetensors"))
    found = files_vs_limits(network, drawn(2), 8, 1)
    assert counted == [2, 8, 2]
    assert found["predict_files_memory"].median == pytest.approx(108 / 102)


def test_written_photos_equal_those_of_the_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    for name, color in (("a.jpg", "red"), ("b.JPEG", "blue")):
        Image.new("RGB", (30, 20), color).save(tmp_path / "photos" / name)
    write_images(tmp_path / "files", 3, photos_in(tmp_path / "photos", 5))
    files = [Image.open(file) for file in sorted((tmp_path / "files").iterdir())]
    assert [file.size for file in files] == [(500, 375)] * 3
    assert [int(np.asarray(file)[0, 0].argmax()) for file in files] == [0, 2, 0]


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ({}, "--only files --record"),
        ({"rounds": 2, "images": 100, "photos": Path("a")}, "--only files --rounds 2 --images 100 --photos FOLDER "
         "--record"),
    ],
)  # fmt: skip
def test_command_has_only_changed_options(options, command):
    given = Namespace(**({"rounds": 15, "images": 20_000, "photos": None} | options))
    assert command_of("files", given) == f"python -m benchmarks.inference_speed {command}"


@pytest.mark.parametrize(("paces", "is_steady"), [((10.0, 10.9), True), ((10.0, 11.1), False), ((11.1, 10.0), False)])
def test_unsteady_machine_speed_is_not_recorded(paces, is_steady, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    remaining = iter(paces)
    monkeypatch.setattr(in_turn, "pace", lambda: next(remaining))
    ratio = TimingStats.of([0.9, 1.0, 1.1])
    monkeypatch.setitem(inference_speed.PARTS, "b0", lambda options: {"predictor_b0_224_vs_openvino": ratio})
    monkeypatch.setattr(sys, "argv", ["inference_speed", "--only", "b0", "--rounds", "3", "--record"])
    assert inference_speed.main() == (0 if is_steady else 1)
    assert (tmp_path / "summary.json").exists() == is_steady
    if is_steady:
        claim = json.loads((tmp_path / "summary.json").read_text())["predictor_b0_224_vs_openvino"]
        assert (claim["value"], claim["n"]) == (1.0, 3)
        assert {"openvino", "timm"} <= set(claim["versions"])
