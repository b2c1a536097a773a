"""Equal logits to timm with timm's weights, but not with a wrong padding or epsilon."""

from dataclasses import replace

import pytest
import torch

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.factory import create

timm = pytest.importorskip("timm")

EVEN_PX, ODD_PX = 64, 75  # 75 becomes 38, 19, 10, 5, 3: odd and even on the way down
TOLERANCE = 1e-4

NAMES = [
    "efficientnetv2_b0", "efficientnetv2_b1", "efficientnetv2_b2", "efficientnetv2_b3",
    "efficientnetv2_s", "efficientnetv2_m", "efficientnet_b0", "efficientnet_b3",
]  # fmt: skip


def ours_with(table, theirs):
    """The model of an architecture with timm's weights: only renamed, none unused."""
    with torch.device("meta"):
        network = create(table)
    names, weights = tensor_names("timm", table), theirs.state_dict()
    renamed = {ours: weights.pop(names[ours]) for ours in network.state_dict()}
    assert not weights
    network.load_state_dict(renamed, assign=True)
    return network


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_timm(name, randomise, distance):
    table = get_architecture(name)
    theirs = randomise(timm.create_model(f"tf_{name}"))
    ours = ours_with(table, theirs)
    assert distance(ours, theirs, EVEN_PX) < TOLERANCE
    assert distance(ours, theirs, ODD_PX) < TOLERANCE


@pytest.mark.parametrize("name", ["efficientnetv2_b0", "efficientnetv2_s", "efficientnet_b0"])
def test_wrong_padding_and_wrong_epsilon_are_detected(name, randomise, distance):
    table = get_architecture(name)
    theirs = randomise(timm.create_model(f"tf_{name}"))
    for wrong in (replace(table, padding="symmetric"), replace(table, batch_norm_epsilon=1e-5)):
        ours = ours_with(wrong, theirs)
        assert distance(ours, theirs, EVEN_PX) > 10 * TOLERANCE
        assert distance(ours, theirs, ODD_PX) > 10 * TOLERANCE


def test_features_equal_timm(randomise):
    theirs = randomise(timm.create_model("tf_efficientnetv2_b0", features_only=True))
    pictures = torch.randn(2, 3, ODD_PX, ODD_PX)
    network = create("efficientnetv2_b0").eval()
    names, weights = tensor_names("timm", network.architecture), theirs.state_dict()
    for key, tensor in network.state_dict().items():
        if not key.startswith(("head", "classifier")):
            tensor.copy_(weights[names[key]])
    with torch.inference_mode():
        for got, expected in zip(network.features(pictures), theirs(pictures), strict=True):
            assert got.shape == expected.shape
            assert (got - expected).abs().max() < TOLERANCE * expected.std()
