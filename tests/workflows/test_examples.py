"""The examples in the docstrings of the API run as they stand, on a tiny model."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import textwrap

import pytest
from tests.command_line import NETWORK
from tests.nas.tiny import SPACE

import efficientnetv2 as ev2

# In place of what would take minutes.
_SHORTER = {
    '"efficientnetv2_b0"': repr(NETWORK),
    'output="runs/mine"': 'output="runs/another"',
    "image_size=64": "image_size=32, batch_size=8",
    "trials=2,": 'trials=2, space="space.json", settings={"minival": 0.25},',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos, run):
    """A place with what the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("photos", "test", "new_photos"):
        shutil.copytree(photos, folder / name)
    shutil.copytree(run.path, folder / "runs/mine")
    (folder / "space.json").write_text(json.dumps(SPACE.to_json()))
    return folder


def example(name: str) -> str:
    """The example of a docstring."""
    documented = inspect.getdoc(getattr(ev2, name)) or ""
    (block,) = re.findall(r"Example::\n\n(.*?)\n(?=\S)", documented, re.DOTALL)
    return textwrap.dedent(block)


@pytest.mark.parametrize(
    "name", ["train", "Run", "evaluate", "predict", "check", "estimate", "cross_validate", "search"]
)
def test_an_example_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("efficientnetv2.utils.device.pick_workers", lambda device, sharing=1: 0)
    text = example(name)
    for long, short in _SHORTER.items():
        text = text.replace(long, short)
    exec(text, {})
