"""Models by name with the released regularization, from files, and as backbones."""

import os
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.registry import NAMES, get_architecture, get_model_info
from efficientnetv2.architectures.spec import Architecture, Stage, mbconv
from efficientnetv2.models import factory, hub, model_file
from efficientnetv2.models.adapt import adapt, freeze
from efficientnetv2.models.blocks import DropPath
from efficientnetv2.models.conversion import convert
from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import Backbone, create, load_classifier
from efficientnetv2.preprocessing import IMAGENET_MEAN, SYMMETRIC_MEAN, SYMMETRIC_STD
from efficientnetv2.progressive.presets import released_schedule
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.results import Run

timm = pytest.importorskip("timm")


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
def test_default_dropout_and_drop_path_are_the_released_ones(name, dropout, blocks):
    """Block i of N survives with 1 - 0.2 * i/N, for i from 0. The last block of S has 1 - 0.2 * 39/40."""
    with torch.device("meta"):
        network = create(name)
    assert regularization(network) == (dropout, pytest.approx(0.2 * (blocks - 1) / blocks))


def test_another_pooling_keeps_the_released_dropout():
    with torch.device("meta"):
        network = create(replace(get_architecture("efficientnetv2_m"), global_pool="avg+center"))
    assert regularization(network)[0] == 0.3


def test_dropout_of_every_architecture_equals_the_released_code():
    """V2: the released training configurations. V1: the table of coefficients of the released code."""
    found = {name: get_model_info(name).dropout for name in NAMES}
    v2 = {name: rate for name, rate in found.items() if name.startswith("efficientnetv2_")}
    assert v2 == {name: released_schedule(name).last.dropout for name in v2}
    assert list(v2.values()) == [0.2, 0.2, 0.3, 0.3, 0.2, 0.3, 0.4, 0.4]
    v1 = {name: rate for name, rate in found.items() if name not in v2}
    assert list(v1) == [*(f"efficientnet_b{number}" for number in range(9)), "efficientnet_l2"]
    assert list(v1.values()) == [0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5]


def test_arguments_replace_the_defaults():
    with torch.device("meta"):
        network = create("efficientnetv2_b0", num_classes=10, in_channels=13, dropout=0.0, drop_path=0.0)
    assert regularization(network) == (0.0, 0.0)
    assert network.stem.conv.weight.shape == (32, 13, 3, 3)
    assert network.classifier.weight.shape == (10, 1280)


def test_custom_architecture_is_created():
    own = Architecture(8, (Stage(mbconv(expand=2, kernel=3), 1, 8, 4),), 16)
    network = create(own, num_classes=3)
    assert regularization(network) == (0.2, pytest.approx(0.2 * 3 / 4))
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match=mentioning("efficientnet_v2_s", "did you mean", "efficientnetv2_s")):
        create("efficientnet_v2_s")


def test_name_of_a_folder_suggests_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t_folder").mkdir()
    network = create("efficientnetv2_b0", num_classes=2)
    model_file.save(tmp_path / "t_folder/model.safetensors", network, class_names=("a", "b"))
    with pytest.raises(InputError, match=mentioning("./t_folder")):
        create("t_folder")
    assert create("./t_folder").num_classes == create(Path("t_folder")).num_classes == 2


def test_default_preprocessing_is_the_published_one():
    """Released code of arXiv:2104.00298: S is evaluated at 384 px with (x - 128) / 128, B0 at 224 px."""
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


@pytest.mark.parametrize("how", ["path", "text", "folder", "run"])
def test_model_is_created_from_a_model_file(tmp_path, how):
    given = create(OWN, num_classes=2)
    model_file.save(tmp_path / "model.safetensors", given, class_names=("cat", "dog"))
    paths = {"path": tmp_path / "model.safetensors", "folder": tmp_path, "run": Run(tmp_path)}
    path = paths.get(how, str(tmp_path / "model.safetensors"))
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


@pytest.mark.parametrize("file", ["m.pth", "m.keras", "m.weights.h5", "m.safetensors", "folder", "checkpoint"])
def test_weights_of_other_libraries_suggest_the_convert_command(tmp_path, monkeypatch, file):
    """The command is complete, for any file."""
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
        with pytest.raises(InputError, match=mentioning("effnetv2 convert", "OUT")):  # config.json is converted too
            create("folder/model.safetensors")


@pytest.mark.parametrize("model", ["efficientnetv2_b0", "torchvision:resnet18", OWN])
@pytest.mark.parametrize(
    "wrong",
    [{"num_classes": "five"}, {"num_classes": 2.0}, {"num_classes": True}, {"num_classes": -1}, {"in_channels": "3"},
     {"in_channels": 0}],
)  # fmt: skip
def test_invalid_numbers_are_rejected(model, wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        create(model, **wrong)
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        adapt(create(OWN, num_classes=2), **wrong)


def test_numpy_integers_are_accepted():
    assert create(OWN, num_classes=np.int64(2), in_channels=np.int32(1)).num_classes == 2


def test_name_with_a_tag_is_downloaded_and_adapted(monkeypatch):
    asked = []

    def read(path, name):
        asked.append((path, name))
        return EfficientNet(OWN, num_classes=1000)

    monkeypatch.setattr(hub, "fetch", Path)
    monkeypatch.setattr(convert, "read_pretrained", read)
    network = create("efficientnetv2_b0.in1k", num_classes=3)
    assert asked == [(Path("efficientnetv2_b0.in1k"), "efficientnetv2_b0.in1k")]
    assert network(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


def test_meta_device_draws_no_random_values(monkeypatch):
    """PyTorch's normal_ is so slow on the meta device that it would double the loading time."""
    drawn = []
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, **_: drawn.append(tensor))
    with torch.device("meta"):
        create(OWN)
    assert drawn == []
    create(OWN)
    assert drawn


def test_weights_with_another_padding_have_the_released_dropout(monkeypatch):
    """torchvision's M differs from the released architecture only in padding and epsilon."""
    table = replace(get_architecture("efficientnetv2_m"), padding="symmetric", batch_norm_epsilon=1e-5)
    with torch.device("meta"):
        monkeypatch.setattr(hub, "fetch", Path)
        monkeypatch.setattr(convert, "read_pretrained", lambda path, name: EfficientNet(table))
        assert regularization(create("efficientnetv2_m.tv_in1k"))[0] == 0.3
        assert regularization(create(table))[0] == 0.3


@pytest.mark.parametrize(
    "name", ["efficientnetv2_b0", "efficientnetv2_b3", "efficientnetv2_s", "efficientnetv2_xl", "efficientnet_b4"]
)
def test_channels_and_strides_equal_timm(name):
    with torch.device("meta"):
        ours = create(name, features_only=True)
        theirs = timm.create_model(f"tf_{name}", features_only=True)
    assert list(ours.channels) == theirs.feature_info.channels()
    assert list(ours.strides) == theirs.feature_info.reduction() == [2, 4, 8, 16, 32]


def test_feature_maps_equal_timm_at_an_odd_size():
    ours = create("efficientnetv2_b0", features_only=True).eval()
    theirs = timm.create_model("tf_efficientnetv2_b0", features_only=True).eval()
    names = tensor_names("timm", get_architecture("efficientnetv2_b0"))
    weights = {names["" + key.removeprefix("network.")]: tensor for key, tensor in ours.state_dict().items()}
    assert set(weights) == set(theirs.state_dict())  # no weights of the head, and none missing
    theirs.load_state_dict(weights)
    pictures = torch.randn(1, 3, 75, 97)
    with torch.inference_mode():
        for mine, expected in zip(ours(pictures), theirs(pictures), strict=True):
            assert mine.shape == expected.shape
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_feature_pyramid_of_torchvision_accepts_the_maps():
    backbone = create("efficientnetv2_b0", features_only=True, in_channels=4)
    assert (backbone.strides[2:], backbone.channels[2:]) == ((8, 16, 32), (48, 112, 192))
    pyramid = FeaturePyramidNetwork(list(backbone.channels), 16)
    maps = backbone(torch.randn(2, 4, 64, 96))
    answers = pyramid(OrderedDict((str(stride), m) for stride, m in zip(backbone.strides, maps, strict=True)))
    assert [tuple(m.shape) for m in answers.values()][2:] == [(2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)]


def test_backbone_has_no_head_and_gradients_reach_all_weights():
    backbone = create("efficientnetv2_b0", features_only=True)
    assert not any("head" in name or "classifier" in name for name in backbone.state_dict())
    sum(m.square().mean() for m in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert all(weight.grad is not None for weight in backbone.parameters())


def test_backbone_of_a_timm_model():
    backbone = create("timm:resnet10t", features_only=True)
    theirs = timm.create_model("resnet10t", features_only=True)
    assert list(backbone.channels) == theirs.feature_info.channels()
    assert list(backbone.strides) == theirs.feature_info.reduction()


def test_backbone_of_weights_without_a_classifier():
    """DINOv2's embed images."""
    with torch.device("meta"), pytest.raises(InputError, match="num_classes"):
        create("timm:vit_small_patch14_dinov2")
    assert list(create("timm:vit_small_patch14_dinov2", features_only=True).channels) == [384]


def test_rates_without_an_effect_are_reported():
    lines = logged_lines()
    create("torchvision:resnet18", dropout=0.3, drop_path=0.2)
    assert any("dropout 0.3 has no effect" in line for line in lines)
    assert any("drop_path 0.2 has no effect" in line for line in lines)


def test_backbone_of_a_model_with_several_classifiers():
    """num_classes cannot replace them, but a backbone does not use them."""
    network = create("timm:levit_128s")
    backbone = create("timm:levit_128s", features_only=True)
    pictures = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        maps = backbone(pictures)
    assert [one.shape[1] for one in maps] == list(backbone.channels) == [128, 256, 384]
    assert not any(isinstance(module, torch.nn.Linear) and module.out_features == network.num_classes
                   for module in backbone.modules())  # fmt: skip
    with pytest.raises(InputError, match=mentioning("features_only=True")):
        create("timm:levit_128s", num_classes=0)


def test_model_without_feature_maps_is_refused():
    with pytest.raises(InputError, match=mentioning("feature maps")):
        create("torchvision:resnet18", features_only=True)


def test_backbone_of_a_frozen_model_stays_frozen():
    network = create("efficientnetv2_b0")
    freeze(network, stages=1, statistics=True)
    backbone = Backbone(network).train()
    assert not network.stem.training
    assert network.blocks[-1].training
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)


def test_backbone_has_the_mode_of_its_model(tmp_path):
    """A trained model remains in evaluation mode and keeps its statistics."""
    path = tmp_path / "m.safetensors"
    model_file.save(path, create("efficientnetv2_b0", num_classes=2), class_names=("a", "b"))
    loaded = create(path, features_only=True)
    assert not any(module.training for module in loaded.modules())
    fresh = create("efficientnetv2_b0", features_only=True)
    assert all(module.training for module in fresh.modules())


def absent(*_):
    raise InputError("not to be had")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("tf_efficientnetv2_s", "efficientnetv2_s"),
        ("tf_efficientnetv2_s.in21k_ft_in1k", "efficientnetv2_s.in21k_ft_in1k"),
        ("tf_efficientnetv2_s.in1kk", "efficientnetv2_s"),
        ("efficientnet_v2_m", "efficientnetv2_m"),
        ("EfficientNetV2B3", "efficientnetv2_b3"),
        ("efficientnetb4", "efficientnet_b4"),
    ],
)
def test_names_of_other_libraries_suggest_those_of_this_package(word, meant):
    with pytest.raises(InputError, match=mentioning(word, "did you mean", meant)):
        create(word)


@pytest.mark.parametrize(
    ("word", "there"),
    [
        ("resnet18", ["timm:resnet18", "torchvision:resnet18"]),
        ("squeezenet1_0", ["torchvision:squeezenet1_0"]),
        ("resnet18.a1_in1k", ["timm:resnet18.a1_in1k"]),
        ("resnet18.IMAGENET1K_V1", ["torchvision:resnet18.IMAGENET1K_V1"]),
        ("resnet18.no_such_tag", ["timm:resnet18", "torchvision:resnet18"]),
        ("efficientnetv2_rw_s", ["timm:efficientnetv2_rw_s"]),
        ("efficientnet_b0.ra_in1k", ["timm:efficientnet_b0.ra_in1k"]),
    ],
)
def test_models_of_other_libraries_suggest_the_prefix(word, there):
    pytest.importorskip("timm")
    with pytest.raises(InputError) as error:
        create(word)
    assert mentions(str(error.value), " or ".join(map(repr, there)))


def test_without_timm_torchvision_is_suggested(monkeypatch):
    monkeypatch.setattr(factory, "import_optional", absent)
    with pytest.raises(InputError, match=mentioning("torchvision:resnet18")):
        create("resnet18")


def test_unknown_name_without_a_match_lists_the_options():
    with pytest.raises(InputError, match=mentioning("banana", "timm:NAME")):
        create("banana")
    with pytest.raises(InputError, match=mentioning("did you mean", "efficientnetv2_xl")):
        create("efficientnetv2_x")


def test_library_that_cannot_be_imported_is_ignored(monkeypatch):
    """The name is unknown without it too."""
    monkeypatch.setattr(factory, "import_torchvision", absent)
    assert mentions(str(factory.unknown_model_error("efficientnetv2_sx")), "did you mean", "efficientnetv2_s")
    assert "torchvision:" not in str(factory.unknown_model_error("efficientnet_v2_s"))


def test_model_is_created_from_an_architecture_file():
    """The parameters are those that the architecture counts. A name in the working directory needs no ./."""
    file = Path(__file__).parents[1] / "network.yaml"
    for word in (file, str(file), os.path.relpath(file)):
        network = create(word, num_classes=3, in_channels=2)
        assert (network.num_classes, network.in_channels) == (3, 2)
        counted = count_flops(network.architecture, image_size=32, num_classes=3, in_channels=2).total.parameters
        assert counted == sum(weight.numel() for weight in network.parameters())


def test_model_of_a_file_has_the_layout_of_training(tmp_path):
    """The layout decides the last bits of predictions."""
    model_file.save(tmp_path / "m.safetensors", create("efficientnetv2_b0", num_classes=2), class_names=("a", "b"))
    stem = load_classifier(tmp_path / "m.safetensors").stem.conv.weight
    assert stem.is_contiguous(memory_format=torch.channels_last)
