"""What a file of others cannot say is told on the command line, and makes a usable model file of it."""

import csv
import json

import pytest
import torch
from safetensors.torch import save_file
from tests.command_line import effnetv2
from tests.messages import mentioning, mentions

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.models import model_file
from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.convert import read_class_names, user_metadata
from efficientnetv2.workflows.evaluate_options import align_labels

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
        # The whole picture is the whole picture.
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
