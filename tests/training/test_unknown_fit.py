"""Fitting of the detector of unknown images at the end of training, on images not used for training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.conftest import COLORS, paint

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.models import model_file
from efficientnetv2.models.unknown import MIN_IMAGES
from efficientnetv2.training import post_training
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.errors import InputError


def test_detector_needs_images_of_several_groups(small_run, tmp_path):
    for name, color in COLORS.items():
        for number in range(25):
            paint(tmp_path / "photos" / name / f"{number:02d}.png", color, number)
    dataset = load_dataset(tmp_path / "photos")
    dataset = replace(dataset, table=dataset.table.assign(group="one patient"))
    setup = small_run("run", dataset.select(np.arange(0, 75, 4)), dataset.select(np.arange(1, 75)), "epochs=2")
    Trainer(setup).fit()
    assert model_file.load(setup.folder.model_file).unknown is None


@pytest.mark.parametrize("enough", [True, False])
def test_detector_is_fitted_on_the_validation_images(enough, small_run, tmp_path):
    for name, color in COLORS.items():
        for number in range(25):
            paint(tmp_path / "photos" / name / f"{number:02d}.png", color, number)
    dataset = load_dataset(tmp_path / "photos")
    count = MIN_IMAGES + 10 if enough else MIN_IMAGES - 1
    rows = np.random.default_rng(0).permutation(len(dataset))
    val = dataset.select(np.sort(rows[:count]))
    setup = small_run("run", dataset.select(np.sort(rows[count:])), val, "epochs=2")
    Trainer(setup).fit()
    found = model_file.load(setup.folder.model_file).unknown
    if not enough:
        assert found is None
        return
    assert (found.fitted_on, len(found.bank)) == ("val", count)
    scores = [one.unknown_score for one in Predictor(setup.folder.model_file)([dataset.root / p for p in val.paths])]
    flagged = np.mean(np.array(scores) > found.threshold)
    assert flagged <= found.false_alarm_rate, "their own directions are in the bank"


def test_storage_error_loses_only_the_detector(small_run, tmp_path, monkeypatch):
    for name, color in COLORS.items():
        for number in range(25):
            paint(tmp_path / "photos" / name / f"{number:02d}.png", color, number)
    dataset = load_dataset(tmp_path / "photos")

    def failing(*_, **__):
        raise InputError("storage is not available")

    monkeypatch.setattr(post_training, "embed_dataset", failing)
    setup = small_run("run", dataset.select(np.arange(0, 75, 3)), dataset.select(np.arange(1, 75)), "epochs=2")
    found = Trainer(setup).fit()
    model = model_file.load(setup.folder.model_file)
    assert model.unknown is None
    assert model.metrics["val_images"] == len(found.predictions.labels)
