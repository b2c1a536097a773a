"""``evaluate`` loses no answers to what can be known before them, or to what is only looked up after them."""

from __future__ import annotations

import json
import os

import pytest
from tests.conftest import COLORS, paint
from tests.messages import mentioning, mentions

from efficientnetv2.cli.result_tables import ResultPrinter
from efficientnetv2.data import image_metadata
from efficientnetv2.data.config import DataConfig
from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import evaluate
from efficientnetv2.workflows.batch_predict import InferenceOptions
from efficientnetv2.workflows.evaluate import evaluate_and_report
from efficientnetv2.workflows.evaluate_options import EvaluateOptions

MACHINE = InferenceOptions("cpu", 0)


@pytest.fixture
def pictures(tmp_path):
    for name, color in COLORS.items():
        for number in range(3):
            paint(tmp_path / "pictures" / name / f"{number}.jpg", color, number)
    return DataConfig(str(tmp_path / "pictures"))


def saved(tmp_path, name, px):
    file = tmp_path / "model.safetensors"
    network = create(name, num_classes=len(COLORS))
    model_file.save(
        file, network, preprocessing=Preprocessing(image_size=px), class_names=sorted(COLORS), recipe={}, metrics={}
    )
    return str(file)


def printing(screen):
    return ResultPrinter(screen, as_json=False)


def test_a_size_that_the_network_cannot_take_is_refused_before_any_answer(pictures, tmp_path, monkeypatch):
    pytest.importorskip("timm")
    model = saved(tmp_path, "timm:vit_tiny_patch16_224", 224)
    monkeypatch.setattr(evaluate, "run_prediction", lambda *_, **__: pytest.fail("it has answered"))
    for words in ({"sizes": "224,256"}, {"image_size": 256}):
        with pytest.raises(InputError, match=mentioning("3", "256")):
            evaluate_and_report(model, pictures, EvaluateOptions(**words), MACHINE)


def test_a_store_that_is_gone_by_then_costs_no_report(pictures, tmp_path, monkeypatch, capsys, on_screen):
    """What trained the model is asked for after the answers; to shards of a URL it is not known without reading."""
    model = saved(tmp_path, "efficientnetv2_b0", 32)

    def gone(*_):
        raise InputError("https://store/0.tar: no answer")

    monkeypatch.setattr(evaluate, "train_overlap", gone)
    evaluate_and_report(model, pictures, EvaluateOptions(out=tmp_path / "out"), MACHINE, printing(on_screen))
    said = " ".join(capsys.readouterr().out.split())
    assert mentions(said, "https://store/0.tar")
    assert mentions(said, "not known")
    assert (tmp_path / "out/report.json").is_file()


def test_a_full_disk_costs_no_figure(pictures, tmp_path, monkeypatch, capsys, on_screen):
    model = saved(tmp_path, "efficientnetv2_b0", 32)

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        evaluate_and_report(model, pictures, EvaluateOptions(out=tmp_path / "out"), MACHINE, printing(on_screen))
    assert "top-1" in capsys.readouterr().out


def test_a_picture_that_cannot_be_read_costs_no_report_where_it_alone_was_cut_off(
    pictures, tmp_path, capsys, on_screen
):
    """Its size is not known, so that there are two; without it all others have one."""
    (tmp_path / "pictures/red/0.jpg").write_bytes(b"")
    model = saved(tmp_path, "efficientnetv2_b0", 32)
    options = EvaluateOptions(out=tmp_path / "out", slices="longer_side_px")
    evaluate_and_report(model, pictures, options, MACHINE, printing(on_screen))
    said = " ".join(capsys.readouterr().out.split())
    assert mentions(said, "longer_side_px")
    assert "slices" not in json.loads((tmp_path / "out/report.json").read_text())


def test_a_size_that_is_not_looked_up_is_refused_as_such(pictures, tmp_path, monkeypatch):
    """It is no column of DATA, and yet --help offers it."""
    monkeypatch.setattr(image_metadata, "MAX_MEASURED", 1)
    options = EvaluateOptions(slices="longer_side_px")
    with pytest.raises(InputError, match=mentioning("50,000")):
        evaluate_and_report(saved(tmp_path, "efficientnetv2_b0", 32), pictures, options, MACHINE)
