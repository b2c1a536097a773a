"""Round trips through the formats of other libraries preserve the probabilities to the bit."""

import io
import json
import os
import shutil
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.random_weights import randomise
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.messages import mentioning, mentions

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.models import model_file
from efficientnetv2.models.conversion import convert
from efficientnetv2.models.conversion.metadata import UserMetadata
from efficientnetv2.models.conversion.tensorflow_checkpoint import loading_tensorflow
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.model_header import CARRIED
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.utils.errors import InputError

pytest.importorskip("timm")
h5py = pytest.importorskip("h5py")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")

pytestmark = [
    # Raised by Keras with numpy 2 and tensors of PyTorch.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
]

PHOTOGRAPHS = sorted((Path(__file__).parents[3] / "examples/land_cover/images").glob("*.jpg"))[::80]
CLASSES = ("naïve", "oak, red", "elm")
TF, V1 = get_architecture("efficientnetv2_b0"), get_architecture("efficientnet_b0")
PLAIN = replace(V1, padding="symmetric", batch_norm_epsilon=1e-5)  # timm's model without tf_, and torchvision's
# No default has these values.
UNUSUAL = {"image_size": 74, "interpolation": "bilinear", "mean": (0.3, 0.4, 0.5), "std": (0.1, 0.2, 0.4)}
CUTS = {
    "squash": {"crop_mode": "squash"},
    "border": {"crop_mode": "border", "tta": "d4"},
    "center": {"crop_mode": "center", "crop_pct": 0.77},  # not an integer size for 74
}


@pytest.fixture(autouse=True)
def _silent():
    with loading_tensorflow():
        yield


def model(table=TF, cut="squash", **changes):
    network = EfficientNet(table, num_classes=len(CLASSES))
    randomise(network)
    network.preprocessing = Preprocessing(**UNUSUAL | CUTS[cut] | changes)
    network.class_names = CLASSES
    network.recipe, network.metrics = {"name": "mine", "epochs": 3}, {"val_top1": 0.75}
    return network


def answers(network):
    """Predictions for non-square images, for which the crop modes differ."""
    return Predictor(network)([*PHOTOGRAPHS[:2], oblong(PHOTOGRAPHS[2])])


def oblong(path):
    from PIL import Image

    with Image.open(path) as picture:
        return picture.convert("RGB").resize((120, 70))


def there_and_back(folder, network, out, to):
    """From a model file to another, as a user converts it."""
    model_file.save(folder / "before.safetensors", network)
    before = model_file.load(folder / "before.safetensors")
    convert.write(folder / out, before, to)
    back = convert.read(folder / out)
    model_file.save(folder / "after.safetensors", back.network)
    after = model_file.load(folder / "after.safetensors")
    assert all(torch.equal(a, after.state_dict()[name]) for name, a in before.state_dict().items())
    for fact in ("architecture", "preprocessing", "class_names", "activation", "recipe", "metrics"):
        assert getattr(after, fact) == getattr(before, fact)
    assert answers(after) == answers(before)
    return back


@pytest.mark.parametrize(
    ("to", "out", "table", "cut"),
    [
        ("timm", "folder", TF, "squash"),
        ("timm", "folder", TF, "border"),
        ("timm", "folder", TF, "center"),
        ("timm", "o.safetensors", TF, "border"),
        ("timm", "o.pth", PLAIN, "center"),  # by default read as the tf_ model
        ("torchvision", "o.pth", PLAIN, "border"),
        ("torchvision", "o.safetensors", PLAIN, "center"),
        ("keras", "o.keras", TF, "center"),
        ("keras", "o.h5", V1, "border"),
        ("keras", "o.weights.h5", V1, "center"),
    ],
)
def test_probabilities_are_preserved(tmp_path, to, out, table, cut):
    back = there_and_back(tmp_path, model(table, cut), out, to)
    assert "preprocessing: as this package wrote it into the file" in back.notes
    assert not any("assumed" in note or "class names" in note for note in back.notes)


@pytest.mark.parametrize(
    ("to", "out"), [("timm", "folder"), ("keras", "o.keras"), ("keras", "o.weights.h5"), ("torchvision", "o.pth")]
)
def test_sigmoid_activation_is_preserved(tmp_path, to, out):
    network = model(PLAIN if to == "torchvision" else V1)
    network.activation = "sigmoid"
    there_and_back(tmp_path, network, out, to)
    told = convert.write(tmp_path / f"told_{out}", network, to)
    assert any("sigmoid" in line for line in told) == (out != "o.keras")


def test_keras_model_applies_the_sigmoid(tmp_path):
    network = model(V1)
    network.activation = "sigmoid"
    convert.write(tmp_path / "o.keras", network, "keras")
    theirs = keras.saving.load_model(tmp_path / "o.keras")
    levels = torch.randint(0, 256, (2, 74, 74, 3)).float()
    mean, std = (torch.tensor(values) for values in (network.preprocessing.mean, network.preprocessing.std))
    with torch.inference_mode():
        own = network.eval()(((levels / 255 - mean) / std).permute(0, 3, 1, 2)).sigmoid()
    torch.testing.assert_close(torch.as_tensor(theirs.predict(levels.numpy(), verbose=0)), own, atol=1e-4, rtol=0)


def test_probabilities_depend_on_each_field():
    """A default or a change of one field changes them."""
    network = model()
    right = answers(network)
    for other in ({"image_size": 75}, {"crop_mode": "center", "crop_pct": 0.875}, {"interpolation": "bicubic"},
                  {"mean": (0.31, 0.4, 0.5)}, {"tta": "d4"}):  # fmt: skip
        network.preprocessing = replace(model().preprocessing, **other)
        assert answers(network) != right


def test_keras_weights_of_v2_preserve_size_and_crop_mode(tmp_path):
    own = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    there_and_back(tmp_path, model(TF, "border", **own), "o.weights.h5", "keras")


def test_user_metadata_has_priority_over_embedded_metadata(tmp_path):
    network = model()
    convert.write(tmp_path / "hub", network, "timm")
    told = UserMetadata({"crop_mode": "border"}, ("a", "b", "c"))
    back = convert.read(tmp_path / "hub", user=told)
    assert back.network.preprocessing == replace(network.preprocessing, crop_mode="border")
    assert back.network.class_names == ("a", "b", "c")
    assert back.network.recipe == network.recipe
    assert back.network.metrics == {}  # measured with another crop mode


@pytest.mark.parametrize(
    ("before", "told", "crop_pct"),
    [
        ({"crop_mode": "center", "crop_pct": 0.77}, {"crop_mode": "border"}, 1.0),
        ({"crop_mode": "center", "crop_pct": 0.77}, {"crop_mode": "squash"}, 1.0),
        ({"crop_mode": "center", "crop_pct": 0.77}, {"crop_mode": "center"}, 0.77),
        ({"crop_mode": "center", "crop_pct": 0.77}, {"image_size": 96}, 0.77),
    ],
)
def test_only_a_center_crop_keeps_a_crop_pct(before, told, crop_pct):
    """Another crop mode does not use the former value."""
    base = replace(model().preprocessing, **before)
    assert UserMetadata(told).apply_to(base) == replace(base, **told, crop_pct=crop_pct)


def test_long_list_of_class_names_is_stored(tmp_path):
    """The 21,843 names of ImageNet-21k exceed the size of an HDF5 attribute."""
    network = EfficientNet(V1, num_classes=21_843)
    network.class_names = tuple(f"a class with a long name {number}" for number in range(21_843))
    convert.write(tmp_path / "o.weights.h5", network, "keras")
    assert convert.read(tmp_path / "o.weights.h5").network.class_names == network.class_names


def test_metadata_that_json_cannot_store_is_rejected_with_one_message(tmp_path):
    network = model(PLAIN)
    network.metrics = {"val_top1": float("nan")}
    for out, to in (("o.pth", "torchvision"), ("o.safetensors", "timm")):
        with pytest.raises(InputError, match=mentioning("metrics.val_top1")) as error:
            convert.write(tmp_path / out, network, to)
        assert str(error.value).count("was not written") == 1
    assert not list(tmp_path.iterdir())


class TestLibrariesIgnoreMetadata:
    """Strict loaders of the libraries ignore the metadata."""

    @pytest.mark.parametrize("name", ["o.keras", "o.h5", "o.weights.h5"])
    def test_keras(self, tmp_path, name):
        network = model(V1)
        convert.write(tmp_path / name, network, "keras")
        if name == "o.weights.h5":
            theirs = keras.applications.EfficientNetB0(weights=None, classes=3, input_shape=(74, 74, 3))
            theirs.load_weights(tmp_path / name)
        else:
            theirs = keras.models.load_model(tmp_path / name)
        kernel = keras.ops.convert_to_numpy(theirs.get_layer("predictions").kernel)
        assert (network.classifier.weight.detach().numpy() == kernel.T).all()
        if name == "o.keras":  # one more archive member; Keras extracts the whole archive to the disk
            with zipfile.ZipFile(tmp_path / name) as archive:
                assert len(archive.namelist()) == 3
                assert archive.testzip() is None
        # A file saved again by Keras has no metadata that could be outdated.
        theirs.save(tmp_path / "next.keras")
        assert convert.weight_reader.read(tmp_path / "next.keras").header is None

    @pytest.mark.parametrize("safe", [True, False])
    def test_torchvision(self, tmp_path, safe):
        import torchvision

        network, path = model(PLAIN), tmp_path / f"o.{'safetensors' if safe else 'pth'}"
        convert.write(path, network, "torchvision")
        theirs = torchvision.models.efficientnet_b0(num_classes=3).eval()
        loaded = load_file(path) if safe else torch.load(path, weights_only=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            theirs.load_state_dict(loaded, strict=True)
        pictures = torch.randn(2, 3, 74, 74)
        with torch.inference_mode():
            assert torch.allclose(theirs(pictures), network(pictures), atol=1e-5)
        torch.save(theirs.state_dict(), tmp_path / "next.pth")
        assert convert.weight_reader.read(tmp_path / "next.pth").header is None


class TestChangedFiles:
    """Config and tensors of the file have priority over the metadata."""

    def test_changed_config_has_priority(self, tmp_path):
        convert.write(tmp_path / "hub", model(), "timm")
        path = tmp_path / "hub" / "config.json"
        config = json.loads(path.read_text())
        config["pretrained_cfg"]["mean"] = [0.5, 0.5, 0.5]
        config["label_names"] = ["a", "b", "c"]
        path.write_text(json.dumps(config))
        back = convert.read(tmp_path / "hub")
        assert back.network.preprocessing.mean == (0.5, 0.5, 0.5)
        assert back.network.class_names == ("a", "b", "c")
        assert any("changed since" in note and "mean (0.5, 0.5, 0.5), not (0.3" in note for note in back.notes)
        assert back.network.metrics == {}

    def test_changed_field_of_a_config_changes_no_other_field(self, tmp_path):
        """Also fields that timm's config.json cannot have: TTA, raster bands, fractions of a pixel."""
        rule = Bands((3, 2, 1), low=(100.0,) * 3, high=(900.0,) * 3, kinds=("uint16",))
        network = model(cut="center", tta="d4", bands=rule)
        convert.write(tmp_path / "hub", network, "timm")
        path = tmp_path / "hub" / "config.json"
        config = json.loads(path.read_text())
        config["pretrained_cfg"]["std"] = [0.5, 0.5, 0.5]
        path.write_text(json.dumps(config))
        back = convert.read(tmp_path / "hub")
        assert back.network.preprocessing == replace(network.preprocessing, std=(0.5, 0.5, 0.5))
        assert not any("assumed" in note for note in back.notes)
        config["pretrained_cfg"] |= {"input_size": [3, 96, 96], "crop_pct": 1.0}
        path.write_text(json.dumps(config))
        larger = convert.read(tmp_path / "hub").network.preprocessing
        assert larger == replace(network.preprocessing, std=(0.5, 0.5, 0.5), image_size=96, crop_pct=1.0), (
            "96 px of 96, as those of 74 before were of 96"
        )

    def test_changed_classifier_has_priority(self, tmp_path):
        convert.write(tmp_path / "o.pth", model(PLAIN), "torchvision")
        loaded = torch.load(tmp_path / "o.pth", weights_only=True)
        loaded["classifier.1.weight"], loaded["classifier.1.bias"] = torch.zeros(5, 1280), torch.zeros(5)
        torch.save(loaded, tmp_path / "o.pth")  # the metadata is still in the file
        back = convert.read(tmp_path / "o.pth")
        assert back.network.class_names == ("0", "1", "2", "3", "4")
        assert back.network.recipe == {}
        assert any(mentions(note, "3", "class", "channel") for note in back.notes)

    def test_model_stated_in_the_file_cannot_be_overridden(self, tmp_path):
        convert.write(tmp_path / "o.pth", model(PLAIN), "timm")
        with pytest.raises(InputError, match=mentioning("efficientnet_b0", "`model`", "tf_eff")):
            convert.read(tmp_path / "o.pth", model="tf_efficientnet_b0")


def damaged(path, text):
    """Replace the metadata in the file."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        save_file(load_file(path), path, metadata | {CARRIED: text})
    elif path.suffix == ".pth":
        tensors = torch.load(path, weights_only=True)
        tensors._metadata = {CARRIED: text}
        torch.save(tensors, path)
    elif path.suffix == ".keras":
        held = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(held) as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                data = source.read(name)
                target.writestr(name, json.dumps({CARRIED: text}) if name == "metadata.json" else data)
    else:
        with h5py.File(path, "r+") as file:
            del file[CARRIED]
            file[CARRIED] = memoryview(text.encode())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for name, to in (("o.safetensors", "timm"), ("o.pth", "timm"), ("o.keras", "keras"), ("o.h5", "keras")):
        convert.write(folder / name, model(V1), to)
    return folder


@pytest.mark.parametrize("name", ["o.safetensors", "o.pth", "o.keras", "o.h5"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no JSON", "is damaged"),
        ('{"format_version": 2}', "is damaged"),
        ('{"format_version": 99, "package_version": "9.9"}', r"written by efficientnetv2 9\.9; .*Upgrade"),
    ],
)
def test_damaged_metadata_is_rejected(whole, tmp_path, name, text, said):
    shutil.copy(whole / name, tmp_path / name)
    damaged(tmp_path / name, text)
    with pytest.raises(InputError, match=rf"{name}.*{said}"):
        convert.read(tmp_path / name)


def test_non_text_metadata_is_rejected(whole, tmp_path):
    shutil.copy(whole / "o.h5", tmp_path / "o.h5")
    with h5py.File(tmp_path / "o.h5", "r+") as file:
        del file[CARRIED]
        file[CARRIED] = memoryview(b"\xff\xfe")
    with pytest.raises(InputError, match=mentioning("o.h5", "efficientnetv2.carried")):
        convert.read(tmp_path / "o.h5")
    shutil.copy(whole / "o.pth", tmp_path / "o.pth")
    damaged(tmp_path / "o.pth", 7)
    with pytest.raises(InputError, match=mentioning("o.pth", "damaged")):
        convert.read(tmp_path / "o.pth")


@pytest.mark.parametrize("metadata", ["[]", "no JSON", b"\xff"])
def test_invalid_keras_metadata_is_rejected(whole, tmp_path, metadata):
    with zipfile.ZipFile(whole / "o.keras") as source, zipfile.ZipFile(tmp_path / "o.keras", "w") as target:
        for name in source.namelist():
            target.writestr(name, metadata if name == "metadata.json" else source.read(name))
    with pytest.raises(InputError, match=mentioning("o.keras", "metadata.json")):
        convert.read(tmp_path / "o.keras")
