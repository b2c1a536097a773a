"""Published architectures against the papers, torchvision and the evaluation settings of timm."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.messages import mentioning

from efficientnetv2.architectures.registry import (
    EFFICIENTNET_B0,
    EFFICIENTNETV2_B0,
    EFFICIENTNETV2_S,
    NAMES,
    get_architecture,
    get_model_info,
    round_channels,
    scale,
)
from efficientnetv2.architectures.spec import Architecture, Stage, mbconv
from efficientnetv2.utils.errors import InputError

# timm 1.0.31, default configurations of the tf_ models: crop_pct.
TIMM_CROP = {
    "efficientnetv2_b0": 0.875, "efficientnetv2_b1": 0.882, "efficientnetv2_b2": 0.89,
    "efficientnetv2_b3": 0.904, "efficientnet_b0": 0.875, "efficientnet_b1": 0.882,
    "efficientnet_b2": 0.89, "efficientnet_b3": 0.904, "efficientnet_b4": 0.922, "efficientnet_b5": 0.934,
    "efficientnet_b6": 0.942, "efficientnet_b7": 0.949, "efficientnet_b8": 0.954, "efficientnet_l2": 0.96,
}  # fmt: skip


def rows(name):
    return [
        (s.operator.kind, s.operator.expand, s.operator.kernel, s.stride, s.channels, s.layers)
        for s in get_architecture(name).stages
    ]


def test_s_equals_table_4_of_the_paper():
    assert rows("efficientnetv2_s") == [
        ("fused", 1, 3, 1, 24, 2),
        ("fused", 4, 3, 2, 48, 4),
        ("fused", 4, 3, 2, 64, 4),
        ("mbconv", 4, 3, 2, 128, 6),
        ("mbconv", 6, 3, 1, 160, 9),
        ("mbconv", 6, 3, 2, 256, 15),
    ]
    assert (EFFICIENTNETV2_S.stem_channels, EFFICIENTNETV2_S.head_channels) == (24, 1280)


@pytest.mark.parametrize(
    ("name", "theirs", "width", "depth"),
    [
        ("efficientnetv2_s", "efficientnet_v2_s", None, None),
        ("efficientnetv2_m", "efficientnet_v2_m", None, None),
        ("efficientnetv2_l", "efficientnet_v2_l", None, None),
        ("efficientnet_b0", "efficientnet_b0", 1.0, 1.0),
        ("efficientnet_b1", "efficientnet_b1", 1.0, 1.1),
        ("efficientnet_b4", "efficientnet_b4", 1.4, 1.8),
        ("efficientnet_b7", "efficientnet_b7", 2.0, 3.1),
    ],
)
def test_stages_equal_torchvision(name, theirs, width, depth):
    from torchvision.models.efficientnet import FusedMBConvConfig, _efficientnet_conf

    scaling = {} if width is None else {"width_mult": width, "depth_mult": depth}
    table, _ = _efficientnet_conf(theirs, **scaling)

    def kind(stage):
        return "fused" if isinstance(stage, FusedMBConvConfig) else "mbconv"

    assert rows(name) == [(kind(s), s.expand_ratio, s.kernel, s.stride, s.out_channels, s.num_layers) for s in table]
    assert get_architecture(name).stem_channels == table[0].input_channels


def test_there_are_18_architectures_with_v2_first():
    assert len(NAMES) == len(set(NAMES)) == 18
    assert [name.startswith("efficientnetv2_") for name in NAMES] == [True] * 8 + [False] * 10


def test_evaluation_crops_equal_timm():
    for name, fraction in TIMM_CROP.items():
        facts = get_model_info(name)
        assert facts.preprocessing.crop_mode == "center"
        # timm truncates to three digits, for L2 to two.
        assert facts.preprocessing.crop_pct == pytest.approx(fraction, abs=0.0016)
        assert facts.preprocessing.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(TIMM_CROP)))
def test_s_to_xl_use_the_full_image_scaled_to_minus_1_to_1(name):
    """Released: (x - 128) / 128 for 0 to 255, so 0 becomes -1 and 128 becomes 0."""
    p = get_model_info(name).preprocessing
    assert (p.crop_mode, p.crop_pct) == ("squash", 1.0)
    assert [(x / 255 - p.mean[0]) / p.std[0] for x in (0, 128, 192)] == pytest.approx([-1, 0, 0.5], abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_s_to_xl_are_resized_bilinearly_and_all_others_bicubically(name):
    """Released: tf.image.resize, which is bilinear. The others use resize_bicubic of preprocess_legacy.py."""
    expected = "bicubic" if name in TIMM_CROP else "bilinear"
    assert get_model_info(name).preprocessing.interpolation == expected


def test_evaluation_size_equals_the_preprocessing_size():
    assert all(get_model_info(name).preprocessing.image_size == get_model_info(name).eval_image_size for name in NAMES)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match=mentioning("efficientnetv2s", "did you mean", "efficientnetv2_s")):
        get_architecture("efficientnetv2s")
    with pytest.raises(InputError, match=mentioning("xyz", "efficientnetv2_b0")):
        get_model_info("xyz")


def test_v1_and_v2_rounding_differ_if_more_than_10_percent_is_lost():
    """11.9 rounds to 8, less than 90 %, so V1 uses 16. Halves are rounded up: 12 becomes 16."""
    assert round_channels(11.9, rounding="v2") == 8
    assert round_channels(11.9, rounding="v1") == 16
    assert [round_channels(c, rounding="v2") for c in (1, 12, 19.9, 20)] == [8, 16, 16, 24]


@given(st.floats(8, 1e5))
def test_channels_are_multiples_of_8_and_v1_loses_at_most_10_percent(channels):
    nearest = round_channels(channels, rounding="v2")
    assert nearest % 8 == 0
    assert abs(nearest - channels) <= 4
    assert round_channels(channels, rounding="v1") >= 0.9 * channels


@given(st.sampled_from([EFFICIENTNET_B0, EFFICIENTNETV2_B0]), st.sampled_from(["v1", "v2"]))
def test_scaling_by_one_changes_nothing(base, rounding):
    assert scale(base, width=1.0, depth=1.0, rounding=rounding) == base


def test_v1_b7_by_hand():
    """Width 2.0, depth 3.1 of Table 1 of arXiv:1905.11946: 1, 2, 3, 4 layers become 4, 7, 10, 13."""
    b7 = scale(EFFICIENTNET_B0, width=2.0, depth=3.1, rounding="v1")
    assert b7.stem_channels == 64
    assert [s.channels for s in b7.stages] == [32, 48, 80, 160, 224, 384, 640]
    assert [s.layers for s in b7.stages] == [4, 7, 7, 10, 10, 13, 4]
    assert b7.head_channels == 2560


def test_floating_point_error_does_not_add_a_layer():
    """2.2 * 25 is slightly above 55 in binary."""
    base = Architecture(8, (Stage(mbconv(expand=1, kernel=3), 1, 8, 25),), 8)
    assert scale(base, width=1.0, depth=2.2, rounding="v2").stages[0].layers == 55


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan")])
def test_scaling_coefficients_must_be_positive_numbers(wrong):
    with pytest.raises(InputError, match="width"):
        scale(EFFICIENTNET_B0, width=wrong, depth=1.0, rounding="v1")
    with pytest.raises(InputError, match="depth"):
        scale(EFFICIENTNET_B0, width=1.0, depth=wrong, rounding="v1")
