"""Files for phones: LiteRT and ExecuTorch predict like the model. A Core ML package declares inputs and classes."""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from tests.exporters.conftest import NAMES, small_model
from tests.messages import mentioning, mentions
from typer.testing import CliRunner

import efficientnetv2 as ev2
from efficientnetv2.cli.main import app
from efficientnetv2.exporters import formats, mobile
from efficientnetv2.exporters.graph import Encoding, ExportGraph
from efficientnetv2.preprocessing import Preprocessing


def _needs(package):
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed (extra 'mobile')")


RUN_HERE = [
    pytest.param("litert", marks=_needs("litert_torch")), pytest.param("executorch", marks=_needs("executorch"))
]  # fmt: skip
# Programs without this package and, for LiteRT, without torch. They print the label of a normalized image.
ALONE = {
    "litert": """
import json, sys, zipfile
sys.modules.update(torch=None, efficientnetv2=None)
import numpy as np
from ai_edge_litert.interpreter import Interpreter
archive = zipfile.ZipFile(sys.argv[1])
names = archive.read("labels.txt").decode().split("\\n")
assert names[:-1] == json.loads(json.loads(archive.read("metadata.json"))["names"])
image = np.load(sys.argv[2]).transpose(0, 2, 3, 1)
print(names[Interpreter(sys.argv[1]).get_signature_runner()(images=image)["probabilities"].argmax()])
""",
    "executorch": """
import json, sys
sys.modules.update(efficientnetv2=None)
import numpy as np, torch
from executorch.runtime import Runtime
program = Runtime.get().load_program(sys.argv[1])
(text,) = program.load_method("metadata").execute(())
_, probabilities = program.load_method("forward").execute((torch.from_numpy(np.load(sys.argv[2])),))
print(json.loads(json.loads(text)["names"])[int(probabilities.argmax())])
""",
}


class _Without:
    """An importer that hides a package."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _saved(folder, **options):
    path = folder / "model.safetensors"
    ev2.save(path, small_model(**options))
    return path


@pytest.mark.parametrize("format", RUN_HERE)
def test_file_predicts_like_the_model_with_its_runtime_alone(format, tmp_path, photos):
    own = Preprocessing(image_size=32, crop_mode="center", crop_pct=0.9, tta="d4")
    model = _saved(tmp_path, preprocessing=own, temperature=1.7)
    made = ev2.export(model, format, data=photos)
    assert made.verified
    assert made.agreement.label_agreement == 1
    assert made.agreement.max_difference < 1e-5
    session = formats.open_session(format, made.path)
    files = sorted(photos.iterdir())
    found = session.run(np.stack([own(file).numpy() for file in files]))[1]
    expected = ev2.Predictor(model)(files)
    np.testing.assert_allclose(found, [list(one.probabilities.values()) for one in expected], atol=1e-4)
    np.save(tmp_path / "image.npy", own(files[0]).numpy()[None])
    args = [sys.executable, "-c", ALONE[format], str(made.path), str(tmp_path / "image.npy")]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected[0].label


def test_runtime_for_single_images_predicts_batches_and_empty_batches():
    def run(image):
        (row,) = image.reshape(1, -1)
        return row[None, :3], row[None, 3:6]

    images = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    for some in (images, images[:0]):
        logits, shares = formats._one_by_one(run)(some)
        np.testing.assert_array_equal(logits, some.reshape(-1, 12)[:, :3])
        np.testing.assert_array_equal(shares, some.reshape(-1, 12)[:, 3:6])


@_needs("executorch")
def test_runtime_without_the_private_function_for_threads_predicts(tmp_path, photos, monkeypatch):
    from executorch.extension.pybindings import portable_lib

    monkeypatch.delattr(portable_lib, "_unsafe_reset_threadpool")
    assert ev2.export(_saved(tmp_path), "executorch", data=photos).verified


@pytest.mark.parametrize("format", RUN_HERE)
def test_file_with_other_predictions_is_removed(format, tmp_path, photos, monkeypatch):
    model, other = _saved(tmp_path), ExportGraph(small_model(1))
    monkeypatch.setattr(ExportGraph, "contiguous", lambda _: other)
    with pytest.raises(ev2.InputError, match="differs from the original"):
        ev2.export(model, format, data=photos)
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


@_needs("coremltools")
@pytest.mark.parametrize(("kind", "half", "activation"), [("float", False, "sigmoid"), ("uint8", True, "softmax")])
def test_core_ml_package_declares_image_classes_and_is_not_verified(kind, half, activation, tmp_path):
    model = _saved(tmp_path, activation=activation)
    args = ["export", str(model), "--format", "coreml", "--input", kind, *(["--half"] if half else [])]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert mentions(done.output, "model.mlpackage", "verified: false")
    assert mentions(done.stderr, "Core ML", "not compared")
    import coremltools

    found = coremltools.utils.load_spec(str(tmp_path / "model.mlpackage"))
    stored = found.description.metadata.userDefined
    assert stored["verified"] == "false"
    assert json.loads(stored["names"]) == list(NAMES)
    (image,) = found.description.input
    assert image.name == "images"
    outputs = [output.name for output in found.description.output]
    if activation == "softmax":
        assert (image.type.imageType.width, image.type.imageType.height) == (32, 32)
        assert {found.description.predictedFeatureName, found.description.predictedProbabilitiesName} == set(outputs)
    else:
        assert list(image.type.multiArrayType.shape) == [1, 3, 32, 32]
        assert outputs == ["probabilities"]


@_needs("coremltools")
def test_core_ml_export_is_not_verified_and_replaced_only_on_request(tmp_path):
    model = _saved(tmp_path)
    made = ev2.export(model, "coreml")
    assert not made.verified
    assert made.to_json()["verified"] is False
    with pytest.raises(ev2.InputError, match=mentioning("exists", "overwrite")):
        ev2.export(model, "coreml")
    assert ev2.export(model, "coreml", overwrite=True).size_bytes > 1000


def test_folder_of_another_program_is_not_a_core_ml_export(tmp_path):
    for name, expected in (("model.mlpackage", True), ("extension", False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "Manifest.json").write_text("{}")
        assert formats.is_export(tmp_path / name, "coreml") == expected


def test_levels_of_an_image_are_normalized_by_the_preprocessing():
    own = Preprocessing(image_size=32, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    graph = ExportGraph(small_model(preprocessing=own))
    levels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    with torch.inference_mode():
        front = mobile._Probabilities(graph, levels=True)
        found = front(torch.from_numpy(levels).permute(2, 0, 1)[None].float())
        expected = graph(own(Image.fromarray(levels))[None])[1]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"format": "litert", "half": True}, ["litert", "half"]),
        ({"format": "executorch", "int8": True}, ["executorch", "int8"]),
        ({"format": "executorch", "input": "uint8"}, ["executorch", "input"]),
        ({"format": "coreml", "int8": True}, ["coreml", "int8"]),
        ({"format": "coreml", "num_images": 5}, ["coreml", "num_images"]),
    ],
)
def test_unsupported_inputs_of_a_format_are_refused_by_name(wrong, named, tmp_path):
    model = _saved(tmp_path)
    with pytest.raises(ev2.InputError, match=mentioning(*named)):
        ev2.export(model, **wrong)
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


@pytest.mark.parametrize(
    ("format", "package"), [("litert", "litert_torch"), ("executorch", "executorch"), ("coreml", "coremltools")]
)
def test_missing_extra_is_named_and_leaves_no_files(format, package, tmp_path, photos, monkeypatch):
    model = _saved(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)  # imported by an earlier test
    monkeypatch.setattr(sys, "meta_path", [_Without(package), *sys.meta_path])
    with pytest.raises(ev2.InputError, match=mentioning(package, "extra", "mobile")):
        ev2.export(model, format, data=None if format == "coreml" else photos)
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


@_needs("coremltools")
def test_core_ml_refuses_models_without_rgb_channels(tmp_path):
    own = Preprocessing(image_size=32, mean=(0.5,) * 4, std=(0.5,) * 4)
    with pytest.raises(ev2.InputError, match=mentioning("coreml", "RGB", "input")):
        formats.write(small_model(preprocessing=own), tmp_path / "model.mlpackage", "coreml", Encoding("uint8"))
