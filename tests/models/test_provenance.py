"""Calibration: the temperature is saved in the model file and used for all probabilities."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.messages import mentioning

import efficientnetv2
from efficientnetv2.inference.predict import predict
from efficientnetv2.models import model_file
from efficientnetv2.models.ensemble import Ensemble
from efficientnetv2.models.provenance import CALIBRATION_KEY, Calibration
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError

PREPROCESSING = Preprocessing(image_size=32)
FOUND = Calibration(2.5, 100, "minival")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = efficientnetv2.create("efficientnetv2_b0", num_classes=3).eval()
    made.class_names, made.preprocessing = ("a", "b", "c"), PREPROCESSING
    return made


def answers(network, tta="none"):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return predict(network, [images], preprocessing=Preprocessing(image_size=32, tta=tta))


def test_temperature_is_saved_and_divides_the_logits(network, tmp_path):
    plain = {tta: answers(network, tta) for tta in ("none", "d4")}
    network.calibration = FOUND
    model_file.save(tmp_path / "m.safetensors", network)
    network.calibration = None
    there = model_file.load(tmp_path / "m.safetensors")
    assert there.calibration == FOUND
    for tta, logits in plain.items():
        torch.testing.assert_close(answers(there, tta), logits / 2.5)
    model_file.save(tmp_path / "again.safetensors", there)
    assert model_file.load(tmp_path / "again.safetensors").calibration == FOUND
    model_file.save(tmp_path / "without.safetensors", network)
    assert model_file.load(tmp_path / "without.safetensors").calibration is None


def test_predictor_uses_the_temperature(network, tmp_path):
    from PIL import Image

    picture = Image.new("RGB", (40, 40), (200, 30, 90))
    sure = efficientnetv2.Predictor(network)(picture)[0]
    network.calibration = FOUND
    honest = efficientnetv2.Predictor(network)(picture)[0]
    network.calibration = None
    logs = torch.tensor(list(sure.probabilities.values())).log() / 2.5
    assert list(honest.probabilities.values()) == pytest.approx(logs.softmax(0).tolist(), abs=1e-6)
    assert honest.label == sure.label


def test_members_of_an_ensemble_have_separate_temperatures(network):
    other = efficientnetv2.create("efficientnetv2_b0", num_classes=3).eval()
    other.class_names, other.preprocessing = network.class_names, network.preprocessing
    apart = [answers(one) for one in (network, other)]
    other.calibration = FOUND
    together = answers(Ensemble([network, other]))
    expected = (apart[0].softmax(1) + (apart[1] / 2.5).softmax(1)) / 2
    torch.testing.assert_close(together.softmax(1), expected)


@pytest.mark.parametrize("text", ["{}", '{"temperature": -1, "pictures": 3, "fitted_on": "x"}', "no JSON"])
def test_damaged_calibration_is_rejected(network, tmp_path, text):
    model_file.save(tmp_path / "m.safetensors", network)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "bad.safetensors", metadata | {CALIBRATION_KEY: text})
    with pytest.raises(InputError, match=mentioning("efficientnetv2.calibration")):
        model_file.load(tmp_path / "bad.safetensors")
