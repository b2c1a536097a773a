"""Architecture files."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as some
from tests.messages import mentioning

from efficientnetv2.architectures.registry import (
    NAMES,
    get_architecture,
    is_architecture_file,
    read_architecture,
    write_architecture,
)
from efficientnetv2.utils.errors import InputError


@given(
    name=some.sampled_from(NAMES),
    comment=some.text(some.characters(codec="utf-8", exclude_categories=["C"])),
    suffix=some.sampled_from([".yaml", ".json"]),
)
def test_architecture_is_read_back_equal(name, comment, suffix, tmp_path_factory):
    file = tmp_path_factory.mktemp("files") / f"network{suffix}"
    write_architecture(file, get_architecture(name), comment=comment)
    assert read_architecture(file) == get_architecture(name)
    if suffix == ".json":
        assert json.loads(file.read_text())["head_channels"] == get_architecture(name).head_channels


def test_json_may_be_indented_by_tabs(tmp_path):
    architecture = get_architecture("efficientnetv2_s")
    (tmp_path / "s.json").write_text(json.dumps(architecture.to_json(), indent="\t"))
    assert read_architecture(tmp_path / "s.json") == architecture


def test_each_stage_is_one_line(tmp_path):
    write_architecture(tmp_path / "s.yaml", get_architecture("efficientnetv2_s"), comment="Found.")
    lines = (tmp_path / "s.yaml").read_text().splitlines()
    assert lines[0] == "# Found."
    assert len([line for line in lines if line.startswith("- {operator: ")]) == 6


def test_only_yaml_names_are_architecture_files():
    assert is_architecture_file("found.yaml")
    assert not is_architecture_file("efficientnetv2_s.in1k")
    assert not is_architecture_file("timm:resnet50")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stem_channels: [", "is not YAML"),
        ("- 1\n- 2\n", "is not an architecture"),
        ("stem_channels: 8\nstages: []\nhead_channels: 64\n", "stages is empty"),
        ("stem_channels: 8\nheads: 3\n", "is not an architecture"),
        (
            "stem_channels: 8\nhead_channels: 8\nstages:\n- {operator: {kind: fused, expand: 1, kernel: 4}, stride: 1, "
            "channels: 8, layers: 1}\n",
            "stages.0.operator: fused(expand=1, kernel=4): kernel is 4, but must be odd",
        ),
    ],
)
def test_invalid_architecture_is_rejected_with_the_position(text, said, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        read_architecture(tmp_path / "bad.yaml")
    assert said in str(error.value)
    assert "bad.yaml" in str(error.value)


def test_deeply_nested_file_is_rejected_immediately(tmp_path):
    (tmp_path / "deep.yaml").write_text("[" * 10_000 + "]" * 10_000)
    with pytest.raises(InputError, match=mentioning("model", "deep.yaml")):
        read_architecture(tmp_path / "deep.yaml")


@pytest.mark.parametrize("number", ["9" * 5_000, "9" * 300, "-" + "9" * 5_000])
@pytest.mark.parametrize("field", ["stem_channels", "channels", "layers", "expand", "kernel", "stride"])
def test_number_with_many_digits_names_its_field(tmp_path, field, number):
    write_architecture(tmp_path / "long.yaml", get_architecture("efficientnetv2_b0"))
    text = (tmp_path / "long.yaml").read_text()
    (tmp_path / "long.yaml").write_text(re.sub(rf"\b{field}: \d+", f"{field}: {number}", text, count=1))
    with pytest.raises(InputError, match=rf"long\.yaml.*{field}") as error:
        read_architecture(tmp_path / "long.yaml")
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_missing_file_or_folder_is_reported(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_architecture(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=mentioning("folder")):
        write_architecture(tmp_path / "none/found.yaml", get_architecture("efficientnetv2_s"))
