"""An exported model predicts as its original, from image file to label, in its own runtime."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.messages import mentioning

import efficientnetv2 as ev2
from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.exporters import runtimes
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.preprocessing import Preprocessing

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

NAMES = ("forest", "pasture of cows", "maize")
SMALL = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=2, kernel=3), stride=2, channels=8, layers=1),
        Stage(mbconv(expand=2, kernel=3, se=0.25), stride=2, channels=16, layers=2),
    ),
    head_channels=16,
    padding="same",
)


def _network(seed=0, *, answer="softmax", preprocessing=None, temperature=None):
    """A network whose predictions differ from image to image; its batch norms have statistics of their own."""
    torch.manual_seed(seed)
    network = EfficientNet(SMALL, num_classes=3)
    network.train()
    for _ in range(3):
        network(torch.randn(8, 3, 32, 32))
    network.eval()
    torch.nn.init.normal_(next(m for m in network.modules() if isinstance(m, torch.nn.Linear)).weight, std=3.0)
    network.preprocessing = preprocessing or Preprocessing(image_size=32)
    network.class_names, network.activation = NAMES, answer
    if temperature is not None:
        network.calibration = Calibration(temperature, 100, "minival")
    return network


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Colored gradients with noise in the formats and orientations of cameras."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(12):
        height, width = int(rng.integers(150, 300)), int(rng.integers(150, 300))
        ramp = np.linspace(0, 1, width)[None, :, None] * rng.uniform(0, 255, 3) + rng.uniform(0, 60, (height, 1, 1))
        image = Image.fromarray(np.clip(ramp + rng.normal(0, 10, (height, width, 3)), 0, 255).astype(np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        image.save(folder / f"{number}.{'jpg' if number % 3 else 'png'}", exif=exif, quality=90)
    return folder


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    ev2.save(path, _network())
    return path


def _expected(model, photos):
    files = sorted(photos.iterdir())
    return files, np.array([list(found.probabilities.values()) for found in ev2.Predictor(model)(files)])


@pytest.mark.parametrize("crop", ["squash", "center", "border"])
@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_onnx_predicts_what_the_predictor_predicts(kind, crop, tmp_path, photos):
    own = Preprocessing(
        image_size=24, crop_mode=crop, crop_pct=0.8 if crop == "center" else 1.0,
        interpolation="bilinear" if crop == "center" else "bicubic",
    )  # fmt: skip
    path = tmp_path / "model.safetensors"
    ev2.save(path, _network(preprocessing=own, temperature=1.7))
    made = ev2.export(path, data=photos, input=kind)
    assert made.path == tmp_path / "model.onnx"
    assert made.agreement.label_agreement == 1
    runtime = runtimes.open_onnx(made.path)
    files, expected = _expected(path, photos)
    if kind == "float":
        inputs = [own(file).numpy()[None] for file in files]
    else:
        upright = [Image.open(file).convert("RGB") for file in files]
        inputs = [np.asarray(_turned(image, file))[None] for image, file in zip(upright, files, strict=True)]
    found = np.concatenate([runtime.run(image)[1] for image in inputs])
    assert np.abs(found - expected).max() < (1e-5 if kind == "float" else 0.02)


def _turned(image, file):
    from PIL import ImageOps

    with Image.open(file) as stored:
        image.info["exif"] = stored.info.get("exif", b"")
    return ImageOps.exif_transpose(Image.open(file)).convert("RGB")


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch", "triton"])
def test_every_format_takes_any_number_of_images_and_knows_its_classes(format, model, photos):
    if format == "openvino":
        pytest.importorskip("openvino")
    made = ev2.export(model, format, data=photos)
    file = {"openvino": "model.xml", "triton": "efficientnetv2/1/model.onnx"}.get(format)
    runtime = runtimes.OPEN["onnx" if format == "triton" else format](made.path / file if file else made.path)
    assert json.loads(runtime.metadata["names"]) == list(NAMES)
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        expected = model_file.load(model)(images)
    for count in (1, 5):
        logits, shares = runtime.run(images[:count].numpy())
        np.testing.assert_allclose(logits, expected[:count], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(shares, expected[:count].softmax(1), atol=1e-5)
    assert made.size_bytes > 1000


@pytest.mark.parametrize("tta", ["none", "d4"])
def test_an_ensemble_of_multi_label_models_becomes_one_graph(tta, tmp_path, photos):
    from efficientnetv2.exporters.graph import ExportGraph, metadata
    from efficientnetv2.exporters.onnx import write_onnx
    from efficientnetv2.models.ensemble import Ensemble

    own = Preprocessing(image_size=32, tta=tta)
    members = [_network(seed, answer="sigmoid", preprocessing=own, temperature=1.5) for seed in (1, 2)]
    network = Ensemble(members)
    file = tmp_path / "model.onnx"
    write_onnx(ExportGraph(network), file, input_kind="float", half=False, metadata=metadata(network, "float"))
    runtime = runtimes.open_onnx(file)
    files = sorted(photos.iterdir())
    inputs = np.stack([own(path).numpy() for path in files])
    expected = [list(found.probabilities.values()) for found in ev2.Predictor(network)(files)]
    np.testing.assert_allclose(runtime.run(inputs)[1], expected, atol=1e-5)
    assert runtime.metadata["problem_type"] == "multi_label_classification"


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:resnet10t"])
def test_models_of_other_libraries_are_exported(name, tmp_path, photos):
    pytest.importorskip(name.partition(":")[0])
    torch.manual_seed(0)
    network = ev2.create(name, num_classes=3)
    network.class_names = NAMES
    path = tmp_path / "model.safetensors"
    ev2.save(path, network, preprocessing=Preprocessing(image_size=64))
    assert ev2.export(path, data=photos).agreement.max_difference < 1e-4


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_classify_needs_neither_torch_nor_this_package(kind, model, photos, tmp_path):
    made = ev2.export(model, data=photos, input=kind)
    script = made.path.with_name("classify.py")
    assert len(script.read_text().splitlines()) < 140
    blocked = "import sys; sys.modules.update(torch=None, efficientnetv2=None); import runpy; "
    words = [str(script), str(made.path), str(photos)]
    run = f"{blocked}sys.argv = {words!r}; runpy.run_path({words[0]!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in done.stdout.splitlines()[1:]]
    files, expected = _expected(model, photos)
    assert [Path(row[0]) for row in rows] == files
    assert [row[1] for row in rows] == [NAMES[place] for place in expected.argmax(axis=1)]


def test_half_precision_halves_the_file(model, photos, tmp_path):
    whole = ev2.export(model, data=photos)
    half = ev2.export(model, output=tmp_path / "half.onnx", data=photos, half=True)
    assert half.agreement.label_agreement == 1
    assert half.size_bytes < whole.size_bytes


def test_a_file_that_disagrees_is_not_kept(model, photos, monkeypatch):
    wrong = runtimes.open_onnx

    def flipped(path, threads=0):
        found = wrong(path)
        return runtimes.Runtime(found.name, lambda images: tuple(x[:, ::-1] for x in found.run(images)), found.metadata)

    monkeypatch.setitem(runtimes.OPEN, "onnx", flipped)
    with pytest.raises(ev2.InputError, match="differs from the original"):
        ev2.export(model, data=photos)
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.safetensors"]


def test_what_cannot_be_exported_is_refused_by_name(model, photos, tmp_path):
    for wrong, said in (
        ({"format": "tflite"}, ["format", "tflite", "onnx"]),
        ({"format": "torch", "half": True, "data": photos}, ["torch", "half"]),
        ({}, ["data"]),
        ({"data": tmp_path / "nowhere"}, ["nowhere"]),
    ):
        with pytest.raises(ev2.InputError, match=mentioning(*said)):
            ev2.export(model, **wrong)
    ev2.export(model, data=photos)
    with pytest.raises(ev2.InputError, match=mentioning("exists", "overwrite")):
        ev2.export(model, data=photos)
    assert ev2.export(model, data=photos, overwrite=True).path.is_file()
