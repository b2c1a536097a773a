"""Adapting models to other classes and channels, freezing, and layer groups."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import timm
import torch
from tests.messages import mentioning
from timm.models._manipulate import adapt_input_conv
from torch import nn

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.models.adapt import (
    adapt,
    adapted_weight,
    classifier_layers,
    freeze,
    layer_groups,
    set_classifier_weights,
)
from efficientnetv2.models.factory import create
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError

TINY = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=1, kernel=3), 1, 8, 1),
        Stage(fused_mbconv(expand=2, kernel=3), 2, 16, 2),
        Stage(mbconv(expand=2, kernel=3), 2, 24, 2),
    ),
    head_channels=32,
)


@pytest.mark.parametrize("in_channels", [1, 2, 3, 4, 13])
def test_weights_for_other_channels_equal_timm(in_channels):
    weight = torch.randn(8, 3, 3, 3)
    torch.testing.assert_close(
        adapted_weight(weight, in_channels), adapt_input_conv(in_channels, weight.clone()), rtol=1e-6, atol=1e-7
    )


def test_every_convolution_that_reads_the_image_is_adapted():
    network = adapt(create("timm:mobileone_s0", num_classes=2), in_channels=4).eval()
    theirs = timm.create_model("mobileone_s0", num_classes=2, in_chans=4)
    assert {name: tensor.shape for name, tensor in network.module.state_dict().items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }
    assert create(network.module).in_channels == 4, "also wrapped again"
    with torch.inference_mode():
        assert network(torch.randn(1, 4, 64, 64)).shape == (1, 2)


def test_model_that_rearranges_the_image_before_its_stem():
    """TResNet makes 48 channels of blocks of 4 x 4 pixels."""
    with torch.device("meta"):
        network = create("timm:tresnet_m", num_classes=2)
    assert network.in_channels == 3, "of the image"
    assert create(network.module).in_channels == 3, "also as a module"
    with pytest.raises(InputError, match=mentioning("channels", "cannot be changed")):
        adapt(network, in_channels=4)


@pytest.mark.parametrize("pool", ["max", ""])
def test_unknown_pooling_is_rejected(pool):
    with pytest.raises(InputError, match=mentioning("global_pool", "avg+center")):
        adapt(create(TINY, num_classes=2), global_pool=pool)


def test_metrics_calibration_and_activation_are_reset_for_other_classes():
    network = create(TINY, num_classes=4)
    network.activation = "sigmoid"
    network.metrics, network.calibration = {"top1": 0.5}, Calibration(2.1, 60, "minival")
    assert adapt(network, num_classes=4).calibration is not None
    assert adapt(network, in_channels=1).activation == "sigmoid"
    assert (network.metrics, network.calibration) == ({}, None)
    network.metrics, network.calibration = {"top1": 0.5}, Calibration(2.1, 60, "minival")
    assert adapt(network, num_classes=3).activation == "softmax"
    assert (network.metrics, network.calibration) == ({}, None)


def test_gray_image_has_the_logits_of_three_equal_channels():
    torch.manual_seed(0)
    network = create(TINY, num_classes=4).eval()
    gray = torch.randn(2, 1, 32, 32)
    before = network(gray.expand(2, 3, 32, 32))
    torch.testing.assert_close(adapt(network, in_channels=1)(gray), before)
    assert (network.in_channels, network.stem.conv.in_channels) == (1, 1)


@pytest.mark.parametrize("in_channels", [6, 12])
def test_repeated_channels_have_the_logits_of_the_original(in_channels):
    network = create(TINY, num_classes=4).eval()
    pictures = torch.randn(2, 3, 32, 32)
    before = network(pictures)
    after = adapt(network, in_channels=in_channels)(pictures.repeat(1, in_channels // 3, 1, 1))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_mean_and_std_are_adapted_to_the_channels():
    rgb = Preprocessing(image_size=8, mean=(0.1, 0.2, 0.6), std=(1.0, 2.0, 3.0))
    assert rgb.with_channels(4).mean == (0.1, 0.2, 0.6, 0.1)
    assert rgb.with_channels(2).std == (1.0, 2.0)
    assert rgb.with_channels(1).mean == (pytest.approx(0.3),)
    network = adapt(create("efficientnetv2_b0"), in_channels=13)
    assert len(network.preprocessing.mean) == len(network.preprocessing.std) == 13


@pytest.mark.parametrize("model", [TINY, "torchvision:resnet18", "timm:resnet10t"])
def test_new_classifier_keeps_the_embedding(model):
    network = create(model, num_classes=4)
    network.class_names = ("a", "b", "c", "d")
    pictures = torch.randn(2, 3, 64, 64)
    embedding = network.eval().embed(pictures)
    assert adapt(network, num_classes=4).class_names == ("a", "b", "c", "d")
    assert adapt(network, num_classes=7) is network
    assert (network.num_classes, network.class_names) == (7, ())
    assert network(pictures).shape == (2, 7)
    assert torch.equal(network.embed(pictures), embedding)
    names = set(network.state_dict())
    assert torch.equal(adapt(network, num_classes=0)(pictures), embedding)
    assert len(names - set(network.state_dict())) == 2  # weight and bias of the classifier
    assert adapt(network, num_classes=3)(pictures).shape == (2, 3)


def test_new_classifier_has_the_initial_range():
    head = adapt(create(TINY, num_classes=2), num_classes=25).classifier
    assert head.weight.abs().max() <= 1 / 5
    assert head.weight.abs().max() > 0.9 / 5
    assert not head.bias.any()


def test_torchvision_model_is_adapted_to_other_channels():
    network = create("torchvision:resnet18", num_classes=2, in_channels=2)
    assert network(torch.zeros(2, 2, 64, 64)).shape == (2, 2)
    assert (network.in_channels, len(network.preprocessing.mean)) == (2, 2)


@pytest.mark.parametrize(
    ("wrong", "says"), [({"num_classes": -1}, ("num_classes", "-1")), ({"in_channels": 0}, ("in_channels", "0"))]
)
def test_invalid_numbers_are_rejected(wrong, says):
    for model in (TINY, "timm:resnet10t", "torchvision:resnet18"):
        with pytest.raises(InputError, match=mentioning(*says)):
            create(model, **wrong)
    with pytest.raises(InputError, match=mentioning(*says)):
        adapt(create(TINY), **wrong)


def trained(network):
    """The state before and after a training step with a high learning rate."""
    before = copy.deepcopy(network.state_dict())
    network.train()
    rate = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(rate, lr=1.0)
    torch.manual_seed(1)
    network(torch.randn(4, network.in_channels, 64, 64)).square().sum().backward()
    optimizer.step()
    return before, network.state_dict()


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_frozen_stages_change_neither_weights_nor_statistics():
    network = create(TINY, num_classes=3, drop_path=0, dropout=0)
    freeze(network, stages=2)  # stem, block 0, blocks 1 and 2; the third stage and the head remain trainable
    after = changed(*trained(network))
    assert not any(name.startswith(("stem.", "blocks.0.", "blocks.1.", "blocks.2.")) for name in after)
    every = {name for name in network.state_dict() if name.startswith(("blocks.3.", "blocks.4.", "head."))}
    assert every <= after


def test_freeze_bn_trains_scale_and_shift():
    network = create(TINY, num_classes=3, drop_path=0, dropout=0)
    freeze(network, statistics=True)
    after = changed(*trained(network))
    assert not any("running" in name or "batches" in name for name in after)
    assert {name for name, _ in network.named_parameters()} == after


def test_frozen_layers_stay_frozen_in_train_mode_and_copies():
    network = create(TINY, num_classes=3, drop_path=0.5)
    freeze(network, stages=3)
    twin = copy.deepcopy(network).eval().train()
    assert not twin.stem.training
    assert not twin.blocks[2].drop_path.training
    assert twin.head.training
    assert twin.training
    pictures = torch.randn(2, 3, 32, 32)
    assert torch.equal(twin.features(pictures)[-1], twin.features(pictures)[-1])  # stochastic depth is off
    freeze(twin)
    assert all(module.training for module in twin.modules())
    assert all(weight.requires_grad for weight in twin.parameters())


@pytest.mark.parametrize("model", ["torchvision:resnet18", "timm:resnet10t"])
def test_resnet_of_other_libraries_is_frozen_by_layer(model):
    network = create(model, num_classes=3)
    freeze(network, stages=3)
    after = changed(*trained(network))
    assert after
    assert all(name.startswith(("module.layer4.", "module.fc.")) for name in after)


@pytest.mark.parametrize("model", [TINY, "efficientnetv2_b0", "torchvision:resnet18", "timm:resnet10t"])
def test_freeze_all_trains_only_the_classifier_on_constant_features(model):
    network = create(model, num_classes=3)
    freeze(network, stages="all")
    trains = [name for name, weight in network.named_parameters() if weight.requires_grad]
    assert len(trains) == 2
    assert all(network.get_parameter(name).shape[0] == 3 for name in trains)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pictures = torch.randn(4, 3, 64, 64)
    network.train()
    features = network.embed(pictures)
    assert torch.equal(features, network.eval().embed(pictures)), "no dropped path, no statistics of the batch"
    network.train()(pictures).logsumexp(1).sum().backward()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.grad is not None:
                weight -= weight.grad
    moved = [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved == trains


def test_freezing_all_stages_trains_the_head():
    """The last convolution, its batch norm and the classifier."""
    network = create("efficientnetv2_b0", num_classes=3)
    freeze(network, stages=6)
    parts = {name.partition(".")[0] for name, weight in network.named_parameters() if weight.requires_grad}
    assert parts == {"head", "classifier"}


def test_model_without_a_classifier_cannot_be_frozen_completely():
    with pytest.raises(InputError, match=mentioning("classifier")):
        freeze(create(TINY, num_classes=0), stages="all")


@pytest.mark.parametrize("stages", ["most", 1.5, True, None])
def test_invalid_number_of_stages_is_rejected(stages):
    with pytest.raises(InputError, match=mentioning(stages, "all")):
        freeze(create("efficientnetv2_b0"), stages=stages)


def test_missing_stages_are_rejected():
    with pytest.raises(InputError, match=mentioning("4", "0", "3")):
        freeze(create(TINY), stages=4)
    with pytest.raises(InputError, match="0 to 4"):
        freeze(create("torchvision:resnet18"), stages=5)


def sizes(network):
    return [sum(weight.numel() for weight in group) for group in layer_groups(network)]


@pytest.mark.parametrize(
    ("model", "groups"),
    [
        (TINY, 3 + 2),
        ("efficientnetv2_b0", 6 + 2),
        ("torchvision:resnet18", 4 + 2),
        ("timm:resnet50d", 4 + 2),
        ("timm:convnext_atto", 4 + 2),
        ("timm:vit_tiny_patch16_224", 12 + 2),
        ("torchvision:vit_b_16", 12 + 2),
        ("torchvision:efficientnet_b0", 7 + 1 + 2),  # its last convolution is a separate group
        ("torchvision:regnet_y_400mf", 4 + 2),
        ("timm:pit_ti_224", 3 + 2),
        ("timm:nest_tiny", 3 + 2),
        ("timm:rdnet_tiny", 7 + 2),
    ],
)
def test_layer_groups_have_every_parameter_once_from_stem_to_head(model, groups):
    # torchvision needs values for the initialization of a RegNet.
    with nullcontext() if "regnet" in str(model) else torch.device("meta"):
        network = create(model, num_classes=5)
    found = layer_groups(network)
    assert len(found) == groups
    ids = [id(weight) for group in found for weight in group]
    assert sorted(ids) == sorted(id(weight) for weight in network.parameters())
    classifier = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    assert any(weight is classifier.weight for weight in found[-1])


def test_layer_groups_of_b0_by_hand():
    """Stem: 3*3*3*32 + 2*32; stage 1: 3*3*32*16 + 2*16; head: 192*1280 + 2*1280 + 1280*5 + 5."""
    with torch.device("meta"):
        found = sizes(create("efficientnetv2_b0", num_classes=5))
    assert found[:2] == [864 + 64, 4608 + 32]
    assert found[-1] == 245_760 + 2_560 + 6_405


class Wrapped(nn.Module):
    """A module that only calls another model."""

    def __init__(self, network):
        super().__init__()
        self.scale, self.net = nn.Identity(), network

    def forward(self, x):
        return self.net(self.scale(x))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("model", "groups"),
    [
        ("torchvision:resnet18", 4 + 2),
        ("torchvision:mobilenet_v3_small", 13 + 1),  # arXiv:1905.02244, Table 2
    ],
)
def test_wrapped_model_has_the_layer_groups_of_the_inner_model(model, groups, times):
    bare = create(model, num_classes=1000)
    module = bare.module
    for _ in range(times):
        module = Wrapped(module)
    network = create(module)
    within = lambda groups: [[id(weight) for weight in group] for group in groups]  # noqa: E731
    assert within(layer_groups(network)) == within(layer_groups(bare))
    assert len(layer_groups(network)) == groups
    freeze(network, stages=groups - 2)
    trains = {id(weight) for weight in network.parameters() if weight.requires_grad}
    assert trains == {id(weight) for weight in layer_groups(bare)[-1]}


def test_sequence_inside_a_module_is_frozen_layer_by_layer():
    layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    network = create(Wrapped(nn.Sequential(*layers)))
    assert sizes(network) == [3 * 4 * 9 + 4, 4 * 4 * 9 + 4, 4 * 2 + 2]
    freeze(network, stages=1)
    assert [layer.weight.requires_grad for layer in (layers[0], layers[1], layers[4])] == [False, False, True]
    assert len(layer_groups(create(network, num_classes=0))) == 3


def test_model_without_stages_cannot_freeze_a_stage():
    class Piece(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = nn.ModuleDict({"head": nn.Linear(4, 2)})
            self.whole["head"].conv = nn.Conv2d(3, 4, 3)

    network = create(Piece())
    assert len(layer_groups(network)) == 1
    freeze(network, stages=0)
    with pytest.raises(InputError, match=mentioning("1", "0", "stage")):
        freeze(network, stages=1)


def test_adapting_a_model_with_two_classifiers_is_rejected():
    """timm's distilled transformers average two classifiers."""
    network = create("timm:deit_tiny_distilled_patch16_224", num_classes=3)
    with pytest.raises(InputError, match="several classifiers"):
        adapt(network, num_classes=5)
    with pytest.raises(InputError, match=mentioning("distilled_patch16_224", "2")):
        set_classifier_weights(network, torch.zeros(3, 192), torch.zeros(3))


def test_freeze_all_trains_both_of_two_classifiers():
    with torch.device("meta"):
        network = create("timm:deit_tiny_distilled_patch16_224", num_classes=3)
    freeze(network, stages="all")
    trains = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert trains == {f"module.{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")}
    groups = layer_groups(network)
    assert len(groups) == 12 + 2  # as in the transformer without distillation
    last = {id(weight) for weight in groups[-1]}
    assert all(id(weight) in last for one in classifier_layers(network) for weight in one.parameters())


@pytest.mark.parametrize("name", ["torchvision:googlenet", "torchvision:inception_v3"])
def test_channels_of_a_model_with_built_in_scaling_cannot_be_changed(name):
    network = create(name, num_classes=3)
    with pytest.raises(InputError, match=f"{name} scales three channels"):
        adapt(network, in_channels=6)


def test_classifier_of_transformers_takes_other_channels():
    """Its embeddings compare the channels of an image with their own number."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    network = create(transformers.ResNetForImageClassification(config).eval(), num_classes=2, in_channels=4)
    assert network(torch.randn(1, 4, 32, 32)).shape == (1, 2)


def test_backbone_names_the_model_within_it():
    backbone = create("efficientnetv2_b0", features_only=True)
    with pytest.raises(InputError, match=mentioning("Backbone", ".network")):
        freeze(backbone, stages=2)
    freeze(backbone.network, stages=np.int64(2))
