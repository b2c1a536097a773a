"""An exported model predicts like its original, from image file to label, in its own runtime."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from PIL import Image, ImageOps
from tests.exporters.conftest import NAMES, SMALL, small_model
from tests.log_lines import logged_lines
from tests.messages import each_mentions, mentioning, mentions
from typer.testing import CliRunner

import efficientnetv2 as ev2
from efficientnetv2.architectures.spec import Stage, mbconv
from efficientnetv2.cli.main import app
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.exporters import classify, formats, verify
from efficientnetv2.exporters.graph import Encoding, metadata
from efficientnetv2.exporters.openvino import openvino_core
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.ensemble import write_members
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.utils.device import place
from efficientnetv2.workflows import benchmark
from efficientnetv2.workflows import export as workflow
from efficientnetv2.workflows.crossval_config import CrossValConfig, SavedCrossVal

pytest.importorskip("onnxruntime")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    ev2.save(path, small_model())
    return path


def _saved(folder, **options):
    path = folder / "model.safetensors"
    ev2.save(path, small_model(**options))
    return path


def _expected(model, photos):
    files = sorted(photos.iterdir())
    return files, np.array([list(found.probabilities.values()) for found in ev2.Predictor(model)(files)])


def _read_pixels(file):
    with Image.open(file) as stored:
        return np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))


def test_output_with_the_suffix_of_another_format_is_refused(tmp_path, photos):
    with pytest.raises(ev2.InputError, match=mentioning("format=litert", "x.tflite")):
        ev2.export(_saved(tmp_path), output=tmp_path / "x.tflite", data=photos)


@pytest.mark.parametrize(("format", "name"), [("openvino", "model.xml"), ("web", "index.html")])
def test_output_with_the_name_of_a_file_in_a_folder_is_refused(format, name, tmp_path, photos):
    with pytest.raises(ev2.InputError, match=mentioning("output", name, "folder", f"format={format}")):
        ev2.export(_saved(tmp_path), format, output=tmp_path / name, data=photos)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("crop", ["squash", "center", "border"])
@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_onnx_predicts_like_the_predictor(kind, crop, tmp_path, photos):
    own = Preprocessing(
        image_size=25, crop_mode=crop, crop_pct=0.8 if crop == "center" else 1.0,
        interpolation="bilinear" if crop == "center" else "bicubic",
    )  # fmt: skip
    path = _saved(tmp_path, preprocessing=own, temperature=1.7)
    made = ev2.export(path, data=photos, input=kind)
    assert made.path == tmp_path / "model.onnx"
    assert made.agreement.label_agreement == 1
    session = formats.open_onnx(made.path)
    files, expected = _expected(path, photos)
    images = [own(file).numpy() if kind == "float" else _read_pixels(file) for file in files]
    found = np.concatenate([session.run(image[None])[1] for image in images])
    assert np.abs(found - expected).max() < (1e-5 if kind == "float" else 0.02)
    found = [probabilities for _, probabilities in classify.Classifier(made.path)(files)]
    assert np.abs(found - expected).max() < 0.02


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch", "triton"])
def test_each_format_accepts_any_number_of_images_and_has_its_classes(format, model, photos):
    if format == "openvino":
        pytest.importorskip("openvino")
    made = ev2.export(model, format, data=photos)
    file = {"openvino": "model.xml", "triton": "efficientnetv2/1/model.onnx"}.get(format)
    session = formats.open_session(format, made.path / file if file else made.path)
    assert json.loads(session.metadata["names"]) == list(NAMES)
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        expected = model_file.load(model)(images)
    for count in (1, 5):
        logits, shares = session.run(images[:count].numpy())
        np.testing.assert_allclose(logits, expected[:count], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(shares, expected[:count].softmax(1), atol=1e-5)
    assert made.size_bytes > 1000
    assert not list(model.parent.glob(".*"))


def test_openvino_resizes_raw_images_like_pillow(model, photos):
    pytest.importorskip("openvino")
    made = ev2.export(model, "openvino", data=photos, input="uint8")
    session = formats.open_openvino(made.path / "model.xml")
    files, expected = _expected(model, photos)
    found = np.concatenate([session.run(_read_pixels(file)[None])[1] for file in files])
    assert np.abs(found - expected).max() < 0.02


@pytest.mark.parametrize("tta", ["none", "d4"])
def test_ensemble_of_a_folder_becomes_one_file(tta, tmp_path, photos):
    own = Preprocessing(image_size=32, tta=tta)
    for seed in (1, 2):
        ev2.save(
            tmp_path / f"{seed}.safetensors",
            small_model(seed, activation="sigmoid", preprocessing=own, temperature=1.5),
        )
    write_members(tmp_path, ["1.safetensors", "2.safetensors"])
    made = ev2.export(tmp_path, data=photos)
    assert made.path == tmp_path / "model.onnx"
    classifier = classify.Classifier(made.path)
    assert classifier.info["problem_type"] == "multi_label_classification"
    files = sorted(photos.iterdir())
    for found, (label, probabilities) in zip(ev2.Predictor(tmp_path)(files), classifier(files), strict=True):
        assert np.abs(probabilities - list(found.probabilities.values())).max() < 0.02
        assert label == ";".join(found.labels)


def test_confident_labels_of_an_ensemble_have_finite_logits_in_float16(tmp_path, photos):
    for seed in (1, 2):
        model = small_model(seed, activation="sigmoid")
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.tensor([40.0, -40.0, 0.0]))
        ev2.save(tmp_path / f"{seed}.safetensors", model)
    write_members(tmp_path, ["1.safetensors", "2.safetensors"])
    made = ev2.export(tmp_path, data=photos, half=True)
    session = formats.open_session("onnx", made.path)
    logits, probabilities = session.run(np.zeros((1, 3, 32, 32), np.float32))
    assert np.isfinite(logits).all()
    assert probabilities == pytest.approx(np.array([[1, 0, 0.5]]), abs=1e-3)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:resnet10t"])
def test_models_of_other_libraries_are_exported(name, tmp_path, photos):
    pytest.importorskip(name.partition(":")[0])
    torch.manual_seed(0)
    model = ev2.create(name, num_classes=3)
    model.class_names = NAMES
    path = tmp_path / "model.safetensors"
    ev2.save(path, model, preprocessing=Preprocessing(image_size=64))
    assert ev2.export(path, data=photos).agreement.max_difference < 1e-4


def test_models_of_raster_bands_are_exported_without_classify_py(tmp_path):
    rasters = pytest.importorskip("tests.rasters")
    rng = np.random.default_rng(0)
    for number in range(4):
        rasters.write_raster(tmp_path / f"{number}.tif", rng.integers(0, 4_000, (4, 40, 50)).astype(np.uint16))
    bands = Bands((4, 3, 2, 1), high=(4_000.0,) * 4, kinds=("uint16",))
    own = Preprocessing(image_size=32, mean=(0.5,) * 4, std=(0.3,) * 4, bands=bands)
    path = tmp_path / "model" / "model.safetensors"
    path.parent.mkdir()
    ev2.save(path, small_model(preprocessing=own))
    lines = logged_lines()
    made = ev2.export(path, data=tmp_path)
    assert made.agreement.num_images == 4
    assert not (path.parent / "classify.py").exists()
    assert mentions(lines, "classify.py", "not written", "raster")
    with pytest.raises(ValueError, match="bands"):
        classify.Classifier(made.path)


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_classify_needs_neither_torch_nor_this_package(kind, tmp_path, photos):
    model = _saved(tmp_path, preprocessing=Preprocessing(image_size=32, crop_mode="center", crop_pct=0.875))
    made = ev2.export(model, data=photos, input=kind)
    script = made.path.with_name("classify.py")
    assert len(script.read_text().splitlines()) < 140
    blocked = "import sys; sys.modules.update(torch=None, efficientnetv2=None); import runpy; "
    args = [str(script), str(made.path), str(photos)]
    run = f"{blocked}sys.argv = {args!r}; runpy.run_path({args[0]!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in done.stdout.splitlines()[1:]]
    files, expected = _expected(model, photos)
    assert [Path(row[0]) for row in rows] == files
    assert [row[1] for row in rows] == [NAMES[place] for place in expected.argmax(axis=1)]


def test_classify_skips_unreadable_images(model, photos, tmp_path):
    made = ev2.export(model, data=photos)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "mac").mkdir()
    (tmp_path / "mac/._0.jpg").write_bytes(b"of the system")  # no image, so it is not counted
    paths = [tmp_path / "broken.jpg", tmp_path / "missing.jpg", photos, tmp_path / "mac"]
    args = [sys.executable, made.path.with_name("classify.py"), made.path, *paths]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1 + 12
    binary = subprocess.run(args, capture_output=True, check=False).stdout
    assert binary == done.stdout.replace("\n", os.linesep).encode()
    skipped = done.stderr.splitlines()
    assert mentions(skipped[0], "skipped", "broken.jpg")
    assert mentions(skipped[1], "skipped", "missing.jpg")
    assert skipped[2] == "2 of 14 images could not be read."


def test_classify_reads_images_with_damaged_metadata_and_any_name(model, photos, tmp_path):
    made = ev2.export(model, data=photos)
    (tmp_path / "odd").mkdir()
    for name, metadata_bytes in (("empty.webp", b"Exif\0\0nothing"), ("short.webp", b"Exif\0\0II*\0")):
        Image.new("RGB", (40, 30), "red").save(tmp_path / "odd" / name, exif=metadata_bytes)
    Image.new("RGB", (40, 30), "red").save(os.fsencode(tmp_path / "odd") + b"/caf\xe9.png")
    args = [sys.executable, made.path.with_name("classify.py"), made.path, tmp_path / "odd"]
    done = subprocess.run(args, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + 3


def _odd_files(folder):
    """Write files that decoders may read differently: depth, alpha, palettes, orientation, large JPEG files."""
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 256, (6, 9, 4)), np.ones((20, 20, 1)))
    color, gray = smooth.astype(np.uint8), smooth[..., 0]
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray((gray * 257).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray((gray / 255).astype(np.float32)).save(folder / "float.tif")
    Image.fromarray(color).save(folder / "transparent.png")
    Image.fromarray(color[..., :3]).quantize(16).save(folder / "palette.gif")
    Image.fromarray(color[..., :3]).convert("CMYK").save(folder / "print.jpg", quality=95)
    Image.fromarray(color[..., :3]).save(folder / "turned.tif", tiffinfo=turned)
    Image.fromarray(color[..., :3]).resize((1003, 669)).save(folder / "large.jpg", quality=95, exif=turned)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("crop", ["squash", "center", "border"])
def test_classify_reads_unusual_files_like_the_package(crop, tmp_path):
    own = Preprocessing(image_size=24, crop_mode=crop, crop_pct=1.0 if crop == "border" else 0.9)
    info = metadata(small_model(preprocessing=own), "float")
    for file in _odd_files(tmp_path):
        found = classify.load_input(file, info)[0].transpose(1, 2, 0)
        levels = 255 * (found * own.std + np.array(own.mean))
        difference = np.abs(levels - load_eval_image(str(file), own))
        assert difference.mean() < 1, file.name
        assert difference.max() < 6, file.name


def test_half_precision_shrinks_the_file(model, photos, tmp_path):
    whole = ev2.export(model, data=photos)
    half = ev2.export(model, output=tmp_path / "half.onnx", data=photos, half=True)
    assert half.precision == "float16"
    assert half.agreement.label_agreement == 1
    assert half.size_bytes < whole.size_bytes


def test_means_of_large_images_stay_within_float16(tmp_path):
    """256 x 256 positions are more than the largest number of float16, so sums and divisions stay in float32."""
    stage = Stage(mbconv(expand=1, kernel=3, se=0.25), stride=1, channels=8, layers=1)
    network = EfficientNet(replace(SMALL, stages=(stage,)), num_classes=3)
    network.preprocessing, network.class_names = Preprocessing(image_size=512), NAMES
    file = tmp_path / "model.onnx"
    formats.write(network, file, "onnx", Encoding("float", "float16"))
    graph = onnx.load(file).graph
    casts = {node.output[0]: node.attribute[0].i for node in graph.node if node.op_type == "Cast"}
    sums = [node for node in graph.node if node.op_type == "ReduceSum"]
    assert sums
    assert {casts[node.input[0]] for node in sums} == {onnx.TensorProto.FLOAT}
    divisors = [value for value in graph.initializer if float(onnx.numpy_helper.to_array(value).max()) == 256**2]
    assert divisors


def test_writing_classify_py_keeps_the_memory_format_of_the_model(tmp_path):
    network = place(small_model(), torch.device("cpu"))
    formats.write(network, tmp_path / "model.pt2", "torch", Encoding())
    weights = [weight for weight in network.parameters() if weight.ndim == 4 and min(weight.shape[1:]) > 1]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@pytest.mark.parametrize("crop", ["squash", "center", "border"])
def test_raw_images_for_equal_pixels_match_the_crop_of_the_graph(crop):
    own = Preprocessing(image_size=25, crop_mode=crop, crop_pct=0.8)
    padded = verify._uncropped(np.ones((1, 25, 25, 3), np.uint8), own)
    spare = 0 if crop == "border" else 6
    assert padded.shape == (1, 25 + spare, 25 + spare, 3)
    assert padded[0, spare // 2 : spare // 2 + 25, spare // 2 : spare // 2 + 25].all()


def _flipped(open_file):
    """Return a runtime with the classes in reverse order."""

    def flipped(path):
        session = open_file(path)
        return formats.Session(session.name, lambda x: tuple(y[:, ::-1] for y in session.run(x)), session.metadata)

    return flipped


def _failing(*_):
    raise RuntimeError("no such operator")


def _stopped(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("place", "name", "wrong", "error"),
    [
        (formats.OPEN, "onnx", _flipped(formats.open_onnx), "differs from the original"),
        (classify, "load_input", lambda file, info: np.zeros((1, 3, 32, 32), np.float32), "different labels"),
        (verify, "read_pixels", _stopped, ""),
        (workflow, "compare", lambda *_: 1 / 0, "division"),
        (formats.OPEN, "onnx", _failing, "no such operator.*`format`"),
        (formats.OPEN, "onnx", lambda _: formats.Session("", _failing, {"input": "float"}), "no such operator"),
        (formats._WRITERS, "onnx", _failing, "no such operator"),
    ],
    ids=["wrong pixels", "wrong label", "stopped", "failed", "not opened", "not run", "not written"],
)
def test_failed_or_interrupted_export_leaves_no_files(place, name, wrong, error, model, photos, monkeypatch):
    (monkeypatch.setitem if isinstance(place, dict) else monkeypatch.setattr)(place, name, wrong)
    output = model.parent / "new" / "model.onnx"
    with pytest.raises((ev2.InputError, KeyboardInterrupt, ZeroDivisionError), match=error or None):
        ev2.export(model, output=output, data=photos)
    assert [path.name for path in model.parent.iterdir()] == ["model.safetensors"]


def test_columns_of_a_table_may_have_other_names(model, photos, tmp_path):
    rows = [f"{file},{NAMES[number % 3]}" for number, file in enumerate(sorted(photos.iterdir()))]
    (tmp_path / "photos.csv").write_text("\n".join(["uri,tree", *rows]))
    columns = {"path_column": "uri", "label_column": "tree"}
    made = ev2.export(model, "torch", tmp_path / "a.pt2", data=tmp_path / "photos.csv", **columns)
    assert made.agreement.num_images == len(rows)
    found = workflow.comparison_images(ev2.load(model), model, tmp_path / "photos.csv", 20, **columns)
    assert found.class_names == tuple(sorted(NAMES))
    folder = workflow.comparison_images(ev2.load(model), model, photos, 20, **columns)
    assert len(folder) == len(rows), "a folder has no columns"
    words = ["--data", str(tmp_path / "photos.csv"), "--output", str(tmp_path / "b.pt2"), "--format", "torch"]
    done = CliRunner().invoke(app, ["export", str(model), *words, "--path-column", "uri", "--label-column", "tree"])
    assert done.exit_code == 0, done.output


def test_images_that_cannot_be_compared_are_named_with_their_reason(model, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"text")
    lines = logged_lines()
    ev2.export(model, data=photos, format="torch", output=tmp_path / "a.pt2")
    (line,) = [line for line in lines if line.startswith("Skipped 1 of")]
    assert "broken.jpg" in line
    (tmp_path / "none").mkdir()
    (photos / "broken.jpg").rename(tmp_path / "none/broken.jpg")
    with pytest.raises(ev2.InputError, match=mentioning("none of the 1 image", "broken.jpg")):
        ev2.export(model, data=tmp_path / "none", format="torch", output=tmp_path / "b.pt2")


def test_files_that_pillow_alone_cannot_read_are_compared_by_their_pixels(model, tmp_path, monkeypatch):
    folder, load = tmp_path / "photos", classify.load_input
    folder.mkdir()
    for name, level in (("odd.png", 90), ("plain.png", 91)):
        Image.fromarray(np.full((40, 50, 3), level, np.uint8)).save(folder / name)

    def read(file, info):
        if Path(file).name == "odd.png":
            raise OSError("cannot identify image file")
        return load(file, info)

    monkeypatch.setattr(classify, "load_input", read)
    lines = logged_lines()
    assert ev2.export(model, data=folder).agreement.num_images == 2
    assert mentions(lines, "1 image", "odd.png")


def test_earlier_export_is_kept_until_the_new_export_is_verified(model, photos, monkeypatch):
    before = ev2.export(model, data=photos).path.read_bytes()
    monkeypatch.setitem(formats.OPEN, "onnx", _flipped(formats.open_onnx))
    with pytest.raises(ev2.InputError, match="differs"):
        ev2.export(model, data=photos, overwrite=True)
    assert (model.parent / "model.onnx").read_bytes() == before


def test_earlier_export_is_kept_if_the_new_export_cannot_be_moved(tmp_path):
    target, before = tmp_path / "model_openvino", tmp_path / "before"
    target.mkdir()
    (target / "model.xml").write_text("earlier")
    with pytest.raises(FileNotFoundError):
        workflow._replace(target, tmp_path / "missing", before)
    assert (target / "model.xml").read_text() == "earlier"


def test_classify_py_is_written_after_the_model(model, photos, monkeypatch):
    monkeypatch.setattr(workflow, "_replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ev2.export(model, data=photos)
    assert [path.name for path in model.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("kind", ["run", "crossval"])
def test_labels_of_multi_label_runs_and_cross_validations_are_split(kind, tmp_path):
    (tmp_path / "dataset.csv").write_text("path,label,split\n1.jpg,a;b,val\n2.jpg,b,val\n")
    if kind == "run":
        (tmp_path / "run.json").write_text('{"schema_version": 2, "label_separator": ";"}')
    else:
        source = DataConfig("photos", label_separator=";")
        SavedCrossVal(TrainOverrides(), CrossValConfig(), source, "digest").save(tmp_path)
    assert workflow._run_dataset(tmp_path, "to compare on", "data").class_names == ("a", "b")


@pytest.mark.parametrize("kind", ["shards", "several labels"])
def test_default_images_of_shards_and_given_images_of_several_labels_are_read(kind, tmp_path, class_folders):
    run, model = tmp_path / "run", small_model(activation="sigmoid")
    run.mkdir()
    dataset = load_dataset(class_folders).with_split(np.array(["train"] * 48, dtype=object))
    if kind == "shards":
        write_shards(dataset, tmp_path / "shards", PackOptions(10**9))
        dataset = load_dataset(tmp_path / "shards")
    dataset.to_csv(run / "dataset.csv")
    (run / "run.json").write_text(json.dumps({"schema_version": 2, "label_separator": ";"}))
    given = None
    if kind == "several labels":
        given = tmp_path / "given.csv"
        labels = [NAMES[2], f"{NAMES[0]};{NAMES[1]}"]
        given.write_text("\n".join(["path,label", *(f"{dataset.file(row)},{labels[row % 2]}" for row in range(6))]))
    found = workflow.comparison_images(model, run / "model.safetensors", given, 20)
    _, pixels = zip(*verify.read_pixels(model, found), strict=True)
    assert sum(map(len, pixels)) == len(found) == (20 if given is None else 6)
    if given is not None:
        folder = workflow.comparison_images(model, run / "model.safetensors", class_folders, 20)
        assert (len(folder), folder.separator) == (20, None), "a folder has one label per image"
        assert workflow._targets(model, found).shape == (6, 2)


def test_unsupported_exports_are_refused_by_name(model, photos, tmp_path):
    for wrong, facts in (
        ({"format": "tensorrt"}, ["format", "tensorrt", "onnx"]),
        ({"format": "torch", "half": True, "data": photos}, ["torch", "half"]),
        ({"half": True, "int8": True}, ["half", "int8"]),
        ({"calibration": photos}, ["calibration", "int8"]),
        ({"int8": True, "data": photos}, ["calibration"]),
        ({"int8": True, "data": photos, "calibration": photos}, ["100", "12", "calibration"]),
        ({}, ["data"]),
        ({"data": tmp_path / "nowhere"}, ["nowhere"]),
    ):
        with pytest.raises(ev2.InputError, match=mentioning(*facts)):
            ev2.export(model, **wrong)
    gray = _saved(tmp_path, preprocessing=Preprocessing(image_size=32, mean=(0.5,), std=(0.5,)))
    with pytest.raises(ev2.InputError, match=mentioning("1 channel", "RGB")):
        ev2.export(gray, data=photos)
    center = _saved(tmp_path, preprocessing=Preprocessing(image_size=32, crop_mode="center"))
    with pytest.raises(ev2.InputError, match=mentioning("uint8", "center", "onnx")):
        ev2.export(center, "openvino", data=photos, input="uint8")


def test_only_an_earlier_export_is_replaced(model, photos, tmp_path):
    ev2.export(model, data=photos)
    with pytest.raises(ev2.InputError, match=mentioning("exists", "overwrite")):
        ev2.export(model, data=photos)
    assert ev2.export(model, data=photos, overwrite=True).path.is_file()
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    for format, output in (("openvino", folder), ("onnx", folder), ("onnx", model)):
        with pytest.raises(ev2.InputError, match=mentioning("exists", output.name)):
            ev2.export(model, format, output, data=photos, overwrite=True)
    (folder / "classify.py").write_text("print('mine')")
    with pytest.raises(ev2.InputError, match=mentioning("classify.py")):
        ev2.export(model, "onnx", folder / "model.onnx", data=photos)
    assert sorted(path.name for path in folder.iterdir()) == ["classify.py", "thesis.txt"]


@pytest.mark.parametrize(("format", "name", "suffix"), [("onnx", "net", ".onnx"), ("torch", "net.pt", ".pt2")])
def test_name_that_could_not_be_replaced_later_is_refused(format, name, suffix, model, tmp_path):
    with pytest.raises(ev2.InputError, match=mentioning(name, suffix, format)):
        ev2.export(model, format, tmp_path / name)
    assert not any(tmp_path.glob("net*"))


@pytest.mark.parametrize(
    ("format", "other"),
    [("triton", "bert/1/model.onnx"), ("triton", "efficientnetv2/2/model.onnx"), ("openvino", "notes/thesis.txt")],
)
def test_folder_with_other_files_is_not_replaced(format, other, model, photos, tmp_path):
    """A repository of Triton has several models, and a model several versions."""
    folder = ev2.export(model, format, tmp_path / "models", data=photos).path
    ev2.export(model, format, folder, data=photos, overwrite=True)
    mine = folder / other
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ev2.InputError, match=mentioning("models", other)):
        ev2.export(model, format, folder, data=photos, overwrite=True)
    assert mine.read_text() == "mine"


def test_changed_classify_is_kept_without_overwrite(model, photos, tmp_path):
    ev2.export(model, output=tmp_path / "model.onnx", data=photos)
    script = tmp_path / "classify.py"
    original = script.read_text()
    script.write_text(original + "# mine\n")
    lines = logged_lines()
    ev2.export(model, output=tmp_path / "half.onnx", half=True, data=photos)
    assert script.read_text() == original + "# mine\n"
    assert each_mentions([line for line in lines if "classify.py" in line], ("overwrite",))
    ev2.export(model, output=tmp_path / "half.onnx", half=True, data=photos, overwrite=True)
    assert script.read_text() == original


def test_command_prints_size_time_and_agreement(model, photos, tmp_path):
    args = ["export", str(model), "--data", str(photos), "--output", str(tmp_path / "a" / "model.onnx")]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert mentions(done.output, "model.onnx", "MB", "ms", "onnxruntime")
    assert mentions(done.output, "12 images", "100.0%", "probability")
    again = CliRunner().invoke(app, args)
    assert again.exit_code == 2
    assert mentions(again.stderr, "--output", "exists", "--overwrite")
    done = CliRunner().invoke(app, [*args, "--overwrite", "--json"])
    assert json.loads(done.stdout)["label_agreement"] == 1


def test_table_of_formats_includes_formats_that_fail(model, photos, monkeypatch):
    names, runs = ["onnx", "openvino", "torch"], []
    monkeypatch.setattr(benchmark, "installed", lambda: [(name, "float32") for name in names])
    monkeypatch.setitem(formats._WRITERS, "openvino", formats.write_onnx)
    monkeypatch.setitem(formats.OPEN, "onnx", _failing)
    monkeypatch.setitem(
        formats.OPEN, "openvino", lambda _: formats.Session("", lambda _: bytes(-1), {"input": "float"})
    )
    start = benchmark._in_pytorch

    def counted(pytorch_model):
        session = start(pytorch_model)
        return formats.Session("", lambda images: runs.append(1) or session.run(images), session.metadata)

    monkeypatch.setattr(benchmark, "_in_pytorch", counted)
    table = ev2.benchmark(model, photos).set_index("format")
    assert mentions(table.loc["onnx", "error"], "no such operator", "format")
    assert mentions(table.loc["openvino", "error"], "negative count", "format")
    assert table.loc["torch", "error"] == table.loc["PyTorch", "error"] == ""
    assert table.loc["torch", "label_agreement"] == 1
    assert len(runs) == 2 * (benchmark._ROUNDS + 1), "the session in PyTorch only takes part in the timings"


def test_table_of_formats_replaces_no_files(model):
    done = CliRunner().invoke(app, ["export", str(model), "--benchmark", "--overwrite"])
    assert done.exit_code == 2
    assert mentions(done.stderr, "--benchmark", "--overwrite")


def test_missing_extra_is_named(model, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ev2.InputError, match=mentioning("onnxscript", "extra", "onnx")):
        ev2.export(model, data=photos)


@pytest.mark.parametrize(
    ("kind", "images"),
    [("float", "data_type: TYPE_FP32, dims: [ 3, 32, 32 ]"), ("uint8", "data_type: TYPE_UINT8, dims: [ -1, -1, 3 ]")],
)
def test_triton_repository_declares_tensors_and_class_names(kind, images, model, photos):
    folder = ev2.export(model, "triton", data=photos, input=kind).path / "efficientnetv2"
    config = (folder / "config.pbtxt").read_text(encoding="utf-8")
    assert f'{{ name: "images", {images} }}' in config
    for name in ("logits", "probabilities"):
        output = f'{{ name: "{name}", data_type: TYPE_FP32, dims: [ 3 ], label_filename: "labels.txt" }}'
        assert output in config
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == list(NAMES)


@pytest.mark.parametrize(
    ("kind", "mean", "scale"), [("float", "123.675 116.28 103.53", "58.395 57.12 57.375"), ("uint8", "0 0 0", "1 1 1")]
)
def test_openvino_metadata_has_the_normalization_that_is_left_to_the_reader(kind, mean, scale, model, photos):
    pytest.importorskip("openvino")
    made = ev2.export(model, "openvino", data=photos, input=kind)
    graph = openvino_core().read_model(made.path / "model.xml")
    keys = ("mean_values", "scale_values", "labels", "resize_type", "multilabel")
    found = [graph.get_rt_info(["model_info", key]).value for key in keys]
    assert found == [mean, scale, "forest pasture_of_cows maize", "standard", "False"]


def test_speeds_are_of_one_image_and_of_a_batch(monkeypatch):
    """A call takes 1 ms and 4 ms per image; the second session takes twice the time."""

    def session(factor):
        return formats.Session("", lambda images: factor * (0.001 + 0.004 * len(images)), {})

    monkeypatch.setattr(
        benchmark, "interleave", lambda sides, *, rounds: {name: [run()] for name, run in sides.items()}
    )
    found = benchmark._timings({0: session(1), 2: session(2)}, np.zeros((8, 3, 4, 4), np.float32))
    assert found[0] == pytest.approx({"milliseconds": 5.0, "images_per_s": 8 / 0.033})
    assert found[2] == pytest.approx({"milliseconds": 10.0, "images_per_s": 8 / 0.066})
