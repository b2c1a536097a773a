"""Architecture specifications: validation, JSON, and the blocks of an architecture."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.messages import mentioning

from efficientnetv2.architectures.spec import Architecture, Operator, Stage, blocks, fused_mbconv, mbconv

SMALL = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=1, kernel=3), 1, 8, 2),
        Stage(fused_mbconv(expand=4, kernel=5), 2, 12, 1),
        Stage(mbconv(expand=6, kernel=3, se=0.25), 2, 20, 2),
    ),
    head_channels=40,
)

operators = st.builds(
    Operator,
    kind=st.sampled_from(["mbconv", "fused"]),
    expand=st.integers(1, 8),
    kernel=st.sampled_from([1, 3, 5, 7, 9]),
    se=st.none() | st.floats(0, 1, exclude_min=True),
)
stages = st.builds(Stage, operators, st.sampled_from([1, 2]), channels=st.integers(1, 2000), layers=st.integers(1, 40))
architectures = st.builds(
    Architecture,
    stem_channels=st.integers(1, 256),
    stages=st.lists(stages, min_size=1, max_size=8).map(tuple),
    head_channels=st.integers(1, 6000),
    padding=st.sampled_from(["same", "symmetric"]),
    batch_norm_epsilon=st.floats(0, 1, exclude_min=True),
)


@given(architectures)
def test_architecture_is_read_back_equal_from_json(architecture):
    assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture


@given(architectures)
def test_channels_of_blocks_match_and_depth_fractions_are_evenly_spaced(architecture):
    rows = blocks(architecture)
    given = [architecture.stem_channels, *(row.out_channels for row in rows)]
    assert [row.in_channels for row in rows] == given[:-1]
    assert len(rows) == sum(stage.layers for stage in architecture.stages)
    assert [row.depth_fraction for row in rows] == [i / len(rows) for i in range(len(rows))]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: mbconv(expand=0, kernel=3), ("expand is 0",)),
        (lambda: mbconv(expand=6, kernel=4), ("kernel is 4",)),
        (lambda: mbconv(expand=6, kernel=-1), ("kernel is -1",)),
        (lambda: mbconv(expand=6, kernel=3, se=0.0), ("se is 0",)),
        (lambda: mbconv(expand=6, kernel=3, se=1.5), ("expand=6", "kernel=3", "se=1.5", "1.5")),
        (lambda: mbconv(expand=6, kernel=3, se=float("nan")), ("se is nan",)),
        (lambda: Operator("ghost", 1, 3), ("ghost",)),
        (lambda: Stage(fused_mbconv(expand=4, kernel=3), 3, 48, 4), ("48", "3", "stage")),
        (lambda: Stage(fused_mbconv(expand=4, kernel=3), 2, 0, 4), ("0", "channel")),
        (lambda: Stage(fused_mbconv(expand=4, kernel=3), 2, 48, 0), ("0", "layer")),
        (lambda: Architecture(24, (), 1280), ("stage", "empty")),
        (lambda: Architecture(0, SMALL.stages, 1280), ("stem_channels", "0")),
        (lambda: Architecture(24, SMALL.stages, -1), ("head_channels", "-1")),
        (lambda: Architecture(24, SMALL.stages, 1280, padding="valid"), ("valid",)),
        (lambda: Architecture(24, SMALL.stages, 1280, batch_norm_epsilon=0.0), ("batch_norm_epsilon", "0")),
    ],
)
def test_invalid_architecture_is_rejected(make, said):
    with pytest.raises(ValidationError, match=mentioning(*said)):
        make()


def test_invalid_json_is_rejected_with_the_stage():
    plain = SMALL.to_json()
    plain["stages"][2]["channels"] = -20
    with pytest.raises(ValidationError, match=r"stages\.2(.|\n)*channels is -20"):
        Architecture.from_json(plain)
    with pytest.raises(ValidationError, match="dilation"):
        Architecture.from_json({**SMALL.to_json(), "dilation": 2})


def test_architecture_is_hashable_and_immutable():
    assert Architecture.from_json(SMALL.to_json()) == SMALL
    assert hash(SMALL) == hash(Architecture.from_json(SMALL.to_json()))
    with pytest.raises(AttributeError, match="stem_channels"):
        SMALL.stem_channels = 16  # type: ignore[misc]


def test_blocks_by_hand():
    """Squeeze-excite has a quarter of the input channels of the block. A shortcut needs equal shapes."""
    shown = [
        (b.kind, b.stage, b.in_channels, b.inner_channels, b.out_channels, b.kernel, b.stride,
         b.se_channels, b.residual, b.expands, b.projects)
        for b in blocks(SMALL)
    ]  # fmt: skip
    assert shown == [
        ("fused", 0, 8, 8, 8, 3, 1, None, True, False, False),
        ("fused", 0, 8, 8, 8, 3, 1, None, True, False, False),
        ("fused", 1, 8, 32, 12, 5, 2, None, False, True, True),
        ("mbconv", 2, 12, 72, 20, 3, 2, 3, False, True, True),
        ("mbconv", 2, 20, 120, 20, 3, 1, 5, True, True, True),
    ]


def test_squeeze_excite_has_at_least_one_channel():
    one = Architecture(1, (Stage(mbconv(expand=1, kernel=3, se=0.25), 1, 1, 1),), 8)
    assert blocks(one)[0].se_channels == 1
