"""int8 on a tiny trained model: the measured loss, the layers in float, and the table of formats."""

import ctypes
import gc
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.command_line import NETWORK
from tests.conftest import COLORS, paint
from tests.exporters.conftest import NAMES, small_model
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions

import efficientnetv2 as ev2
from efficientnetv2.cli import export as cli
from efficientnetv2.cli.console import Screen
from efficientnetv2.data.imagenet_check import imagenet_ids
from efficientnetv2.exporters import formats
from efficientnetv2.exporters.graph import Encoding, ExportGraph, model_input, to_batch
from efficientnetv2.exporters.onnx import write_onnx
from efficientnetv2.exporters.openvino import _SignalStack, openvino_core
from efficientnetv2.exporters.verify import Compared, accuracy_difference
from efficientnetv2.models.conversion.metadata import imagenet_class_names
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.workflows import export as workflow

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on three colors with more than a hundred training images."""
    folder = tmp_path_factory.mktemp("int8")
    for name, color in COLORS.items():
        for number in range(50):
            paint(folder / "photos" / name / f"{number}.png", color, number, px=32)
    return ev2.train(
        folder / "photos", output=folder / "run", model=NETWORK, weights="none", recipe="quick", epochs=3, lr=0.01,
        image_size=32, batch_size=16, workers=0, device="cpu", settings={"minival": None},
    )  # fmt: skip


@pytest.mark.parametrize(("format", "name"), [("onnx", "exported.onnx"), ("openvino", "exported")])
def test_int8_loses_little_accuracy_and_reports_the_loss(format, name, run, tmp_path, capsys):
    if format == "openvino":
        pytest.importorskip("nncf")
    made = ev2.export(run, format, tmp_path / name, int8=True)
    found = made.accuracy
    assert made.precision == "int8"
    assert found.num_images == int((run.predictions["true_label"] != "").sum())
    assert found.difference.value >= -0.05
    assert found.difference.low <= found.difference.value <= found.difference.high
    assert set(found.f1) == set(COLORS)
    assert made.agreement.label_agreement >= 0.95
    if format == "onnx":
        assert made.float_layers
        assert all(".se." in layer for layer in made.float_layers)
    else:
        kinds = [node.get_type_name() for node in openvino_core().read_model(made.path / "model.xml").get_ops()]
        assert made.float_layers == ()  # depthwise layers are int8 too
        assert "Swish" in kinds
        assert kinds.count("Sigmoid") == kinds.count("ReduceSum")  # one pair for each squeeze-and-excitation
    assert made.to_json()["accuracy"]["difference"]["value"] == found.difference.value
    with Screen() as screen:
        cli._print_export(made, screen)
    shown = capsys.readouterr().out
    assert mentions(shown, "labeled images", "int8", "points", "95 %")
    assert all(mentions(shown, name) for name in [*COLORS, *made.float_layers[:3]])
    assert mentions(shown, "Layers in float", len(made.float_layers))
    assert ("all: --json" in shown) == (len(made.float_layers) > 3)


@pytest.mark.parametrize("crop", ["squash", "center", "border"])
def test_int8_accepts_raw_images(crop, tmp_path):
    model = small_model(preprocessing=Preprocessing(image_size=32, crop_mode=crop))
    images = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3)).astype(np.uint8)
    found = []
    for input, raw in (("float", model_input(to_batch(images), model.preprocessing)), ("uint8", images)):
        write_onnx(ExportGraph(model), tmp_path / "model.onnx", Encoding(input, "int8", images), {})
        found.append(formats.open_onnx(tmp_path / "model.onnx").run(raw)[1])
    np.testing.assert_allclose(*found, atol=1e-3)


def test_int8_is_calibrated_on_training_images_only(run, tmp_path, monkeypatch):
    seen, read = [], workflow.read_pixels
    monkeypatch.setattr(workflow, "read_pixels", lambda model, data: seen.append(data) or read(model, data))
    ev2.export(run, output=tmp_path / "model.onnx", int8=True)
    assert set(seen[0].split) == {"train"}


def test_int8_that_changes_labels_is_refused(run, tmp_path, monkeypatch):
    from efficientnetv2.exporters import onnx as module

    def broken(model, calibration, own):
        for weight in model.graph.initializer:
            if weight.name.endswith("classifier.weight"):
                weight.raw_data = bytes(len(weight.raw_data))
        return model, ()

    monkeypatch.setattr(module, "quantize_onnx", broken)
    with pytest.raises(ev2.InputError, match=mentioning("different labels", "half")):
        ev2.export(run, output=tmp_path / "model.onnx", int8=True)
    assert not list(tmp_path.iterdir())


def signal_stack_is_mapped():
    """Return whether signals have a stack in this thread. Otherwise the next signal ends the process."""
    stack = _SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    return stack.start is None or any(int(low, 16) <= stack.start < int(high, 16) for low, high in ranges)


def test_table_has_each_installed_format(run, capsys):
    table = ev2.benchmark(run, num_images=30)
    assert list(table.loc[0, ["format", "precision"]]) == ["PyTorch", "float32"]
    assert {("torch", "float32"), ("onnx", "float32"), ("onnx", "int8")} <= set(
        zip(table["format"], table["precision"], strict=True)
    )
    assert (table["error"] == "").all()
    gc.collect()
    assert sys.platform != "linux" or signal_stack_is_mapped()
    assert (table[["megabytes", "milliseconds", "images_per_s"]] > 0).all(axis=None)
    assert (table.loc[table["precision"] == "float32", "difference"] == 0).all()
    assert (table["low"] <= table["difference"]).all()
    assert table.loc[0, "accuracy"] == pytest.approx(table.loc[1, "accuracy"])
    assert not list(run.path.glob("*.onnx"))
    table.loc[1, "error"] = "the operator is unknown"
    with Screen() as screen:
        cli._print_benchmark(table, screen)
    shown = capsys.readouterr().out
    assert mentions(shown, "onnx", "int8", "points")
    assert mentions(shown, "torch", "float32", "the operator is unknown")


def test_difference_of_multi_label_images_counts_images_and_classes():
    model = small_model(activation="sigmoid")
    expected = np.array([[0.9, 0.9, 0.1], [0.1, 0.9, 0.1], [0.9, 0.1, 0.1], [0.1, 0.1, 0.9]], np.float32)
    found = expected.copy()
    found[0, 1] = 0.2
    targets = np.array([[0, 1], [1, -1], [0, -1], [-1, -1]])
    result = accuracy_difference(Compared(np.arange(4), expected, found, found, 1.0), model, targets)
    assert result.num_images == 3
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.difference.value == pytest.approx(-1 / 3)
    assert result.f1[NAMES[0]].value == 0
    assert result.f1[NAMES[1]].value == pytest.approx(2 / 3 - 1)
    assert NAMES[2] not in result.f1


def test_pixels_become_a_batch_with_channels_first():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert to_batch(pixels)[1, 2, 3, 0] == pixels[1, 3, 0, 2]


def test_folders_of_wordnet_ids_are_labels_of_an_imagenet_model(class_folders):
    model = small_model()
    model.class_names = imagenet_class_names()
    folders = sorted(class_folders.iterdir())
    for number, folder in enumerate(folders):
        folder.rename(class_folders / imagenet_ids()[number])
    images = workflow.comparison_images(model, Path("none.safetensors"), class_folders, 20)
    assert set(np.unique(workflow._targets(model, images))) == {0, 1, 2}
    for number, folder in enumerate(sorted(class_folders.iterdir())):
        folder.rename(class_folders / f"other{number}")
    images = workflow.comparison_images(model, Path("none.safetensors"), class_folders, 20)
    shares = np.eye(1000, dtype=np.float32)[np.zeros(len(images), int)]
    compared = Compared(np.arange(len(images)), shares, shares, shares, 1.0)
    assert workflow.paired_accuracy(model, Path("none.safetensors"), images, compared) is None
    lines = logged_lines()
    workflow.note_unknown_labels(model, images)
    assert mentions(" ".join(lines), "other0")


def test_difference_of_single_label_images_is_export_minus_model():
    """From file, the export calls two of four images of the second class the third. The last image has no label."""
    right = np.eye(3, dtype=np.float32)[[0] * 4 + [1] * 4 + [2] * 4 + [0]]
    from_file = right.copy()
    from_file[4:6] = right[8]
    targets = np.array([0] * 4 + [1] * 4 + [2] * 4 + [-1])
    result = accuracy_difference(Compared(np.arange(13), right, right, from_file, 1.0), small_model(), targets)
    assert (result.num_images, result.accuracy) == (12, pytest.approx(10 / 12))
    assert result.difference.value == pytest.approx(-2 / 12)
    assert [result.f1[name].value for name in NAMES] == pytest.approx([0, -1 / 3, -1 / 5])
