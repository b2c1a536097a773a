"""``evaluate`` checks before predicting, and keeps its metrics when a later step fails."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from tests.conftest import COLORS, paint
from tests.messages import mentioning, mentions

from efficientnetv2.cli.result_tables import ResultPrinter
from efficientnetv2.data import image_metadata
from efficientnetv2.data.config import DataConfig
from efficientnetv2.evaluation import report
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.calibration import fit_temperature
from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.seen_images import TrainOverlap
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import evaluate
from efficientnetv2.workflows.batch_predict import InferenceOptions
from efficientnetv2.workflows.evaluate import evaluate_and_report
from efficientnetv2.workflows.evaluate_options import EvaluateOptions

MACHINE = InferenceOptions("cpu", 0)


@pytest.fixture
def images(tmp_path):
    for name, color in COLORS.items():
        for number in range(3):
            paint(tmp_path / "pictures" / name / f"{number}.jpg", color, number)
    return DataConfig(str(tmp_path / "pictures"))


def save_model(tmp_path, name, px):
    file = tmp_path / "model.safetensors"
    model = create(name, num_classes=len(COLORS))
    model_file.save(
        file, model, preprocessing=Preprocessing(image_size=px), class_names=sorted(COLORS), recipe={}, metrics={}
    )
    return str(file)


def text_printer(screen):
    return ResultPrinter(screen, as_json=False)


def test_unsupported_image_size_is_refused_before_predicting(images, tmp_path, monkeypatch):
    pytest.importorskip("timm")
    model = save_model(tmp_path, "timm:vit_tiny_patch16_224", 224)
    monkeypatch.setattr(evaluate, "run_prediction", lambda *_, **__: pytest.fail("images were predicted"))
    for options in ({"sizes": "224,256"}, {"image_size": 256}):
        with pytest.raises(InputError, match=mentioning("3", "256")):
            evaluate_and_report(model, images, EvaluateOptions(**options), MACHINE)


def test_unavailable_training_data_does_not_prevent_the_report(images, tmp_path, monkeypatch, capsys, on_screen):
    """The overlap with the training images is read after predicting; for shards of a URL this needs a request."""
    model = save_model(tmp_path, "efficientnetv2_b0", 32)

    def fail(*_):
        raise InputError("https://store/0.tar: no response")

    monkeypatch.setattr(evaluate, "train_overlap", fail)
    evaluate_and_report(model, images, EvaluateOptions(out=tmp_path / "out"), MACHINE, text_printer(on_screen))
    output = " ".join(capsys.readouterr().out.split())
    assert mentions(output, "https://store/0.tar")
    assert mentions(output, "not known")
    assert (tmp_path / "out/report.json").is_file()


def test_metrics_are_printed_despite_a_full_disk(images, tmp_path, monkeypatch, capsys, on_screen):
    model = save_model(tmp_path, "efficientnetv2_b0", 32)

    def fail_to_replace(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail_to_replace)
    with pytest.raises(InputError, match="No space left on device"):
        evaluate_and_report(model, images, EvaluateOptions(out=tmp_path / "out"), MACHINE, text_printer(on_screen))
    assert "top-1" in capsys.readouterr().out


def test_stopped_evaluation_leaves_no_files_of_an_earlier_one(images, tmp_path, monkeypatch, on_screen):
    model, options = save_model(tmp_path, "efficientnetv2_b0", 32), EvaluateOptions(out=tmp_path / "out")
    evaluate_and_report(model, images, options, MACHINE, text_printer(on_screen))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report.Report, "to_html", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_and_report(model, images, options, MACHINE, text_printer(on_screen))
    assert not (tmp_path / "out/predictions.csv").exists()
    assert not (tmp_path / "out/report.html").exists()


def test_unreadable_image_is_not_a_slice(images, tmp_path, capsys, on_screen):
    """Its unknown size would be a second slice; the other images have one size."""
    (tmp_path / "pictures/red/0.jpg").write_bytes(b"")
    model = save_model(tmp_path, "efficientnetv2_b0", 32)
    options = EvaluateOptions(out=tmp_path / "out", slices="longer_side_px")
    evaluate_and_report(model, images, options, MACHINE, text_printer(on_screen))
    output = " ".join(capsys.readouterr().out.split())
    assert mentions(output, "longer_side_px")
    assert "slices" not in json.loads((tmp_path / "out/report.json").read_text())


def test_size_slices_of_many_images_are_refused(images, tmp_path, monkeypatch):
    """The column is not in DATA, but ``--help`` documents it."""
    monkeypatch.setattr(image_metadata, "MAX_MEASURED", 1)
    options = EvaluateOptions(slices="longer_side_px")
    with pytest.raises(InputError, match=mentioning("50,000")):
        evaluate_and_report(save_model(tmp_path, "efficientnetv2_b0", 32), images, options, MACHINE)


def test_new_temperature_includes_that_of_the_model(tmp_path):
    network, rng = model_file.load(save_model(tmp_path, "efficientnetv2_b0", 32)), np.random.default_rng(0)
    network.calibration = Calibration(2.0, 60, "minival")
    labels, logits = rng.integers(0, 3, 40), torch.from_numpy(rng.normal(size=(40, 3)).astype(np.float32))
    logits[torch.arange(40), torch.from_numpy(labels)] += 1
    found = Predictions(np.arange(40), labels, logits)
    overlap = TrainOverlap(0, exact=True, num_images=40, unseen=np.arange(40))
    evaluate._write_calibrated(tmp_path / "new.safetensors", network, found, overlap, "test")
    new = model_file.load(tmp_path / "new.safetensors").calibration
    assert new.temperature == pytest.approx(2 * fit_temperature(labels, logits.numpy()))
