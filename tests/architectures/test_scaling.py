"""Compound scaling: the two roundings, and what a base becomes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2.architectures.registry import EFFICIENTNET_B0, EFFICIENTNETV2_B0, round_channels, scale
from efficientnetv2.architectures.spec import Architecture, Stage, mbconv
from efficientnetv2.utils.errors import InputError


def test_the_two_roundings_differ_where_a_tenth_would_be_lost():
    """11.9 is nearest to 8, which is less than 90 % of it: V1 takes 16. Halves go up: 12 becomes 16."""
    assert round_channels(11.9, rounding="v2") == 8
    assert round_channels(11.9, rounding="v1") == 16
    assert [round_channels(c, rounding="v2") for c in (1, 12, 19.9, 20)] == [8, 16, 16, 24]


@given(st.floats(8, 1e5))
def test_rounding_is_to_the_nearest_eight_and_v1_never_loses_a_tenth(channels):
    nearest = round_channels(channels, rounding="v2")
    assert nearest % 8 == 0
    assert abs(nearest - channels) <= 4
    assert round_channels(channels, rounding="v1") >= 0.9 * channels


@given(st.sampled_from([EFFICIENTNET_B0, EFFICIENTNETV2_B0]), st.sampled_from(["v1", "v2"]))
def test_scaling_by_one_changes_nothing(base, rounding):
    assert scale(base, width=1.0, depth=1.0, rounding=rounding) == base


def test_v1_b7_by_hand():
    """Width 2.0, depth 3.1 on Table 1 of arXiv:1905.11946: 1, 2, 3, 4 layers become 4, 7, 10, 13."""
    b7 = scale(EFFICIENTNET_B0, width=2.0, depth=3.1, rounding="v1")
    assert b7.stem_channels == 64
    assert [s.channels for s in b7.stages] == [32, 48, 80, 160, 224, 384, 640]
    assert [s.layers for s in b7.stages] == [4, 7, 7, 10, 10, 13, 4]
    assert b7.head_channels == 2560


def test_floating_point_does_not_add_a_layer():
    """2.2 * 25 is a little above 55 in binary."""
    base = Architecture(8, (Stage(mbconv(expand=1, kernel=3), 1, 8, 25),), 8)
    assert scale(base, width=1.0, depth=2.2, rounding="v2").stages[0].layers == 55


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan")])
def test_a_coefficient_is_a_positive_number(wrong):
    with pytest.raises(InputError, match="width"):
        scale(EFFICIENTNET_B0, width=wrong, depth=1.0, rounding="v1")
    with pytest.raises(InputError, match="depth"):
        scale(EFFICIENTNET_B0, width=1.0, depth=wrong, rounding="v1")
