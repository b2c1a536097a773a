"""Larger networks from a found one: the published M and L as far as rules give them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.messages import mentioning

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.registry import (
    EFFICIENTNETV2_L,
    EFFICIENTNETV2_M,
    EFFICIENTNETV2_S,
    get_architecture,
    get_model_info,
)
from efficientnetv2.architectures.spec import Architecture, Stage, mbconv
from efficientnetv2.progressive.presets import paper_schedule
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.model_scaling import (
    TO_L,
    TO_M,
    Scaling,
    compound_scaling,
    parse_scaling,
    scale_up,
    train_size_for,
)

# Of the published M and L, by the number of the stage: what S and the coefficients do not give.
M_CHANNELS = {3: 80, 4: 160, 6: 304}
L_CHANNELS = {2: 64, 5: 224}


def numbers(network):
    return [stage.layers for stage in network.stages], [stage.channels for stage in network.stages]


@pytest.mark.parametrize(
    ("growth", "channels", "table"),
    [(TO_M, M_CHANNELS, EFFICIENTNETV2_M), (TO_L, L_CHANNELS, EFFICIENTNETV2_L)],
    ids=["M", "L"],
)
def test_s_becomes_the_published_networks(growth, channels, table):
    """By one depth and one width coefficient, and by what is stated as data; sizes 384 to 480 px."""
    grown = scale_up(
        EFFICIENTNETV2_S, growth, eval_image_size=get_model_info("efficientnetv2_s").eval_image_size
    )
    stages = list(grown.architecture.stages)
    for number, wide in channels.items():
        stages[number - 1] = replace(stages[number - 1], channels=wide)
    assert replace(grown.architecture, stages=tuple(stages)) == table
    assert grown.eval_image_size == 480


@pytest.mark.parametrize(
    ("growth", "table", "layers", "channels"),
    [
        # 7/6 of 2, 4, 4, 6, 9, 15 rounded up: 3, 5, 5, 7, 11, 18, and 3 more in the fifth.
        (TO_M, EFFICIENTNETV2_M, [1, 2, 3, 4, 6], [1, 2, 5]),
        # 5/3 of them: 4, 7, 7, 10, 15, 25, and 4 more in the fifth.
        (TO_L, EFFICIENTNETV2_L, [1, 2, 3, 4, 6], [1, 3, 4, 6]),
    ],
    ids=["M", "L"],
)
def test_what_the_coefficients_alone_give(growth, table, layers, channels):
    rules = replace(growth, more_layers=(), new_layers=0)
    found_layers, found_channels = numbers(
        scale_up(EFFICIENTNETV2_S, rules, eval_image_size=384).architecture
    )
    wanted_layers, wanted_channels = (values[:6] for values in numbers(table))
    assert [n for n in range(1, 7) if found_layers[n - 1] == wanted_layers[n - 1]] == layers
    assert [n for n in range(1, 7) if found_channels[n - 1] == wanted_channels[n - 1]] == channels


def test_no_width_coefficient_gives_the_channels_of_m():
    """So they have to be data: at most 3 of 6 stages agree with any coefficient from 1 to 2."""
    wanted = [stage.channels for stage in EFFICIENTNETV2_M.stages[:6]]
    agreeing = []
    for step in range(1001):
        found = scale_up(
            EFFICIENTNETV2_S, Scaling(1 + step / 1000, 1.0, 1.0), eval_image_size=384
        ).architecture
        agreeing.append(sum(a.channels == b for a, b in zip(found.stages, wanted, strict=True)))
    assert max(agreeing) == 3


@pytest.mark.parametrize("size", ["s", "m", "l"])
def test_training_sizes_are_those_of_table_6(size):
    name = f"efficientnetv2_{size}"
    assert train_size_for(get_model_info(name).eval_image_size) == paper_schedule(name).last.image_size


@given(st.integers(100, 480))
def test_training_is_about_a_fifth_smaller(eval_image_size):
    assert 0.8 * eval_image_size - 20 < train_size_for(eval_image_size) <= 0.8 * eval_image_size


def test_small_pictures_keep_their_size_to_a_pixel():
    assert train_size_for(64) == 51


def test_compound_scaling_doubles_the_multiply_adds():
    """1.2 * 1.1^2 * 1.15^2 = 1.92; no more is padded at 480 px than at 416; rounding up adds a little."""
    base = get_architecture("efficientnetv2_l")
    larger = scale_up(base, compound_scaling(1), eval_image_size=416)
    assert larger.eval_image_size == 480
    before, after = (
        count_flops(one, image_size=px).total.multiply_adds
        for one, px in ((base, 416), (larger.architecture, 480))
    )
    assert after / before == pytest.approx(1.92, rel=0.1)
    assert scale_up(base, compound_scaling(0), eval_image_size=384).architecture == base


def test_pictures_end_at_480_px():
    assert [
        scale_up(EFFICIENTNETV2_S, compound_scaling(phi), eval_image_size=384).eval_image_size
        for phi in (0, 1, 2, 5)
    ] == [
        384,
        440,
        480,
        480,
    ]


def test_a_network_of_few_stages_grows_too():
    """The new stage is the last one's operator at twice its channels."""
    base = Architecture(8, (Stage(mbconv(expand=4, kernel=5), 2, 16, 3),), 32)
    grown = scale_up(
        base, Scaling(1.0, 1.5, 1.0, more_layers=(2,), new_layers=4), eval_image_size=64
    ).architecture
    assert grown.stages == (
        Stage(mbconv(expand=4, kernel=5), 2, 16, 7),
        Stage(mbconv(expand=4, kernel=5), 1, 32, 4),
    )
    with pytest.raises(InputError, match=mentioning("2", "1", "layer")):
        scale_up(base, TO_M, eval_image_size=64)


def test_growth_by_a_word():
    assert [parse_scaling(word) for word in ("m", "L", "0.5")] == [TO_M, TO_L, compound_scaling(0.5)]
    with pytest.raises(InputError, match=mentioning("xl")):
        parse_scaling("xl")
    with pytest.raises(InputError, match="phi is -2"):
        parse_scaling("-2")


@pytest.mark.parametrize("word", ["1e6", "21", "inf", "nan"])
def test_a_network_that_nobody_could_train_is_refused(word):
    """1e6 was more than a float holds; 21 would be two million times the multiply-adds."""
    with pytest.raises(
        InputError, match=f"phi is {float(word):g}".replace("+", r"\+") + ", but must be from 0 to 20"
    ):
        parse_scaling(word)
    assert parse_scaling("20").width < 7


def test_wrong_growth_is_refused():
    with pytest.raises(InputError, match=mentioning("0.9")):
        Scaling(0.9, 1.0, 1.0)
    with pytest.raises(InputError, match=mentioning("-1", "layer")):
        Scaling(1.0, 1.0, 1.0, more_layers=(-1,))
    with pytest.raises(InputError, match="phi is -1"):
        compound_scaling(-1)


def test_training_pictures_are_no_smaller_than_the_stride():
    """Of 32 px a fifth less would be 25, of which a network with stride 32 makes nothing."""
    grown = scale_up(EFFICIENTNETV2_S, compound_scaling(0), eval_image_size=32)
    assert (grown.eval_image_size, grown.train_image_size) == (32, 32)


def test_compound_scaling_is_the_coefficients_to_the_power():
    """arXiv:1905.11946, section 4.1: depth 1.2, width 1.1, size 1.15."""
    grown = compound_scaling(2)
    assert (grown.width, grown.depth, grown.px) == pytest.approx((1.21, 1.44, 1.3225))
