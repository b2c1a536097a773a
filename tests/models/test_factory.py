"""A network from its name, with the released regularization unless told otherwise."""

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.messages import mentioning
from torch import nn

from efficientnetv2.architectures.registry import NAMES, get_architecture, get_model_info
from efficientnetv2.architectures.spec import Architecture, Stage, mbconv
from efficientnetv2.models import hub, model_file
from efficientnetv2.models.adapt import adapt
from efficientnetv2.models.blocks import DropPath
from efficientnetv2.models.conversion import convert
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import IMAGENET_MEAN, SYMMETRIC_MEAN, SYMMETRIC_STD
from efficientnetv2.progressive.presets import released_schedule
from efficientnetv2.utils.errors import InputError


def regularization(network):
    (dropout,) = (m.p for m in network.modules() if isinstance(m, nn.Dropout))
    return dropout, max(m.rate for m in network.modules() if isinstance(m, DropPath))


@pytest.mark.parametrize(
    ("name", "dropout", "blocks"),
    [
        ("efficientnetv2_s", 0.2, 40),
        ("efficientnetv2_m", 0.3, 57),
        ("efficientnetv2_l", 0.4, 79),
        ("efficientnet_b7", 0.5, 55),
    ],
)
def test_released_dropout_and_survival(name, dropout, blocks):
    """Block i of N survives with 1 - 0.2 * i/N, from 0: the last one of S with 1 - 0.2 * 39/40."""
    with torch.device("meta"):
        network = create(name)
    assert regularization(network) == (dropout, pytest.approx(0.2 * (blocks - 1) / blocks))


def test_the_dropout_of_every_network_is_the_authors():
    """V2: that of the released configurations of training. V1: the released code's table of coefficients."""
    found = {name: get_model_info(name).dropout for name in NAMES}
    v2 = {name: rate for name, rate in found.items() if name.startswith("efficientnetv2_")}
    assert v2 == {name: released_schedule(name).last.dropout for name in v2}
    assert list(v2.values()) == [0.2, 0.2, 0.3, 0.3, 0.2, 0.3, 0.4, 0.4]
    v1 = {name: rate for name, rate in found.items() if name not in v2}
    assert list(v1) == [*(f"efficientnet_b{number}" for number in range(9)), "efficientnet_l2"]
    assert list(v1.values()) == [0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5]


def test_what_is_given_stands():
    with torch.device("meta"):
        network = create("efficientnetv2_b0", num_classes=10, in_channels=13, dropout=0.0, drop_path=0.0)
    assert regularization(network) == (0.0, 0.0)
    assert network.stem.conv.weight.shape == (32, 13, 3, 3)
    assert network.classifier.weight.shape == (10, 1280)


def test_an_architecture_of_ones_own():
    own = Architecture(8, (Stage(mbconv(expand=2, kernel=3), 1, 8, 4),), 16)
    network = create(own, num_classes=3)
    assert regularization(network) == (0.2, pytest.approx(0.2 * 3 / 4))
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=mentioning("efficientnet_v2_s", "did you mean", "efficientnetv2_s")):
        create("efficientnet_v2_s")


def test_a_name_that_a_folder_has_is_said_to_be_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t_folder").mkdir()
    network = create("efficientnetv2_b0", num_classes=2)
    model_file.save(tmp_path / "t_folder/model.safetensors", network, class_names=("a", "b"))
    with pytest.raises(InputError, match=mentioning("./t_folder")):
        create("t_folder")
    assert create("./t_folder").num_classes == create(Path("t_folder")).num_classes == 2


def test_preprocessing_is_the_published_one():
    """arXiv:2104.00298's released code: S is evaluated at 384 px with (x - 128) / 128, B0 at 224 px."""
    with torch.device("meta"):
        s, b0, four = (
            create("efficientnetv2_s"),
            create("efficientnetv2_b0"),
            create("efficientnetv2_s", in_channels=4),
        )
    assert (s.preprocessing.image_size, s.preprocessing.mean, s.preprocessing.std) == (
        384,
        SYMMETRIC_MEAN,
        SYMMETRIC_STD,
    )
    assert (b0.preprocessing.image_size, b0.preprocessing.mean) == (224, IMAGENET_MEAN)
    assert len(four.preprocessing.mean) == 4


OWN = Architecture(8, (Stage(mbconv(expand=2, kernel=3), 1, 8, 4),), 16)


@pytest.mark.parametrize("how", ["path", "text", "folder"])
def test_from_a_model_file(tmp_path, how):
    given = create(OWN, num_classes=2)
    model_file.save(tmp_path / "model.safetensors", given, class_names=("cat", "dog"))
    path = {"path": tmp_path / "model.safetensors", "folder": tmp_path}.get(
        how, str(tmp_path / "model.safetensors")
    )
    same = create(path)
    assert (same.class_names, same.num_classes) == (("cat", "dog"), 2)
    assert torch.equal(same.classifier.weight, given.classifier.weight)
    assert regularization(same) == (0.2, pytest.approx(0.2 * 3 / 4))
    other = create(path, num_classes=5, in_channels=1, dropout=0.1)
    assert other(torch.zeros(1, 1, 16, 16)).shape == (1, 5)
    assert (other.class_names, regularization(other)[0]) == ((), 0.1)
    assert torch.equal(other.head.conv.weight, given.head.conv.weight)
    with pytest.raises(InputError, match="does not exist"):
        create("runs/none/model.safetensors")


@pytest.mark.parametrize(
    "file", ["m.pth", "m.keras", "m.weights.h5", "m.safetensors", "folder", "checkpoint"]
)
def test_weights_of_others_are_led_to_convert(tmp_path, monkeypatch, file):
    """Whatever they lie in, the message has the command for just that file."""
    monkeypatch.chdir(tmp_path)
    tensors = {"conv_stem.weight": torch.zeros(2)}
    if file == "m.pth":
        torch.save(tensors, file)
    elif file == "m.keras":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("model.weights.h5", b"")
    elif file == "m.weights.h5":
        Path(file).write_bytes(b"\x89HDF\r\n\x1a\n")
    elif file == "m.safetensors":
        save_file(tensors, file)
    elif file == "folder":
        Path(file).mkdir()
        Path(file, "config.json").write_text("{}")
        save_file(tensors, Path(file, "model.safetensors"))
    else:
        Path("checkpoint.index").write_bytes(b"")
    with pytest.raises(InputError, match=mentioning(file, "effnetv2 convert", "OUT.safetensors")) as error:
        create(Path(file))
    assert f"--weights {file}" in str(error.value)
    assert ("Keras file" in str(error.value)) == (file in ("m.keras", "m.weights.h5"))
    if "." in file:
        with pytest.raises(InputError, match="effnetv2 convert"):
            create(file)
    if file == "folder":
        with pytest.raises(InputError, match=mentioning("effnetv2 convert", "OUT")):  # config.json goes along
            create("folder/model.safetensors")


@pytest.mark.parametrize("model", ["efficientnetv2_b0", "torchvision:resnet18", OWN])
@pytest.mark.parametrize(
    "wrong",
    [{"num_classes": "five"}, {"num_classes": 2.0}, {"num_classes": True}, {"num_classes": -1}, {"in_channels": "3"},
     {"in_channels": 0}],
)  # fmt: skip
def test_numbers_that_are_none(model, wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        create(model, **wrong)
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        adapt(create(OWN, num_classes=2), **wrong)


def test_a_number_of_numpy_is_one():
    assert create(OWN, num_classes=np.int64(2), in_channels=np.int32(1)).num_classes == 2


def test_a_name_with_a_tag_is_fetched_and_fitted(monkeypatch):
    asked = []

    def read(path, name):
        asked.append((path, name))
        return EfficientNet(OWN, num_classes=1000)

    monkeypatch.setattr(hub, "fetch", Path)
    monkeypatch.setattr(convert, "read_pretrained", read)
    network = create("efficientnetv2_b0.in1k", num_classes=3)
    assert asked == [(Path("efficientnetv2_b0.in1k"), "efficientnetv2_b0.in1k")]
    assert network(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


def test_nothing_is_drawn_where_weights_have_no_values(monkeypatch):
    """PyTorch draws normal numbers on the device meta so slowly that it would double the time of loading."""
    drawn = []
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, **_: drawn.append(tensor))
    with torch.device("meta"):
        create(OWN)
    assert drawn == []
    create(OWN)
    assert drawn


def test_weights_with_another_padding_take_the_released_dropout(monkeypatch):
    """torchvision's M differs from the released table in padding and epsilon alone; its dropout too is 0.3."""
    table = replace(get_architecture("efficientnetv2_m"), padding="symmetric", batch_norm_epsilon=1e-5)
    with torch.device("meta"):
        monkeypatch.setattr(hub, "fetch", Path)
        monkeypatch.setattr(convert, "read_pretrained", lambda path, name: EfficientNet(table))
        assert regularization(create("efficientnetv2_m.tv_in1k"))[0] == 0.3
        assert regularization(create(table))[0] == 0.3
