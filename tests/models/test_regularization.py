"""In-place changes of dropout, stochastic depth and batch norm momentum in models of any library."""

import copy

import pytest
import torch
import torchvision
from tests.messages import each_mentions, mentioning, mentions
from torch import nn

from efficientnetv2.models.factory import create
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.progressive.presets import paper_schedule
from efficientnetv2.progressive.schedule import ProgressiveSchedule, StepSettings
from efficientnetv2.utils.errors import InputError


def torchvision_rates(network):
    return [m.p for m in network.modules() if isinstance(m, torchvision.ops.StochasticDepth)]


def test_rates_change_in_place_and_increase_with_depth():
    """Block i of the 21 blocks of V2-B0 has rate * i/21. The weights remain the same tensors."""
    network = create("efficientnetv2_b0")
    weights = [p.data_ptr() for p in network.parameters()]
    done = apply_regularization(network, dropout=0.45, drop_path=0.32)
    assert weights == [p.data_ptr() for p in network.parameters()]
    assert network.dropout.p == 0.45
    rates = {i: b.drop_path.rate for i, b in enumerate(network.blocks) if b.drop_path is not None}
    assert rates == pytest.approx({i: 0.32 * i / 21 for i in rates})
    assert (done.dropout_modules, done.notes) == (("dropout",), ())
    assert done.drop_path_modules == tuple(f"blocks.{i}.drop_path" for i in rates)
    assert len(rates) == 21 - 6


def test_dropout_affects_the_next_pass():
    network = create("efficientnetv2_b0", num_classes=0, drop_path=0).train()
    pictures = torch.randn(4, 3, 32, 32)
    for rate in (0.0, 0.9, 0.2):
        apply_regularization(network, dropout=rate, drop_path=0)
        assert (network(pictures) == 0).double().mean().item() == pytest.approx(rate, abs=0.03)


def test_torchvision_rates_keep_their_proportions_through_zero():
    network = torchvision.models.efficientnet_v2_s(weights=None, stochastic_depth_prob=0.2)
    built = torchvision_rates(network)
    apply_regularization(network, dropout=0.0, drop_path=0.0)
    assert torchvision_rates(network) == [0.0] * 40
    done = apply_regularization(copy.deepcopy(network), dropout=0.3, drop_path=0.4)
    assert (done.dropout_modules, len(done.drop_path_modules), done.notes) == (("classifier.0",), 40, ())
    apply_regularization(network, dropout=0.3, drop_path=0.4)
    assert torchvision_rates(network) == pytest.approx([0.4 * rate / max(built) for rate in built])
    assert network.classifier[0].p == 0.3


def test_torchvision_model_without_rates_gets_linear_rates_with_a_note():
    network = torchvision.models.efficientnet_b0(weights=None, stochastic_depth_prob=0.0)
    for _ in range(2):
        done = apply_regularization(network, dropout=0.1, drop_path=0.16)
        assert "rises evenly" in done.notes[0]
    assert torchvision_rates(network) == pytest.approx([0.16 * (i + 1) / 16 for i in range(16)])


def test_rates_missing_in_a_schedule_remain_as_built():
    network = torchvision.models.efficientnet_b0(weights=None)
    built = torchvision_rates(network)
    done = apply_regularization(network, ProgressiveSchedule(image_size=32, dropout=0.4).last)
    assert (torchvision_rates(network), network.classifier[0].p) == (built, 0.4)
    assert (done.dropout_modules, done.drop_path_modules, done.notes) == (("classifier.0",), (), ())
    done = apply_regularization(network, ProgressiveSchedule(image_size=32, drop_path=0.1).last)
    assert (max(torchvision_rates(network)), network.classifier[0].p) == (pytest.approx(0.1), 0.4)
    assert (done.dropout_modules, len(done.drop_path_modules)) == ((), 16)


def test_step_values_and_rates_together_are_rejected():
    with pytest.raises(InputError, match="a schedule value or rates"):
        apply_regularization(nn.Dropout(), StepSettings(image_size=32), dropout=0.1)


def test_schedule_instead_of_step_values_is_rejected():
    with pytest.raises(InputError, match=mentioning("ProgressiveSchedule", "StepSettings", "schedule.at(step")):
        apply_regularization(nn.Dropout(), ProgressiveSchedule(image_size=32))


def test_timm_drop_path_and_drop_rate_are_set():
    timm = pytest.importorskip("timm")
    from timm.layers import DropPath as TimmDropPath

    network = timm.create_model("tf_efficientnetv2_b0", drop_path_rate=0.2)
    built = [m.drop_prob for m in network.modules() if isinstance(m, TimmDropPath)]
    done = apply_regularization(network, dropout=0.3, drop_path=0.1)
    rates = [m.drop_prob for m in network.modules() if isinstance(m, TimmDropPath)]
    assert rates == pytest.approx([0.1 * rate / max(built) for rate in built])
    assert (done.dropout_modules, len(done.drop_path_modules), done.notes) == (("drop_rate",), len(built), ())
    # timm has no dropout module here, but uses drop_rate in each pass.
    network.train().classifier = nn.Identity()
    assert (network(torch.randn(4, 3, 32, 32)) == 0).double().mean().item() == pytest.approx(0.3, abs=0.04)


def test_rate_without_a_module_is_reported():
    timm = pytest.importorskip("timm")
    done = apply_regularization(timm.create_model("tf_efficientnetv2_b0"), dropout=0.1, drop_path=0.2)
    assert done.drop_path_modules == ()
    assert mentions(done.notes[0], "drop_path", "0.2")
    done = apply_regularization(torchvision.models.resnet18(weights=None), dropout=0.1, drop_path=0.0)
    assert done.dropout_modules == ()
    assert mentions(done.notes[0], "0.1", "dropout")
    assert apply_regularization(nn.Linear(2, 2), dropout=0, drop_path=0).notes == ()


def test_only_dropouts_with_a_rate_are_set_or_else_the_last():
    acting = nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.5), nn.Linear(2, 2), nn.Dropout(0.0))
    for rate in (0.0, 0.3):
        assert apply_regularization(acting, dropout=rate, drop_path=0).dropout_modules == ("1",)
        assert [acting[i].p for i in (0, 1, 3)] == [0.0, rate, 0.0]
    silent = nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.0), nn.Linear(2, 2))
    for rate in (0.3, 0.1):
        apply_regularization(silent, dropout=rate, drop_path=0)
        assert [silent[i].p for i in (0, 1)] == [0.0, rate]


def test_each_network_of_a_module_keeps_its_dropout():
    networks = nn.ModuleList(create("efficientnetv2_b0", num_classes=0) for _ in range(2))
    for rate in (0.0, 0.3):
        apply_regularization(networks, dropout=rate)
        assert [network.dropout.p for network in networks] == [rate, rate]


@pytest.mark.parametrize("kind", [nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout])
def test_every_dropout_class_is_recognized(kind):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), kind(0.5), nn.Flatten(), nn.Linear(4, 2))
    done = apply_regularization(network, dropout=0.2)
    assert (done.dropout_modules, done.notes, network[1].p) == (("1",), (), 0.2)


def test_dropouts_keep_their_proportions():
    """0.1 in a block and 0.4 before the classifier: a quarter, also after 0 and in copies."""
    network = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.0), nn.Linear(2, 2), nn.Dropout(0.4), nn.Linear(2, 2))
    for rate in (0.2, 0.0, 0.8):
        network = copy.deepcopy(network)
        done = apply_regularization(network, dropout=rate)
        assert done.dropout_modules == ("0", "3")
        assert [network[i].p for i in (0, 1, 3)] == pytest.approx([rate / 4, 0, rate])
        assert mentions(done.notes[0], "dropout", "rates")
    assert apply_regularization(nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.1)), dropout=0.3).notes == ()


def test_dropouts_in_transformers_keep_their_proportions():
    """Its EfficientNet has dropouts as stochastic depth, 0 to 0.2 with depth, and 0.5 before the classifier."""
    transformers = pytest.importorskip("transformers")
    size = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
    network = transformers.EfficientNetForImageClassification(transformers.EfficientNetConfig(**size))
    built = {name: m.p for name, m in network.named_modules() if isinstance(m, nn.Dropout)}
    assert network.dropout.p == 0.5 > max(rate for name, rate in built.items() if name != "dropout") > 0
    apply_regularization(network, dropout=0.3)
    for name, rate in built.items():
        assert network.get_submodule(name).p == pytest.approx(0.3 * rate / 0.5), name


def test_result_is_printed_in_words():
    network = torchvision.models.efficientnet_b0(weights=None)
    done = apply_regularization(network, StepSettings(image_size=32, dropout=0.1, drop_path=0.1, randaugment=5))
    assert mentions(str(done), "classifier.0", "16", "5")
    assert str(apply_regularization(nn.Linear(2, 2), StepSettings(image_size=32))) == "nothing"


class DropPath(nn.Module):
    """As in many copies of timm's class."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob


class BeitDropPath(DropPath):
    """As named in transformers."""


@pytest.mark.parametrize("kind", [DropPath, BeitDropPath])
def test_copies_of_drop_path_are_set(kind):
    network = nn.Sequential(kind(0.1), nn.Linear(2, 2), kind(0.2))
    done = apply_regularization(network, drop_path=0.4)
    assert (done.drop_path_modules, done.notes) == (("0", "2"), ())
    assert [network[0].drop_prob, network[2].drop_prob] == pytest.approx([0.2, 0.4])


def test_drop_path_without_a_rate_is_ignored():
    """The note states that the model has no such module."""
    network = nn.Sequential(kind := DropPath(None))
    assert mentions(apply_regularization(network, drop_path=0.1).notes[0], "drop_path", "0.1", "no effect")
    assert kind.drop_prob is None


def vit():
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=1, hidden_dim=8, mlp_dim=8
    )


def swin():
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=[4, 4]
    )


@pytest.mark.parametrize(
    ("build", "name"), [(vit, "encoder.layers.encoder_layer_1.mlp.4"), (swin, "features.3.0.mlp.4")]
)
def test_dropout_inside_a_block_is_set_with_a_note(build, name):
    """torchvision's transformers have dropouts of 0 in every block, and none before the classifier."""
    network = build()
    done = apply_regularization(network, dropout=0.1, drop_path=0)
    assert done.dropout_modules == (name,)
    acting = [key for key, m in network.named_modules() if isinstance(m, nn.Dropout) and m.p > 0]
    assert acting == [name]
    assert [mentions(note, "classifier") for note in done.notes] == [True]
    assert apply_regularization(network, dropout=0, drop_path=0).notes == ()


def test_drop_rate_of_timm_has_priority_over_dropouts_in_blocks():
    """These are in the attention. A module before the classifier is set instead, if there is one."""
    timm = pytest.importorskip("timm")
    network = timm.create_model("mobilenetv4_hybrid_medium", num_classes=2)
    done = apply_regularization(network, dropout=0.3, drop_path=0)
    assert (done.dropout_modules, done.notes) == (("drop_rate",), ())
    assert network.drop_rate == 0.3
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.0}
    done = apply_regularization(timm.create_model("convnext_atto", num_classes=2), dropout=0.3, drop_path=0)
    assert (done.dropout_modules, done.notes) == (("head.drop",), ())


@pytest.mark.parametrize("wrong", [-0.1, 1.0, float("nan")])
def test_rate_must_be_from_0_to_below_1(wrong):
    network = nn.Dropout()
    with pytest.raises(InputError, match="dropout is"):
        apply_regularization(network, dropout=wrong, drop_path=0)
    with pytest.raises(InputError, match=mentioning("drop_path")):
        apply_regularization(network, dropout=0, drop_path=wrong)


def test_evaluation_mode_is_reported_for_a_step():
    """Pretrained weights are in it, and a loop that keeps it trains without regularization."""
    step, network = StepSettings(image_size=32, dropout=0.1), create("efficientnetv2_b0")
    assert any("evaluation mode" in note for note in apply_regularization(network.eval(), step).notes)
    assert apply_regularization(network.train(), step).notes == ()


def test_values_that_a_model_cannot_hold_are_reported():
    """Otherwise a custom loop would train without half of the regularization."""
    last = paper_schedule("efficientnetv2_m").last
    done = apply_regularization(create("efficientnetv2_b0"), last)
    assert each_mentions(done.notes, ("20", "mixup_alpha", "0.2", "label_smoothing", "0.1"))
    assert apply_regularization(create("efficientnetv2_b0"), StepSettings(image_size=32, dropout=0.1)).notes == ()
