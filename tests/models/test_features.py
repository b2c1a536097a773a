"""Maps for detectors and segmenters: timm's shapes and values, and torchvision's pyramid takes them."""

from collections import OrderedDict

import pytest
import torch
from tests.messages import mentioning
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.models import model_file
from efficientnetv2.models.adapt import freeze
from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.factory import create
from efficientnetv2.models.features import Backbone
from efficientnetv2.utils.errors import InputError

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(
    "name",
    ["efficientnetv2_b0", "efficientnetv2_b3", "efficientnetv2_s", "efficientnetv2_xl", "efficientnet_b4"],
)
def test_channels_and_strides_are_timm_s(name):
    with torch.device("meta"):
        ours = create(name, features_only=True)
        theirs = timm.create_model(f"tf_{name}", features_only=True)
    assert list(ours.channels) == theirs.feature_info.channels()
    assert list(ours.strides) == theirs.feature_info.reduction() == [2, 4, 8, 16, 32]


def test_maps_are_timm_s_at_an_odd_size():
    ours = create("efficientnetv2_b0", features_only=True).eval()
    theirs = timm.create_model("tf_efficientnetv2_b0", features_only=True).eval()
    names = tensor_names("timm", get_architecture("efficientnetv2_b0"))
    weights = {names["" + key.removeprefix("network.")]: tensor for key, tensor in ours.state_dict().items()}
    assert set(weights) == set(theirs.state_dict())  # none of the head, none missing
    theirs.load_state_dict(weights)
    pictures = torch.randn(1, 3, 75, 97)
    with torch.inference_mode():
        for mine, expected in zip(ours(pictures), theirs(pictures), strict=True):
            assert mine.shape == expected.shape
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_torchvision_s_pyramid_takes_the_maps():
    backbone = create("efficientnetv2_b0", features_only=True, in_channels=4)
    backbone = Backbone(backbone.network, out_strides=(8, 16, 32))
    assert (backbone.strides, backbone.channels) == ((8, 16, 32), (48, 112, 192))
    pyramid = FeaturePyramidNetwork(list(backbone.channels), 16)
    maps = backbone(torch.randn(2, 4, 64, 96))
    answers = pyramid(OrderedDict((str(stride), m) for stride, m in zip(backbone.strides, maps, strict=True)))
    assert [tuple(m.shape) for m in answers.values()] == [(2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)]


def test_no_weights_of_head_and_classifier_are_kept_and_gradients_reach_all_others():
    backbone = create("efficientnetv2_b0", features_only=True)
    assert not any("head" in name or "classifier" in name for name in backbone.state_dict())
    sum(m.square().mean() for m in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert all(weight.grad is not None for weight in backbone.parameters())


def test_a_backbone_of_timm_s():
    backbone = create("timm:resnet10t", features_only=True)
    theirs = timm.create_model("resnet10t", features_only=True)
    assert list(backbone.channels) == theirs.feature_info.channels()
    assert list(backbone.strides) == theirs.feature_info.reduction()


def test_a_backbone_of_a_network_with_several_classifiers():
    """Which can't be swapped as one, but a backbone has no use for them."""
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


def test_strides_that_are_not_there():
    with pytest.raises(InputError, match=r"\[2, 64\].*strides \[2, 4, 8, 16, 32\]"):
        Backbone(create("efficientnetv2_b0"), out_strides=(2, 64))
    with pytest.raises(InputError, match=mentioning("feature maps")):
        create("torchvision:resnet18", features_only=True)


def test_a_frozen_network_becomes_a_backbone_that_stays_frozen():
    network = create("efficientnetv2_b0")
    freeze(network, stages=1, statistics=True)
    backbone = Backbone(network).train()
    assert not network.stem.training
    assert network.blocks[-1].training
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)


def test_a_backbone_is_in_the_mode_of_its_network(tmp_path):
    """So that what was trained answers as it does with its classifier, and keeps its statistics."""
    path = tmp_path / "m.safetensors"
    model_file.save(path, create("efficientnetv2_b0", num_classes=2), class_names=("a", "b"))
    loaded = create(path, features_only=True)
    assert not any(module.training for module in loaded.modules())
    fresh = create("efficientnetv2_b0", features_only=True)
    assert all(module.training for module in fresh.modules())
