"""Architectures as data: what is refused, what is kept, what blocks a table expands to."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.messages import mentioning

from efficientnetv2.architectures.registry import NAMES, get_architecture
from efficientnetv2.architectures.spec import (
    Architecture,
    Operator,
    Stage,
    blocks,
    fused_mbconv,
    is_architecture_file,
    mbconv,
    read_architecture,
    write_architecture,
)
from efficientnetv2.utils.errors import InputError

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
stages = st.builds(
    Stage, operators, st.sampled_from([1, 2]), channels=st.integers(1, 2000), layers=st.integers(1, 40)
)
architectures = st.builds(
    Architecture,
    stem_channels=st.integers(1, 256),
    stages=st.lists(stages, min_size=1, max_size=8).map(tuple),
    head_channels=st.integers(1, 6000),
    padding=st.sampled_from(["same", "symmetric"]),
    batch_norm_epsilon=st.floats(0, 1, exclude_min=True),
)


@given(architectures)
def test_json_text_gives_back_an_equal_architecture(architecture):
    assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture


@given(architectures)
def test_each_block_takes_what_the_one_before_gives_and_depth_rises_evenly(architecture):
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
def test_an_impossible_architecture_cannot_be_made(make, said):
    with pytest.raises(ValidationError, match=mentioning(*said)):
        make()


def test_wrong_json_is_refused_with_the_stage_it_stands_in():
    plain = SMALL.to_json()
    plain["stages"][2]["channels"] = -20
    with pytest.raises(ValidationError, match=r"stages\.2(.|\n)*channels is -20"):
        Architecture.from_json(plain)
    with pytest.raises(ValidationError, match="dilation"):
        Architecture.from_json({**SMALL.to_json(), "dilation": 2})


def test_an_architecture_is_a_value():
    assert Architecture.from_json(SMALL.to_json()) == SMALL
    assert hash(SMALL) == hash(Architecture.from_json(SMALL.to_json()))
    with pytest.raises(AttributeError, match="stem_channels"):
        SMALL.stem_channels = 16  # type: ignore[misc]


def test_blocks_by_hand():
    """Squeeze-excite is a quarter of what enters the block; a shortcut needs equal shapes."""
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


def test_one_channel_still_gets_squeeze_excite():
    one = Architecture(1, (Stage(mbconv(expand=1, kernel=3, se=0.25), 1, 1, 1),), 8)
    assert blocks(one)[0].se_channels == 1


@given(
    name=some.sampled_from(NAMES), comment=some.text(some.characters(codec="utf-8", exclude_categories=["C"]))
)
def test_a_table_is_read_as_it_was_written(name, comment, tmp_path_factory):
    file = tmp_path_factory.mktemp("files") / "network.yaml"
    write_architecture(file, get_architecture(name), comment=comment)
    assert read_architecture(file) == get_architecture(name)


def test_a_file_of_version_0_1_is_read(tmp_path):
    write_architecture(tmp_path / "s.yaml", get_architecture("efficientnetv2_s"))
    text = (tmp_path / "s.yaml").read_text()
    (tmp_path / "old.yaml").write_text(text.replace("global_pool: avg\n", "pooling: mean+centre\n"))
    assert read_architecture(tmp_path / "old.yaml") == replace(
        get_architecture("efficientnetv2_s"), global_pool="avg+center"
    )


def test_a_stage_is_a_line(tmp_path):
    write_architecture(tmp_path / "s.yaml", get_architecture("efficientnetv2_s"), comment="Found.")
    lines = (tmp_path / "s.yaml").read_text().splitlines()
    assert lines[0] == "# Found."
    assert len([line for line in lines if line.startswith("- {operator: ")]) == 6


def test_only_files_are_taken_for_files():
    assert is_architecture_file("found.yaml")
    assert not is_architecture_file("efficientnetv2_s.in1k")
    assert not is_architecture_file("timm:resnet50")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stem_channels: [", "is not YAML"),
        ("- 1\n- 2\n", "is no table of a network"),
        ("stem_channels: 8\nstages: []\nhead_channels: 64\n", "stages is empty"),
        ("stem_channels: 8\nheads: 3\n", "no table of a network"),
        (
            "stem_channels: 8\nhead_channels: 8\nstages:\n- {operator: {kind: fused, expand: 1, kernel: 4}, stride: 1, "
            "channels: 8, layers: 1}\n",
            "stages.0.operator: fused(expand=1, kernel=4): kernel is 4, but must be odd",
        ),
    ],
)
def test_what_is_no_network_is_told_with_its_place(text, said, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        read_architecture(tmp_path / "bad.yaml")
    assert said in str(error.value)
    assert "bad.yaml" in str(error.value)


def test_a_file_nested_too_deeply_is_refused_at_once(tmp_path):
    (tmp_path / "deep.yaml").write_text("[" * 10_000 + "]" * 10_000)
    with pytest.raises(InputError, match=mentioning("--model", "deep.yaml")):
        read_architecture(tmp_path / "deep.yaml")


@pytest.mark.parametrize("number", ["9" * 5_000, "9" * 300, "-" + "9" * 5_000])
@pytest.mark.parametrize("field", ["stem_channels", "channels", "layers", "expand", "kernel", "stride"])
def test_a_number_of_many_digits_names_its_field(tmp_path, field, number):
    write_architecture(tmp_path / "long.yaml", get_architecture("efficientnetv2_b0"))
    text = (tmp_path / "long.yaml").read_text()
    (tmp_path / "long.yaml").write_text(re.sub(rf"\b{field}: \d+", f"{field}: {number}", text, count=1))
    with pytest.raises(InputError, match=rf"long\.yaml.*{field}") as error:
        read_architecture(tmp_path / "long.yaml")
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_architecture(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=mentioning("folder")):
        write_architecture(tmp_path / "none/found.yaml", get_architecture("efficientnetv2_s"))
