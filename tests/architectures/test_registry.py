"""The published networks against the papers, torchvision's tables and timm's evaluation settings."""

import pytest
from tests.messages import mentioning

from efficientnetv2.architectures.registry import EFFICIENTNETV2_S, NAMES, get_architecture, get_model_info
from efficientnetv2.utils.errors import InputError

# timm 1.0.31, default configurations of the tf_ networks: crop_pct.
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


def test_s_is_table_4_of_the_paper():
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
def test_stages_are_torchvisions(name, theirs, width, depth):
    from torchvision.models.efficientnet import FusedMBConvConfig, _efficientnet_conf

    scaling = {} if width is None else {"width_mult": width, "depth_mult": depth}
    table, _ = _efficientnet_conf(theirs, **scaling)

    def kind(stage):
        return "fused" if isinstance(stage, FusedMBConvConfig) else "mbconv"

    assert rows(name) == [(kind(s), s.expand_ratio, s.kernel, s.stride, s.out_channels, s.num_layers) for s in table]
    assert get_architecture(name).stem_channels == table[0].input_channels


def test_eighteen_networks_v2_first():
    assert len(NAMES) == len(set(NAMES)) == 18
    assert [name.startswith("efficientnetv2_") for name in NAMES] == [True] * 8 + [False] * 10


def test_evaluation_crops_as_timm_publishes():
    for name, fraction in TIMM_CROP.items():
        facts = get_model_info(name)
        assert facts.preprocessing.crop_mode == "center"
        # timm cuts to three digits, and L2 to two.
        assert facts.preprocessing.crop_pct == pytest.approx(fraction, abs=0.0016)
        assert facts.preprocessing.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(TIMM_CROP)))
def test_s_to_xl_see_the_whole_picture_between_minus_1_and_1(name):
    """Released: (x - 128) / 128 on 0 to 255, so that 0 is -1 and 128 is 0."""
    p = get_model_info(name).preprocessing
    assert (p.crop_mode, p.crop_pct) == ("squash", 1.0)
    assert [(x / 255 - p.mean[0]) / p.std[0] for x in (0, 128, 192)] == pytest.approx([-1, 0, 0.5], abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_s_to_xl_are_resized_bilinearly_and_all_others_bicubically(name):
    """Released: tf.image.resize, which is bilinear; of the others resize_bicubic, in preprocess_legacy.py."""
    expected = "bicubic" if name in TIMM_CROP else "bilinear"
    assert get_model_info(name).preprocessing.interpolation == expected


def test_every_size_is_that_of_its_preprocessing():
    assert all(get_model_info(name).preprocessing.image_size == get_model_info(name).eval_image_size for name in NAMES)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=mentioning("efficientnetv2s", "did you mean", "efficientnetv2_s")):
        get_architecture("efficientnetv2s")
    with pytest.raises(InputError, match=mentioning("xyz", "efficientnetv2_b0")):
        get_model_info("xyz")
