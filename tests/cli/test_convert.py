"""``effnetv2 convert`` as a user meets it: there, back, and refused."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from tests.command_line import effnetv2
from tests.messages import mentioning, mentions

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.models import model_file
from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.convert import read_class_names, temperature_notes, user_metadata
from efficientnetv2.workflows.evaluate_options import align_labels

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def made_by_timm(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("timm") / "in.safetensors"
    save_file(timm.create_model("tf_efficientnetv2_b0", num_classes=3).state_dict(), file)
    return file


@pytest.fixture
def timm_file(made_by_timm, tmp_path):
    return shutil.copy(made_by_timm, tmp_path / "in.safetensors")


def save_ours(path, table, classes=("oak", "elm")):
    torch.manual_seed(1)
    network = EfficientNet(table, num_classes=len(classes))
    model_file.save(
        path, network, preprocessing=Preprocessing(image_size=96), class_names=classes, recipe={"a": 1}, metrics={}
    )
    return path


def test_from_timm_to_a_model_file_and_back(tmp_path, timm_file):
    done = effnetv2("convert", timm_file, "out.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("tf_efficientnetv2_b0 of timm", 'TensorFlow\'s "same"', "epsilon 0.001", "224 px", "0.485",
                  "Classes: 3: '0', '1', '2'", "Note: ", "Written to out.safetensors"):  # fmt: skip
        assert words in done.stdout
    back = effnetv2("convert", "out.safetensors", "back", "--to", "timm", cwd=tmp_path)
    assert back.returncode == 0
    assert mentions(back.stdout, "timm.create_model", "local-dir:back", "pretrained=True")
    before, after = load_file(timm_file), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["label_names"] == ["0", "1", "2"]


def test_what_has_no_classifier_has_nothing_to_name(tmp_path):
    save_ours(tmp_path / "in.safetensors", get_architecture("efficientnetv2_b0"), classes=())
    done = effnetv2("convert", "in.safetensors", "out.safetensors", "--class-names", "oak,elm", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "2", "classifier")
    assert not (tmp_path / "out.safetensors").exists()


def test_json_says_all_of_it(tmp_path, timm_file):
    done = effnetv2("convert", timm_file, "out.safetensors", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert (told["num_classes"], told["in_channels"], told["class_names"]) == (3, 3, ["0", "1", "2"])
    assert told["preprocessing"]["image_size"] == 224
    assert told["architecture"]["padding"] == "same"
    assert told["notes"]


def test_from_torchvision(tmp_path):
    network = torchvision.models.efficientnet_b0()
    torch.save(network.state_dict(), tmp_path / "in.pth")
    done = effnetv2("convert", "in.pth", "out.safetensors", cwd=tmp_path)
    assert mentions(done.stdout, "efficientnet_b0", "torchvision")
    ours = model_file.load(tmp_path / "out.safetensors")
    assert (ours.architecture.padding, ours.architecture.batch_norm_epsilon) == ("symmetric", 1e-5)
    assert ours.class_names[0] == "tench"
    pictures = torch.randn(1, 3, 70, 70)
    with torch.inference_mode():
        assert torch.allclose(ours(pictures), network.eval()(pictures), atol=1e-5)


def test_a_run_folder_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    save_ours(tmp_path / "run" / "model.safetensors", get_architecture("efficientnetv2_b0"))
    done = effnetv2("convert", "run", "hub", "--to", "timm", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a model file of this package" in done.stdout
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["label_names"] == ["oak", "elm"]


def test_half_the_bytes_to_share(tmp_path):
    save_ours(tmp_path / "in.safetensors", get_architecture("efficientnetv2_b0"))
    done = effnetv2("convert", "in.safetensors", "half.safetensors", "--half", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("in", "half"))
    assert 0.5 < after / before < 0.53
    assert mentions(done.stdout, f"{after / 1000000.0:.1f}", "1", "2048", "3e-8", "MB")
    whole, half = (model_file.load(tmp_path / f"{name}.safetensors") for name in ("in", "half"))
    assert (half.class_names, half.preprocessing, half.recipe) == (("oak", "elm"), whole.preprocessing, {"a": 1})
    pictures = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(half(pictures), whole(pictures), rtol=0, atol=1e-3)
    refused = effnetv2("convert", "in.safetensors", "hub", "--half", "--to", "timm", cwd=tmp_path)
    assert refused.returncode == 2
    assert mentions(refused.stderr, "--half")


def test_what_others_do_not_see_is_said(tmp_path):
    table = replace(get_architecture("efficientnet_b0"), padding="symmetric", batch_norm_epsilon=1e-5)
    save_ours(tmp_path / "in.safetensors", table)
    done = effnetv2("convert", "in.safetensors", "out.pth", "--to", "torchvision", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("the class names: torchvision does not see", "the preprocessing: torchvision does not see"):
        assert f"Note: {words}" in done.stdout
    told = json.loads(effnetv2("convert", "in.safetensors", "hub", "--to", "timm", "--json", cwd=tmp_path).stdout)
    assert told["notes"] == []


@pytest.mark.parametrize(("to", "out"), [("timm", "hub"), ("torchvision", "out.pth")])
def test_that_others_do_not_see_the_rule_for_bands_is_said(tmp_path, to, out):
    table = replace(get_architecture("efficientnet_b0"), padding="symmetric", batch_norm_epsilon=1e-5)
    network = EfficientNet(table, num_classes=2)
    rule = Bands((4, 3, 2), (100,) * 3, (4000,) * 3, names=("red", "", ""), kinds=("uint16",))
    network.preprocessing = Preprocessing(image_size=96, bands=rule)
    model_file.save(tmp_path / "in.safetensors", network, class_names=("oak", "elm"))
    done = effnetv2("convert", "in.safetensors", out, "--to", to, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = (note for note in json.loads(done.stdout)["notes"] if "raster bands" in note)
    assert mentions(line, to, "4", "3", "2")


def test_which_of_timms_twins_can_be_said(tmp_path):
    save_file(timm.create_model("efficientnet_b0", num_classes=2).state_dict(), tmp_path / "in.safetensors")
    done = effnetv2("convert", "in.safetensors", "out.safetensors", "--model", "efficientnet_b0", cwd=tmp_path)
    assert mentions(done.stdout, "1e-05", "batch-norm")
    assert model_file.load(tmp_path / "out.safetensors").architecture.padding == "symmetric"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["in.safetensors", "out.safetensors", "--to", "tim"], ("did you mean", "timm")),
        (["in.safetensors", "out.bin"], ("OUT", "end in .safetensors")),
        (["in.safetensors", "no/out.safetensors"], ("there is no folder no",)),
        (["in.safetensors", "in.safetensors"], ("IN",)),
        (["none.pth", "out.safetensors"], ("none.pth",)),
        (["in.safetensors", "out.pth", "--to", "torchvision"], ("torchvision",)),
        (["in.safetensors", "out.onnx", "--to", "keras"], ("out.onnx",)),
        (["in.safetensors", "out.onnx", "--to", "onnx"], ("effnetv2 export", "--format onnx")),
        (["in.safetensors", "out.onnx", "--to", "tim"], ("did you mean", "timm")),
        (["in.safetensors", "out.safetensors", "--model", "resnet50"], ("resnet50", "timm")),
        (["efficientnetv2_s.in1k", "s.safetensors"], ("effnetv2 train DATA --weights efficientnetv2_s.in1k",)),
        (["in.safetensors", "noext", "--to", "keras"], ("Keras",)),
        (
            ["in.safetensors", "out.safetensors", "--model", "efficientnetv2_b0"],
            ("did you mean", "tf_efficientnetv2_b0"),
        ),
        (["ours.safetensors", "out.safetensors", "--model", "efficientnetv2_s"], ("is a model file",)),
        (["in.safetensors", "ours.safetensors.note", "--to", "timm"], ("exists. Give another place",)),
    ],
)
def test_refusals_name_the_fault_and_leave_nothing(tmp_path, timm_file, words, said):
    table = replace(get_architecture("efficientnetv2_b0"), head_channels=32)
    save_ours(tmp_path / "ours.safetensors", table)
    (tmp_path / "ours.safetensors.note").write_text("of the user")
    before = sorted(tmp_path.iterdir())
    done = effnetv2("convert", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, *said)
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_that_has_not_ended_is_told_so(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text("name: quick")
    done = effnetv2("convert", "run", "out.safetensors", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "model.safetensors", "training")


def test_a_runs_only_weights_are_not_halved_in_their_place(tmp_path):
    """Whichever of the two its folder or its file is called by."""
    (tmp_path / "run").mkdir()
    ours = save_ours(tmp_path / "run/model.safetensors", get_architecture("efficientnetv2_b0"))
    before = ours.read_bytes()
    for source in ("run", "run/../run/model.safetensors"):
        words = ("convert", source, "run/model.safetensors", "--half", "--overwrite")
        done = effnetv2(*words, cwd=tmp_path)
        assert done.returncode == 2
        assert mentions(done.stderr, "OUT", "run/model.safetensors", "IN")
    assert ours.read_bytes() == before


def test_what_is_there_is_replaced_on_demand_alone(timm_file, tmp_path):
    (tmp_path / "out.safetensors").write_text("precious")
    words = ("convert", timm_file, "out.safetensors")
    refused = effnetv2(*words, cwd=tmp_path)
    assert refused.returncode == 2
    assert mentions(refused.stderr, "OUT", "out.safetensors")
    assert (tmp_path / "out.safetensors").read_text() == "precious"
    assert effnetv2(*words, "--overwrite", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out.safetensors").stat().st_size > 1_000_000


def test_that_the_temperature_stays_behind_is_said(tmp_path):
    """And of a network without one nothing."""
    save_ours(tmp_path / "ours.safetensors", get_architecture("efficientnetv2_b0"))
    plain = effnetv2("convert", "ours.safetensors", "plain.pth", "--to", "timm", cwd=tmp_path)
    assert "temperature" not in plain.stdout + plain.stderr
    network = model_file.load(tmp_path / "ours.safetensors")
    network.calibration = Calibration(1.75, 60, "minival")
    model_file.save(tmp_path / "calibrated.safetensors", network, class_names=network.class_names)
    done = effnetv2("convert", "calibrated.safetensors", "out.pth", "--to", "timm", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout + done.stderr, "1.75", "temperature")


@pytest.mark.parametrize("answered", ["softmax", "sigmoid"])
def test_how_to_have_the_temperature_in_keras_is_said_of_its_probabilities(answered):
    """Its networks end with a softmax or sigmoid, so that nobody sees their logits."""
    network = create("efficientnetv2_b0", num_classes=3)
    network.calibration, network.activation = Calibration(2.0, 60, "minival"), answered
    [line] = temperature_notes(network, "keras")
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    if answered == "softmax":
        assert mentions(line, "0.5")
        raised = logits.softmax(dim=1) ** 0.5
        torch.testing.assert_close(raised / raised.sum(), (logits / 2).softmax(dim=1))
    else:
        assert mentions(line, "1", "sigmoid")
        torch.testing.assert_close((logits.sigmoid().logit() / 2).sigmoid(), (logits / 2).sigmoid())
    assert mentions(temperature_notes(network, "timm")[0], "logits")


def test_a_temperature_of_other_pictures_is_left_out(tmp_path):
    """It was fitted on answers at the size and views of then."""
    save_ours(tmp_path / "ours.safetensors", get_architecture("efficientnetv2_b0"))
    network = model_file.load(tmp_path / "ours.safetensors")
    network.calibration = Calibration(1.75, 60, "minival")
    model_file.save(tmp_path / "calibrated.safetensors", network, class_names=network.class_names)
    for words, kept in ((["--tta", "d4"], False), (["--image-size", "320"], False), (["--half"], True)):
        out = f"{words[0].strip('-')}.safetensors"
        done = effnetv2("convert", "calibrated.safetensors", out, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (model_file.load(tmp_path / out).calibration is not None) is kept
        assert ("temperature was fitted with another preprocessing" in done.stdout + done.stderr) is not kept


@pytest.mark.parametrize("name", ["ensemble.json", "crossval.json"])
def test_a_cross_validation_has_more_networks_than_a_file_holds(name, tmp_path):
    """Whether its folds answer together, or do not yet."""
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds" / name).write_text('{"members": ["fold1/model.safetensors"]}')
    done = effnetv2("convert", "folds", "out.safetensors", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "IN", "fold")
    assert mentions(done.stderr, "folds/fold1")


def test_networks_of_others_change_what_their_file_says_and_go_to_nobody(tmp_path):
    network = create("torchvision:mobilenet_v3_small", num_classes=2)
    model_file.save(tmp_path / "theirs.safetensors", network, class_names=("oak", "elm"))
    words = ("convert", "theirs.safetensors", "out.safetensors", "--half", "--tta", "d4", "--json")
    done = effnetv2(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["architecture"], told["num_classes"]) == (None, 2)
    made = model_file.load(tmp_path / "out.safetensors")
    assert (made.preprocessing.tta, made.class_names) == ("d4", ("oak", "elm"))
    done = effnetv2("convert", "theirs.safetensors", "again.safetensors", "--class-names", "a,b", cwd=tmp_path)
    assert mentions(done.stdout, "torchvision:mobilenet_v3_small")
    refused = effnetv2("convert", "theirs.safetensors", "folder", "--to", "timm", cwd=tmp_path)
    assert refused.returncode == 2
    assert "a model of another library" in refused.stderr


def test_a_folder_for_timm_does_not_take_a_runs_place(tmp_path):
    (tmp_path / "run").mkdir()
    save_ours(tmp_path / "run/model.safetensors", get_architecture("efficientnetv2_b0"))
    before = (tmp_path / "run/model.safetensors").read_bytes()
    for source in ("run", "run/model.safetensors"):
        done = effnetv2("convert", source, "run", "--to", "timm", "--overwrite", cwd=tmp_path)
        assert done.returncode == 2
    assert mentions(done.stderr, "OUT", "model.safetensors")
    assert (tmp_path / "run/model.safetensors").read_bytes() == before
    for _ in range(2):  # a folder for timm itself is replaced
        done = effnetv2("convert", "run", "hub", "--to", "timm", "--overwrite", cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_padded_picture_is_not_cut(tmp_path):
    save_ours(tmp_path / "in.safetensors", get_architecture("efficientnetv2_b0"))
    words = ("convert", "in.safetensors", "out.safetensors", "--crop-mode", "border")
    refused = effnetv2(*words, "--crop-pct", "0.8", cwd=tmp_path)
    assert refused.returncode == 2
    assert mentions(refused.stderr, "--crop-pct", "0.8")
    assert effnetv2(*words, cwd=tmp_path).returncode == 0
    done = effnetv2("convert", "out.safetensors", "hub", "--to", "timm", cwd=tmp_path)
    assert done.returncode == 0
    stated = json.loads((tmp_path / "hub/config.json").read_text())["pretrained_cfg"]
    assert (stated["crop_mode"], stated["crop_pct"]) == ("border", 1.0)


def test_the_folder_that_one_stands_in_is_named_by_a_dot(tmp_path):
    save_ours(tmp_path / "model.safetensors", get_architecture("efficientnetv2_b0"))
    done = effnetv2("convert", ".", "half.safetensors", "--half", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "empty").mkdir()
    refused = effnetv2("predict", ".", "1.jpg", cwd=tmp_path / "empty")
    assert refused.returncode == 2
    assert mentions(refused.stderr, "model.safetensors")


NAMES = ("oak", "elm", "ash")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """timm's tensors and no more."""
    torch.manual_seed(0)
    network = create("efficientnetv2_b0", num_classes=3)
    renamed = tensor_names("timm", network.architecture)
    path = tmp_path_factory.mktemp("foreign") / "in.safetensors"
    save_file({renamed[name]: value for name, value in network.state_dict().items()}, path)
    return path


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

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
def test_names_out_of_a_file(tmp_path, file, text):
    (tmp_path / file).write_text(text, encoding="utf-8", newline="")
    assert read_class_names(str(tmp_path / file)) == NAMES


def test_names_of_numbers_are_not_turned_around(tmp_path):
    """``{"0": "1"}`` names output 0; only whole numbers as values number the names."""
    (tmp_path / "digits.json").write_text('{"0": "1", "1": "0"}')
    assert read_class_names(str(tmp_path / "digits.json")) == ("1", "0")


def test_names_in_words():
    assert read_class_names("oak, elm,ash") == NAMES
    assert read_class_names("oak") == ("oak",)
    many = [f"class {number}" for number in range(1000)]
    assert read_class_names(",".join(many)) == tuple(many), "longer than the name of any file"


@pytest.mark.parametrize(
    ("text", "said"),
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
def test_files_that_hold_no_names(tmp_path, text, said):
    (tmp_path / "n.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=rf"class_names`: .*n\.json.*({said})"):
        read_class_names(str(tmp_path / "n.json"))


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match=mentioning("class_names", "nowhere.txt")):
        read_class_names("nowhere.txt")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"crop_mode": "sqash"}, ("crop_mode", "did you mean", "squash")),
        ({"interpolation": "cubic"}, ("bicubic",)),
        ({"tta": "eight"}, ("tta", "eight")),
        ({"mean": (127, 127, 127)}, ("mean", "127,127,127")),
        ({"std": (58.4, 57.1, 57.4)}, ("std",)),
        ({"mean": (0.5, float("nan"), 0.5)}, ("mean", "0.5,nan,0.5")),
        ({"std": (0.5, 0, 0.5)}, ("std", "0.5,0,0.5", "0", "1")),
        ({"std": (0.5, -0.2, 0.5)}, ("std", "0.5,-0.2,0.5", "0", "1")),
        ({"crop_pct": 87.5}, ("crop_pct", "87.5", "0", "1")),
        ({"crop_pct": 0.0}, ("crop_pct", "0")),
        ({"crop_pct": float("nan")}, ("crop_pct",)),
    ],
)
def test_words_that_mean_nothing(words, said):
    with pytest.raises(InputError, match=mentioning(*said)):
        user_metadata(None, words)


@pytest.mark.parametrize(
    ("words", "base", "expected"),
    [
        # Nothing told: as it was.
        ({}, {"crop_mode": "center", "crop_pct": 0.9}, {"crop_mode": "center", "crop_pct": 0.9}),
        # The whole image is the whole image.
        ({"crop_mode": "squash"}, {"crop_mode": "center", "crop_pct": 0.9}, {"crop_mode": "squash"}),
        ({"crop_mode": "border"}, {"crop_mode": "center", "crop_pct": 0.9}, {"crop_mode": "border"}),
        # A cut without a number is the one that there was.
        ({"crop_mode": "center"}, {"crop_mode": "center", "crop_pct": 0.9}, {"crop_mode": "center", "crop_pct": 0.9}),
        (
            {"crop_mode": "squash", "crop_pct": 0.8},
            {"crop_mode": "center", "crop_pct": 0.9},
            {"crop_mode": "squash", "crop_pct": 0.8},
        ),
        ({"mean": (0.1, 0.2, 0.3)}, {}, {"mean": (0.1, 0.2, 0.3)}),
    ],
)
def test_what_is_told_of_the_preprocessing(words, base, expected):
    before = Preprocessing(image_size=64, **base)
    assert user_metadata(None, words).apply_to(before) == Preprocessing(image_size=64, **expected)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"image_size": 0}, ("image_size", "0")),
        ({"mean": (0.5,)}, ("1", "3", "channel")),
        ({"std": (0.5, 0, 0.5)}, ("above 0",)),
    ],
)
def test_preprocessing_that_cannot_be(words, said):
    with pytest.raises(InputError, match=mentioning(*said)):
        user_metadata(None, words).apply_to(Preprocessing(image_size=64))


def test_a_foreign_file_becomes_a_model_file_that_evaluates(tmp_path, foreign, pictures):
    """First led by the messages from the file itself to the command, then by its labels to the names."""
    done = effnetv2("evaluate", foreign, pictures, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, foreign, "effnetv2 convert", "OUT.safetensors")

    done = effnetv2("convert", foreign, "m.safetensors", "--image-size", "64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "interpolation", "mean", "std")
    assert mentions(done.stdout, "'0'", "'2'", "class")
    assert "--class-names" in done.stdout
    done = effnetv2("evaluate", "m.safetensors", pictures, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "'ash', 'elm', 'oak'", "'0'", "'2'")
    assert "effnetv2 convert m.safetensors NAMED.safetensors --class-names NAMES.txt" in done.stderr
    assert "Correct the labels" not in done.stderr

    (tmp_path / "NAMES.txt").write_text("oak\nelm\nash\n")
    done = effnetv2("convert", "m.safetensors", "NAMED.safetensors", "--class-names", "NAMES.txt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = effnetv2("evaluate", "NAMED.safetensors", pictures, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["per_class"].keys() == set(NAMES)


def test_classes_called_wrongly_are_led_to_the_names(tmp_path, pictures):
    """As of an ImageNet network whose thousand outputs were trained for something else; one known label is enough."""
    network = create("efficientnetv2_b0", num_classes=3)
    for called, leads in ((("tench", "shark", "hen"), True), (("tench", "shark", "elm"), False)):
        model_file.save(tmp_path / "m.safetensors", network, class_names=called)
        done = effnetv2("evaluate", "m.safetensors", pictures, cwd=tmp_path)
        assert done.returncode == 2
        assert ("convert m.safetensors NAMED.safetensors --class-names" in done.stderr) == leads
        assert ("Correct the labels" in done.stderr) == (not leads)


def test_all_of_it_can_be_told(tmp_path, foreign):
    words = {"--class-names": "oak,elm,ash", "--image-size": 80, "--crop-mode": "border", "--interpolation": "bilinear",
             "--mean": "0.1,0.2,0.3", "--std": "0.4,0.5,0.6", "--tta": "d4"}  # fmt: skip
    line = [part for word in words.items() for part in word]
    done = effnetv2("convert", foreign, "m.safetensors", *line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "assumed" not in done.stdout
    network = model_file.load(tmp_path / "m.safetensors")
    assert network.class_names == NAMES
    assert network.preprocessing == Preprocessing(
        image_size=80, crop_mode="border", interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), tta="d4"
    )
    # Told on the way to others, it is what they get.
    done = effnetv2("convert", foreign, "hub", "--to", "timm", *line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["label_names"] == list(NAMES)
    assert config["pretrained_cfg"]["input_size"] == [3, 80, 80]


@pytest.mark.parametrize(("given", "said"), [("oak,elm", ("2", "3", "class")), ("oak,elm,oak", ("oak",))])
def test_names_that_do_not_fit(tmp_path, foreign, given, said):
    done = effnetv2("convert", foreign, "m.safetensors", "--class-names", given, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, *said)
    assert not (tmp_path / "m.safetensors").exists()


def test_a_model_file_told_otherwise_keeps_no_metrics_of_before(tmp_path):
    network = create("efficientnetv2_b0", num_classes=2)
    model_file.save(
        tmp_path / "m.safetensors", network, class_names=("a", "b"), recipe={"name": "x"}, metrics={"val_top1": 0.9}
    )
    done = effnetv2("convert", "m.safetensors", "named.safetensors", "--class-names", "oak,elm", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    named = model_file.load(tmp_path / "named.safetensors")
    assert (named.class_names, named.metrics, named.recipe) == (("oak", "elm"), {"val_top1": 0.9}, {"name": "x"})
    done = effnetv2("convert", "m.safetensors", "whole.safetensors", "--crop-mode", "squash", cwd=tmp_path)
    assert mentions(done.stdout, "preprocessing")
    whole = model_file.load(tmp_path / "whole.safetensors")
    assert (whole.preprocessing.crop_mode, whole.preprocessing.crop_pct) == ("squash", 1.0)
    assert (whole.metrics, whole.class_names) == ({}, ("a", "b"))


def test_the_command_that_names_classes_can_be_pasted(class_folders):
    with pytest.raises(InputError, match=mentioning("effnetv2 convert 'my runs/a' NAMED", "--class-names", "NAMES")):
        align_labels(load_dataset(class_folders), ("0", "1", "2"), "my runs/a", merge=False)
    with pytest.raises(InputError, match=mentioning("effnetv2 convert 'my runs/a' NAMED", "--class-names", "NAMES")):
        align_labels(load_dataset(class_folders), NAMES, "my runs/a", merge=False)


def test_of_networks_that_answer_together_convert_is_not_named_for_it_takes_none(class_folders, tmp_path):
    (tmp_path / "ensemble.json").write_text(json.dumps({"members": ["fold1/model.safetensors"]}))
    with pytest.raises(InputError, match=mentioning(str(tmp_path), *NAMES, "labels of the table")) as refusal:
        align_labels(load_dataset(class_folders), NAMES, str(tmp_path), merge=False)
    assert "effnetv2 convert" not in str(refusal.value)
