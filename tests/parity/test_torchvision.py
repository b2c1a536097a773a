"""Equal logits to torchvision with torchvision's weights, only with its padding and epsilon."""

from dataclasses import replace

import pytest
import torch
import torchvision

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.factory import create

EVEN_PX, ODD_PX = 64, 75
TOLERANCE = 1e-4


def ours_with(table, theirs):
    """The model of an architecture with torchvision's weights: only renamed, none unused."""
    with torch.device("meta"):
        network = create(table)
    names, weights = tensor_names("torchvision", table), theirs.state_dict()
    renamed = {ours: weights.pop(names[ours]) for ours in network.state_dict()}
    assert not weights
    network.load_state_dict(renamed, assign=True)
    return network


@pytest.mark.parametrize(
    ("name", "theirs", "epsilon", "wrong_epsilon"),
    [("efficientnetv2_s", "efficientnet_v2_s", 1e-3, 1e-5), ("efficientnet_b0", "efficientnet_b0", 1e-5, 1e-3)],
)
def test_logits_equal_torchvision_only_with_its_padding_and_epsilon(
    name, theirs, epsilon, wrong_epsilon, randomise, distance
):
    right = replace(get_architecture(name), padding="symmetric", batch_norm_epsilon=epsilon)
    theirs = randomise(torchvision.models.get_model(theirs, weights=None))
    ours = ours_with(right, theirs)
    assert distance(ours, theirs, EVEN_PX) < TOLERANCE
    assert distance(ours, theirs, ODD_PX) < TOLERANCE
    for wrong in (replace(right, padding="same"), replace(right, batch_norm_epsilon=wrong_epsilon)):
        ours = ours_with(wrong, theirs)
        assert distance(ours, theirs, EVEN_PX) > 10 * TOLERANCE
        assert distance(ours, theirs, ODD_PX) > 10 * TOLERANCE
