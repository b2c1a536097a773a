"""Search spaces: exact counts, one point per architecture, and the published architectures."""

import itertools
from dataclasses import replace

import pytest
import torch
from benchmarks.paper.throughput import with_fused
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.messages import mentioning, mentions
from torch.utils.flop_counter import FlopCounterMode

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.registry import EFFICIENTNETV2_S, NAMES, get_architecture
from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.nas.space import Space, paper_space, require_image_size, small_b0, small_space, space_around
from efficientnetv2.nas.stage_choices import StageChoices
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

M = get_architecture("efficientnetv2_m")

# Two stages, the second removable: 2 x 2 = 4 architectures without it and 4 x (2 x 2 x 1) with it.
BACKBONE = Architecture(
    8, (Stage(fused_mbconv(expand=1, kernel=3), 2, 8, 1), Stage(mbconv(expand=4, kernel=3), 1, 16, 1)), 32
)
FIRST = StageChoices(channels=(8,), layers=(1, 2), kernels=(3,), expands=(1,))
SECOND = StageChoices(channels=(16,), layers=(1, 0), kernels=(3,), expands=(1, 4))
TINY = Space(BACKBONE, (FIRST, SECOND))

# Every type of decision, and two removable stages.
RICH = Space(
    BACKBONE,
    (
        replace(FIRST, channels=(8, 16), se=(None, 0.25)),
        replace(SECOND, channels=(8, 16, 24), kernels=(3, 5), se=(0.5, 0.25, None), layers=(2, 0, 1)),
    ),
)


def test_tiny_space_by_hand():
    """4 first stages. The second stage has 4 variants or is removed."""
    assert [decision.name for decision in TINY.decisions] == [
        "stage1.kind", "stage1.layers", "stage2.kind", "stage2.expand", "stage2.layers",
    ]  # fmt: skip
    assert TINY.decisions[4].options == (1, 0)
    assert TINY.count == 4 * (4 + 1)
    assert TINY.decode((1, 1, 0, 1, 0)) == Architecture(
        8, (Stage(fused_mbconv(expand=1, kernel=3), 2, 8, 2), Stage(mbconv(expand=4, kernel=3), 1, 16, 1)), 32
    )
    assert TINY.decode((1, 0, 1, 1, 1)) == replace(BACKBONE, stages=BACKBONE.stages[:1])
    assert TINY.canonical((1, 0, 1, 1, 1)) == (1, 0, 0, 0, 1)
    assert TINY.choices((1, 0, 0, 1, 0))["stage2.expand"] == 4


@pytest.mark.parametrize("space", [TINY, RICH])
def test_count_is_the_number_of_different_architectures(space):
    """All combinations of indices are decoded: equal architectures are equal values."""
    combinations = itertools.product(*(range(len(one.options)) for one in space.decisions))
    architectures = {space.decode(point) for point in combinations}
    points = list(space.points())
    assert len(architectures) == space.count == len(points) == len(set(points))
    assert {space.decode(point) for point in points} == architectures


def test_count_of_the_paper_space():
    """B4 has 2, 4, 4, 6, 6, 8, 2 layers. Each stage: 2 x 2 x 3 operators, twice its layers. 1, 5, 7 are removable."""
    assert paper_space().count == (12 * 4 + 1) * (12 * 8) * (12 * 8) * (12 * 12) * (12 * 12 + 1) * (12 * 16) * (
        12 * 4 + 1
    )


@settings(max_examples=60)
@given(st.sampled_from([TINY, RICH, small_space(), paper_space(), space_around(M)]), st.integers())
def test_points_and_architectures_convert_both_ways(space, seed):
    point = space.sample(Key.of(seed))
    assert space.canonical(point) == point
    architecture = space.decode(point)
    assert space.encode(architecture) == point
    assert space.point(space.choices(point)) == point


@settings(max_examples=60)
@given(st.sampled_from([RICH, small_space()]), st.data())
def test_every_combination_of_indices_is_an_architecture(space, data):
    """A sampler that decides in sequence does not need to know which stages are removed."""
    point = tuple(data.draw(st.integers(0, len(one.options) - 1)) for one in space.decisions)
    assert space.encode(space.decode(point)) == space.canonical(point)
    assert space.decode(space.canonical(point)) == space.decode(point)


@settings(max_examples=20)
@given(st.sampled_from([TINY, RICH, small_space()]), st.integers())
def test_neighbors_are_mutual_and_different(space, seed):
    point = space.sample(Key.of(seed))
    near = space.neighbors(point)
    assert len(set(near)) == len(near)
    assert point not in near
    assert all(space.canonical(other) == other and point in space.neighbors(other) for other in near)


def test_neighbors_by_hand():
    """Without the second stage: 2 other first stages, 4 second stages."""
    assert set(TINY.neighbors((0, 0, 0, 0, 1))) == {
        (1, 0, 0, 0, 1), (0, 1, 0, 0, 1), (0, 0, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 1, 1, 0),
    }  # fmt: skip
    assert set(TINY.neighbors((0, 0, 1, 1, 0))) == {
        (1, 0, 1, 1, 0), (0, 1, 1, 1, 0), (0, 0, 0, 1, 0), (0, 0, 1, 0, 0), (0, 0, 0, 0, 1),
    }  # fmt: skip


def test_architectures_are_sampled_uniformly():
    """20 architectures, 2,000 draws: chi-square with 19 degrees of freedom is below 43.8 with probability 0.999."""
    drawn = [TINY.sample(Key.of(seed)) for seed in range(2000)]
    counts = [drawn.count(point) for point in TINY.points()]
    assert sum(counts) == 2000
    assert sum((count - 100) ** 2 / 100 for count in counts) < 43.8


@pytest.mark.parametrize("name", NAMES)
def test_published_architecture_is_in_the_space_around_it(name):
    architecture = get_architecture(name)
    space = space_around(architecture)
    assert space.decode(space.encode(architecture)) == architecture


def test_table_4_is_in_the_paper_space_except_for_its_channels():
    """S: operators and layers of Table 4 with the channels of B4, and the seventh stage removed."""
    b4 = get_architecture("efficientnet_b4")
    rows = zip(EFFICIENTNETV2_S.stages, b4.stages[:6], strict=True)
    architecture = replace(b4, stages=tuple(replace(row, channels=stage.channels) for row, stage in rows))
    space = paper_space()
    assert len(architecture.stages) == 6
    assert space.decode(space.encode(architecture)) == architecture


def test_table_3_is_in_the_paper_space():
    """B4 with its first 1-3, 1-5, 1-7 stages fused."""
    space = paper_space()
    for stages in (3, 5, 7):
        architecture = with_fused(get_architecture("efficientnet_b4"), stages=stages)
        assert space.decode(space.encode(architecture)) == architecture


def test_small_space():
    space = small_space()
    assert space.count == 73_728
    assert space.decode(space.encode(small_b0())) == space.backbone == small_b0()
    assert [stage.channels for stage in small_b0().stages] == [8, 16, 24, 48, 56, 96]
    require_image_size(space, 64)


@pytest.mark.parametrize("space", [RICH, small_space(), paper_space()])
def test_sampled_models_have_the_counted_parameters_and_flops(space):
    for seed in range(2):
        architecture = space.decode(space.sample(Key.of(seed)))
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            module = EfficientNet(architecture, num_classes=10).eval()
            assert module(torch.empty(1, 3, 64, 64)).shape == (1, 10)
        total = count_flops(architecture, image_size=64, num_classes=10).total
        assert sum(one.numel() for one in module.parameters()) == total.parameters
        assert counter.get_total_flops() == 2 * total.multiply_adds


def test_middle_stage_is_removable():
    """Strides 2, 1, 1. The second stage is removable, and the last stage has equal channels."""
    longer = replace(BACKBONE, stages=(*BACKBONE.stages, BACKBONE.stages[1]))
    space = Space(longer, (FIRST, SECOND, replace(SECOND, layers=(1, 2))))
    for point in space.points():
        assert space.encode(space.decode(point)) == point
    assert len({space.decode(point) for point in space.points()}) == space.count


def test_channels_and_squeeze_excite_are_decisions():
    named = {one.name: one.options for one in RICH.decisions}
    assert named["stage2.channels"] == (8, 16, 24)
    assert named["stage2.se"] == (0.5, 0.25, None)
    without = RICH.choices(RICH.encode(BACKBONE)) | {"stage2.se": None}
    assert RICH.decode(RICH.point(without)).stages[1].operator == mbconv(expand=4, kernel=3, se=None)


def test_unusual_backbone_is_in_its_space():
    unusual = Architecture(8, (Stage(mbconv(expand=3, kernel=7, se=0.5), 1, 12, 2),), 32)
    space = space_around(unusual)
    assert space.decode(space.encode(unusual)) == unusual
    fields = ("kind", "kernel", "expand", "se", "layers")
    assert [one.name for one in space.decisions] == [f"stage1.{field}" for field in fields]
    assert 0 not in dict(space.decisions)["stage1.layers"]


@given(st.sampled_from([TINY, RICH, small_space(), paper_space()]))
def test_space_survives_json(space):
    assert Space.from_json(space.to_json()) == space


def test_description_names_every_option():
    text = RICH.describe()
    assert mentions(text, "2", "1", "3", "5", "4", "8", "16", "24")
    assert mentions(text, "0.5", "0.25")
    assert f"{RICH.count:,} networks, 10 decisions" in text
    assert mentions(paper_space().describe(), "5", "1", "3", "4", "6", "160", "0", "12")


def refused(match, **changes):
    with pytest.raises(ValidationError, match=match):
        replace(SECOND, **changes)


def test_invalid_stage_choices_are_rejected():
    refused("channels is 0, but must be at least 1", channels=(16, 0))
    refused("kernel is 4, but must be odd", kernels=(3, 4))
    refused("expand is 0", expands=(0,))
    refused(r"se is 2, but must be in \(0, 1\]", se=(None, 2.0))
    refused("layers .* must have different options", layers=())
    refused("not only 0", layers=(0,))
    refused("layers is one of -1 or 2", layers=(-1, 2))
    refused("layers .* must have different options", layers=(1, 1))


def test_invalid_spaces_are_rejected():
    with pytest.raises(ValidationError, match=mentioning("1", "0", "2")):
        Space(BACKBONE, (replace(FIRST, layers=(0, 1)), SECOND))
    with pytest.raises(ValidationError, match=mentioning("1", "2", "stage")):
        Space(BACKBONE, (FIRST,))
    fixed = (
        replace(FIRST, layers=(1,), kinds=("fused",)),
        replace(SECOND, kinds=("mbconv",), expands=(4,), layers=(1,)),
    )
    with pytest.raises(ValidationError, match="nothing to search"):
        Space(BACKBONE, fixed)
    with pytest.raises(ValidationError, match=mentioning("2", "4", "stage")):
        Space(BACKBONE, (FIRST, replace(SECOND, expands=(1, 6))))
    longer = replace(BACKBONE, stages=(*BACKBONE.stages, BACKBONE.stages[1]))
    with pytest.raises(ValidationError, match=mentioning("2", "3", "0")):
        Space(longer, (FIRST, SECOND, SECOND))
    alone = replace(BACKBONE, stages=BACKBONE.stages[1:])
    with pytest.raises(ValidationError, match="an architecture has at least one"):
        Space(alone, (SECOND,))


def test_invalid_json_names_the_place():
    plain = RICH.to_json()
    plain["stages"][1]["channels"] = [0, 16]
    with pytest.raises(InputError, match=mentioning("stages.1", "0", "1")):
        Space.from_json(plain)
    with pytest.raises(InputError, match="kernel_sizes"):
        Space.from_json(TINY.to_json() | {"kernel_sizes": [3]})


def test_architecture_of_another_space_is_rejected_with_the_reason():
    def reason(network):
        with pytest.raises(InputError) as refusal:
            TINY.encode(network)
        return str(refusal.value)

    first, second = BACKBONE.stages
    assert mentions(reason(replace(BACKBONE, head_channels=48)), "head_channels", "48", "32")
    assert mentions(reason(replace(BACKBONE, stages=(first, replace(second, channels=24)))), "2", "24", "16")
    assert mentions(
        reason(replace(BACKBONE, stages=(first, replace(second, operator=mbconv(expand=4, kernel=3, se=None))))),
        "2",
        "stage",
    )
    assert "strides 1" in reason(replace(BACKBONE, stages=(second,)))
    assert mentions(reason(replace(BACKBONE, stages=(first, second, second))), "3", "1", "2")


def test_image_size_below_the_stride_is_rejected():
    """B4 has stride 32."""
    with pytest.raises(InputError, match=mentioning("24", "32")):
        require_image_size(paper_space(), 24)
    require_image_size(paper_space(), 32)
