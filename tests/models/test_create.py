"""A network from its name, with the released regularization unless told otherwise."""

import pytest
import torch
from torch import nn

from efficientnetv2.arch.spec import Architecture, Stage, mbconv
from efficientnetv2.base.errors import InputError
from efficientnetv2.models.blocks import DropPath
from efficientnetv2.models.create import create


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
    with pytest.raises(InputError, match="'efficientnet_v2_s'; did you mean 'efficientnetv2_s'"):
        create("efficientnet_v2_s")
