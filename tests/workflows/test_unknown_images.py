"""The table of ``predict`` flags images that resemble no held-out image."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.inference.test_predictor import tiny_network
from tests.workflows.test_embeddings import CPU, green, images

import efficientnetv2 as ev2
from efficientnetv2.models.unknown import UnknownDetector
from efficientnetv2.workflows.batch_predict import PredictionCheckpoint

__all__ = ["images"]  # a fixture


@pytest.fixture
def network():
    return tiny_network()


@pytest.fixture
def model(network, images, tmp_path):
    """A model with an unknown detector fitted to green images."""
    rng = np.random.default_rng(1)
    network.unknown = UnknownDetector.fit(ev2.Predictor(network).embed([green(rng) for _ in range(60)]), "val")
    ev2.save(tmp_path / "model.safetensors", network)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_table_flags_unknown_images_and_can_be_replaced(engine, model, images, tmp_path):
    if engine != "torch":
        pytest.importorskip(engine)
    Image.new("RGB", (16, 16), (0, 0, 255)).save(images / "far.png")
    for _ in range(2):
        table = ev2.predict(model, images, output=tmp_path / "out.csv", engine=engine, **CPU).set_index("path")
    written = pd.read_csv(tmp_path / "out.csv").set_index("path")
    pd.testing.assert_frame_equal(written, table, check_dtype=False)
    assert list(table)[:4] == ["predicted_label", "probability", "unknown_score", "is_unknown"]
    flagged = {path[-7:] for path in table.index[table["is_unknown"]]}
    assert "far.png" in flagged
    assert len(flagged) <= 3
    expected = ev2.Predictor(model)(sorted(images.iterdir()))
    assert table["unknown_score"].tolist() == pytest.approx([one.unknown_score for one in expected], abs=1e-5)


def test_scores_are_kept_after_an_interruption(model, images, tmp_path, monkeypatch):
    expected = ev2.predict(model, images, **CPU)
    add = PredictionCheckpoint.add

    def stopped(checkpoint, rows, outputs):
        add(checkpoint, rows[:5], outputs[:5])
        raise KeyboardInterrupt

    monkeypatch.setattr(PredictionCheckpoint, "add", stopped)
    with pytest.raises(KeyboardInterrupt):
        ev2.predict(model, images, output=tmp_path / "out.csv", **CPU)
    monkeypatch.undo()
    resumed = ev2.predict(model, images, output=tmp_path / "out.csv", **CPU)
    pd.testing.assert_frame_equal(resumed, expected, atol=1e-5)


def test_classes_may_have_the_names_of_columns(network, model, images, tmp_path):
    network.class_names = ("unknown_score", "is_unknown", "other")
    network.unknown = ev2.load(model).unknown
    ev2.save(tmp_path / "other.safetensors", network)
    table = ev2.predict(tmp_path / "other.safetensors", images, output=tmp_path / "out.csv", **CPU)
    assert table.columns.is_unique
    assert table["is_unknown"].dtype == bool
    ev2.predict(tmp_path / "other.safetensors", images, output=tmp_path / "out.csv", **CPU)
