"""``effnetv2 convert`` in both directions, and what it refuses."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.command_line import effnetv2, run_json, run_ok, run_refused
from tests.messages import mentioning, mentions

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.models import model_file
from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.conversion.metadata import apply_metadata
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.models.unknown import UnknownDetector
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.convert import read_class_names, temperature_notes, user_metadata
from efficientnetv2.workflows.evaluate_options import align_labels

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def timm_weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("timm") / "in.safetensors"
    save_file(timm.create_model("tf_efficientnetv2_b0", num_classes=3).state_dict(), file)
    return file


@pytest.fixture
def timm_file(timm_weights, tmp_path):
    return shutil.copy(timm_weights, tmp_path / "in.safetensors")


def save_model(path, table, classes=("oak", "elm")):
    torch.manual_seed(1)
    model = EfficientNet(table, num_classes=len(classes))
    model_file.save(
        path, model, preprocessing=Preprocessing(image_size=96), class_names=classes, recipe={"a": 1}, metrics={}
    )
    return path


def test_timm_weights_convert_and_convert_back(tmp_path, timm_file):
    done = run_ok("convert", timm_file, "out.safetensors", cwd=tmp_path)
    for fact in ("tf_efficientnetv2_b0 of timm", 'TensorFlow\'s "same"', "epsilon 0.001", "224 px", "0.485",
                 "Classes: 3: '0', '1', '2'", "Note: ", "Written to out.safetensors"):  # fmt: skip
        assert fact in done.stdout
    back = run_ok("convert", "out.safetensors", "back", "--to", "timm", cwd=tmp_path)
    assert mentions(back.stdout, "timm.create_model", "local-dir:back", "pretrained=True")
    before, after = load_file(timm_file), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["label_names"] == ["0", "1", "2"]


def test_class_names_without_a_classifier_are_refused(tmp_path):
    save_model(tmp_path / "in.safetensors", get_architecture("efficientnetv2_b0"), classes=())
    done = run_refused("convert", "in.safetensors", "out.safetensors", "--class-names", "oak,elm", cwd=tmp_path)
    assert mentions(done.stderr, "2", "classifier")
    assert not (tmp_path / "out.safetensors").exists()


def test_json_has_the_converted_model(tmp_path, timm_file):
    result = run_json("convert", timm_file, "out.safetensors", cwd=tmp_path)
    assert (result["num_classes"], result["in_channels"], result["class_names"]) == (3, 3, ["0", "1", "2"])
    assert result["preprocessing"]["image_size"] == 224
    assert result["architecture"]["padding"] == "same"
    assert result["notes"]


def test_torchvision_weights_convert(tmp_path):
    model = torchvision.models.efficientnet_b0()
    torch.save(model.state_dict(), tmp_path / "in.pth")
    done = effnetv2("convert", "in.pth", "out.safetensors", cwd=tmp_path)
    assert mentions(done.stdout, "efficientnet_b0", "torchvision")
    converted = model_file.load(tmp_path / "out.safetensors")
    assert (converted.architecture.padding, converted.architecture.batch_norm_epsilon) == ("symmetric", 1e-5)
    assert converted.class_names[0] == "tench"
    images = torch.randn(1, 3, 70, 70)
    with torch.inference_mode():
        assert torch.allclose(converted(images), model.eval()(images), atol=1e-5)


def test_run_folder_converts(tmp_path):
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run" / "model.safetensors", get_architecture("efficientnetv2_b0"))
    done = run_ok("convert", "run", "hub", "--to", "timm", cwd=tmp_path)
    assert "a model file of this package" in done.stdout
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["label_names"] == ["oak", "elm"]


def test_half_precision_halves_the_file(tmp_path):
    save_model(tmp_path / "in.safetensors", get_architecture("efficientnetv2_b0"))
    done = run_ok("convert", "in.safetensors", "half.safetensors", "--half", cwd=tmp_path)
    before, after = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("in", "half"))
    assert 0.5 < after / before < 0.53
    assert mentions(done.stdout, f"{after / 1000000.0:.1f}", "1", "2048", "3e-8", "MB")
    full, half = (model_file.load(tmp_path / f"{name}.safetensors") for name in ("in", "half"))
    assert (half.class_names, half.preprocessing, half.recipe) == (("oak", "elm"), full.preprocessing, {"a": 1})
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(half(images), full(images), rtol=0, atol=1e-3)
    run_refused("convert", "in.safetensors", "hub", "--half", "--to", "timm", cwd=tmp_path, names=("--half",))


def test_metadata_lost_in_other_formats_is_noted(tmp_path):
    table = replace(get_architecture("efficientnet_b0"), padding="symmetric", batch_norm_epsilon=1e-5)
    save_model(tmp_path / "in.safetensors", table)
    done = run_ok("convert", "in.safetensors", "out.pth", "--to", "torchvision", cwd=tmp_path)
    for note in ("the class names: torchvision does not see", "the preprocessing: torchvision does not see"):
        assert f"Note: {note}" in done.stdout
    result = json.loads(effnetv2("convert", "in.safetensors", "hub", "--to", "timm", "--json", cwd=tmp_path).stdout)
    assert result["notes"] == []


@pytest.mark.parametrize(("to", "out"), [("timm", "hub"), ("torchvision", "out.pth")])
def test_band_scaling_lost_in_other_formats_is_noted(tmp_path, to, out):
    table = replace(get_architecture("efficientnet_b0"), padding="symmetric", batch_norm_epsilon=1e-5)
    model = EfficientNet(table, num_classes=2)
    bands = Bands((4, 3, 2), (100,) * 3, (4000,) * 3, names=("red", "", ""), kinds=("uint16",))
    model.preprocessing = Preprocessing(image_size=96, bands=bands)
    model_file.save(tmp_path / "in.safetensors", model, class_names=("oak", "elm"))
    done = run_ok("convert", "in.safetensors", out, "--to", to, "--json", cwd=tmp_path)
    (line,) = (note for note in json.loads(done.stdout)["notes"] if "raster bands" in note)
    assert mentions(line, to, "4", "3", "2")


def test_model_option_chooses_between_equal_layouts(tmp_path):
    save_file(timm.create_model("efficientnet_b0", num_classes=2).state_dict(), tmp_path / "in.safetensors")
    done = effnetv2("convert", "in.safetensors", "out.safetensors", "--model", "efficientnet_b0", cwd=tmp_path)
    assert mentions(done.stdout, "1e-05", "batch-norm")
    assert model_file.load(tmp_path / "out.safetensors").architecture.padding == "symmetric"


@pytest.mark.parametrize(
    ("args", "facts"),
    [
        (["in.safetensors", "out.safetensors", "--to", "tim"], ("did you mean", "timm")),
        (["in.safetensors", "out.bin"], ("OUT", "end in .safetensors")),
        (["in.safetensors", "no/out.safetensors"], ("there is no folder no",)),
        (["in.safetensors", "in.safetensors"], ("IN",)),
        (["none.pth", "out.safetensors"], ("none.pth",)),
        (["in.safetensors", "out.pth", "--to", "torchvision"], ("torchvision",)),
        (["in.safetensors", "out.onnx", "--to", "keras"], ("out.onnx",)),
        (["in.safetensors", "out.safetensors", "--model", "resnet50"], ("resnet50", "timm")),
        (["efficientnetv2_s.in1k", "s.safetensors"], ("effnetv2 train DATA --weights efficientnetv2_s.in1k",)),
        (["in.safetensors", "noext", "--to", "keras"], ("Keras",)),
        (["in.safetensors", "out.pt", "--to", "timm"], ("timm", ".safetensors or .pth")),
        (["in.safetensors", "out.pth.tar", "--to", "timm"], ("timm", ".safetensors or .pth")),
        (
            ["in.safetensors", "out.safetensors", "--model", "efficientnetv2_b0"],
            ("did you mean", "tf_efficientnetv2_b0"),
        ),
        (["model.safetensors", "out.safetensors", "--model", "efficientnetv2_s"], ("is a model file",)),
        (["in.safetensors", "model.safetensors.note", "--to", "timm"], ("exists. Give another place",)),
    ],
)
def test_invalid_input_is_refused_and_leaves_no_files(tmp_path, timm_file, args, facts):
    table = replace(get_architecture("efficientnetv2_b0"), head_channels=32)
    save_model(tmp_path / "model.safetensors", table)
    (tmp_path / "model.safetensors.note").write_text("of the user")
    before = sorted(tmp_path.iterdir())
    run_refused("convert", *args, cwd=tmp_path, names=facts)
    assert sorted(tmp_path.iterdir()) == before


def test_size_that_the_model_cannot_take_is_refused(tmp_path):
    """Its patches have 16 px: the file could not predict."""
    vit = create("timm:test_vit", num_classes=2)
    own = Preprocessing(image_size=160)
    model_file.save(tmp_path / "vit.safetensors", vit, preprocessing=own, class_names=("a", "b"), recipe={}, metrics={})
    run_refused("convert", "vit.safetensors", "out.safetensors", "--image-size", 100, cwd=tmp_path, names=("100", "16"))
    assert not (tmp_path / "out.safetensors").exists()


def test_unfinished_run_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text("name: quick")
    run_refused("convert", "run", "out.safetensors", cwd=tmp_path, names=("model.safetensors", "training"))


def test_half_precision_never_replaces_the_weights_of_a_run(tmp_path):
    """Whether IN is the folder of the run or its file."""
    (tmp_path / "run").mkdir()
    file = save_model(tmp_path / "run/model.safetensors", get_architecture("efficientnetv2_b0"))
    before = file.read_bytes()
    for source in ("run", "run/../run/model.safetensors"):
        done = run_refused("convert", source, "run/model.safetensors", "--half", "--overwrite", cwd=tmp_path)
        assert mentions(done.stderr, "OUT", "run/model.safetensors", "IN")
    assert file.read_bytes() == before


def test_existing_file_needs_overwrite(timm_file, tmp_path):
    (tmp_path / "out.safetensors").write_text("precious")
    args = ("convert", timm_file, "out.safetensors")
    run_refused(*args, cwd=tmp_path, names=("OUT", "out.safetensors"))
    assert (tmp_path / "out.safetensors").read_text() == "precious"
    assert effnetv2(*args, "--overwrite", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out.safetensors").stat().st_size > 1_000_000


def test_lost_temperature_is_noted(tmp_path):
    """A model without a temperature causes no note."""
    save_model(tmp_path / "model.safetensors", get_architecture("efficientnetv2_b0"))
    plain = effnetv2("convert", "model.safetensors", "plain.pth", "--to", "timm", cwd=tmp_path)
    assert "temperature" not in plain.stdout + plain.stderr
    model = model_file.load(tmp_path / "model.safetensors")
    model.calibration = Calibration(1.75, 60, "minival")
    model_file.save(tmp_path / "calibrated.safetensors", model, class_names=model.class_names)
    done = run_ok("convert", "calibrated.safetensors", "out.pth", "--to", "timm", cwd=tmp_path)
    assert mentions(done.stdout + done.stderr, "1.75", "temperature")


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_keras_note_scales_probabilities_by_the_temperature(activation):
    """Keras models end with a softmax or sigmoid, so their logits are not visible."""
    model = create("efficientnetv2_b0", num_classes=3)
    model.calibration, model.activation = Calibration(2.0, 60, "minival"), activation
    [line] = temperature_notes(model, "keras")
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    if activation == "softmax":
        assert mentions(line, "0.5")
        raised = logits.softmax(dim=1) ** 0.5
        torch.testing.assert_close(raised / raised.sum(), (logits / 2).softmax(dim=1))
    else:
        assert mentions(line, "1", "sigmoid")
        torch.testing.assert_close((logits.sigmoid().logit() / 2).sigmoid(), (logits / 2).sigmoid())
    assert mentions(temperature_notes(model, "timm")[0], "logits")


def test_temperature_is_dropped_with_another_preprocessing(tmp_path):
    """It was fitted on predictions with the earlier image size and TTA."""
    save_model(tmp_path / "model.safetensors", get_architecture("efficientnetv2_b0"))
    model = model_file.load(tmp_path / "model.safetensors")
    model.calibration = Calibration(1.75, 60, "minival")
    model_file.save(tmp_path / "calibrated.safetensors", model, class_names=model.class_names)
    for args, is_kept in ((["--tta", "d4"], False), (["--image-size", "320"], False), (["--half"], True)):
        out = f"{args[0].strip('-')}.safetensors"
        done = run_ok("convert", "calibrated.safetensors", out, *args, cwd=tmp_path)
        assert (model_file.load(tmp_path / out).calibration is not None) is is_kept
        assert ("temperature was fitted with another preprocessing" in done.stdout + done.stderr) is not is_kept


@pytest.mark.parametrize("name", ["ensemble.json", "crossval.json"])
def test_cross_validation_folder_is_refused(name, tmp_path):
    """Whether or not the models of its folds are an ensemble."""
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds" / name).write_text('{"members": ["fold1/model.safetensors"]}')
    done = run_refused("convert", "folds", "out.safetensors", cwd=tmp_path)
    assert mentions(done.stderr, "IN", "fold")
    assert mentions(done.stderr, "folds/fold1")


def test_models_of_other_libraries_change_only_their_metadata(tmp_path):
    model = create("torchvision:mobilenet_v3_small", num_classes=2)
    model_file.save(tmp_path / "other.safetensors", model, class_names=("oak", "elm"))
    result = run_json("convert", "other.safetensors", "out.safetensors", "--half", "--tta", "d4", cwd=tmp_path)
    assert (result["architecture"], result["num_classes"]) == (None, 2)
    made = model_file.load(tmp_path / "out.safetensors")
    assert (made.preprocessing.tta, made.class_names) == ("d4", ("oak", "elm"))
    done = effnetv2("convert", "other.safetensors", "again.safetensors", "--class-names", "a,b", cwd=tmp_path)
    assert mentions(done.stdout, "torchvision:mobilenet_v3_small")
    refused = run_refused("convert", "other.safetensors", "folder", "--to", "timm", cwd=tmp_path)
    assert "a model of another library" in refused.stderr


def test_timm_folder_never_replaces_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run/model.safetensors", get_architecture("efficientnetv2_b0"))
    before = (tmp_path / "run/model.safetensors").read_bytes()
    for source in ("run", "run/model.safetensors"):
        done = run_refused("convert", source, "run", "--to", "timm", "--overwrite", cwd=tmp_path)
    assert mentions(done.stderr, "OUT", "model.safetensors")
    assert (tmp_path / "run/model.safetensors").read_bytes() == before
    for _ in range(2):  # an earlier timm folder is replaced
        run_ok("convert", "run", "hub", "--to", "timm", "--overwrite", cwd=tmp_path)


def test_border_crop_mode_excludes_crop_pct(tmp_path):
    save_model(tmp_path / "in.safetensors", get_architecture("efficientnetv2_b0"))
    args = ("convert", "in.safetensors", "out.safetensors", "--crop-mode", "border")
    run_refused(*args, "--crop-pct", "0.8", cwd=tmp_path, names=("--crop-pct", "0.8"))
    assert effnetv2(*args, cwd=tmp_path).returncode == 0
    run_ok("convert", "out.safetensors", "hub", "--to", "timm", cwd=tmp_path)
    stated = json.loads((tmp_path / "hub/config.json").read_text())["pretrained_cfg"]
    assert (stated["crop_mode"], stated["crop_pct"]) == ("border", 1.0)


def test_dot_names_the_working_directory(tmp_path):
    save_model(tmp_path / "model.safetensors", get_architecture("efficientnetv2_b0"))
    run_ok("convert", ".", "half.safetensors", "--half", cwd=tmp_path)
    (tmp_path / "empty").mkdir()
    run_refused("predict", ".", "1.jpg", cwd=tmp_path / "empty", names=("model.safetensors",))


NAMES = ("oak", "elm", "ash")


@pytest.fixture(scope="module")
def raw_timm_weights(tmp_path_factory):
    """timm's tensors without any metadata."""
    torch.manual_seed(0)
    model = create("efficientnetv2_b0", num_classes=3)
    renamed = tensor_names("timm", model.architecture)
    path = tmp_path_factory.mktemp("foreign") / "in.safetensors"
    save_file({renamed[name]: value for name, value in model.state_dict().items()}, path)
    return path


@pytest.fixture
def image_table(tmp_path):
    """A table of three images, one for each class."""
    with open(tmp_path / "list.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for number, name in enumerate(NAMES):
            Image.new("RGB", (60, 40), (80 * number, 90, 200)).save(tmp_path / f"{name}.png")
            rows.writerow([f"{name}.png", name])
    return tmp_path / "list.csv"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.txt", "oak\nelm\nash\n"),
        ("windows.txt", "\ufeffoak\r\n elm \r\n\r\nash"),
        ("names.json", '["oak", "elm", "ash"]'),
        ("by_number.json", '{"0": "oak", "2": "ash", "1": "elm"}'),
        ("by_name.json", '{"ash": 2, "oak": 0, "elm": 1}'),
    ],
)
def test_class_names_are_read_from_a_file(tmp_path, file, text):
    (tmp_path / file).write_text(text, encoding="utf-8", newline="")
    assert read_class_names(str(tmp_path / file)) == NAMES


def test_numeric_class_names_keep_their_order(tmp_path):
    """``{"0": "1"}`` names output 0; only integers as values number the names."""
    (tmp_path / "digits.json").write_text('{"0": "1", "1": "0"}')
    assert read_class_names(str(tmp_path / "digits.json")) == ("1", "0")


def test_class_names_are_read_from_a_list():
    assert read_class_names("oak, elm,ash") == NAMES
    assert read_class_names("oak") == ("oak",)
    many = [f"class {number}" for number in range(1000)]
    assert read_class_names(",".join(many)) == tuple(many), "longer than any file name"


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ('{"oak": 0, "elm": 2}', "does not number the names from 0"),
        ('{"oak": 0, "elm": 0}', "does not number the names from 0"),
        ('{"oak": 0, "1": "elm"}', "does not number the names from 0"),
        ('{"oak": true}', "does not number"),
        ('{"0": ["n01440764", "tench"]}', "does not number"),
        ("[1, 2]", "is not a list of names"),
        ('["oak"', "neither JSON nor text"),
        (b"\xff\xfe\xfa", "neither JSON nor text"),
    ],
)
def test_files_without_class_names_are_refused(tmp_path, text, facts):
    (tmp_path / "n.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=rf"class_names`: .*n\.json.*({facts})"):
        read_class_names(str(tmp_path / "n.json"))


def test_missing_class_name_file_is_refused():
    with pytest.raises(InputError, match=mentioning("class_names", "nowhere.txt")):
        read_class_names("nowhere.txt")


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"crop_mode": "sqash"}, ("crop_mode", "did you mean", "squash")),
        ({"interpolation": "cubic"}, ("bicubic",)),
        ({"tta": "eight"}, ("tta", "eight")),
        ({"mean": (127, 127, 127)}, ("mean", "127,127,127")),
        ({"mean": (0.5, float("nan"), 0.5)}, ("mean", "0.5,nan,0.5")),
        ({"std": (0.5, 0, 0.5)}, ("std", "0.5,0,0.5", "0", "1")),
        ({"crop_pct": 87.5}, ("crop_pct", "87.5", "0", "1")),
        ({"crop_pct": float("nan")}, ("crop_pct",)),
        ({"crop_pct": "0.9"}, ("crop_pct", "number")),
        ({"mean": 0.5}, ("mean", "channel", "0.5")),
        (Preprocessing(image_size=96), ("preprocessing", "{'image_size': 224}")),
    ],
)
def test_invalid_preprocessing_values_are_refused(values, facts):
    with pytest.raises(InputError, match=mentioning(*facts)):
        user_metadata(None, values)


def test_class_names_may_be_a_path(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\n")
    assert user_metadata(tmp_path / "names.txt", {}).class_names == ("a", "b")


@pytest.mark.parametrize(
    ("values", "base", "expected"),
    [
        # No values: unchanged.
        ({}, {"crop_mode": "center", "crop_pct": 0.9}, {"crop_mode": "center", "crop_pct": 0.9}),
        # Without a crop, there is no crop_pct.
        ({"crop_mode": "squash"}, {"crop_mode": "center", "crop_pct": 0.9}, {"crop_mode": "squash"}),
        ({"crop_mode": "border"}, {"crop_mode": "center", "crop_pct": 0.9}, {"crop_mode": "border"}),
        # A crop without a number keeps the earlier number.
        ({"crop_mode": "center"}, {"crop_mode": "center", "crop_pct": 0.9}, {"crop_mode": "center", "crop_pct": 0.9}),
        (
            {"crop_mode": "squash", "crop_pct": 0.8},
            {"crop_mode": "center", "crop_pct": 0.9},
            {"crop_mode": "squash", "crop_pct": 0.8},
        ),
        ({"mean": (0.1, 0.2, 0.3)}, {}, {"mean": (0.1, 0.2, 0.3)}),
    ],
)
def test_preprocessing_values_override_the_model_file(values, base, expected):
    before = Preprocessing(image_size=64, **base)
    assert user_metadata(None, values).apply_to(before) == Preprocessing(image_size=64, **expected)


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"image_size": 0}, ("image_size", "0")),
        ({"mean": (0.5,)}, ("1", "3", "channel")),
        ({"std": (0.5, 0, 0.5)}, ("above 0",)),
    ],
)
def test_impossible_preprocessing_is_refused(values, facts):
    with pytest.raises(InputError, match=mentioning(*facts)):
        user_metadata(None, values).apply_to(Preprocessing(image_size=64))


def test_timm_weights_become_a_model_file_that_evaluates(tmp_path, raw_timm_weights, image_table):
    """The messages lead from the weights to ``convert``, then from the labels to ``--class-names``."""
    done = run_refused("evaluate", raw_timm_weights, image_table, cwd=tmp_path)
    assert mentions(done.stderr, raw_timm_weights, "effnetv2 convert", "OUT.safetensors")

    done = run_ok("convert", raw_timm_weights, "m.safetensors", "--image-size", "64", cwd=tmp_path)
    assert mentions(done.stdout, "interpolation", "mean", "std")
    assert mentions(done.stdout, "'0'", "'2'", "class")
    assert "--class-names" in done.stdout
    done = run_refused("evaluate", "m.safetensors", image_table, cwd=tmp_path)
    assert mentions(done.stderr, "'ash', 'elm', 'oak'", "'0'", "'2'")
    assert "effnetv2 convert m.safetensors NAMED.safetensors --class-names NAMES.txt" in done.stderr
    assert "Correct the labels" not in done.stderr

    (tmp_path / "NAMES.txt").write_text("oak\nelm\nash\n")
    run_ok("convert", "m.safetensors", "NAMED.safetensors", "--class-names", "NAMES.txt", cwd=tmp_path)
    done = run_ok("evaluate", "NAMED.safetensors", image_table, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["per_class"].keys() == set(NAMES)


def test_unknown_labels_suggest_naming_the_classes(tmp_path, image_table):
    """Only if no label is known, as with an ImageNet model trained on something else."""
    model = create("efficientnetv2_b0", num_classes=3)
    for class_names, suggested in ((("tench", "shark", "hen"), True), (("tench", "shark", "elm"), False)):
        model_file.save(tmp_path / "m.safetensors", model, class_names=class_names)
        done = run_refused("evaluate", "m.safetensors", image_table, cwd=tmp_path)
        assert ("convert m.safetensors NAMED.safetensors --class-names" in done.stderr) == suggested
        assert ("Correct the labels" in done.stderr) == (not suggested)


def test_all_metadata_can_be_set(tmp_path, raw_timm_weights):
    options = (
        "--class-names", "oak,elm,ash", "--image-size", 80, "--crop-mode", "border", "--interpolation", "bilinear",
        "--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6", "--tta", "d4",
    )  # fmt: skip
    done = run_ok("convert", raw_timm_weights, "m.safetensors", *options, cwd=tmp_path)
    assert "assumed" not in done.stdout
    model = model_file.load(tmp_path / "m.safetensors")
    assert model.class_names == NAMES
    assert model.preprocessing == Preprocessing(
        image_size=80, crop_mode="border", interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), tta="d4"
    )
    # The values are also written to other formats.
    run_ok("convert", raw_timm_weights, "hub", "--to", "timm", *options, cwd=tmp_path)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["label_names"] == list(NAMES)
    assert config["pretrained_cfg"]["input_size"] == [3, 80, 80]


@pytest.mark.parametrize(("names", "facts"), [("oak,elm", ("2", "3", "class")), ("oak,elm,oak", ("oak",))])
def test_wrong_number_of_class_names_is_refused(tmp_path, raw_timm_weights, names, facts):
    run_refused("convert", raw_timm_weights, "m.safetensors", "--class-names", names, cwd=tmp_path, names=facts)
    assert not (tmp_path / "m.safetensors").exists()


def test_changed_preprocessing_drops_the_metrics(tmp_path):
    model = create("efficientnetv2_b0", num_classes=2)
    model_file.save(
        tmp_path / "m.safetensors", model, class_names=("a", "b"), recipe={"name": "x"}, metrics={"val_top1": 0.9}
    )
    run_ok("convert", "m.safetensors", "named.safetensors", "--class-names", "oak,elm", cwd=tmp_path)
    named = model_file.load(tmp_path / "named.safetensors")
    assert (named.class_names, named.metrics, named.recipe) == (("oak", "elm"), {"val_top1": 0.9}, {"name": "x"})
    done = effnetv2("convert", "m.safetensors", "squashed.safetensors", "--crop-mode", "squash", cwd=tmp_path)
    assert mentions(done.stdout, "preprocessing")
    squashed = model_file.load(tmp_path / "squashed.safetensors")
    assert (squashed.preprocessing.crop_mode, squashed.preprocessing.crop_pct) == ("squash", 1.0)
    assert (squashed.metrics, squashed.class_names) == ({}, ("a", "b"))


def test_suggested_command_is_quoted(class_folders):
    with pytest.raises(InputError, match=mentioning("effnetv2 convert 'my runs/a' NAMED", "--class-names", "NAMES")):
        align_labels(load_dataset(class_folders), ("0", "1", "2"), "my runs/a", merge=False)
    with pytest.raises(InputError, match=mentioning("effnetv2 convert 'my runs/a' NAMED", "--class-names", "NAMES")):
        align_labels(load_dataset(class_folders), NAMES, "my runs/a", merge=False)


def test_convert_is_not_suggested_for_ensembles(class_folders, tmp_path):
    (tmp_path / "ensemble.json").write_text(json.dumps({"members": ["fold1/model.safetensors"]}))
    with pytest.raises(InputError, match=mentioning(str(tmp_path), *NAMES, "labels of the table")) as error:
        align_labels(load_dataset(class_folders), NAMES, str(tmp_path), merge=False)
    assert "effnetv2 convert" not in str(error.value)


def test_detector_of_unknown_images_at_another_size_is_left_out():
    network = create("efficientnetv2_b0", num_classes=2)
    network.unknown = UnknownDetector.fit(torch.randn(60, network.embed_dim), "val")
    apply_metadata(network, user_metadata(None, {}))
    assert network.unknown is not None
    network.calibration = Calibration(2.0, 100, "minival")
    (note,) = apply_metadata(network, user_metadata(None, {"tta": "d4"}))
    assert "temperature" in note
    assert network.unknown is not None, "it sees one view"
    (note,) = apply_metadata(network, user_metadata(None, {"image_size": 96}))
    assert network.unknown is None
    assert mentions(note, "detector", "preprocessing")
